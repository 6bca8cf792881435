"""activation_backward: gradient of bias and (leaky) ReLU in one launch, with its sums."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fvae.kernels import tiles
from fvae.kernels.counters import add_partials, counters, is_last
from fvae.kernels.launch import check_below, jit, launch


@jit("grad_ptr", "y_ptr", "delta_ptr", "scaled_ptr")
def activation_backward_kernel(
    grad_ptr,  # [M, B, HW, C]
    y_ptr,  # [M, B, HW, C]
    factor_ptr,  # [M, B], or None
    delta_ptr,  # [M, B, HW, C] contiguous where ACT, else None
    scaled_ptr,  # likewise where there are factors, else None
    bias_ptr,  # [M, C]
    partial_ptr,  # float32 [M, tiles, parts, CHANNELS] where SPLIT, else None
    counter_ptr,  # int32 [M, tiles], zero before and after, where SPLIT, else None
    slope,
    rows,  # B HW
    inner,  # HW
    channels,  # C
    parts,  # programs that share a tile of channels
    turns,  # tiles of rows that each of them walks
    g_m, g_b, g_s, g_c,
    y_m, y_b, y_s, y_c,
    f_m, f_b,
    ACT: tl.constexpr,  # there is an activation
    DENSE: tl.constexpr,  # C where grad and y lie as what is made of them, else 0
    LAST: tl.constexpr,  # channels lie side by side in grad and y
    TILE: tl.constexpr,  # rows of a tile
    CHANNELS: tl.constexpr,  # channels of a tile
    SPLIT: tl.constexpr,  # a tile of channels has several parts
    PARTS: tl.constexpr,  # partial sums added in one go
):  # fmt: skip
    """delta = grad where y > 0, else slope grad; bias[c] = sum of factor delta."""
    part, tile, m = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    column = tl.arange(0, CHANNELS)
    c = (tile * CHANNELS + column)[None, :].to(tl.int64)
    total = tl.zeros([TILE, CHANNELS], tl.float32)
    turn = 0  # `while`: as in counters.py
    while turn < turns:
        r32 = (part * turns + turn) * TILE + tl.arange(0, TILE)[:, None]
        r = r32.to(tl.int64)
        inside = (r < rows) & (c < channels)
        if DENSE:  # known to the compiler, so that it makes whole vectors
            inside = (r < rows) & (c < DENSE)
        b, s = (r32 // inner).to(tl.int64), (r32 % inner).to(tl.int64)
        out = (m * rows + r) * channels + c
        if DENSE:
            out = (m * rows + r) * DENSE + c
            g_at, y_at = out, out
        elif LAST:
            g_at, y_at = g_m * m + g_b * b + g_s * s + c, y_m * m + y_b * b + y_s * s + c
        else:
            g_at = g_m * m + g_b * b + g_s * s + g_c * c
            y_at = y_m * m + y_b * b + y_s * s + y_c * c
        value = tl.load(grad_ptr + g_at, mask=inside, other=0.0).to(tl.float32)
        if ACT:
            y = tl.load(y_ptr + y_at, mask=inside, other=0.0).to(tl.float32)
            value = tl.where(y <= 0, slope * value, value)
            tl.store(delta_ptr + out, value.to(delta_ptr.dtype.element_ty), mask=inside)
        if factor_ptr is not None:
            value *= tl.load(factor_ptr + f_m * m + f_b * r, mask=r < rows, other=0.0)
            tl.store(scaled_ptr + out, value.to(scaled_ptr.dtype.element_ty), mask=inside)
        total += value
        turn += 1
    bias = tl.sum(total, axis=0)
    out_ptr = bias_ptr + m * channels + tile * CHANNELS + column
    known = tile * CHANNELS + column < channels
    if SPLIT:
        place = m * tl.num_programs(1) + tile
        partial_ptr += place * parts * CHANNELS
        tl.store(partial_ptr + part * CHANNELS + column, bias)
        if is_last(counter_ptr + place, parts):
            bias = add_partials(partial_ptr, parts, CHANNELS, PARTS, CHANNELS)
            tl.store(out_ptr, bias.to(bias_ptr.dtype.element_ty), mask=known)
    else:
        tl.store(out_ptr, bias.to(bias_ptr.dtype.element_ty), mask=known)


@jit("y_ptr")
def bias_activation_kernel(
    y_ptr,  # [M, B, HW, C]
    bias_ptr,  # [M, C], or None
    slope,
    rows,  # B HW
    inner,  # HW
    channels,  # C
    y_m, y_b, y_s, y_c,
    bias_m, bias_c,
    DENSE: tl.constexpr,  # C where y is one piece of memory, else 0
    LAST: tl.constexpr,  # channels lie side by side
    TILE: tl.constexpr,  # rows a program
    CHANNELS: tl.constexpr,  # channels a program
):  # fmt: skip
    """y = act(y + bias), in place."""
    m = tl.program_id(2).to(tl.int64)
    c = (tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS))[None, :].to(tl.int64)
    r32 = tl.program_id(0) * TILE + tl.arange(0, TILE)[:, None]
    r = r32.to(tl.int64)
    inside = (r < rows) & (c < channels)
    at = y_m * m + y_b * (r32 // inner).to(tl.int64) + y_s * (r32 % inner).to(tl.int64)
    if DENSE:  # known to the compiler, so that it makes whole vectors
        inside = (r < rows) & (c < DENSE)
        at = (m * rows + r) * DENSE + c
    elif LAST:
        at += c
    else:
        at += y_c * c
    y = tl.load(y_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + bias_m * m + bias_c * c, mask=c < channels, other=0.0)
        y += bias.to(tl.float32)
    y = tl.where(y <= 0, slope * y, y)
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)


def _shape(y: Tensor) -> tuple[int, int, int, int]:
    """Return M, B, HW and C."""
    if y.dim() == 4:
        return 1, y.shape[0], y.shape[2] * y.shape[3], y.shape[1]
    models, rows, channels = (1,) * (3 - y.dim()) + y.shape
    return models, rows, 1, channels


def _strides(x: Tensor) -> tuple[int, int, int, int] | None:
    """Return the strides of [M, B, HW, C]; None where H and W are not one dimension."""
    if x.dim() == 4:
        b, c, h, w = x.stride()
        if x.shape[2] > 1 and h != w * x.shape[3] and x.shape[3] > 1:
            return None
        # Of one column or row the stride says nothing.
        return 0, b, w if x.shape[3] > 1 else h, c
    m, b, c = (0,) * (3 - x.dim()) + x.stride()
    return m, b, 0, c


def _laid_out(x: Tensor) -> tuple[Tensor, tuple[int, int, int, int]]:
    """A tensor that the kernel can walk, and its strides."""
    strides = _strides(x)
    if strides is None:
        x = x.contiguous(memory_format=torch.channels_last)
        strides = _strides(x)
    return x, strides


def _dense(x: Tensor, *strides: tuple[int, int, int, int]) -> int:
    """C of tensors of x's shape which are one piece of memory, row for row; else 0."""
    models, batch, inner, channels = _shape(x)
    for m, b, s, c in strides:
        rows = b == inner * channels or batch == 1
        if not (c == 1 or channels == 1) or not (s == channels or inner == 1) or not rows:
            return 0
        if models > 1 and m != batch * inner * channels:
            return 0
    return channels


