"""The first and the last convolution of an autoencoder of images on a CPU, where they are slow.

A library's kernels work at many channels at a time; the first layer of one-channel images has one
to read, the last has a few to write. Ours take images of zeros and ones as bits, and make pixels
from the products of all taps at once, each with the ReLU beside it. Other images and other layers
are left to PyTorch: None says so.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fvae import ops
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

_FVAE: Any = torch.ops.fvae
#: Colours up to which making pixels is faster than PyTorch's transposed convolution.
MOST_COLOURS = 3


def _dtype(x: Tensor, weight: Tensor, form: Convolution) -> torch.dtype | None:
    """What a layer computes in; None where it is none of ours."""
    if not halves_or_doubles(x, weight, form) or "cpp" not in ops.BACKENDS:
        return None
    dtype = autocast_dtype("cpu")
    if dtype is None and x.dtype == weight.dtype:
        dtype = weight.dtype
    # In float16 a loss scale goes by what overflows, in every layer alike.
    return dtype if dtype in (torch.float32, torch.bfloat16) else None


def first(x: Tensor, weight: Tensor, bias: Tensor, form: Convolution) -> Tensor | None:
    """ReLU(x * weight + bias) of images of zeros and ones; None where that is not what they are.

    Args:
        x: ``[B, 1, S, S]``, S a multiple of 8, of which no gradient is wanted.
        weight: ``[C, 1, 4, 4]``.
        bias: ``[C]``.
        form: stride 2 and padding 1 of a convolution.

    Returns:
        ``[B, C, S / 2, S / 2]``, channels last, in autocast's dtype where that is on.
    """
    dtype = None if form.output_padding or weight.shape[1] != 1 else _dtype(x, weight, form)
    if dtype is None or x.requires_grad or x.shape[2] != x.shape[3] or x.shape[2] % 8:
        return None
    if x.dtype not in (torch.float32, torch.bfloat16):
        return None
    bits = ops.packed_bits(x)
    if bits is None:
        return None
    return images_of(_First.apply(x, weight, bias, bits, dtype))


class _First(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, bits, dtype):
        y = _FVAE.conv_from_bits(bits, x.shape[-1], weight.to(dtype), bias.to(dtype))
        ctx.save_for_backward(*map(savable, (x, weight, bias)), bits, y)
        return y

    @staticmethod
    def backward(ctx, grad):
        x, weight, bias, bits, y = ctx.saved_tensors
        if torch.is_grad_enabled():
            out = F.relu(F.conv2d(x.to(y.dtype), weight.to(y.dtype), bias.to(y.dtype), 2, 1))
            return None, *again(rows_of(out), (weight, bias), grad), None, None
        of = _FVAE.conv_from_bits_backward(grad.to(y.dtype).contiguous(), y, bits)
        return None, of[0].to(weight.dtype), of[1].to(bias.dtype), None, None


def last(
    x: Tensor, weight: Tensor, bias: Tensor, form: Convolution, relu: bool = False
) -> Tensor | None:
    """The transposed convolution of x, or of ReLU(x), plus bias; None where PyTorch's is faster.

    Args:
        x: ``[B, C, H, W]``.
        weight: ``[C, O, 4, 4]``.
        bias: ``[O]``.
        form: stride 2 and padding 1 of a transposed convolution.
        relu: whether x goes through a ReLU first.

    Returns:
        ``[B, O, 2 H, 2 W]``, channels last, in autocast's dtype where that is on.
    """
    dtype = None if form.output_padding is None else _dtype(x, weight, form)
    if dtype is None or weight.shape[1] > MOST_COLOURS:
        return None
    return images_of(_Last.apply(x, weight, bias, form, relu, dtype))


class _Last(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, form, relu, dtype):
        low, w = rows_of(x.to(dtype)), weight.to(dtype)
        ctx.save_for_backward(*map(savable, (x, weight, bias)), low, w)
        ctx.rest = form, relu
        return _FVAE.conv_to_pixels(low, w, bias.to(dtype), relu)

    @staticmethod
    def backward(ctx, grad):
        x, weight, bias, low, w = ctx.saved_tensors
        form, relu = ctx.rest
        if torch.is_grad_enabled():
            h = F.relu(x) if relu else x
            out = conv_transpose2d(h.to(w.dtype), weight.to(w.dtype), bias.to(w.dtype), form)
            return *again(rows_of(out), (x, weight, bias), grad), None, None, None
        grad, need_x = grad.to(w.dtype).contiguous(), ctx.needs_input_grad[0]
        of_x, *of = _FVAE.conv_to_pixels_backward(grad, low, w, relu, need_x)
        grad_x = images_of(of_x).to(x.dtype) if need_x else None
        return grad_x, of[0].to(weight.dtype), of[1].to(bias.dtype), None, None, None
