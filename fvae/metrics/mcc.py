"""The mean correlation coefficient of factors and the dimensions that are matched with them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fvae.device import as_imported
from fvae.metrics.constants import MCC, SamplesProtocol
from fvae.metrics.factors import Labels
from fvae.metrics.samples import draw


@dataclass(frozen=True, eq=False)
class MccResult:
    """A mean correlation coefficient.

    Attributes:
        score: mean over factors of |Pearson's correlation| with the matched dimension, 0 to 1.
        spearman: the same of ranks, with a match of its own.
        matched: int64 ``[K]``, the dimension of each factor; -1 where there are too few.
        correlation: float64 ``[d, K]``, |Pearson's correlation|; 0 of a constant dimension.
        protocol: the constants.
        ceiling: min(d, K) / K, d the dimensions that vary: a factor without a dimension counts as
            0.
        note: empty, or what a reader of the score should know.
    """

    score: float
    spearman: float
    matched: np.ndarray
    correlation: np.ndarray
    protocol: SamplesProtocol
    ceiling: float = 1.0
    note: str = ""


@as_imported()
def mcc_score(
    codes: Tensor | np.ndarray,
    factor_sizes: Sequence[int] | None = None,
    seed: int = 0,
    *,
    factors: Labels | None = None,
) -> MccResult:
    """MCC = greatest sum over a one-to-one match of |corr(z_j, v_k)|, over K.

    The correlation is Pearson's, of 10,000 images; ``spearman`` is the same of ranks, which any
    monotone map of a dimension leaves as they are. A class goes by its number, in the order of the
    values, so a factor without an order (a shape) has no correlation to be found; the match is the
    best of all. Of fewer dimensions than factors, the factors without one count as 0.

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
        An :class:`MccResult`. Codes that are all constant score 0, and the note says so.

    Raises:
        UserError: an argument has the wrong shape, dtype or value, a code that is read is not
            finite, or a factor has too few rows a value.

    Source: Hyvärinen & Morioka 2016, "Unsupervised feature extraction by time-contrastive
    learning"; Khemakhem et al. 2020.
    """
    from scipy.stats import rankdata

    sample, _ = draw(codes, factor_sizes, factors, seed, MCC.samples)
    labels = sample.labelled
    correlation = _correlation(sample.codes, labels)
    score, matched = _match(correlation)
    ranks = (rankdata(sample.codes, axis=0), rankdata(labels, axis=0))
    varying = int((sample.codes.max(0) > sample.codes.min(0)).sum())
    return MccResult(
        score=score,
        spearman=_match(_correlation(*ranks))[0],
        matched=matched,
        correlation=correlation,
        protocol=MCC,
        ceiling=min(varying, labels.shape[1]) / labels.shape[1],
        note="" if varying else "no dimension varies",
    )


def _match(correlation: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean over factors of the matched correlations, and the dimension of each factor."""
    from scipy.optimize import linear_sum_assignment

    dims, factors = linear_sum_assignment(correlation, maximize=True)
    matched = np.full(correlation.shape[1], -1)
    matched[factors] = dims
    return float(correlation[dims, factors].sum() / correlation.shape[1]), matched


def _correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """|Pearson's correlation| of columns [n, d] and [n, K]: [d, K]; 0 of a constant column."""
    units = []
    for columns in (x, y):
        varies = columns.max(0) > columns.min(0)
        centred = np.where(varies, columns - columns.mean(0), 0.0)
        units.append(centred / np.where(varies, np.linalg.norm(centred, axis=0), 1.0))
    return np.minimum(np.abs(units[0].T @ units[1]), 1.0)