def _tile(rows: int, channels: int, dense: int) -> tuple[int, int]:
    """Rows and channels of a tile; fewer rows where each number's place has to be found."""
    width = min(tiles.ACTIVATION_CHANNELS, triton.next_power_of_2(channels))
    size = tiles.ACTIVATION_TILE // (1 if dense else 2)
    return max(1, min(size // width, triton.next_power_of_2(rows))), width


def activation_backward(
    grad: Tensor, y: Tensor, slope: float, dtype: torch.dtype, factor: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Triton backend of ``fvae::activation_backward``."""
    models, batch, inner, channels = _shape(y)
    rows = batch * inner
    check_below("y", rows, 1 << 30, "rows")  # and their tiles fit 32 bits
    act, form = slope != 1, torch.channels_last if y.dim() == 4 else torch.contiguous_format
    (grad, grad_strides), (y, y_strides) = _laid_out(grad), _laid_out(y)

    def like(there: bool) -> Tensor | None:
        return torch.empty_like(y, memory_format=form) if there else None

    delta, scaled = like(act), like(factor is not None)
    shape = (channels,) if y.dim() == 4 else (*y.shape[:-2], channels)
    bias = torch.empty(shape, dtype=dtype, device=y.device)
    dense = _dense(y, grad_strides, y_strides)
    tile, width = _tile(rows, channels, dense)
    columns, count = triton.cdiv(channels, width), triton.cdiv(rows, tile)
    turns = tiles.turns(count, tiles.ACTIVATION_PROGRAMS)
    parts = triton.cdiv(count, turns)
    partial = counter = None
    if parts > 1:
        size = (models, columns, parts, width)
        partial = torch.empty(size, dtype=torch.float32, device=y.device)
        counter = counters(y.device, models * columns)
    factor_strides = (0, 0) if factor is None else (0,) * (2 - factor.dim()) + factor.stride()
    launch(
        activation_backward_kernel,
        (parts, columns, models),
        (
            grad, y, factor, delta, scaled, bias, partial, counter, float(slope), rows, inner,
            channels, parts, turns, *grad_strides, *y_strides, *factor_strides,
        ),
        ACT=act,
        DENSE=dense,
        LAST=grad_strides[3] == 1 and y_strides[3] == 1,
        TILE=tile,
        CHANNELS=width,
        SPLIT=parts > 1,
        PARTS=max(1, tiles.PARTIALS // width),
        num_warps=tiles.WARPS,
    )  # fmt: skip
    nothing = y.new_empty(0)
    return (
        nothing if delta is None else delta, y.new_empty(0) if scaled is None else scaled, bias
    )  # fmt: skip


def bias_activation(y: Tensor, bias: Tensor | None, slope: float) -> None:
    """Triton backend of ``fvae::bias_activation``."""
    models, batch, inner, channels = _shape(y)
    rows = batch * inner
    check_below("y", rows, 1 << 30, "rows")  # and their tiles fit 32 bits
    walked, strides = _laid_out(y)
    bias_strides = (0, 0) if bias is None else (0,) * (2 - bias.dim()) + bias.stride()
    dense = _dense(y, strides)
    tile, width = _tile(rows, channels, dense)
    launch(
        bias_activation_kernel,
        (triton.cdiv(rows, tile), triton.cdiv(channels, width), models),
        (walked, bias, float(slope), rows, inner, channels, *strides, *bias_strides),
        DENSE=dense,
        LAST=strides[3] == 1,
        TILE=tile,
        CHANNELS=width,
        num_warps=tiles.WARPS,
    )
    if walked is not y:
        y.copy_(walked)
