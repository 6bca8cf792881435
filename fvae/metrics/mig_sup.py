"""MIG-sup: the gap of the mutual information gap, of each dimension over the factors."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fvae.device import as_imported
from fvae.metrics.constants import MIG_SUP, MigSupProtocol
from fvae.metrics.factors import Labels
from fvae.metrics.histogram import information
from fvae.metrics.samples import Draw, draw


@dataclass(frozen=True, eq=False)
class MigSupResult:
    """A supplement of the mutual information gap.

    Attributes:
        score: mean of the gaps of the active dimensions, 0 to 1.
        gaps: float64 ``[d]``, the gap of each dimension.
        active: bool ``[d]``, the dimensions that count.
        information: float64 ``[d, K]``, mutual information of each dimension and factor, nats.
        protocol: the constants.
        perfect: score of the code whose K dimensions are the factors themselves, from the same
            images. No ceiling: a code that leaves out the factors which bins hold badly passes it.
        note: empty, or what a reader of the score should know.
    """

    score: float
    gaps: np.ndarray
    active: np.ndarray
    information: np.ndarray
    protocol: MigSupProtocol
    perfect: float
    note: str = ""


@as_imported()
def mig_sup_score(
    codes: Tensor | np.ndarray,
    factor_sizes: Sequence[int] | None = None,
    seed: int = 0,
    *,
    factors: Labels | None = None,
) -> MigSupResult:
    """MIG-sup = mean over active j of greatest - second greatest I(z_j; v_k) / H(v_k) over k.

    Where MIG asks whether each factor is in one dimension, this asks whether each dimension has one
    factor. Mutual information and entropy are those of the joint histogram of 10,000 images, each
    dimension (and each real-valued factor) cut into 20 bins of equal width. Dimensions of variance
    below 0.01, the source's, count as collapsed. With one factor the second greatest is 0.

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
        A :class:`MigSupResult`. Without an active dimension the score is 0 and the note says so.

    Raises:
        UserError: an argument has the wrong shape, dtype or value, a code that is read is not
            finite, or a factor has too few rows a value.

    Source: Li et al. 2020, "Progressive learning and disentanglement of hierarchical
    representations"; histograms of Locatello et al. 2019, as in MIG.
    """
    sample, _ = draw(codes, factor_sizes, factors, seed, MIG_SUP.samples)
    gaps, mutual = _gaps(sample.codes, sample)
    active = sample.codes.var(0) > MIG_SUP.active_variance
    score = float(gaps[active].mean()) if active.any() else 0.0
    perfect = float(_gaps(sample.labelled, sample)[0].mean())
    note = f"the factors themselves score {perfect:.3f}" if perfect < 0.9995 else ""
    if not active.any():
        note = f"no active dimension: each has a variance below {MIG_SUP.active_variance}"
    elif len(sample.labels) == 1:
        note = "one factor: there is none to confuse it with"
    return MigSupResult(score, gaps, active, mutual, MIG_SUP, perfect, note)


def _gaps(codes: np.ndarray, sample: Draw) -> tuple[np.ndarray, np.ndarray]:
    """Gaps [d] and information [d, K] of codes [n, d] about the sample's factors."""
    found = information(codes, sample, MIG_SUP.bins)
    share = found.mutual / found.factors
    ranked = np.sort(np.hstack((share, np.zeros((len(share), 1)))), axis=1)
    return ranked[:, -1] - ranked[:, -2], found.mutual
