"""Adam, all tensors of all groups in one call, or by gradients that are never multiplied out."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fvae.ops.checks import check_float
from fvae.ops.registry import implementation

_FLOATS, _COPIES = (torch.float32, torch.bfloat16, torch.float16), (torch.bfloat16, torch.float16)


class LinearGradients(NamedTuple):
    """Gradients of the weights and biases of linear layers ``y = act(x weight^T + bias)``, unmade.

    With delta the gradient of a layer's product (:func:`activation_backward`), that of its weight
    is ``(factor delta)^T x`` and that of its bias the sum of the rows of ``factor delta``.

    Attributes:
        grads: gradient of y for each of L layers, ``[rows, out]`` or ``[M, rows, out]``.
        ys: the layers' outputs, not looked at where the slope is 1.
        xs: their inputs, ``[rows, in]`` or ``[M, rows, in]``; float32, bfloat16 or float16, as
            grads and ys.
        slopes: of their activations for negative input: 0 for ReLU, 1 for none.
        factor: of each row, ``[rows]`` or ``[M, rows]``, float32; None is 1.
    """

    grads: Sequence[Tensor]
    ys: Sequence[Tensor]
    xs: Sequence[Tensor]
    slopes: Sequence[float]
    factor: Tensor | None = None


def fused_adam(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avg: Sequence[Tensor],
    exp_avg_sq: Sequence[Tensor],
    steps: Tensor,
    settings: Tensor,
    groups: Sequence[int] | None = None,
    copies: Sequence[Tensor] = (),
    *,
    eps: float = 1e-8,
    found_inf: Tensor | None = None,
    backend: str | None = None,
) -> None:
    """p -= lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps), of every tensor in place.

    Before that ``t += 1``, ``m = beta1 m + (1 - beta1) g`` and ``v = beta2 v + (1 - beta2) g^2``:
    what ``torch.optim.Adam(fused=True)`` computes without weight decay. Gradients are read as they
    come, and rounded copies of the new weights are written by the same pass over memory. The
    extension takes numbers below the smallest normal one, 1.2e-38, as 0: moments of dead units
    decay to them, and a processor computes a hundred times slower with them.

    Args:
        params: p, T tensors of any shape and layout; float32. A gradient of theirs is not followed.
        grads: g, one for each, of its shape; float32, bfloat16 or float16. Those that lie as p
            does, in one piece of memory and in the same order, are read at full speed.
        exp_avg: m, one for each, of its shape; float32, zeros at first.
        exp_avg_sq: v, likewise.
        steps: t, the number of updates of each tensor, ``[T]``; float32, zeros at first.
        settings: lr, beta1 and beta2 of each group, ``[G, 3]``; float32. Read by the device, so
            that a replayed CUDA graph takes those that are there now.
        groups: the group of each tensor, 0 to G - 1. None: all are of group 0.
        copies: none, or one for each, of its shape; bfloat16 or float16. They become the new
            weights, rounded to the nearest, ties to even.
        eps: what keeps the quotient finite.
        found_inf: ``[]``, float32; where it is 1 nothing at all changes. None: never.
        backend: None picks; otherwise a name in :data:`BACKENDS`.

    Raises:
        TypeError: a tensor has another dtype.
        ValueError: lists differ in length, shapes or devices differ, a group does not exist, or the
            backend does not exist.

    Source: Kingma & Ba 2015, Algorithm 1.
    """
    lists = {"params": params, "grads": grads, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    if copies:
        lists["copies"] = copies
    groups = [0] * len(params) if groups is None else list(groups)
    for name, tensors in lists.items():
        _check_list(name, tensors, params, steps.device)
    if len(groups) != len(params):
        raise ValueError(f"groups: got {len(groups)} entries, expected {len(params)}, one a tensor")
    _check_one("steps", steps, steps.shape == (len(params),), f"[{len(params)}]", steps.device)
    fits = settings.dim() == 2 and settings.shape[1] == 3
    _check_one("settings", settings, fits, "[G, 3]", steps.device)
    if found_inf is not None:
        _check_one("found_inf", found_inf, found_inf.shape == (), "[]", steps.device)
    for group in groups:
        if not 0 <= group < len(settings):
            raise ValueError(f"groups: got {group}, expected 0 to {len(settings) - 1}")
    run = implementation("fused_adam", backend)
    args = [list(lists.get(name, ())) for name in (*lists, "copies")][:5]
    with torch.no_grad():
        run(steps, settings, *args, groups, eps, found_inf)
    if not torch.compiler.is_compiling():
        # A graph of autograd that kept one of them for its backward pass is to notice.
        changed = [steps, *params, *exp_avg, *exp_avg_sq, *copies]
        torch.autograd.graph.increment_version(changed)


def linear_adam(
    gradients: LinearGradients,
    params: Sequence[Tensor],
    exp_avg: Sequence[Tensor],
    exp_avg_sq: Sequence[Tensor],
    steps: Tensor,
    settings: Tensor,
    group: int = 0,
    copies: Sequence[Tensor] = (),
    *,
    eps: float = 1e-8,
    backend: str | None = None,
) -> None:
    """:func:`fused_adam` of linear layers, by gradients that are made where they are used.

    On a GPU one launch makes a tile of the gradient, in float32, and updates its weights: no
    gradient is written to memory, or read. (Another, before, finds the scales of the tensors.)

    Args:
        gradients: of L layers.
        params: weight ``[out, in]`` and bias ``[out]`` of each layer in turn, 2 L tensors; or
            ``[M, out, in]`` and ``[M, out]``; float32.
        exp_avg: m, one for each, of its shape; float32, zeros at first.
        exp_avg_sq: v, likewise.
        steps: t, the number of updates of each tensor, ``[2 L]``, or of each model's,
            ``[2 L, M]``; float32, zeros at first.
        settings: lr, beta1 and beta2 of each group, ``[G, 3]``; float32.
        group: that of the layers, 0 to G - 1.
        copies: none, or one for each of params: the new weights, rounded; bfloat16 or float16.
        eps: what keeps the quotient finite.
        backend: None picks; otherwise a name in :data:`BACKENDS`.

    Raises:
        TypeError: a tensor has another dtype.
        ValueError: lists differ in length, shapes or devices differ, the group does not exist, or
            the backend does not exist.

    Source: Kingma & Ba 2015, Algorithm 1.
    """
    grads, ys, xs, slopes, factor = gradients
    lists = {"params": params, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    if copies:
        lists["copies"] = copies
    for name, tensors in lists.items():
        _check_list(name, tensors, params, steps.device)
    if len(params) != 2 * len(xs):
        raise ValueError(f"params: got {len(params)} tensors, expected 2 for each of {len(xs)} xs")
    for name, each in (("grads", grads), ("ys", ys), ("slopes", slopes)):
        if len(each) != len(xs):
            raise ValueError(f"{name}: got {len(each)} entries, expected {len(xs)}, as xs")
    for i, x in enumerate(xs):
        _check_layer(i, x, params[2 * i], params[2 * i + 1], {"grads": grads[i], "ys": ys[i]})
        if x.dtype != xs[0].dtype or x.shape[:-1] != xs[0].shape[:-1]:
            raise ValueError(f"xs[{i}]: got {list(x.shape)}, {x.dtype}, expected the rows and dtype"
                             f" of xs[0], {list(xs[0].shape)}, {xs[0].dtype}")  # fmt: skip
    shapes = [(len(params),)] + ([(len(params), len(xs[0]))] if xs and xs[0].dim() == 3 else [])
    _check_one("steps", steps, steps.shape in shapes, " or ".join(str(list(s)) for s in shapes),
               steps.device)  # fmt: skip
    fits = settings.dim() == 2 and settings.shape[1] == 3
    _check_one("settings", settings, fits, "[G, 3]", steps.device)
    if factor is not None and xs:
        rows = xs[0].shape[:-1]
        _check_one("factor", factor, factor.shape == rows, str(list(rows)), steps.device)
    if not 0 <= group < len(settings):
        raise ValueError(f"group: got {group}, expected 0 to {len(settings) - 1}")
    if not xs:
        return
    run = implementation("linear_adam", backend)
    states = [list(each) for each in (params, exp_avg, exp_avg_sq, copies)]
    with torch.no_grad():
        run(steps, settings, list(grads), list(ys), list(xs), list(slopes), *states, group, eps,
            factor)  # fmt: skip
    if not torch.compiler.is_compiling():
        changed = [steps, *params, *exp_avg, *exp_avg_sq, *copies]
        torch.autograd.graph.increment_version(changed)


def _check_layer(
    i: int, x: Tensor, weight: Tensor, bias: Tensor, of_output: dict[str, Tensor]
) -> None:
    check_float(f"xs[{i}]", x, (2, 3), "[rows, in] or [M, rows, in]")
    models, inputs = x.shape[:-2], x.shape[-1]
    if weight.shape != (*models, *weight.shape[-2:-1], inputs):
        raise ValueError(f"params[{2 * i}]: got {list(weight.shape)}, expected a weight for inputs"
                         f" {list(x.shape)}")  # fmt: skip
    outputs = weight.shape[-2]
    if bias.shape != (*models, outputs):
        raise ValueError(f"params[{2 * i + 1}]: got {list(bias.shape)}, expected"
                         f" {[*models, outputs]}, a bias for the weight before")  # fmt: skip
    for name, y in of_output.items():
        if y.shape != (*x.shape[:-1], outputs) or y.dtype != x.dtype:
            raise ValueError(
                f"{name}[{i}]: got {list(y.shape)}, {y.dtype}, expected"
                f" {[*x.shape[:-1], outputs]}, {x.dtype}, the layer's output"
            )


def _check_list(
    name: str, tensors: Sequence[Tensor], params: Sequence[Tensor], device: torch.device
) -> None:
    dtypes = {"grads": _FLOATS, "copies": _COPIES}.get(name, (torch.float32,))
    if len(tensors) != len(params):
        raise ValueError(f"{name}: got {len(tensors)} tensors, expected {len(params)}, as params")
    for i, (tensor, p) in enumerate(zip(tensors, params, strict=True)):
        if tensor.dtype not in dtypes:
            expected = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
            raise TypeError(f"{name}[{i}]: got {tensor.dtype}, expected {expected}")
        if tensor.shape != p.shape or tensor.device != device:
            raise ValueError(
                f"{name}[{i}]: got {list(tensor.shape)} on {tensor.device}, expected"
                f" {list(p.shape)} on {device}, as params[{i}] and steps"
            )


def _check_one(name: str, x: Tensor, fits: bool, shape: str, device: torch.device) -> None:
    if x.dtype != torch.float32:
        raise TypeError(f"{name}: got {x.dtype}, expected float32")
    if not fits or x.device != device:
        raise ValueError(f"{name}: got {list(x.shape)} on {x.device}, expected {shape} on {device}")
