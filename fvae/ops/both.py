"""Two batches' codes drawn at once, of which the first alone is trained on."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fvae.ops import autograd
from fvae.ops.checks import check_float, check_same, keys
from fvae.ops.registry import implementation
from fvae.philox import Philox


class _Both(torch.autograd.Function):
    @staticmethod
    def forward(ctx, mu, logvar, seed, step, lane, backend):
        ctx.save_for_backward(mu, logvar, seed, step)
        ctx.lane, ctx.backend = lane, backend
        z, second, kl = implementation("reparameterize_both", backend)(mu, logvar, seed, step, lane)
        ctx.mark_non_differentiable(second)
        return z, second, kl

    @staticmethod
    def backward(ctx, grad_z, _, grad_kl):
        if torch.is_grad_enabled():
            mu, logvar, seed, step = ctx.saved_tensors
            rows = mu.shape[-2] // 2
            saved = (mu[..., :rows, :], logvar[..., :rows, :], seed, step)
            grads = autograd._reparameterize_gradients(
                grad_z, grad_kl, saved, ctx.lane, ctx.backend
            )
            grads = tuple(F.pad(grad, (0, 0, 0, rows)) for grad in grads)
        else:
            run = implementation("reparameterize_both_backward", ctx.backend)
            grads = run(grad_z, grad_kl, *ctx.saved_tensors, ctx.lane)
        return *grads, None, None, None, None


def reparameterize_both(
    mu: Tensor, logvar: Tensor, rng: Philox, backend: str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`fvae.ops.reparameterize` of two batches, whose second has no gradient, at once.

    Args:
        mu: means of the first batch's rows, then of the second's: ``[2B, d]`` or ``[M, 2B, d]``.
        logvar: log variances, of mu's shape and dtype.
        rng: key and step of the noise; the second batch's is that of the next lane.
        backend: None picks; otherwise a name in :data:`BACKENDS`.

    Returns:
        z of either batch, ``[B, d]`` or ``[M, B, d]``, and the first's kl, ``[d]`` or ``[M, d]``.

    Raises:
        TypeError: mu or logvar is not floating point.
        ValueError: as of :func:`fvae.ops.reparameterize`, or the number of rows is odd.
    """
    check_float("mu", mu, (2, 3), "[2B, d] or [M, 2B, d]")
    check_same("logvar", logvar, "mu", mu)
    if mu.shape[-2] % 2:
        raise ValueError(f"mu: got {mu.shape[-2]} rows, expected as many of either batch")
    args = (mu, logvar, *keys(rng, mu))
    if autograd.transformed():
        batches = zip(mu.chunk(2, -2), logvar.chunk(2, -2), strict=True)
        (z, kl), (second, _) = (
            autograd.reparameterize(*batch, args[2], args[3], args[4] + i, backend)
            for i, batch in enumerate(batches)
        )
        return z, second.detach(), kl
    if torch.is_grad_enabled() and (mu.requires_grad or logvar.requires_grad):
        return _Both.apply(*args, backend)
    return implementation("reparameterize_both", backend)(*args)
