"""Adam of a training step: the tensors of both players in one call of :func:`ops.fused_adam`.

Networks that multiply in bfloat16 are copies of the weights: their gradients are read as they
come, and the update itself writes them anew, so that no step casts a weight or a gradient.

Gradients of linear layers may also come unmade (:meth:`Adam.take`): :func:`ops.linear_adam` then
makes them tile by tile where it updates the weights, and they never go to memory.
"""

import math
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from fvae import ops
from fvae.config import TrainConfig

#: What keeps the quotient finite: PyTorch's default, and the one of the papers' own code.
EPSILON = 1e-8


def schedule_of(config: TrainConfig) -> Callable[[int], float] | None:
    """Return t -> min(1, (t + 1) / W) of a warm-up of W steps, then (1 + cos(pi s)) / 2 if cosine.

    That is the share of their learning rates that both players have in a step, t being the number
    of steps before it and s = (t - W) / (steps - W). None where it is 1 in every step.

    Source: Loshchilov & Hutter 2017, equation 5, of one period that ends at 0.
    """
    warmup, steps = config.learning_rate_warmup_steps, config.steps
    falls = config.learning_rate_schedule == "cosine"

    def share(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = (step - warmup) / max(1, steps - warmup)
        return (1 + math.cos(math.pi * min(1.0, done))) / 2 if falls else 1.0

    return share if warmup or falls else None


class Adam:
    """m / (sqrt(v) + eps) with bias correction (Kingma & Ba 2015), all tensors in one call.

    Args:
        groups: for each player ``params``, ``lr`` and ``betas``; and ``leaves`` where other tensors
            of the same shapes have the gradients: they become the new weights, rounded.
        backend: of :func:`fvae.ops.fused_adam`.

    Attributes:
        param_groups: the groups.
        state: for each parameter ``step``, float32 ``[]``, ``exp_avg`` and ``exp_avg_sq``.
        found_inf: float32 ``[]``; where it is 1 the device leaves out the update. None: never.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], backend: str | None = None) -> None:
        self.param_groups = list(groups)
        self.backend = backend
        self.params = [p for group in groups for p in group["params"]]
        self.leaves = [p for group in groups for p in group.get("leaves", group["params"])]
        self._copied = self.leaves[0] is not self.params[0]
        self._groups = [i for i, group in enumerate(groups) for _ in group["params"]]
        device = self.params[0].device
        rates = [[group["lr"], *group["betas"]] for group in groups]
        self._settings = torch.tensor(rates, dtype=torch.float32, device=device)
        self._steps = torch.zeros(len(self.params), device=device)
        self.state: dict[Tensor, dict[str, Tensor]] = {
            parameter: {
                "step": self._steps[i],
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
            for i, parameter in enumerate(self.params)
        }
        self.found_inf: Tensor | None = None
        self._taken: dict[int, ops.LinearGradients] = {}
        self._gather()

    def _gather(self) -> None:
        """List once what each step hands over."""
        states = [self.state[p] for p in self.params]
        self._exp_avg = [s["exp_avg"] for s in states]
        self._exp_avg_sq = [s["exp_avg_sq"] for s in states]
        self._copies = [leaf.detach() for leaf in self.leaves] if self._copied else []

    def scale_rates(self, share: float) -> None:
        """Let each group have this share of its ``lr`` from now on, in a replayed graph too.

        The graph reads the rates where they are on the device, which nobody waits for.
        """
        for rate, group in zip(self._settings[:, 0], self.param_groups, strict=True):
            rate.fill_(share * group["lr"])

    def take(self, group: int, gradients: ops.LinearGradients) -> None:
        """Have a group's gradients, unmade; its parameters are each layer's weight and bias.

        The next step uses them. Leaves of the group then have no ``grad``.

        Raises:
            RuntimeError: it has those of another backward pass; what was to be their sum is lost.
        """
        if group in self._taken:
            raise RuntimeError(f"group {group}: two backward passes before a step, expected one")
        self._taken[group] = gradients

    def step(self) -> None:
        """Update every parameter that has a gradient, made or unmade."""
        for group, gradients in self._taken.items():
            self._linear_step(group, gradients)
        self._taken.clear()
        having = groupby(range(len(self.leaves)), lambda i: self.leaves[i].grad is not None)
        for has, run in having:
            if has:
                first, *rest = run
                self._step(slice(first, first + 1 + len(rest)))

    def _step(self, of: slice) -> None:
        ops.fused_adam(
            self.params[of],
            [leaf.grad for leaf in self.leaves[of]],
            self._exp_avg[of],
            self._exp_avg_sq[of],
            self._steps[of],
            self._settings,
            self._groups[of],
            self._copies[of],
            eps=EPSILON,
            found_inf=self.found_inf,
            backend=self.backend,
        )

    def _linear_step(self, group: int, gradients: ops.LinearGradients) -> None:
        first = self._groups.index(group)
        of = slice(first, first + self._groups.count(group))
        ops.linear_adam(
            gradients,
            self.params[of],
            self._exp_avg[of],
            self._exp_avg_sq[of],
            self._steps[of],
            self._settings,
            group,
            self._copies[of],
            eps=EPSILON,
            backend=self.backend,
        )

    def split(self) -> dict[Tensor, list[torch.nn.Parameter]]:
        """Let each tensor ``[M, ...]`` be M tensors, whose updates are counted apart.

        Returns:
            the M views of each parameter, whose gradients are now read.
        """
        parts = {p: [torch.nn.Parameter(part) for part in p.detach().unbind()] for p in self.params}
        # All tensors of a model, then those of the next: together they are one call.
        self.params = self.leaves = [
            part for each in zip(*parts.values(), strict=True) for part in each
        ]
        self._groups *= len(self.params) // len(parts)
        self._steps = self._steps.new_zeros(len(self.params))
        count = {part: step for part, step in zip(self.params, self._steps, strict=True)}
        for parameter, each in parts.items():
            whole = self.state[parameter]
            whole["step"] = count[each[0]]
            for m, part in enumerate(each):
                moments = {name: whole[name][m] for name in ("exp_avg", "exp_avg_sq")}
                self.state[part] = {"step": count[part]} | moments
        self._gather()
        return parts

    @torch.no_grad()
    def copy(self) -> None:
        """Make the leaves the weights as they are, where something else has set these."""
        if self._copied:
            torch._foreach_copy_(self.leaves, self.params)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients; ``set_to_none=False`` keeps their memory."""
        self._taken.clear()
        for leaf in self.leaves:
            if set_to_none:
                leaf.grad = None
            elif leaf.grad is not None:
                leaf.grad.zero_()
