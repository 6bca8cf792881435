import pickle

import numpy as np
import pytest
import torch
from small import Trap, refusal

from fvae.data import load, load_faces3d_pth

IMAGES = torch.from_numpy(
    np.random.default_rng(0).integers(0, 256, (2, 3, 2, 2, 64, 64), dtype=np.uint8)
)


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize("zipped", [True, False])
def test_the_tensor_is_a_grid_of_four_factors(tmp_path, zipped):
    path = tmp_path / "basel_face_renders.pth"
    torch.save(IMAGES, path, _use_new_zipfile_serialization=zipped)
    for store in (load_faces3d_pth(path), load(path), load(path)):
        assert store.name == "3dfaces"
        assert store.factor_names == ("identity", "azimuth", "elevation", "lighting")
        assert store.factor_sizes == (2, 3, 2, 2)
        assert store.image_shape == (1, 64, 64) and not store.binary
        assert torch.equal(store.images(store.index([[1, 2, 0, 1]]))[0, 0], IMAGES[1, 2, 0, 1])
        assert torch.equal(store.images(range(len(store))), IMAGES.reshape(-1, 1, 64, 64))


def test_code_in_the_file_is_refused_and_not_run(tmp_path):
    plain, saved, hidden = (tmp_path / f"{name}.pth" for name in ("plain", "saved", "hidden"))
    plain.write_bytes(pickle.dumps(Trap()))
    torch.save(Trap(), saved)
    torch.save({"images": IMAGES, "more": Trap()}, hidden, _use_new_zipfile_serialization=False)
    for path in (plain, saved, hidden):
        assert "never loaded" in refusal(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_cut_short_is_refused(tmp_path, zipped):
    path = tmp_path / "basel_face_renders.pth"
    torch.save(IMAGES, path, _use_new_zipfile_serialization=zipped)
    sound = path.read_bytes()
    for share in (0, 0.001, 0.5, 0.99):
        path.write_bytes(sound[: int(len(sound) * share)])
        refusal(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": IMAGES}, "holds a dict, not a tensor"),
        (
            IMAGES.float(),
            "torch.float32, expected [identity, azimuth, elevation, lighting, 64, 64]",
        ),
        (IMAGES[0], "[3, 2, 2, 64, 64] torch.uint8, expected"),
        (IMAGES[..., :32], "[2, 3, 2, 2, 64, 32] torch.uint8, expected"),
        (IMAGES[:0], "[0, 3, 2, 2, 64, 64]"),
        (torch.tensor(1), "the tensor is []"),
    ],
)
def test_a_file_of_anything_else_is_refused(tmp_path, content, message):
    path = tmp_path / "basel_face_renders.pth"
    torch.save(content, path)
    assert message in refusal(path)
