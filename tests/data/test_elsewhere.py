"""Files from elsewhere reach nothing else, and cost no more than they hold."""

import io
import os
import resource
import tarfile
import zipfile

import h5py
import numpy as np
import pytest
from PIL import Image
from small import refusal

from fvae.data import load

pytestmark = pytest.mark.usefixtures("own_cache")
IMAGES = np.random.default_rng(0).integers(0, 256, (8, 16, 16), dtype=np.uint8)


def header(shape, dtype="|u1"):
    content = io.BytesIO()
    fields = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(content, fields)
    return content.getvalue()


def _external_link(file, secret):
    file["images"] = h5py.ExternalLink(str(secret), "images")


def _nested_link(file, secret):
    file["images"] = IMAGES
    file.create_group("more")["labels"] = h5py.ExternalLink(str(secret), "images")


def _virtual(file, secret):
    layout = h5py.VirtualLayout(IMAGES.shape, "u1")
    layout[:] = h5py.VirtualSource(str(secret), "images", IMAGES.shape)
    file.create_virtual_dataset("images", layout)


def _external_storage(file, secret):
    raw = secret.with_suffix(".raw")
    IMAGES.tofile(raw)
    file.create_dataset("images", IMAGES.shape, "u1", external=[(str(raw), 0, IMAGES.nbytes)])


@pytest.mark.parametrize("make", [_external_link, _nested_link, _virtual, _external_storage])
def test_an_h5_reads_no_other_file(make, tmp_path):
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["images"] = IMAGES
    with h5py.File(tmp_path / "a.h5", "w") as file:
        make(file, secret)
    assert "other files are not read" in refusal(tmp_path / "a.h5")


def test_a_soft_link_within_an_h5_is_followed(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = IMAGES
        file["images"] = h5py.SoftLink("/x")
    assert len(load(tmp_path / "a.h5")) == 8


def test_links_in_a_folder_of_pictures_stay_inside_it(tmp_path, capsys):
    folder, secret = tmp_path / "a", tmp_path / "secret"
    for place, picture in ((folder, "1.png"), (folder, "2.png"), (secret, "s.png")):
        place.mkdir(exist_ok=True)
        Image.fromarray(IMAGES[0]).save(place / picture)
    (folder / "again.png").symlink_to("1.png")
    (folder / "out.png").symlink_to(secret / "s.png")
    (folder / "dir").symlink_to(secret)
    (folder / "up").symlink_to("..")
    assert len(load(folder)) == 3
    assert "left out 3 links that lead out of it" in capsys.readouterr().err


def _npz(path, **members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)


def _array():
    content = io.BytesIO()
    np.save(content, IMAGES)
    return content.getvalue()


def _claims(folder):
    """Files that claim to hold far more than they do."""
    many = (117_000_000, 64, 64)
    _npz(folder / "images.npz", images=header(many) + bytes(100))
    wide = (1, 8_000, 50_000)  # one image of 400 MB, which deflates to 2 MB
    with zipfile.ZipFile(folder / "wide.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        with file.open("images.npy", "w") as member:
            member.write(header(wide))
            for _ in range(8):
                member.write(bytes(50_000_000))
    _npz(folder / "labels.npz", images=_array(), labels=header((8, 10**10), "<f8"))
    _npz(
        folder / "dsprites.npz", imgs=header((737280, 64, 64)), latents_classes=header((737280, 6))
    )
    (folder / "own.npy").write_bytes(header(many) + bytes(100))
    with h5py.File(folder / "own.h5", "w") as file:
        file.create_dataset("images", many, "u1", chunks=(1, 64, 64), compression="gzip")
    with open(folder / "sparse.tar", "wb") as file:
        member = tarfile.TarInfo("a.png")
        member.size = 60 * 10**9
        file.write(member.tobuf(tarfile.GNU_FORMAT))
        file.truncate(member.size + 10240)
    content = io.BytesIO()
    Image.new("1", (13000, 13000)).save(content, "PNG")
    with zipfile.ZipFile(folder / "pictures.zip", "w") as archive:
        for i in range(4):
            archive.writestr(f"{i}.png", content.getvalue())
    return sorted(folder.iterdir())


def test_what_a_file_claims_is_not_taken(tmp_path):
    (tmp_path / "claims").mkdir()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path in _claims(tmp_path / "claims"):
        try:
            load(path)
        except ValueError as error:
            assert "\n" not in str(error), path
        else:
            pytest.fail(f"{path} was read")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 300_000  # kB


def test_a_folder_whose_name_is_no_text(tmp_path):
    folder = os.path.join(os.fsencode(tmp_path), b"a[red]$x$\xff")
    os.mkdir(folder)
    Image.fromarray(IMAGES[0]).save(tmp_path / "x.png")
    os.rename(tmp_path / "x.png", os.path.join(folder, b"\xe9.png"))
    assert len(load(os.fsdecode(folder))) == 1
    assert len(load(os.fsdecode(folder))) == 1  # and from the cache
