"""Rows drawn by weight: a table that turns a uniform draw into a weighted one, in integers.

Walker's alias method: row i of a uniform draw stays with the probability that its entry says, or
else becomes the entry's alias. One word more and one load draw from any weights, in constant time,
and every backend compares the same integers.

Source: Walker, "An efficient method for generating discrete random variables with general
distributions", ACM TOMS 3 (1977); made by the sweep of Hübschle-Schneider and Sanders, "Parallel
weighted random sampling", ESA 2019, here as two sorted searches.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

#: An entry is ``keep << _BITS | alias``.
_BITS = 31
_UNIT = 1 << 32


def alias_table(weights: Any) -> Tensor:
    """Entry i = (keep_i << 31) | alias_i, so that rows are drawn with probabilities w_i / sum(w).

    Row i of a uniform draw stays where a word of 32 bits is below keep_i; otherwise it becomes
    alias_i. Probabilities are whole multiples of 2**-32 / N, exactly what the table gives: that of
    a row is off by at most 2 + N / 2**20 of these, and is 0 where its weight is 0.

    Args:
        weights: w, ``[N]``, finite numbers of at least 0, not all 0, of any scale: a tensor on any
            device, an array or a sequence; N below 2**31.

    Returns:
        int64 ``[N]``, on the weights' device, or the CPU; ``table=`` of
        :func:`fvae.ops.gather_batch`.

    Raises:
        ValueError: weights is anything else.
    """
    device = weights.device if isinstance(weights, Tensor) else "cpu"
    if isinstance(weights, Tensor):
        weights = weights.detach().to("cpu", torch.float64).numpy()
    w = np.asarray(weights, np.float64)
    if w.ndim != 1 or not 0 < len(w) < 1 << _BITS:
        raise ValueError(f"weights: got shape {list(w.shape)}, expected [N], 0 < N < 2**{_BITS}")
    wrong = np.flatnonzero(~(np.isfinite(w) & (w >= 0)))
    if len(wrong):
        raise ValueError(
            f"weights: got {w[wrong[0]]} in row {wrong[0]}, expected finite numbers of at least 0"
        )
    if not w.any():
        raise ValueError("weights: got 0 in all rows, expected more in one at least")
    return torch.from_numpy(_entries(_units(w))).to(device)


def _units(w: np.ndarray) -> np.ndarray:
    """Weights as whole numbers, int64 ``[N]``, of sum N 2**32."""
    # Sums are rounded rather than weights, so that the total is exact and no 0 becomes more.
    with np.errstate(under="ignore"):
        sums = np.cumsum(w / w.max())
        sums = np.rint(sums / sums[-1] * float(len(w) * _UNIT))
    return np.diff(sums.astype(np.int64), prepend=0)


def _entries(units: np.ndarray) -> np.ndarray:
    """The table of weights whose mean is 2**32."""
    keep, alias = units.copy(), np.arange(len(units))
    light, heavy = np.flatnonzero(units < _UNIT), np.flatnonzero(units >= _UNIT)
    # Heavy rows in turn fill up light ones, until one has no more than a row's share itself: it is
    # filled up by the next. Before a light row, what all before it lacked has been given.
    lacks = _UNIT - units[light]
    given = np.cumsum(np.concatenate([[0], lacks]))
    spare = np.cumsum(units[heavy] - _UNIT)
    alias[light] = heavy[np.searchsorted(spare, given[:-1], side="right")]
    taken = given[np.searchsorted(given, spare)]
    keep[heavy] = _UNIT + spare - taken
    short = np.flatnonzero(taken > spare)
    alias[heavy[short]] = heavy[short + 1]
    # A row that always stays is its own alias: 2**32 itself has no room.
    return np.minimum(keep, _UNIT - 1) << _BITS | alias


def aliased(table: Tensor, indices: Tensor, word: Tensor) -> Tensor:
    """Rows drawn by weight from rows drawn uniformly, int64 of their shape.

    Args:
        table: of :func:`alias_table`, int64 ``[N]``.
        indices: int64, uniform in 0..N-1.
        word: int64 of the shape of indices, 0 to 2**32 - 1.
    """
    entry = table[indices]
    return torch.where(word < entry >> _BITS, indices, entry & ((1 << _BITS) - 1))
