"""Entropy and mutual information of binned codes, from joint histograms, in nats.

The histogram's upward bias for independent variables, about (bins - 1)(classes - 1) / 2n, is left
in, as in the protocols that count this way.
"""

from dataclasses import dataclass

import numpy as np

from fvae.metrics.samples import Draw


@dataclass(frozen=True, eq=False)
class Information:
    """What binned dimensions know of the factors of a sample, in nats.

    Attributes:
        mutual: float64 ``[d, K]``, mutual information of each dimension and factor; 0 of a
            constant dimension.
        joint: float64 ``[d, K]``, joint entropy of each dimension and factor.
        factors: float64 ``[K]``, entropy of each factor.
    """

    mutual: np.ndarray
    joint: np.ndarray
    factors: np.ndarray


def information(codes: np.ndarray, sample: Draw, cuts: int) -> Information:
    """Information of codes ``[n, d]``, cut into bins, about the sample's factors."""
    bins = np.stack([binned(column, cuts) for column in codes.T])
    mutual, joint = np.empty((2, len(bins), len(sample.labels)))
    entropy = np.empty(len(sample.labels))
    for k, (v, n) in enumerate(classes(sample, cuts)):
        table = _table(bins, cuts, v, n)
        column, row = table.sum(1), table.sum(2)
        entropy[k] = -xlogx(column[0]).sum()
        negative = xlogx(table).sum((1, 2))
        joint[:, k] = -negative
        mutual[:, k] = negative - xlogx(column).sum(1) - xlogx(row).sum(1)
    mutual[bins.min(1) == bins.max(1)] = 0.0
    return Information(mutual, joint, entropy)


def between_dimensions(codes: np.ndarray, cuts: int) -> np.ndarray:
    """Mutual information of each two binned dimensions, ``[d, d]``; the diagonal is entropy."""
    bins = np.stack([binned(column, cuts) for column in codes.T])
    mutual = np.empty((len(bins), len(bins)))
    for j, v in enumerate(bins):
        table = _table(bins, cuts, v, cuts)
        negative = xlogx(table).sum((1, 2))
        mutual[:, j] = negative - xlogx(table.sum(1)).sum(1) - xlogx(table.sum(2)).sum(1)
    constant = bins.min(1) == bins.max(1)
    mutual[constant], mutual[:, constant] = 0.0, 0.0
    return mutual


def classes(sample: Draw, cuts: int) -> list[tuple[np.ndarray, int]]:
    """Classes int64 ``[n]`` and their number, of each factor; a real-valued one is binned."""
    pairs = zip(sample.labels, sample.sizes, strict=True)
    return [(v, size) if size else (binned(v, cuts), cuts) for v, size in pairs]


def binned(column: np.ndarray, bins: int) -> np.ndarray:
    """Bin of each number, 0 to bins - 1, of equal width; a constant column falls into bin 0."""
    low, high = column.min(), column.max()
    if not high > low:
        return np.zeros(len(column), np.int64)
    return np.minimum((column - low) / (high - low) * bins, bins - 1).astype(np.int64)


def xlogx(p: np.ndarray) -> np.ndarray:
    """``p log p``, and 0 where p is 0."""
    return p * np.log(np.where(p > 0, p, 1.0))


def _table(bins: np.ndarray, cuts: int, v: np.ndarray, n: int) -> np.ndarray:
    """Joint histograms of binned dimensions and classes, ``[d, cuts, n]``, each of sum 1."""
    counts = [np.bincount(b * n + v, minlength=cuts * n).reshape(cuts, n) for b in bins]
    return np.stack(counts) / len(v)
