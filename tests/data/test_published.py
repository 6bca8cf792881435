"""MPI3D, Cars3D and SmallNORB, each from small files laid out as the published ones."""

import gzip
import tarfile
import zipfile

import h5py
import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from small import (
    Trap,
    coloured_images,
    refusal,
    write_cars3d,
    write_h5,
    write_matrix,
    write_mpi3d,
    write_smallnorb,
)

from fvae.data import load, mpi3d, smallnorb
from fvae.data.cars3d import load_cars3d

pytestmark = pytest.mark.usefixtures("own_cache")

SIZES = (2, 1, 2, 3, 1, 2, 2)


def pixels(store):
    return store.images(range(len(store))).numpy()


# --- MPI3D ---------------------------------------------------------------------------------------


def test_mpi3d_is_known_by_its_number_of_images(tmp_path, monkeypatch):
    assert {6 * 6 * 2 * 3 * 3 * 40 * 40, 4 * 4 * 2 * 3 * 3 * 40 * 40} == mpi3d.SIZES.keys()
    assert all(np.prod(sizes) == count for count, sizes in mpi3d.SIZES.items())
    monkeypatch.setitem(mpi3d.SIZES, 48, SIZES)
    for path in (tmp_path / "mpi3d_toy.npz", tmp_path / "real.npz", tmp_path / "mpi3d.h5"):
        if path.suffix == ".h5":
            write_h5(path, images=coloured_images(48))
        else:
            write_mpi3d(path, 48)
        store = load(path)
        assert store.factor_sizes == SIZES and store.labels is None and not store.binary
        assert store.factor_names[:2] == ("object_color", "object_shape")
        assert store.factor_names[-1] == "vertical_axis"
        assert np.array_equal(pixels(store), coloured_images(48).transpose(0, 3, 1, 2))
    assert load(tmp_path / "real.npz", factors="no").factor_sizes == ()


def test_a_part_of_mpi3d_has_no_factors_and_that_is_said(tmp_path, capsys):
    assert load(write_mpi3d(tmp_path / "mpi3d_toy.npz", 47)).factor_names == ()
    assert "47 images are not MPI3D's number" in capsys.readouterr().err
    assert load(write_mpi3d(tmp_path / "mine.npz", 47)).factor_names == ()
    assert capsys.readouterr().err == ""


