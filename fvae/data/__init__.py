"""Data sets: one packed store serves them all."""

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial as bound
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from fvae.config import IMAGE_SIZE
from fvae.data import cars3d, label_files, smallnorb
from fvae.data.arrays import SUFFIXES as ARRAYS
from fvae.data.arrays import opened
from fvae.data.cache import (
    CacheEntry,
    cache_entries,
    cache_file,
    cache_folder,
    cached,
    from_cache,
)
from fvae.data.correlated import correlated
from fvae.data.dsprites import render_dsprites
from fvae.data.dsprites_files import is_dsprites, load_dsprites_h5, load_dsprites_npz
from fvae.data.faces3d import load_faces3d_pth
from fvae.data.factors import KnownFactors
from fvae.data.image_files import ARCHIVES, folder_listing
from fvae.data.images import convert_images
from fvae.data.layers import LayeredStore
from fvae.data.own import convert_arrays
from fvae.data.partial import Partial, converted
from fvae.data.reading import reading
from fvae.data.shapes3d import is_shapes3d, load_shapes3d_h5
from fvae.data.shapes3d_scene import render_shapes3d
from fvae.data.store import Store
from fvae.device import as_imported
from fvae.errors import UserError
from fvae.files import encoded
from fvae.registry import DATA

__all__ = [
    "CacheEntry",
    "LayeredStore",
    "Store",
    "cache_entries",
    "absolute",
    "absolute_factors",
    "cache_folder",
    "correlated",
    "load",
    "load_dsprites_h5",
    "load_dsprites_npz",
    "load_faces3d_pth",
    "load_shapes3d_h5",
    "render_dsprites",
    "render_shapes3d",
]

_PATHS = (
    "the path of a published set (dSprites .npz or .hdf5, 3D Shapes .h5, 3D Faces .pth, MPI3D .npz,"
    " Cars3D, SmallNORB), of a .npz, .npy or .h5 with an array of images, or of a folder, .zip or"
    " .tar of pictures (CelebA, 3D Chairs)"
)

_FILES = (*ARRAYS, ".pth")

Builder = Callable[[Callable[[float], None]], Store]


@as_imported()
def load(
    source: str | Path,
    progress: bool = False,
    *,
    images: str | None = None,
    factors: str | None = None,
    image_size: int | None = None,
) -> Store:
    """The data set of that name or in that file, drawn or converted once and then cached.

    Args:
        source: a name in :data:`fvae.registry.DATA`, such as "dsprites" for the rendered dSprites
            grid or "shapes3d" for the rendered 3D Shapes grid, whose images are made on demand (a
            folder of such a name is given as ./NAME); or the path of a published file or folder:
            dSprites, 3D Shapes, 3D Faces, MPI3D, Cars3D, SmallNORB; or a ``.npz``, ``.npy``,
            ``.h5`` or ``.hdf5`` file with an array of images; or a folder, ``.zip`` or ``.tar`` of
            pictures, such as CelebA and 3D Chairs. ``~`` is expanded.
        progress: show a progress bar on stderr while a set is drawn or converted.
        images: key of the array of images, where a file holds several.
        factors: where the labels are: a key in the file, or several with commas between; a .csv or
            .npy file with a row for each image; for pictures, a .csv whose first column names them.
            None takes an array of a usual name, or labels.csv or factors.csv in or beside the
            folder; "no" takes none.
        image_size: height and width in pixels to which the pictures of a folder or archive are
            resized; None is 64. Any other set comes at its own size, which is all that may be
            asked for.

    Returns:
        The store, on the CPU.

    Raises:
        UserError: the source is not known, or the file is missing, damaged or laid out otherwise,
            or its images are of another size.
    """
    if image_size is not None and image_size < 1:
        raise UserError(f"--image-size: got {image_size}, expected at least 1 pixel")
    store = _load(source, progress, images, factors, image_size or IMAGE_SIZE)
    _, height, width = store.image_shape
    if image_size is not None and (height, width) != (image_size, image_size):
        raise UserError(
            f"{source}: images are {height} x {width}, and --image-size, or the run, says"
            f" {image_size}; only the pictures of a folder, .zip or .tar are resized"
        )
    return store


def _load(
    source: str | Path, progress: bool, images: str | None, factors: str | None, side: int
) -> Store:
    name, _, more = str(source).partition(":")
    if name in DATA and (not more or DATA[name].takes):
        _refuse(str(source), images=images, factors=factors)
        known = DATA[name]

        def make(advance: Callable[[float], None]) -> Store:
            return known.build(advance, more) if more else known.build(advance)

        return _built(known.key, f"drawing {known.name}", make, progress)
    path = _existing(source)
    if path.is_file() and path.suffix.lower() in ARRAYS:
        return _arrays(path, images, factors, progress)
    _refuse(str(source), images=images)
    title = f"converting {path.name}"
    if smallnorb.splits(path):
        _refuse(str(source), factors=factors)
        key = _key(path, smallnorb.stamp(path) + _sized(side))
        build = bound(smallnorb.load_smallnorb, path, side=side)
        return _built(key, title, build, progress)
    if path.is_dir() and cars3d.is_cars3d(path):
        _refuse(str(source), factors=factors)
        key = _key(path, cars3d.stamp(path) + _sized(side))
        return _built(key, title, bound(cars3d.load_cars3d, path, side=side), progress)
    if path.is_dir() or cars3d.is_archive(path):
        return _pictures(path, factors, progress, side)
    _refuse(str(source), factors=factors)
    if path.suffix.lower() != ".pth":
        raise UserError(f"{path}: not a known data set; expected {_known()}")
    return _built(_key(path, _stamp(path)), title, lambda _: load_faces3d_pth(path), progress)


