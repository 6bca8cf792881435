import io
import pickle
import tracemalloc
import zipfile

import h5py
import numpy as np
import pytest
import torch
from small import Trap, refusal, write_h5

import fvae.data
import fvae.errors
from fvae.data import load

pytestmark = pytest.mark.usefixtures("own_cache")

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (24, 16, 16), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (24, 16, 16, 3), dtype=np.uint8)
LABELS = np.array([5, 7, 9, 5, 7, 9] * 4)
GRID = np.array(list(np.ndindex(2, 3, 4)))


def npz(folder, **arrays):
    np.savez(folder / "own.npz", **arrays)
    return folder / "own.npz"


def pixels(store):
    return store.images(range(len(store))).numpy()


# --- which array, and how it lies ----------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".h5", ".hdf5"])
def test_each_kind_of_file_gives_its_images(tmp_path, suffix):
    path = tmp_path / f"mine{suffix}"
    if suffix == ".npz":
        np.savez_compressed(path, pictures=GRAY)
    elif suffix == ".npy":
        np.save(path, GRAY)
    else:
        write_h5(path, deep__down=GRAY)
    store = load(path)
    assert np.array_equal(pixels(store)[:, 0], GRAY)
    assert (store.name, store.image_shape, store.binary) == ("mine", (1, 16, 16), False)
    assert store.factor_names == () and store.factor_sizes == () and store.labels is None


@pytest.mark.parametrize(
    "save",
    [
        lambda file, array: np.lib.format.write_array(file, array, version=(2, 0)),
        lambda file, array: np.save(file, np.asfortranarray(array)),
        lambda file, array: np.save(file, array.astype(">i4")),
        lambda file, array: np.save(file, array.astype(np.int64)),
    ],
)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_any_way_to_save_the_same_numbers_is_the_same(tmp_path, save, suffix):
    content = io.BytesIO()
    save(content, GRAY)
    path = tmp_path / f"mine{suffix}"
    if suffix == ".npy":
        path.write_bytes(content.getvalue())
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", content.getvalue())
    assert np.array_equal(pixels(load(path))[:, 0], GRAY)


@pytest.mark.parametrize(
    ("array", "shape"),
    [
        (COLOUR, (3, 16, 16)),
        (COLOUR.transpose(0, 3, 1, 2), (3, 16, 16)),
        (COLOUR[..., :1], (1, 16, 16)),
        (COLOUR[:, None, ..., 0], (1, 16, 16)),
        (np.tile(COLOUR, 4), (12, 16, 16)),  # a channel axis is what differs from two equal ones
        (COLOUR[:, :12], (3, 12, 16)),
        (COLOUR[:, :12].transpose(0, 3, 1, 2), (3, 12, 16)),
    ],
)
def test_the_channels_are_found(tmp_path, array, shape):
    store = load(npz(tmp_path, x=array))
    assert store.image_shape == shape
    last = array.shape[-1] == shape[0]
    assert np.array_equal(pixels(store), array.transpose(0, 3, 1, 2) if last else array)


def test_channels_that_could_be_any_axis_are_refused(tmp_path):
    message = refusal(npz(tmp_path, x=np.zeros((3, 16, 16, 16), np.uint8)))
    assert "x is [3, 16, 16, 16] uint8" in message and "[N, H, W, C]" in message
    refusal(npz(tmp_path, x=np.zeros((3, 8, 12, 16), np.uint8)))


