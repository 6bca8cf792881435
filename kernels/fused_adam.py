"""fused_adam: Adam of all tensors in one launch, which finds them through a table of pointers."""

import functools
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fvae.kernels import tiles
from fvae.kernels.counters import current_stream
from fvae.kernels.launch import jit, launch, only_planned

TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}

# A tensor's line of the table: addresses of p, g, m, v and of the copy, elements, first program and
# number. Its line of the scales: each beta and what it leaves of 1, step, root, whether to go.
LINE = tl.constexpr(8)
# Added to twice each word of the table on its way to the device: all are then of 64 bits and odd,
# and Triton compiles once.
OFFSET = tl.constexpr((1 << 60) + 1)
# Where nothing lies, and nothing is read.
NOWHERE = 1 << 40


@triton.jit
def fill(table_ptr, words, COUNT: tl.constexpr):
    """Write the first words of a table: some integers, each twice and larger by OFFSET."""
    for i in tl.static_range(COUNT):
        tl.store(table_ptr + i, (words[i] - OFFSET) >> 1)


@jit()
def adam_table_kernel(
    table_ptr,  # int64 [words]
    first,  # which of them these are
    words,  # some integers, each twice and larger by OFFSET
    COUNT: tl.constexpr,  # how many
):
    """The table, from arguments: a CUDA graph keeps these, and no memory of the host."""
    fill(table_ptr + first, words, COUNT)


@triton.jit
def _correction(beta, t):
    """1 - beta^t, float64: little is left of a beta near 1."""
    return 1.0 - tl.exp(t.to(tl.float64) * tl.log(beta.to(tl.float64)))


@triton.jit
def store_scales(count_ptr, rates_ptr, out_ptr, go, inside):
    """Count an update where go is 1, and find what the elements of its tensor share."""
    lr = tl.load(rates_ptr)
    beta1, beta2 = tl.load(rates_ptr + 1), tl.load(rates_ptr + 2)
    before = tl.load(count_ptr, mask=inside, other=0.0)
    step = lr.to(tl.float64) / _correction(beta1, before + 1.0)
    root = 1.0 / tl.sqrt(_correction(beta2, before + 1.0))
    tl.store(out_ptr, beta1, mask=inside)
    tl.store(out_ptr + 1, (1.0 - beta1.to(tl.float64)).to(tl.float32), mask=inside)
    tl.store(out_ptr + 2, beta2, mask=inside)
    tl.store(out_ptr + 3, (1.0 - beta2.to(tl.float64)).to(tl.float32), mask=inside)
    tl.store(out_ptr + 4, step.to(tl.float32), mask=inside)
    tl.store(out_ptr + 5, root.to(tl.float32), mask=inside)
    tl.store(out_ptr + 6, go, mask=inside)
    tl.store(count_ptr, before + go, mask=inside)


@jit()
def adam_scales_kernel(
    steps_ptr,  # float32 [T]
    settings_ptr,  # float32 [G, 3] contiguous
    groups_ptr,  # int64 [T] contiguous
    found_inf_ptr,  # float32 [], or None
    scales_ptr,  # float32 [T, 8] contiguous
    tensors,  # T
    stride,  # of steps
    TENSORS: tl.constexpr,  # of a program
):
    """Count the updates, and find what the elements of a tensor share."""
    i = tl.program_id(0) * TENSORS + tl.arange(0, TENSORS)
    inside = i < tensors
    go = tl.full([TENSORS], 1.0, tl.float32)
    if found_inf_ptr is not None:
        go = tl.where(tl.load(found_inf_ptr) == 1.0, 0.0, go)
    rates_ptr = settings_ptr + 3 * tl.load(groups_ptr + i, mask=inside, other=0)
    count_ptr = steps_ptr + i.to(tl.int64) * stride
    store_scales(count_ptr, rates_ptr, scales_ptr + i * LINE, go, inside)


