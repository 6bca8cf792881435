"""Correlated factors: weights of a set's images with which pairs of factors vary together."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fvae.data.store import Store
from fvae.errors import UserError
from fvae.settings import correlation_of


class _Pair(NamedTuple):
    """What to correlate: numbers of two factors, and sigma."""

    first: int
    second: int
    sigma: float


def correlated(store: Store, pairs: Sequence[str]) -> Tensor:
    """w = product over the pairs of exp(-(c_1 - c_2)**2 / (2 sigma**2)): the density of each image.

    c_1 and c_2 are the factors' classes, or labels, scaled to 0..1 by their least and greatest:
    drawn with these weights, a pair lies about the line from both least to both greatest values.
    In a full grid all else stays uniform and independent; labels keep the frequencies that they
    have, each image times its density. Pairs may share a factor.

    Args:
        store: a set with factors.
        pairs: "first,second:sigma", the names of two factors and sigma > 0: 0.2 is strong, 0.7 weak
            and inf nothing. No pair comes twice.

    Returns:
        float64 ``[N]`` on the CPU, the greatest of them 1.

    Raises:
        UserError: a pair is written otherwise, names a factor that the set has not or that has one
            value, or comes twice; or sigma is too small for numbers to hold.

    Source: Träuble et al. 2021, "On disentangled representations learned from correlated data",
    section 3.
    """
    # By NumPy: how PyTorch rounds an element depends on the number of threads.
    exponent = np.zeros(store.factor_sizes or len(store))
    with np.errstate(all="ignore"):
        for first, second, sigma in _pairs(store, pairs):
            apart = _scaled(store, first) - _scaled(store, second)
            exponent += (apart / sigma) ** 2 / 2
        least = exponent.min()
        if not np.isfinite(least):
            raise UserError(f"--correlate {' '.join(pairs)}: sigma is too small; take a larger one")
        return torch.from_numpy(np.exp(least - exponent).reshape(-1))


def check_pairs(store: Store, pairs: Sequence[str]) -> None:
    """Check that :func:`correlated` has such weights, without making them.

    Raises:
        UserError: as there.
    """
    _pairs(store, pairs)


def _pairs(store: Store, pairs: Sequence[str]) -> list[_Pair]:
    if isinstance(pairs, str):
        pairs = (pairs,)
    found: list[_Pair] = []
    for text in pairs:
        first, second, sigma = correlation_of(text)
        if not store.factor_names:
            raise UserError(
                f"--correlate {text}: data set {store.name} has no known factors; give labels by"
                " --factors, or leave it out"
            )
        one, other = _place(store, first, text), _place(store, second, text)
        if any({one, other} == {pair.first, pair.second} for pair in found):
            raise UserError(f"--correlate {text}: the same two factors come twice; give one sigma")
        found.append(_Pair(one, other, sigma))
    return found


def _place(store: Store, name: str, text: str) -> int:
    if name not in store.factor_names:
        raise UserError(
            f"--correlate {text}: data set {store.name} has no factor {name!r}, expected two of"
            f" {', '.join(store.factor_names)}"
        )
    place = store.factor_names.index(name)
    column = _column(store, place)
    if column.min() == column.max():
        raise UserError(
            f"--correlate {text}: factor {name} of data set {store.name} has one value, which goes"
            " with nothing; name another"
        )
    return place


def _column(store: Store, place: int) -> np.ndarray:
    """Classes or labels of one factor: of a grid's factor each once, otherwise ``[N]``."""
    if store.labels is not None:
        return store.labels[:, place].numpy()
    return np.arange(store.factor_sizes[place])


def _scaled(store: Store, place: int) -> np.ndarray:
    """One factor scaled to 0..1, along its axis of a grid; of labels ``[N]``."""
    column = _column(store, place).astype(np.float64)
    low, high = column.min(), column.max()
    axes = [place == k for k in range(len(store.factor_sizes))]
    return ((column - low) / (high - low)).reshape([-1 if axis else 1 for axis in axes] or -1)
