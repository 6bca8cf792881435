"""Adam in plain PyTorch: the reference's."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fvae.ops.layer_formulas import linear_backward


def fused_adam(
    steps: Tensor,
    settings: Tensor,
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avg: Sequence[Tensor],
    exp_avg_sq: Sequence[Tensor],
    copies: Sequence[Tensor],
    groups: Sequence[int],
    eps: float,
    found_inf: Tensor | None = None,
) -> None:
    """p -= lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + eps); copies follow p."""
    skip = None if found_inf is None else found_inf == 1
    for i, (p, m, v) in enumerate(zip(params, exp_avg, exp_avg_sq, strict=True)):
        lr, beta1, beta2 = settings[groups[i]].double()
        t, g = steps[i].double() + 1, grads[i].float()
        mean = beta1.float() * m + (1 - beta1).float() * g
        square = beta2.float() * v + (1 - beta2).float() * g * g
        step, root = (lr / (1 - beta1**t)).float(), (1 / (1 - beta2**t).sqrt()).float()
        new = [mean, square, p - step * mean / (square.sqrt() * root + eps)]
        for old, value in zip((m, v, p), new, strict=True):
            old.copy_(value if skip is None else torch.where(skip, old, value))
        if copies:
            copies[i].copy_(p if skip is None else torch.where(skip, copies[i], p.to(copies[i])))
    steps.add_(1.0 if skip is None else 1.0 - skip.float())


def linear_adam(
    steps: Tensor, settings: Tensor, grads: Sequence[Tensor], ys: Sequence[Tensor],
    xs: Sequence[Tensor], slopes: Sequence[float], params: Sequence[Tensor],
    exp_avg: Sequence[Tensor], exp_avg_sq: Sequence[Tensor], copies: Sequence[Tensor],
    group: int, eps: float, factor: Tensor | None = None,
) -> None:  # fmt: skip
    """Adam of weights and biases by the gradients that linear_backward makes, in float32."""
    made: list[Tensor] = []
    for layer in zip(grads, ys, xs, params[::2], slopes, strict=True):
        made += linear_backward(*layer, torch.float32, False, factor)[1:]
    lists = (params, made, exp_avg, exp_avg_sq, copies)
    groups = [group] * len(params)
    if steps.dim() == 1:
        fused_adam(steps, settings, *lists, groups, eps)
        return
    for m, own in enumerate(steps.unbind(-1)):  # each model counts its own updates
        p, g, mean, square, rounded = ([x[m] for x in each] for each in lists)
        fused_adam(own, settings, p, g, mean, square, rounded, groups, eps)
