"""dSprites as published: the .npz and its HDF5 twin."""

from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import IO
from zipfile import ZipFile

import numpy as np
import torch

from fvae.data.arrays import Array
from fvae.data.dsprites import NAMES, SIDE
from fvae.data.reading import CHUNK, check_array, grid_sizes, h5_arrays, h5_opened, is_grid, reading
from fvae.data.store import Store
from fvae.errors import UserError

_PIXELS = SIDE * SIDE


def is_dsprites(arrays: dict[str, Array]) -> bool:
    """Whether arrays are laid out as dSprites is published: a full grid in order."""
    images = arrays.get("imgs")
    classes = arrays.get("latents_classes", arrays.get("latents/classes"))
    if images is None or images.shape[1:] != (SIDE, SIDE) or images.dtype != np.uint8:
        return False
    if classes is None or classes.dtype.kind not in "iu" or len(classes.shape) != 2:
        return False
    return classes.shape == (images.shape[0], len(NAMES) + 1) and is_grid(classes.whole())


def load_dsprites_npz(path: Path, progress: Callable[[float], None] = lambda done: None) -> Store:
    """The dSprites of the published .npz, bit-packed as it streams in.

    The images are never held unpacked, so memory stays near the packed size. Only ``imgs`` and
    ``latents_classes`` are opened: the file's ``metadata`` is a pickle, and is left alone.

    Args:
        path: the file. ``imgs`` is uint8 ``[N, 64, 64]`` of 0/1; ``latents_classes`` is whole
            numbers ``[N, 6]``: colour (of one value), shape, scale, orientation, posX, posY.
        progress: called with the finished fraction, 0..1.

    Returns:
        A binary store of N images with five factors; the sizes come from the file.

    Raises:
        UserError: the file is missing, damaged, or not laid out like this.

    Source:
        github.com/google-deepmind/dsprites-dataset.
    """
    with reading(path, "dSprites' .npz as it was published"), ZipFile(path) as archive:
        members = archive.namelist()
        for key in ("imgs", "latents_classes"):
            if f"{key}.npy" not in members:
                found = [name.removesuffix(".npy") for name in members]
                raise UserError(
                    f"{path}: no array {key!r}, found {found}; expected imgs, latents_classes"
                )
        with archive.open("latents_classes.npy") as member:
            sizes = _sizes(path, np.lib.format.read_array(member, allow_pickle=False))
        with archive.open("imgs.npy") as member:
            count = _count(path, member)

            def read(start: int, stop: int) -> np.ndarray:
                content = _read_fully(member, (stop - start) * _PIXELS)
                return np.frombuffer(content, np.uint8)

            return _pack(path, read, count, sizes, progress)


def load_dsprites_h5(path: Path, progress: Callable[[float], None] = lambda done: None) -> Store:
    """The dSprites of the published HDF5 twin, bit-packed as it streams in.

    Args:
        path: the file, with ``imgs`` and ``latents/classes`` as in :func:`load_dsprites_npz`.
        progress: called with the finished fraction, 0..1.

    Returns:
        A binary store of N images with five factors; the sizes come from the file.

    Raises:
        UserError: the file is missing, damaged, or not laid out like this.
    """
    with reading(path, "dSprites' .hdf5 as it was published"), h5_opened(path) as file:
        images, classes = h5_arrays(file, "imgs", "latents/classes")
        check_array(path, "imgs", images, (None, SIDE, SIDE), np.uint8)
        check_array(path, "latents/classes", classes, (None, len(NAMES) + 1), np.integer)
        sizes = _sizes(path, classes[:])

        def read(start: int, stop: int) -> np.ndarray:
            return images[start:stop]

        return _pack(path, read, len(images), sizes, progress)


def _sizes(path: Path, classes: np.ndarray) -> tuple[int, ...]:
    """Sizes of the five factors; the colour before them has one value and is dropped."""
    check_array(path, "latents_classes", classes, (None, len(NAMES) + 1), np.integer)
    colours, *sizes = grid_sizes(path, "latents_classes", classes)
    if colours != 1:
        raise UserError(f"{path}: {colours} colours, expected 1; dSprites sprites are white")
    return tuple(sizes)


def _count(path: Path, member: IO[bytes]) -> int:
    """The number of images, from the header that stands before the pixels."""
    version = np.lib.format.read_magic(member)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read_header is None:
        raise UserError(f"{path}: imgs is in .npy format {version}, expected (1, 0) or (2, 0)")
    shape, fortran_order, dtype = read_header(member)
    # A stand-in with the right shape and dtype, so that nothing is allocated for a false header.
    check_array(
        path, "imgs", np.broadcast_to(np.empty((), dtype), shape), (None, SIDE, SIDE), np.uint8
    )
    if fortran_order:
        raise UserError(f"{path}: imgs is in Fortran order; save it in C order")
    return shape[0]


def _read_fully(member: IO[bytes], size: int) -> bytes:
    content = member.read(size)
    if len(content) != size:
        raise EOFError("imgs ends early")
    return content


def _pack(
    path: Path,
    read: Callable[[int, int], np.ndarray],
    count: int,
    sizes: tuple[int, ...],
    progress: Callable[[float], None],
) -> Store:
    if count != prod(sizes):
        raise UserError(
            f"{path}: {count} images for {prod(sizes)} rows of classes; "
            "use the file as it was published"
        )
    packed = np.empty((count, _PIXELS // 8), np.uint8)
    for start in range(0, count, CHUNK):
        stop = min(start + CHUNK, count)
        images = read(start, stop)
        if images.max() > 1:
            raise UserError(
                f"{path}: imgs has the value {images.max()}, expected 0 and 1 only; "
                "use the file as it was published"
            )
        bits = images.reshape(stop - start, _PIXELS)
        packed[start:stop] = np.packbits(bits, axis=1, bitorder="little")
        progress(stop / count)
    return Store("dsprites", torch.from_numpy(packed), (1, SIDE, SIDE), True, NAMES, sizes)
