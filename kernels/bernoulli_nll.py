"""bernoulli_nll: stable cross-entropy of pixels, its gradient and its sum in one launch."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fvae.kernels import tiles
from fvae.kernels.launch import launch


@triton.jit
def _loss_and_gradient(logit, x):
    """log(1 + exp(l)) - l x and sigmoid(l) - x, from one exponential."""
    e = tl.exp(-tl.abs(logit))
    loss = tl.maximum(logit, 0.0) + tl.log(1.0 + e) - logit * x
    return loss, tl.where(logit >= 0, 1.0, e) / (1.0 + e) - x


@triton.jit
def bernoulli_nll_kernel(
    logits_ptr,  # [M, B * pixels]
    target_ptr,  # the same elements; or bits in 32-bit words
    grad_ptr,  # like logits
    partial_ptr,  # float32 [M, programs]
    nll_ptr,  # float32 [M]
    counter_ptr,  # int32 [M], zero before and after
    per_model,  # B * pixels
    batch,  # B
    PACKED: tl.constexpr,  # the target holds bits
    OCTETS: tl.constexpr,  # the target holds bytes 0..255
    TILE: tl.constexpr,  # pixels a turn
    TURNS: tl.constexpr,
    PARTIALS: tl.constexpr,
):
    """Each program sums its pixels; the last to finish adds the sums in the programs' order."""
    program, model = tl.program_id(0), tl.program_id(1)
    programs = tl.num_programs(0)
    base = model.to(tl.int64) * per_model
    total = 0.0
    for turn in tl.static_range(TURNS):
        start = (program.to(tl.int64) * TURNS + turn) * TILE
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
        grad = grad / batch
        tl.store(grad_ptr + base + at, grad.to(grad_ptr.dtype.element_ty), mask=inside)
        loss = tl.where(inside, loss, 0.0)
        if PACKED:
            loss = tl.sum(loss, axis=1)
        total += tl.sum(loss, axis=0)
    tl.store(partial_ptr + model * programs + program, total)
    # The release of the store before, and the acquire of all others' for the last program.
    done = tl.atomic_add(counter_ptr + model, 1, sem="acq_rel", scope="gpu")
    if done == programs - 1:
        sums = tl.zeros([PARTIALS], tl.float32)
        first = 0  # `while`: as in logit_ratio.py
        while first < programs:
            i = first + tl.arange(0, PARTIALS)
            # Past the first-level cache, which other processors' stores do not reach.
            sums += tl.load(
                partial_ptr + model * programs + i,
                mask=i < programs,
                other=0.0,
                cache_modifier=".cg",
            )
            first += PARTIALS
        tl.store(nll_ptr + model, tl.sum(sums, axis=0) / batch)
        tl.store(counter_ptr + model, 0)


class _Counters:
    """Counters of finished programs: zero between launches, as the last program leaves them.

    Two launches that may run at once need counters of their own: each stream has its, and each
    launch that a CUDA graph records has its for good. So nothing is cleared at a launch, and
    nothing is allocated while a graph is recorded, if an eager launch came before.
    """

    SIZE = 1 << 14

    def __init__(self, device: torch.device) -> None:
        self.buffer = torch.zeros(self.SIZE, dtype=torch.int32, device=device)
        self.used = 0
        self.of_stream: dict[tuple[int, int], Tensor] = {}

    def take(self, models: int) -> Tensor:
        """Return int32 zeros ``[models]`` that no other running launch uses."""
        if self.buffer.device.type == "cpu":  # the interpreter runs one launch after another
            return torch.zeros(models, dtype=torch.int32)
        if torch.cuda.is_current_stream_capturing():
            return self._new(models)
        key = (torch.cuda.current_stream(self.buffer.device).cuda_stream, models)
        if key not in self.of_stream:
            self.of_stream[key] = self._new(models)
        return self.of_stream[key]

    def _new(self, models: int) -> Tensor:
        if self.used + models > self.SIZE:
            return torch.zeros(models, dtype=torch.int32, device=self.buffer.device)
        self.used += models
        return self.buffer[self.used - models : self.used]


_COUNTERS: dict[torch.device, _Counters] = {}


def _counter(device: torch.device, models: int) -> Tensor:
    if device not in _COUNTERS:
        _COUNTERS[device] = _Counters(device)
    return _COUNTERS[device].take(models)


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
        if target.shape[-1] % 4:
            raise ValueError(
                f"target: got {target.shape[-1]} bytes of packed bits an image;"
                " backend='triton' needs a multiple of 4"
            )
        target = target.view(torch.int32)
    elif target.dtype == torch.bool:
        target = target.view(torch.uint8)
    grad = torch.empty_like(dense)
    nll = torch.empty(logits.shape[:-4], dtype=torch.float32, device=logits.device)
    programs = triton.cdiv(per_model, tiles.NLL_PIXELS)
    partial = torch.empty((models, programs), dtype=torch.float32, device=logits.device)
    launch(
        bernoulli_nll_kernel,
        (programs, models),
        (dense, target, grad, partial, nll, _counter(logits.device, models), per_model,
         logits.shape[-4]),
        PACKED=packed,
        OCTETS=octets,
        TILE=tiles.NLL_TILE,
        TURNS=tiles.NLL_PIXELS // tiles.NLL_TILE,
        PARTIALS=tiles.NLL_PARTIALS,
        num_warps=tiles.WARPS,
    )  # fmt: skip
    # The gradient has the layout of the logits, channels_last included.
    if grad.stride() != logits.stride():
        grad = torch.empty_like(logits).copy_(grad)
    return nll, grad
