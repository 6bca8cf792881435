"""Codes and factor labels of a random draw of images, for the metrics that learn from samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from torch import Tensor

from fvae.metrics.checks import codes_of, require_finite, seed_of
from fvae.metrics.factors import Factors, Labels, factors_of
from fvae.metrics.sampling import samples_of
from fvae.philox import Philox


@dataclass(frozen=True, eq=False)
class Draw:
    """Some of the images.

    Attributes:
        codes: float64 ``[n, d]``.
        labels: of each factor int64 ``[n]``, classes, or float64 ``[n]``, real values.
        sizes: number of values of each factor; 0 of a real-valued one.
    """

    codes: np.ndarray
    labels: list[np.ndarray]
    sizes: tuple[int, ...]

    @property
    def labelled(self) -> np.ndarray:
        """The perfect code, float64 ``[n, K]``: dimension k is factor k."""
        return np.stack(self.labels, axis=1).astype(np.float64)

    @classmethod
    def of(cls, codes: Tensor, factors: Factors, rows: Tensor) -> Self:
        """Take some rows.

        Raises:
            UserError: a code in one of them is not finite.
        """
        require_finite(codes, lambda: rows)
        return cls(codes[rows].double().cpu().numpy(), factors.at(rows), factors.sizes)


def draw(
    codes: Tensor | np.ndarray,
    factor_sizes: Sequence[int] | None,
    factors: Labels | None,
    seed: int,
    train: int,
    test: int = 0,
) -> tuple[Draw, Draw]:
    """Check the arguments of a metric that learns from samples, and draw them.

    Args:
        codes: as the metric takes them.
        factor_sizes: as the metric takes them.
        factors: as the metric takes them.
        seed: as the metric takes it.
        train: images of the training sample.
        test: images of the test sample; 0 where the metric has none.

    Returns:
        the training sample and the test sample.

    Raises:
        UserError: an argument has the wrong shape, dtype or value, a code that was drawn is not
            finite, or the rows are too few to learn a factor from.
    """
    given = factors_of(factor_sizes, factors, codes)
    codes, seed = codes_of(codes, given), seed_of(seed)
    first, second = samples_of(given, train, test, Philox(seed, device=codes.device))
    return Draw.of(codes, given, first), Draw.of(codes, given, second)
