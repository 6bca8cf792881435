"""SmallNORB as published: the binary matrices smallnorb-*-{dat,cat,info}.mat, gzipped or not."""

import gzip
import re
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image

from fvae.data.reading import reading
from fvae.data.store import Store
from fvae.errors import UserError

NAMES = ("category", "elevation", "azimuth", "lighting")
SIDE = 96  # pixels, as published

_EXPECTED = "SmallNORB's smallnorb-*-{dat,cat,info}.mat(.gz) as published"
_NAME = re.compile(r"(smallnorb-.*-(training|testing))-(dat|cat|info)\.mat(\.gz)?$")
_MAGIC = {0x1E3D4C55: "<u1", 0x1E3D4C54: "<i4"}
_MAGIC_OTHERS = {0x1E3D4C51: "float", 0x1E3D4C53: "double", 0x1E3D4C56: "short"}
_IMAGES = 256  # read at once
_MOST = 1 << 20  # images: a few bytes may claim any number

Split = dict[str, Path]


def splits(path: Path) -> dict[str, Split]:
    """The files by split ("training", "testing") and kind ("dat", "cat", "info").

    Args:
        path: a folder of them, or one of them, which stands for its split.
    """
    found: dict[str, Split] = {}
    one = _NAME.match(path.name) if path.is_file() else None
    if one is None and not path.is_dir():
        return found
    for file in sorted((path.parent if one else path).iterdir()):
        name = _NAME.match(file.name)
        # Of a file and its gzipped twin the first is taken: the one that is unpacked.
        if name and (one is None or name[1] == one[1]):
            found.setdefault(name[2], {}).setdefault(name[3], file)
    return {split: found[split] for split in ("training", "testing") if split in found}


def stamp(path: Path) -> str:
    """What changes with the files."""
    files = [file for split in splits(path).values() for file in split.values()]
    return "|".join(f"{f.name}:{f.stat().st_size}:{f.stat().st_mtime_ns}" for f in files)


def load_smallnorb(
    path: Path, progress: Callable[[float], None] = lambda done: None, side: int = 64
) -> Store:
    """SmallNORB from its published matrices: the first camera's pictures, resized.

    Args:
        path: a folder with the three files of the training split, the testing split or both, or
            one of a split's files. ``dat`` is uint8 ``[N, 2, 96, 96]``, two cameras; ``cat`` int32
            ``[N]``; ``info`` int32 ``[N, 4]``: instance, elevation, azimuth (0, 2 .. 34), lighting.
        progress: called with the finished fraction, 0..1.
        side: of the images, in pixels; resized by Lanczos' filter, as is usual for this set.

    Returns:
        A store of gray images ``[1, side, side]``, training before testing, with labels category,
        elevation, azimuth and lighting in the units of the file. The instance is left out: a split
        has 5 of each category, so that it is 4,860 combinations of 5 images.

    Raises:
        UserError: a file is missing, damaged, or not laid out like this.

    Source:
        LeCun et al., "Learning Methods for Generic Object Recognition", 2004;
        cs.nyu.edu/~ylclab/data/norb-v1.0-small.
    """
    found = splits(path)
    if not found:
        raise UserError(f"{path}: no such files; expected {_EXPECTED}")
    labels = [_labels(path, name, split) for name, split in found.items()]
    total = sum(len(rows) for rows in labels)
    data = np.empty((total, side * side), np.uint8)
    done = 0
    for split, rows in zip(found.values(), labels, strict=True):
        with reading(split["dat"], _EXPECTED), _open(split["dat"]) as file:
            shape, _ = _header(split["dat"], file, (len(rows), 2, SIDE, SIDE), "<u1")
            for start in range(0, shape[0], _IMAGES):
                count = min(_IMAGES, shape[0] - start)
                pairs = _numbers(file, (count, *shape[1:]), "<u1")
                for picture in pairs[:, 0]:
                    data[done] = _resized(picture, side).ravel()
                    done += 1
                progress(done / total)
    name = "smallnorb" if len(found) == 2 else f"smallnorb ({next(iter(found))})"
    together = torch.from_numpy(np.concatenate(labels).astype(np.int64))
    return Store(name, torch.from_numpy(data), (1, side, side), False, NAMES, labels=together)


def _labels(path: Path, name: str, split: Split) -> np.ndarray:
    """Category, elevation, azimuth and lighting of a split, ``[N, 4]``."""
    missing = sorted({"dat", "cat", "info"} - split.keys())
    if missing:
        raise UserError(
            f"{path}: the {name} split has no {' and no '.join(missing)} file; expected {_EXPECTED}"
        )
    tables = []
    for kind, columns in (("cat", ()), ("info", (4,))):
        with reading(split[kind], _EXPECTED), _open(split[kind]) as file:
            shape, dtype = _header(split[kind], file, (None, *columns), "<i4")
            tables.append(_numbers(file, shape, dtype).reshape(shape[0], -1))
    category, info = tables
    if len(category) != len(info):
        raise UserError(f"{path}: {len(category)} categories for {len(info)} rows of info")
    return np.hstack([category, info[:, 1:]])


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix == ".gz" else open(path, "rb")  # type: ignore[return-value]


def _header(
    path: Path, file: IO[bytes], expected: tuple[int | None, ...], dtype: str
) -> tuple[tuple[int, ...], str]:
    """Shape and dtype of a matrix: a magic number, the number of axes, and their lengths."""
    magic, axes = (int(x) for x in _numbers(file, (2,), "<i4"))
    found = _MAGIC.get(magic)
    if found is None:
        kind = _MAGIC_OTHERS.get(magic, "no such matrix")
        raise UserError(f"{path}: begins with {magic:#x} ({kind}); expected {_EXPECTED}")
    if not 1 <= axes <= 8:
        raise UserError(f"{path}: claims {axes} axes; expected {_EXPECTED}")
    # At least three lengths are written, whatever the number of axes.
    lengths = tuple(int(x) for x in _numbers(file, (max(3, axes),), "<i4")[:axes])
    fits = len(lengths) == len(expected) and all(
        want in (None, got) for got, want in zip(lengths, expected, strict=True)
    )
    if not fits or found != dtype or not 1 <= lengths[0] <= _MOST:
        wanted = ", ".join("N" if size is None else str(size) for size in expected)
        raise UserError(
            f"{path}: is {list(lengths)} {found[1:]}, expected [{wanted}] {dtype[1:]}; use the file"
            " as it was published"
        )
    return lengths, found


def _numbers(file: IO[bytes], shape: tuple[int, ...], dtype: str) -> np.ndarray:
    size = prod(shape) * int(dtype[-1])
    content = file.read(size)
    if len(content) != size:
        raise EOFError("it ends early")
    return np.frombuffer(content, dtype).reshape(shape)


def _resized(picture: np.ndarray, side: int) -> np.ndarray:
    if side == SIDE:
        return picture
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS))
