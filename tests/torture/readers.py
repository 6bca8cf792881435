"""Damaged data files: read as far as they are whole, or refused in one line."""

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from small import write_cars3d, write_h5, write_npz, write_shapes3d, write_smallnorb

from fvae import data
from torture import Tally
from torture.files import damaged


def readers(folder: Path, count: int) -> list[Tally]:
    """Damage a small file of each kind that ``--data`` takes, ``count`` times each."""
    pictures = [_png(i) for i in range(3)]
    with zipfile.ZipFile(folder / "pictures.zip", "w") as archive:
        for i, content in enumerate(pictures):
            archive.writestr(f"{i}.png", content)
    with tarfile.open(folder / "pictures.tar", "w") as archive:
        for i, content in enumerate(pictures):
            member = tarfile.TarInfo(f"{i}.png")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    (folder / "labelled").mkdir()
    for i, content in enumerate(pictures):
        (folder / "labelled" / f"{i}.png").write_bytes(content)
    labels = folder / "labelled" / "labels.csv"
    labels.write_text("file,size,kind\n" + "".join(f"{i}.png,{i / 2},k{i % 2}\n" for i in range(3)))
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16), dtype=np.uint8)
    np.save(folder / "own.npy", images)
    np.savez(folder / "own.npz", images=images, labels=np.arange(4))
    write_h5(folder / "own.h5", images=images, labels=np.arange(4))
    torch.save(torch.zeros(2, 2, 1, 1, 64, 64, dtype=torch.uint8), folder / "faces.pth")
    write_cars3d(folder / "cars")
    write_smallnorb(folder / "norb")
    norb = sorted((folder / "norb").iterdir())
    targets = {
        "dSprites .npz": (write_npz(folder / "dsprites.npz"), None),
        "3D Shapes .h5": (write_shapes3d(folder / "shapes.h5"), None),
        "3D Faces .pth": (folder / "faces.pth", None),
        "own .npy": (folder / "own.npy", None),
        "own .npz": (folder / "own.npz", None),
        "own .h5": (folder / "own.h5", None),
        "pictures .zip": (folder / "pictures.zip", None),
        "pictures .tar": (folder / "pictures.tar", None),
        "a picture": (folder / "labelled" / "1.png", folder / "labelled"),
        "labels .csv": (labels, folder / "labelled"),
        "Cars3D .mat": (sorted((folder / "cars").iterdir())[0], folder / "cars"),
        "SmallNORB": (next(p for p in norb if "dat" in p.name), folder / "norb"),
        "SmallNORB info": (next(p for p in norb if "info" in p.name), folder / "norb"),
    }
    tallies = []
    for kind, (path, source) in targets.items():
        read = lambda place=source or path: _use(data.load(place))  # noqa: E731
        tallies.append(damaged(f"damaged {kind}", path, read, count))
    store = data.load(targets["dSprites .npz"][0])
    entries = [e.path for e in data.cache_entries() if e.name == store.name]
    read = lambda: _use(data.load(targets["dSprites .npz"][0]))  # noqa: E731
    tallies.append(damaged("damaged cache entry", entries[0], read, count))
    return tallies


def _use(store: data.Store) -> None:
    store.images([0, len(store) - 1])
    if store.factor_names:
        store.factors([0])


def _png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 18, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()
