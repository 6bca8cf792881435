"""What every metric asks of its arguments."""

import operator
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fvae.errors import UserError
from fvae.metrics.factors import Factors


def seed_of(seed: int) -> int:
    """Return the seed as an int.

    Raises:
        UserError: it is not a whole number of 64 bits.
    """
    try:
        number = operator.index(seed)
    except TypeError:
        raise UserError(f"seed: got {seed!r}, expected a whole number") from None
    if not -(1 << 63) <= number < 1 << 64:
        raise UserError(f"seed: got {number}, expected a number of 64 bits")
    return number


def bins_of(bins: int) -> int:
    """Return the bins as an int.

    Raises:
        UserError: they are not a whole number from 2 to 10,000.
    """
    try:
        if 2 <= operator.index(bins) <= 10_000:
            return operator.index(bins)
    except TypeError:
        pass
    raise UserError(f"bins: got {bins!r}, expected a whole number from 2 to 10,000")


def codes_of(codes: Tensor | np.ndarray, factors: Factors) -> Tensor:
    """Return the codes as a tensor ``[N, d]`` without gradient, on the device they came on.

    Raises:
        UserError: they are not floating point, not 2-D, have no column, or have another number of
            rows than the factors.
    """
    given = codes if isinstance(codes, Tensor) else np.asarray(codes)
    floating = given.is_floating_point() if isinstance(given, Tensor) else given.dtype.kind == "f"
    if not floating:
        raise UserError(f"codes: got {codes_dtype(codes)}, expected floating point")
    shape = list(given.shape)
    if len(shape) != 2 or shape[1] < 1:
        raise UserError(f"codes: got shape {shape}, expected [N, d] with d at least 1")
    if shape[0] != factors.rows:
        why = f"the product of factor_sizes {list(factors.sizes)}"
        if not factors.sizes:
            why = "the number of rows that factors has"
        if factors.columns:
            why = "as factors has; it takes labels, one row a code: sizes are factor_sizes"
        raise UserError(f"codes: got {shape[0]} rows, expected {factors.rows}, {why}")
    if isinstance(given, Tensor):
        return given.detach()
    # PyTorch takes neither long doubles, swapped bytes, negative strides nor read-only arrays.
    wide = given.dtype.itemsize > 4
    return torch.from_numpy(np.require(given, np.float64 if wide else np.float32, ["C", "W"]))


def codes_dtype(codes: object) -> str:
    """Name the dtype of what came as codes."""
    return str(codes.dtype if isinstance(codes, Tensor) else np.asarray(codes).dtype)


def require_finite(codes: Tensor, rows: Callable[[], Tensor], name: str = "codes") -> None:
    """Check the codes in the rows that a metric reads; other rows may hold anything.

    Args:
        codes: ``[N, d]``.
        rows: makes the rows; called only where some code of the whole array is not finite.
        name: what an error calls the codes.

    Raises:
        UserError: a code in one of the rows is not finite.
    """
    finite = torch.isfinite(codes).all(dim=1)
    if finite.all():
        return
    read = rows().to(codes.device)
    bad = read[~finite[read]]
    if len(bad):
        row = int(bad.min())
        raise UserError(
            f"{name}: row {row} is {codes[row].tolist()}, expected finite numbers in each row"
            " that the metric reads"
        )
