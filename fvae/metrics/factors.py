"""What a metric knows of the factors: the sizes of a full grid, or a label of each row."""

import operator
from collections.abc import Sequence, Sized
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any, Self, cast, overload

import numpy as np
import torch
from torch import Tensor

from fvae.errors import UserError
from fvae.metrics.labels import Column, columns_of
from fvae.ops import RowIndex, reference

#: What a score takes as ``factors``: labels ``[N, K]`` or ``[N]``, or a :class:`Factors`.
Labels = Any


class Unsuited(UserError):
    """A metric cannot be taken of such labels; others may."""


@dataclass(frozen=True, eq=False)
class Factors(Sequence[int]):
    """The factors behind the rows of the codes: a full grid, or labels of any rows.

    Of a full grid this is the sequence of its sizes, so that a metric written for grids takes it
    as it is. Labels have no such form: a metric that asks for it refuses them.

    Attributes:
        sizes: number of values of each of K factors; 0 of a real-valued one.
        columns: labels of each factor; empty for a full grid, whose row i has the mixed-radix
            digits of i as its classes, the last factor fastest.
        names: of the factors, for messages; may be empty for a grid.
        unlabelled: number of rows of which no factor is known; None where some are.
    """

    sizes: tuple[int, ...]
    columns: tuple[Column, ...] = ()
    names: tuple[str, ...] = ()
    unlabelled: int | None = None

    @classmethod
    def unknown(cls, rows: int) -> Self:
        """Rows of which no factor is known, for the scores that ask for none."""
        return cls((), unlabelled=rows)

    @classmethod
    def grid(cls, factor_sizes: Sequence[int], names: Sequence[str] = ()) -> Self:
        """A full grid.

        Raises:
            UserError: there is no size, or one is not a whole number of at least 2.
        """
        return cls(_sizes_of(factor_sizes), names=tuple(names))

    @classmethod
    def of(
        cls,
        labels: Labels,
        names: Sequence[str] = (),
        real: Sequence[int | str] = (),
        rows: int | None = None,
    ) -> Self:
        """Labels of rows, in any order, combinations missing or repeated.

        A column is a set of classes where its dtype is bool or integer, where all its numbers are
        whole, or where each occurs ten times on average; otherwise it is real-valued.

        Args:
            labels: ``[N, K]``, or ``[N]`` for one factor; numbers of any dtype: an array, a tensor
                on any device, nested lists.
            names: of the K factors, for messages.
            real: numbers or names of columns that are real-valued whatever they hold.
            rows: what N must be, where that is known.

        Raises:
            UserError: labels are not finite numbers of that shape, or a factor has one value.
        """
        columns = columns_of(labels, names, real, rows)
        return cls(tuple(len(c.values) for c in columns), columns, tuple(c.name for c in columns))

    def __len__(self) -> int:
        """K, the number of factors."""
        return len(self.sizes)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[int, ...]: ...
    def __getitem__(self, index: int | slice) -> int | tuple[int, ...]:
        """A size of the grid.

        Raises:
            Unsuited: these are labels.
        """
        if self.columns:
            raise Unsuited("factors: this metric takes the sizes of a full grid, not labels")
        return self.sizes[index]

    @property
    def rows(self) -> int:
        """N, the number of rows."""
        if self.unlabelled is not None:
            return self.unlabelled
        return len(self.columns[0].data) if self.columns else prod(self.sizes)

    @property
    def real(self) -> tuple[bool, ...]:
        """Whether each factor is real-valued."""
        return tuple(c.real for c in self.columns) if self.columns else (False,) * len(self)

    def name(self, k: int) -> str:
        """What a message calls factor k."""
        name = self.names[k] if self.names else ""
        return f"factor {k} ({name})" if name else f"factor {k}"

    def at(self, rows: Tensor) -> list[np.ndarray]:
        """Labels of some rows: of each factor int64 ``[n]`` classes, or float64 ``[n]`` values."""
        if self.columns:
            where = rows.cpu().numpy()
            return [c.data[where] for c in self.columns]
        return [c.cpu().numpy() for c in classes_of(rows, self.sizes).unbind(-1)]

    def take(self, rows: Tensor) -> Self:
        """The factors of some rows, in their order and with repeats; classes stay as they are."""
        if not self.sizes:
            return type(self).unknown(len(rows))
        columns = self.columns or tuple(
            Column("", np.arange(n), np.empty(0, np.int64), n) for n in self.sizes
        )
        taken = tuple(map(lambda column, data: replace(column, data=data), columns, self.at(rows)))
        return type(self)(self.sizes, taken, self.names)

    def groups(self, device: torch.device | str) -> tuple[int, ...] | RowIndex:
        """What the ops of votes and pairs take: the sizes of the grid, or which rows share a value.

        Raises:
            Unsuited: a factor is real-valued, or one of its values has one row only.
        """
        return self._index.to(device) if self.columns else self.sizes

    @cached_property
    def _index(self) -> RowIndex:
        for k, column in enumerate(self.columns):
            if column.real:
                raise Unsuited(
                    f"factors: {self.name(k)} is real-valued ({column.distinct:,} different values"
                    f" in {self.rows:,} rows), and this metric needs rows that share a value; bin"
                    " it, as in np.digitize(x, np.quantile(x, [0.2, 0.4, 0.6, 0.8])), or leave it"
                    " out"
                )
        # One factor after the other in memory, as they are read.
        index = RowIndex.of(torch.from_numpy(np.stack([c.data for c in self.columns])).T)
        counts = index.counts.split(index.sizes)
        for k, (column, count) in enumerate(zip(self.columns, counts, strict=True)):
            if count.min() < 2:
                value, few = column.values[count.argmin()], int((count < 2).sum())
                raise Unsuited(
                    f"factors: {self.name(k)} has value {value} in 1 row"
                    + (f" (and {few - 1:,} more such values)" if few > 1 else "")
                    + ", and this metric needs at least 2 rows that share a value; bin the factor,"
                    " leave it out, or leave such rows out"
                )
        return index


