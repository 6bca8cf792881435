"""bernoulli_nll: stable cross-entropy of pixels, its gradient and its sum in one launch."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fvae.kernels import tiles
from fvae.kernels.counters import add_partials, counters, is_last
from fvae.kernels.launch import jit, launch


@triton.jit
def _loss_and_gradient(logit, x):
    """log(1 + exp(l)) - l x and sigmoid(l) - x, from one exponential."""
    e = tl.exp(-tl.abs(logit))
    loss = tl.maximum(logit, 0.0) + tl.log(1.0 + e) - logit * x
    return loss, tl.where(logit >= 0, 1.0, e) / (1.0 + e) - x


@jit("logits_ptr", "target_ptr", "grad_ptr", "per_model")
def bernoulli_nll_kernel(
    logits_ptr,  # [M, B * pixels]
    target_ptr,  # the same elements; or bits in 32-bit words
    grad_ptr,  # like logits
    partial_ptr,  # float32 [M, programs]
    nll_ptr,  # float32 [M]
    counter_ptr,  # int32 [M], zero before and after
    per_model,  # B * pixels
    batch,  # B
    turns,  # tiles a program
    PACKED: tl.constexpr,  # the target holds bits
    OCTETS: tl.constexpr,  # the target holds bytes 0..255
    TILE: tl.constexpr,  # pixels
    PARTS: tl.constexpr,  # partial sums added in one go
):
    """Each program sums its pixels; the last to finish adds the sums in the programs' order."""
    program, model = tl.program_id(0), tl.program_id(1).to(tl.int64)
    programs = tl.num_programs(0)
    base = model * per_model
    share = 1.0 / batch
    if PACKED:
        total = tl.zeros([TILE // 32, 32], tl.float32)
    else:
        total = tl.zeros([TILE], tl.float32)
    turn = 0  # `while`: as in counters.py
    while turn < turns:
        start = (program.to(tl.int64) * turns + turn) * TILE
        if PACKED:
            word = start // 32 + tl.arange(0, TILE // 32)
            bit = tl.arange(0, 32)
            at = word[:, None] * 32 + bit[None, :]
            inside = at < per_model
            bits = tl.load(target_ptr + base // 32 + word, mask=word * 32 < per_model, other=0)
            x = ((bits[:, None] >> bit[None, :]) & 1).to(tl.float32)
        else:
            at = start + tl.arange(0, TILE)
            inside = at < per_model
            x = tl.load(target_ptr + base + at, mask=inside, other=0).to(tl.float32)
            if OCTETS:
                x = x * (1.0 / 255.0)
        logit = tl.load(logits_ptr + base + at, mask=inside, other=0.0).to(tl.float32)
        loss, grad = _loss_and_gradient(logit, x)
        grad = (grad * share).to(grad_ptr.dtype.element_ty)
        tl.store(grad_ptr + base + at, grad, mask=inside)
        total += tl.where(inside, loss, 0.0)
        turn += 1
    if PACKED:
        total = tl.sum(total, axis=1)
    partial_ptr += model * programs
    tl.store(partial_ptr + program, tl.sum(total, axis=0))
    if is_last(counter_ptr + model, programs):
        nll = tl.sum(add_partials(partial_ptr, programs, 1, PARTS, 1), axis=0)
        tl.store(nll_ptr + model, nll / batch)


def _as_words(packed: Tensor) -> Tensor:
    """Return packed bits as int32 words, ``[.., bytes / 4]``.

    Raises:
        ValueError: an image's bytes are no multiple of four.
    """
    if packed.shape[-1] % 4:
        raise ValueError(
            f"target: got {packed.shape[-1]} bytes of packed bits an image;"
            " backend='triton' needs a multiple of 4"
        )
    if packed.storage_offset() % 4:  # a part of a larger tensor
        packed = packed.clone()
    return packed.view(torch.int32)


def bernoulli_nll(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Triton backend of ``fvae::bernoulli_nll``.

    Raises:
        ValueError: a packed target whose images are no multiple of 32 pixels.
    """
    packed = target.dtype == torch.uint8 and target.shape != logits.shape
    octets = target.dtype == torch.uint8 and not packed
    dense = logits.contiguous()
    target = target.contiguous()
    models = logits.shape[0] if logits.dim() == 5 else 1
    per_model = dense.numel() // models
    if packed:
        target = _as_words(target)
    elif target.dtype == torch.bool:
        target = target.view(torch.uint8)
    # For float16 the gradient waits in float32 for its loss scale.
    half = logits.dtype == torch.float16
    grad = torch.empty_like(dense, dtype=torch.float32 if half else dense.dtype)
    nll = torch.empty(logits.shape[:-4], dtype=torch.float32, device=logits.device)
    turns = tiles.turns(triton.cdiv(per_model, tiles.NLL_TILE), tiles.NLL_PROGRAMS)
    programs = triton.cdiv(per_model, turns * tiles.NLL_TILE)
    partial = torch.empty((models, programs), dtype=torch.float32, device=logits.device)
    launch(
        bernoulli_nll_kernel,
        (programs, models),
        (dense, target, grad, partial, nll, counters(logits.device, models), per_model,
         logits.shape[-4], turns),
        PACKED=packed,
        OCTETS=octets,
        TILE=tiles.NLL_TILE,
        PARTS=tiles.PARTIALS,
        num_warps=tiles.WARPS,
    )  # fmt: skip
    # The gradient has the layout of the logits, channels_last included.
    if grad.stride() != logits.stride():
        grad = torch.empty_like(logits, dtype=grad.dtype).copy_(grad)
    return nll, grad
