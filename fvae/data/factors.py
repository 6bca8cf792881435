"""Factors from labels: a full grid where every combination comes once, or else the labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import numpy as np
import torch

from fvae.errors import UserError, warn


@dataclass(frozen=True, eq=False)
class KnownFactors:
    """What is known about the images of a set, as in :class:`fvae.data.store.Store`.

    Attributes:
        names: one name for each factor.
        sizes: how many values each takes; empty where the set is no full grid.
        labels: int64 or float64 ``[N, K]`` where the set is no full grid; otherwise None.
        places: int64 ``[N]``, the row of the store that the i-th image of the source belongs to;
            None where that is i.
    """

    names: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()
    labels: torch.Tensor | None = None
    places: np.ndarray | None = None


NO_FACTORS = KnownFactors()


class Table(NamedTuple):
    """Labels as they were read: names of the K columns, and the columns, ``[N]`` each."""

    names: tuple[str, ...]
    columns: list[np.ndarray]


def factors_of(where: str, table: Table, count: int) -> KnownFactors:
    """The factors that a table of labels gives to a set of images.

    A table that has each combination of its columns' values exactly once, in any order, is a full
    grid; class c of a factor is then the c-th smallest of its values. Text becomes the number of
    its place among the column's sorted values. A column of one value is left out, and so said.

    Args:
        where: file and key, for messages.
        table: the labels: whole numbers, real numbers, truth values or text.
        count: number N of images.

    Raises:
        UserError: a column has another length, or holds something that is no finite number and no
            text.
    """
    names, columns = [], []
    for name, column in zip(table.names, table.columns, strict=True):
        if len(column) != count:
            raise UserError(f"{where}: {count} images for {len(column)} labels; give one each")
        column = _numbers(where, name, column)
        if (column == column[0]).all():
            warn(f"{where}: {name} has one value, {column[0]}, and is left out of the factors")
        else:
            names.append(name)
            columns.append(column)
    if not names:
        return NO_FACTORS
    found = [np.unique(column, return_inverse=True) for column in columns]
    sizes = tuple(len(values) for values, _ in found)
    # With one factor of N values each image would stand alone: nothing could be held fixed.
    if len(sizes) > 1 and prod(sizes) == count:
        places = np.ravel_multi_index([inverse for _, inverse in found], sizes)
        if (np.bincount(places, minlength=count) == 1).all():
            in_order = np.array_equal(places, np.arange(count))
            return KnownFactors(tuple(names), sizes, places=None if in_order else places)
    return KnownFactors(tuple(names), labels=torch.from_numpy(np.stack(columns, axis=1)))


def columns_of(name: str, array: np.ndarray) -> Table:
    """The columns of an array of labels ``[N]`` or ``[N, K]`` called ``name``, named after it."""
    if array.ndim == 1:
        return Table((name,), [array])
    if array.shape[1] == 1:
        return Table((name,), [array[:, 0]])
    return Table(tuple(f"{name}_{k}" for k in range(array.shape[1])), list(array.T))


def without_rows(factors: KnownFactors, rows: Sequence[int]) -> KnownFactors:
    """The factors of a set in which some images, by their rows, turned out to be missing."""
    if not rows or not factors.names:
        return factors
    labels = factors.labels
    if labels is None:
        labels = torch.cartesian_prod(*(torch.arange(size) for size in factors.sizes))
    keep = torch.ones(len(labels), dtype=torch.bool)
    keep[list(rows)] = False
    return KnownFactors(factors.names, labels=labels[keep])


def _numbers(where: str, name: str, column: np.ndarray) -> np.ndarray:
    """A column as int64 or float64 ``[N]``."""
    kind = column.dtype.kind
    if kind in "US":
        return np.unique(column, return_inverse=True)[1].astype(np.int64)
    if kind == "u" and column.max() > np.iinfo(np.int64).max:
        raise UserError(f"{where}: {name} has the value {column.max()}; expected less than 2**63")
    if kind in "bui":
        return column.astype(np.int64)
    if kind != "f":
        raise UserError(f"{where}: {name} is {column.dtype}; expected numbers or text")
    column = column.astype(np.float64)
    wrong = np.flatnonzero(~np.isfinite(column))
    if len(wrong):
        raise UserError(
            f"{where}: {name} of image {wrong[0]} is {column[wrong[0]]} ({len(wrong)} in all are no"
            " finite numbers); mend or remove them, or train without labels by --factors no"
        )
    return column
