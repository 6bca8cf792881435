"""Data sets as published, and anybody's own."""

import contextlib
import io
import json
import os
from unittest import mock

import numpy as np
import torch
from PIL import Image
from small import (
    SMALL_OPTIONS,
    Trap,
    coloured_images,
    command,
    refusal,
    refused,
    write_cars3d,
    write_h5,
    write_mpi3d,
    write_smallnorb,
)

from fvae import data
from fvae.data import Store, mpi3d, registry
from fvae.data.variants import variant
from own import case

GRAY = np.random.default_rng(0).integers(0, 256, (24, 16, 16), dtype=np.uint8)
GRID = np.array(list(np.ndindex(2, 3, 4)))


@contextlib.contextmanager
def _cache(folder):
    """A cache of the case's own."""
    with mock.patch.dict(os.environ, FVAE_CACHE=str(folder / "cache")):
        yield


def _load(folder, source, **options):
    with _cache(folder), contextlib.redirect_stderr(io.StringIO()):
        return data.load(source, **options)


def _pixels(store):
    return store.images(range(len(store))).numpy()


def _npz(folder, **arrays):
    np.savez(folder / "own.npz", **arrays)
    return folder / "own.npz"


def _refusal(folder, source, **options):
    with _cache(folder):
        return refusal(source, **options)


# --- published sets ------------------------------------------------------------------------------


def _mpi3d(count):
    def run(folder):
        sizes = (2, 1, 2, 3, 1, 2, 2)
        published = mpi3d.SIZES[count]
        with mock.patch.dict(mpi3d.SIZES, {48: sizes}):
            store = _load(folder, write_mpi3d(folder / "mpi3d.npz", 48))
        right = np.array_equal(_pixels(store), coloured_images(48).transpose(0, 3, 1, 2))
        fine = right and store.factor_sizes == sizes and np.prod(published) == count
        return f"{published}, small copy {store.factor_sizes}", fine

    return run


case("MPI3D toy, realistic, real: images of 1,036,800", "sizes 6, 6, 2, 3, 3, 40, 40")(
    _mpi3d(1_036_800)
)
case("MPI3D real, complicated shapes: images of 460,800", "sizes 4, 4, 2, 3, 3, 40, 40")(
    _mpi3d(460_800)
)


@case("Cars3D: data/cars/car_*_mesh.mat", "elevation 4, azimuth 24, one object a file, 64 x 64")
def _(folder):
    views = write_cars3d(folder / "data" / "cars", cars=2)
    store = _load(folder, folder / "data")
    image = store.images(store.index([[3, 20, 1]]))[0, :, 0, 0]
    fine = image.tolist() == views[1][0, 0, :, 20, 3].tolist()
    return store.factor_sizes, fine and store.factor_sizes == (4, 24, 2)


@case("SmallNORB: the six binary matrices, gzipped", "labels without the instance, 64 x 64")
def _(folder):
    made = write_smallnorb(folder, end=".gz")
    store = _load(folder, folder)
    labels = np.column_stack([np.concatenate(made["cat"]), np.concatenate(made["info"])[:, 1:]])
    return store.factor_names, np.array_equal(store.labels, labels) and len(store) == 12


@case("SmallNORB with a false magic number", "one line that names the file")
def _(folder):
    write_smallnorb(folder, ("training",))
    (dat,) = folder.glob("*-dat.mat")
    dat.write_bytes(b"\0" * 4 + dat.read_bytes()[4:])
    got = _refusal(folder, folder)
    return "refused", dat.name in got and "begins with 0x0" in got


def _variant(kind, check):
    def run(folder):
        images = np.zeros((4, 1, 64, 64), np.uint8)
        images[:, 0, 20:40, 10:30] = 1
        bits = np.packbits(images.reshape(4, -1), axis=1, bitorder="little")
        base = Store(
            "b", torch.from_numpy(bits), (1, 64, 64), True, tuple("abcde"), (1, 2, 2, 1, 1)
        )
        with mock.patch.object(registry, "cached", lambda key, build: base):
            store = data.load(f"dsprites-{kind}")
        got, again = _pixels(store), _pixels(variant(base, kind))
        fine = store.on_demand and np.array_equal(got, again) and (got[0] != got[1]).any()
        return store.name, bool(fine and check(got, images.repeat(3, axis=1) == 1))

    return run


