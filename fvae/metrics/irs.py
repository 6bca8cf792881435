"""The interventional robustness score: how far can other factors move a dimension?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fvae.device import as_imported
from fvae.metrics.constants import IRS, IrsProtocol
from fvae.metrics.factors import Labels
from fvae.metrics.histogram import binned
from fvae.metrics.samples import Draw, draw


@dataclass(frozen=True, eq=False)
class IrsResult:
    """An interventional robustness score.

    Attributes:
        score: mean of ``dims``, weighted by ``deviation``, 0 to 1.
        dims: float64 ``[d]``, the robustness of each dimension to all factors but its own; 0 of a
            constant one.
        parents: int64 ``[d]``, the factor of each dimension; -1 of a constant one.
        robustness: float64 ``[d, K]``, 1 - the deviation that is left where factor k is fixed.
        deviation: float64 ``[d]``, the greatest distance of a code to the dimension's mean, in the
            unit of the codes.
        protocol: the constants.
        perfect: score of the code whose K dimensions are the factors themselves, from the same
            images. No ceiling: dimensions can share the factor that scores best.
        note: empty, or what a reader of the score should know.
    """

    score: float
    dims: np.ndarray
    parents: np.ndarray
    robustness: np.ndarray
    deviation: np.ndarray
    protocol: IrsProtocol
    perfect: float
    note: str = ""


@as_imported()
def irs_score(
    codes: Tensor | np.ndarray,
    factor_sizes: Sequence[int] | None = None,
    seed: int = 0,
    *,
    factors: Labels | None = None,
) -> IrsResult:
    """IRS = sum_j D_j max_k R[j, k] / sum_j D_j, R[j, k] = 1 - mean over values v of q_jkv / D_j.

    D_j = max |z_j - mean z_j| over 10,000 images. q_jkv is the 0.99 quantile, over the images whose
    factor k has value v, of the distance |z_j - their mean|: what is left to move z_j while factor
    k is fixed. The values are 20 bins of equal width of the factor's classes or numbers, as in the
    study: a factor of 20 classes or fewer keeps them. Noise does not score 0, as its quantile is
    less than its maximum: normal noise about 0.35, uniform noise about 0.01.

    Args:
        codes: means of the encoder, ``[N, d]``, floating point. Rows outside
            :func:`fvae.metrics.needed` are not read and may be NaN.
        factor_sizes: of a full grid, K sizes, each at least 2, whose product is N; row i of the
            codes then has the mixed-radix digits of i as factor classes, the last factor fastest.
        seed: key of the draw.
        factors: of any rows, in place of the sizes: labels ``[N, K]`` (or ``[N]``) of the codes'
            rows, or a :class:`fvae.metrics.Factors`, which says what is a class and what is
            real-valued.

    Returns:
        An :class:`IrsResult`. Constant dimensions have no weight; where all are, the score is 0
        and the note says so. With one factor the score says how well a dimension repeats.

    Raises:
        UserError: an argument has the wrong shape, dtype or value, a code that is read is not
            finite, or a factor has too few rows a value.

    Source: Suter et al. 2019, section 5; estimator and quantile of Locatello et al. 2019.
    """
    sample, _ = draw(codes, factor_sizes, factors, seed, IRS.samples)
    robustness, deviation = _robustness(sample.codes, sample)
    moves = deviation > 0
    dims = np.where(moves, robustness.max(1), 0.0)
    parents = np.where(moves, robustness.argmax(1), -1)
    perfect = _mean(*_robustness(sample.labelled, sample))
    note = f"the factors themselves score {perfect:.3f}" if perfect < 0.9995 else ""
    if not moves.any():
        note = "no dimension varies"
    score = _mean(robustness, deviation)
    return IrsResult(score, dims, parents, robustness, deviation, IRS, perfect, note)


def _mean(robustness: np.ndarray, deviation: np.ndarray) -> float:
    """Mean robustness to the best factor, weighted by the deviation; 0 where nothing moves."""
    return float(np.average(robustness.max(1), weights=deviation)) if deviation.any() else 0.0


def _robustness(codes: np.ndarray, sample: Draw) -> tuple[np.ndarray, np.ndarray]:
    """Robustness [d, K], 0 of a constant dimension, and greatest deviations [d]."""
    deviation = np.abs(codes - codes.mean(0)).max(0)
    # Rounding moves the mean of a constant column: compare its ends instead.
    deviation[codes.max(0) == codes.min(0)] = 0.0
    left = np.empty((codes.shape[1], len(sample.labels)))
    for k, labels in enumerate(sample.labels):
        v = binned(labels, IRS.bins)
        groups = [codes[v == value] for value in np.unique(v)]
        each = [
            np.quantile(np.abs(group - group.mean(0)), IRS.quantile, axis=0) for group in groups
        ]
        left[:, k] = np.mean(each, axis=0)
    moves = deviation > 0
    share = left / np.where(moves, deviation, 1.0)[:, None]
    return np.where(moves[:, None], 1 - share, 0.0), deviation
