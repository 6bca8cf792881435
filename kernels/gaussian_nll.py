"""gaussian_nll: half the squared error of pixels, its gradient and its sum in one launch."""

from torch import Tensor

from fvae.kernels.pixel_nll import pixel_nll


def gaussian_nll(mean: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Triton backend of ``fvae::gaussian_nll``."""
    return pixel_nll(mean, target, gaussian=True)
