import io
import pickle
import tracemalloc
import zipfile
from functools import partial
from itertools import product

import numpy as np
import pytest
import small
from small import Trap, binary_images, classes_of, coloured_images, refusal, write_h5

import fvae.data
from fvae.data import load, load_dsprites_h5, load_dsprites_npz, load_shapes3d_h5
from fvae.errors import UserError

SIZES = (2, 1, 3, 2, 2)  # a small grid with the layout of dSprites
CLASSES = classes_of(*SIZES)
IMAGES = binary_images(len(CLASSES))

SHAPES3D_SIZES = (2, 1, 2, 2, 1, 3)
VALUES = ([0.0, 0.1], [0.5], [0.2, 0.9], [0.75, 1.25], [1.0], [-30.0, 0.0, 30.0])
LABELS = np.array(list(product(*VALUES)))
COLOURED = coloured_images(len(LABELS))

pytestmark = pytest.mark.usefixtures("own_cache")
write_npz = partial(small.write_npz, sizes=SIZES)
write_shapes3d = partial(small.write_shapes3d, values=VALUES)


def test_npz_gives_its_images_and_never_unpickles(tmp_path):
    path = write_npz(tmp_path / "small.npz")
    with np.load(path, allow_pickle=True) as file, pytest.raises(pytest.fail.Exception):
        file["metadata"]  # the trap works
    for store in (load_dsprites_npz(path), load(path), load(str(path))):
        assert store.factor_sizes == SIZES
        assert store.factor_names == ("shape", "scale", "orientation", "posX", "posY")
        assert store.binary and store.image_shape == (1, 64, 64)
        assert np.array_equal(store.images(range(len(store)))[:, 0], IMAGES)
        assert np.array_equal(store.factors(range(len(store))), CLASSES[:, 1:])


def test_a_pickle_in_place_of_an_array_is_refused(tmp_path):
    trap = np.array([Trap()], dtype=object)
    path = write_npz(tmp_path / "a.npz", imgs=trap)
    assert "imgs is [1] object" in refusal(path)
    assert "imgs is [1] object" in refusal(path, load_dsprites_npz)
    path = write_npz(tmp_path / "b.npz", latents_classes=trap, latents_values=None)
    assert "latents_classes is [1] object" in refusal(path)
    assert "allow_pickle" in refusal(path, load_dsprites_npz)
    raw = tmp_path / "c.npz"
    with zipfile.ZipFile(raw, "w") as archive:
        archive.writestr("imgs.npy", pickle.dumps(Trap()))
        archive.writestr("latents_classes.npy", pickle.dumps(Trap()))
    assert "cannot be read" in refusal(raw, load_dsprites_npz)
    assert "imgs is [] object, latents_classes is [] object" in refusal(raw)


def test_dsprites_hdf5_gives_its_images(tmp_path):
    store = load(write_h5(tmp_path / "small.hdf5", imgs=IMAGES, latents__classes=CLASSES))
    assert store.factor_sizes == SIZES
    assert np.array_equal(store.images(range(len(store)))[:, 0], IMAGES)


def test_shapes3d_gives_its_images_channels_first(tmp_path):
    store = load(write_shapes3d(tmp_path / "3dshapes.h5"))
    assert store.factor_sizes == SHAPES3D_SIZES
    assert store.factor_names[-1] == "orientation"
    assert not store.binary and store.image_shape == (3, 64, 64)
    assert np.array_equal(store.images(range(len(store))), COLOURED.transpose(0, 3, 1, 2))


def test_a_converted_file_comes_from_the_cache_until_it_changes(tmp_path, monkeypatch):
    path = write_npz(tmp_path / "small.npz")
    load(path)
    with monkeypatch.context() as patch:
        patch.setattr(fvae.data, "load_dsprites_npz", lambda *_: pytest.fail("converted again"))
        assert np.array_equal(load(path).images([3])[0, 0], IMAGES[3])
    write_npz(path, imgs=1 - IMAGES)
    assert np.array_equal(load(path).images([3])[0, 0], 1 - IMAGES[3])
    assert len(fvae.data.cache_entries()) == 2


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_npz(tmp_path / "small.npz")
    assert len(load("~/small.npz")) == len(IMAGES)