def test_of_several_arrays_one_is_named(tmp_path):
    path = npz(tmp_path, x_train=GRAY, y_train=LABELS, x_test=GRAY[:6] // 2, y_test=LABELS[:6])
    message = refusal(path)
    assert "x_train is [24, 16, 16] uint8, x_test is [6, 16, 16] uint8" in message
    assert "--images KEY" in message
    for part, images in (("train", GRAY), ("test", GRAY[:6] // 2)):
        store = load(path, images=f"x_{part}")
        assert np.array_equal(pixels(store)[:, 0], images)
        assert store.factor_names == (f"y_{part}",)
        assert store.labels[:, 0].tolist() == LABELS[: len(images)].tolist()
    assert len(fvae.data.cache_entries()) == 2
    assert "--images z: no such array; found: x_train is" in refusal(path, images="z")
    assert "--images y_train: y_train is [24] int64, expected [N" in refusal(path, images="y_train")


def test_a_file_without_images_says_what_is_in_it(tmp_path):
    message = refusal(npz(tmp_path, data=GRAY.reshape(24, -1), target=LABELS))
    assert "data is [24, 256] uint8, target is [24] int64" in message
    assert "no array" in refusal(npz(tmp_path))
    assert "found: x is [0, 16, 16] uint8" in refusal(npz(tmp_path, x=GRAY[:0]))
    many = {f"a{i}": LABELS for i in range(30)}
    assert ", and 22 more" in refusal(npz(tmp_path, **many))


def test_camera_matrices_are_no_images(tmp_path):
    store = load(npz(tmp_path, x=GRAY, camera=np.zeros((24, 4, 4)), boxes=np.zeros((24, 9, 4))))
    assert store.image_shape == (1, 16, 16)


def test_options_do_not_go_with_sets_that_have_their_own(tmp_path):
    for options in ({"images": "x"}, {"factors": "y"}):
        assert "leave the option out" in refusal("dsprites", **options)
        (tmp_path / "3dfaces.pth").write_bytes(b"")
        assert "leave the option out" in refusal(tmp_path / "3dfaces.pth", **options)


# --- pixels --------------------------------------------------------------------------------------


def test_bits_are_packed(tmp_path):
    for array in (GRAY > 127, (GRAY > 127).astype(np.uint8), (GRAY > 127).astype(np.float32)):
        store = load(npz(tmp_path, x=array))
        assert store.binary and store.data.shape == (24, 32)
        assert np.array_equal(pixels(store)[:, 0], GRAY > 127)
    odd = GRAY[:, :5, :5] > 127
    store = load(npz(tmp_path, x=odd), images="x")
    assert store.binary and store.data.shape == (24, 4)
    assert np.array_equal(pixels(store)[:, 0], odd)
    assert not load(npz(tmp_path, x=(GRAY > 127).astype(np.uint8) * 255)).binary


def test_real_numbers_from_0_to_1_become_bytes_and_it_is_said(tmp_path, capsys):
    for dtype in (np.float16, np.float32, np.float64):
        store = load(npz(tmp_path, x=(GRAY / 255).astype(dtype)))
        assert np.abs(pixels(store)[:, 0].astype(int) - GRAY).max() <= (dtype == np.float16)
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and f"x holds {np.dtype(dtype)} from 0 to 1" in said


@pytest.mark.parametrize(("top", "bits"), [(4095, 12), (300, 9), (3000, 12), (65535, 16)])
def test_16_bits_are_scaled_by_the_bits_that_they_fill(tmp_path, capsys, top, bits):
    values = np.linspace(0, top, GRAY.size).round().astype(np.uint16).reshape(GRAY.shape)
    got = pixels(load(npz(tmp_path, x=values)))[:, 0]
    assert np.array_equal(got, np.floor(values * 255.0 / (2**bits - 1) + 0.5))
    assert f"uint16 from 0 to {top:g}; 0 to {2**bits - 1}" in capsys.readouterr().err


def test_16_bits_that_hold_bytes_are_bytes(tmp_path, capsys):
    assert np.array_equal(pixels(load(npz(tmp_path, x=GRAY.astype(np.uint16))))[:, 0], GRAY)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (GRAY.astype(np.float32), "x holds float32 from 0 to 255, expected 0 to 1; divide"),
        (GRAY / 127.5 - 1, "float64 from -1 to 1, expected 0 to 1"),
        (np.where(GRAY == GRAY[3, 3, 3], np.nan, GRAY / 255), "from nan to nan, expected 0 to 1"),
        (np.where(GRAY == GRAY[3, 3, 3], np.inf, GRAY / 255), "to inf, expected 0 to 1; mend"),
        (GRAY.astype(np.int16) - 1, "int16 from -1 to 254, expected 0 to 255"),
        (GRAY.astype(np.int32) * 1000, "from 0 to 255000, expected 0 to 255 or 0 to 65,535"),
        (GRAY.astype(np.complex64), "no array of images"),
    ],
)
def test_pixels_that_are_no_bytes_are_refused(tmp_path, array, message):
    assert message in refusal(npz(tmp_path, x=array))
    assert fvae.data.cache_entries() == []


# --- labels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["labels", "y", "Y", "target", "factors", "latents_classes"])
def test_labels_of_a_usual_name_are_found(tmp_path, name):
    store = load(npz(tmp_path, x=GRAY, **{name: LABELS}))
    assert store.factor_names == (name,) and store.factor_sizes == ()
    assert store.labels.dtype == torch.int64 and store.labels[:, 0].tolist() == LABELS.tolist()


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
@pytest.mark.parametrize("order", ["shuffled", "in order"])
def test_a_full_grid_in_any_order_is_recognised(tmp_path, suffix, order):
    rows = RNG.permutation(24) if order == "shuffled" else np.arange(24)
    values = np.array([-1.5, 0.25, 3.0, 8.0])  # class k is the k-th smallest value
    factors = np.stack([GRID[:, 0] * 7, 2 - GRID[:, 1], values[GRID[:, 2]]], axis=1)
    arrays = {"images": GRAY[rows], "labels": factors[rows]}
    path = tmp_path / f"own{suffix}"
    write_h5(path, **arrays) if suffix == ".h5" else np.savez(path, **arrays)
    store = load(path)
    assert store.factor_sizes == (2, 3, 4) and store.labels is None
    classes = np.stack([GRID[:, 0], 2 - GRID[:, 1], GRID[:, 2]], axis=1)
    assert np.array_equal(pixels(store)[store.index(classes)][:, 0], GRAY)


@pytest.mark.parametrize("change", ["one missing", "one twice", "one factor"])
def test_what_is_no_full_grid_has_labels(tmp_path, change):
    images, factors = GRAY, GRID.copy()
    if change == "one missing":
        images, factors = GRAY[1:], GRID[1:]
    elif change == "one twice":
        factors[0] = factors[1]
    else:
        factors = np.arange(24)[::-1, None]
    store = load(npz(tmp_path, x=images, factors=factors))
    assert store.factor_sizes == () and np.array_equal(store.labels, factors)
    assert np.array_equal(pixels(store)[:, 0], images)


def test_a_subset_of_a_published_set_is_ones_own(tmp_path):
    images = RNG.integers(0, 2, (24, 64, 64), dtype=np.uint8)
    classes = np.insert(np.array(list(np.ndindex(2, 2, 1, 3, 2))), 0, 0, axis=1)
    store = load(npz(tmp_path, imgs=images[5:], latents_classes=classes[5:]))
    assert store.factor_names == ("shape", "scale", "posX", "posY") and store.binary
    assert np.array_equal(store.labels, classes[5:][:, [1, 2, 4, 5]])
    labels = np.array(list(np.ndindex(2, 1, 2, 2, 1, 3))) * 0.5
    colour = RNG.integers(0, 256, (24, 64, 64, 3), dtype=np.uint8)
    store = load(write_h5(tmp_path / "3dshapes.h5", images=colour[::-1], labels=labels[::-1]))
    assert store.factor_sizes == (2, 2, 2, 3)
    assert np.array_equal(pixels(store), colour.transpose(0, 3, 1, 2))


def test_names_and_text(tmp_path):
    names = np.array(["pose", "who"])
    text = np.array(["ann", "bob", "eve"] * 8)
    path = npz(tmp_path, x=GRAY, factors=GRID[:, :2], factor_names=names)
    assert load(path).factor_names == ("pose", "who")
    assert load(npz(tmp_path, x=GRAY, labels=text)).labels[:3, 0].tolist() == [0, 1, 2]
    h5 = write_h5(tmp_path / "own.h5", x=GRAY)
    with h5py.File(h5, "a") as file:
        file.create_dataset("labels", data=text.tolist(), dtype=h5py.string_dtype())
    assert load(h5).labels[:4, 0].tolist() == [0, 1, 2, 0]


def test_labels_may_be_chosen(tmp_path, capsys):
    path = npz(tmp_path, x=GRAY, labels=LABELS, size=LABELS * 0.1, pose=LABELS % 4)
    assert load(path).factor_names == ("labels",)
    store = load(path, factors="size,pose")
    assert store.factor_names == ("size", "pose") and store.labels.dtype == torch.float64
    assert load(path, factors="pose").labels.dtype == torch.int64
    assert load(path, factors="no").factor_names == ()
    np.save(tmp_path / "more.npy", LABELS)
    (tmp_path / "more.csv").write_text("a;b\n" + "".join(f"{x};{x / 8}\n" for x in LABELS))
    assert load(path, factors=str(tmp_path / "more.npy")).factor_names == ("more",)
    store = load(path, factors=str(tmp_path / "more.csv"))
    assert store.factor_names == ("a", "b") and store.labels[0].tolist() == [5, 0.625]
    assert capsys.readouterr().err == ""
    (tmp_path / "more.csv").write_text("a;b\n" + "".join(f"{x};{x / 4}\n" for x in LABELS))
    assert load(path, factors=str(tmp_path / "more.csv")).labels[0].tolist() == [5, 1.25]
    message = refusal(path, factors="colour")
    assert "--factors colour" in message and "found: x is [24, 16, 16]" in message


def test_one_value_is_no_factor(tmp_path, capsys):
    store = load(npz(tmp_path, x=GRAY, factors=np.stack([LABELS, LABELS * 0], axis=1)))
    assert store.factor_names == ("factors_0",)
    assert "factors_1 has one value, 0" in capsys.readouterr().err
    assert load(npz(tmp_path, x=GRAY, y=LABELS * 0 + 3)).factor_names == ()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS[:-1], "24 images for 23 labels (labels is [23] int64)"),
        (np.where(LABELS == 5, np.nan, LABELS), "labels of image 0 is nan (8 in all"),
        (np.where(LABELS == 5, np.inf, LABELS), "labels of image 0 is inf"),
        (LABELS.astype(np.complex64), "labels is [24] complex64, expected numbers or text"),
        (np.uint64(2**63) + LABELS.astype(np.uint64), "expected less than 2**63"),
        (np.array([Trap()] * 24, object), "labels is [24] object"),
        (np.zeros((24, 0)), "labels is [24, 0] float64, expected labels [N] or [N, K]"),
        (np.int64(3), "24 images for no labels"),
    ],
)
def test_labels_that_cannot_be_are_refused(tmp_path, labels, message):
    path = npz(tmp_path, x=GRAY, labels=labels)
    assert message in refusal(path)
    assert load(path, factors="no").factor_names == ()


