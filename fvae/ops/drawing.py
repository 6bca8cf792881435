"""Which rows of the codes the metrics' ops draw: the definition that all backends follow.

Of a full grid the rows that have a value of a factor are known by a formula; of labels by an index
(:class:`fvae.ops.RowIndex`), whose ``offsets`` and ``rows`` the functions take.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from fvae import philox
from fvae.philox import Stream


def strides(factor_sizes: Sequence[int]) -> list[int]:
    """Rows between neighbouring values of each factor: the product of the sizes after it."""
    return [prod(factor_sizes[k + 1 :]) for k in range(len(factor_sizes))]


def row_with_value(r: Tensor, value: Tensor, size: Tensor, stride: Tensor) -> Tensor:
    """Row of the r-th image that has a value of one factor, of that factor's size and stride."""
    return (r // stride) * (stride * size) + value * stride + r % stride


def fixed_factor(number: Tensor, word: Tensor, count: int, balanced: bool) -> Tensor:
    """Fixed factor of each numbered draw: in turn, or by the word."""
    return number % count if balanced else philox.bounded(word, count)


def drawn_rows(
    factor_sizes: Sequence[int],
    offsets: Tensor | None,
    rows: Tensor | None,
    factor: Tensor,
    chooser: Tensor,
    word: Tensor,
) -> Tensor:
    """Row that each word draws among those that share the value which its chooser draws.

    Without an index the rows are a full grid: the value is ``chooser * n >> 32`` of n, and of the
    c rows that have it, the word draws the one numbered ``word * c >> 32``. With an index
    (:class:`fvae.ops.RowIndex`) the value is that of the row at place ``chooser * N >> 32`` of the
    factor's N: drawn as often as it occurs. Of a full grid both have the same numbers.

    Args:
        factor_sizes: n of each of K factors.
        offsets: int64 ``[G + 1]``, or None.
        rows: int32 ``[K * N]``, or None.
        factor: int64, 0 to K - 1; it, chooser and word are broadcast against each other.
        chooser: int64, 32 bits.
        word: int64, 32 bits.
    """
    if offsets is None or rows is None:
        device = word.device
        n = torch.tensor(factor_sizes, device=device)[factor]
        s = torch.tensor(strides(factor_sizes), device=device)[factor]
        r = philox.bounded(word, prod(factor_sizes) // n)
        return row_with_value(r, philox.bounded(chooser, n), n, s)
    count = len(rows) // len(factor_sizes)
    place = factor * count + philox.bounded(chooser, count)
    group = torch.searchsorted(offsets, place, right=True) - 1
    begin, end = offsets[group], offsets[group + 1]
    return rows[begin + philox.bounded(word, end - begin)].long()


def vote_samples(
    factor_sizes: Sequence[int],
    votes: int,
    samples: int,
    balanced: bool,
    seed: Tensor,
    step: Tensor,
    lane: int,
    offsets: Tensor | None = None,
    rows: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Fixed factor and image indices of each vote.

    Vote v owns ``1 + ceil(L / 4)`` counter indices. Words 0 and 1 of the first choose the factor
    (``v % K`` where ``balanced``) and its value; the L words that follow choose the samples, one
    word each, among the images that have the value (:func:`drawn_rows`).

    Returns:
        factor int64 ``[votes]``, index int64 ``[votes, samples]``.
    """
    device = seed.device
    groups = 1 + (samples + 3) // 4
    index = torch.arange(votes * groups, dtype=torch.int64, device=device)
    word = philox.words_at(seed, step, Stream.VOTES.at(lane), index)
    word = word.reshape(votes, groups * 4)
    number = torch.arange(votes, device=device)
    factor = fixed_factor(number, word[:, 0], len(factor_sizes), balanced)
    chooser, drawn = word[:, 1:2], word[:, 4 : 4 + samples]
    return factor, drawn_rows(factor_sizes, offsets, rows, factor[:, None], chooser, drawn)
