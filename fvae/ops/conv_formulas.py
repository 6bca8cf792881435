"""Convolutions of 4 x 4, stride 2 and padding 1, and their gradients, in plain PyTorch."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from fvae.ops.pairs import wide


def _channels_first(t: Tensor) -> Tensor:
    return t.permute(0, 3, 1, 2)


def conv4x4(x: Tensor, weight: Tensor, bias: Tensor, relu: bool, transposed: bool) -> Tensor:
    """The convolution, or the transposed one, of x with its bias and, if so asked, its ReLU."""
    run = F.conv_transpose2d if transposed else F.conv2d
    h, w = _channels_first(wide(x)), _channels_first(wide(weight))
    y = run(h, w, wide(bias), stride=2, padding=1).permute(0, 2, 3, 1)
    return (F.relu(y) if relu else y).contiguous().to(x.dtype)


def conv4x4_backward(
    grad: Tensor, y: Tensor | None, x: Tensor, weight: Tensor, transposed: bool, need_x: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, or an empty tensor, and of weight and bias, float32."""
    delta = grad if y is None else torch.where(y <= 0, 0, grad)
    delta, of_x, w = map(_channels_first, (delta.float(), x.float(), weight.float()))
    grad_x = x.new_empty(0)
    if need_x:
        run = F.conv2d if transposed else F.conv_transpose2d
        grad_x = run(delta, w, stride=2, padding=1).permute(0, 2, 3, 1).contiguous().to(x.dtype)
    # Of a transposed convolution the output's gradient has the part of the input.
    large, small = (delta, of_x) if transposed else (of_x, delta)
    sums = conv2d_weight(large, w.shape, small, stride=2, padding=1).permute(0, 2, 3, 1)
    return grad_x, sums.clone(memory_format=torch.contiguous_format), delta.sum((0, 2, 3))


def has_matrix_units(like: Tensor) -> bool:
    """Whether a processor multiplies blocks of matrices at once; PyTorch does not say."""
    return False
