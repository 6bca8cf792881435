"""The loss scale of a float16 run, kept on the device: no step waits for it.

Gradients in half precision end at 6e-8. A run in float16 multiplies its loss by a factor before
the backward pass and divides the weights' gradients by it after; where one of them is not finite,
the update is left out and the factor halved; after many updates without that it is doubled
(Micikevicius et al. 2018, and PyTorch's ``GradScaler``, whose numbers are
:data:`fvae.config.LOSS_SCALE`).

A run has one factor for both of its players; of M stacked runs each has its own, and leaves out
its own updates alone, so that it takes the steps that it would take alone.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from fvae.config import LOSS_SCALE


class LossScale:
    """Factor and count of one run, or of M stacked ones.

    Args:
        device: of the weights.
        models: M; None is a run alone.
    """

    def __init__(self, device: torch.device, models: int | None = None) -> None:
        shape = () if models is None else (models,)
        self.factor = torch.full(shape, LOSS_SCALE.first, device=device)
        self.good = torch.zeros(shape, dtype=torch.int32, device=device)
        self._bad = torch.zeros(shape, device=device)

    def state(self) -> dict[str, Tensor]:
        """Return what the next step depends on, by name."""
        return {"loss_scale.factor": self.factor, "loss_scale.good_updates": self.good}

    def unscale(self, gradients: Iterable[Tensor], model: int | None = None) -> Tensor:
        """Divide a run's gradients by its factor, in place.

        Returns:
            ``[]`` float32, 1 where one of them is not finite, else 0: Adam's ``found_inf``.
        """
        pick = ... if model is None else model
        bad = self._bad[pick]
        bad.zero_()
        torch._amp_foreach_non_finite_check_and_unscale_(
            list(gradients), bad, self.factor[pick].reciprocal()
        )
        return bad

    def update(self) -> None:
        """Halve the factors of the runs whose last update was left out; double those long due."""
        bad = self._bad > 0
        good = torch.where(bad, 0, self.good + 1)
        due = good == LOSS_SCALE.interval
        raised = self.factor * LOSS_SCALE.growth
        raised = torch.where(due & raised.isfinite(), raised, self.factor)
        self.factor.copy_(torch.where(bad, self.factor * LOSS_SCALE.backoff, raised))
        self.good.copy_(torch.where(due, 0, good))