# --- files that somebody else made ---------------------------------------------------------------


def test_nothing_is_unpickled(tmp_path):
    trap = np.array([Trap()] * 24, dtype=object)
    path = npz(tmp_path, x=trap, other=trap)
    assert "x is [24] object" in refusal(path)
    assert "Python objects are never loaded" in refusal(path, images="x")
    np.save(tmp_path / "trap.npy", trap)
    assert "trap is [24] object" in refusal(tmp_path / "trap.npy")
    (tmp_path / "raw.npy").write_bytes(pickle.dumps(Trap()))
    assert "raw is [] object" in refusal(tmp_path / "raw.npy")
    assert "never loaded" in refusal(npz(tmp_path, x=GRAY, labels=trap))
    np.savez(tmp_path / "own.npz", x=GRAY)
    assert "never loaded" in refusal(tmp_path / "own.npz", factors=str(tmp_path / "trap.npy"))


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".h5"])
def test_a_file_cut_short_is_refused(tmp_path, suffix):
    path = tmp_path / f"own{suffix}"
    if suffix == ".h5":
        write_h5(path, x=GRAY)
    else:
        np.save(path, GRAY) if suffix == ".npy" else np.savez(path, x=GRAY)
    sound = path.read_bytes()
    for share in (0, 0.01, 0.5, 0.99):
        path.write_bytes(sound[: int(len(sound) * share)])
        refusal(path)
    assert fvae.data.cache_entries() == []


