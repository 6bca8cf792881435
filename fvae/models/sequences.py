"""A sequence of layers run in fewer calls: each with the activation that follows it."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks

from fvae.device import autocast_dtype
from fvae.models import forms
from fvae.models.convolution import Convolution, ConvTranspose2d
from fvae.models.layers import fused_dtype, on_cpu, one_layer

_ONEDNN: Any = torch.ops.mkldnn
# Slope of a ReLU in oneDNN, whose own one makes 0 of what is not a number: a run that diverged
# would hide it. What this leaves of a negative number is lost in the next sum.
_TINY = 1e-30
#: What has a fused form; not what derives from them.
_LAYERS = (nn.Linear, nn.Conv2d, ConvTranspose2d)


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
    if autocast_dtype("cpu") not in (None, torch.bfloat16):
        return False
    if not (x.dtype == layer.weight.dtype == torch.bfloat16) or x.numel() == 0 or forms.is_plain():
        return False
    return torch._C._get_mkldnn_enabled() and _has_onednn()


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
        or module._backward_pre_hooks
    )  # fmt: skip


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
        if fused_dtype(x, one.weight) is not None:
            return one_layer(x, one.weight, one.bias, form, slope)
        y = on_cpu(x, one.weight, one.bias, form, slope)
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
    if forms.is_plain() or _is_watched(layers):
        return layers(x)
    if not forms.is_fused(x) and torch.is_grad_enabled():
        return _with_ends(layers, x)
    for layer, slope in with_slopes(layers):
        x = layer_of(layer, x, slope)
    return x


def _ours(layer: Any, x: Tensor, slope: float, relu: bool = False) -> Tensor | None:
    """act(layer(x)), or of ReLU(x), where that is a convolution of ours on a CPU."""
    if type(layer) is nn.Linear or not _is_usual(layer, x):
        return None
    return on_cpu(x, layer.weight, layer.bias, Convolution.of(layer, layer.groups), slope, relu)


def _with_ends(layers: nn.Sequential, x: Tensor) -> Tensor:
    """The layers as they are, but for a first and a last one that are faster with their ReLU."""
    each: list[Any] = list(layers)
    if list(map(type, each[:2])) == [nn.Conv2d, nn.ReLU]:
        y = _ours(each[0], x, 0.0)
        if y is not None:
            x, each = y, each[2:]
    if list(map(type, each[-2:])) != [nn.ReLU, ConvTranspose2d]:
        return _one_by_one(each, x)
    *before, relu, one = each
    x = _one_by_one(before, x)
    y = _ours(one, x, 1.0, relu=True)
    return one(relu(x)) if y is None else y


def _one_by_one(layers: Sequence[Any], x: Tensor) -> Tensor:
    each = list(layers)
    while each:
        layer = each.pop(0)
        # Not where a Flatten stands between: what is ours ends at once.
        slope = 0.0 if each and type(each[0]) is nn.ReLU else 1.0
        y = _ours(layer, x, slope)
        if y is not None and slope == 0:
            del each[0]
        x = layer(x) if y is None else y
    return x


def _is_watched(layers: nn.Sequential) -> bool:
    """Whether somebody wants to see what goes in and out of a layer."""
    everywhere = (
        global_hooks._global_forward_hooks, global_hooks._global_forward_pre_hooks,
        global_hooks._global_backward_hooks, global_hooks._global_backward_pre_hooks,
    )  # fmt: skip
    return any(everywhere) or _has_hooks(layers) or any(map(_has_hooks, layers))
