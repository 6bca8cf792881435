"""Convolutions in bfloat16 on a CPU, whose gradients are made apart.

Of few places and many channels oneDNN's own weight gradient takes twice the time of writing the
pixels under the kernel at each place into a row and multiplying these with the output's gradient.
Of a transposed convolution its gradient of the bias takes longer than all the rest; its forward
pass has the bias for nothing.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fvae.models.convolution import Convolution, halves_or_doubles
from fvae.models.forms import again
from fvae.ops.autograd import savable

_ATEN: Any = torch.ops.aten
#: Places of an image, on the smaller side of the layer, up to which the product is faster.
MOST_PLACES = 64


def fits(x: Tensor, weight: Tensor, form: Convolution) -> bool:
    """Whether a layer's gradient is made so: kernels of 4 x 4, stride 2 and padding 1."""
    if not halves_or_doubles(x, weight, form):
        return False
    if not (x.dtype == weight.dtype == torch.bfloat16 and torch.is_grad_enabled()):
        return False
    if form.output_padding is not None:
        return True
    return x.shape[2] % 2 == x.shape[3] % 2 == 0 and _few(x.shape[2] * x.shape[3] // 4)


def _few(places: int) -> bool:
    return places <= MOST_PLACES


def convolve(x: Tensor, weight: Tensor, bias: Tensor, form: Convolution) -> Tensor:
    """x * weight + bias of a layer that :func:`fits`: ``[B, C, H, W]``, channels last."""
    return _Convolve.apply(x, weight, bias, form)


def _plainly(x: Tensor, weight: Tensor, bias: Tensor, form: Convolution) -> Tensor:
    run = F.conv2d if form.output_padding is None else F.conv_transpose2d
    return run(x, weight, bias, form.stride, form.padding)


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, form):
        ctx.save_for_backward(*map(savable, (x, weight, bias)))
        ctx.form = form
        return _plainly(x, weight, bias, form)

    @staticmethod
    def backward(ctx, grad):
        x, weight, bias = ctx.saved_tensors
        form = ctx.form
        if torch.is_grad_enabled():
            out = _plainly(x, weight, bias, form)
            return *again(out, (x, weight, bias), grad), None
        transposed = form.output_padding is not None
        large, small = (grad, x) if transposed else (x, grad)
        need_x, need_weight, _, _ = ctx.needs_input_grad
        as_product = need_weight and _few(small.shape[2] * small.shape[3])
        grad_x, grad_weight, _ = _ATEN.convolution_backward(
            grad, x, weight, None, form.stride, form.padding, (1, 1), transposed,
            form.output_padding or (0, 0), 1, (need_x, need_weight and not as_product, False),
        )  # fmt: skip
        if as_product:
            grad_weight = _rows(small).t() @ _columns(large)
            grad_weight = grad_weight.unflatten(1, (4, 4, -1)).permute(0, 3, 1, 2)
        grad_bias = grad.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        return grad_x, grad_weight, grad_bias, None


def _rows(images: Tensor) -> Tensor:
    """[B, C, H, W] -> [B H W, C]."""
    return images.permute(0, 2, 3, 1).reshape(-1, images.shape[1])


def _columns(images: Tensor) -> Tensor:
    """What is under the kernel at each place: [B, C, H, W] -> [B H / 2 W / 2, 16 C]."""
    padded = F.pad(images.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    count, height, width, channels = padded.shape
    image, row, pixel, one = padded.stride()
    shape = (count, height // 2 - 1, width // 2 - 1, 4, 4 * channels)
    strides = (image, 2 * row, 2 * pixel, row, one)  # four pixels of a row lie side by side
    return padded.as_strided(shape, strides).reshape(-1, 16 * channels)