@triton.jit
def pointer(line_ptr, column, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """What a line of a table points to, at whole vectors if ALIGNED."""
    found = tl.load(line_ptr + column).to(tl.pointer_type(TYPE))
    if ALIGNED:
        found = tl.multiple_of(found, 16)
    return found


@triton.jit
def _rounded(x, TYPE: tl.constexpr):
    """To the nearest, ties to even; by hand where the interpreter cuts."""
    if TYPE == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        near = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        near = tl.where(x != x, 0x7FC0, near)
        return near.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return x.to(TYPE)


@triton.jit
def update(p_ptr, g, m_ptr, v_ptr, copy_ptr, inside, scale_ptr, eps, COPY: tl.constexpr):
    """Adam of weights whose gradient is g, float32."""
    p, m, v = tl.load(p_ptr, mask=inside), tl.load(m_ptr, mask=inside), tl.load(v_ptr, mask=inside)
    m = tl.load(scale_ptr) * m + tl.load(scale_ptr + 1) * g
    v = tl.load(scale_ptr + 2) * v + tl.load(scale_ptr + 3) * g * g
    p -= tl.load(scale_ptr + 4) * m / (tl.sqrt(v) * tl.load(scale_ptr + 5) + eps)
    tl.store(m_ptr, m, mask=inside)
    tl.store(v_ptr, v, mask=inside)
    tl.store(p_ptr, p, mask=inside)
    if COPY is not None:
        tl.store(copy_ptr, _rounded(p, COPY), mask=inside)


@triton.jit
def _update(p_ptr, g_ptr, m_ptr, v_ptr, copy_ptr, inside, scale_ptr, eps, COPY: tl.constexpr):
    g = tl.load(g_ptr, mask=inside).to(tl.float32)
    update(p_ptr, g, m_ptr, v_ptr, copy_ptr, inside, scale_ptr, eps, COPY)


@jit()
def adam_kernel(
    table_ptr,  # int64 [lines, 8] contiguous
    scales_ptr,  # float32 [T, 8] contiguous
    lines,
    eps,
    GRAD: tl.constexpr,  # type of the gradients
    COPY: tl.constexpr,  # type of the copies, or None
    ALIGNED: tl.constexpr,  # whether all tensors begin at whole vectors
    LINES: tl.constexpr,  # power of two, at least lines
    TILE: tl.constexpr,  # elements of a program
):
    """One pass over memory: p, g, m and v are read, p, m, v and the copy written."""
    program = tl.program_id(0).to(tl.int64)
    all_lines = tl.arange(0, LINES)
    first = tl.load(table_ptr + all_lines * LINE + 6, mask=all_lines < lines, other=OFFSET)
    line = tl.sum((first <= program).to(tl.int32), axis=0) - 1
    line_ptr = table_ptr + line * LINE
    scale_ptr = scales_ptr + tl.load(line_ptr + 7) * LINE
    begin = (program - tl.load(line_ptr + 6)) * TILE
    # None at all where the update is left out.
    count = tl.load(line_ptr + 5) * tl.load(scale_ptr + 6).to(tl.int64)
    i = begin + tl.arange(0, TILE)
    p_ptr = pointer(line_ptr, 0, tl.float32, ALIGNED) + i
    g_ptr = pointer(line_ptr, 1, GRAD, ALIGNED) + i
    m_ptr = pointer(line_ptr, 2, tl.float32, ALIGNED) + i
    v_ptr = pointer(line_ptr, 3, tl.float32, ALIGNED) + i
    copy_ptr = None
    if COPY is not None:
        copy_ptr = pointer(line_ptr, 4, COPY, ALIGNED) + i
    if not ALIGNED:
        _update(p_ptr, g_ptr, m_ptr, v_ptr, copy_ptr, i < count, scale_ptr, eps, COPY)
    elif begin + TILE <= count:  # a mask would forbid whole vectors
        _update(p_ptr, g_ptr, m_ptr, v_ptr, copy_ptr, None, scale_ptr, eps, COPY)
    else:
        _update(p_ptr, g_ptr, m_ptr, v_ptr, copy_ptr, i < count, scale_ptr, eps, COPY)


def _shape_of_memory(x: Tensor) -> list[tuple[int, int]]:
    return [(n, s) for n, s in zip(x.shape, x.stride(), strict=True) if n != 1]


def _is_dense(x: Tensor) -> bool:
    """Whether a tensor fills a piece of memory, in any order of its dimensions."""
    expected = 1
    for stride, size in sorted((s, n) for n, s in _shape_of_memory(x)):
        if stride != expected:
            return False
        expected *= size
    return True


def _side_by_side(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors of one weight, and in place of those that do not lie as it does new ones."""
    p = tensors[0]
    if not (p.is_contiguous() or _is_dense(p)):
        p = torch.empty(p.shape, dtype=p.dtype, device=p.device).copy_(p)
    layout = _shape_of_memory(p)
    found = [p]
    for x in tensors[1:]:
        same = x.stride() == p.stride() or _shape_of_memory(x) == layout
        found.append(x if same else torch.empty_like(p, dtype=x.dtype).copy_(x))
    return found


def address(x: Tensor) -> int:
    """Where a tensor begins, for a table; somewhere if it is empty."""
    return x.data_ptr() or NOWHERE


@functools.lru_cache(maxsize=64)
def _kept_table(device: torch.device, stream: int, words: tuple[int, ...]) -> Tensor:
    """A table that is made once for the same pointers; of a stream, which alone is in order."""
    return _new_table(device, words)


def as_arguments(words: Sequence[int], count: int) -> tuple[int, ...]:
    """Words for :func:`fill`, and zeros after them, ``count`` in all."""
    return tuple(2 * word + OFFSET.value for word in [*words, *[0] * (count - len(words))])


def _new_table(device: torch.device, words: tuple[int, ...]) -> Tensor:
    count = tiles.ADAM_WORDS
    wide = as_arguments(words, triton.cdiv(len(words), count) * count)
    table = torch.empty(len(wide), dtype=torch.int64, device=device)
    for first in range(0, len(wide), count):
        some = wide[first : first + count]
        launch(adam_table_kernel, (1,), (table, first, some), COUNT=count, num_warps=1)
    return table


def _on_a_gpu(device: torch.device) -> bool:
    return device.type == "cuda" and not only_planned()


def _table(device: torch.device, words: tuple[int, ...]) -> Tensor:
    stream = current_stream(device) if _on_a_gpu(device) else None
    # A graph writes its own at each replay, before which nothing is in it.
    return _new_table(device, words) if stream is None else _kept_table(device, stream, words)


def fused_adam(
    steps: Tensor,
    settings: Tensor,
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avg: Sequence[Tensor],
    exp_avg_sq: Sequence[Tensor],
    copies: Sequence[Tensor],
    groups: Sequence[int],
    eps: float,
    found_inf: Tensor | None = None,
) -> None:
    """Triton backend of ``fvae::fused_adam``."""
    if not params:
        return
    given = list(zip(params, grads, exp_avg, exp_avg_sq, *[copies] * bool(copies), strict=True))
    taken = [_side_by_side(tensors) for tensors in given]
    # One launch for all that are of the same types.
    kinds: dict[tuple, list[int]] = {}
    for t, tensors in enumerate(taken):
        if tensors[0].numel():
            aligned = all(address(x) % 16 == 0 for x in tensors)
            kinds.setdefault((*(x.dtype for x in tensors[1::3]), aligned), []).append(t)
    words, programs = list(groups), {}
    for kind, members in kinds.items():
        first = 0
        for t in members:
            addresses = [address(x) for x in taken[t]] + [NOWHERE] * (5 - len(taken[t]))
            count = taken[t][0].numel()
            words += [*addresses, count, first, t]
            first += triton.cdiv(count, tiles.ADAM_TILE)
        programs[kind] = first
    table = _table(steps.device, tuple(words))
    scales = torch.empty(len(params), LINE.value, device=steps.device)
    launch(
        adam_scales_kernel,
        (triton.cdiv(len(params), tiles.ADAM_TENSORS),),
        (steps, settings.contiguous(), table, found_inf, scales, len(params), steps.stride(0)),
        TENSORS=tiles.ADAM_TENSORS,
        num_warps=1,
    )
    at = len(groups)
    for kind, members in kinds.items():
        launch(
            adam_kernel,
            (programs[kind],),
            (table[at:], scales, len(members), eps),
            GRAD=TYPES[kind[0]],
            COPY=TYPES[kind[1]] if copies else None,
            ALIGNED=kind[-1],
            LINES=max(tiles.ADAM_LINES, triton.next_power_of_2(len(members))),
            TILE=tiles.ADAM_TILE,
            num_warps=tiles.WARPS,
        )
        at += len(members) * LINE.value
    for before, after in zip(given, taken, strict=True):
        for i, (x, y) in enumerate(zip(before, after, strict=True)):
            if x is not y and i != 1:
                x.copy_(y)