def test_progress_goes_to_stderr_and_only_if_asked(tmp_path, capfd):
    load(write_npz(tmp_path / "quiet.npz"))
    assert capfd.readouterr() == ("", "")
    load(write_npz(tmp_path / "loud.npz"), progress=True)
    out, err = capfd.readouterr()
    assert out == "" and "converting loud.npz" in err


def test_conversion_never_holds_the_images_unpacked(tmp_path):
    sizes = (3, 6, 40, 5, 4)
    classes = np.array([(0, *row) for row in np.ndindex(*sizes)])
    path = write_npz(
        tmp_path / "moderate.npz",
        imgs=np.zeros((len(classes), 64, 64), np.uint8),
        latents_classes=classes,
    )
    unpacked = len(classes) * 64 * 64
    tracemalloc.start()
    store = load_dsprites_npz(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert store.nbytes == unpacked // 8
    # Packed data, classes, and a few chunks of 4096 images on their way.
    assert peak < store.nbytes + 3 * classes.nbytes + 4 * 4096 * 64 * 64 < 1.5 * unpacked


@pytest.mark.parametrize("source", ["dsprite", "cifar10", "", "set.tar", "nowhere/pictures"])
def test_an_unknown_source_lists_what_is_known(source):
    message = refusal(source)
    for known in (
        "dsprites",
        ".npz",
        ".h5",
        ".hdf5",
        "3D Shapes",
        ".pth",
        "folder",
        ".zip",
        ".tar",
    ):
        assert known in message


@pytest.mark.parametrize("suffix", [".npz", ".h5", ".hdf5", ".pth", ".zip", ".tar"])
def test_files_that_are_not_what_they_should_be(tmp_path, suffix):
    path = tmp_path / f"file{suffix}"
    assert "no such file" in refusal(path)
    path.write_bytes(b"")
    message = refusal(path)
    assert "cannot be read" in message or "not a torch file" in message
    path.write_bytes(b"<html>404 Not Found</html>" * 1000)
    message = refusal(path)
    assert "cannot be read" in message or "not a torch file" in message
    path.unlink()
    path.mkdir()
    assert "no image" in refusal(path)
    assert fvae.data.cache_entries() == []


def test_files_cut_short_are_refused(tmp_path):
    writers = {
        "a.npz": write_npz,
        "b.h5": write_shapes3d,
        "c.h5": lambda path: write_h5(path, imgs=IMAGES, latents__classes=CLASSES),
    }
    for name, write in writers.items():
        path = write(tmp_path / name)
        sound = path.read_bytes()
        for share in (0.05, 0.5, 0.95):
            path.write_bytes(sound[: int(len(sound) * share)])
            refusal(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_npz_is_refused_or_read_right(tmp_path, save):
    path = tmp_path / "small.npz"
    save(path, latents_classes=CLASSES, imgs=IMAGES)
    sound = path.read_bytes()
    rng = np.random.default_rng(0)
    places = [*range(400), *range(len(sound) - 300, len(sound)), *rng.integers(0, len(sound), 60)]
    for place in places:
        content = bytearray(sound)
        content[place] = ord("(")  # in a header, the hardest to parse
        path.write_bytes(content)
        try:
            store = load_dsprites_npz(path)
        except UserError as error:
            assert "\n" not in str(error)
        else:  # the byte carries nothing that is read, such as a time stamp
            assert np.array_equal(store.images(range(len(store)))[:, 0], IMAGES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"imgs": None}, "no array 'imgs', found"),
        ({"latents_classes": None}, "no array 'latents_classes', found"),
        ({"imgs": IMAGES[:, :32]}, "imgs is [24, 32, 64] uint8, expected [N, 64, 64] uint8"),
        ({"imgs": IMAGES[0]}, "imgs is [64, 64] uint8, expected [N, 64, 64] uint8"),
        ({"imgs": IMAGES.astype(np.float32)}, "float32, expected [N, 64, 64] uint8"),
        ({"imgs": IMAGES.astype(np.int64)}, "int64, expected [N, 64, 64] uint8"),
        ({"imgs": IMAGES * 255}, "value 255, expected 0 and 1"),
        ({"imgs": IMAGES[:-1]}, "23 images for 24 rows"),
        ({"imgs": np.asfortranarray(IMAGES)}, "Fortran order"),
        ({"latents_classes": CLASSES[:, 1:]}, "[24, 5] int64, expected [N, 6] integer"),
        ({"latents_classes": CLASSES * 1.0}, "float64, expected [N, 6] integer"),
        ({"latents_classes": CLASSES[:-1]}, "not the full grid [1, 2, 1, 3, 2, 2]"),
        ({"latents_classes": CLASSES[::-1]}, "row-major order"),
        ({"latents_classes": CLASSES - 1}, "not the full grid"),
        ({"latents_classes": CLASSES[:0]}, "latents_classes is empty"),
        ({"latents_classes": CLASSES[:, ::-1]}, "row-major order"),
    ],
)
def test_an_npz_laid_out_otherwise_is_no_published_one(tmp_path, changes, message):
    path = write_npz(tmp_path / "small.npz", **changes)
    assert message in refusal(path, load_dsprites_npz)


