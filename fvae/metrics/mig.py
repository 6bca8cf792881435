"""The mutual information gap."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from fvae.device import as_imported
from fvae.metrics.checks import bins_of
from fvae.metrics.factors import Labels
from fvae.metrics.histogram import information
from fvae.metrics.protocols import MIG, MigProtocol
from fvae.metrics.samples import Draw, draw


@dataclass(frozen=True, eq=False)
class MigResult:
    """A mutual information gap.

    Attributes:
        score: mean of ``gaps``, 0 to 1.
        gaps: float64 ``[K]``, the gap of each factor.
        information: float64 ``[d, K]``, mutual information of each dimension and factor, nats.
        protocol: the constants.
        ceiling: mean of ``ceilings``: the score of a perfect code.
        ceilings: float64 ``[K]``, the gap of each factor in the code whose K dimensions are the
            factors themselves, from the same images and bins. B bins hold at most log B nats, so a
            factor of n > B equally frequent values has at most log B / log n; correlated factors
            have less.
    """

    score: float
    gaps: np.ndarray
    information: np.ndarray
    protocol: MigProtocol
    ceiling: float
    ceilings: np.ndarray


@as_imported()
def mig_score(
    codes: Tensor | np.ndarray,
    factor_sizes: Sequence[int] | None = None,
    seed: int = 0,
    *,
    factors: Labels | None = None,
    bins: int | None = None,
) -> MigResult:
    """MIG = mean over factors k of (greatest - second greatest I(z_j; v_k) over j) / H(v_k).

    Mutual information and entropy are those of the joint histogram of 10,000 images, of a grid
    drawn with replacement, of labels without (all rows where there are no more), each dimension
    cut into 20 bins of equal width between its least and greatest code. A real-valued factor is
    cut into such bins as well. The histogram's upward bias for independent variables is left in,
    as in the source of the protocol. With one dimension the second greatest is 0.

    Args:
        codes: means of the encoder, ``[N, d]``, floating point. Rows outside
            :func:`fvae.metrics.needed` are not read and may be NaN.
        factor_sizes: of a full grid, K sizes, each at least 2, whose product is N; row i of the
            codes then has the mixed-radix digits of i as factor classes, the last factor fastest.
        seed: key of the draw.
        factors: of any rows, in place of the sizes: labels ``[N, K]`` (or ``[N]``) of the codes'
            rows, or a :class:`fvae.metrics.Factors`, which says what is a class and what is
            real-valued.
        bins: in place of the protocol's 20, 2 to 10,000; scores of other bins are not comparable.

    Returns:
        A :class:`MigResult`.

    Raises:
        UserError: an argument has the wrong shape, dtype or value, a code that is read is not
            finite, or a factor has too few rows a value.

    Source: Chen et al. 2018; estimator of Locatello et al. 2019.
    """
    constants = MIG
    if bins is not None and bins_of(bins) != MIG.bins:
        constants = replace(MIG, name=f"{MIG.name}, {bins_of(bins)} bins", bins=bins_of(bins))
    sample, _ = draw(codes, factor_sizes, factors, seed, constants.samples)
    gaps, information = _gaps(sample.codes, sample, constants.bins)
    ceilings, _ = _gaps(sample.labelled, sample, constants.bins)
    mean, ceiling = float(gaps.mean()), float(ceilings.mean())
    return MigResult(mean, gaps, information, constants, ceiling, ceilings)


def _gaps(codes: np.ndarray, sample: Draw, cuts: int) -> tuple[np.ndarray, np.ndarray]:
    """Gaps [K] and information [d, K] of codes [n, d] about the sample's factors."""
    found = information(codes, sample, cuts)
    ranked = np.sort(np.vstack((found.mutual, np.zeros(len(found.factors)))), axis=0)
    return (ranked[-1] - ranked[-2]) / found.factors, found.mutual
