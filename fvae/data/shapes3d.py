"""3D Shapes as published: 3dshapes.h5."""

from collections.abc import Callable
from math import prod
from pathlib import Path

import numpy as np
import torch

from fvae.data.arrays import Array
from fvae.data.reading import CHUNK, check_array, grid_sizes, h5_arrays, h5_opened, is_grid, reading
from fvae.data.store import Store
from fvae.errors import UserError

NAMES = ("floor_hue", "wall_hue", "object_hue", "scale", "shape", "orientation")
SHAPE = (3, 64, 64)


def is_shapes3d(arrays: dict[str, Array]) -> bool:
    """Whether arrays are laid out as 3D Shapes is published: a full grid in order."""
    images, labels = arrays.get("images"), arrays.get("labels")
    if images is None or images.shape[1:] != (*SHAPE[1:], SHAPE[0]) or images.dtype != np.uint8:
        return False
    if labels is None or labels.dtype.kind != "f" or labels.shape != (images.shape[0], len(NAMES)):
        return False
    return is_grid(_classes(labels.whole()))


def load_shapes3d_h5(path: Path, progress: Callable[[float], None] = lambda done: None) -> Store:
    """3D Shapes from its published HDF5 file.

    The pixels are held once, as bytes: 5.9 GB for the published file.

    Args:
        path: the file. ``images`` is uint8 ``[N, 64, 64, 3]``; ``labels`` is floats ``[N, 6]``:
            floor hue, wall hue, object hue, scale, shape, orientation.
        progress: called with the finished fraction, 0..1.

    Returns:
        A store of N images ``[3, 64, 64]`` with six factors; class c of a factor is the c-th
        smallest of its labels.

    Raises:
        UserError: the file is missing, damaged, or not laid out like this.

    Source:
        github.com/google-deepmind/3d-shapes.
    """
    with reading(path, "3dshapes.h5 as it was published"), h5_opened(path) as file:
        images, labels = h5_arrays(file, "images", "labels")
        check_array(path, "images", images, (None, *SHAPE[1:], SHAPE[0]), np.uint8)
        check_array(path, "labels", labels, (None, len(NAMES)), np.floating)
        sizes = grid_sizes(path, "labels", _classes(labels[:]))
        if len(images) != len(labels):
            raise UserError(
                f"{path}: {len(images)} images for {len(labels)} labels; "
                "use the file as it was published"
            )
        data = np.empty((len(images), *SHAPE), np.uint8)
        for start in range(0, len(images), CHUNK):
            stop = min(start + CHUNK, len(images))
            data[start:stop] = images[start:stop].transpose(0, 3, 1, 2)
            progress(stop / len(images))
    flat = torch.from_numpy(data.reshape(len(data), prod(SHAPE)))
    return Store("3dshapes", flat, SHAPE, False, NAMES, sizes)


def _classes(labels: np.ndarray) -> np.ndarray:
    """The number of each label among its column's sorted values, ``[N, K]``."""
    return np.stack([np.unique(c, return_inverse=True)[1] for c in labels.T], axis=1)
