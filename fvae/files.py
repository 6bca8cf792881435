"""Files written whole or not at all, and the folder of those that are kept for later runs."""

import contextlib
import fcntl
import glob
import json
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import platformdirs


def cache_folder() -> Path:
    """The folder of what is kept for later runs: ``$FVAE_CACHE``, or the user's cache for fvae."""
    chosen = os.environ.get("FVAE_CACHE")
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("fvae")


def encoded(text: str) -> bytes:
    """Return text as UTF-8; of a file's name that is none, the bytes that the name has."""
    return text.encode("utf-8", "surrogateescape")


def from_json(text: str | bytes) -> Any:
    """Return what JSON of anybody's file says.

    Raises:
        ValueError: it is no JSON, or nested deeper than Python goes.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None


def write_atomically(path: Path, *parts: bytes | memoryview | str) -> None:
    """Write a file so that a reader sees the old content or the new, never a part.

    Args:
        path: the file; its folder exists.
        parts: its content, one after another.

    Raises:
        OSError: the folder is read-only or the disk is full; the old file is then untouched.
    """
    _clear(path)
    # Each writer has its own temporary file, so two processes cannot mix; the last one wins.
    handle, temporary = _temporary(path)
    try:
        with os.fdopen(handle, "wb") as file:
            for part in parts:
                file.write(encoded(part) if isinstance(part, str) else part)
            file.flush()
            os.fsync(file.fileno())
            # mkstemp makes files that only the owner can read; a result is an ordinary file.
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(temporary, 0o666 & ~umask)
            os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # a full disk is reported by write(), which knows no name
        raise


def _temporary(path: Path) -> tuple[int, str]:
    """Make a file beside another; its lock says for as long as we live that it is in use."""
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        fcntl.flock(handle, fcntl.LOCK_EX)
        if os.path.exists(name):  # nobody took it for a leftover before it was locked
            return handle, name
        os.close(handle)


def _clear(path: Path) -> None:
    """Delete what killed writers of a file left: up to the size of a data set each."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.????????"):
        with contextlib.suppress(OSError), open(left, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()


# Folders that this process has locked, by device and inode, and the thread that did.
_held: dict[tuple[int, int], int] = {}


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, which ends with this process at the latest.

    Raises:
        BlockingIOError: somebody holds it.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        key = _identity(os.fstat(handle))
        _held[key] = threading.get_ident()
        try:
            yield
        finally:
            del _held[key]
    finally:
        os.close(handle)


def holds(folder: Path) -> bool:
    """Return whether this thread holds the folder's lock."""
    try:
        return _held.get(_identity(folder.stat())) == threading.get_ident()
    except OSError:
        return False


def _identity(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_dev, stat.st_ino