def test_labels_of_its_own_come_before_mpi3ds(tmp_path, monkeypatch):
    monkeypatch.setitem(mpi3d.SIZES, 48, SIZES)
    np.savez(tmp_path / "a.npz", images=coloured_images(48), labels=np.arange(48) // 2)
    assert load(tmp_path / "a.npz").factor_names == ("labels",)


# --- Cars3D --------------------------------------------------------------------------------------


def tar_of(folder, path, mode):
    with tarfile.open(path, mode) as tar:
        tar.add(folder, "data")
    return path


def zip_of(folder, path):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.mat")):
            archive.write(file, file.relative_to(folder.parent))
    return path


@pytest.fixture(scope="module")
def cars(tmp_path_factory):
    """A folder as the published archive unpacks to, and the views of each car."""
    folder = tmp_path_factory.mktemp("cars3d") / "data"
    views = write_cars3d(folder / "cars", cars=3)
    (folder / "cars" / "list.txt").write_text("car_000_mesh\n")
    (folder / "sprites").mkdir()
    scipy.io.savemat(folder / "sprites" / "sprites_1.mat", {"sprites": np.zeros(3)})
    return folder, views


def test_cars3d_is_elevation_azimuth_object(cars, tmp_path, capsys):
    folder, views = cars
    sources = [
        folder.parent,
        folder,
        folder / "cars",
        tar_of(folder, tmp_path / "nips2015-analogy-data.tar.gz", "w:gz"),
        tar_of(folder, tmp_path / "cars.tar", "w"),
        zip_of(folder, tmp_path / "cars.zip"),
    ]
    for source in sources:
        store = load(source)
        assert store.name == "cars3d" and store.image_shape == (3, 64, 64)
        assert store.factor_names == ("elevation", "azimuth", "object")
        assert store.factor_sizes == (4, 24, 3)
        for e, a, o in [(0, 0, 0), (3, 5, 2), (1, 23, 1), (2, 0, 2)]:
            image = store.images(store.index([[e, a, o]]))[0].numpy()
            assert np.array_equal(
                image, np.broadcast_to(views[o][:64, :64, :, a, e].T, image.shape)
            )
        assert "3 .mat files, of 183 cars" in capsys.readouterr().err
        load(source)  # from the cache
        assert capsys.readouterr().err == ""
    assert load_cars3d(folder, side=128).image_shape == (3, 128, 128)


def test_cars_are_resized_as_usual(tmp_path):
    im = np.random.default_rng(0).integers(0, 256, (128, 128, 3, 24, 4), dtype=np.uint8)
    write_cars3d(tmp_path / "cars", cars=1, im=im)
    picture = Image.fromarray(np.ascontiguousarray(im[..., 7, 2]))
    picture.thumbnail((64, 64), Image.Resampling.LANCZOS)  # what disentanglement_lib does
    store = load(tmp_path / "cars")
    assert np.array_equal(
        store.images(store.index([[2, 7, 0]]))[0], np.asarray(picture).transpose(2, 0, 1)
    )


def test_cars_of_matlab_7_3(tmp_path):
    (views,) = write_cars3d(tmp_path / "old" / "cars", cars=1)
    (tmp_path / "cars").mkdir()
    with h5py.File(tmp_path / "cars" / "car_0.mat", "w", userblock_size=512) as file:
        file["im"] = views.T
    with open(tmp_path / "cars" / "car_0.mat", "r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file")
    assert torch.equal(load(tmp_path / "cars").data, load(tmp_path / "old").data)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"im": np.zeros((64, 64, 3, 24, 4), np.uint8)},
            "im is [64, 64, 3, 24, 4] uint8, expected",
        ),
        ({"im": np.zeros((128, 128, 3, 24, 4))}, "double, expected [128, 128, 3, 24, 4] uint8"),
        ({"im": np.array([{"a": 1}], object)}, "cell, expected"),
        ({"im": "text"}, "char, expected"),
    ],
)
def test_cars_laid_out_otherwise_are_refused(tmp_path, changes, message):
    write_cars3d(tmp_path / "cars", cars=1, **changes)
    assert message in refusal(tmp_path / "cars")


