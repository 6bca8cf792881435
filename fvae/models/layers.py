"""Layers with their bias and activation in one call, and their gradients in as few as there are.

:func:`convolve` and :func:`linear` are one layer with any weights; those of an ``nn.Sequential``
are run by :mod:`fvae.models.sequences`. On a GPU, where a step of a usual batch waits for launches,
these are cuDNN's and cuBLAS's fused operations (whose ReLU makes 0 of what is not a number), or the
plain operation and one kernel for what is left, forward and backward. On a CPU the first and the
last convolution gain, which :mod:`fvae.models.ends` has. What has no such form (transforms of
``torch.func``, ``torch.compile``, float64, modules with hooks, other devices) takes PyTorch's own
layers; so does a gradient that is itself differentiated.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fvae import ops
from fvae.device import autocast_dtype
from fvae.models import columns, ends, forms, tiles
from fvae.models.branches import current, in_line
from fvae.models.convolution import Convolution, conv_transpose2d
from fvae.ops.autograd import savable

_ONEDNN: Any = torch.ops.mkldnn
_ATEN: Any = torch.ops.aten
_FVAE: Any = torch.ops.fvae
#: Kinds of convolution that cuDNN has refused to fuse here.
_REFUSED: set[tuple] = set()

# --- whether -------------------------------------------------------------------------------------


def fused_dtype(x: Tensor, weight: Tensor) -> torch.dtype | None:
    """What a fused layer computes in, as autocast has it; None where it is PyTorch's own."""
    if not forms.is_fused(x) or weight.device != x.device:
        return None
    dtype = autocast_dtype(x.device.type)
    if dtype is None and x.dtype == weight.dtype:
        dtype = weight.dtype
    return dtype if dtype in (torch.float32, torch.bfloat16, torch.float16) else None


# --- forward -------------------------------------------------------------------------------------


def _act(y: Tensor, slope: float) -> Tensor:
    """The activation, in place where autograd allows it."""
    if slope == 1:
        return y
    return F.leaky_relu_(y, slope) if slope else F.relu_(y)


def _add_and_act(y: Tensor, bias: Tensor | None, slope: float) -> Tensor:
    """What is left to do to a product of our own making, on a GPU."""
    if bias is not None or slope != 1:
        _FVAE.bias_activation(y, bias, slope)
    return y


def _conv_forward(
    x: Tensor, weight: Tensor, bias: Tensor, form: Convolution, slope: float
) -> Tensor:
    stride, padding, output_padding, groups = form
    if output_padding is not None:
        y = F.conv_transpose2d(x, weight, None, stride, padding, output_padding, groups)
        return _add_and_act(y, bias, slope)
    if slope == 0 and torch.backends.cudnn.enabled and not torch.version.hip:
        cudnn: Any = torch.backends.cudnn
        kind = (x.dtype, cudnn.conv.fp32_precision, weight.shape, x.shape, groups)
        if kind not in _REFUSED:
            try:
                return _ATEN.cudnn_convolution_relu(
                    x, weight, bias, stride, padding, (1, 1), groups
                )
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:
                # Not every cuDNN has it for every card and precision; a step before the first
                # captured one finds out.
                _REFUSED.add(kind)
    return _add_and_act(F.conv2d(x, weight, None, stride, padding, 1, groups), bias, slope)


def linear_forward(x: Tensor, weight: Tensor, bias: Tensor, slope: float) -> Tensor:
    """:func:`linear`, of tensors of one dtype, which autograd does not follow."""
    if not forms.is_fused(x):
        return _act(product(x, weight, bias), slope)
    if x.dim() == 3:
        if slope == 1:
            return torch.baddbmm(bias.unsqueeze(-2), x, weight.mT)
        return _add_and_act(torch.bmm(x, weight.mT), bias, slope)
    if slope == 0:
        return torch._addmm_activation(bias, x, weight.t())
    return _add_and_act(torch.addmm(bias, x, weight.t()), None, slope)


