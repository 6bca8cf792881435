"""dSprites, rendered from its geometry."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from math import prod

import numpy as np
import torch

from fvae.data.classes import checked_classes
from fvae.data.store import Store

NAMES = ("shape", "scale", "orientation", "posX", "posY")
SIZES = (3, 6, 40, 32, 32)
SIDE = 64  # pixels

# The original was drawn by a GPU, which snaps vertices to this fraction of a pixel. In these units
# coordinates are whole numbers and the edge test is exact.
_SUBPIXELS = 256

_SCALES = np.linspace(0.5, 1, SIZES[1])
_ANGLES = np.linspace(0, 2 * np.pi, SIZES[2])  # both ends, so class 39 looks like class 0
_CENTRES = 16 + 32 * np.linspace(0, 1, SIZES[3])  # pixels, for x and for y


def render_dsprites(classes: object) -> np.ndarray:
    """The 64 x 64 images of the given dSprites classes, drawn from fitted geometry.

    The drawing is near-identical to the published data set, not byte-identical: squares and
    ellipses agree on every real frame checked, a few hearts differ by one or two edge pixels.

    Args:
        classes: whole numbers ``[n, 5]``: shape (0 square, 1 ellipse, 2 heart), scale 0..5,
            orientation 0..39, posX 0..31, posY 0..31.

    Returns:
        uint8 ``[n, 64, 64]``, 0 or 1; rows run down, columns run right.

    Raises:
        UserError: classes has another shape, is not of whole numbers or is out of range.

    Source:
        Geometry fitted to frames of github.com/google-deepmind/dsprites-dataset.
    """
    classes = checked_classes(classes, NAMES, SIZES)
    images = np.empty((len(classes), SIDE, SIDE), np.uint8)
    for shape in range(SIZES[0]):
        mine = np.flatnonzero(classes[:, 0] == shape)
        for start in range(0, len(mine), 512):  # bounds the working memory
            some = mine[start : start + 512]
            _, scale, angle, x, y = classes[some].T
            dx, dy = _turned(shape, _SCALES[scale], _ANGLES[angle])
            rows = _fill(
                _snap(_CENTRES[x][:, None] + dx)[:, None], _snap(_CENTRES[y][:, None] + dy)
            )
            bits = np.unpackbits(rows.view(np.uint8), bitorder="little")
            images[some] = bits.reshape(-1, SIDE, SIDE)
    return images


def rendered_store(progress: Callable[[float], None] = lambda done: None) -> Store:
    """The full dSprites grid of 737,280 images, drawn by :func:`render_dsprites`'s geometry.

    Args:
        progress: called with the finished fraction, 0..1, as the work goes on.

    Returns:
        A binary store named "dsprites (rendered)", 378 MB.
    """
    polygons = list(np.ndindex(*SIZES[:3]))
    grid = np.empty((len(polygons), *SIZES[3:], SIDE), "<u8")

    def draw(number: int) -> None:
        shape, scale, angle = polygons[number]
        dx, dy = _turned(shape, _SCALES[[scale]], _ANGLES[[angle]])
        xs = _snap(_CENTRES[:, None] + dx)
        ys = _snap(_CENTRES[:, None] + dy)
        grid[number] = _fill(np.broadcast_to(xs, (len(ys), *xs.shape)), ys).swapaxes(0, 1)

    with ThreadPoolExecutor() as pool:  # numpy works outside the interpreter lock
        for done, _ in enumerate(pool.map(draw, range(len(polygons))), start=1):
            progress(done / len(polygons))
    packed = torch.from_numpy(grid.view(np.uint8).reshape(prod(SIZES), -1))
    return Store("dsprites (rendered)", packed, (1, SIDE, SIDE), True, NAMES, SIZES)


def _outline(shape: int) -> np.ndarray:
    """Polygon vertices (u, v), ``[2, V]``, in pixels at scale 1, v down, around the centre."""
    if shape == 0:
        return 9.6 * np.array([[-1, 1, 1, -1], [-1, -1, 1, 1]])
    t = np.linspace(0, 2 * np.pi, 64 if shape == 1 else 128, endpoint=False)
    if shape == 1:
        return np.stack([12.7798 * np.cos(t), 7.2197 * np.sin(t)])
    height = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([0.60014 * 16 * np.sin(t) ** 3, -0.66241 * height - 1.44057])


def _turned(shape: int, scale: np.ndarray, angle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vertices relative to the sprite's centre, x and y ``[n, V]`` in pixels."""
    u, v = _outline(shape)[:, None] * scale[:, None]
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    return cos * u + sin * v, -sin * u + cos * v


def _snap(pixels: np.ndarray) -> np.ndarray:
    return np.rint(pixels * _SUBPIXELS).astype(np.int64)


def _fill(xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """Polygons filled by the even-odd rule, one 64-bit word for each row, bit c for column c.

    A pixel is set when its centre is inside. Which edges cross a row of centres depends on y
    alone, so one search serves all X placements that share a y.

    Args:
        xs: int64 ``[Y, X, V]`` in subpixels, the vertices' x for each placement.
        ys: int64 ``[Y, V]`` in subpixels.

    Returns:
        little-endian uint64 ``[Y, X, 64]``.
    """
    centres = np.arange(SIDE) * _SUBPIXELS + _SUBPIXELS // 2
    above = ys[:, None] <= centres[:, None]  # [Y, row, V]
    image, row, start = np.nonzero(above != np.roll(above, -1, axis=-1))
    end = (start + 1) % ys.shape[1]

    run = ys[image, end] - ys[image, start]  # never 0: the edge has one end on each side
    step = (centres[row] - ys[image, start]) * np.sign(run)
    run = np.abs(run)[:, None]
    x = xs[image, :, start]  # [crossings, X]
    numerator = (x - _SUBPIXELS // 2) * run + (xs[image, :, end] - x) * step[:, None]
    first = -(-numerator // (run * _SUBPIXELS))  # first column whose centre is not left of it

    # Each crossing flips every pixel from its column on.
    flips = np.uint64(2**64 - 1) << first.astype(np.uint64)
    words = np.zeros((len(ys) * SIDE, xs.shape[1]), "<u8")
    line = image * SIDE + row  # sorted, since np.nonzero goes row by row
    begins = np.flatnonzero(np.diff(line, prepend=-1))
    words[line[begins]] = np.bitwise_xor.reduceat(flips, begins, axis=0)
    return np.ascontiguousarray(words.reshape(len(ys), SIDE, -1).swapaxes(1, 2))
