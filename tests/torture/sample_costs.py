"""Samples of what real conversions cost: memory, however large the file."""

import contextlib
import io
import os
import tarfile
import zipfile
import zlib

import h5py
import numpy as np
from PIL import Image

from torture.samples import CONVERSION, ended, fvae, sample

_CHUNK = 2000  # images that are written at once, again and again


def header(shape, dtype="|u1"):
    """What stands before an array in a .npy."""
    content = io.BytesIO()
    fields = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(content, fields)
    return content.getvalue()


class _Once:
    """Deflates a piece of data once, however often it comes."""

    def __init__(self):
        self._made = {}

    def compress(self, data):
        if id(data) not in self._made:
            packer = zlib.compressobj(6, zlib.DEFLATED, -15)
            packed = packer.compress(data) + packer.flush(zlib.Z_FULL_FLUSH)
            self._made[id(data)] = data, packed  # keeps the data, so that its id stays its own
        return self._made[id(data)][1]

    def flush(self):
        return zlib.compressobj(6, zlib.DEFLATED, -15).flush()


@contextlib.contextmanager
def Deflated(archive, name):  # noqa: N802
    """A member of a .zip, deflated, whose repeated pieces cost next to nothing."""
    with archive.open(name, "w", force_zip64=True) as member:
        member._compressor = _Once()
        yield member


def _pixels(channels=3, side=64):
    shape = (_CHUNK, side, side, channels)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def _npy(folder, count=200_000):
    piece = _pixels().tobytes()
    with open(folder / "own.npy", "wb") as file:
        file.write(header((count, 64, 64, 3)))
        for _ in range(count // _CHUNK):
            file.write(piece)
    return folder / "own.npy"


def _npz(folder, count=200_000):
    piece = _pixels().tobytes()
    with zipfile.ZipFile(folder / "own.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        with Deflated(archive, "images.npy") as member:
            member.write(header((count, 64, 64, 3)))
            for _ in range(count // _CHUNK):
                member.write(piece)
    return folder / "own.npz"


def _h5(folder, count=100_000):
    piece = _pixels()
    with h5py.File(folder / "own.h5", "w") as file:
        shape, chunks = (count, 64, 64, 3), (100, 64, 64, 3)
        images = file.create_dataset("images", shape, "u1", chunks=chunks)
        for start in range(0, count, _CHUNK):
            images[start : start + _CHUNK] = piece
    return folder / "own.h5"


def _dsprites(folder):
    count, rows = 737_280, 4096
    piece = np.zeros((rows, 64, 64), np.uint8)
    for i in range(rows):
        piece[i, i % 50 : i % 50 + 9, i // 82 : i // 82 + 9] = 1
    piece = piece.tobytes()
    classes = np.array(np.unravel_index(np.arange(count), (1, 3, 6, 40, 32, 32))).T
    with zipfile.ZipFile(folder / "dsprites.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        with Deflated(archive, "imgs.npy") as member:
            member.write(header((count, 64, 64)))
            for _ in range(count // rows):
                member.write(piece)
        content = io.BytesIO()
        np.save(content, np.ascontiguousarray(classes))
        archive.writestr("latents_classes.npy", content.getvalue(), compresslevel=1)
    return folder / "dsprites.npz"


def _pictures(count):
    made = []
    for seed in range(10):
        rough = np.random.default_rng(seed).integers(0, 256, (50, 40, 3), dtype=np.uint8)
        content = io.BytesIO()
        Image.fromarray(rough).resize((400, 500)).save(content, "JPEG")
        made.append(content.getvalue())
    return ((f"{i:05}.jpg", made[i % 10]) for i in range(count))


def _zip(folder, count=3000):
    with zipfile.ZipFile(folder / "pictures.zip", "w") as archive:
        for name, content in _pictures(count):
            archive.writestr(name, content)
    return folder / "pictures.zip"


def _tar(folder, count=3000):
    with tarfile.open(folder / "pictures.tar", "w") as archive:
        for name, content in _pictures(count):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return folder / "pictures.tar"


def _zeros(folder):
    piece = bytes(48_000_000)
    with zipfile.ZipFile(folder / "zeros.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        with Deflated(archive, "images.npy") as member:
            member.write(header((1_171_875, 64, 64)))
            for _ in range(100):
                member.write(piece)
    return folder / "zeros.npz"


for _about, _make, _images in (
    ("dsprites, rendered", lambda folder: "dsprites", 737_280),
    ("dSprites .npz of full size, 3.0 GB unpacked", _dsprites, 737_280),
    ("own .npy, 200,000 x 64 x 64 x 3 (2.5 GB)", _npy, 200_000),
    ("own .npz, deflated, 200,000 x 64 x 64 x 3", _npz, 200_000),
    ("own .npz, deflated, 4.8 GB of zeros as images", _zeros, 1_171_875),
    ("own .h5, 100,000 x 64 x 64 x 3 (1.2 GB)", _h5, 100_000),
    (".zip of 3,000 pictures of 400 x 500", _zip, 3000),
    (".tar of 3,000 pictures of 400 x 500", _tar, 3000),
):

    @sample("costs", f"conversion: {_about}", "less than 1.5 GB of memory")
    def _(place, make=_make, images=_images):
        cache = os.environ["FVAE_CACHE"]
        os.environ["FVAE_CACHE"] = str(place.folder / "cache")
        try:
            got = fvae("data", make(place.folder), limit=600.0)
        finally:
            os.environ["FVAE_CACHE"] = cache
        line, right = ended(got, 0, f"{images:,} of")
        told = f"{got.memory / 1e6:.0f} MB, {got.work:.0f} s of the processor"
        return told if right else f"{told}; {line}", right and got.memory < CONVERSION
