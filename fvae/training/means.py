"""Means of the loss terms between two lines of the log, of one run or of M stacked ones."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fvae.training.distributed import World
from fvae.training.objectives import Terms


class Means:
    """Sums of the loss terms since the last log line, kept on the device without a sync.

    Args:
        models: M, where each term leads with M; None for the terms of one run.
    """

    def __init__(self, models: int | None = None) -> None:
        self.stacked, self.models = models is not None, models or 1
        self.names: list[str] = []
        self.widths: list[int | None] = []  # None for a term of one number
        self.sums: Tensor | None = None  # [M, numbers]
        self.counts = [0] * self.models

    def add(self, terms: Terms) -> None:
        """Add the terms of one step."""
        self.names = list(terms)
        self.widths = [t.shape[-1] if t.dim() > int(self.stacked) else None for t in terms.values()]
        rows = torch.cat([t.reshape(self.models, -1).float() for t in terms.values()], dim=1)
        self.sums = rows if self.sums is None else self.sums + rows
        self.counts = [count + 1 for count in self.counts]

    def share(self, world: World) -> None:
        """Replace the sums by their mean over the processes; what is added later adds to it."""
        self.sums = world.mean(self.sums)

    def are_finite(self) -> list[bool]:
        """Return for each model whether all its sums are finite numbers."""
        if self.sums is None:
            return [True] * self.models
        return self.sums.isfinite().all(1).tolist()

    def of(self, m: int = 0) -> dict[str, float | list[float]]:
        """Return model m's means by name; a list where a term has several numbers."""
        assert self.sums is not None, "no step was added"
        values = (self.sums[m] / self.counts[m]).tolist()
        means: dict[str, float | list[float]] = {}
        for name, width in zip(self.names, self.widths, strict=True):
            means[name] = values[0] if width is None else values[:width]
            values = values[width or 1 :]
        return means

    def clear(self) -> None:
        """Start anew."""
        self.sums, self.counts = None, [0] * self.models

    def state(self, m: int = 0) -> dict[str, Tensor]:
        """Return what model m's checkpoint keeps."""
        return {
            "log.sums": torch.empty(0) if self.sums is None else self.sums[m],
            "log.count": torch.tensor(self.counts[m]),
        }

    def restore(self, states: Sequence[dict[str, Tensor]], device: torch.device) -> None:
        """Take over each model's state, of :meth:`state`."""
        self.counts = [int(state.get("log.count", torch.tensor(0))) for state in states]
        if any(self.counts):
            rows = [state["log.sums"] for state in states]
            width = max(row.numel() for row in rows)
            # A model that has just begun beside others that have not.
            rows = [row if row.numel() else torch.zeros(width) for row in rows]
            self.sums = torch.stack(rows).to(device)
