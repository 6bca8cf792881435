"""Codes and factor classes of a random draw of images, for the metrics that learn from samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from torch import Tensor

from fvae.metrics.checks import codes_of, factor_sizes_of, require_finite, seed_of
from fvae.metrics.sampling import (
    TEST_SAMPLE_LANE,
    TRAIN_SAMPLE_LANE,
    classes_of,
    uniform_rows,
)
from fvae.philox import Philox


@dataclass(frozen=True, eq=False)
class Draw:
    """Images drawn with replacement.

    Attributes:
        codes: float64 ``[n, d]``.
        classes: int64 ``[n, K]``.
        sizes: number of values of each factor.
    """

    codes: np.ndarray
    classes: np.ndarray
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, codes: Tensor, sizes: tuple[int, ...], count: int, seed: int, lane: int) -> Self:
        """Draw ``count`` images of the grid.

        Raises:
            UserError: a code that was drawn is not finite.
        """
        rng = Philox(seed, device=codes.device).at_lane(lane)
        rows = uniform_rows(sizes, count, rng)
        require_finite(codes, lambda: rows)
        classes = classes_of(rows, sizes).cpu().numpy()
        return cls(codes[rows].double().cpu().numpy(), classes, sizes)


def draw(
    codes: Tensor | np.ndarray, factor_sizes: Sequence[int], seed: int, *counts: int
) -> list[Draw]:
    """Check the arguments of a metric that learns from samples, and draw them.

    Args:
        codes: as the metric takes them.
        factor_sizes: as the metric takes them.
        seed: as the metric takes it.
        counts: images of the training sample and, where the metric has one, of the test sample.

    Returns:
        a :class:`Draw` for each count.

    Raises:
        UserError: an argument has the wrong shape, dtype or value, or a code that was drawn is
            not finite.
    """
    sizes = factor_sizes_of(factor_sizes)
    codes, seed = codes_of(codes, sizes), seed_of(seed)
    lanes = (TRAIN_SAMPLE_LANE, TEST_SAMPLE_LANE)
    return [Draw.of(codes, sizes, n, seed, lane) for n, lane in zip(counts, lanes, strict=False)]
