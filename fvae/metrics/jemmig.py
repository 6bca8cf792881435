"""JEMMIG: the mutual information gap with the joint entropy that a second factor adds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fvae.device import as_imported
from fvae.metrics.constants import JEMMIG, BinsProtocol
from fvae.metrics.factors import Labels
from fvae.metrics.histogram import information
from fvae.metrics.samples import Draw, draw


@dataclass(frozen=True, eq=False)
class JemmigResult:
    """A normalised joint entropy minus mutual information gap.

    Attributes:
        score: mean over factors of 1 - ``jemmig`` / (H(v_k) + log bins), 0 to 1.
        jemmig: float64 ``[K]``, nats, 0 at best: the score before it is normalised.
        best: int64 ``[K]``, the dimension that knows most of each factor.
        information: float64 ``[d, K]``, mutual information of each dimension and factor, nats.
        protocol: the constants.
        ceiling: the score of a perfect code, whose K dimensions are the factors themselves, from
            the same images and bins: below 1 where a factor has more values than there are bins.
        note: empty, or what a reader of the score should know.
    """

    score: float
    jemmig: np.ndarray
    best: np.ndarray
    information: np.ndarray
    protocol: BinsProtocol
    ceiling: float
    note: str = ""


@as_imported()
def jemmig_score(
    codes: Tensor | np.ndarray,
    factor_sizes: Sequence[int] | None = None,
    seed: int = 0,
    *,
    factors: Labels | None = None,
) -> JemmigResult:
    """JEMMIG_k = H(z_i, v_k) - I(z_i; v_k) + I(z_j; v_k), and 1 - JEMMIG_k / (H(v_k) + log bins).

    The score is the mean over factors k of the second form, of which 1 is best; z_i knows most of
    v_k, z_j second most (nothing, with one dimension). As H(z_i, v_k) - I = H(z_i | v_k) + H(v_k |
    z_i), a dimension that knows more than v_k loses by it, which MIG does not see. Entropies are
    those of the joint histogram of 10,000 images, each dimension (and each real-valued factor) cut
    into 20 bins of equal width. A dimension that nearly always falls into one bin still has
    log bins / (H(v_k) + log bins), near a half: noise is near 0, a collapsed code is not.

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
        A :class:`JemmigResult`. Of codes that are all constant the score is 0, and the note says
        so.

    Raises:
        UserError: an argument has the wrong shape, dtype or value, a code that is read is not
            finite, or a factor has too few rows a value.

    Source: Do & Tran 2020, "Theory and evaluation metrics for learning disentangled
    representations", section 4; histograms of Locatello et al. 2019, as in MIG.
    """
    sample, _ = draw(codes, factor_sizes, factors, seed, JEMMIG.samples)
    result, jemmig, best, mutual = _normalised(sample.codes, sample)
    ceiling = float(_normalised(sample.labelled, sample)[0].mean())
    score, note = float(result.mean()), ""
    if not mutual.any():
        score, note = 0.0, "no dimension varies"
    return JemmigResult(score, jemmig, best, mutual, JEMMIG, ceiling, note)


def _normalised(
    codes: np.ndarray, sample: Draw
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Normalised and plain JEMMIG [K], best dimensions [K] and information [d, K]."""
    found = information(codes, sample, JEMMIG.bins)
    best, each = found.mutual.argmax(0), np.arange(len(found.factors))
    ranked = np.sort(np.vstack((found.mutual, np.zeros(len(each)))), axis=0)
    jemmig = found.joint[best, each] - ranked[-1] + ranked[-2]
    return 1 - jemmig / (found.factors + np.log(JEMMIG.bins)), jemmig, best, found.mutual
