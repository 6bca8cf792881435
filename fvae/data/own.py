"""Anybody's own arrays: which one holds the images, how they lie in it, and what its labels are."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from fvae.data.arrays import Array, opened, pieces
from fvae.data.dsprites import NAMES as DSPRITES_NAMES
from fvae.data.factors import NO_FACTORS, KnownFactors, Table, columns_of, factors_of
from fvae.data.label_files import NO, read_csv, table_of
from fvae.data.mpi3d import SHAPE as MPI3D_SHAPE
from fvae.data.mpi3d import factors_by_count
from fvae.data.partial import Partial
from fvae.errors import UserError, warn

#: What arrays of labels are called, in the order in which they are taken.
USUAL_LABELS = (
    "factors", "factor_values", "latents_classes", "latents/classes", "classes", "labels", "label",
    "targets", "target", "y", "attributes", "latents_values", "latents/values", "latents",
)  # fmt: skip
_DSPRITES = ("latents_classes", "latents/classes", "latents_values", "latents/values")
_USUAL_NAMES = ("factor_names", "latents_names", "label_names", "class_names", "names")
# What labels are called after their images: x_train has y_train, test_images has test_labels.
_AFTER = {"images": "labels", "imgs": "labels", "image": "label", "x": "y"}

_SHAPES = "[N, H, W], [N, H, W, C] or [N, C, H, W]"
_LARGEST = 1 << 28  # bytes of an image: a small file may claim to unpack to any size
_SMALLEST = 8  # pixels on a side below which a guess takes an array for something else
_SHOWN = 8  # arrays that an error names


def convert_arrays(
    path: Path,
    images: str | None,
    factors: str | None,
    partial: Partial,
    progress: Callable[[float], None] = lambda done: None,
) -> tuple[str, KnownFactors]:
    """Read the images of a file of arrays into a partial conversion, some megabytes at a time.

    Args:
        path: a .npz, .npy, .h5 or .hdf5 file.
        images: key of the array of images, ``[N, H, W]``, ``[N, H, W, C]`` or ``[N, C, H, W]``;
            None where there is one such array.
        factors: key of the labels, or several with commas between, or the path of a .csv or .npy
            file with a row for each image; "no" for none; None takes an array of a usual name.
        partial: takes the rows. Whole numbers up to 255 are bytes; up to 65,535 they are scaled
            by the bits that they fill, real numbers from 0..1; of 0 and 1 alone they are bits.
        progress: called with the finished fraction, 0..1.

    Returns:
        The name of the set and its factors.

    Raises:
        UserError: the file is damaged, no array or several could be meant, or the images or labels
            are not such numbers.
    """
    with opened(path) as arrays:
        array = _images(arrays, images)
        layout = _layout(array)
        known = _factors(arrays, array, factors, path)
        count, each = len_and_bytes(array)
        if each > _LARGEST:
            raise UserError(
                f"{array}: an image would take {each / 1e9:.1f} GB, and at most"
                f" {_LARGEST / 1e9:.1f} GB are read; make them smaller"
            )
        # A few bytes may claim any number of images: before all of them are looked at.
        partial.check_space(count * prod(array.shape[1:]) // 8)
        scale = _scale(path, array)
        shape, places = layout.image_shape, known.places
        partial.start(shape, scale.binary, count, scattered=places is not None)
        for start, stop in pieces(count, each):
            if stop <= partial.done:
                continue  # an earlier conversion got there
            start = max(start, partial.done)
            rows = scale.to_bytes(layout.to_chw(array.read(start, stop))).reshape(stop - start, -1)
            if scale.binary:
                rows = np.packbits(rows, axis=1, bitorder="little")
            if places is None:
                partial.append(rows, stop)
            else:
                partial.put(rows, places[start:stop])
            progress(stop / count)
    return path.stem[:60], known


def len_and_bytes(array: Array) -> tuple[int, int]:
    """The number of rows, and the bytes that a row takes while it is converted."""
    return array.shape[0], prod(array.shape[1:]) * max(array.dtype.itemsize, 4)


# --- which array, and how it lies ----------------------------------------------------------------


def _listed(arrays: dict[str, Array]) -> str:
    shown = [str(array) for array in arrays.values()]
    more = f", and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return (", ".join(shown[:_SHOWN]) or "no array") + more


def _images(arrays: dict[str, Array], key: str | None) -> Array:
    if key is not None:
        if key not in arrays:
            raise UserError(f"--images {key}: no such array; found: {_listed(arrays)}")
        array = arrays[key]
        if not array.is_numbers:
            array.whole()  # says why it cannot be read
        if len(array.shape) not in (3, 4) or not prod(array.shape):
            raise UserError(
                f"--images {key}: {array}, expected [N, H, W], [N, H, W, C] or [N, C, H, W]"
            )
        return array
    found = {
        key: array
        for key, array in arrays.items()
        if array.is_numbers
        and len(array.shape) in (3, 4)
        and array.shape[0]
        and sorted(array.shape[1:])[-2] >= _SMALLEST
    }
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise UserError(
            f"several arrays may be the images: {_listed(found)}; choose by --images KEY"
        )
    raise UserError(
        "no array of images, which is [N, H, W], [N, H, W, C] or [N, C, H, W] of numbers (flattened"
        f" ones are saved so, too); found: {_listed(arrays)}"
    )


@dataclass(frozen=True)
class _Layout:
    image_shape: tuple[int, int, int]
    axes: tuple[int, ...]

    def to_chw(self, rows: np.ndarray) -> np.ndarray:
        """Rows as ``[n, C, H, W]``."""
        if rows.ndim == 3:
            rows = rows[:, None]
        return rows.transpose(self.axes)


def _layout(array: Array) -> _Layout:
    """Where the channels are: the axis that differs from two equal ones, or is at most 4 long."""
    if len(array.shape) == 3:
        return _Layout((1, *array.shape[1:]), (0, 1, 2, 3))
    a, b, c = array.shape[1:]
    last, first = a == b != c, b == c != a
    if not last and not first:
        last, first = c <= 4 < min(a, b), a <= 4 < min(b, c)
    if last == first:
        raise UserError(
            f"{array}: which axis holds the channels? Save it as [N, H, W, C] with H = W"
        )
    if last:
        return _Layout((c, a, b), (0, 3, 1, 2))
    return _Layout((a, b, c), (0, 1, 2, 3))


# --- pixels as bytes -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scale:
    """How numbers become bytes; where ``binary`` is true they become 0 and 1."""

    binary: bool
    to_bytes: Callable[[np.ndarray], np.ndarray]


def _scale(path: Path, array: Array) -> _Scale:
    count, each = len_and_bytes(array)
    if array.dtype.kind == "b":
        return _Scale(True, lambda x: x.astype(np.uint8))
    low, high, binary = np.inf, -np.inf, True
    for start, stop in pieces(count, each):
        rows = array.read(start, stop)
        low, high = np.minimum(low, rows.min()), np.maximum(high, rows.max())  # NaN stays NaN
        binary = binary and bool(((rows == 0) | (rows == 1)).all())
        if array.dtype == np.uint8 and not binary:
            return _Scale(False, lambda x: x)
    if binary:
        return _Scale(True, lambda x: x.astype(np.uint8))
    found = f"{array.key} holds {array.dtype} from {low:g} to {high:g}"
    if array.dtype.kind == "f":
        if not (low >= 0 and high <= 1):
            advice = "divide them by 255" if 0 <= low and 1 < high <= 255 else "scale them to that"
            if not np.isfinite([low, high]).all():
                advice = "mend what is no finite number"
            raise UserError(f"{found}, expected 0 to 1; {advice}, or save bytes (uint8)")
        warn(f"{path}: {found}; 0 to 1 becomes the bytes 0 to 255")
        return _Scale(False, lambda x: np.rint(x.astype(np.float32) * 255).astype(np.uint8))
    if low < 0 or high > 65535:
        raise UserError(f"{found}, expected 0 to 255 or 0 to 65,535; scale them, or save uint8")
    if high <= 255:
        return _Scale(False, lambda x: x.astype(np.uint8))
    top = (1 << int(high).bit_length()) - 1
    warn(f"{path}: {found}; 0 to {top}, the bits that they fill, becomes the bytes 0 to 255")
    return _Scale(False, lambda x: ((x.astype(np.uint32) * 255 + top // 2) // top).astype(np.uint8))


# --- labels --------------------------------------------------------------------------------------


def _factors(
    arrays: dict[str, Array], images: Array, factors: str | None, path: Path
) -> KnownFactors:
    count = images.shape[0]
    if factors == NO:
        return NO_FACTORS
    if factors is not None:
        where, table = _given(arrays, factors)
        return factors_of(where, table, count)
    found = _guess(arrays, images)
    if found is not None:
        return factors_of(f"{path}: {found.key}", _table(arrays, found), count)
    known = factors_by_count(images.shape) if images.dtype == np.uint8 else None
    if known is None and images.shape[1:] == MPI3D_SHAPE and "mpi3d" in path.stem.lower():
        warn(f"{path}: its {count:,} images are not MPI3D's number; read without factors")
    return known or NO_FACTORS


def _given(arrays: dict[str, Array], factors: str) -> tuple[str, Table]:
    """The labels that --factors names: keys of arrays, or a file with a row for each image."""
    keys = [key.strip() for key in factors.split(",")] if factors not in arrays else [factors]
    file = Path(factors).expanduser()
    if all(key in arrays for key in keys):
        tables = [_table(arrays, arrays[key]) for key in keys]
        names = tuple(name for table in tables for name in table.names)
        return f"--factors {factors}", Table(names, [c for table in tables for c in table.columns])
    if file.suffix.lower() == ".csv" and file.is_file():
        return str(file), table_of(str(file), read_csv(str(file), file.read_bytes()))
    if file.suffix.lower() == ".npy" and file.is_file():
        with opened(file) as others:
            return str(file), _table(others, others[file.stem])
    raise UserError(
        f"--factors {factors}: neither an array in the file nor a .csv or .npy file; found:"
        f" {_listed(arrays)}"
    )


def _table(arrays: dict[str, Array], array: Array) -> Table:
    if len(array.shape) not in (0, 1, 2) or (len(array.shape) == 2 and not array.shape[1]):
        raise UserError(f"{array}, expected labels [N] or [N, K]")
    table = columns_of(array.key, array.whole())
    if array.key in _DSPRITES and len(table.names) == 1 + len(DSPRITES_NAMES):
        return Table(("color", *DSPRITES_NAMES), table.columns)
    for key, names in arrays.items():
        if key.lower() in _USUAL_NAMES and names.shape == (len(table.names),):
            if names.dtype.kind in "US" and len(table.names) > 1:
                return Table(tuple(_text(name) for name in names.whole()), table.columns)
    return table


def _text(name: str | bytes) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)


def _guess(arrays: dict[str, Array], images: Array) -> Array | None:
    """The labels of the images by their name, if they have a usual one."""
    lower = {key.lower(): array for key, array in arrays.items() if len(array.shape) <= 2}
    pattern = "|".join(_AFTER)
    after = re.sub(rf"(?<![a-z])({pattern})(?![a-z])", lambda m: _AFTER[m[0]], images.key.lower())
    found = [lower[name] for name in dict.fromkeys([after, *USUAL_LABELS]) if name in lower]
    fitting = [array for array in found if array.shape[:1] == images.shape[:1]]
    if not fitting and found:
        raise UserError(
            f"{images.shape[0]} images for {found[0].shape[0] if found[0].shape else 'no'} labels"
            f" ({found[0]}); name others by --factors KEY, or leave them out by --factors {NO}"
        )
    if len(found) > 1:
        others = ", ".join(str(array) for array in found if array is not fitting[0])
        warn(f"the labels are {fitting[0]}, not {others}; --factors KEY takes others")
    return fitting[0] if fitting else None
