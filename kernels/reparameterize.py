"""reparameterize: noise, exp, scale and KL in one launch; backward draws the noise again."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fvae.kernels import tiles
from fvae.kernels.counters import add_partials, counters, is_last
from fvae.kernels.launch import check_below, jit, launch, strides_3d
from fvae.kernels.rng import four_normals
from fvae.philox import Stream


@triton.jit
def _elements(key, key_stride, rows, dims, block, GROUPS: tl.constexpr):
    """Number within the key, model, row and column of a block's elements, in row-major order."""
    element = block * (GROUPS * 4) + tl.arange(0, GROUPS * 4)
    flat_row = element // dims
    # One key for all models runs on through their rows; a key for each begins anew.
    model = tl.where(key_stride == 0, (flat_row // rows).to(tl.int64), key)
    return element, model, (flat_row % rows).to(tl.int64), (element % dims).to(tl.int64)


@triton.jit
def _sum_kl(
    mu_ptr, logvar_ptr, kl_ptr, partial_ptr, counter_ptr, m, part, parts, turns, rows, dims,
    mu_m, mu_b, mu_d, lv_m, lv_b, lv_d, TILE: tl.constexpr, DIMS: tl.constexpr,
    SPLIT: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """kl[m, j] of one model, its rows walked in a fixed order: the same sum at every run."""
    j = tl.arange(0, DIMS)[None, :].to(tl.int64)
    mu_ptr += m * mu_m + j * mu_d
    logvar_ptr += m * lv_m + j * lv_d
    total = tl.zeros([TILE, DIMS], tl.float32)
    turn = 0  # `while`: as in counters.py
    while turn < turns:
        b = (part.to(tl.int64) * turns + turn) * TILE + tl.arange(0, TILE)[:, None]
        inside = (b < rows) & (j < dims)
        mu = tl.load(mu_ptr + b * mu_b, mask=inside, other=0.0).to(tl.float32)
        lv = tl.load(logvar_ptr + b * lv_b, mask=inside, other=0.0).to(tl.float32)
        total += 0.5 * (mu * mu + (tl.exp(lv) - 1.0) - lv)
        turn += 1
    kl = tl.sum(total, axis=0)
    column = tl.arange(0, DIMS)
    kl_ptr += m * dims
    if SPLIT:
        partial_ptr += m * parts * dims
        tl.store(partial_ptr + part.to(tl.int64) * dims + column, kl, mask=column < dims)
        if is_last(counter_ptr + m, parts):
            kl = add_partials(partial_ptr, parts, dims, PARTS, DIMS)
            tl.store(kl_ptr + column, kl / rows, mask=column < dims)
    else:
        tl.store(kl_ptr + column, kl / rows, mask=column < dims)


@triton.jit
def _write_z(
    mu_ptr, logvar_ptr, z_ptr, seed_ptr, step_ptr, key_stride, stream, block, key, rows, dims,
    per_key, mu_m, mu_b, mu_d, lv_m, lv_b, lv_d, GROUPS: tl.constexpr,
):  # fmt: skip
    """z of one block of elements."""
    element, m, b, j = _elements(key, key_stride, rows, dims, block, GROUPS)
    inside = element < per_key
    seed = tl.load(seed_ptr + key * key_stride)
    step = tl.load(step_ptr)
    eps = four_normals(seed, step, block * GROUPS + tl.arange(0, GROUPS), stream)
    mu = tl.load(mu_ptr + m * mu_m + b * mu_b + j * mu_d, mask=inside).to(tl.float32)
    lv = tl.load(logvar_ptr + m * lv_m + b * lv_b + j * lv_d, mask=inside).to(tl.float32)
    z = mu + tl.exp(0.5 * lv) * eps
    tl.store(z_ptr + key * per_key + element, z.to(z_ptr.dtype.element_ty), mask=inside)


@jit()
def reparameterize_kernel(
    mu_ptr,  # [M, B, d]
    logvar_ptr,  # [M, B, d]
    z_ptr,  # [M, B, d] contiguous
    second_ptr,  # likewise of a second batch, whose rows follow the first's in mu, or None
    kl_ptr,  # [M, d] float32
    partial_ptr,  # float32 [M, parts, d] where SPLIT, else None
    counter_ptr,  # int32 [M], zero before and after, where SPLIT, else None
    seed_ptr,  # int64 [] or [M]
    step_ptr,  # int64 []
    key_stride,  # 0 or 1
    stream,
    rows,  # B
    dims,  # d
    per_key,  # elements that share a key
    mu_m, mu_b, mu_d,
    lv_m, lv_b, lv_d,
    blocks,  # programs along axis 0 that write z; the others sum the KL
    parts,  # programs that sum one model's KL
    turns,  # tiles that each of them walks
    GROUPS: tl.constexpr,
    TILE: tl.constexpr,  # rows of a KL tile
    DIMS: tl.constexpr,  # power of two, at least d
    SPLIT: tl.constexpr,  # a model has several parts
    PARTS: tl.constexpr,  # partial sums added in one go
    NEXT_LANE: tl.constexpr,  # from a lane's stream to the next one's
):  # fmt: skip
    """z = mu + exp(logvar / 2) eps; kl[j] = mean_b (mu^2 + exp(logvar) - logvar - 1) / 2."""
    block, key = tl.program_id(0), tl.program_id(1).to(tl.int64)
    if block < blocks:
        _write_z(
            mu_ptr, logvar_ptr, z_ptr, seed_ptr, step_ptr, key_stride, stream, block, key, rows,
            dims, per_key, mu_m, mu_b, mu_d, lv_m, lv_b, lv_d, GROUPS,
        )  # fmt: skip
    elif block < 2 * blocks and second_ptr is not None:
        _write_z(
            mu_ptr + rows * mu_b, logvar_ptr + rows * lv_b, second_ptr, seed_ptr, step_ptr,
            key_stride, stream + NEXT_LANE, block - blocks, key, rows, dims, per_key, mu_m, mu_b,
            mu_d, lv_m, lv_b, lv_d, GROUPS,
        )  # fmt: skip
    else:
        part = block - (blocks if second_ptr is None else 2 * blocks)
        m = tl.where(key_stride == 0, (part // parts).to(tl.int64), key)
        _sum_kl(
            mu_ptr, logvar_ptr, kl_ptr, partial_ptr, counter_ptr, m, part % parts, parts, turns,
            rows, dims, mu_m, mu_b, mu_d, lv_m, lv_b, lv_d, TILE, DIMS, SPLIT, PARTS,
        )  # fmt: skip


@jit()
def reparameterize_backward_kernel(
    grad_z_ptr,  # [M, B, d]
    grad_kl_ptr,  # [M, d] contiguous
    mu_ptr,  # [M, B, d]
    logvar_ptr,  # [M, B, d]
    grad_mu_ptr,  # [M, B, d] contiguous
    grad_logvar_ptr,  # [M, B, d] contiguous
    seed_ptr,  # int64 [] or [M]
    step_ptr,  # int64 []
    key_stride,  # 0 or 1
    stream,
    rows,  # B
    dims,  # d
    per_key,  # elements that share a key
    g_m, g_b, g_d,
    mu_m, mu_b, mu_d,
    lv_m, lv_b, lv_d,
    GROUPS: tl.constexpr,
    BOTH: tl.constexpr,  # the gradients of a second batch follow, and are zero
):  # fmt: skip
    """Gradients of mu and logvar, with the noise of the forward pass drawn again."""
    block, key = tl.program_id(0), tl.program_id(1).to(tl.int64)
    element, m, b, j = _elements(key, key_stride, rows, dims, block, GROUPS)
    inside = element < per_key
    seed = tl.load(seed_ptr + key * key_stride)
    step = tl.load(step_ptr)
    eps = four_normals(seed, step, block * GROUPS + tl.arange(0, GROUPS), stream)
    g = tl.load(grad_z_ptr + m * g_m + b * g_b + j * g_d, mask=inside).to(tl.float32)
    k = tl.load(grad_kl_ptr + m * dims + j, mask=inside).to(tl.float32) / rows
    mu = tl.load(mu_ptr + m * mu_m + b * mu_b + j * mu_d, mask=inside).to(tl.float32)
    lv = tl.load(logvar_ptr + m * lv_m + b * lv_b + j * lv_d, mask=inside).to(tl.float32)
    grad_mu = g + k * mu
    grad_lv = 0.5 * (g * tl.exp(0.5 * lv) * eps + k * (tl.exp(lv) - 1.0))
    out = key * per_key + element
    if BOTH:
        out = (2 * m * rows + b) * dims + j
        nothing = tl.zeros([GROUPS * 4], tl.float32)
        zero = nothing.to(grad_mu_ptr.dtype.element_ty)
        tl.store(grad_mu_ptr + out + rows * dims, zero, mask=inside)
        tl.store(grad_logvar_ptr + out + rows * dims, zero, mask=inside)
    tl.store(grad_mu_ptr + out, grad_mu.to(grad_mu_ptr.dtype.element_ty), mask=inside)
    tl.store(grad_logvar_ptr + out, grad_lv.to(grad_logvar_ptr.dtype.element_ty), mask=inside)


def _shape(x: Tensor, seed: Tensor, batches: int = 1) -> tuple[int, int, int, int, int]:
    """Return M, B, d, number of keys, and elements of a batch that share a key."""
    models, rows, dims = (1,) * (3 - x.dim()) + x.shape
    keys = seed.numel() if seed.dim() else 1
    per_key = x.numel() // keys // batches
    check_below("mu", per_key, 1 << 31, "elements that share a key")
    return models, rows // batches, dims, keys, per_key


def _forward(
    mu: Tensor, logvar: Tensor, seed: Tensor, step: Tensor, lane: int, batches: int
) -> tuple[Tensor, Tensor | None, Tensor]:
    models, rows, dims, keys, per_key = _shape(mu, seed, batches)
    shape = (*mu.shape[:-2], rows, dims)
    z = torch.empty(shape, dtype=mu.dtype, device=mu.device)
    second = torch.empty_like(z) if batches > 1 else None
    kl = torch.empty((*mu.shape[:-2], dims), dtype=torch.float32, device=mu.device)
    blocks = triton.cdiv(per_key, 4 * tiles.NOISE_GROUPS)
    width = triton.next_power_of_2(dims)
    tile = tiles.kl_rows(rows, width)
    turns = tiles.turns(triton.cdiv(rows, tile), tiles.KL_PROGRAMS)
    parts = triton.cdiv(rows, turns * tile)
    partial = counter = None
    if parts > 1:
        partial = torch.empty((models, parts, dims), dtype=torch.float32, device=mu.device)
        counter = counters(mu.device, models)
    launch(
        reparameterize_kernel,
        (batches * blocks + parts * (models // keys), keys),
        (
            mu, logvar, z, second, kl, partial, counter, seed, step, int(seed.dim() == 1),
            Stream.NOISE.at(lane), rows, dims, per_key, *strides_3d(mu),
            *strides_3d(logvar), blocks, parts, turns,
        ),
        GROUPS=tiles.NOISE_GROUPS,
        TILE=tile,
        DIMS=width,
        SPLIT=parts > 1,
        PARTS=max(1, tiles.PARTIALS // width),
        NEXT_LANE=Stream.NOISE.at(1) - Stream.NOISE.at(0),
        num_warps=tiles.WARPS,
    )  # fmt: skip
    return z, second, kl


def reparameterize(
    mu: Tensor, logvar: Tensor, seed: Tensor, step: Tensor, lane: int
) -> tuple[Tensor, Tensor]:
    """Triton backend of ``fvae::reparameterize``."""
    z, _, kl = _forward(mu, logvar, seed, step, lane, 1)
    return z, kl


def reparameterize_both(
    mu: Tensor, logvar: Tensor, seed: Tensor, step: Tensor, lane: int
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Triton backend of ``fvae::reparameterize_both``."""
    return _forward(mu, logvar, seed, step, lane, 2)


def _backward(
    grad_z: Tensor, grad_kl: Tensor, mu: Tensor, logvar: Tensor, seed: Tensor, step: Tensor,
    lane: int, batches: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    _, rows, dims, keys, per_key = _shape(mu, seed, batches)
    grad_mu, grad_logvar = (
        torch.empty(mu.shape, dtype=mu.dtype, device=mu.device) for _ in range(2)
    )
    launch(
        reparameterize_backward_kernel,
        (triton.cdiv(per_key, 4 * tiles.NOISE_GROUPS), keys),
        (
            grad_z, grad_kl.contiguous(), mu, logvar, grad_mu, grad_logvar, seed, step,
            int(seed.dim() == 1), Stream.NOISE.at(lane), rows, dims, per_key,
            *strides_3d(grad_z), *strides_3d(mu), *strides_3d(logvar),
        ),
        GROUPS=tiles.NOISE_GROUPS,
        BOTH=batches > 1,
        num_warps=tiles.WARPS,
    )  # fmt: skip
    return grad_mu, grad_logvar


def reparameterize_backward(*args) -> tuple[Tensor, Tensor]:
    """Triton backend of ``fvae::reparameterize_backward``."""
    return _backward(*args, 1)


def reparameterize_both_backward(*args) -> tuple[Tensor, Tensor]:
    """Triton backend of ``fvae::reparameterize_both_backward``."""
    return _backward(*args, 2)