def test_damaged_cars_are_refused(tmp_path):
    write_cars3d(tmp_path / "cars", cars=1)
    path = tmp_path / "cars" / "car_000_mesh.mat"
    sound = path.read_bytes()
    for content in (b"", sound[:100], sound[: len(sound) // 2], b"<html>" * 100):
        path.write_bytes(content)
        assert "car_000_mesh.mat" in refusal(tmp_path / "cars")
    scipy.io.savemat(path, {"mask": np.zeros(3)})
    assert "no array 'im', found ['mask']" in refusal(tmp_path / "cars")
    gz = tmp_path / "other.tar.gz"
    with tarfile.open(gz, "w:gz") as tar:
        tar.add(__file__, "a.py")
    assert "holds no Cars3D" in refusal(gz)
    gz.write_bytes(gz.read_bytes()[:50])
    refusal(gz)


# --- SmallNORB -----------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize("splits", [("training", "testing"), ("training",), ("testing",)])
def test_smallnorb_has_labels_without_the_instance(tmp_path, end, splits):
    made = write_smallnorb(tmp_path / "norb", splits, end=end)
    store = load(tmp_path / "norb")
    count = 6 * len(splits)
    assert store.name == ("smallnorb" if len(splits) == 2 else f"smallnorb ({splits[0]})")
    assert store.factor_names == ("category", "elevation", "azimuth", "lighting")
    assert store.factor_sizes == () and store.image_shape == (1, 64, 64)
    assert store.labels[:, 0].tolist() == np.concatenate(made["cat"]).tolist()
    assert store.labels[:, 1:].tolist() == np.concatenate(made["info"])[:, 1:].tolist()
    for i in (0, count - 1):  # the first camera, resized as disentanglement_lib does
        picture = Image.fromarray(np.concatenate(made["dat"])[i, 0])
        small = picture.resize((64, 64), Image.Resampling.LANCZOS)
        assert np.array_equal(store.images([i])[0, 0], np.asarray(small))
    whole = smallnorb.load_smallnorb(tmp_path / "norb", side=96)
    assert np.array_equal(pixels(whole)[:, 0], np.concatenate(made["dat"])[:, 0])


def test_a_file_of_smallnorb_stands_for_its_split(tmp_path):
    write_smallnorb(tmp_path)
    (one,) = tmp_path.glob("*testing-cat.mat")
    assert load(one).name == "smallnorb (testing)" and len(load(one)) == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"info": None}, "the training split has no info file"),
        ({"cat": np.zeros(5, "<i4")}, "5 categories for 6 rows of info"),
        ({"cat": np.zeros(6, np.uint8)}, "[6] u1, expected [N] i4"),
        ({"info": np.zeros((6, 5), "<i4")}, "[6, 5] i4, expected [N, 4] i4"),
        ({"dat": np.zeros((5, 2, 96, 96), np.uint8)}, "[5, 2, 96, 96] u1, expected [6, 2, 96, 96]"),
        ({"dat": np.zeros((6, 2, 32, 32), np.uint8)}, "[6, 2, 32, 32] u1, expected [6, 2, 96, 96]"),
    ],
)
def test_smallnorb_laid_out_otherwise_is_refused(tmp_path, changes, message):
    write_smallnorb(tmp_path / "norb", ("training",), **changes)
    assert message in refusal(tmp_path / "norb")


def test_damaged_smallnorb_is_refused(tmp_path):
    folder = tmp_path / "norb"
    write_smallnorb(folder, ("training",))
    (dat,) = folder.glob("*-dat.mat")
    sound = dat.read_bytes()
    dat.write_bytes(sound[:-1])
    assert "ends early" in refusal(folder)
    dat.write_bytes(b"\0" * 4 + sound[4:])
    assert "begins with 0x0 (no such matrix)" in refusal(folder)
    dat.write_bytes(b"")
    assert "ends early" in refusal(folder)
    dat.write_bytes(sound[:4] + (10**6).to_bytes(4, "little") + sound[8:])
    assert "claims 1000000 axes" in refusal(folder)
    write_matrix(dat, np.zeros((6, 2, 96, 96), np.uint8), magic=0x1E3D4C51)
    assert "(float)" in refusal(folder)
    (cat,) = folder.glob("*-cat.mat")
    cat.write_bytes(cat.read_bytes()[:8] + (2**30).to_bytes(4, "little") + b"\1\0\0\0" * 2)
    assert "[1073741824] i4" in refusal(folder)
    packed = dat.with_name(dat.name + ".gz")
    dat.unlink()
    packed.write_bytes(gzip.compress(sound)[:200])
    write_smallnorb(folder, ("training",), dat=None)
    assert str(packed) in refusal(folder)


def test_a_trap_in_place_of_a_matrix_is_not_run(tmp_path):
    import pickle

    write_smallnorb(tmp_path, ("training",))
    (dat,) = tmp_path.glob("*-dat.mat")
    dat.write_bytes(pickle.dumps(Trap()))
    refusal(tmp_path)


def test_pictures_of_published_sets_come_at_any_size(tmp_path, own_cache):
    write_cars3d(tmp_path / "cars")
    write_smallnorb(tmp_path / "norb")
    for folder, channels in (("cars", 3), ("norb", 1)):
        small, usual = (load(tmp_path / folder, image_size=side) for side in (32, None))
        assert small.image_shape == (channels, 32, 32) and usual.image_shape == (channels, 64, 64)
        halves = usual.images([0]).float().unflatten(2, (32, 2)).unflatten(4, (32, 2)).mean((3, 5))
        assert (halves - small.images([0])).abs().mean() < 40  # the same picture
