"""Codes and factor classes of a random draw of images, for the metrics that learn from samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from torch import Tensor

from fvae.metrics.checks import codes_of, factor_sizes_of, require_finite
from fvae.metrics.sampling import classes_of, uniform_rows
from fvae.philox import Philox


def open_codes(
    codes: Tensor | np.ndarray, factor_sizes: Sequence[int]
) -> tuple[Tensor, tuple[int, ...]]:
    """Check codes and factor sizes together; see :mod:`fvae.metrics.checks`."""
    sizes = factor_sizes_of(factor_sizes)
    return codes_of(codes, sizes), sizes


@dataclass(frozen=True, eq=False)
class Draw:
    """Images drawn with replacement.

    Attributes:
        codes: float64 ``[n, d]``.
        classes: int64 ``[n, K]``.
    """

    codes: np.ndarray
    classes: np.ndarray

    @classmethod
    def of(cls, codes: Tensor, sizes: Sequence[int], count: int, seed: int, lane: int) -> Self:
        """Draw ``count`` images of the grid.

        Raises:
            UserError: a code that was drawn is not finite.
        """
        rng = Philox(seed, device=codes.device).at_lane(lane)
        rows = uniform_rows(sizes, count, rng)
        require_finite(codes, lambda: rows)
        return cls(codes[rows].double().cpu().numpy(), classes_of(rows, sizes).cpu().numpy())
