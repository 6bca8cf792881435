"""Pictures of 16 bits a channel: how many of them a set uses, and their best 8."""

import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image, ImageMode, ImageOps
from PIL.ImageFile import ImageFile

from fvae.data.image_files import FORMATS, ImageFiles
from fvae.errors import warn

# Cameras and scanners that have fewer than 16 bits fill the lowest ones.
_BITS = (8, 10, 12, 14, 16)
_AT_ONCE = 1024  # pictures that are looked at before it is known whether more must be

# Colours of 16 bits, of which pillow keeps the upper eight; in either order of a number's bytes.
_COLOURS = re.compile(r"(RGB|RGBA|RGBa|RGBX|CMYK|LA);16([BLN])")

_PLANAR, _BITS_A_SAMPLE = 284, 258  # tags of TIFF
_PLANES = "its 16-bit colours lie in separate planes; save it with 8 bits"


def bits_said(picture: ImageFile) -> int | None:
    """Bits a channel of an opened picture, by its format; None for 16 that may not all be used."""
    codec, raw = picture.tile[0][0] if picture.tile else "", _raw_mode(picture)
    if codec == "raw" and _in_planes(picture):  # which pillow takes for eight
        raise ValueError(_PLANES)
    if raw == "I;12":
        return 12
    if codec.startswith(("ppm", "jpeg2k")):  # scaled by the range that the file names
        return 16 if picture.mode.startswith("I") else 8
    return None if picture.mode.startswith("I") or _COLOURS.fullmatch(raw) else 8


def _raw_mode(picture: ImageFile) -> str:
    """Pillow's name of how a pixel lies in the file, such as "RGB;16B"."""
    arguments = picture.tile[0][3] if picture.tile else ""
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _in_planes(picture: ImageFile) -> bool:
    """Whether a TIFF keeps colours of 16 bits in a plane each."""
    tags = getattr(picture, "tag_v2", {})
    return tags.get(_PLANAR) == 2 and max(tags.get(_BITS_A_SAMPLE, (8,))) > 8


class Depth:
    """How many bits the 16-bit pictures of a set use: one number for all, so that they compare.

    Nothing is read before the first such picture asks.

    Args:
        path: the source, for the remark.
        files: its pictures.
    """

    def __init__(self, path: Path, files: ImageFiles) -> None:
        self._path, self._files, self._lock = path, files, Lock()
        self._bits: tuple[int, int] | None = None

    @property
    def note(self) -> str:
        """What is to be known of the set's pixels; "" where there is nothing."""
        if self._bits is None or self._bits[0] == 16:
            return ""
        bits = self._bits[0]
        return f"its 16-bit pictures use {bits} bits: scaled by {2**bits - 1}, not 65535"

    def bits(self) -> tuple[int, int]:
        """Return the bits of gray or colour, and of opacity."""
        with self._lock:  # of several threads the first one looks
            if self._bits is None:
                self._bits = self._look()
                if self.note:
                    warn(f"{self._path}: {self.note}")
            return self._bits

    def _look(self) -> tuple[int, int]:
        most = [0, 0]
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(self._files.names), _AT_ONCE):
                for found in pool.map(self._largest, self._files.names[start : start + _AT_ONCE]):
                    most = [max(pair) for pair in zip(most, found, strict=True)]
                if most[0] >> 6:  # there is no larger number of bits
                    return 16, 16
        colour, opacity = (next(b for b in _BITS if m >> (b - 8) == 0) for m in most)
        return colour, opacity

    def _largest(self, name: str) -> tuple[int, int]:
        """The largest upper eight bits of a picture's colours and of its opacity."""
        try:
            with self._files.open(name) as file, Image.open(file, formats=FORMATS) as picture:
                if bits_said(picture) is not None:
                    return 0, 0
                if picture.mode.startswith("I"):
                    return int(within_16_bits(picture).max()) >> 8, 0
                multiplied, values = _raw_mode(picture).startswith("RGBa"), np.asarray(picture)
        except Exception:  # whatever it is, the conversion will name it and leave the picture out
            return 0, 0
        colour = int(values[..., :3].max())
        opacity = int(values[..., 3].max()) if picture.mode == "RGBA" else 0
        # Pillow has divided by the opacity.
        return min(colour, opacity) if multiplied else colour, opacity


def eight_bits(files: ImageFiles, name: str, bits: tuple[int, int]) -> Image.Image:
    """A picture of 16 bits a channel, upright, with the lowest ``bits`` scaled to eight.

    Args:
        files: where the picture is.
        name: its name there.
        bits: of gray or colour, and of opacity.

    Raises:
        ValueError: it holds a number that does not fit into 16 bits, or pillow cannot read it.
    """
    mode, values = sixteen_bits(files, name)
    colour, opacity = (2**b - 1 for b in bits)
    top = [opacity if band == "A" else colour for band in ImageMode.getmode(mode).bands]
    scaled = values.astype(np.uint32).clip(0, top) * 255 // top
    return Image.frombytes(mode, values.shape[1::-1], scaled.astype(np.uint8).tobytes())


def sixteen_bits(files: ImageFiles, name: str) -> tuple[str, np.ndarray]:
    """Pillow's mode for eight bits of a 16-bit picture, and its numbers, upright, ``[H, W, C]``.

    Raises:
        ValueError: a number does not fit into 16 bits, or pillow cannot read it.
    """
    upper, mode, colours = _read(files, name)
    if colours is None:
        return "L", upper[..., None]
    if colours[1] == "LA":  # read as four channels of a byte
        return "LA", upper[..., ::2].astype(np.uint16) << 8 | upper[..., 1::2]
    # Of a number whose bytes are taken to be in the other order the lower one is kept.
    big = colours[2] == "B" or (colours[2] == "N" and sys.byteorder == "big")
    lower, *_ = _read(files, name, f"{colours[1]};16{'L' if big else 'B'}")
    return mode, upper.astype(np.uint16) << 8 | lower


def _read(
    files: ImageFiles, name: str, other: str = ""
) -> tuple[np.ndarray, str, re.Match[str] | None]:
    """A picture's numbers, as if its pixels lay in the file as ``other`` says; mode; kind."""
    with files.open(name) as file, Image.open(file, formats=FORMATS) as picture:
        raw = _raw_mode(picture)
        colours = _COLOURS.fullmatch(raw)
        if colours and _in_planes(picture):
            raise ValueError(_PLANES)
        if colours and colours[1] == "RGBa":
            raise ValueError("its colours are multiplied by their opacity; save it with 8 bits")
        other = "RGBA" if colours and colours[1] == "LA" else other
        if other:
            tiles: Any = picture.tile
            tiles[:] = [
                (*where, (other, *rest[1:]) if isinstance(rest, tuple) else other)
                for *where, rest in tiles
            ]
        ImageOps.exif_transpose(picture, in_place=True)
        return np.asarray(picture) if colours else within_16_bits(picture), picture.mode, colours


def within_16_bits(picture: Image.Image) -> np.ndarray:
    """The numbers of a gray picture of whole numbers, ``[H, W]``.

    Raises:
        ValueError: one does not fit into 16 bits.
    """
    values = np.asarray(picture)
    low, high = values.min(), values.max()
    if low < 0 or high > 65535:
        raise ValueError(
            f"its pixels go from {low} to {high}, not in 16 bits; save it with 8 or 16"
        )
    return values
