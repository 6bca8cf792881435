"""logit_ratio: TC, discriminator loss, accuracy and the slopes of the loss in one launch."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fvae.kernels import tiles
from fvae.kernels.counters import add_partials, counters, is_last
from fvae.kernels.launch import jit, launch, strides_3d


@triton.jit
def _softplus(x):
    return tl.maximum(x, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(x)))


@triton.jit
def _sigmoid(x):
    # Of -|x|, so that the exponential never overflows.
    e = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, e) / (1.0 + e)


@jit()
def logit_ratio_kernel(
    z_ptr,  # logits of z [M, B, 2]
    perm_ptr,  # logits of z_perm [M, B, 2]
    tc_ptr,  # [M]
    loss_ptr,  # [M]
    accuracy_ptr,  # [M]
    slope_z_ptr,  # [M, B]
    slope_perm_ptr,  # [M, B]
    partial_ptr,  # float32 [M, programs, 3] where SPLIT, else None
    counter_ptr,  # int32 [M], zero before and after, where SPLIT, else None
    rows,  # B
    z_m, z_b, z_c,
    perm_m, perm_b, perm_c,
    TILE: tl.constexpr,  # rows a program
    SPLIT: tl.constexpr,  # a model has several programs
    PARTS: tl.constexpr,  # partial sums added in one go
):  # fmt: skip
    """With s = l0 - l1, tc = mean s and the two cross-entropies; the slopes of each row."""
    program, m = tl.program_id(0), tl.program_id(1).to(tl.int64)
    b = program.to(tl.int64) * TILE + tl.arange(0, TILE)
    inside = b < rows
    z_ptr += m * z_m + b * z_b
    perm_ptr += m * perm_m + b * perm_b
    l0 = tl.load(z_ptr, mask=inside, other=0.0).to(tl.float32)
    l1 = tl.load(z_ptr + z_c, mask=inside, other=0.0).to(tl.float32)
    p0 = tl.load(perm_ptr, mask=inside, other=0.0).to(tl.float32)
    p1 = tl.load(perm_ptr + perm_c, mask=inside, other=0.0).to(tl.float32)
    s_z, s_perm = l0 - l1, p0 - p1
    half = 0.5 / rows
    tl.store(slope_z_ptr + m * rows + b, -half * _sigmoid(-s_z), mask=inside)
    tl.store(slope_perm_ptr + m * rows + b, half * _sigmoid(s_perm), mask=inside)
    tc = tl.sum(s_z, axis=0)
    loss = tl.sum(tl.where(inside, _softplus(-s_z) + _softplus(s_perm), 0.0), axis=0)
    right = (inside & (s_z > 0)).to(tl.int32) + (inside & (s_perm < 0)).to(tl.int32)
    hits = tl.sum(right, axis=0).to(tl.float32)
    if SPLIT:
        programs = tl.num_programs(0)
        partial_ptr += m * programs * 3
        tl.store(partial_ptr + program * 3, tc)
        tl.store(partial_ptr + program * 3 + 1, loss)
        tl.store(partial_ptr + program * 3 + 2, hits)
        if is_last(counter_ptr + m, programs):
            sums = add_partials(partial_ptr, programs, 3, PARTS, 4)
            column = tl.arange(0, 4)
            tl.store(tc_ptr + m, tl.sum(tl.where(column == 0, sums, 0.0), axis=0) / rows)
            tl.store(loss_ptr + m, tl.sum(tl.where(column == 1, sums, 0.0), axis=0) * half)
            tl.store(accuracy_ptr + m, tl.sum(tl.where(column == 2, sums, 0.0), axis=0) * half)
    else:
        tl.store(tc_ptr + m, tc / rows)
        tl.store(loss_ptr + m, loss * half)
        tl.store(accuracy_ptr + m, hits * half)


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
    tile = min(tiles.LOGIT_ROWS, triton.next_power_of_2(rows))
    programs = triton.cdiv(rows, tile)
    split = programs > 1
    launch(
        logit_ratio_kernel,
        (programs, models),
        (
            logits_z, logits_perm, tc, loss, accuracy, slope_z, slope_perm,
            empty(models, programs, 3) if split else None,
            counters(logits_z.device, models) if split else None,
            rows, *strides_3d(logits_z), *strides_3d(logits_perm),
        ),
        TILE=tile,
        SPLIT=split,
        PARTS=tiles.PARTIALS // 4,
        num_warps=tiles.WARPS,
    )  # fmt: skip
    return tc, loss, accuracy, slope_z, slope_perm