case("--data dsprites-color", "a colour of at least a half, black around, the same each time")(
    _variant("color", lambda x, m: x[m].min() >= 127 and not x[~m].any())
)
case("--data dsprites-noisy", "white on uniform noise, the same each time")(
    _variant("noisy", lambda x, m: (x[m] == 255).all() and abs(x[~m].mean() - 127.5) < 3)
)
case("--data dsprites-scream", "an inverted piece of a picture, the same each time")(
    _variant("scream", lambda x, m: x[~m].std() > 5)
)


# --- one's own arrays ----------------------------------------------------------------------------


def _file(suffix):
    def run(folder):
        path = folder / f"own{suffix}"
        if suffix == ".npy":
            np.save(path, GRAY)
        elif suffix == ".npz":
            np.savez_compressed(path, pictures=GRAY)
        else:
            write_h5(path, pictures=GRAY)
        store = _load(folder, path)
        return store.image_shape, np.array_equal(_pixels(store)[:, 0], GRAY)

    return run


for _suffix in (".npz", ".npy", ".h5"):
    case(f"{_suffix} with one array of images [24, 16, 16]", "its images, no factors")(
        _file(_suffix)
    )


@case("x_train and x_test in one .npz", "a line that lists both; --images takes one")
def _(folder):
    path = _npz(folder, x_train=GRAY, y_train=GRID[:, 2], x_test=GRAY[:5], y_test=GRID[:5, 2])
    line = _refusal(folder, path)
    store = _load(folder, path, images="x_test")
    fine = "x_train is [24, 16, 16]" in line and "--images" in line
    return store.factor_names, fine and store.factor_names == ("y_test",) and len(store) == 5


def _layout(array, shape):
    def run(folder):
        store = _load(folder, _npz(folder, x=array))
        return store.image_shape, store.image_shape == shape

    return run


_COLOUR = np.zeros((4, 16, 16, 3), np.uint8)
case("images [4, 16, 16, 3]", (3, 16, 16))(_layout(_COLOUR, (3, 16, 16)))
case("images [4, 3, 16, 16]", (3, 16, 16))(_layout(_COLOUR.transpose(0, 3, 1, 2), (3, 16, 16)))


def _numbers(make, right):
    def run(folder):
        got = _pixels(_load(folder, _npz(folder, x=make(GRAY))))[:, 0]
        return f"{got.min()} to {got.max()}", np.array_equal(got, right(GRAY))

    return run


case("real images from 0 to 1", "bytes")(_numbers(lambda x: x / 255, lambda x: x))
case("truth values", "bits")(_numbers(lambda x: x > 99, lambda x: x > 99))
case("16 bits that hold 12", "scaled by 4095, and said")(
    _numbers(lambda x: x.astype(np.uint16) * 16 + 15, lambda x: np.rint((x * 16.0 + 15) / 16.0588))
)


def _refused_array(make, *words):
    def run(folder):
        line = _refusal(folder, _npz(folder, x=make(GRAY)))
        return "refused", all(word in line for word in words)

    return run


case("real images from 0 to 255", "a line that names the range and the remedy")(
    _refused_array(lambda x: x * 1.0, "from 0 to 255", "divide")
)
case("images with NaN", "a line")(_refused_array(lambda x: x * np.nan, "from nan to nan"))
case("images [3, 16, 16, 16]", "a line: which axis holds the channels")(
    _refused_array(lambda x: np.zeros((3, 16, 16, 16)), "which axis")
)
case("flattened images [24, 256]", "a line that says what is in the file")(
    _refused_array(lambda x: x.reshape(24, -1), "x is [24, 256] uint8")
)
case("a pickle in place of images", "refused, and never run")(
    _refused_array(lambda x: np.array([Trap()] * 24, object), "x is [24] object")
)


@case("a file cut short", "a line that names it")
def _(folder):
    path = _npz(folder, x=GRAY)
    path.write_bytes(path.read_bytes()[:2000])
    return "refused", "own.npz" in _refusal(folder, path)


# --- labels --------------------------------------------------------------------------------------


