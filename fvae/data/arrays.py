"""Named arrays of a .npz, .npy or HDF5 file, read piece by piece; nothing in them is unpickled."""

import itertools
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, NoReturn

import h5py
import numpy as np

from fvae.data.reading import h5_opened, reading
from fvae.errors import UserError

SUFFIXES = (".npz", ".npy", ".h5", ".hdf5")

_LARGEST = 1 << 30  # bytes of an array that is read whole
_DEFLATED = 1100  # times its size a file may unpack to; deflate makes zeros 1,032 times smaller
_PIECE = 1 << 25  # bytes that are read at once


@dataclass(frozen=True, eq=False)
class Array:
    """An array of a file.

    Attributes:
        key: its name in the file; that of a .npy is the file's.
        shape: as it is stored.
        dtype: as it is stored; object where it is neither numbers nor text.
        read: ``read(start, stop)`` returns those rows.
    """

    key: str
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[int, int], np.ndarray]

    def __str__(self) -> str:
        """What an error says of it."""
        return f"{self.key} is {list(self.shape)} {self.dtype}"

    @property
    def is_numbers(self) -> bool:
        """Whether it holds truth values, whole numbers or floating-point numbers."""
        return self.dtype.kind in "buif"

    @property
    def nbytes(self) -> int:
        """The size of its content in bytes."""
        return prod(self.shape) * self.dtype.itemsize

    def whole(self) -> np.ndarray:
        """All rows.

        Raises:
            UserError: it is neither numbers nor text, or too large.
        """
        if not self.is_numbers and self.dtype.kind not in "US":
            raise UserError(f"{self}, expected numbers or text; Python objects are never loaded")
        if self.nbytes > _LARGEST:
            raise UserError(f"{self}: too large to be read whole; expected at most 1 GB")
        return self.read(0, self.shape[0])


def pieces(count: int, bytes_each: int) -> Iterator[tuple[int, int]]:
    """Starts and stops of pieces of some 32 MB that cover ``count`` rows."""
    length = max(1, _PIECE // max(bytes_each, 1))
    return itertools.pairwise([*range(0, count, length), count])


@contextmanager
def opened(path: Path) -> Iterator[dict[str, Array]]:
    """The arrays of a file by name, which can be read while it is open.

    Args:
        path: a file that ends in one of :data:`SUFFIXES`.

    Raises:
        UserError: the file is missing or damaged, or of what is raised inside; it names the file.
    """
    suffix = path.suffix.lower()
    with reading(path, f"a {suffix} file of arrays"):
        if suffix == ".npy":
            with open(path, "rb") as file:
                yield {path.stem: _npy(path.stem, file, path.stat().st_size)}
        elif suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                yield _members(archive)
        else:
            with h5_opened(path) as file:
                yield _datasets(file)


# --- .npy and .npz -------------------------------------------------------------------------------


def _members(archive: zipfile.ZipFile) -> dict[str, Array]:
    found = {}
    for info in archive.infolist():
        if info.filename.endswith(".npy"):
            key = info.filename.removesuffix(".npy")
            found[key] = _npy(key, archive.open(info), info.file_size)
    return found


def _npy(key: str, file: IO[bytes], size: int) -> Array:
    """An array in numpy's format, whose file has so many bytes."""
    try:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"its format is {version}, expected (1, 0) or (2, 0)")
        header = "read_array_header_1_0" if version == (1, 0) else "read_array_header_2_0"
        shape, fortran, dtype = getattr(np.lib.format, header)(file)
    except ValueError as error:
        return _unreadable(key, (), f"{key} is no array that numpy saved ({error})")
    if dtype.hasobject:
        return _unreadable(key, shape, f"{key} is {list(shape)} object: a pickle, never loaded")
    if not shape:
        return _unreadable(key, shape, f"{key} is one number, expected a row for each image")
    start_of_data, row = file.tell(), prod(shape[1:]) * dtype.itemsize

    def take(start: int, count: int) -> np.ndarray:
        file.seek(start_of_data + start)  # in a zip this reads what lies between
        content = file.read(count)
        if len(content) != count or start_of_data + shape[0] * row > size:
            raise EOFError(f"{key} ends early")
        return np.frombuffer(content, dtype)

    def read(start: int, stop: int) -> np.ndarray:
        if not fortran or len(shape) == 1:
            return take(start * row, (stop - start) * row).reshape(stop - start, *shape[1:])
        if shape[0] * row > _LARGEST:
            raise UserError(f"{key} is in Fortran order; save numpy.ascontiguousarray of it")
        return take(0, shape[0] * row).reshape(shape[::-1]).T[start:stop]

    return Array(key, shape, dtype, read)


def _unreadable(key: str, shape: tuple[int, ...], message: str) -> Array:
    """An array that is there, and that cannot be read."""

    def refuse(start: int, stop: int) -> NoReturn:
        raise UserError(" ".join(message.split()))

    return Array(key, shape, np.dtype(object), refuse)


# --- HDF5 ----------------------------------------------------------------------------------------


def _datasets(file: h5py.File) -> dict[str, Array]:
    found: dict[str, Array] = {}
    most = file.id.get_filesize() * _DEFLATED

    def add(key: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and item.shape:
            found[key] = _dataset(key, item, most)

    file.visititems(add)  # links into other files are not followed
    return found


def _dataset(key: str, data: h5py.Dataset, most: int) -> Array:
    """An array, of which the file holds at most so many bytes."""

    def read(start: int, stop: int) -> np.ndarray:
        if data.nbytes > most:  # rows that were never written read as zeros, without end
            raise EOFError(f"{key} ends early")
        return data[start:stop]

    if h5py.check_string_dtype(data.dtype):
        text = data.asstr()
        return Array(key, data.shape, np.dtype("U"), lambda a, b: np.asarray(text[a:b], "U"))
    return Array(key, data.shape, data.dtype, read)
