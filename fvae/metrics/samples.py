"""Codes and factor labels of a random draw of images, for the metrics that learn from samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from torch import Tensor

from fvae.errors import UserError
from fvae.metrics.checks import codes_of, require_finite, seed_of
from fvae.metrics.factors import Factors, Labels, Unsuited, factors_of
from fvae.metrics.sampling import samples_of, unlabelled_rows
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
    if not given.sizes:
        raise Unsuited("factors: none is known of these rows, and this metric needs one or more")
    codes, seed = codes_of(codes, given), seed_of(seed)
    first, second = samples_of(given, train, test, Philox(seed, device=codes.device))
    return Draw.of(codes, given, first), Draw.of(codes, given, second)


def draw_codes(
    codes: Tensor | np.ndarray,
    factor_sizes: Sequence[int] | None,
    factors: Labels | None,
    seed: int,
    count: int,
) -> np.ndarray:
    """Check the arguments of a score that asks for no factors, and draw some of the codes.

    Args:
        codes: as the metric takes them.
        factor_sizes: as the metric takes them; without factors they may be None, too.
        factors: as the metric takes them.
        seed: as the metric takes it.
        count: of the rows; all where there are no more.

    Returns:
        float64 ``[n, d]``, n at least 2.

    Raises:
        UserError: an argument has the wrong shape, dtype or value, a code that was drawn is not
            finite, or there are fewer than two rows.
    """
    if factor_sizes is None and factors is None:
        given = Factors.unknown((np.shape(codes) or (0,))[0])
    else:
        given = factors_of(factor_sizes, factors, codes)
    codes, seed = codes_of(codes, given), seed_of(seed)
    if len(codes) < 2:
        raise UserError(f"codes: got {len(codes)} rows, expected at least 2")
    rows = unlabelled_rows(given, count, Philox(seed, device=codes.device))
    require_finite(codes, lambda: rows)
    return codes[rows].double().cpu().numpy()
