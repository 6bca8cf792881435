"""Mutual information of one continuous variable with another, from distances to neighbours, nats.

In one dimension a sorted column holds the neighbours of each number, so that what takes a tree in
several dimensions takes a sort here: N log N, without an approximation. The numbers are those of
scikit-learn's ``mutual_info_classif`` and ``mutual_info_regression`` of the same noise.
"""

from collections.abc import Callable

import numpy as np

#: Spread of the noise that tells equal numbers apart, in standard deviations of the column.
NOISE = 1e-10


def untied(column: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    """A column of mean 0 and standard deviation 1, with noise that tells equal numbers apart."""
    scaled = (column - column.mean()) / column.std()
    size = NOISE * max(1.0, float(np.abs(scaled).mean()))
    return scaled + size * random.standard_normal(len(scaled))


def with_classes(x: np.ndarray, y: np.ndarray, neighbours: int) -> float:
    """I(x; y) = psi(n) + mean psi(k_i) - mean psi(n_i) - mean psi(m_i), at least 0.

    n_i is the number of rows of i's class, k_i = min(neighbours, n_i - 1), and m_i how many numbers
    of any class, i's own among them, lie closer to x_i than the k_i-th neighbour of its class.
    Rows that are the only ones of their class are left out.

    Args:
        x: float64 ``[n]``.
        y: int64 ``[n]``, classes.
        neighbours: k.

    Source: Ross 2014, "Mutual information between discrete and continuous data sets".
    """
    from scipy.special import digamma

    counts = np.bincount(y)
    kept = counts[y] > 1
    x, y = x[kept], y[kept]
    if not len(x):
        return 0.0
    order = np.lexsort((x, y))
    x, y = x[order], y[order]
    radius = np.empty(len(x))
    each = np.minimum(neighbours, counts[y] - 1)
    for start, end in _runs(y):
        radius[start:end] = _reach(x[start:end], int(each[start]))
    m = _closer(np.sort(x), x, radius)
    terms = digamma(each) - digamma(counts[y]) - digamma(m)
    return max(0.0, float(digamma(len(x)) + terms.mean()))


def with_values(x: np.ndarray, y: np.ndarray, neighbours: int) -> float:
    """I(x; y) = psi(n) + psi(k) - mean psi(n_x) - mean psi(n_y), at least 0.

    n_x and n_y count the rows, i itself among them, whose x and whose y is closer than the k-th
    neighbour of i in the plane, in the greater of both distances.

    Args:
        x: float64 ``[n]``.
        y: float64 ``[n]``.
        neighbours: k, less where there are no more than k rows.

    Source: Kraskov, Stögbauer & Grassberger 2004, first estimator.
    """
    from scipy.spatial import cKDTree
    from scipy.special import digamma

    k = min(neighbours, len(x) - 1)
    if k < 1:
        return 0.0
    both = np.stack((x, y), axis=1)
    radius = cKDTree(both).query(both, [k + 1], p=np.inf)[0][:, 0]
    counts = [_closer(np.sort(column), column, radius) for column in (x, y)]
    mean = sum(float(digamma(count).mean()) for count in counts)
    return max(0.0, float(digamma(len(x)) + digamma(k)) - mean)


def greatest(rows: int, neighbours: int) -> float:
    """psi(n) - psi(k): what :func:`with_values` gives of a column with itself."""
    from scipy.special import digamma

    k = min(neighbours, rows - 1)
    return float(digamma(rows) - digamma(k)) if k > 0 else 0.0


def _runs(y: np.ndarray) -> list[tuple[int, int]]:
    """Start and end of each run of equal numbers."""
    ends = np.flatnonzero(np.diff(y)) + 1
    return list(zip((0, *ends), (*ends, len(y)), strict=True))


def _reach(x: np.ndarray, k: int) -> np.ndarray:
    """Distance of each of some sorted numbers to its k-th neighbour, k less than their number."""
    reach = np.full(len(x), np.inf)
    # The k neighbours and the number itself are k + 1 in a row: some below, the rest above.
    width = len(x) - k
    for below in range(k + 1):
        own = x[below : below + width]
        far = np.maximum(own - x[:width], x[k:] - own)
        reach[below : below + width] = np.minimum(reach[below : below + width], far)
    return reach


def _closer(ordered: np.ndarray, x: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """How many of the sorted numbers are closer to each x, one of them, than its radius.

    A radius is a distance as it rounds, so distances are compared, not sums that round otherwise.
    Of radius 0 equal numbers count.
    """
    limit = np.nextafter(radius, 0)
    first = _first(lambda at: x - ordered[at] <= limit, len(ordered), len(x))
    beyond = _first(lambda at: ordered[at] - x > limit, len(ordered), len(x))
    return beyond - first


def _first(holds: Callable[[np.ndarray], np.ndarray], places: int, count: int) -> np.ndarray:
    """First place where a condition holds that holds from some place on, or the number of them."""
    low, high = np.zeros(count, np.int64), np.full(count, places)
    while (open_ := low < high).any():
        middle = np.minimum((low + high) // 2, places - 1)
        there = holds(middle)
        high = np.where(open_ & there, middle, high)
        low = np.where(open_ & ~there, middle + 1, low)
    return low
