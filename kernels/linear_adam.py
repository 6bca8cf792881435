"""linear_adam: Adam of linear layers in one launch that makes their gradients tile by tile."""

import struct
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fvae.kernels import tiles
from fvae.kernels.fused_adam import (
    LINE,
    NOWHERE,
    OFFSET,
    TYPES,
    address,
    as_arguments,
    fill,
    pointer,
    store_scales,
    update,
)
from fvae.kernels.launch import interpreted, jit, launch, strides_3d
from fvae.kernels.linear_backward import precision, weight_gradient

# A layer's line of the table: addresses of gradient, output and input; the strides of each, of
# model, row and column; outputs and inputs; slope, as bits; first program; addresses of p, m, v and
# the copy, of the weight and of the bias.
_LAYER = tl.constexpr(24)


@jit()
def linear_adam_scales_kernel(
    table_ptr,  # int64 [COUNT]
    steps_ptr,  # float32 [T, S]
    rates_ptr,  # float32 [3]
    scales_ptr,  # float32 [T, S, 8] contiguous
    tensors,  # T
    counts,  # S
    s_t, s_c,  # strides of steps
    words,  # the table, as arguments
    COUNT: tl.constexpr,
    TENSORS: tl.constexpr,  # power of two, of a program
):  # fmt: skip
    """Write the table, count the updates, and find what the elements of a tensor share."""
    if tl.program_id(0) == 0:
        fill(table_ptr, words, COUNT)
    i = tl.program_id(0).to(tl.int64) * TENSORS + tl.arange(0, TENSORS)
    count_ptr = steps_ptr + (i // counts) * s_t + (i % counts) * s_c
    go = tl.full([TENSORS], 1.0, tl.float32)
    store_scales(count_ptr, rates_ptr, scales_ptr + i * LINE, go, i < tensors * counts)


@triton.jit
def _weights(line_ptr, i, g, inside, scale_ptr, eps, COPY: tl.constexpr, ALIGNED: tl.constexpr):
    """Update elements i of the tensor whose addresses a line has."""
    p_ptr = pointer(line_ptr, 0, tl.float32, ALIGNED) + i
    m_ptr = pointer(line_ptr, 1, tl.float32, ALIGNED) + i
    v_ptr = pointer(line_ptr, 2, tl.float32, ALIGNED) + i
    copy_ptr = None
    if COPY is not None:
        copy_ptr = pointer(line_ptr, 3, COPY, ALIGNED) + i
    update(p_ptr, g, m_ptr, v_ptr, copy_ptr, inside, scale_ptr, eps, COPY)


@jit()
def linear_adam_kernel(
    table_ptr,  # int64 [layers, 24] contiguous
    scales_ptr,  # float32 [2 layers, S, 8] contiguous
    factor_ptr,  # [M, B], or None
    layers,
    rows,  # B
    counts,  # S, 1 or M
    eps,
    f_m, f_b,
    TYPE: tl.constexpr,  # of gradients, outputs and inputs
    COPY: tl.constexpr,  # type of the copies, or None
    ALIGNED: tl.constexpr,  # whether weights, moments and copies begin at whole vectors
    LINES: tl.constexpr,  # power of two, at least layers
    TILE: tl.constexpr,  # outputs and inputs of a tile
    STEP: tl.constexpr,  # rows in one go
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,  # multiply in float32 whatever the type
):  # fmt: skip
    """A tile of (factor delta)^T x, and Adam of its weights; its first column has the bias's."""
    program, m = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    all_lines = tl.arange(0, LINES)
    first = tl.load(table_ptr + all_lines * _LAYER + 15, mask=all_lines < layers, other=OFFSET)
    layer = tl.sum((first <= program).to(tl.int32), axis=0) - 1
    line_ptr = table_ptr + layer * _LAYER
    outputs, inputs = tl.load(line_ptr + 12), tl.load(line_ptr + 13)
    slope = tl.load(line_ptr + 14).to(tl.uint32).to(tl.float32, bitcast=True)
    tile = program - tl.load(line_ptr + 15)
    columns = tl.cdiv(inputs, TILE)
    one = tl.arange(0, TILE).to(tl.int64)
    n = (tile // columns) * TILE + one[:, None]
    k = (tile % columns) * TILE + one[None, :]
    of_m_ptr = None if factor_ptr is None else factor_ptr + m * f_m
    total, bias = weight_gradient(
        pointer(line_ptr, 0, TYPE, False) + m * tl.load(line_ptr + 3),
        pointer(line_ptr, 1, TYPE, False) + m * tl.load(line_ptr + 6),
        pointer(line_ptr, 2, TYPE, False) + m * tl.load(line_ptr + 9),
        of_m_ptr, slope, n, k, rows, outputs, inputs,
        tl.load(line_ptr + 4), tl.load(line_ptr + 5), tl.load(line_ptr + 7),
        tl.load(line_ptr + 8), tl.load(line_ptr + 10), tl.load(line_ptr + 11), f_b,
        True, STEP, PRECISION, WIDE,
    )  # fmt: skip
    of_weight_ptr = scales_ptr + (2 * layer * counts + m % counts) * LINE
    row, inside = m * outputs + n, (n < outputs) & (k < inputs)
    if ALIGNED and inputs % 4 == 0:
        whole = tl.multiple_of(inputs, 4)
        inside_whole = (n < outputs) & (k < whole)
        at_whole = row * whole + k
        _weights(line_ptr + 16, at_whole, total, inside_whole, of_weight_ptr, eps, COPY, True)
    else:
        _weights(line_ptr + 16, row * inputs + k, total, inside, of_weight_ptr, eps, COPY, False)
    if tile % columns == 0:
        unit = (tile // columns) * TILE + one
        sums, of_bias_ptr = tl.sum(bias, axis=1), of_weight_ptr + counts * LINE
        at = m * outputs + unit
        _weights(line_ptr + 20, at, sums, unit < outputs, of_bias_ptr, eps, COPY, False)


def linear_adam(
    steps: Tensor, settings: Tensor, grads: Sequence[Tensor], ys: Sequence[Tensor],
    xs: Sequence[Tensor], slopes: Sequence[float], params: Sequence[Tensor],
    exp_avg: Sequence[Tensor], exp_avg_sq: Sequence[Tensor], copies: Sequence[Tensor],
    group: int, eps: float, factor: Tensor | None = None,
) -> None:  # fmt: skip
    """Triton backend of ``fvae::linear_adam``."""
    steps = steps.unsqueeze(-1) if steps.dim() == 1 else steps
    for begin in range(0, len(xs), tiles.LINEAR_LAYERS):
        some = slice(begin, begin + tiles.LINEAR_LAYERS)
        two = slice(2 * some.start, 2 * some.stop)
        given = [params[two], exp_avg[two], exp_avg_sq[two], *[copies[two]] * bool(copies)]
        taken = [[x.contiguous() for x in each] for each in given]
        layers = list(zip(grads[some], ys[some], xs[some], slopes[some], strict=True))
        _some(steps[two], settings[group], layers, taken, eps, factor)
        for before, after in zip(given, taken, strict=True):
            for x, y in zip(before, after, strict=True):
                if x is not y:
                    x.copy_(y)


def _some(
    steps: Tensor, rates: Tensor, layers: list[tuple[Tensor, Tensor, Tensor, float]],
    states: list[list[Tensor]], eps: float, factor: Tensor | None,
) -> None:  # fmt: skip
    """Layers of one table, whose weights, moments and copies are contiguous."""
    words: list[int] = []
    programs, x = 0, layers[0][2]
    for i, (grad, y, x, slope) in enumerate(layers):
        outputs, inputs = states[0][2 * i].shape[-2:]
        y = grad if slope == 1 else y  # which is not looked at then
        words += [address(t) for t in (grad, y, x)]
        words += [*strides_3d(grad), *strides_3d(y), *strides_3d(x), outputs, inputs]
        words += [int.from_bytes(struct.pack("<f", slope), "little"), programs]
        for t in (2 * i, 2 * i + 1):
            words += [*(address(each[t]) for each in states), *[NOWHERE] * (4 - len(states))]
        programs += triton.cdiv(outputs, tiles.LINEAR_TILE) * triton.cdiv(inputs, tiles.LINEAR_TILE)
    count = tiles.LINEAR_LAYERS * _LAYER.value
    table = torch.empty(count, dtype=torch.int64, device=x.device)
    scales = torch.empty(*steps.shape, LINE.value, device=x.device)
    launch(
        linear_adam_scales_kernel,
        (triton.cdiv(steps.numel(), tiles.ADAM_TENSORS),),
        (table, steps, rates.contiguous(), scales, *steps.shape, *steps.stride(),
         as_arguments(words, count)),
        COUNT=count, TENSORS=tiles.ADAM_TENSORS, num_warps=1,
    )  # fmt: skip
    models, rows = (1,) * (3 - x.dim()) + x.shape[:-1]
    factor_strides = (0, 0) if factor is None else (0,) * (2 - factor.dim()) + factor.stride()
    weights = [t for each in states for t in each[::2]]
    launch(
        linear_adam_kernel,
        (programs, models),
        (table, scales, factor, len(layers), rows, steps.shape[1], eps, *factor_strides),
        TYPE=TYPES[x.dtype],
        COPY=TYPES[states[3][0].dtype] if len(states) > 3 else None,
        ALIGNED=all(address(t) % 16 == 0 for t in weights),
        LINES=triton.next_power_of_2(tiles.LINEAR_LAYERS),
        TILE=tiles.LINEAR_TILE,
        STEP=tiles.LINEAR_STEP,
        PRECISION=precision(x),
        WIDE=interpreted() or x.dtype == torch.float32,
        num_warps=tiles.WARPS,
    )
