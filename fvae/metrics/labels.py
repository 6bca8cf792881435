"""Labels of rows, as people have them: one column a factor, of classes or of real values."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from torch import Tensor

from fvae.errors import UserError

#: Numbers that are not whole are classes where each occurs so often on average.
ROWS_A_CLASS = 10


@dataclass(frozen=True, eq=False)
class Column:
    """Labels of one factor.

    Attributes:
        name: of the factor, or empty.
        values: the labels that occur, ascending, each once; empty where real-valued.
        data: int64 ``[N]``, classes 0 to len(values) - 1, or float64 ``[N]``, real values.
        distinct: how many different labels there are.
    """

    name: str
    values: np.ndarray
    data: np.ndarray
    distinct: int

    @property
    def real(self) -> bool:
        """Whether the factor is real-valued."""
        return self.data.dtype.kind == "f"

    @property
    def names_rows(self) -> bool:
        """Whether hardly any row shares its class, as of a running number: nothing to learn."""
        return not self.real and 2 * self.distinct > len(self.data)


def columns_of(
    labels: object,
    names: Sequence[str] = (),
    real: Sequence[int | str] = (),
    rows: int | None = None,
) -> tuple[Column, ...]:
    """Return labels as columns; :meth:`fvae.metrics.factors.Factors.of` says what is taken.

    Raises:
        UserError: one line that names the column.
    """
    table = _table(labels, rows)
    count = table.shape[1]
    if len(names) not in (0, count):
        raise UserError(f"factors: {len(names)} names for {count} columns; give one a column")
    named = [f"factor {k}" + (f" ({names[k]})" if names else "") for k in range(count)]
    wanted = {_place(column, list(names), count) for column in real}
    return tuple(
        _column(table[:, k], named[k], names[k] if names else "", k in wanted) for k in range(count)
    )


def _table(labels: object, rows: int | None) -> np.ndarray:
    """Labels as an array [N, K] of bools, integers or finite float64."""
    if isinstance(labels, Tensor):
        given = labels.detach().cpu()
        # NumPy has no bfloat16.
        array = (given.double() if given.is_floating_point() else given).numpy()
    else:
        try:
            if isinstance(labels, np.ma.MaskedArray):
                labels = np.ma.filled(labels.astype(float), np.nan)
            array = np.asarray(labels)
        except (TypeError, ValueError, RuntimeError) as error:
            why = " ".join(str(error).split())
            raise UserError(f"factors: expected numbers [N, K], got no array ({why})") from None
    if array.ndim not in (1, 2) or not array.size:
        raise UserError(
            f"factors: got shape {list(array.shape)}, expected labels [N, K], a row for each code"
        )
    if rows is not None and len(array) != rows:
        sizes = array.ndim == 1 and array.dtype.kind in "iu" and prod(array.tolist()) == rows
        raise UserError(
            f"factors: got shape {list(array.shape)}, expected [{rows}, K], a row for each code"
            + ("; sizes of a full grid go to factor_sizes" if sizes else "")
        )
    table = array.reshape(len(array), -1)
    if table.dtype.kind == "O":
        columns = [_numbers(table[:, k], k) for k in range(table.shape[1])]
        table = np.stack(columns, axis=1)
    if table.dtype.kind not in "biuf":
        raise UserError(
            f"factors: column 0 has dtype {table.dtype}, expected numbers; number its values, as"
            " np.unique(column, return_inverse=True)[1] does"
        )
    return table.astype(np.float64) if table.dtype.kind == "f" else table


def _numbers(column: np.ndarray, k: int) -> np.ndarray:
    for value in column:
        if not isinstance(value, int | float | np.number | np.bool_):
            raise UserError(
                f"factors: column {k} holds {value!r:.40}, expected numbers; number its values, as"
                " np.unique(column, return_inverse=True)[1] does"
            )
    return column.astype(np.float64)


def _place(column: int | str, names: list[str], count: int) -> int:
    place = names.index(column) if column in names else column
    try:
        if -count <= operator.index(place) < count:  # type: ignore[arg-type]
            return operator.index(place) % count  # type: ignore[arg-type]
    except TypeError:
        pass
    raise UserError(f"real: got {column!r}, expected numbers or names of the {count} columns")


def _column(data: np.ndarray, called: str, name: str, real: bool) -> Column:
    floating = data.dtype.kind == "f"
    if floating and not np.isfinite(data).all():
        row = int(np.isfinite(data).argmin())
        raise UserError(
            f"factors: {called} is {data[row]} in row {row}, expected finite labels; leave such"
            " rows out, of the codes too"
        )
    values, classes = _classes(data)
    if len(values) < 2:
        raise UserError(
            f"factors: {called} has one value, {values[0]}, in all {len(data):,} rows, expected at"
            " least two; leave it out"
        )
    whole = not floating or bool((values == np.floor(values)).all())
    if real or not (whole or len(values) * ROWS_A_CLASS <= len(data)):
        return Column(name, values[:0], data.astype(np.float64), len(values))
    classes = classes.reshape(-1).astype(np.int64, copy=False)
    return Column(name, values, classes, len(values))


def _classes(data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values that occur, ascending, and the place of each label among them."""
    data = np.ascontiguousarray(data)
    low, high = data.min(), data.max()
    # Whole numbers that lie close together are counted, which takes a tenth of the time of a sort.
    if -(2**53) < low <= high < 2**53 and int(high) - int(low) <= len(data):
        shifted = data.astype(np.int64)
        if data.dtype.kind in "biu" or (shifted == data).all():
            shifted -= int(low)
            occurs = np.bincount(shifted) > 0
            values = (occurs.nonzero()[0] + int(low)).astype(data.dtype)
            return values, shifted if occurs.all() else (occurs.cumsum() - 1)[shifted]
    return np.unique(data, return_inverse=True)