# --- backward ------------------------------------------------------------------------------------


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x @ weight^T + bias, for one matrix or for each of M.

    In float32 on a CPU PyTorch multiplies with MKL, which on an AMD EPYC takes twice the time of
    oneDNN; and of several models each has the sums of that model alone, bit for bit.
    """
    alone = x.device.type == "cpu" and x.dtype == torch.float32
    if x.dim() == 3:
        if alone:
            biases: Sequence[Tensor | None] = [None] * len(x) if bias is None else list(bias)
            return torch.stack([product(*one) for one in zip(x, weight, biases, strict=True)])
        y = weight.mT
        return x @ y if bias is None else torch.baddbmm(bias.unsqueeze(-2), x, y)
    if alone and hasattr(_ONEDNN, "_linear_pointwise"):
        return _ONEDNN._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def is_one_kernel(x: Tensor, weight: Tensor) -> bool:
    """Whether the backward pass of a linear layer is to be one kernel of ours."""
    return forms.is_fused(x) and ops.few_products(x, weight)


def gradient_of_x(grad: Tensor, y: Tensor, x: Tensor, weight: Tensor, slope: float) -> Tensor:
    """That of :func:`linear_backward` alone, where :func:`is_one_kernel`."""
    return _FVAE.linear_backward(grad, y, x, weight, slope, x.dtype, True, None, False)[0]


def linear_backward(
    grad: Tensor, y: Tensor, x: Tensor, weight: Tensor, slope: float, dtype: torch.dtype,
    need_x: bool = True, factor: Tensor | None = None, apart: Callable[..., Any] = in_line,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, weight and bias: see :func:`fvae.ops.linear_backward`.

    What no other layer's gradient needs is made by ``apart``.
    """
    if not forms.is_fused(x):
        # Of a (leaky) ReLU the output has the sign of the input.
        delta = grad if slope == 1 else _ATEN.leaky_relu_backward(grad, y, slope, True)
        scaled = delta if factor is None else factor.to(delta.dtype).unsqueeze(-1) * delta
        grad_bias = scaled.sum(-2, dtype=dtype)
    elif is_one_kernel(x, weight):
        return _FVAE.linear_backward(grad, y, x, weight, slope, dtype, need_x, factor)
    else:
        first = apart if slope == 1 else in_line  # without an activation, the bias's alone
        args = (grad, y, slope, dtype, factor)
        delta, scaled, grad_bias = first(_FVAE.activation_backward, *args)
        delta = grad.to(x.dtype).contiguous() if slope == 1 else delta
        scaled = delta if factor is None else scaled
    grad_x = product(delta, weight.mT) if need_x else x.new_empty(0)
    return grad_x, apart(_weight_gradient, scaled, x, dtype), grad_bias


def _weight_gradient(delta: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    return product(delta.mT, x.mT).to(dtype)


def _conv_backward(
    grad: Tensor, y: Tensor, x: Tensor, weight: Tensor, form: Convolution, slope: float,
    dtype: torch.dtype, need_x: bool, apart: Callable[..., Any] = in_line,
) -> tuple[Tensor | None, Tensor | None, Tensor]:  # fmt: skip
    first = apart if slope == 1 else in_line  # without an activation, the bias's alone
    delta, _, grad_bias = first(_FVAE.activation_backward, grad, y, slope, dtype)
    delta = grad if slope == 1 else delta
    if apart is in_line:
        return *_conv_products(delta, x, weight, form, dtype, need_x, True), grad_bias
    grad_x, _ = _conv_products(delta, x, weight, form, dtype, need_x, False)
    _, grad_weight = apart(_conv_products, delta, x, weight, form, dtype, False, True)
    return grad_x, grad_weight, grad_bias


def _conv_products(
    delta: Tensor, x: Tensor, weight: Tensor, form: Convolution, dtype: torch.dtype,
    of_x: bool, of_weight: bool,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    stride, padding, output_padding, groups = form
    grad_x, grad_weight, _ = _ATEN.convolution_backward(
        delta, x, weight, None, stride, padding, (1, 1),
        output_padding is not None, output_padding or (0, 0), groups, (of_x, of_weight, False),
    )  # fmt: skip
    return grad_x, grad_weight.to(dtype) if of_weight else None


# --- both -----------------------------------------------------------------------------------------


def _of_pytorch(
    x: Tensor, weight: Tensor, bias: Tensor, form: Convolution | None, slope: float
) -> Tensor:
    """The layer of PyTorch's operations, which autograd differentiates as often as one likes."""
    if form is None:
        three = x.dim() == 3
        y = torch.baddbmm(bias.unsqueeze(-2), x, weight.mT) if three else F.linear(x, weight, bias)
    elif form.output_padding is None:
        y = F.conv2d(x, weight, bias, form.stride, form.padding, 1, form.groups)
    else:
        y = conv_transpose2d(x, weight, bias, form)
    return _act(y, slope)


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, form, slope, dtype):
        low, w, b = x.to(dtype), weight.to(dtype), bias.to(dtype)
        y = _forward(low, w, b, form, slope)
        ctx.save_for_backward(*map(savable, (x, weight, bias, low, w)), y)
        ctx.rest, ctx.branches = (form, slope, dtype), current()
        # As they are: what was saved may come back as another tensor.
        ctx.leaves = (weight, bias) if ctx.branches else ()
        return y

    @staticmethod
    def backward(ctx, grad):
        x, weight, bias, low, w, y = ctx.saved_tensors
        form, slope, dtype = ctx.rest
        if torch.is_grad_enabled():
            out = _of_pytorch(x.to(dtype), weight.to(dtype), bias.to(dtype), form, slope)
            return *forms.again(out, (x, weight, bias), grad), None, None, None
        need_x = ctx.needs_input_grad[0]
        # Where nothing follows there is nothing to hold up.
        owed = need_x and ctx.branches and ctx.branches.owes(*ctx.leaves)
        apart, args = ctx.branches.apart if owed else in_line, (slope, weight.dtype, need_x)
        grad_x: Any
        rest: list[Any]
        if form is None:
            grad_x, *rest = linear_backward(grad, y, low, w, *args, apart=apart)
        else:
            grad_x, *rest = _conv_backward(grad, y, low, w, form, *args, apart)
        grad_x = grad_x.to(x.dtype) if need_x else None
        if owed:
            ctx.branches.owe(ctx.leaves, rest)
            rest = [None, None]
        else:
            rest[1] = rest[1].to(bias.dtype)
        return grad_x, *rest, None, None, None


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor, form: Convolution | None, slope: float
) -> Tensor:
    if form is None:
        return linear_forward(x, weight, bias, slope)
    return _conv_forward(x, weight, bias, form, slope)