def test_more_than_one_colour_is_refused(tmp_path):
    classes = np.array([(c, *row[1:]) for c in (0, 1) for row in CLASSES])
    path = write_npz(
        tmp_path / "colours.npz", latents_classes=classes, imgs=np.concatenate([IMAGES, IMAGES])
    )
    assert "2 colours, expected 1" in refusal(path, load_dsprites_npz)


def test_a_false_header_allocates_nothing(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (10**12, 64, 64)}
    )
    path = write_npz(tmp_path / "small.npz", imgs=None)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("imgs.npy", header.getvalue())
    assert "1000000000000 images for 24 rows" in refusal(path, load_dsprites_npz)
    assert "1000000000000 images for 24 labels" in refusal(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": COLOURED[..., :1]}, "expected [N, 64, 64, 3] uint8"),
        ({"images": COLOURED.astype(np.int16)}, "int16, expected [N, 64, 64, 3] uint8"),
        ({"images": COLOURED[:-1]}, "23 images for 24 labels"),
        ({"labels": LABELS[:, :5]}, "labels is [24, 5] float64, expected [N, 6] floating"),
        ({"labels": LABELS.astype("S3")}, "expected [N, 6] floating"),
        ({"labels": LABELS[::-1]}, "row-major order"),
        ({"labels": np.full_like(LABELS, np.nan)}, "row-major order"),
        ({"labels": LABELS[:0], "images": COLOURED[:0]}, "labels is empty"),
    ],
)
def test_a_shapes3d_file_laid_out_otherwise_is_no_published_one(tmp_path, changes, message):
    path = write_shapes3d(tmp_path / "3dshapes.h5", **changes)
    assert message in refusal(path, load_shapes3d_h5)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": COLOURED}, "no array 'labels', found ['images']"),
        ({"images__deeper": COLOURED, "labels": LABELS}, "no array 'images'"),
        ({"imgs": IMAGES}, "no array 'latents/classes', found ['imgs']"),
        ({"imgs": IMAGES, "latents": CLASSES}, "no array 'latents/classes'"),
        ({"imgs": IMAGES * 2, "latents__classes": CLASSES}, "value 2, expected 0 and 1"),
        ({"imgs": IMAGES, "latents__classes": CLASSES[:, :5]}, "expected [N, 6] integer"),
    ],
)
def test_an_h5_without_the_right_arrays_is_no_published_one(tmp_path, arrays, message):
    path = write_h5(tmp_path / "file.h5", **arrays)
    shapes3d = any(key.startswith("images") for key in arrays)
    assert message in refusal(path, load_shapes3d_h5 if shapes3d else load_dsprites_h5)
