"""The mutual information gap."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fvae.device import as_imported
from fvae.metrics.protocols import MIG, MigProtocol
from fvae.metrics.samples import draw


@dataclass(frozen=True, eq=False)
class MigResult:
    """A mutual information gap.

    Attributes:
        score: mean of ``gaps``, 0 to 1.
        gaps: float64 ``[K]``, the gap of each factor.
        information: float64 ``[d, K]``, mutual information of each dimension and factor, nats.
        protocol: the constants.
    """

    score: float
    gaps: np.ndarray
    information: np.ndarray
    protocol: MigProtocol


@as_imported()
def mig_score(codes: Tensor | np.ndarray, factor_sizes: Sequence[int], seed: int = 0) -> MigResult:
    """MIG = mean over factors k of (greatest - second greatest I(z_j; v_k) over j) / H(v_k).

    Mutual information and entropy are those of the joint histogram of 10,000 images drawn with
    replacement, each dimension cut into 20 bins of equal width between its least and greatest
    code. The histogram's upward bias for independent variables is left in, as in the source of
    the protocol. With one dimension the second greatest is 0.

    Args:
        codes: means of the encoder, ``[N, d]``, floating point; row i is the code of the image
            whose factor classes are the mixed-radix digits of i, the last factor fastest. Rows
            outside :func:`fvae.metrics.needed` are not read and may be NaN.
        factor_sizes: K sizes, each at least 2, whose product is N.
        seed: key of the draw.

    Returns:
        A :class:`MigResult`.

    Raises:
        UserError: an argument has the wrong shape, dtype or value, or a code that is read is not
            finite.

    Source: Chen et al. 2018; estimator of Locatello et al. 2019.
    """
    (sample,) = draw(codes, factor_sizes, seed, MIG.samples)
    bins = np.stack([_bins(column, MIG.bins) for column in sample.codes.T])
    information = np.empty((len(bins), len(sample.sizes)))
    gaps = np.empty(len(sample.sizes))
    for k, n in enumerate(sample.sizes):
        v = sample.classes[:, k]
        joint = np.stack(
            [np.bincount(b * n + v, minlength=MIG.bins * n).reshape(MIG.bins, n) for b in bins]
        ) / len(v)
        column, row = joint.sum(1), joint.sum(2)
        entropy = -_xlogx(column[0]).sum()
        information[:, k] = _xlogx(joint).sum((1, 2)) - _xlogx(column).sum(1) - _xlogx(row).sum(1)
        ranked = np.sort(np.append(information[:, k], 0.0))
        gaps[k] = (ranked[-1] - ranked[-2]) / entropy
    return MigResult(float(gaps.mean()), gaps, information, MIG)


def _bins(column: np.ndarray, bins: int) -> np.ndarray:
    """Bin of each code, 0 to bins - 1; a constant column falls into bin 0."""
    low, high = column.min(), column.max()
    if not high > low:
        return np.zeros(len(column), np.int64)
    return np.minimum((column - low) / (high - low) * bins, bins - 1).astype(np.int64)


def _xlogx(p: np.ndarray) -> np.ndarray:
    return p * np.log(np.where(p > 0, p, 1.0))