def factors_of(
    factor_sizes: Sequence[int] | None, factors: Labels | None, rows: Sized | None = None
) -> Factors:
    """Return the one of the two that a caller gave, for as many rows as ``rows`` has.

    Raises:
        UserError: both or neither is given, or it is invalid.
    """
    if (factor_sizes is None) == (factors is None):
        raise UserError(
            f"factor_sizes, factors: got {'neither' if factors is None else 'both'}, expected one:"
            " the sizes of a full grid, or labels [N, K]"
        )
    given = factor_sizes if factors is None else factors
    if isinstance(given, Factors):
        return given
    if factors is None:
        return Factors.grid(cast(Any, factor_sizes))
    return Factors.of(factors, rows=len(rows) if isinstance(rows, Sized) else None)


def classes_of(rows: Tensor, sizes: Sequence[int]) -> Tensor:
    """Factor classes of a grid's rows: the mixed-radix digits, int64 ``[n, K]`` for ``[n]``."""
    strides = reference.strides(sizes)
    return torch.stack([rows // s % n for n, s in zip(sizes, strides, strict=True)], dim=-1)


#: More factors, each of two values or more, number more than the 2^31 rows that a grid can have.
_MOST_FACTORS = 31


def _sizes_of(factor_sizes: Sequence[int]) -> tuple[int, ...]:
    shape = tuple(getattr(factor_sizes, "shape", ()))
    if not shape and isinstance(factor_sizes, list | tuple):
        inner = factor_sizes[0] if factor_sizes else 0
        shape = (len(factor_sizes), *((len(inner),) if isinstance(inner, list | tuple) else ()))
        shape += tuple(getattr(inner, "shape", ()))
    if len(shape) > 1 or (shape and shape[0] > _MOST_FACTORS):
        raise UserError(
            f"factor_sizes: got numbers of shape {list(shape)}, expected one number a factor; give"
            " labels of rows as factors="
        )
    try:
        sizes = tuple(operator.index(n) for n in factor_sizes)
    except TypeError:
        given = " ".join(repr(factor_sizes).split())
        raise UserError(
            f"factor_sizes: got {given[:200]}, expected whole numbers, one for each factor"
        ) from None
    if not sizes or min(sizes) < 2:
        raise UserError(
            f"factor_sizes: got {list(sizes)}, expected at least one factor, each of at least 2"
            " values (leave out a factor of one value; give labels of rows as factors=)"
        )
    return sizes
