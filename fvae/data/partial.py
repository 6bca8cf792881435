"""A conversion that survives being killed: rows go into the cache folder as they are made.

The file is the cached store in the making, a header of fixed length and then the rows, so that
nothing is written twice. Until the end the header says how far the conversion got; then it becomes
the header of the store, and the file gets its name.
"""

import errno
import fcntl
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fvae.data.cache import cache_file, file_header, from_cache, labels_bytes, load_file
from fvae.data.factors import NO_FACTORS, KnownFactors
from fvae.data.store import Store
from fvae.errors import UserError, warn
from fvae.files import from_json

_HEADER = 1 << 16  # bytes: names of factors, and numbers of sources that gave no row


class Partial:
    """The rows of a store that is being converted from a list of sources.

    Attributes:
        done: how many sources were worked off; 0 until :meth:`start`.
        rows: how many rows came of them.
        note: of the store; to be set before :meth:`append`.
        skipped: numbers of the sources that gave no row.
    """

    skipped: list[int]

    def __init__(self, file: io.BufferedRandom, key: str) -> None:
        self._file, self._key = file, key
        self.done = self.rows = 0
        self.note, self.skipped = "", []

    def start(
        self,
        image_shape: tuple[int, int, int],
        binary: bool = False,
        total: int = 0,
        scattered: bool = False,
    ) -> None:
        """Go on where an earlier conversion stopped, if it had the same key and image shape.

        Args:
            image_shape: (C, H, W) in pixels.
            binary: whether rows are bit-packed.
            total: number of all rows, where it is known.
            scattered: whether rows come by :meth:`put`, out of order; such a conversion starts
                anew.

        Raises:
            OSError: the disk has no room for that many rows.
        """
        self._shape, self._binary = image_shape, binary
        self._width = -(-prod(image_shape) // 8) if binary else prod(image_shape)
        if scattered:
            self._file.truncate(0)
        try:
            self._file.seek(0)
            progress = from_json(self._file.read(_HEADER))
            same = (progress["key"], progress["shape"]) == (self._key, list(image_shape))
            size = _HEADER + progress["rows"] * self._width
            if same and os.fstat(self._file.fileno()).st_size >= size:
                self.done, self.rows = progress["done"], progress["rows"]
                self.note, self.skipped = progress.get("note", ""), progress["skipped"]
        except (ValueError, KeyError, TypeError):
            pass  # a new file, or not one of ours
        self.check_space((total - self.rows) * self._width)
        self._file.truncate(_HEADER + (total if scattered else self.rows) * self._width)

    def check_space(self, size: int) -> None:
        """Check that the disk has room for so many bytes.

        Raises:
            OSError: it has not.
        """
        disk = os.fstatvfs(self._file.fileno())
        if size > disk.f_bavail * disk.f_frsize:
            raise OSError(errno.ENOSPC, f"they need {size / 1e9:.1f} GB, more than is free")

    def append(self, rows: Iterable[np.ndarray], done: int) -> None:
        """Keep rows.

        Args:
            rows: uint8 ``[bytes]`` each, contiguous.
            done: how many sources are now worked off, those that gave no row included.

        Raises:
            OSError: the disk is full; what was kept before is still there.
        """
        self._file.seek(0, os.SEEK_END)
        for row in rows:
            self._file.write(row.data)
            self.rows += 1
        self._sync()  # the rows are on the disk before the header counts them
        self.done = done
        progress = {"key": self._key, "shape": self._shape, "done": done, "rows": self.rows}
        progress |= {"note": self.note} if self.note else {}
        text = json.dumps(progress | {"skipped": self.skipped}).encode()
        if len(text) > _HEADER:
            raise UserError(f"{len(self.skipped):,} images are broken; mend or remove them")
        self._file.seek(0)
        self._file.write(text.ljust(_HEADER))
        self._file.flush()

    def put(self, rows: Iterable[np.ndarray], places: Iterable[int]) -> None:
        """Keep rows at given places.

        Args:
            rows: as in :meth:`append`.
            places: the row numbers that they get in the store.
        """
        for row, place in zip(rows, places, strict=True):
            self._file.seek(_HEADER + int(place) * self._width)
            self._file.write(row.data)
            self.rows += 1

    def finish(self, name: str, factors: KnownFactors = NO_FACTORS) -> None:
        """Turn the file into that of a store with those factors."""
        fields = {
            "name": name,
            "image_shape": self._shape,
            "binary": self._binary,
            "factor_names": factors.names,
            "factor_sizes": factors.sizes,
        } | ({"note": self.note} if self.note else {})
        self._file.seek(0, os.SEEK_END)
        self._file.write(labels_bytes(factors.labels))
        self._file.seek(_HEADER)
        header = file_header(
            fields,
            [self.rows, self._width],
            lambda digest: hashlib.file_digest(self._file, lambda: digest),
            factors.labels,
            _HEADER,
        )
        if len(header) > _HEADER:
            raise UserError(f"{name}: {len(factors.names):,} factors are too many; give fewer")
        self._file.seek(0)
        self._file.write(header)
        self._sync()

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())


def converted(
    key: str, source: str, convert: Callable[[Partial], tuple[str, KnownFactors]]
) -> Store:
    """The store under a key: loaded from the cache, or else converted there, row by row.

    A conversion that was killed goes on where it stopped. Two processes do not convert the same
    source at once: one waits for the other.

    Args:
        key: as in :func:`fvae.data.cache.cached`; changes with the content of the source.
        source: names the unfinished file; the same for any content, so that an unfinished file
            of older content is replaced rather than left behind.
        convert: starts the partial conversion, appends every row, and returns the store's name
            and factors. What it raises is passed on; the rows so far are kept.

    Returns:
        The store; its data is memory-mapped.

    Raises:
        UserError: the cache folder cannot be written, or the disk is full.
    """
    path = cache_file(key)
    unfinished = path.with_name(f"{source}.partial")
    try:
        while (store := from_cache(path)) is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(os.open(unfinished, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
                _lock(file, unfinished)
                if not _is_at(file, unfinished):
                    continue  # while we waited, the other process finished it
                partial = Partial(file, key)
                try:
                    partial.finish(*convert(partial))
                    os.replace(unfinished, path)
                finally:
                    if not partial.rows:
                        unfinished.unlink(missing_ok=True)
                return load_file(path)
    except OSError as error:
        raise UserError(
            f"{path.parent}: cannot keep converted images there ({error.strerror}); free some"
            " space, or set FVAE_CACHE to another folder"
        ) from None
    return store


def _lock(file: BinaryIO, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        warn(f"another process is converting the same images ({path}); waiting for it")
        fcntl.flock(file, fcntl.LOCK_EX)


def _is_at(file: BinaryIO, path: Path) -> bool:
    return path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())
