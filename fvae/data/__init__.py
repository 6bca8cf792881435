"""Data sets: one packed store serves them all."""

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
from rich.console import Console
from rich.progress import Progress

from fvae.config import IMAGE_SIZE
from fvae.data.cache import CacheEntry, cache_entries, cache_folder, cached
from fvae.data.dsprites import render_dsprites
from fvae.data.dsprites_files import load_dsprites_h5, load_dsprites_npz
from fvae.data.faces3d import load_faces3d_pth
from fvae.data.image_files import ARCHIVES, folder_listing
from fvae.data.images import convert_images
from fvae.data.layers import LayeredStore
from fvae.data.partial import Partial, converted
from fvae.data.reading import reading
from fvae.data.shapes3d import load_shapes3d_h5
from fvae.data.shapes3d_scene import render_shapes3d
from fvae.data.store import Store
from fvae.errors import UserError
from fvae.registry import DATA

__all__ = [
    "CacheEntry",
    "LayeredStore",
    "Store",
    "cache_entries",
    "cache_folder",
    "load",
    "load_dsprites_h5",
    "load_dsprites_npz",
    "load_faces3d_pth",
    "load_shapes3d_h5",
    "render_dsprites",
    "render_shapes3d",
]

_PATHS = (
    "the path of a published file: dSprites .npz or .hdf5, 3D Shapes .h5, 3D Faces .pth, or a"
    " folder, .zip or .tar of images (CelebA, 3D Chairs)"
)

_FILES = (".npz", ".h5", ".hdf5", ".pth")

Builder = Callable[[Callable[[float], None]], Store]


def load(source: str | Path, progress: bool = False, *, image_size: int | None = None) -> Store:
    """The data set of that name or in that file, drawn or converted once and then cached.

    Args:
        source: a name in :data:`fvae.registry.DATA`, such as "dsprites" for the rendered dSprites
            grid or "shapes3d" for the rendered 3D Shapes grid, whose images are made on demand (a
            folder of such a name is given as ./NAME); or the path of a published file: dSprites
            ``.npz`` or ``.hdf5``, 3D Shapes ``.h5``, 3D Faces ``.pth``; or a folder, ``.zip`` or
            ``.tar`` of images, such as CelebA and 3D Chairs, which have no factors. ``~`` is
            expanded.
        progress: show a progress bar on stderr while a set is drawn or converted.
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
    if str(source) in DATA:
        known = DATA[str(source)]
        key, title, build = known.key, f"drawing {known.name}", known.build
    else:
        path = _existing(source)
        if path.is_dir() or path.suffix.lower() in ARCHIVES:
            return _images(path, progress, image_size or IMAGE_SIZE)
        key, title, build = _from_file(path)

    def build_visibly() -> Store:
        with _bar(title, progress) as advance:
            return build(advance)

    store = cached(key, build_visibly) if key else build_visibly()
    _, height, width = store.image_shape
    if image_size is not None and (height, width) != (image_size, image_size):
        raise UserError(
            f"{source}: images are {height} x {width}, and --image-size, or the run, says"
            f" {image_size}; only the pictures of a folder, .zip or .tar are resized"
        )
    return store


def _known() -> str:
    names = " or ".join(f'"{name}"' for name in DATA)
    return f"{names} (rendered here), or {_PATHS}"


def _existing(source: str | Path) -> Path:
    path = Path(source).expanduser()
    known = path.suffix.lower() in (*_FILES, *ARCHIVES)
    if not str(source) or not (known or path.exists() or os.sep in str(source)):
        raise UserError(f"{source}: not a known data set; expected {_known()}")
    with reading(Path(source), _known()):
        return path.resolve(strict=True)


def _from_file(path: Path) -> tuple[str, str, Builder]:
    suffix = path.suffix.lower()
    if suffix not in _FILES:
        raise UserError(f"{path}: not a known data set; expected {_known()}")

    def build(advance: Callable[[float], None]) -> Store:
        if suffix == ".pth":
            return load_faces3d_pth(path)
        return (load_dsprites_npz if suffix == ".npz" else _load_h5)(path, advance)

    return _key(path, _stamp(path)), f"converting {path.name}", build


def _images(path: Path, progress: bool, side: int) -> Store:
    # Nothing of the usual size, so that what was converted before there were others is found.
    size = "" if side == IMAGE_SIZE else f"|{side} x {side}"
    listing = folder_listing(path) if path.is_dir() else None

    def convert(partial: Partial) -> str:
        with _bar(f"converting {path.name}", progress) as advance:
            return convert_images(path, listing, partial, advance, side)

    content = _stamp(path) if listing is None else str(listing)
    return converted(_key(path, content + size), _key(path, size), convert)


def _key(path: Path, content: str = "") -> str:
    """A name in the cache: another path or another content must not hit the same entry."""
    stem = re.sub(r"[^\w.-]", "_", path.stem, flags=re.ASCII)[:60]
    # The number changes with the conversion, so that an older one's result is not served.
    return f"{stem}-{hashlib.sha256(f'1|{path}|{content}'.encode()).hexdigest()[:16]}"


def _stamp(path: Path) -> str:
    stat = path.stat()
    return f"{stat.st_size}|{stat.st_mtime_ns}"


def _load_h5(path: Path, progress: Callable[[float], None]) -> Store:
    with reading(path, _known()), h5py.File(path, "r") as file:
        keys = sorted(file)
    if "images" in keys:
        return load_shapes3d_h5(path, progress)
    if "imgs" in keys:
        return load_dsprites_h5(path, progress)
    raise UserError(
        f"{path}: found the keys {keys}; expected imgs, latents/classes (dSprites) or "
        "images, labels (3D Shapes)"
    )


@contextmanager
def _bar(title: str, visible: bool) -> Iterator[Callable[[float], None]]:
    with Progress(console=Console(stderr=True), disable=not visible) as bar:
        task = bar.add_task(title, total=1.0)
        yield lambda done: bar.update(task, completed=done)
