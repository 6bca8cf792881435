"""Two batches' codes drawn at once, in plain PyTorch: the reference's."""

import torch.nn.functional as F
from torch import Tensor


def reparameterize_both(
    mu: Tensor, logvar: Tensor, seed: Tensor, step: Tensor, lane: int
) -> tuple[Tensor, Tensor, Tensor]:
    """z of both batches, by the noise of two lanes, and the first's kl."""
    from fvae.ops.reference import reparameterize

    (mu, mu_second), (logvar, logvar_second) = mu.chunk(2, -2), logvar.chunk(2, -2)
    z, kl = reparameterize(mu, logvar, seed, step, lane)
    second, _ = reparameterize(mu_second, logvar_second, seed, step, lane + 1)
    return z, second, kl


def reparameterize_both_backward(
    grad_z: Tensor, grad_kl: Tensor, mu: Tensor, logvar: Tensor, seed: Tensor, step: Tensor,
    lane: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of mu and logvar, zeros for the second batch."""
    from fvae.ops.reference import reparameterize_backward

    rows = mu.shape[-2] // 2
    first = (mu[..., :rows, :], logvar[..., :rows, :])
    grads = reparameterize_backward(grad_z, grad_kl, *first, seed, step, lane)
    grad_mu, grad_logvar = (F.pad(grad, (0, 0, 0, rows)) for grad in grads)
    return grad_mu, grad_logvar
