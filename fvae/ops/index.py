"""Which rows have which value of which factor, where the rows are no full grid."""

from dataclasses import dataclass, fields
from itertools import accumulate
from typing import Self

import numpy as np
import torch
from torch import Tensor

#: Row numbers are int32.
_MOST_ROWS = (1 << 31) - 1


@dataclass(frozen=True, eq=False)
class RowIndex:
    """Rows of each value of each factor, as compressed lists; made by :meth:`of`.

    The rows that have value v of factor k are ``rows[offsets[g]:offsets[g + 1]]``, g = v + the sum
    of the sizes before k. Every factor lists every row once.

    Attributes:
        sizes: values of each of K factors, each at least 1.
        offsets: int64 ``[G + 1]``, G the sum of the sizes; increasing, from 0 to K * N.
        rows: int32 ``[K * N]``, row numbers; those of one value ascend.

    Raises:
        TypeError: offsets are not int64 or rows are not int32.
        ValueError: the sizes, the offsets and the rows do not belong together.
    """

    sizes: tuple[int, ...]
    offsets: Tensor
    rows: Tensor

    def __post_init__(self) -> None:
        """Check what the ops rely on: a wrong number here would be an address there."""
        for name, tensor, dtype in (
            ("offsets", self.offsets, torch.int64),
            ("rows", self.rows, torch.int32),
        ):
            if tensor.dtype != dtype or tensor.dim() != 1:
                raise TypeError(
                    f"{name}: got {tensor.dtype} {list(tensor.shape)}, expected {dtype}, one"
                    f" dimension; RowIndex.of(classes) makes an index"
                )
        if not self.sizes or min(self.sizes) < 1 or len(self.rows) % len(self.sizes):
            raise ValueError(
                f"sizes: got {self.sizes} for {len(self.rows)} rows, expected at least one, each"
                f" at least 1, and as many rows for each"
            )
        groups = list(accumulate(self.sizes, initial=0))
        if self.rows.device != self.offsets.device or len(self.offsets) != groups[-1] + 1:
            raise ValueError(
                f"offsets: got {len(self.offsets)} on {self.offsets.device}, expected"
                f" {groups[-1] + 1} on {self.rows.device}, one more than there are values"
            )
        starts = self.offsets[groups].tolist()
        low, high = (int(x) for x in self.rows.aminmax()) if len(self.rows) else (0, 0)
        if (
            starts != [k * len(self) for k in range(len(groups))]
            or not bool((self.offsets.diff() > 0).all())
            or not 0 <= low <= high < max(1, len(self))
        ):
            raise ValueError(
                "rows: are not the lists of each value of each factor; RowIndex.of(classes) makes"
                " an index"
            )

    @classmethod
    def of(cls, classes: Tensor | np.ndarray) -> Self:
        """Return the index of labels: row i has value ``classes[i, k]`` of factor k.

        Args:
            classes: integers ``[N, K]``, of each factor 0 to n_k - 1, each of which occurs. The
                index lies on their device.

        Raises:
            TypeError: classes are not integers.
            ValueError: they have another shape, are negative, or leave a value out.
        """
        if isinstance(classes, np.ndarray):
            # A tame copy: PyTorch takes no other byte order, and warns of a read-only array.
            native = classes.dtype.newbyteorder("=")
            labels = torch.tensor(np.ascontiguousarray(classes, dtype=native), device="cpu")
        else:
            labels = torch.as_tensor(classes)
        if labels.is_floating_point() or labels.is_complex():
            raise TypeError(f"classes: got {labels.dtype}, expected integers from 0 on")
        if labels.dim() != 2 or labels.numel() == 0 or len(labels) > _MOST_ROWS:
            raise ValueError(
                f"classes: got shape {list(labels.shape)}, expected [N, K], not empty, N below 2^31"
            )
        counts, rows = [], []
        for k, column in enumerate(c.long() for c in labels.unbind(1)):
            low, high = (int(x) for x in column.aminmax())
            if low < 0 or high >= len(labels):
                raise ValueError(
                    f"classes: factor {k} has values from {low} to {high} in {len(labels)} rows,"
                    f" expected 0 to n - 1, each of which occurs"
                )
            counts.append(torch.bincount(column))
            if not bool(counts[-1].all()):
                missing = int((counts[-1] == 0).nonzero()[0])
                raise ValueError(
                    f"classes: value {missing} of factor {k} does not occur, though {high} does;"
                    f" expected 0 to n - 1, each of which occurs"
                )
            rows.append(_sorted(column.to(_narrow(high))).int())
        ends = torch.cat(counts).cumsum(0)
        return cls(
            tuple(len(c) for c in counts), torch.cat((ends.new_zeros(1), ends)), torch.cat(rows)
        )

    def __len__(self) -> int:
        """N, the number of rows."""
        return len(self.rows) // len(self.sizes)

    @property
    def device(self) -> torch.device:
        """Where the index lies."""
        return self.rows.device

    @property
    def counts(self) -> Tensor:
        """Rows of each value, int64 ``[G]``, ordered by factor, then by value."""
        return self.offsets.diff()

    def to(self, device: torch.device | str) -> Self:
        """Return the index on a device: this one if it is there."""
        if torch.device(device) == self.device:
            return self
        sizes, *tensors = (getattr(self, f.name) for f in fields(self))
        return type(self)(sizes, *(t.to(device) for t in tensors))


def _sorted(column: Tensor) -> Tensor:
    """Rows by value, in their order; on the CPU NumPy sorts short integers twice as fast."""
    if column.device.type == "cpu":
        return torch.from_numpy(column.numpy().argsort(kind="stable"))
    return column.argsort(stable=True)


def _narrow(high: int) -> torch.dtype:
    """Return the narrowest dtype that holds 0 to a number: a shorter sort."""
    dtypes = (torch.uint8, torch.int16, torch.int32)
    return next(d for d in dtypes if high <= torch.iinfo(d).max)
