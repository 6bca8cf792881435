import contextlib
import io
import multiprocessing
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import weakref
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from shared import disk_full_after
from small import SMALL_OPTIONS, command, png16, refusal, tiff, two_at_once, write_npz

from fvae import data
from fvae.config import TrainConfig
from fvae.data import image_files, images, load
from fvae.errors import UserError
from fvae.training.loop import settle

RNG = np.random.default_rng(0)
RED, GREEN = (255, 0, 0), (0, 128, 0)


@pytest.fixture(autouse=True)
def cache(own_cache):
    return own_cache


def random_pixels(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, pixels: np.ndarray | Image.Image, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    picture.save(path, **options)
    return path


def framed(size: tuple[int, int], side: int) -> Image.Image:
    """A red picture with a green square of that side in the middle."""
    picture = Image.new("RGB", size, RED)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    picture.paste(GREEN, (left, top, left + side, top + side))
    return picture


def pixels_of(store: data.Store) -> np.ndarray:
    return store.images(range(len(store))).numpy().transpose(0, 2, 3, 1)


def one(path: Path) -> np.ndarray:
    """The pixels [64, 64, C] of a folder's only image."""
    (pixels,) = pixels_of(load(path))
    return pixels


@pytest.fixture
def pictures(tmp_path) -> Path:
    """A folder of 30 random images, whose order by path is not that of the folder."""
    folder = tmp_path / "pictures"
    for i in range(30):
        save(folder / f"{(7 * i) % 10}" / f"{i:02}.png", random_pixels(64, 64, 3))
    return folder


def expected(folder: Path) -> np.ndarray:
    paths = sorted(folder.rglob("*.png"), key=lambda path: path.relative_to(folder).as_posix())
    return np.stack([np.asarray(Image.open(path)) for path in paths])


# --- what an image becomes ---------------------------------------------------------------------


def test_a_folder_gives_its_images_in_order_of_their_path(pictures):
    store = load(pictures)
    assert (store.name, store.image_shape, store.binary) == ("pictures", (3, 64, 64), False)
    assert (store.factor_names, store.factor_sizes) == ((), ())
    assert np.array_equal(pixels_of(store), expected(pictures))


@pytest.mark.parametrize("size", [(100, 64), (64, 101)])
def test_the_central_square_is_taken(tmp_path, size):
    pixels = random_pixels(*size, 3)
    save(tmp_path / "a" / "x.png", pixels)
    left, top = (size[1] - 64) // 2, (size[0] - 64) // 2
    assert np.array_equal(one(tmp_path / "a"), pixels[top : top + 64, left : left + 64])


def test_shrinking_averages(tmp_path):
    save(tmp_path / "a" / "x.png", np.indices((640, 640)).sum(0).astype(np.uint8) % 2 * 255)
    assert np.abs(one(tmp_path / "a").astype(int) - 127).max() <= 2


@pytest.mark.parametrize("side", [1, 28, 63])
def test_a_tiny_image_is_enlarged(tmp_path, side):
    save(tmp_path / "a" / "x.png", Image.new("RGB", (side, side + 1), GREEN))
    assert (one(tmp_path / "a") == GREEN).all()


@pytest.mark.parametrize(
    ("mode", "suffix", "colour", "want"),
    [
        ("RGB", "png", RED, RED),
        ("RGB", "webp", RED, RED),
        ("RGB", "bmp", RED, RED),
        ("RGB", "ppm", RED, RED),
        ("RGB", "PNG", RED, RED),
        ("RGBA", "png", (255, 0, 0, 0), (255, 255, 255)),
        ("RGBA", "png", (0, 0, 0, 51), (204, 204, 204)),
        ("P", "png", 0, (0, 0, 0)),
        ("P", "gif", 0, (0, 0, 0)),
        ("CMYK", "jpg", (0, 255, 255, 0), RED),
        ("CMYK", "tiff", (0, 255, 255, 0), RED),
        ("YCbCr", "jpg", (76, 85, 255), RED),
        ("1", "png", 1, (255,)),
        ("L", "png", 7, (7,)),
        ("LA", "png", (7, 0), (255,)),
        ("I;16", "png", 257 * 100, (100,)),
    ],
)
def test_every_mode_becomes_rgb_or_gray(tmp_path, mode, suffix, colour, want):
    save(tmp_path / "a" / f"x.{suffix}", Image.new(mode, (80, 70), colour))
    pixels = one(tmp_path / "a").astype(int)
    assert pixels.shape == (64, 64, len(want))
    # Lossy formats may be off by a little.
    assert np.abs(pixels - want).max() <= (3 if suffix in ("jpg", "webp") else 0)


# --- 16 bits a channel -------------------------------------------------------------------------


def deep(bits: int, channels: int) -> np.ndarray:
    """Random numbers of so many bits, the largest among them: uint16 [64, 64, C]."""
    values = RNG.integers(0, 2**bits, (64, 64, channels)).astype(np.uint16)
    values[0, 0] = 2**bits - 1
    return values


def scaled(values: np.ndarray, bits: int) -> np.ndarray:
    return (values.astype(int) * 255 // (2**bits - 1)).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_16_bit_pictures_are_scaled_by_the_bits_that_they_use(tmp_path, bits, channels, capsys):
    values = deep(bits, channels)
    want = scaled(values, bits)
    if (bits, channels) == (16, 3):
        want = (values >> 8).astype(np.uint8)  # pillow's
    png16(tmp_path / "a" / "x.png", values)
    tiff(tmp_path / "b" / "x.tif", values)
    tiff(tmp_path / "c" / "x.tif", values, ">")
    for name in "abc":
        store = load(tmp_path / name)
        assert np.array_equal(pixels_of(store)[0], want)
        note = f"16-bit pictures use {bits} bits: scaled by {2**bits - 1}, not 65535"
        assert (note in store.note) == (note in capsys.readouterr().err) == (bits < 16)
        assert load(tmp_path / name).note == store.note  # from the cache


def test_one_scale_serves_the_whole_set(tmp_path):
    values = deep(12, 1)
    png16(tmp_path / "a" / "0.png", values // 16)  # no picture has a scale of its own
    png16(tmp_path / "a" / "1.png", values)
    save(tmp_path / "a" / "2.png", np.full((64, 64), 7, np.uint8))  # nor has one of 8 bits this one
    pixels = pixels_of(load(tmp_path / "a"))
    want = [scaled(values // 16, 12), scaled(values, 12), np.full((64, 64, 1), 7)]
    assert np.array_equal(pixels, want)


def test_a_picture_that_is_left_out_has_no_say(tmp_path, capsys):
    values = deep(12, 1)
    png16(tmp_path / "a" / "0.png", values)
    tiff(tmp_path / "a" / "1.tif", np.full((64, 64, 1), 70000, np.uint32))
    (tmp_path / "a" / "2.png").write_bytes(b"broken")
    assert np.array_equal(pixels_of(load(tmp_path / "a")), [scaled(values, 12)])
    assert "left out 2 of 3 image files" in capsys.readouterr().err


def test_opacity_has_a_range_of_its_own(tmp_path):
    values = np.concatenate([deep(12, 3), np.full((64, 64, 1), 65535, np.uint16)], 2)
    values[:32, :, 3] = 0
    want = scaled(values[..., :3], 12)
    want[:32] = 255
    png16(tmp_path / "a" / "x.png", values)
    tiff(tmp_path / "b" / "x.tif", values, extra=2)
    values[32:, :, 3] = 4095
    png16(tmp_path / "c" / "x.png", values)
    for name in "abc":
        assert np.array_equal(one(tmp_path / name), want)
    png16(tmp_path / "d" / "x.png", values[..., [0, 3]])  # gray with opacity
    assert np.array_equal(one(tmp_path / "d")[..., 1], np.where(want == 255, 255, want)[..., 0])


def test_other_kinds_of_16_bits(tmp_path):
    values = deep(12, 1)
    want = scaled(values, 12)
    tiff(tmp_path / "signed" / "x.tif", values.astype(np.int16))
    tiff(tmp_path / "wide" / "x.tif", values.astype(np.uint32))
    save(tmp_path / "packed" / "x.tif", Image.fromarray(values[..., 0]), compression="tiff_lzw")
    (tmp_path / "pgm").mkdir()
    for maximum in (4095, 65535):
        content = f"P5 64 64 {maximum}\n".encode() + values.astype(">u2").tobytes()
        (tmp_path / "pgm" / "x.pgm").write_bytes(content)
        for name in ("signed", "wide", "packed", "pgm"):
            assert np.array_equal(one(tmp_path / name), want), name
    ink = np.concatenate([values, values, values, 0 * values], 2)
    tiff(tmp_path / "cmyk" / "x.tif", ink, photometric=5)
    assert np.array_equal(one(tmp_path / "cmyk"), 255 - np.repeat(want, 3, 2))


@pytest.mark.parametrize(
    ("values", "options", "why"),
    [
        (RNG.random((64, 64, 1), np.float32), {}, "floating-point numbers"),
        (np.full((64, 64, 1), 70000, np.uint32), {}, "go from 70000 to 70000, not in 16 bits"),
        (np.full((64, 64, 1), -5, np.int16), {}, "go from -5 to -5, not in 16 bits"),
        (deep(12, 3), {"planar": 2}, "separate planes"),
        (deep(12, 4), {"extra": 1}, "multiplied by their opacity"),
    ],
)
def test_numbers_that_cannot_be_bytes_are_named(tmp_path, capsys, values, options, why):
    tiff(tmp_path / "a" / "x.tif", values, **options)
    assert "none of its 1 image files can be read" in refusal(tmp_path / "a")
    assert why in capsys.readouterr().err
    save(tmp_path / "a" / "y.png", random_pixels(64, 64))
    assert len(load(tmp_path / "a")) == 1


def test_a_killed_conversion_keeps_its_note(tmp_path, monkeypatch):
    values = [deep(12, 1) for _ in range(2)]
    for i, one_of_them in enumerate(values):
        png16(tmp_path / "a" / f"{i}.png", one_of_them)
    save(tmp_path / "a" / "2.png", random_pixels(64, 64))
    monkeypatch.setattr(images, "_CHUNK", 1)
    with stopped_after(2), contextlib.suppress(Stopped):
        load(tmp_path / "a")
    store = load(tmp_path / "a")
    assert "use 12 bits" in store.note
    assert np.array_equal(pixels_of(store)[:2], [scaled(v, 12) for v in values])


# --- any size ----------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [16, 28, 64, 100])
def test_image_size(tmp_path, side):
    pixels = random_pixels(side, side, 3)
    save(tmp_path / "a" / "x.png", pixels)
    store = load(tmp_path / "a", image_size=side)
    assert store.image_shape == (3, side, side)
    assert np.array_equal(pixels_of(store)[0], pixels)
    assert load(tmp_path / "a").image_shape == (3, 64, 64)


def test_sizes_are_converted_and_cached_apart(pictures, monkeypatch, cache):
    decoded = count_decodes(monkeypatch)
    for size in (None, 28, 32, 64, 28):
        assert load(pictures, image_size=size).image_shape[1:] == ((size or 64),) * 2
    assert len(decoded) == 3 * 30
    assert len(list(cache.iterdir())) == 3


def test_a_size_that_cannot_be(tmp_path, pictures):
    with pytest.raises(UserError, match="--image-size: got 0, expected at least 1"):
        load(pictures, image_size=0)
    path = write_npz(tmp_path / "d.npz")
    assert load(path, image_size=64).image_shape == (1, 64, 64)
    with pytest.raises(
        UserError, match="images are 64 x 64, and --image-size, or the run, says 28"
    ):
        load(path, image_size=28)


def test_a_palette_gives_its_colours(tmp_path):
    pixels = random_pixels(64, 64, 3) // 128 * 255  # eight colours
    picture = Image.fromarray(pixels).convert("P", palette=Image.Palette.ADAPTIVE, colors=8)
    save(tmp_path / "a" / "x.png", picture)
    assert np.array_equal(one(tmp_path / "a"), pixels)


def test_the_camera_held_on_its_side_is_put_upright(tmp_path):
    pixels = random_pixels(64, 64, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to show
    save(tmp_path / "a" / "x.png", pixels, exif=exif)
    assert np.array_equal(one(tmp_path / "a"), np.rot90(pixels, -1))


def test_a_large_photograph_keeps_its_picture(tmp_path):
    coarse = np.kron(random_pixels(4, 4, 3), np.ones((256, 256, 1), np.uint8))
    save(tmp_path / "a" / "x.jpg", coarse, quality=95)
    inside = (slice(4, None, 16), slice(4, None, 16))  # away from the edges of the blocks
    assert np.abs(one(tmp_path / "a")[inside].astype(int) - coarse[64::256, 64::256]).max() <= 8


def test_gray_images_stay_gray_only_if_all_are(tmp_path):
    folder = tmp_path / "a"
    gray = [random_pixels(64, 64) for _ in range(3)]
    for i, pixels in enumerate(gray):
        save(folder / f"{i}.png", pixels)
    (folder / "0broken.png").write_bytes(b"\x89PNG")
    store = load(folder)
    assert store.image_shape == (1, 64, 64)
    assert np.array_equal(pixels_of(store)[..., 0], gray)
    save(folder / "9.png", random_pixels(64, 64, 3))
    store = load(folder)
    assert store.image_shape == (3, 64, 64)
    assert np.array_equal(pixels_of(store)[1], np.repeat(gray[1][..., None], 3, axis=2))


# --- where the images are ----------------------------------------------------------------------


def tar_of(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def zip_of(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def png(pixels: np.ndarray | Image.Image) -> bytes:
    buffer = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("pack", [tar_of, zip_of])
def test_an_archive_gives_what_its_folder_gives(tmp_path, pictures, pack):
    files = {
        f"./pictures/{path.relative_to(pictures)}": path.read_bytes()
        for path in pictures.rglob("*.png")
    }
    store = load(pack(tmp_path / f"set.{pack.__name__[:3]}", files))
    assert store.name == "set"
    assert np.array_equal(pixels_of(store), expected(pictures))


def test_3d_chairs_are_cropped_first(tmp_path):
    folder = tmp_path / "rendered_chairs"
    for chair in ("1a2b", "3c4d"):
        for view in range(2):
            name = f"image_{view:03}_p020_t011_r096.png"
            save(folder / chair / "renders" / name, framed((600, 600), 400))
    (folder / "all_chair_names.mat").write_bytes(b"not an image")
    files = {
        str(path.relative_to(tmp_path)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    for source in (folder, tmp_path, tar_of(tmp_path / "rendered_chairs.tar", files)):
        store = load(source)
        assert (store.name, len(store), store.factor_sizes) == ("3dchairs", 4, ())
        assert (pixels_of(store) == GREEN).all()


def test_celeba_is_cropped_to_148(tmp_path):
    folder = tmp_path / "img_align_celeba"
    for i in range(1, 4):
        save(folder / f"{i:06}.jpg", framed((178, 218), 148), quality=100, subsampling=0)
    files = {f"{folder.name}/{path.name}": path.read_bytes() for path in folder.iterdir()}
    for source in (folder, zip_of(tmp_path / "img_align_celeba.zip", files)):
        store = load(source)
        assert (store.name, len(store), store.factor_sizes) == ("celeba", 3, ())
        assert np.abs(pixels_of(store).astype(int) - GREEN).max() <= 30
    # The same names with other pictures are no CelebA: the square is then the largest.
    save(tmp_path / "numbered" / "000001.png", framed((180, 218), 180))
    store = load(tmp_path / "numbered")
    assert store.name == "numbered" and (pixels_of(store) == GREEN).all()


@pytest.mark.parametrize("pack", [tar_of, zip_of])
def test_names_that_leave_the_archive_write_nothing(tmp_path, pack, cache):
    inside = tmp_path / "deep" / "inside"
    inside.mkdir(parents=True)
    pixels = random_pixels(3, 64, 64, 3)
    files = {"../../evil.png": png(pixels[0]), "/evil.png": png(pixels[1]), "z.png": png(pixels[2])}
    source = pack(inside / f"set.{pack.__name__[:3]}", files)
    before = set(tmp_path.rglob("*"))
    store = load(source)
    assert {tuple(image.ravel()) for image in pixels_of(store)} == {
        tuple(x.ravel()) for x in pixels
    }
    assert {path for path in set(tmp_path.rglob("*")) - before} == {cache, *cache.iterdir()}
    assert not Path("/evil.png").exists()


def test_links_in_a_tar_are_not_followed(tmp_path):
    secret = save(tmp_path / "secret.png", random_pixels(64, 64, 3))
    path = tar_of(tmp_path / "set.tar", {"a.png": png(random_pixels(64, 64, 3))})
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("b.png")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        archive.addfile(link)
    assert len(load(path)) == 1


def test_hidden_files_are_left_out_and_links_followed_once(tmp_path):
    folder = tmp_path / "a"
    save(folder / "x.png", random_pixels(64, 64, 3))
    save(folder / ".thumbnails" / "x.png", random_pixels(64, 64, 3))
    save(folder / "__MACOSX" / "x.png", random_pixels(64, 64, 3))
    (folder / "._x.png").write_bytes(b"resource fork")
    save(folder / ".kept" / "y.png", random_pixels(64, 64, 3))
    (folder / "linked").symlink_to(folder / ".kept")
    (folder / "loop").symlink_to(folder)
    (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert len(load(folder)) == 2


def test_sources_without_an_image(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    assert "no image in it" in refusal(folder)
    (folder / "notes.txt").write_text("mine")
    (folder / "drawing.eps").write_text("%!PS-Adobe-3.0")  # would need a helper program
    assert "no image in it" in refusal(folder)
    assert "no image in it" in refusal(zip_of(tmp_path / "a.zip", {"notes.txt": b"mine"}))
    assert "no image in it" in refusal(tar_of(tmp_path / "a.tar", {"notes.txt": b"mine"}))
    assert data.cache_entries() == []


def test_archives_that_cannot_be_read(tmp_path):
    files = {f"{i}.png": png(random_pixels(64, 64, 3)) for i in range(3)}
    assert "uncompressed .tar" in refusal(tar_of(tmp_path / "gz.tar", files, "w:gz"))
    for path in (tar_of(tmp_path / "a.tar", files), zip_of(tmp_path / "a.zip", files)):
        path.write_bytes(path.read_bytes()[:-25_000])
        assert "cannot be read" in refusal(path)
    locked = zip_of(tmp_path / "locked.zip", files)
    content = bytearray(locked.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the encryption flag of the first member
    locked.write_bytes(content)
    assert "is encrypted" in refusal(locked)


# --- what goes wrong ---------------------------------------------------------------------------


def test_broken_images_are_named_and_left_out(pictures, capsys):
    want = expected(pictures)
    (pictures / "0" / "text.png").write_text("no picture")
    (pictures / "0" / "empty.jpg").write_bytes(b"")
    (pictures / "5" / "cut.bmp").write_bytes(b"BM" + bytes(40))
    whole = png(random_pixels(64, 64, 3))
    (pictures / "9" / "cut.png").write_bytes(whole[: len(whole) // 2])
    Image.new("F", (64, 64)).save(pictures / "9" / "float.tiff")
    assert np.array_equal(pixels_of(load(pictures)), want)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 6
    for name, line in zip(
        ("0/empty.jpg", "0/text.png", "5/cut.bmp", "9/cut.png", "9/float.tiff"), lines, strict=False
    ):
        assert line.startswith("fvae: warning: ") and name in line
    assert "left out 5 of 35" in lines[-1]
    load(pictures)
    assert capsys.readouterr().err == ""  # from the cache


def test_a_broken_member_of_an_archive_is_left_out(tmp_path, capsys):
    files = {f"{i}.png": png(random_pixels(64, 64, 3)) for i in range(3)}
    path = zip_of(tmp_path / "a.zip", files)
    content = bytearray(path.read_bytes())
    content[200] ^= 1  # in the packed pixels of the first
    path.write_bytes(content)
    assert len(load(path)) == 2
    assert "'0.png'" in capsys.readouterr().err


def test_a_member_that_unpacks_to_any_size_is_left_out(tmp_path, capsys, monkeypatch):
    pixels = random_pixels(64, 64, 3)
    files = {"bomb.png": bytes(1_000_000), "x.png": png(pixels)}
    monkeypatch.setattr(image_files, "_LARGEST", 100_000)
    assert np.array_equal(pixels_of(load(zip_of(tmp_path / "a.zip", files))), [pixels])
    assert "'bomb.png': unpacks to more than 100000 bytes" in capsys.readouterr().err


def test_only_broken_images_is_an_error_and_leaves_nothing(tmp_path, capsys, cache):
    folder = tmp_path / "a"
    folder.mkdir()
    for i in range(120):
        (folder / f"{i}.png").write_text("no picture")
    assert "none of its 120 image files can be read" in refusal(folder)
    assert capsys.readouterr().err.count("\n") == 100  # a screen's worth is named
    assert list(cache.iterdir()) == []


def test_a_failing_disk_is_not_a_broken_image(pictures, monkeypatch):
    def failing(path: Path, mode: str) -> io.BufferedReader:
        if path.name == "17.png":
            raise OSError(5, "Input/output error")
        return open(path, mode)

    monkeypatch.setattr(images, "_CHUNK", 4)
    with monkeypatch.context() as patch:
        patch.setattr(image_files, "open", failing, raising=False)
        message = refusal(pictures)
        assert "9/17.png" in message and "Input/output error" in message
    assert np.array_equal(pixels_of(load(pictures)), expected(pictures))


def test_a_full_disk_is_one_line_and_costs_nothing_done(pictures, monkeypatch, cache):
    monkeypatch.setattr(images, "_CHUNK", 4)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", disk_full_after(3))
        with pytest.raises(UserError, match="No space left on device.*FVAE_CACHE"):
            load(pictures)
    decoded = count_decodes(monkeypatch)
    assert np.array_equal(pixels_of(load(pictures)), expected(pictures))
    assert len(decoded) == 30 - 3 * 4


def test_a_cache_that_cannot_be_made_is_one_line(pictures, cache):
    cache.write_text("a file where the folder should be")
    with pytest.raises(UserError, match="FVAE_CACHE"):
        load(pictures)


# --- killed, changed, twice at once --------------------------------------------------------------


def count_decodes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    decoded, row = [], images._row

    def counting(files, image, *arguments):
        decoded.append(image)
        return row(files, image, *arguments)

    monkeypatch.setattr(images, "_row", counting)
    return decoded


class Stopped(BaseException):
    pass


@contextlib.contextmanager
def stopped_after(count: int) -> Iterator[None]:
    """Decoding stops after so many images."""
    row, lock, left = images._row, threading.Lock(), [count]

    def stopping(*arguments):
        with lock:
            left[0] -= 1
            if left[0] < 0:
                raise Stopped
        return row(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "_row", stopping)
        yield


@settings(max_examples=15, deadline=None)
@given(stops=st.lists(st.integers(0, 13), max_size=4), chunk=st.integers(1, 14))
def test_a_conversion_stopped_anywhere_gives_the_same_store(stops, chunk):
    with (
        tempfile.TemporaryDirectory() as place,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("FVAE_CACHE", place + "/cache")
        patch.setattr(images, "_CHUNK", chunk)
        folder = Path(place, "a")
        for i in range(12):
            save(folder / f"{i:02}.png", random_pixels(64, 64, 3))
        (folder / "03.png").write_bytes(b"broken")
        for stop in stops:
            with stopped_after(stop), contextlib.suppress(Stopped):
                load(folder)
        store = load(folder)
        paths = [path for path in sorted(folder.iterdir()) if path.name != "03.png"]
        assert np.array_equal(pixels_of(store), [np.asarray(Image.open(path)) for path in paths])
        assert [path.suffix for path in Path(place, "cache").iterdir()] == [".safetensors"]


KILLED = """
import os, signal, sys
from fvae.data import images, load

images._CHUNK, row, left = 4, images._row, [int(sys.argv[2])]

def killing(*arguments):
    left[0] -= 1
    if left[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return row(*arguments)

images._row = killing
load(sys.argv[1])
"""


def test_a_killed_conversion_goes_on_where_it_stopped(pictures, monkeypatch, cache):
    command = [sys.executable, "-c", KILLED, str(pictures), "14"]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    (unfinished,) = cache.iterdir()
    assert unfinished.suffix == ".partial"
    decoded = count_decodes(monkeypatch)
    monkeypatch.setattr(images, "_CHUNK", 4)
    assert np.array_equal(pixels_of(load(pictures)), expected(pictures))
    assert 30 - 14 <= len(decoded) <= 30 - 8  # at least two whole chunks were kept
    assert [path.suffix for path in cache.iterdir()] == [".safetensors"]


@pytest.mark.parametrize("change", ["content", "name", "removed", "added"])
def test_a_changed_folder_is_not_mixed_with_what_was_done(pictures, monkeypatch, change, cache):
    monkeypatch.setattr(images, "_CHUNK", 4)
    with stopped_after(14), pytest.raises(Stopped):
        load(pictures)
    first = pictures / "0" / "00.png"
    if change == "content":
        stat = first.stat()
        save(first, random_pixels(64, 64, 3))
        os.utime(first, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    elif change == "name":
        first.rename(pictures / "9" / "z.png")
    elif change == "removed":
        first.unlink()
    else:
        save(pictures / "0" / "000.png", random_pixels(64, 64, 3))
    decoded = count_decodes(monkeypatch)
    want = expected(pictures)
    assert np.array_equal(pixels_of(load(pictures)), want)
    assert len(decoded) == len(want)
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"key": 1}', bytes(5000)])
def test_a_damaged_unfinished_file_is_not_used(pictures, monkeypatch, cache, damage):
    monkeypatch.setattr(images, "_CHUNK", 4)
    with stopped_after(14), pytest.raises(Stopped):
        load(pictures)
    (unfinished,) = cache.iterdir()
    content = unfinished.read_bytes()
    unfinished.write_bytes(damage + content[len(damage) : 9000] if damage else content[:9000])
    decoded = count_decodes(monkeypatch)
    assert np.array_equal(pixels_of(load(pictures)), expected(pictures))
    assert len(decoded) == 30


def test_a_converted_set_comes_from_the_cache_until_it_changes(pictures, monkeypatch):
    load(pictures)
    decoded = count_decodes(monkeypatch)
    assert np.array_equal(pixels_of(load(pictures)), expected(pictures))
    assert decoded == []
    save(pictures / "0" / "00.png", random_pixels(64, 64, 3))
    assert np.array_equal(pixels_of(load(pictures)), expected(pictures))
    assert len(data.cache_entries()) == 2


def test_a_damaged_cache_file_is_converted_again(pictures, cache, capsys):
    load(pictures)
    (path,) = cache.iterdir()
    sound = path.read_bytes()
    path.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    assert np.array_equal(pixels_of(load(pictures)), expected(pictures))
    assert "damaged" in capsys.readouterr().err
    assert path.read_bytes() == sound


def load_beside(folder: Path, barrier) -> None:
    torch.set_num_threads(1)  # a forked child has none of its parent's OpenMP threads
    barrier.wait(timeout=60)
    assert np.array_equal(pixels_of(load(folder)), expected(folder))


def test_two_processes_at_once_convert_once(pictures, monkeypatch, cache):
    count, row = multiprocessing.get_context("fork").Value("i", 0), images._row

    def counting(*arguments):
        with count.get_lock():
            count.value += 1
        return row(*arguments)

    monkeypatch.setattr(images, "_row", counting)
    two_at_once(load_beside, pictures)
    assert count.value == 30
    assert [path.suffix for path in cache.iterdir()] == [".safetensors"]


def test_memory_holds_a_chunk_and_not_the_set(tmp_path, monkeypatch):
    # Rows are counted, and not bytes: other work of this process may allocate at the same time.
    lock, row, alive = threading.RLock(), images._row, [0]

    def count(step):
        with lock:
            alive.append(alive[-1] + step)

    def counted(*arguments):
        pixels = row(*arguments)
        count(1)
        weakref.finalize(pixels, count, -1)
        return pixels

    content = png(random_pixels(64, 64, 3))
    path = tar_of(tmp_path / "set.tar", {f"{i:04}.png": content for i in range(300)})
    monkeypatch.setattr(images, "_row", counted)
    monkeypatch.setattr(images, "_CHUNK", 16)
    assert load(path).nbytes == 300 * 3 * 64 * 64
    assert len(alive) == 1 + 2 * 300 and alive[-1] == 0
    assert 16 <= max(alive) <= 2 * 16 + 1


def test_progress_goes_to_stderr_and_only_if_asked(pictures, capfd):
    load(pictures)
    assert capfd.readouterr() == ("", "")
    save(pictures / "more.png", random_pixels(64, 64, 3))
    load(pictures, progress=True)
    out, err = capfd.readouterr()
    assert out == "" and "converting pictures" in err


# --- from training to the page -------------------------------------------------------------------


def test_a_folder_from_training_to_the_page(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = [*SMALL_OPTIONS, "--steps", "3", "--log-every", "1", "--out", "a"]
    assert command("train", "--data", "pictures", *options)[0] == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert "no ground-truth factors" in (tmp_path / "a" / "report.html").read_text()
    assert command("traverse", "../a")[0] == 0
    with Image.open(tmp_path / "a" / "traversal.png") as picture:
        assert picture.convert("RGB").size[0] > 64
    status, _, err = command("eval", "../a")
    assert status == 2
    assert err.count("\n") == 1 and "pictures: has no ground-truth factors" in err


def test_a_folder_with_the_name_of_a_built_in_set(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pictures.rename("dsprites")
    assert settle(TrainConfig(data="dsprites", device="cpu")).data == "dsprites"
    config = settle(TrainConfig(data="./dsprites", device="cpu"))
    assert config.data == str(tmp_path / "dsprites")
    monkeypatch.chdir("/")
    assert load(config.data).name == "dsprites" and len(load(config.data)) == 30
