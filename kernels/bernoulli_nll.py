"""bernoulli_nll: stable cross-entropy of pixels, its gradient and its sum in one launch."""

from torch import Tensor

from fvae.kernels.pixel_nll import pixel_nll


def bernoulli_nll(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Triton backend of ``fvae::bernoulli_nll``."""
    return pixel_nll(logits, target, gaussian=False)
