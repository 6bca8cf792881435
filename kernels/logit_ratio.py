"""logit_ratio: TC, discriminator loss, accuracy and the slopes of the loss in one launch."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fvae.kernels import tiles
from fvae.kernels.launch import launch, strides_3d


@triton.jit
def _softplus(x):
    return tl.maximum(x, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(x)))


@triton.jit
def _sigmoid(x):
    # Of -|x|, so that the exponential never overflows.
    e = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def logit_ratio_kernel(
    z_ptr,  # logits of z [M, B, 2]
    perm_ptr,  # logits of z_perm [M, B, 2]
    tc_ptr,  # [M]
    loss_ptr,  # [M]
    accuracy_ptr,  # [M]
    slope_z_ptr,  # [M, B]
    slope_perm_ptr,  # [M, B]
    rows,  # B
    z_m, z_b, z_c,
    perm_m, perm_b, perm_c,
    TILE: tl.constexpr,
):  # fmt: skip
    """One program for each model: with s = l0 - l1, tc = mean s and the two cross-entropies."""
    m = tl.program_id(0).to(tl.int64)
    z_ptr += m * z_m
    perm_ptr += m * perm_m
    tc = tl.zeros([TILE], tl.float32)
    loss = tl.zeros([TILE], tl.float32)
    right = tl.zeros([TILE], tl.int32)
    half = 0.5 / rows
    start = 0  # `while`: the interpreter of Triton 3.6 takes no run-time range under NumPy 2.4
    while start < rows:
        b = tl.arange(0, TILE).to(tl.int64) + start
        inside = b < rows
        l0 = tl.load(z_ptr + b * z_b, mask=inside, other=0.0).to(tl.float32)
        l1 = tl.load(z_ptr + b * z_b + z_c, mask=inside, other=0.0).to(tl.float32)
        p0 = tl.load(perm_ptr + b * perm_b, mask=inside, other=0.0).to(tl.float32)
        p1 = tl.load(perm_ptr + b * perm_b + perm_c, mask=inside, other=0.0).to(tl.float32)
        s_z, s_perm = l0 - l1, p0 - p1
        tc += s_z
        loss += tl.where(inside, _softplus(-s_z) + _softplus(s_perm), 0.0)
        right += (inside & (s_z > 0)).to(tl.int32) + (inside & (s_perm < 0)).to(tl.int32)
        tl.store(slope_z_ptr + m * rows + b, -half * _sigmoid(-s_z), mask=inside)
        tl.store(slope_perm_ptr + m * rows + b, half * _sigmoid(s_perm), mask=inside)
        start += TILE
    tl.store(tc_ptr + m, tl.sum(tc, axis=0) / rows)
    tl.store(loss_ptr + m, tl.sum(loss, axis=0) * half)
    tl.store(accuracy_ptr + m, tl.sum(right, axis=0).to(tl.float32) * half)


def logit_ratio(
    logits_z: Tensor, logits_perm: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Triton backend of ``fvae::logit_ratio``."""
    models = logits_z.shape[0] if logits_z.dim() == 3 else 1
    rows = logits_z.shape[-2]

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=logits_z.device)

    each = logits_z.shape[:-2]
    tc, loss, accuracy = empty(*each), empty(*each), empty(*each)
    slope_z, slope_perm = empty(*each, rows), empty(*each, rows)
    launch(
        logit_ratio_kernel,
        (models,),
        (
            logits_z, logits_perm, tc, loss, accuracy, slope_z, slope_perm, rows,
            *strides_3d(logits_z), *strides_3d(logits_perm),
        ),
        TILE=min(tiles.LOGIT_ROWS, triton.next_power_of_2(rows)),
        num_warps=tiles.WARPS,
    )  # fmt: skip
    return tc, loss, accuracy, slope_z, slope_perm
