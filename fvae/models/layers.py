"""Layers with their bias and activation in one call, and their gradients in as few as there are.

:func:`run` runs the layers of an ``nn.Sequential``; :func:`convolve` and :func:`linear` are one
layer with any weights. On a GPU, where a step of a usual batch waits for launches, these are
cuDNN's and cuBLAS's fused operations (whose ReLU makes 0 of what is not a number), or the plain
operation and one kernel for what is left, forward and backward. On a CPU, where an encoder that is
not trained is all that gains, its convolutions take oneDNN's. What has no such form (transforms of
``torch.func``, ``torch.compile``, float64, modules with hooks, other devices) takes PyTorch's own
layers; so does a gradient that is itself differentiated.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks

from fvae import ops
from fvae.models import ends
from fvae.models.branches import current, in_line
from fvae.models.convolution import Convolution, ConvTranspose2d, conv_transpose2d
from fvae.ops.autograd import savable, transformed

_ONEDNN: Any = torch.ops.mkldnn
_ATEN: Any = torch.ops.aten
_FVAE: Any = torch.ops.fvae
# Slope of a ReLU in oneDNN, whose own one makes 0 of what is not a number: a run that diverged
# would hide it. What this leaves of a negative number is lost in the next sum.
_TINY = 1e-30
#: Kinds of convolution that cuDNN has refused to fuse here.
_REFUSED: set[tuple] = set()
_PLAINLY = ContextVar("plainly", default=False)


@contextmanager
def plainly(whether: bool = True) -> Iterator[None]:
    """Within it, all layers are PyTorch's own."""
    token = _PLAINLY.set(whether or _PLAINLY.get())
    try:
        yield
    finally:
        _PLAINLY.reset(token)


#: What has a fused form; not what derives from them.
_LAYERS = (nn.Linear, nn.Conv2d, ConvTranspose2d)


# --- whether -------------------------------------------------------------------------------------


def _plain() -> bool:
    return torch.compiler.is_compiling() or _PLAINLY.get() or transformed()


def _fused(x: Tensor) -> bool:
    """Whether layers are to be as few kernels as there are."""
    return x.device.type == "cuda" and not _plain()


def _dtype(x: Tensor, weight: Tensor) -> torch.dtype | None:
    """What a fused layer computes in, as autocast has it; None where it is PyTorch's own."""
    if not _fused(x) or weight.device != x.device:
        return None
    device, dtype = x.device.type, weight.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    elif x.dtype != dtype:
        return None
    return dtype if dtype in (torch.float32, torch.bfloat16, torch.float16) else None


@functools.cache
def _has_onednn() -> bool:
    """Whether this PyTorch has oneDNN's fused convolution, which it keeps for its compiler."""
    if not (torch.backends.mkldnn.is_available() and hasattr(_ONEDNN, "_convolution_pointwise")):
        return False
    return bool(_ONEDNN._is_mkldnn_bf16_supported())


def _onednn(layer: nn.Conv2d, x: Tensor) -> bool:
    """Whether a layer that nobody trains is oneDNN's: in bfloat16, where that is faster."""
    if x.device.type != "cpu" or torch.is_grad_enabled():
        return False
    if torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") != torch.bfloat16:
        return False
    if not (x.dtype == layer.weight.dtype == torch.bfloat16) or x.numel() == 0 or _plain():
        return False
    return torch._C._get_mkldnn_enabled() and _has_onednn()


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
        or module._backward_pre_hooks
    )  # fmt: skip


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
    if not _fused(x):
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
    return _fused(x) and ops.few_products(x, weight)


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
    if not _fused(x):
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
            wanted = [t for t in (x, weight, bias) if t.requires_grad]
            out = _of_pytorch(x.to(dtype), weight.to(dtype), bias.to(dtype), form, slope)
            each = iter(torch.autograd.grad(out, wanted, grad, create_graph=True))
            grads = [next(each) if t.requires_grad else None for t in (x, weight, bias)]
            return *grads, None, None, None
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


def _layer(
    x: Tensor, weight: Tensor, bias: Tensor, form: Convolution | None, slope: float
) -> Tensor:
    dtype = _dtype(x, weight)
    if dtype is None:
        y = _end(x, weight, bias, form, slope)
        return y if y is not None else _of_pytorch(x, weight, bias, form, slope)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, weight, bias)):
        return _Layer.apply(x, weight, bias, form, slope, dtype)
    return _forward(x.to(dtype), weight.to(dtype), bias.to(dtype), form, slope)


