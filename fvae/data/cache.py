"""Packed stores kept on disk, so that a data set is drawn or converted only once.

A store is one safetensors file whose metadata holds the store's description and the SHA-256 of
both. A file is written whole or not at all, checked when it is loaded, and memory-mapped.
"""

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch

from fvae.data.store import Store
from fvae.errors import warn
from fvae.files import cache_folder, from_json, write_atomically

_SUFFIX = ".safetensors"


class CacheEntry(NamedTuple):
    """One cached store: its name, its file's size in bytes, and the file's path."""

    name: str
    size: int
    path: Path


def cache_entries() -> list[CacheEntry]:
    """The cached stores, sorted by path; a file that is damaged is listed by its file name."""
    entries = []
    for path in sorted(cache_folder().glob(f"*{_SUFFIX}")):
        try:
            with open(path, "rb") as file:
                name = from_json(_read_header(file)[0])["name"]
        except (OSError, ValueError):
            name = path.stem
        entries.append(CacheEntry(name, path.stat().st_size, path))
    return entries


def cached(key: str, build: Callable[[], Store]) -> Store:
    """The store under a key: loaded from the cache, or else built and put there.

    A damaged file is built again. Where the cache cannot be written the store is still returned.
    Both say so in one line on stderr.

    Args:
        key: names the file in the cache folder; letters, digits, ``-``, ``_``, ``.``.
        build: makes the store. What it raises is passed on, and no file is left.

    Returns:
        The store; its data is memory-mapped when it comes from the cache.
    """
    path = cache_file(key)
    store = from_cache(path)
    if store is None:
        store = build()
        try:
            _save(path, store)
        except OSError as error:
            warn(f"cannot keep {store.name} in {path.parent} ({error.strerror}); set FVAE_CACHE")
    return store


def cache_file(key: str) -> Path:
    """The path of the store with that key, whether it is there or not."""
    return cache_folder() / f"{key}{_SUFFIX}"


def from_cache(path: Path) -> Store | None:
    """The store in a cache file, or None; one line on stderr says so if the file is damaged."""
    try:
        return load_file(path)
    except OSError:
        pass  # not there, or the folder cannot be used: then saving will say so
    except ValueError as error:
        warn(f"cached data {path} is damaged ({error}); building it again")
        with suppress(OSError):
            path.unlink()
    return None


def load_file(path: Path) -> Store:
    """The store in a cache file, verified. Raises OSError or ValueError."""
    with open(path, "rb") as file:
        description, checksum = _read_header(file)
        start = file.tell()
        # Hashing by read() rather than through the map keeps resident memory small.
        digest = hashlib.file_digest(file, lambda: hashlib.sha256(description.encode()))
        if digest.hexdigest() != checksum:
            raise ValueError("its checksum is wrong")
        fields = from_json(description)
        fields = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
        # Copy-on-write: torch wants writable memory, and the file stays as it is.
        data = np.memmap(file, np.uint8, "c", start, fields.pop("shape"))
        labels = None
        if dtype := fields.pop("labels", None):
            file.seek(start + data.nbytes)
            labels = torch.from_numpy(np.fromfile(file, dtype).reshape(len(data), -1))
    try:
        return Store(data=torch.from_numpy(data), labels=labels, **fields)
    except TypeError as error:  # a field that this version does not know
        raise ValueError(f"made by another version of fvae: {error}") from None


def _read_header(file: BinaryIO) -> tuple[str, str]:
    """The store's description and the checksum; leaves the file at the data."""
    try:
        length = int.from_bytes(file.read(8), "little")
        metadata = from_json(file.read(length if length < 1 << 20 else 0))["__metadata__"]
        return metadata["store"], metadata["sha256"]
    except (ValueError, KeyError, TypeError):
        raise ValueError("its header is wrong") from None


def _save(path: Path, store: Store) -> None:
    """Write a store whole or not at all. Raises OSError."""
    content = store.data.contiguous().numpy().data.cast("B")
    labels = labels_bytes(store.labels)

    def digest_data(digest: "hashlib._Hash") -> None:
        digest.update(content)
        digest.update(labels)

    fields = ["name", "image_shape", "binary", "factor_names", "factor_sizes"]
    fields += ["note"] if store.note else []
    header = file_header(
        {field: getattr(store, field) for field in fields},
        list(store.data.shape),
        digest_data,
        store.labels,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, header, content, labels)


def labels_bytes(labels: torch.Tensor | None) -> bytes:
    """What stands after the data in a cache file: the labels, row-major and little-endian."""
    if labels is None:
        return b""
    array = labels.contiguous().numpy()
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def file_header(
    fields: dict[str, Any],
    shape: list[int],
    digest_data: Callable[["hashlib._Hash"], object],
    labels: torch.Tensor | None = None,
    length: int = 0,
) -> bytes:
    """What stands before the data in a cache file.

    Args:
        fields: the store's fields other than its data and labels.
        shape: ``[N, bytes]`` of the data.
        digest_data: feeds the data, then :func:`labels_bytes`, to the hash object that it is given.
        labels: the store's.
        length: bytes that the header fills at least.
    """
    end = prod(shape)
    tensors = {"data": {"dtype": "U8", "shape": shape, "data_offsets": [0, end]}}
    if labels is not None:
        kind = "i8" if labels.dtype == torch.int64 else "f8"
        fields = fields | {"labels": "<" + kind}
        tensors["labels"] = {
            "dtype": {"i8": "I64", "f8": "F64"}[kind],
            "shape": list(labels.shape),
            "data_offsets": [end, end + labels.nbytes],
        }
    description = json.dumps(fields | {"shape": shape})
    digest = hashlib.sha256(description.encode())
    digest_data(digest)
    header = {"__metadata__": {"store": description, "sha256": digest.hexdigest()}} | tensors
    text = json.dumps(header).encode().ljust(length - 8)
    text += b" " * (-(8 + len(text)) % 64)  # the data starts aligned for any processor
    return len(text).to_bytes(8, "little") + text
