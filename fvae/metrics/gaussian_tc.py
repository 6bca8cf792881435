"""The total correlation of the Gaussian that has the covariance of the codes.

Like all scores that ask for no factors, it says how much dimensions depend on each other, less
being better, and not whether one means anything: a collapsed code is independent, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fvae.device import as_imported
from fvae.metrics.constants import GAUSSIAN, SamplesProtocol
from fvae.metrics.factors import Labels
from fvae.metrics.samples import draw_codes


@dataclass(frozen=True, eq=False)
class GaussianTcResult:
    """A total correlation of a Gaussian.

    Attributes:
        score: nats, at least 0; less is better.
        covariance: float64 ``[d, d]``, of the codes, in their unit squared.
        protocol: the constants.
        note: empty, or what a reader of the score should know.
    """

    score: float
    covariance: np.ndarray
    protocol: SamplesProtocol
    note: str = ""


@as_imported()
def gaussian_tc_score(
    codes: Tensor | np.ndarray,
    factor_sizes: Sequence[int] | None = None,
    seed: int = 0,
    *,
    factors: Labels | None = None,
) -> GaussianTcResult:
    """TC = (sum_j log S_jj - log det S) / 2, S the covariance of the codes, in nats.

    It is the KL divergence of the Gaussian of that covariance from the product of its marginals,
    and does not change with the scale of a dimension. The codes are 10,000 rows drawn with
    replacement, or all where there are no more. A constant dimension depends on none and is left
    out. Of linearly dependent dimensions the total correlation is infinite: the score is then the
    greatest that float64 tells from infinite, and the note says so.

    Args:
        codes: means of the encoder, ``[N, d]``, floating point. Rows outside
            :func:`fvae.metrics.needed` are not read and may be NaN.
        factor_sizes: sizes of a full grid, whose product is N; without effect.
        seed: key of the draw.
        factors: labels of the rows, or a :class:`fvae.metrics.Factors`; without effect.

    Returns:
        A :class:`GaussianTcResult`. Of one dimension the score is 0.

    Raises:
        UserError: an argument has the wrong shape, dtype or value, there are fewer than two rows,
            or a code that is read is not finite.

    Source: Locatello et al. 2019, section 5.4.
    """
    covariance = covariance_of(draw_codes(codes, factor_sizes, factors, seed, GAUSSIAN.samples))
    scale = np.sqrt(np.diag(covariance))
    moves = scale > 0
    correlation = (covariance / np.outer(*(np.where(moves, scale, 1.0),) * 2))[moves][:, moves]
    if len(correlation) < 2:
        note = "one dimension varies" if len(correlation) else "no dimension varies"
        return GaussianTcResult(0.0, covariance, GAUSSIAN, note)
    # log det S - sum_j log S_jj is the log determinant of the correlations.
    values = np.linalg.eigvalsh(correlation)
    floor = len(values) * np.finfo(np.float64).eps
    note = "dimensions are linearly dependent: infinite" if values.min() <= floor else ""
    score = max(0.0, float(-np.log(np.maximum(values, floor)).sum() / 2))
    return GaussianTcResult(score, covariance, GAUSSIAN, note)


def covariance_of(codes: np.ndarray) -> np.ndarray:
    """Covariance [d, d] of codes [n, d], over n - 1; exactly 0 of a constant dimension."""
    centred = np.where(codes.max(0) > codes.min(0), codes - codes.mean(0), 0.0)
    return np.asarray(centred.T @ centred / (len(codes) - 1))
