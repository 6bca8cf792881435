"""A layer's bias and (leaky) ReLU, and their gradients, in plain PyTorch: the reference's."""

import torch
from torch import Tensor

from fvae.ops.pairs import wide


def over_channels(x: Tensor, y: Tensor) -> Tensor:
    """One number a channel, ``[C]`` or ``[M, C]``, as it is added to activations y."""
    return x[:, None, None] if y.dim() == 4 else x.unsqueeze(-2)


def bias_activation(y: Tensor, bias: Tensor | None, slope: float) -> None:
    """y = act(y + bias), in place."""
    x = wide(y) if bias is None else wide(y) + over_channels(wide(bias), y)
    y.copy_(x if slope == 1 else torch.where(x <= 0, slope * x, x))


def activation_backward(
    grad: Tensor, y: Tensor, slope: float, dtype: torch.dtype, factor: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """delta = grad, but slope * grad where y <= 0; factor * delta; and its sum in each channel.

    Where slope is 1 there is no delta, and where there is no factor no product with it: an empty
    tensor is in its place.
    """
    x = _activation_gradient(wide(grad), y, slope)
    # A copy laid out as rows of channels.
    form = torch.channels_last if y.dim() == 4 else torch.contiguous_format
    delta = y.new_empty(0)
    if slope != 1:
        delta = torch.empty_like(y, memory_format=form).copy_(x)
    scaled = y.new_empty(0)
    if factor is not None:
        x = x * factor.unsqueeze(-1)
        scaled = torch.empty_like(y, memory_format=form).copy_(x)
    return delta, scaled, x.sum((0, 2, 3) if y.dim() == 4 else -2).to(dtype)


def _activation_gradient(grad: Tensor, y: Tensor, slope: float) -> Tensor:
    return grad if slope == 1 else torch.where(y <= 0, slope * grad, grad)


def linear_backward(
    grad: Tensor, y: Tensor, x: Tensor, weight: Tensor, slope: float, dtype: torch.dtype,
    need_x: bool, factor: Tensor | None = None, need_weight: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, weight and bias of y = act(x weight^T + bias), the latter two by factor.

    Without ``need_x`` an empty tensor is in the place of the first, without ``need_weight`` in
    those of the others.
    """
    delta = _activation_gradient(wide(grad), y, slope)
    scaled = delta if factor is None else delta * factor.unsqueeze(-1)
    grad_x = (delta @ wide(weight)).to(x.dtype) if need_x else x.new_empty(0)
    if not need_weight:
        return grad_x, weight.new_empty(0, dtype=dtype), weight.new_empty(0, dtype=dtype)
    return grad_x, (scaled.mT @ wide(x)).to(dtype), scaled.sum(-2).to(dtype)
