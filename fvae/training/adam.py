"""Adam over PyTorch's fused kernel, without ``torch.optim``.

``torch.optim`` loads all of PyTorch's compiler at its first use, which nothing here calls: it took
half of the time from a command's start to its first step.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

#: What keeps the quotient finite: PyTorch's default, and the one of the papers' own code.
EPSILON = 1e-8


class Adam:
    """m / (sqrt(v) + eps) with bias correction (Kingma & Ba 2015), all tensors in one call.

    Bit for bit what ``torch.optim.Adam(fused=True, capturable=True)`` computes.

    Args:
        groups: for each player ``params``, ``lr`` and ``betas``.

    Attributes:
        param_groups: the groups.
        state: for each parameter ``step``, float32 ``[]``, ``exp_avg`` and ``exp_avg_sq``.
        found_inf: float32 ``[]``; where it is 1 the device leaves out the update. None: never.
    """

    def __init__(self, groups: Sequence[dict[str, Any]]) -> None:
        self.param_groups = [{**group, "params": list(group["params"])} for group in groups]
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = {
                    "step": torch.zeros((), device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        self.found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            states = [self.state[p] for p in parameters]
            steps = [s["step"] for s in states]
            torch._foreach_add_(steps, 1)
            torch._fused_adam_(
                parameters,
                [p.grad for p in parameters],
                [s["exp_avg"] for s in states],
                [s["exp_avg_sq"] for s in states],
                [],
                steps,
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=0.0,
                eps=EPSILON,
                amsgrad=False,
                maximize=False,
                found_inf=self.found_inf,
            )
            if self.found_inf is not None:
                torch._foreach_sub_(steps, [self.found_inf] * len(steps))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients; ``set_to_none=False`` keeps their memory."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if set_to_none:
                    parameter.grad = None
                elif parameter.grad is not None:
                    parameter.grad.zero_()