def _end(
    x: Tensor, weight: Tensor, bias: Tensor, form: Convolution | None, slope: float,
    relu: bool = False,
) -> Tensor | None:  # fmt: skip
    """A layer of few channels on a CPU, of ReLU(x) if so asked; None for others."""
    if form is None or x.device.type != "cpu" or _plain():
        return None
    if form.output_padding is None:
        return ends.first(x, weight, bias, form) if slope == 0 else None
    return ends.last(x, weight, bias, form, relu) if slope == 1 else None


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
    return _layer(x, weight, bias, None, slope)


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
    return _layer(x, weight, bias, form, slope)


def _slope_of(layer: nn.Module) -> float | None:
    """Slope of a ReLU or leaky ReLU for negative input; None for any other module."""
    if type(layer) is nn.ReLU:
        return 0.0
    return float(layer.negative_slope) if type(layer) is nn.LeakyReLU else None


def with_slopes(layers: nn.Sequential) -> Iterator[tuple[nn.Module, float]]:
    """Yield each layer and the slope of the activation that follows it, which is 1 for none.

    An activation after a change of shape goes with the layer before.
    """
    each = list(layers)
    while each:
        layer = each.pop(0)
        after = 1 if each and type(each[0]) in (nn.Flatten, nn.Unflatten) else 0
        slope = None
        if type(layer) in _LAYERS and after < len(each):
            slope = _slope_of(each[after])
        if slope is not None:
            del each[after]
        yield layer, 1.0 if slope is None else slope


def _is_usual(layer: nn.Module, x: Tensor) -> bool:
    """Whether a layer is one of those that have a fused form, for such an input."""
    one: Any = layer
    if type(layer) not in _LAYERS or one.bias is None or _has_hooks(layer):
        return False
    if type(layer) is nn.Linear:
        return x.dim() == 2
    usual = one.padding_mode == "zeros" and one.dilation == (1, 1)
    return x.dim() == 4 and usual and not isinstance(one.padding, str)


def layer_of(layer: nn.Module, x: Tensor, slope: float = 1.0) -> Tensor:
    """Return act(layer(x))."""
    one: Any = layer
    if _is_usual(layer, x):
        form = None if type(layer) is nn.Linear else Convolution.of(layer, one.groups)
        if _dtype(x, one.weight) is not None:
            return _layer(x, one.weight, one.bias, form, slope)
        y = _end(x, one.weight, one.bias, form, slope)
        if y is not None:
            return y
        if type(layer) is nn.Conv2d and _onednn(layer, x):
            name, scalars = ("none", []) if slope == 1 else ("leaky_relu", [slope or _TINY])
            rest = (list(one.padding), list(one.stride), [1, 1], one.groups, name, scalars, "")
            return _ONEDNN._convolution_pointwise(x, one.weight, one.bias, *rest)
    y = layer(x)  # which a hook may keep: not in place
    return y if slope == 1 else F.leaky_relu(y, slope) if slope else F.relu(y)


def run(layers: nn.Sequential, x: Tensor) -> Tensor:
    """Return ``layers(x)``, in fewer calls."""
    if _plain() or _is_watched(layers):
        return layers(x)
    if not _fused(x) and torch.is_grad_enabled():
        return _with_ends(layers, x)
    for layer, slope in with_slopes(layers):
        x = layer_of(layer, x, slope)
    return x


def _with_ends(layers: nn.Sequential, x: Tensor) -> Tensor:
    """The layers as they are, but for a first and a last one that are faster with their ReLU."""
    each: list[Any] = list(layers)
    kinds, y = [type(layer) for layer in each], None
    if kinds[:2] == [nn.Conv2d, nn.ReLU] and _is_usual(each[0], x):
        one = each[0]
        y = _end(x, one.weight, one.bias, Convolution.of(one, one.groups), 0.0)
    if y is not None:
        x, each = y, each[2:]
    if kinds[-2:] != [nn.ReLU, ConvTranspose2d]:
        return nn.Sequential(*each)(x)
    *before, relu, one = each
    for layer in before:
        x = layer(x)
    if _is_usual(one, x):
        y = _end(x, one.weight, one.bias, Convolution.of(one, one.groups), 1.0, relu=True)
        if y is not None:
            return y
    return one(relu(x))


def _is_watched(layers: nn.Sequential) -> bool:
    """Whether somebody wants to see what goes in and out of a layer."""
    everywhere = (
        global_hooks._global_forward_hooks, global_hooks._global_forward_pre_hooks,
        global_hooks._global_backward_hooks, global_hooks._global_backward_pre_hooks,
    )  # fmt: skip
    return any(everywhere) or _has_hooks(layers) or any(map(_has_hooks, layers))
