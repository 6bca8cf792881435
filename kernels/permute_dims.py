"""permute_dims: one program sorts one column's (word << 32 | row), then gathers."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fvae.kernels import tiles
from fvae.kernels.launch import check_below, jit, launch, strides_3d
from fvae.kernels.rng import four_words, interleave
from fvae.philox import Stream


@triton.jit
def _sort_keys(seed_ptr, step_ptr, key_stride, column, model, stream, ROWS, SIZE: tl.constexpr):
    """Sorted (word << 32 | row) of a column, uint64 [SIZE]; rows beyond ROWS sort last."""
    seed = tl.load(seed_ptr + model * key_stride)
    step = tl.load(step_ptr)
    groups = (ROWS + 3) // 4
    group = tl.arange(0, SIZE // 4)
    w0, w1, w2, w3 = four_words(seed, step, column * groups + group, stream)
    row = tl.arange(0, SIZE)
    key = (interleave(w0, w1, w2, w3).to(tl.uint64) << 32) | row.to(tl.uint64)
    # A drawn key is below 2**64 - 2**32 + row, so the padding, all ones, is never below it.
    key = tl.where(row < ROWS, key, 0xFFFFFFFFFFFFFFFF)
    return tl.sort(key)


@jit()
def permute_dims_kernel(
    z_ptr,  # [M, B, d]
    out_ptr,  # [M, B, d] contiguous
    seed_ptr,  # int64 [] or [M]
    step_ptr,  # int64 []
    key_stride,  # 0 or 1
    stream,
    rows,  # B
    dims,  # d
    stride_m,
    stride_b,
    stride_d,
    INVERSE: tl.constexpr,
    SIZE: tl.constexpr,  # power of two, at least 4 and B
):
    """out[m, b, j] = z[m, p(b), j], or out[m, p(b), j] = z[m, b, j] where INVERSE."""
    model = tl.program_id(1).to(tl.int64)
    dim = tl.program_id(0)
    # With one key for all models the columns of the models are numbered on.
    column = tl.where(key_stride == 0, model * dims + dim, dim)
    key = _sort_keys(seed_ptr, step_ptr, key_stride, column, model, stream, rows, SIZE)
    source = (key & 0xFFFFFFFF).to(tl.int64)
    row = tl.arange(0, SIZE)
    inside = row < rows
    z_ptr += model * stride_m + dim * stride_d
    out_ptr += model * rows * dims + dim
    if INVERSE:
        value = tl.load(z_ptr + row.to(tl.int64) * stride_b, mask=inside)
        tl.store(out_ptr + source * dims, value, mask=inside)
    else:
        value = tl.load(z_ptr + source * stride_b, mask=inside)
        tl.store(out_ptr + row.to(tl.int64) * dims, value, mask=inside)


@jit()
def permutation_keys_kernel(
    key_ptr,  # int64 [M * d, B]
    seed_ptr,  # int64 [] or [M]
    step_ptr,  # int64 []
    key_stride,  # 0 or 1
    stream,
    rows,  # B
    dims,  # d
    GROUPS: tl.constexpr,  # counter indices a program
):
    """key[c, b] = (word << 32 | b) with the top bit flipped, so that a signed sort orders it."""
    model = tl.program_id(2).to(tl.int64)
    dim = tl.program_id(1)
    column = tl.where(key_stride == 0, model * dims + dim, dim)
    seed = tl.load(seed_ptr + model * key_stride)
    step = tl.load(step_ptr)
    groups = (rows + 3) // 4
    group = tl.program_id(0) * GROUPS + tl.arange(0, GROUPS)
    w0, w1, w2, w3 = four_words(seed, step, column * groups + group, stream)
    row = tl.program_id(0) * GROUPS * 4 + tl.arange(0, GROUPS * 4)
    word = interleave(w0, w1, w2, w3) ^ 0x80000000
    key = (word.to(tl.int64) << 32) | row.to(tl.int64)
    out = (model * dims + dim) * rows + row
    tl.store(key_ptr + out, key, mask=row < rows)


def _permute(z: Tensor, seed: Tensor, step: Tensor, lane: int, inverse: bool) -> Tensor:
    models, rows, dims = (1,) * (3 - z.dim()) + z.shape
    stream = Stream.PERMUTATION.at(lane)
    key_stride = int(seed.dim() == 1)
    columns = dims if key_stride else models * dims
    check_below("z", columns * ((rows + 3) // 4), (1 << 32) + 1, "draws of four words for a key")
    check_below("z", rows, 1 << 31, "rows")
    if rows > tiles.SORT_ROWS:
        return _permute_many_rows(z, seed, step, stream, key_stride, inverse)
    out = torch.empty(z.shape, dtype=z.dtype, device=z.device)
    size = max(4, triton.next_power_of_2(rows))
    launch(
        permute_dims_kernel,
        (dims, models),
        (z, out, seed, step, key_stride, stream, rows, dims, *strides_3d(z)),
        INVERSE=inverse,
        SIZE=size,
        num_warps=tiles.sort_warps(size),
    )
    return out


def _permute_many_rows(z, seed, step, stream, key_stride, inverse) -> Tensor:
    models, rows, dims = (1,) * (3 - z.dim()) + z.shape
    keys = torch.empty((models, dims, rows), dtype=torch.int64, device=z.device)
    groups = tiles.KEY_GROUPS
    launch(
        permutation_keys_kernel,
        (triton.cdiv(rows, 4 * groups), dims, models),
        (keys, seed, step, key_stride, stream, rows, dims),
        GROUPS=groups,
        num_warps=tiles.WARPS,
    )
    order = torch.sort(keys, dim=-1).values & 0xFFFFFFFF
    order = order.transpose(-1, -2).reshape(z.shape)
    if inverse:
        return torch.empty_like(order, dtype=z.dtype).scatter_(-2, order, z)
    return torch.gather(z, -2, order)


def permute_dims(z: Tensor, seed: Tensor, step: Tensor, lane: int) -> Tensor:
    """Triton backend of ``fvae::permute_dims``."""
    return _permute(z, seed, step, lane, inverse=False)


def permute_dims_backward(grad: Tensor, seed: Tensor, step: Tensor, lane: int) -> Tensor:
    """Triton backend of ``fvae::permute_dims_backward``."""
    return _permute(grad, seed, step, lane, inverse=True)
