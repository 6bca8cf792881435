"""Cars3D as published: a folder or archive of car_*_mesh.mat, one file a car."""

import io
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import h5py
import numpy as np
import scipy.io
import torch
from PIL import Image

from fvae.data.image_files import folder_listing
from fvae.data.reading import h5_opened, reading
from fvae.data.store import Store
from fvae.errors import UserError, warn

NAMES = ("elevation", "azimuth", "object")
ELEVATIONS, AZIMUTHS = 4, 24
SIDE = 128  # pixels, as published
OBJECTS = 183

_SHAPE = (SIDE, SIDE, 3, AZIMUTHS, ELEVATIONS)
_EXPECTED = "Cars3D's .mat files as published (data/cars of nips2015-analogy-data.tar.gz)"
_TARS = (".tar", ".tar.gz", ".tgz")
_LARGEST = 1 << 26  # bytes of a .mat file


def is_cars3d(path: Path) -> bool:
    """Whether a folder holds .mat files and no pictures, or an archive a folder ``cars`` of them.

    3D Chairs has a .mat file beside its pictures.
    """
    names = _names(path)
    named = all(_is_car(name) for name in names) or (path.is_dir() and path.name == "cars")
    return bool(names) and (named or not folder_listing(path))


def is_archive(path: Path) -> bool:
    """Whether the path's name is that of an archive that is read here."""
    return path.name.lower().endswith((*_TARS, ".zip"))


def stamp(path: Path) -> str:
    """What changes with the files of a folder."""
    files = [path / name for name in sorted(_names(path))]
    return "|".join(f"{f.name}:{f.stat().st_size}:{f.stat().st_mtime_ns}" for f in files)


def load_cars3d(
    path: Path, progress: Callable[[float], None] = lambda done: None, side: int = 64
) -> Store:
    """Cars3D from its published .mat files, resized.

    Args:
        path: a folder of them, one with ``cars`` or ``data/cars`` inside, or an archive with a
            folder ``cars``. Each file holds ``im``, uint8 ``[128, 128, 3, 24, 4]``: height, width,
            colour, azimuth, elevation of one car.
        progress: called with the finished fraction, 0..1.
        side: of the images, in pixels; resized by Lanczos' filter, as is usual for this set.

    Returns:
        A store of colour images ``[3, side, side]`` with the factors elevation (4), azimuth (24)
        and object (one a file, in order of the files' names, numbers by their value).

    Raises:
        UserError: a file is damaged or not laid out like this.

    Source:
        Reed et al., "Deep Visual Analogy-Making", 2015; factors as in Locatello et al. 2019.
    """
    names = _names(path)
    if not names:
        raise UserError(f"{path}: no .mat file in it; expected {_EXPECTED}")
    if len(names) != OBJECTS:
        warn(f"{path}: {len(names)} .mat files, of {OBJECTS} cars in Cars3D as published")
    order = {name: i for i, name in enumerate(sorted(names, key=_natural))}
    data = np.empty((ELEVATIONS, AZIMUTHS, len(names), 3, side, side), np.uint8)
    for done, (name, content) in enumerate(_files(path, set(names)), start=1):
        with reading(path / name, _EXPECTED):
            views = _resized(_im(content), side)  # [azimuth, elevation, H, W, C]
        data[:, :, order[name]] = views.transpose(1, 0, 4, 2, 3)
        progress(done / len(names))
    flat = torch.from_numpy(data).flatten(3).flatten(0, 2)
    sizes = (ELEVATIONS, AZIMUTHS, len(names))
    return Store("cars3d", flat, (3, side, side), False, NAMES, sizes)


# --- the files -----------------------------------------------------------------------------------


def _names(path: Path) -> list[str]:
    """Names of the .mat files, relative to the folder or inside the archive."""
    if path.is_dir():
        for folder in (path, path / "cars", path / "data" / "cars"):
            files = [f for f in folder.glob("*.mat") if f.is_file() and f.name[0] != "."]
            if files:
                return [str(f.relative_to(path)) for f in files]
        return []
    if not is_archive(path):
        return []
    with reading(path, _EXPECTED):
        if path.suffix.lower() == ".zip":
            with zipfile.ZipFile(path) as archive:
                return [name for name in archive.namelist() if _is_car(name)]
        with tarfile.open(path) as tar:
            return [member.name for member in tar if member.isreg() and _is_car(member.name)]


def _is_car(name: str) -> bool:
    path = PurePosixPath(name)
    inside = path.parent.name == "cars" or path.name.startswith("car_")
    return path.suffix.lower() == ".mat" and inside and path.name[0] != "."


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort numbers in a name by their value."""
    return [(int(p), "") if p.isdigit() else (0, p) for p in re.split(r"(\d+)", name)]


def _files(path: Path, names: set[str]) -> Iterator[tuple[str, BinaryIO]]:
    """Name and content of each file, in the order in which they can be read without going back."""

    def checked(name: str, size: int, read: Callable[[], bytes]) -> tuple[str, BinaryIO]:
        if size > _LARGEST:
            raise UserError(f"{path / name}: {size:,} bytes; expected {_EXPECTED}")
        return name, io.BytesIO(read())

    with reading(path, _EXPECTED):
        if path.is_dir():
            for name in sorted(names):
                file = path / name
                yield checked(name, file.stat().st_size, file.read_bytes)
        elif path.suffix.lower() == ".zip":
            with zipfile.ZipFile(path) as archive:
                for info in archive.infolist():
                    if info.filename in names:
                        yield checked(info.filename, info.file_size, partial(archive.read, info))
        else:
            with tarfile.open(path) as tar:
                for member in tar:
                    if member.isreg() and member.name in names:
                        content: Any = tar.extractfile(member)
                        yield checked(member.name, member.size, content.read)


# --- their content -------------------------------------------------------------------------------


def _im(file: BinaryIO) -> np.ndarray:
    """The array ``im`` of a MATLAB file, checked before it is read; objects are never loaded."""
    if file.read(10) == b"MATLAB 7.3":
        with h5_opened(file) as h5:
            array = h5.get("im")
            if not isinstance(array, h5py.Dataset):
                raise UserError(f"no array 'im', found {sorted(h5)}")
            _check(array.shape[::-1], str(array.dtype))
            return array[:].T
    file.seek(0)
    found = {name: (shape, kind) for name, shape, kind in scipy.io.whosmat(file)}
    if "im" not in found:
        raise UserError(f"no array 'im', found {sorted(found)}")
    _check(*found["im"])
    file.seek(0)
    return scipy.io.loadmat(file, variable_names=["im"])["im"]


def _check(shape: tuple[int, ...], kind: str) -> None:
    if tuple(shape) != _SHAPE or kind != "uint8":
        raise UserError(f"im is {list(shape)} {kind}, expected {list(_SHAPE)} uint8")


def _resized(im: np.ndarray, side: int) -> np.ndarray:
    """``[H, W, 3, azimuth, elevation]`` as ``[azimuth, elevation, side, side, 3]``."""
    views = np.ascontiguousarray(im.transpose(3, 4, 0, 1, 2))
    if side == SIDE:
        return views
    small = [
        np.asarray(Image.fromarray(view).resize((side, side), Image.Resampling.LANCZOS))
        for view in views.reshape(-1, SIDE, SIDE, 3)
    ]
    return np.stack(small).reshape(AZIMUTHS, ELEVATIONS, side, side, 3)
