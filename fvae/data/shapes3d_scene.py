"""3D Shapes, ray-cast from a scene fitted to real frames.

One object on the floor of a square room without a ceiling, seen by a camera at eye level. The
orientation turns room and object together. Two lights stand still with the camera: a headlight
of parallel rays, and a spot at the upper left behind the object, which alone casts shadows.

Coordinates: x right, y up, z ahead, the origin on the floor below the camera; half the room is 1.
Vectors are ``[3, n]``, one column a ray.
"""

import colorsys
import functools
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import NamedTuple

import numpy as np
import torch

from fvae.data.classes import checked_classes
from fvae.data.layers import LayeredStore
from fvae.data.shapes3d import NAMES, SHAPE

SIZES = (10, 10, 10, 8, 4, 15)

_SCALES = np.linspace(0.75, 1.25, SIZES[3])
_CUBE, _CYLINDER, _SPHERE, _CAPSULE = range(SIZES[4])
_ANGLES = np.radians(np.linspace(-30, 30, SIZES[5]))
_HUES = np.array([colorsys.hsv_to_rgb(k / SIZES[0], 1, 1) for k in range(SIZES[0])], np.float32)

# Half the width, and the height, at scale 1.
_EXTENT = {
    _CUBE: (0.1011, 0.2105),
    _CYLINDER: (0.1072, 0.22),
    _SPHERE: (0.1226, 0.2452),
    _CAPSULE: (0.0932, 0.3827),
}
_EYE_HEIGHT = 0.2207
_FOCAL_LENGTH = 81.84  # pixels
_CENTRE = (31.95, 31.68)  # where the camera looks, in pixels from the left and from the top
_ROOM_AHEAD = 1.0276
_OBJECT_AHEAD = 0.8492
_WALL_HEIGHT = 0.5876
_SKY = (153, 226, 249)

_AMBIENT = 0.3596
_HEADLIGHT = 0.5982
_SPOT = 1.0596
_SPOT_FROM = (-0.451, 2.3148, 1.0289)
_SPOT_TO = (-0.5898, 0, 0.9449)
_SPOT_EXPONENT = 7.76
_FLOOR, _WALL = 0.9343, 0.9587  # reflectance; the object's is 1
_GLOSS = 0.1221  # white, wherever the spot reaches the object

_SAMPLES = 4  # rays a pixel, in x and in y


def render_shapes3d(classes: object) -> np.ndarray:
    """The 64 x 64 images of the given 3D Shapes classes, ray-cast from a fitted scene.

    A look-alike of the published data set with the same factors, not its images: real frames
    differ from it by 3 of 255 on average. The first call takes a second or so, which goes
    into the layers that all images are made from.

    Args:
        classes: whole numbers ``[n, 6]``: floor, wall and object hue 0..9 (tenths of the colour
            circle), scale 0..7 (0.75 to 1.25), shape (0 cube, 1 cylinder, 2 sphere, 3 capsule),
            orientation 0..14 (-30 to 30 degrees).

    Returns:
        uint8 ``[n, 64, 64, 3]``, 0..255; red, green, blue.

    Raises:
        UserError: classes has another shape, is not of whole numbers or is out of range.

    Source:
        Scene fitted to frames of github.com/google-deepmind/3d-shapes.
    """
    classes = checked_classes(classes, NAMES, SIZES)
    store, indices = scene_store(), np.ravel_multi_index(classes.T, SIZES)
    images = np.empty((len(classes), *SHAPE[1:], SHAPE[0]), np.uint8)
    for start in range(0, len(images), 128):  # what is added up stays in the processor's cache
        some = slice(start, start + 128)
        images[some] = store.images(indices[some]).permute(0, 2, 3, 1).numpy()
    return images


@functools.cache
def scene_store() -> LayeredStore:
    """The full 3D Shapes grid of 480,000 images, made by :func:`render_shapes3d`'s scene.

    Returns:
        A store named "3dshapes (rendered)" whose images are made on demand from 177 MB of layers.
    """
    layers = np.empty((*SIZES[3:], 3, SIZES[0], np.prod(SHAPE)), np.uint8)
    rooms = [_room(angle) for angle in _ANGLES]

    def fill(body: tuple[int, int]) -> None:
        scale, shape = body
        thing = None
        for orientation, angle in enumerate(_ANGLES):
            if thing is None or shape == _CUBE:  # the others look the same from all sides
                thing = _thing(shape, _SCALES[scale], angle)
            layers[scale, shape, orientation] = _layers(rooms[orientation], thing)

    with ThreadPoolExecutor() as pool:  # numpy works outside the interpreter lock
        list(pool.map(fill, product(range(SIZES[3]), range(SIZES[4]))))
    data = torch.from_numpy(layers).flatten(0, -2)
    return LayeredStore("3dshapes (rendered)", data, SHAPE, False, NAMES, SIZES)


