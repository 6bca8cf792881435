"""Modularity: does each dimension know one factor only?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fvae.device import as_imported
from fvae.metrics.constants import MODULARITY, BinsProtocol
from fvae.metrics.factors import Labels
from fvae.metrics.histogram import information
from fvae.metrics.samples import draw


@dataclass(frozen=True, eq=False)
class ModularityResult:
    """A modularity.

    Attributes:
        score: mean of ``dims``, 0 to 1.
        dims: float64 ``[d]``, the modularity of each dimension.
        information: float64 ``[d, K]``, mutual information of each dimension and factor, nats.
        protocol: the constants.
        note: empty, or what a reader of the score should know.
    """

    score: float
    dims: np.ndarray
    information: np.ndarray
    protocol: BinsProtocol
    note: str = ""


@as_imported()
def modularity_score(
    codes: Tensor | np.ndarray,
    factor_sizes: Sequence[int] | None = None,
    seed: int = 0,
    *,
    factors: Labels | None = None,
) -> ModularityResult:
    """Modularity = mean_j (1 - (sum_k m_jk^2 - t_j^2) / ((K - 1) t_j^2)), t_j = max_k m_jk.

    m_jk = I(z_j; v_k) is that of the joint histogram of 10,000 images, each dimension (and each
    real-valued factor) cut into 20 bins of equal width. A dimension that knows nothing of any
    factor, as a constant one, has modularity 0, and counts. Completeness is not asked for: a code
    of one factor in every dimension has modularity 1. A dimension of noise knows of each factor the
    histogram's bias, which grows with the factor's classes, so that its modularity may be high.

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
        A :class:`ModularityResult`. With one factor it is 1: there is nothing to confuse.

    Raises:
        UserError: an argument has the wrong shape, dtype or value, a code that is read is not
            finite, or a factor has too few rows a value.

    Source: Ridgeway & Mozer 2018, section 3; estimator of Locatello et al. 2019.
    """
    sample, _ = draw(codes, factor_sizes, factors, seed, MODULARITY.samples)
    mutual = information(sample.codes, sample, MODULARITY.bins).mutual
    dims, note = _modularity(mutual), ""
    if not mutual.any():
        note = "no dimension varies"
    elif mutual.shape[1] == 1:
        note = "one factor: there is none to confuse it with"
    return ModularityResult(float(dims.mean()), dims, mutual, MODULARITY, note)


def _modularity(mutual: np.ndarray) -> np.ndarray:
    """Modularity of each dimension, [d], of information [d, K]."""
    squared = mutual**2
    most = squared.max(1)
    others = (squared.sum(1) - most) / max(1, mutual.shape[1] - 1)
    return np.where(most > 0, 1 - others / np.where(most > 0, most, 1.0), 0.0)