def absolute(source: str) -> str:
    """The source that :func:`load` takes for the same set in any folder."""
    name, colon, more = source.partition(":")
    if name in DATA and (not more or DATA[name].takes):
        return name + colon + absolute(more) if more else source
    path = Path(source).expanduser()
    return str(path.resolve()) if path.exists() else source


def absolute_factors(factors: str) -> str:
    """What :func:`load` takes as ``factors`` in any folder: a file's path, or a key as it is."""
    path = Path(factors).expanduser()
    return str(path.resolve()) if path.suffix in (".csv", ".npy") and path.is_file() else factors


def _refuse(source: str, **options: str | None) -> None:
    for name, value in options.items():
        if value is not None:
            raise UserError(f"--{name} {value}: {source} has its own; leave the option out")


def _built(key: str | None, title: str, build: Builder, progress: bool) -> Store:
    def build_visibly() -> Store:
        with _bar(title, progress) as advance:
            return build(advance)

    return cached(key, build_visibly) if key else build_visibly()


def _known() -> str:
    names = " or ".join(f'"{name}"' for name in DATA)
    return f"{names} (made here), or {_PATHS}"


def _existing(source: str | Path) -> Path:
    path = Path(source).expanduser()
    known = path.suffix.lower() in (*_FILES, *ARCHIVES) or cars3d.is_archive(path)
    if not str(source) or not (known or path.exists() or os.sep in str(source)):
        raise UserError(f"{source}: not a known data set; expected {_known()}")
    with reading(Path(source), _known()):
        return path.resolve(strict=True)


def _arrays(path: Path, images: str | None, factors: str | None, progress: bool) -> Store:
    chosen = images is not None or factors is not None
    file = Path(factors).expanduser() if factors else None
    stamp = f"|{_stamp(file)}" if file and file.is_file() else ""
    key = _key(path, _stamp(path) + (f"|{images}|{factors}{stamp}" if chosen else ""))
    store = from_cache(cache_file(key))
    if store is not None:
        return store
    load_published = None if chosen else _published(path)
    if load_published:
        return _built(key, f"converting {path.name}", bound(load_published, path), progress)

    def convert(rows: Partial) -> tuple[str, KnownFactors]:
        with _bar(f"converting {path.name}", progress) as advance:
            return convert_arrays(path, images, factors, rows, advance)

    return converted(key, _key(path), convert)


def _pictures(path: Path, factors: str | None, progress: bool, side: int) -> Store:
    size = _sized(side)
    listing = folder_listing(path) if path.is_dir() else None
    content = _stamp(path) if listing is None else str(listing)
    key = _key(path, content + size + label_files.stamp(path, factors))
    store = from_cache(cache_file(key))  # before an archive is looked through
    if store is not None:
        return store
    if listing is None and cars3d.is_cars3d(path):
        _refuse(str(path), factors=factors)
        build = bound(cars3d.load_cars3d, path, side=side)
        return _built(key, f"converting {path.name}", build, progress)
    if listing is None and path.suffix.lower() not in ARCHIVES:
        raise UserError(f"{path}: holds no Cars3D; unpack it and give the folder")

    def convert(rows: Partial) -> tuple[str, KnownFactors]:
        labels = label_files.find(path, factors)
        label = labels and bound(label_files.picture_factors, labels)
        with _bar(f"converting {path.name}", progress) as advance:
            return convert_images(path, listing, rows, advance, side, label)

    return converted(key, _key(path, size), convert)


def _sized(side: int) -> str:
    # Nothing of the usual size, so that what was converted before there were others is found.
    return "" if side == IMAGE_SIZE else f"|{side} x {side}"


def _key(path: Path, content: str = "") -> str:
    """A name in the cache: another path or another content must not hit the same entry."""
    stem = re.sub(r"[^\w.-]", "_", path.stem, flags=re.ASCII)[:60]
    # The number changes with the conversion, so that an older one's result is not served.
    return f"{stem}-{hashlib.sha256(encoded(f'1|{path}|{content}')).hexdigest()[:16]}"


def _stamp(path: Path) -> str:
    stat = path.stat()
    return f"{stat.st_size}|{stat.st_mtime_ns}"


def _published(path: Path) -> Callable[..., Store] | None:
    """What loads dSprites and 3D Shapes as published; None for any other arrays."""
    with opened(path) as arrays:
        if is_dsprites(arrays):
            return load_dsprites_npz if path.suffix.lower() == ".npz" else load_dsprites_h5
        h5 = path.suffix.lower() in (".h5", ".hdf5")
        return load_shapes3d_h5 if h5 and is_shapes3d(arrays) else None


@contextmanager
def _bar(title: str, visible: bool) -> Iterator[Callable[[float], None]]:
    with Progress(console=Console(stderr=True), disable=not visible) as bar:
        task = bar.add_task(escape(title), total=1.0)
        yield lambda done: bar.update(task, completed=done)