class _Room(NamedTuple):
    """What each ray meets in the empty room: at distance t, floor, wall or sky, and its light."""

    t: np.ndarray
    floor: np.ndarray
    wall: np.ndarray
    sky: np.ndarray
    steady: np.ndarray
    spot: np.ndarray


class _Thing(NamedTuple):
    """What each ray meets of the object: at distance t, its light and gloss; and its shadow."""

    t: np.ndarray
    light: np.ndarray
    gloss: np.ndarray
    shadow: np.ndarray


def _vector(*xyz: float | np.float32) -> np.ndarray:
    return np.array(xyz, np.float32)[:, None]


@functools.cache
def _rays() -> np.ndarray:
    """Directions with z = 1, first sample of each pixel, second of each, and so on."""
    side = SHAPE[1]
    offset = (np.arange(_SAMPLES, dtype=np.float32) + 0.5) / _SAMPLES
    at = np.arange(side, dtype=np.float32) + offset[:, None]
    full = (_SAMPLES, _SAMPLES, side, side)
    x = np.broadcast_to((at[None, :, None, :] - _CENTRE[0]) / _FOCAL_LENGTH, full)
    y = np.broadcast_to((_CENTRE[1] - at[:, None, :, None]) / _FOCAL_LENGTH, full)
    return np.stack([x, y, np.ones(full, np.float32)]).reshape(3, -1)


def _turned(v: np.ndarray, angle: float) -> np.ndarray:
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return np.stack([cos * v[0] - sin * v[2], v[1], sin * v[0] + cos * v[2]])


def _towards(source: np.ndarray, points: np.ndarray) -> np.ndarray:
    away = source - points
    return away / np.sqrt((away * away).sum(0))