@case("labels of a full grid in any order", "the grid 2 x 3 x 4, images in its order")
def _(folder):
    rows = np.random.default_rng(1).permutation(24)
    store = _load(folder, _npz(folder, images=GRAY[rows], labels=GRID[rows] * 1.5))
    fine = store.factor_sizes == (2, 3, 4) and np.array_equal(_pixels(store)[:, 0], GRAY)
    return store.factor_sizes, fine


@case("labels with a combination missing and one repeated", "labels, row by row")
def _(folder):
    labels = np.concatenate([GRID[1:], GRID[5:6]])
    store = _load(folder, _npz(folder, images=GRAY, labels=labels))
    return "labels", store.factor_sizes == () and np.array_equal(store.labels, labels)


@case("--factors size,pose of one .npz", "two factors, real and whole")
def _(folder):
    path = _npz(folder, x=GRAY, size=GRID[:, 2] * 0.3, pose=GRID[:, 0])
    store = _load(folder, path, factors="size,pose")
    return store.factor_names, store.factor_names == ("size", "pose")


@case("a label that is NaN", "a line that names image and remedy")
def _(folder):
    line = _refusal(folder, _npz(folder, x=GRAY, y=np.where(GRID[:, 2] == 3, np.nan, 0)))
    return "refused", "y of image 3 is nan" in line and "--factors no" in line


def _pictures(folder, text):
    (folder / "p").mkdir()
    for i in range(6):
        Image.new("L", (64, 64), 40 * i).save(folder / "p" / f"{i}.png")
    (folder / "p" / "labels.csv").write_text(text)
    return folder / "p"


_ROWS = [f"{i}.png,{5 - i // 2},{'ab'[i % 2]}\n" for i in range(6)]


@case("a folder of pictures with labels.csv, a full grid", "the grid 3 x 2, in its order")
def _(folder):
    store = _load(folder, _pictures(folder, "file,pose,who\n" + "".join(_ROWS)))
    shades = _pixels(store)[:, 0, 0, 0].tolist()
    return shades, store.factor_sizes == (3, 2) and shades == [160, 200, 80, 120, 0, 40]


@case("a folder of pictures with a row too few", "a line that names a picture without a row")
def _(folder):
    line = _refusal(folder, _pictures(folder, "file,pose,who\n" + "".join(_ROWS[:-1])))
    return "refused", "1 pictures have no row, such as '5.png'" in line


# --- where the data are --------------------------------------------------------------------------


def _trained(folder):
    images = np.random.default_rng(0).integers(0, 256, (8, 64, 64), dtype=np.uint8)
    np.save(folder / "old.npy", images)
    words = ["--steps", "1", "--precision", "fp32", "--data", folder / "old.npy"]
    assert command("train", *SMALL_OPTIONS, *words, "--out", folder / "run")[0] == 0
    return images


@case("a run whose data moved", "--data says where they are")
def _(folder):
    with _cache(folder):
        _trained(folder)
        (folder / "old.npy").rename(folder / "new.npy")
        line = refused("report", folder / "run")
        status = command("report", folder / "run", "--data", folder / "new.npy")[0]
        words = ["--resume", folder / "run", "--steps", "2", "--data", folder / "new.npy"]
        status += command("train", *words)[0]
    kept = json.loads((folder / "run" / "config.json").read_text())["data"]
    return f"status {status}", status == 0 and "--data" in line and kept.endswith("new.npy")


@case("other images of the same shape and number", "refused: the checksum differs")
def _(folder):
    with _cache(folder):
        images = _trained(folder)
        images[3, 5, 5] ^= 1
        np.save(folder / "new.npy", images)
        line = refused("report", folder / "run", "--data", folder / "new.npy")
    return "refused", "was trained on old (8 images of 1 x 64 x 64 bytes, checksum" in line


@case("a run of version 0.1, which tells nothing of its data", "shown, with a warning")
def _(folder):
    with _cache(folder):
        _trained(folder)
        (folder / "run" / "data.json").unlink()
        status, _, said = command("report", folder / "run")
    return f"status {status}", status == 0 and "warning" in said and "data.json" in said


@case("--device cuda where there is none", "refused before any data are read")
def _(folder):
    if torch.cuda.is_available():
        return "there is one here", True
    with mock.patch.object(data, "load", side_effect=AssertionError("data were read")):
        lines = [refused(name, "--device", "cuda") for name in ("train", "study")]
    return "refused", all("no CUDA device" in line for line in lines)
