"""pairwise_tc: densities of all pairs of a batch, which stay in registers, and their gradients."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fvae.kernels import tiles
from fvae.kernels.launch import jit, launch, strides_3d

_LOG_2PI = tl.constexpr(1.8378770664093453)
_FAR = tl.constexpr(1e18)  # its square is a float32
_LEAST = tl.constexpr(-3.0e38)


@triton.jit
def _load(ptr, row, column, stride_b, stride_d, rows, dims):
    """[R, D] float32 of a model's tensor, 0 outside it."""
    inside = (row < rows)[:, None] & (column < dims)[None, :]
    at = row.to(tl.int64)[:, None] * stride_b + column.to(tl.int64)[None, :] * stride_d
    return tl.load(ptr + at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _score(z, mu, logvar):
    """Standard scores, cut where their square would overflow; NaN stays."""
    t = (z - mu) * tl.exp(-0.5 * logvar)
    t = tl.where(t > _FAR, _FAR, t)
    return tl.where(t < -_FAR, -_FAR, t)


@triton.jit
def _pairs(z, mu, logvar, i, j, column, rows, dims, log_self, log_next, log_other):
    """Scores [I, J, D], log q(z_ik|x_jk) or 0 beyond dimension d, and log weights [I, J]."""
    t = _score(z[:, None, :], mu[None, :, :], logvar[None, :, :])
    logs = -0.5 * (_LOG_2PI + logvar[None, :, :] + t * t)
    logs = tl.where((column < dims)[None, None, :], logs, 0.0)
    w = tl.where(j[None, :] == (i[:, None] + 1) % rows, log_next, log_other)
    w = tl.where(j[None, :] == i[:, None], log_self, w)
    return t, logs, tl.where((j < rows)[None, :], w, float("-inf"))


@jit()
def pairwise_tc_kernel(
    z_ptr,  # [M, B, d]
    mu_ptr,  # [M, B, d]
    logvar_ptr,  # [M, B, d]
    qz_ptr,  # [M, B] float32
    prod_ptr,  # [M, B] float32
    qzx_ptr,  # [M, B] float32
    qzj_ptr,  # [M, B, d] float32
    log_self, log_next, log_other,
    rows,  # B
    dims,  # d
    z_m, z_b, z_d,
    mu_m, mu_b, mu_d,
    lv_m, lv_b, lv_d,
    ROWS: tl.constexpr,  # rows of z a program
    COMPONENTS: tl.constexpr,  # looked at in one go
    DIMS: tl.constexpr,  # power of two, at least d
):  # fmt: skip
    """log q(z_i), log q(z_ik) and log q(z_i|x_i); sums by their greatest term so far."""
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    m = tl.program_id(1).to(tl.int64)
    k = tl.arange(0, DIMS)
    z_ptr += m * z_m
    mu_ptr += m * mu_m
    logvar_ptr += m * lv_m
    z = _load(z_ptr, i, k, z_b, z_d, rows, dims)
    most = tl.full([ROWS, DIMS], _LEAST, tl.float32)
    total = tl.zeros([ROWS, DIMS], tl.float32)
    joint_most = tl.full([ROWS], _LEAST, tl.float32)
    joint_total = tl.zeros([ROWS], tl.float32)
    first = 0  # `while`: as in counters.py
    while first < rows:
        j = first + tl.arange(0, COMPONENTS)
        mu = _load(mu_ptr, j, k, mu_b, mu_d, rows, dims)
        lv = _load(logvar_ptr, j, k, lv_b, lv_d, rows, dims)
        _, logs, w = _pairs(z, mu, lv, i, j, k, rows, dims, log_self, log_next, log_other)
        joint = tl.sum(logs, axis=2) + w
        greatest = tl.maximum(joint_most, tl.max(joint, axis=1))
        joint_total = joint_total * tl.exp(joint_most - greatest)
        joint_total += tl.sum(tl.exp(joint - greatest[:, None]), axis=1)
        joint_most = greatest
        each = logs + w[:, :, None]
        highest = tl.maximum(most, tl.max(each, axis=1))
        total = total * tl.exp(most - highest)
        total += tl.sum(tl.exp(each - highest[:, None, :]), axis=1)
        most = highest
        first += COMPONENTS
    inside = i < rows
    valid = inside[:, None] & (k < dims)[None, :]
    out = m * rows + i
    qzj = most + tl.log(total)
    tl.store(qz_ptr + out, joint_most + tl.log(joint_total), mask=inside)
    tl.store(qzj_ptr + out[:, None] * dims + k[None, :], qzj, mask=valid)
    tl.store(prod_ptr + out, tl.sum(tl.where(valid, qzj, 0.0), axis=1), mask=inside)
    mu = _load(mu_ptr, i, k, mu_b, mu_d, rows, dims)
    lv = _load(logvar_ptr, i, k, lv_b, lv_d, rows, dims)
    t = _score(z, mu, lv)
    own = tl.where(valid, -0.5 * (_LOG_2PI + lv + t * t), 0.0)
    tl.store(qzx_ptr + out, tl.sum(own, axis=1), mask=inside)


@triton.jit
def _share(
    logs, w, i, m, k, grad_qz_ptr, grad_prod_ptr, qz_ptr, qzj_ptr, rows, dims,
):  # fmt: skip
    """What the gradient of each log q(z_ik|x_jk) is, [I, J, D]."""
    inside = i < rows
    at = m * rows + i
    grad_qz = tl.load(grad_qz_ptr + at, mask=inside, other=0.0)[:, None]
    grad_prod = tl.load(grad_prod_ptr + at, mask=inside, other=0.0)[:, None, None]
    # Rows beyond B have no density at all.
    qz = tl.load(qz_ptr + at, mask=inside, other=3.0e38)[:, None]
    valid = inside[:, None] & (k < dims)[None, :]
    qzj = tl.load(qzj_ptr + at[:, None] * dims + k[None, :], mask=valid, other=3.0e38)
    joint = grad_qz * tl.exp(tl.sum(logs, axis=2) + w - qz)
    return joint[:, :, None] + grad_prod * tl.exp(logs + w[:, :, None] - qzj[:, None, :])


@jit()
def pairwise_tc_backward_kernel(
    grad_qz_ptr,  # [M, B] contiguous
    grad_prod_ptr,  # [M, B] contiguous
    grad_qzx_ptr,  # [M, B] contiguous
    z_ptr,  # [M, B, d]
    mu_ptr,  # [M, B, d]
    logvar_ptr,  # [M, B, d]
    qz_ptr,  # [M, B] contiguous
    qzj_ptr,  # [M, B, d] contiguous
    grad_z_ptr,  # [M, B, d] contiguous
    grad_mu_ptr,  # [M, B, d] contiguous
    grad_logvar_ptr,  # [M, B, d] contiguous
    log_self, log_next, log_other,
    rows,  # B
    dims,  # d
    z_m, z_b, z_d,
    mu_m, mu_b, mu_d,
    lv_m, lv_b, lv_d,
    blocks,  # programs along axis 0 that have rows of z; the others have components
    ROWS: tl.constexpr,  # rows a program, of z or of components
    OTHERS: tl.constexpr,  # components, or rows of z, looked at in one go
    DIMS: tl.constexpr,  # power of two, at least d
):  # fmt: skip
    """Gradients of z from all components; other programs: of components from all z."""
    program, m = tl.program_id(0), tl.program_id(1).to(tl.int64)
    k = tl.arange(0, DIMS)
    z_ptr += m * z_m
    mu_ptr += m * mu_m
    logvar_ptr += m * lv_m
    first = 0  # `while`: as in counters.py
    if program < blocks:
        i = program * ROWS + tl.arange(0, ROWS)
        valid = (i < rows)[:, None] & (k < dims)[None, :]
        z = _load(z_ptr, i, k, z_b, z_d, rows, dims)
        grad = tl.zeros([ROWS, DIMS], tl.float32)
        while first < rows:
            j = first + tl.arange(0, OTHERS)
            mu = _load(mu_ptr, j, k, mu_b, mu_d, rows, dims)
            lv = _load(logvar_ptr, j, k, lv_b, lv_d, rows, dims)
            t, logs, w = _pairs(z, mu, lv, i, j, k, rows, dims, log_self, log_next, log_other)
            share = _share(
                logs, w, i, m, k, grad_qz_ptr, grad_prod_ptr, qz_ptr, qzj_ptr, rows, dims
            )
            grad += tl.sum(share * t * tl.exp(-0.5 * lv)[None, :, :], axis=1)
            first += OTHERS
        mu = _load(mu_ptr, i, k, mu_b, mu_d, rows, dims)
        lv = _load(logvar_ptr, i, k, lv_b, lv_d, rows, dims)
        own = tl.load(grad_qzx_ptr + m * rows + i, mask=i < rows, other=0.0)[:, None]
        grad += own * _score(z, mu, lv) * tl.exp(-0.5 * lv)
        out = (m * rows + i)[:, None] * dims + k[None, :]
        tl.store(grad_z_ptr + out, (-grad).to(grad_z_ptr.dtype.element_ty), mask=valid)
    else:
        j = (program - blocks) * ROWS + tl.arange(0, ROWS)
        valid = (j < rows)[:, None] & (k < dims)[None, :]
        mu = _load(mu_ptr, j, k, mu_b, mu_d, rows, dims)
        lv = _load(logvar_ptr, j, k, lv_b, lv_d, rows, dims)
        grad_mu = tl.zeros([ROWS, DIMS], tl.float32)
        grad_lv = tl.zeros([ROWS, DIMS], tl.float32)
        while first < rows:
            i = first + tl.arange(0, OTHERS)
            z = _load(z_ptr, i, k, z_b, z_d, rows, dims)
            t, logs, w = _pairs(z, mu, lv, i, j, k, rows, dims, log_self, log_next, log_other)
            share = _share(
                logs, w, i, m, k, grad_qz_ptr, grad_prod_ptr, qz_ptr, qzj_ptr, rows, dims
            )
            grad_mu += tl.sum(share * t, axis=0)
            grad_lv += tl.sum(share * (t * t - 1.0), axis=0)
            first += OTHERS
        z = _load(z_ptr, j, k, z_b, z_d, rows, dims)
        t = _score(z, mu, lv)
        own = tl.load(grad_qzx_ptr + m * rows + j, mask=j < rows, other=0.0)[:, None]
        grad_mu = (grad_mu + own * t) * tl.exp(-0.5 * lv)
        grad_lv = 0.5 * (grad_lv + own * (t * t - 1.0))
        out = (m * rows + j)[:, None] * dims + k[None, :]
        tl.store(grad_mu_ptr + out, grad_mu.to(grad_mu_ptr.dtype.element_ty), mask=valid)
        tl.store(grad_logvar_ptr + out, grad_lv.to(grad_logvar_ptr.dtype.element_ty), mask=valid)


def pairwise_tc(
    z: Tensor, mu: Tensor, logvar: Tensor, log_self: float, log_next: float, log_other: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Triton backend of ``fvae::pairwise_tc``."""
    models, rows, dims = (1,) * (3 - z.dim()) + z.shape
    qz, prod, qzx = (
        torch.empty(z.shape[:-1], dtype=torch.float32, device=z.device) for _ in range(3)
    )
    qzj = torch.empty(z.shape, dtype=torch.float32, device=z.device)
    width = triton.next_power_of_2(dims)
    some, others = tiles.pairs(width)
    launch(
        pairwise_tc_kernel,
        (triton.cdiv(rows, some), models),
        (
            z, mu, logvar, qz, prod, qzx, qzj, log_self, log_next, log_other, rows, dims,
            *strides_3d(z), *strides_3d(mu), *strides_3d(logvar),
        ),
        ROWS=some,
        COMPONENTS=others,
        DIMS=width,
        num_warps=tiles.WARPS,
    )  # fmt: skip
    return qz, prod, qzx, qzj


def pairwise_tc_backward(
    grad_qz: Tensor,
    grad_prod: Tensor,
    grad_qzx: Tensor,
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    log_qz: Tensor,
    log_qzj: Tensor,
    log_self: float,
    log_next: float,
    log_other: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Triton backend of ``fvae::pairwise_tc_backward``."""
    models, rows, dims = (1,) * (3 - z.dim()) + z.shape
    grads = [torch.empty(z.shape, dtype=z.dtype, device=z.device) for _ in range(3)]
    width = triton.next_power_of_2(dims)
    some, others = tiles.pairs(width)
    blocks = triton.cdiv(rows, some)
    launch(
        pairwise_tc_backward_kernel,
        (2 * blocks, models),
        (
            grad_qz.contiguous(), grad_prod.contiguous(), grad_qzx.contiguous(), z, mu, logvar,
            log_qz.contiguous(), log_qzj.contiguous(), *grads, log_self, log_next, log_other, rows,
            dims, *strides_3d(z), *strides_3d(mu), *strides_3d(logvar), blocks,
        ),
        ROWS=some,
        OTHERS=others,
        DIMS=width,
        num_warps=tiles.WARPS,
    )  # fmt: skip
    return grads[0], grads[1], grads[2]
