"""The first and the last convolution of an autoencoder of images, in plain PyTorch."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from fvae.ops.pairs import wide


def packed_bits(x: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels that are 1 as bits, ``[n / 8]``; and whether all others are 0."""
    one = (x == 1).reshape(-1, 8).to(torch.uint8)
    bits = (one << torch.arange(7, -1, -1, dtype=torch.uint8, device=x.device)).sum(-1)
    return bits.to(torch.uint8), ((x == 0) | (x == 1)).all()


def _unpacked(bits: Tensor, side: int) -> Tensor:
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=bits.device)
    return (bits.reshape(-1, 1) >> shifts & 1).reshape(-1, 1, side, side).float()


def conv_from_bits(bits: Tensor, side: int, weight: Tensor, bias: Tensor) -> Tensor:
    """ReLU(conv2d + bias) of images of bits, kernel 4, stride 2, padding 1; channels last."""
    x = _unpacked(bits, side)
    y = F.relu(F.conv2d(x, weight.float(), bias.float(), stride=2, padding=1))
    return y.permute(0, 2, 3, 1).contiguous().to(weight.dtype)


def conv_from_bits_backward(grad: Tensor, y: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of weight ``[C, 1, 4, 4]`` and bias ``[C]``, float32."""
    delta = torch.where(y <= 0, 0, grad).float().permute(0, 3, 1, 2)
    x = _unpacked(bits, 2 * y.shape[1])
    shape = torch.Size((y.shape[-1], 1, 4, 4))
    weight = conv2d_weight(x, shape, delta, stride=2, padding=1)
    return weight.clone(memory_format=torch.contiguous_format), delta.sum((0, 2, 3))


def conv_to_pixels(x: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
    """conv_transpose2d + bias of x, or of ReLU(x), kernel 4, stride 2, padding 1; channels last."""
    h = wide(F.relu(x) if relu else x).permute(0, 3, 1, 2)
    y = F.conv_transpose2d(h, wide(weight), wide(bias), stride=2, padding=1)
    return y.permute(0, 2, 3, 1).contiguous().to(x.dtype)


def conv_to_pixels_backward(
    grad: Tensor, x: Tensor, weight: Tensor, relu: bool, need_x: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, or an empty tensor, and of weight and bias, float32."""
    h = (F.relu(x) if relu else x).float().permute(0, 3, 1, 2)
    delta = grad.float().permute(0, 3, 1, 2)
    grad_x = x.new_empty(0)
    if need_x:
        grad_h = F.conv2d(delta, weight.float(), stride=2, padding=1).permute(0, 2, 3, 1)
        grad_h = torch.where(x <= 0, 0, grad_h) if relu else grad_h
        grad_x = grad_h.contiguous().to(x.dtype)
    # Of the transposed convolution the output's gradient has the part of the input.
    of = conv2d_weight(delta, weight.shape, h, stride=2, padding=1)
    return grad_x, of.clone(memory_format=torch.contiguous_format), delta.sum((0, 2, 3))
