"""Convolutions with kernels of 4 x 4 and stride 2 on a CPU, by ``ops.conv4x4``.

In bfloat16 where a processor multiplies blocks of matrices at once: nothing has to be written
under each place of a kernel for that. In float32 where it has wide vectors: tiles of pixels take 9
products for 16. In both the ReLU, its gradient and the bias's are made on the way. Other processors
and other layers are left to :mod:`fvae.models.columns` and to PyTorch.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fvae.device import autocast_dtype
from fvae.models.convolution import (
    Convolution,
    conv_transpose2d,
    halves_or_doubles,
    images_of,
    rows_of,
)
from fvae.models.forms import again
from fvae.ops.autograd import savable
from fvae.ops.convolution import conv4x4_pays

_FVAE: Any = torch.ops.fvae


def fits(x: Tensor, weight: Tensor, form: Convolution, slope: float) -> bool:
    """Whether a layer is ours: of even sides, with a ReLU or nothing after it, and fast here."""
    if not (halves_or_doubles(x, weight, form) and x.dtype == weight.dtype):
        return False
    if slope not in (0, 1) or not conv4x4_pays(x.dtype, *weight.shape[:2]):
        return False
    if form.output_padding is None and (x.shape[2] % 2 or x.shape[3] % 2):
        return False
    return autocast_dtype("cpu") in (None, x.dtype)


def convolve(x: Tensor, weight: Tensor, bias: Tensor, form: Convolution, slope: float) -> Tensor:
    """act(x * weight + bias) of a layer that :func:`fits`: ``[B, C, H, W]``, channels last."""
    return _Tiled.apply(x, weight, bias, form.output_padding is not None, slope == 0)


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, transposed, relu):
        rows, w = rows_of(x), rows_of(weight)
        y = _FVAE.conv4x4(rows, w, bias.to(w.dtype), relu, transposed)
        ctx.save_for_backward(*map(savable, (x, weight, bias)), rows, w, y if relu else None)
        ctx.kind = transposed, relu
        return images_of(y)

    @staticmethod
    def backward(ctx, grad):
        x, weight, bias, rows, w, y = ctx.saved_tensors
        transposed, relu = ctx.kind
        if torch.is_grad_enabled():
            out = _plainly(x, weight, bias.to(w.dtype), transposed)
            out = F.relu(out) if relu else out
            return *again(out, (x, weight, bias), grad), None, None
        need_x = ctx.needs_input_grad[0]
        of_x, of_weight, of_bias = _FVAE.conv4x4_backward(
            rows_of(grad), y, rows, w, transposed, need_x
        )
        grad_x = images_of(of_x) if need_x else None
        return grad_x, images_of(of_weight).to(w.dtype), of_bias.to(bias.dtype), None, None


def _plainly(x: Tensor, weight: Tensor, bias: Tensor, transposed: bool) -> Tensor:
    if transposed:
        return conv_transpose2d(x, weight, bias, Convolution((2, 2), (1, 1), (0, 0)))
    return F.conv2d(x, weight, bias, 2, 1)
