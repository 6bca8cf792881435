"""Data sets: one packed store serves them all."""

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
from rich.console import Console
from rich.progress import Progress

from fvae.data.cache import CacheEntry, cache_entries, cache_folder, cached
from fvae.data.dsprites import render_dsprites, rendered_store
from fvae.data.dsprites_files import load_dsprites_h5, load_dsprites_npz
from fvae.data.layers import LayeredStore
from fvae.data.reading import reading
from fvae.data.shapes3d import load_shapes3d_h5
from fvae.data.shapes3d_scene import render_shapes3d, scene_store
from fvae.data.store import Store
from fvae.errors import UserError

__all__ = [
    "CacheEntry",
    "LayeredStore",
    "Store",
    "cache_entries",
    "cache_folder",
    "load",
    "load_dsprites_h5",
    "load_dsprites_npz",
    "load_shapes3d_h5",
    "render_dsprites",
    "render_shapes3d",
]

_KNOWN = (
    '"dsprites" or "shapes3d" (rendered here), or the path of a published file: '
    "dSprites .npz or .hdf5, 3D Shapes .h5"
)

Builder = Callable[[Callable[[float], None]], Store]


def load(source: str | Path, progress: bool = False) -> Store:
    """The data set of that name or in that file, drawn or converted once and then cached.

    Args:
        source: "dsprites" for the rendered dSprites grid, "shapes3d" for the rendered 3D Shapes
            grid, whose images are made on demand, or the path of a published file: dSprites
            ``.npz`` or ``.hdf5``, 3D Shapes ``.h5``. ``~`` is expanded.
        progress: show a progress bar on stderr while a set is drawn or converted.

    Returns:
        The store, on the CPU.

    Raises:
        UserError: the source is not known, or the file is missing, damaged or laid out otherwise.
    """
    if str(source) == "shapes3d":
        return scene_store()  # a second's work: not worth a file
    if str(source) == "dsprites":
        # The number changes with the drawing, so that an older drawing is not served.
        key, title, build = "dsprites-rendered-1", "drawing dSprites", rendered_store
    else:
        key, title, build = _from_file(source)

    def build_visibly() -> Store:
        with _bar(title, progress) as advance:
            return build(advance)

    return cached(key, build_visibly)


def _from_file(source: str | Path) -> tuple[str, str, Builder]:
    suffix = Path(source).suffix.lower()
    if suffix not in (".npz", ".h5", ".hdf5"):
        raise UserError(f"{source}: not a known data set; expected {_KNOWN}")
    with reading(Path(source), _KNOWN):
        path = Path(source).expanduser().resolve(strict=True)
        stat = path.stat()
    # Another file, or the same path with other content, must not hit the same entry.
    identity = f"1|{path}|{stat.st_size}|{stat.st_mtime_ns}"
    stem = re.sub(r"[^\w.-]", "_", path.stem, flags=re.ASCII)[:60]
    key = f"{stem}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"

    def build(advance: Callable[[float], None]) -> Store:
        return (load_dsprites_npz if suffix == ".npz" else _load_h5)(path, advance)

    return key, f"converting {path.name}", build


def _load_h5(path: Path, progress: Callable[[float], None]) -> Store:
    with reading(path, _KNOWN), h5py.File(path, "r") as file:
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