def one_layer(
    x: Tensor, weight: Tensor, bias: Tensor, form: Convolution | None, slope: float
) -> Tensor:
    """act(x weight^T + bias), or of a convolution of that form: see below."""
    dtype = fused_dtype(x, weight)
    if dtype is None:
        y = on_cpu(x, weight, bias, form, slope)
        return y if y is not None else _of_pytorch(x, weight, bias, form, slope)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, weight, bias)):
        return _Layer.apply(x, weight, bias, form, slope, dtype)
    return _forward(x.to(dtype), weight.to(dtype), bias.to(dtype), form, slope)


def on_cpu(
    x: Tensor, weight: Tensor, bias: Tensor, form: Convolution | None, slope: float,
    relu: bool = False,
) -> Tensor | None:  # fmt: skip
    """A layer that is ours on a CPU, of ReLU(x) if so asked; None where it is PyTorch's."""
    if form is None or x.device.type != "cpu" or forms.is_plain():
        return None
    y = None
    if form.output_padding is None:
        y = ends.first(x, weight, bias, form) if slope == 0 else None
    elif slope == 1:
        y = ends.last(x, weight, bias, form, relu)
    if y is None and not relu and tiles.fits(x, weight, form, slope):
        return tiles.convolve(x, weight, bias, form, slope)
    if y is None and not relu and columns.fits(x, weight, form):
        y = _act(columns.convolve(x, weight, bias, form), slope)
    return y


def linear(x: Tensor, weight: Tensor, bias: Tensor, slope: float = 1.0) -> Tensor:
    """act(x weight^T + bias), with a (leaky) ReLU of a slope; that of 1 is none.

    Args:
        x: ``[rows, in]``, or ``[M, rows, in]`` of M models.
        weight: ``[out, in]``, or ``[M, out, in]``.
        bias: ``[out]``, or ``[M, out]``.
        slope: of the activation for negative input.

    Returns:
        ``[rows, out]`` or ``[M, rows, out]``, in autocast's dtype where that is on.
    """
    return one_layer(x, weight, bias, None, slope)


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor, form: Convolution, slope: float = 1.0
) -> Tensor:
    """act(x * weight + bias), a convolution or a transposed one.

    Args:
        x: ``[B, in, H, W]``.
        weight: as the layer's of PyTorch.
        bias: ``[out]``.
        form: stride, padding and kind.
        slope: as in :func:`linear`.

    Returns:
        ``[B, out, H', W']``, in autocast's dtype where that is on.
    """
    return one_layer(x, weight, bias, form, slope)
