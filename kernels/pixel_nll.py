"""The one kernel of bernoulli_nll and gaussian_nll: loss of pixels, its gradient and its sum."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fvae.kernels import tiles
from fvae.kernels.counters import add_partials, counters, is_last
from fvae.kernels.launch import jit, launch


@triton.jit
def _bernoulli(logit, x):
    """log(1 + exp(l)) - l x and sigmoid(l) - x, from one exponential."""
    e = tl.exp(-tl.abs(logit))
    loss = tl.maximum(logit, 0.0) + tl.log(1.0 + e) - logit * x
    return loss, tl.where(logit >= 0, 1.0, e) / (1.0 + e) - x


@jit("out_ptr", "target_ptr", "grad_ptr", "per_model")
def pixel_nll_kernel(
    out_ptr,  # logits or means, [M, B * pixels]
    target_ptr,  # the same elements; or bits in 32-bit words; or bits in bytes, [M, B, width]
    grad_ptr,  # like out
    partial_ptr,  # float32 [M, programs]
    nll_ptr,  # float32 [M]
    counter_ptr,  # int32 [M], zero before and after
    per_model,  # B * pixels
    batch,  # B
    turns,  # tiles a program
    pixels,  # C * H * W
    width,  # bytes of an image's bits
    GAUSSIAN: tl.constexpr,  # else Bernoulli
    FORM: tl.constexpr,  # of the target: "float", "bool", "bytes" 0..255, "words" or "bits"
    TILE: tl.constexpr,  # pixels
    PARTS: tl.constexpr,  # partial sums added in one go
):
    """Each program sums its pixels; the last to finish adds the sums in the programs' order."""
    program, model = tl.program_id(0), tl.program_id(1).to(tl.int64)
    programs = tl.num_programs(0)
    base = model * per_model
    share = 1.0 / batch
    if FORM == "words":
        total = tl.zeros([TILE // 32, 32], tl.float32)
    else:
        total = tl.zeros([TILE], tl.float32)
    turn = 0  # `while`: as in counters.py
    while turn < turns:
        tile = program.to(tl.int64) * turns + turn
        start = tile * TILE
        if FORM == "words":
            word = start // 32 + tl.arange(0, TILE // 32)
            bit = tl.arange(0, 32)
            at = word[:, None] * 32 + bit[None, :]
            inside = at < per_model
            bits = tl.load(target_ptr + base // 32 + word, mask=word * 32 < per_model, other=0)
            x = ((bits[:, None] >> bit[None, :]) & 1).to(tl.float32)
        elif FORM == "bits":
            # An image begins on a byte, so a tile is a part of one image.
            parts = tl.cdiv(pixels, TILE)
            image = tile // parts
            pixel = (tile % parts) * TILE + tl.arange(0, TILE)
            inside = pixel < tl.where(image < batch, pixels, 0)
            byte = (model * batch + image) * width + pixel // 8
            bits = tl.load(target_ptr + byte, mask=inside, other=0).to(tl.int32)
            x = ((bits >> (pixel % 8).to(tl.int32)) & 1).to(tl.float32)
            at = image * pixels + pixel
        else:
            at = start + tl.arange(0, TILE)
            inside = at < per_model
            x = tl.load(target_ptr + base + at, mask=inside, other=0).to(tl.float32)
            if FORM == "bytes":
                x = x * (1.0 / 255.0)
        out = tl.load(out_ptr + base + at, mask=inside, other=0.0).to(tl.float32)
        if GAUSSIAN:
            grad = out - x
            loss = 0.5 * grad * grad
        else:
            loss, grad = _bernoulli(out, x)
            if FORM == "float":  # what no image has must not look like a loss
                loss = tl.where((x >= 0.0) & (x <= 1.0), loss, float("nan"))
        grad = (grad * share).to(grad_ptr.dtype.element_ty)
        tl.store(grad_ptr + base + at, grad, mask=inside)
        total += tl.where(inside, loss, 0.0)
        turn += 1
    if FORM == "words":
        total = tl.sum(total, axis=1)
    partial_ptr += model * programs
    tl.store(partial_ptr + program, tl.sum(total, axis=0))
    if is_last(counter_ptr + model, programs):
        nll = tl.sum(add_partials(partial_ptr, programs, 1, PARTS, 1), axis=0)
        tl.store(nll_ptr + model, nll / batch)


def _form(out: Tensor, target: Tensor) -> tuple[str, Tensor]:
    """Return how the kernel reads a contiguous target, and the target as it reads it."""
    if target.dtype == torch.bool:
        return "bool", target.view(torch.uint8)
    if target.dtype != torch.uint8:
        return "float", target
    if target.shape == out.shape:
        return "bytes", target
    # Words hold the bits of all images in a row, where no image's last byte is padded.
    if out.shape[-3:].numel() % 32 or target.storage_offset() % 4:
        return "bits", target
    return "words", target.view(torch.int32)


def pixel_nll(out: Tensor, target: Tensor, gaussian: bool) -> tuple[Tensor, Tensor]:
    """Launcher of both ops; ``out`` are logits or means."""
    dense = out.contiguous()
    form, target = _form(out, target.contiguous())
    models = out.shape[0] if out.dim() == 5 else 1
    batch, pixels = out.shape[-4], out.shape[-3:].numel()
    per_model = batch * pixels
    # The gradient of float16 waits in float32 for its loss scale.
    kept = torch.float32 if out.dtype == torch.float16 else out.dtype
    grad = torch.empty_like(dense, dtype=kept)
    nll = torch.empty(out.shape[:-4], dtype=torch.float32, device=out.device)
    if form == "bits":
        tile = min(tiles.NLL_TILE, triton.next_power_of_2(pixels))
        count = batch * triton.cdiv(pixels, tile)
    else:
        tile = tiles.NLL_TILE
        count = triton.cdiv(per_model, tile)
    turns = tiles.turns(count, tiles.NLL_PROGRAMS)
    programs = triton.cdiv(count, turns)
    partial = torch.empty((models, programs), dtype=torch.float32, device=out.device)
    launch(
        pixel_nll_kernel,
        (programs, models),
        (dense, target, grad, partial, nll, counters(out.device, models), per_model, batch, turns,
         pixels, target.shape[-1]),
        GAUSSIAN=gaussian,
        FORM=form,
        TILE=tile,
        PARTS=tiles.PARTIALS,
        num_warps=tiles.WARPS,
    )  # fmt: skip
    # The gradient has the layout of the logits, channels_last included.
    if grad.stride() != out.stride():
        grad = torch.empty_like(out, dtype=kept).copy_(grad)
    return nll, grad
