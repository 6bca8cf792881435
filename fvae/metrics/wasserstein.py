"""The Wasserstein correlation of the Gaussian that has the covariance of the codes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fvae.device import as_imported
from fvae.metrics.constants import GAUSSIAN, SamplesProtocol
from fvae.metrics.factors import Labels
from fvae.metrics.gaussian_tc import covariance_of
from fvae.metrics.samples import draw_codes


@dataclass(frozen=True, eq=False)
class WassersteinResult:
    """A Wasserstein correlation of a Gaussian.

    Attributes:
        score: squared 2-Wasserstein distance, in the unit of the codes squared, at least 0; less is
            better.
        normalised: the score over the trace of the covariance, 0 to less than 2.
        covariance: float64 ``[d, d]``, of the codes, in their unit squared.
        protocol: the constants.
        note: empty, or what a reader of the score should know.
    """

    score: float
    normalised: float
    covariance: np.ndarray
    protocol: SamplesProtocol
    note: str = ""


@as_imported()
def wasserstein_score(
    codes: Tensor | np.ndarray,
    factor_sizes: Sequence[int] | None = None,
    seed: int = 0,
    *,
    factors: Labels | None = None,
) -> WassersteinResult:
    """W = 2 tr S - 2 tr (D^1/2 S D^1/2)^1/2, S the covariance of the codes, D its diagonal.

    It is the squared 2-Wasserstein distance of the Gaussian of that covariance and the product of
    its marginals; ``normalised`` is W / tr S. The codes are 10,000 rows drawn with replacement, or
    all where there are no more. A constant dimension adds nothing. d equal dimensions have the
    normalised 2 - 2 / sqrt d.

    Args:
        codes: means of the encoder, ``[N, d]``, floating point. Rows outside
            :func:`fvae.metrics.needed` are not read and may be NaN.
        factor_sizes: sizes of a full grid, whose product is N; without effect.
        seed: key of the draw.
        factors: labels of the rows, or a :class:`fvae.metrics.Factors`; without effect.

    Returns:
        A :class:`WassersteinResult`. Of one dimension, and of constant ones, the score is 0.

    Raises:
        UserError: an argument has the wrong shape, dtype or value, there are fewer than two rows,
            or a code that is read is not finite.

    Source: Locatello et al. 2019, section 5.4.
    """
    covariance = covariance_of(draw_codes(codes, factor_sizes, factors, seed, GAUSSIAN.samples))
    scale = np.sqrt(np.diag(covariance))
    trace = float(np.trace(covariance))
    if not trace > 0:
        return WassersteinResult(0.0, 0.0, covariance, GAUSSIAN, "no dimension varies")
    values = np.linalg.eigvalsh(scale[:, None] * covariance * scale)
    distance = 2 * trace - 2 * float(np.sqrt(np.maximum(values, 0.0)).sum())
    # What is left of a difference of such sums is rounding.
    distance = distance if distance > 1e-12 * trace else 0.0
    note = "one dimension varies" if (scale > 0).sum() == 1 else ""
    return WassersteinResult(distance, distance / trace, covariance, GAUSSIAN, note)