def test_a_false_header_costs_nothing(tmp_path):
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        content, {"descr": "|u1", "fortran_order": False, "shape": (10**12, 64, 64)}
    )
    (tmp_path / "a.npy").write_bytes(content.getvalue() + b"0" * 4096)
    assert "GB, more than is free" in refusal_of_the_disk(tmp_path / "a.npy")
    content = content.getvalue().replace(b"1000000000000, ", b"9999, " + b" " * 9)
    (tmp_path / "b.npy").write_bytes(content + b"0" * 4096)
    assert "ends early" in refusal(tmp_path / "b.npy")
    with h5py.File(tmp_path / "a.h5", "w") as file:  # says it, and holds nothing
        file.create_dataset("x", (10**9, 64, 64), "u1", chunks=(64, 64, 64))
    assert "GB, more than is free" in refusal_of_the_disk(tmp_path / "a.h5")


def test_rows_that_were_never_written_are_not_read(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:  # 4 GB that fit on most disks
        file.create_dataset("x", (10**6, 64, 64), "u1", chunks=(1, 64, 64), compression="gzip")
    assert "x ends early" in refusal(tmp_path / "a.h5")


def refusal_of_the_disk(path):
    with pytest.raises(fvae.errors.UserError) as caught:
        load(path)
    return str(caught.value)


def test_a_conversion_that_was_killed_goes_on(tmp_path, monkeypatch):
    path = npz(tmp_path, x=GRAY)
    monkeypatch.setattr("fvae.data.arrays._PIECE", 5 * 16 * 16 * 4)
    append, done = fvae.data.partial.Partial.append, []

    def killed(self, rows, stop):
        append(self, rows, stop)
        done.append(stop)
        if stop == 10:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fvae.data.partial.Partial, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            load(path)
        assert np.array_equal(pixels(load(path))[:, 0], GRAY)
    assert done == [5, 10, 15, 20, 24]


def test_memory_stays_small_however_large_the_file(tmp_path):
    path = tmp_path / "large.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("images.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(
                member, {"descr": "|u1", "fortran_order": False, "shape": (8_000, 64, 64, 3)}
            )
            for i in range(32):
                member.write(bytes([i]) * (250 * 64 * 64 * 3))
    tracemalloc.start()
    store = load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(store) == 8_000 and store.data[-1].unique().tolist() == [31]
    assert peak < 40_000_000  # of 98 MB