def _light(points: np.ndarray, normals: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ambient light and headlight, the spot, and whether the surface faces the spot."""
    source = _vector(*_SPOT_FROM)
    beam = _towards(source, points)
    cosine = (normals * beam).sum(0)
    axis = _towards(source, _vector(*_SPOT_TO))
    spot = np.maximum(cosine, 0) * np.maximum((beam * axis).sum(0), 0) ** _SPOT_EXPONENT
    return _AMBIENT + _HEADLIGHT * np.maximum(-normals[2], 0), _SPOT * spot, cosine > 0


def _room(angle: float) -> _Room:
    eye, rays = _vector(0, _EYE_HEIGHT, 0), _rays()
    origin = _turned(eye - _vector(0, 0, _ROOM_AHEAD), angle)
    ahead = _turned(rays, angle)
    with np.errstate(divide="ignore"):
        down = np.where(ahead[1] < 0, -origin[1] / ahead[1], np.inf)
        sideways = (np.sign(ahead[0]) - origin[0]) / ahead[0]
        back = (np.sign(ahead[2]) - origin[2]) / ahead[2]
    # No ray turns back, so none can meet the wall behind the eye.
    t = np.minimum(np.minimum(sideways, back), down)
    floor = down == t
    sky = ~floor & (origin[1] + t * ahead[1] > _WALL_HEIGHT)
    wall = ~floor & ~sky
    inward = np.zeros_like(rays)
    inward[0] = np.where(wall & (sideways <= back), -np.sign(ahead[0]), 0)
    inward[1] = floor
    inward[2] = np.where(wall & (sideways > back), -np.sign(ahead[2]), 0)
    steady, spot, _ = _light(eye + t * rays, _turned(inward, -angle))
    reflectance = np.where(floor, np.float32(_FLOOR), np.float32(_WALL))
    return _Room(t, floor, wall, sky, reflectance * steady, reflectance * spot)


def _thing(shape: int, scale: float, angle: float) -> _Thing:
    half, height = (np.float32(scale * extent) for extent in _EXTENT[shape])
    foot, rays = _vector(0, 0, _OBJECT_AHEAD), _rays()
    eye = _vector(0, _EYE_HEIGHT, 0)
    origin, ahead = _turned(eye - foot, angle), _turned(rays, angle)
    t, _ = _meet(shape, half, height, origin, ahead)
    hit = np.isfinite(t)
    light, gloss = np.zeros_like(t), np.zeros_like(t)
    at = origin + t[hit] * ahead[:, hit]
    normals = _turned(_normals(shape, half, height, at), -angle)
    steady, spot, faces = _light(eye + t[hit] * rays[:, hit], normals)
    light[hit], gloss[hit] = steady + spot, _GLOSS * faces

    shadow = np.zeros(t.shape, bool)
    below = rays[1] < 0
    floor = eye + rays[:, below] * (-_EYE_HEIGHT / rays[1, below])
    origin = _turned(floor - foot, angle)
    near, far = _meet(shape, half, height, origin, _turned(_vector(*_SPOT_FROM) - floor, angle))
    shadow[below] = (near < 1) & (far > 0)
    return _Thing(t, light, gloss, shadow)


def _meet(
    shape: int, half: np.float32, height: np.float32, origin: np.ndarray, ahead: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where rays enter and leave an object that stands at the origin; inf, -inf if they miss."""
    if shape == _CUBE:
        spans = [_slab(origin[k], ahead[k], -half, half) for k in (0, 2)]
        return _common(*spans, _slab(origin[1], ahead[1], 0, height))
    if shape == _CYLINDER:
        return _common(_ball(origin[::2], ahead[::2], half), _slab(origin[1], ahead[1], 0, height))
    ends = [_ball(origin - _vector(0, y, 0), ahead, half) for y in (half, height - half)]
    if shape == _CAPSULE:
        side = _slab(origin[1], ahead[1], half, height - half)
        ends.append(_common(_ball(origin[::2], ahead[::2], half), side))
    near, far = zip(*ends, strict=True)
    return np.minimum.reduce(near), np.maximum.reduce(far)


def _slab(
    origin: np.ndarray, ahead: np.ndarray, low: float | np.float32, high: float | np.float32
) -> tuple[np.ndarray, np.ndarray]:
    with np.errstate(divide="ignore"):
        first, second = (low - origin) / ahead, (high - origin) / ahead
    return np.minimum(first, second), np.maximum(first, second)


def _ball(
    origin: np.ndarray, ahead: np.ndarray, radius: np.float32
) -> tuple[np.ndarray, np.ndarray]:
    """A circle in two coordinates, a sphere in three."""
    a, b = (ahead * ahead).sum(0), (ahead * origin).sum(0)
    root = b * b - a * ((origin * origin).sum(0) - radius * radius)
    miss, root = root < 0, np.sqrt(np.maximum(root, 0))
    return np.where(miss, np.inf, (-b - root) / a), np.where(miss, -np.inf, (-b + root) / a)


def _common(*spans: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    near = np.maximum.reduce([span[0] for span in spans])
    far = np.minimum.reduce([span[1] for span in spans])
    return np.where(near < far, near, np.inf), np.where(near < far, far, -np.inf)


def _normals(shape: int, half: np.float32, height: np.float32, at: np.ndarray) -> np.ndarray:
    """Outward normals at points of an object's surface."""
    x, y, z = at
    if shape == _CUBE:
        face = np.abs(np.stack([x / half, 2 * y / height - 1, z / half]))
        return np.sign(at - _vector(0, height / 2, 0)) * (face == face.max(0))
    if shape == _CYLINDER:
        top = y > 0.999 * height
        return np.where(top, _vector(0, 1, 0), np.stack([x, 0 * y, z]) / half)
    return (at - np.stack([0 * x, np.clip(y, half, height - half), 0 * z])) / half


def _layers(room: _Room, thing: _Thing) -> np.ndarray:
    """What floor, wall with sky, and object add to the image in each hue, uint8 [3, 10, C*H*W]."""
    front = thing.t < room.t
    behind = ~front
    light = [
        (room.steady + room.spot * ~thing.shadow) * (room.floor & behind),
        (room.steady + room.spot) * (room.wall & behind),
        thing.light * front,
    ]
    covered = [room.floor & behind, room.wall & behind, front]
    white = _mean(thing.gloss * front)
    sky = _mean(room.sky & behind)
    parts = []
    for part in range(3):
        pixels = _HUES[:, :, None] * _mean(light[part])
        if part == 2:
            pixels = pixels + white
        pixels = 255 * np.minimum(pixels, _mean(covered[part]))
        if part == 1:
            pixels = pixels + _vector(*_SKY) * sky
        parts.append(pixels)
    # Rounded up from .67 on, three parts cannot exceed 255: they lose 3 * .33 at most.
    return np.floor(np.stack(parts) + 0.33).astype(np.uint8).reshape(3, SIZES[0], -1)


def _mean(samples: np.ndarray) -> np.ndarray:
    """The mean over each pixel's samples, [H*W]."""
    return samples.reshape(_SAMPLES**2, -1).mean(0, dtype=np.float32)
