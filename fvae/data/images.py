"""Image sets without factors: 3D Chairs, CelebA, or any images, decoded to one size."""

import contextlib
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial as bound
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fvae.config import IMAGE_SIZE
from fvae.data.deep import Depth, bits_said, eight_bits, within_16_bits
from fvae.data.factors import NO_FACTORS, KnownFactors, without_rows
from fvae.data.image_files import FORMATS, ImageFiles, opened
from fvae.data.partial import Partial
from fvae.errors import UserError, warn

T = TypeVar("T")

_CHUNK = 1024  # images decoded between two writes: what a kill can cost
_NAMED = 100  # broken images that are named, for a set of which every image is broken
_GRAY = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L")  # pillow's modes


# A picture of 100 million pixels takes a gigabyte while it is made small: one at a time.
_MOST_PIXELS, _MANY_PIXELS = 100_000_000, 4_000_000
_large = threading.Lock()


def convert_images(
    path: Path,
    listing: dict | None,
    partial: Partial,
    progress: Callable[[float], None] = lambda done: None,
    side: int = IMAGE_SIZE,
    label: Callable[[list[str]], KnownFactors] | None = None,
) -> tuple[str, KnownFactors]:
    """Decode every image of a folder or archive into a partial conversion, in order of its path.

    Colour images give ``[3, side, side]``; if every image of the set is gray by its file format,
    all give ``[1, side, side]``. A broken image is named on stderr and left out. If pictures of 16
    bits a channel use fewer, those are what is scaled to bytes, which is said on stderr and in the
    store's note.

    Args:
        path: the folder, .zip or .tar.
        listing: as :func:`fvae.data.image_files.opened` wants it.
        partial: takes the rows; what it holds already is not decoded again.
        progress: called with the finished fraction, 0..1.
        side: height and width in pixels of what comes out.
        label: gives the factors of the images of those paths; where they are a full grid, the
            images come in its order.

    Returns:
        The name of the set: "3dchairs" or "celeba" by its layout, or else the path's own; and the
        factors of the images that are not broken.

    Raises:
        UserError: there is no image, none can be decoded, or the disk failed at reading one.
    """
    with opened(path, listing) as files, ThreadPoolExecutor() as pool, warnings.catch_warnings():
        # Pillow warns of odd metadata; what it cannot decode at all is an error.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        layout = _layout(path, files)
        name, crop = layout or ((path.stem if listing is None else path.name)[:60], None)
        names, known = files.names, NO_FACTORS if label is None else label(files.names)
        if known.places is not None:
            names = [names[i] for i in np.argsort(known.places)]
        # In a set of colour images the first one tells.
        channels = 1 if all(mode in _GRAY for mode, _ in _headers(path, files)) else 3
        partial.start((channels, side, side))
        depth = Depth(path, files)

        def attempt(image: str) -> np.ndarray | str:
            return _or_reason(path, image, lambda: _row(files, image, crop, channels, side, depth))

        total, named = len(names), 0
        while partial.done < total:
            chunk = names[partial.done : partial.done + _CHUNK]
            rows = []
            for i, (image, result) in enumerate(zip(chunk, pool.map(attempt, chunk), strict=True)):
                if isinstance(result, str):
                    partial.skipped.append(partial.done + i)
                if not isinstance(result, str):
                    rows.append(result)
                elif (named := named + 1) <= _NAMED:
                    warn(f"{path}: skipped {image!r}: {result}")
            partial.note = depth.note or partial.note
            partial.append(rows, partial.done + len(chunk))
            progress(partial.done / total)
    if not partial.rows:
        raise UserError(f"{path}: none of its {total:,} image files can be read")
    if partial.rows < total:
        warn(
            f"{path}: left out {total - partial.rows:,} of {total:,} image files, which are broken"
        )
    return name, without_rows(known, partial.skipped)


def _layout(path: Path, files: ImageFiles) -> tuple[str, int] | None:
    """The name and the side of the crop in pixels of a published set; None for other images."""
    if all(re.search(r"(^|/)[^/]+/renders/[^/]+\.png$", name) for name in files.names):
        return "3dchairs", 400  # of 600, as is usual: the chair stands in the middle
    if all(re.search(r"(^|/)\d{6}\.(jpg|png)$", name) for name in files.names):
        if next((size for _, size in _headers(path, files)), None) == (178, 218):
            # The head with its hair. There is no one convention: VAE code crops to 140, 148 or 178
            # or squeezes the whole picture, and 148 is common among them.
            return "celeba", 148
    return None


def _headers(path: Path, files: ImageFiles) -> Iterator[tuple[str, tuple[int, int]]]:
    """Mode and size of each image that has a readable header."""

    def header(image: str) -> tuple[str, tuple[int, int]]:
        with files.open(image) as file, Image.open(file, formats=FORMATS) as picture:
            return picture.mode, picture.size

    for image in files.names:
        found = _or_reason(path, image, bound(header, image))
        if not isinstance(found, str):
            yield found


def _or_reason(path: Path, image: str, read: Callable[[], T]) -> T | str:
    """What reading an image gives, or why the image is broken.

    Raises:
        UserError: it is the disk that failed, and not the image.
    """
    try:
        return read()
    except MemoryError:
        raise
    except UnidentifiedImageError:
        return "not an image"
    except Exception as error:  # damaged bytes make decoders and archives raise nearly anything
        if isinstance(error, OSError) and error.errno:
            raise UserError(
                f"{path}: cannot read {image!r} ({error.strerror}); mend that and run again, what"
                " is converted is kept"
            ) from None
        return " ".join(str(error).split()) or type(error).__name__


def _row(
    files: ImageFiles, image: str, crop: int | None, channels: int, size: int, depth: Depth
) -> np.ndarray:
    """An image upright, cropped at its centre and resized: uint8 ``[C * size * size]``."""
    with contextlib.ExitStack() as opened:
        file = opened.enter_context(files.open(image))
        picture = opened.enter_context(Image.open(file, formats=FORMATS))
        width, height = picture.size
        if width * height > _MOST_PIXELS:
            raise ValueError(f"is {width:,} x {height:,} pixels, more than {_MOST_PIXELS:,} in all")
        if width * height > _MANY_PIXELS:
            opened.enter_context(_large)
        said = bits_said(picture)
        bits = depth.bits() if said is None else (said, said)
        if said != 8 and bits[0] < 16:
            square = _square(eight_bits(files, image, bits), crop)
        else:
            picture.draft(None, (4 * size, 4 * size))  # a large photograph is decoded at a fraction
            ImageOps.exif_transpose(picture, in_place=True)
            square = _square(picture, crop)
    square = square.convert("L" if channels == 1 else "RGB")
    if square.width != size:
        square = square.resize((size, size), Image.Resampling.BILINEAR)  # averages when it shrinks
    return np.asarray(square).reshape(size, size, channels).transpose(2, 0, 1).ravel()


def _square(picture: Image.Image, crop: int | None) -> Image.Image:
    side = min(crop or picture.width, *picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return _plain(picture.crop((left, top, left + side, top + side)))


def _plain(picture: Image.Image) -> Image.Image:
    """The picture with 8 bits a channel, on white where it is transparent."""
    if picture.mode == "F":
        raise ValueError("its pixels are floating-point numbers; save it with 8 or 16 bits")
    if picture.mode.startswith("I"):  # 16 bits: pillow would cut off, not scale
        return Image.fromarray((within_16_bits(picture) // 257).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture
