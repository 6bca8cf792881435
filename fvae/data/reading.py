"""Reading files that somebody else wrote: checks, and errors that say what to do."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import BinaryIO

import h5py
import numpy as np

from fvae.errors import UserError

CHUNK = 4096  # images held unpacked at once


@contextmanager
def reading(path: Path, expected: str) -> Iterator[None]:
    """Turn whatever goes wrong while a file is read into a one-line UserError.

    Args:
        path: the file, named in the message.
        expected: what the file should have been, for the message.

    Raises:
        UserError: the block raised an error of any kind but a full disk; it names the file.
    """
    try:
        yield
    except UserError as error:
        if str(path) in str(error):
            raise
        raise UserError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give the path of {expected}") from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise  # what is read goes somewhere, and there is no room
        # Damaged bytes make zipfile, zlib, numpy and h5py raise nearly anything: BadZipFile,
        # zlib.error, EOFError, OSError, KeyError, RuntimeError, TypeError, tokenize.TokenError.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{path}: cannot be read ({reason}); expected {expected}; "
            "if the file is damaged or incomplete, copy it again"
        ) from error


@contextmanager
def h5_opened(source: Path | BinaryIO) -> Iterator[h5py.File]:
    """An HDF5 file whose arrays are all in it.

    Raises:
        UserError: something in it is a link or an array that would be read from another file.
    """

    # What the visitors return ends the visit; what they raise would come out garbled.
    def elsewhere(name: str, item: h5py.Group | h5py.Dataset) -> str | None:
        if isinstance(item, h5py.Dataset) and item.is_virtual:
            return f"{name!r} is a virtual array"
        if isinstance(item, h5py.Dataset) and item.external:
            return f"{name!r} is stored in another file"
        return None

    def leads_out(name: str, link: object) -> str | None:
        return (
            f"{name!r} is a link to another file" if isinstance(link, h5py.ExternalLink) else None
        )

    with h5py.File(source, "r") as file:
        found = file.visititems_links(leads_out) or file.visititems(elsewhere)
        if found:
            raise UserError(f"{found}, and other files are not read; copy it into one")
        yield file


def h5_arrays(file: h5py.File, *keys: str) -> list[h5py.Dataset]:
    """The arrays of an HDF5 file under the given keys.

    Raises:
        UserError: a key is missing or is not an array.
    """
    for key in keys:
        if not isinstance(file.get(key), h5py.Dataset):
            raise UserError(
                f"{file.filename}: no array {key!r}, found {sorted(file)}; "
                f"expected {', '.join(keys)}"
            )
    return [file[key] for key in keys]


def check_array(
    path: Path, key: str, array: np.ndarray | h5py.Dataset, shape: tuple, dtype: type
) -> None:
    """Check that an array has the shape and the kind of number that it should have.

    Args:
        path: the file, for the message.
        key: the array's name in the file, for the message.
        array: anything with ``shape`` and ``dtype``.
        shape: the expected shape; None stands for any size.
        dtype: the expected numpy scalar type, abstract (``np.integer``) or not (``np.uint8``).

    Raises:
        UserError: it has another shape or kind of number.
    """
    fits = len(array.shape) == len(shape) and all(
        want in (None, got) for got, want in zip(array.shape, shape, strict=True)
    )
    if not fits or not np.issubdtype(array.dtype, dtype):
        wanted = ", ".join("N" if size is None else str(size) for size in shape)
        raise UserError(
            f"{path}: {key} is {list(array.shape)} {array.dtype}, "
            f"expected [{wanted}] {dtype.__name__}; use the file as it was published"
        )


def grid_sizes(path: Path, key: str, classes: np.ndarray) -> tuple[int, ...]:
    """How many values each factor takes, from the classes of a full grid in row-major order.

    Args:
        path: the file, for the message.
        key: the array's name in the file, for the message.
        classes: whole numbers ``[N, K]``.

    Returns:
        K sizes, whose product is N.

    Raises:
        UserError: row i is not the mixed-radix digits of i, last factor fastest.
    """
    if not len(classes):
        raise UserError(f"{path}: {key} is empty; use the file as it was published")
    sizes = tuple(int(largest) + 1 for largest in classes.max(axis=0))
    if not is_grid(classes):
        raise UserError(
            f"{path}: the {len(classes)} rows of {key} are not the full grid {list(sizes)} in "
            "row-major order, last factor fastest; use the file as it was published"
        )
    return sizes


def is_grid(classes: np.ndarray) -> bool:
    """Whether row i of ``[N, K]`` holds the mixed-radix digits of i, last factor fastest."""
    if not len(classes):
        return False
    sizes = tuple(int(largest) + 1 for largest in classes.max(axis=0))
    return prod(sizes) == len(classes) and all(
        np.array_equal(column, digits)
        for column, digits in zip(classes.T, _digits(sizes), strict=True)
    )


def _digits(sizes: tuple[int, ...]) -> Iterator[np.ndarray]:
    stride = prod(sizes)
    index = np.arange(stride)
    for size in sizes:
        stride //= size
        yield index // stride % size
