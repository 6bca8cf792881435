import numpy as np
import pytest
import torch
from PIL import Image
from shared import HostTraffic
from small import SMALL, refusal, trainer_of

from fvae import data, evaluate, ops
from fvae.data import Store, registry
from fvae.data.dsprites import render_dsprites
from fvae.data.variants import KINDS, variant
from fvae.errors import UserError
from fvae.philox import Philox
from fvae.registry import DATA

SIZES = (3, 2, 1, 2, 3)


def sprites() -> Store:
    """A small part of dSprites."""
    classes = np.array(list(np.ndindex(SIZES))) * [1, 3, 1, 20, 10]
    images = render_dsprites(classes)
    bits = np.packbits(images.reshape(len(images), -1), axis=1, bitorder="little")
    names = ("shape", "scale", "orientation", "posX", "posY")
    return Store("dsprites", torch.from_numpy(bits), (1, 64, 64), True, names, SIZES)


BASE = sprites()
EVERY = range(len(BASE))
MASK = BASE.images(EVERY).bool()  # [n, 1, 64, 64]


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (300, 240, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "scream.png")
    return tmp_path / "scream.png"


@pytest.mark.parametrize("kind", KINDS)
def test_image_i_is_always_the_same(kind):
    store, again = variant(BASE, kind), variant(BASE, kind)
    whole = store.images(EVERY)
    assert whole.shape == (len(BASE), 3, 64, 64) and whole.dtype == torch.uint8
    assert torch.equal(again.images([20, 3, 3]), whole[[20, 3, 3]])
    assert torch.equal(store.rows(torch.tensor([[7, 1], [0, 30]])).flatten(0, 1),
                       whole[[7, 1, 0, 30]].flatten(1))  # fmt: skip
    assert not torch.equal(whole[0], whole[1])
    assert store.factor_sizes == SIZES and len(store) == len(BASE) and store.on_demand
    assert torch.equal(store.factors([5]), BASE.factors([5]))


def test_color_is_the_sprite_in_one_colour_of_at_least_a_half():
    images = variant(BASE, "color").images(EVERY)
    assert not images[~MASK.expand_as(images)].any()
    for image, mask in zip(images, MASK, strict=True):
        assert len(image[:, mask[0]].unique(dim=1).T) == 1
    each = torch.stack([im[:, m[0]][:, 0] for im, m in zip(images, MASK, strict=True)])
    assert each.min() >= 127 and each.max() <= 255 and len(each.unique(dim=0)) == len(each)


def test_noisy_is_white_on_uniform_noise():
    images = variant(BASE, "noisy").images(EVERY)
    assert (images[MASK.expand_as(images)] == 255).all()
    noise = images[~MASK.expand_as(images)]
    counts = torch.bincount(noise.int(), minlength=256).double()
    # Chi-square of 255 degrees of freedom; beyond 380 with probability 1e-6. The seed is fixed.
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 380
    flat = images.flatten(1).float()
    assert torch.corrcoef(flat[:2])[0, 1].abs() < 0.5


def test_scream_inverts_a_piece_of_the_picture(picture):
    store = variant(BASE, "scream", str(picture))
    pixels = np.asarray(Image.open(picture))
    fitted = Image.fromarray(pixels)
    fitted.thumbnail((350, 274))
    pixels = np.asarray(fitted).astype(float)
    assert np.array_equal(store.background, fitted)
    images = store.images(range(8)).numpy().astype(float)
    for image, mask in zip(images, MASK.numpy(), strict=False):
        image = np.where(mask, 255 - image, image).transpose(1, 2, 0)
        # image = (piece + colour) / 2: differences of neighbours are those of the piece by two.
        steps = 2 * np.diff(image, axis=0)[:, :, 0]
        theirs = np.diff(pixels, axis=0)[:, :, 0]
        found = [
            (y, x)
            for y, x in np.argwhere(np.abs(theirs - steps[0, 0]) <= 2)
            if y + 63 <= len(theirs) and x + 64 <= theirs.shape[1]
            and (np.abs(theirs[y : y + 63, x : x + 64] - steps) <= 2).all()
        ]  # fmt: skip
        assert len(found) == 1
        y, x = found[0]
        colour = 2 * image - pixels[y : y + 64, x : x + 64]
        assert (colour.max(axis=(0, 1)) - colour.min(axis=(0, 1)) <= 2).all()
        assert (colour > -2).all() and (colour < 257).all()


def test_the_background_is_drawn_where_no_picture_is_given_and_the_name_says_so():
    store = variant(BASE, "scream")
    assert "drawn background" in store.name
    assert store.background.shape == (274, 221, 3)
    assert store.images([0]).float().std() > 10


def test_they_are_made_from_the_built_in_set(monkeypatch, tmp_path, picture):
    monkeypatch.setattr(registry, "cached", lambda key, build: BASE)
    for kind in KINDS:
        assert f"dsprites-{kind}" in DATA
        store = data.load(f"dsprites-{kind}")
        assert torch.equal(store.images([4]), variant(BASE, kind).images([4]))
    store = data.load(f"dsprites-scream:{picture}")
    assert torch.equal(store.images([4]), variant(BASE, "scream", str(picture)).images([4]))
    monkeypatch.chdir(tmp_path)
    assert data.absolute("dsprites-scream:scream.png") == f"dsprites-scream:{picture}"
    assert data.absolute("dsprites-scream") == "dsprites-scream"
    assert "no such file" in _refused("dsprites-scream:nowhere.png")
    (tmp_path / "text.png").write_text("no picture")
    assert "cannot be read" in _refused("dsprites-scream:text.png")
    Image.new("RGB", (64, 300)).save(tmp_path / "thin.png")
    assert "expected more than 64 x 64" in _refused("dsprites-scream:thin.png")
    assert "not a known data set" in refusal("dsprites-color:red")


def _refused(source):
    with pytest.raises(UserError) as caught:
        data.load(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_they_serve_batches_training_and_codes(kind):
    store = variant(BASE, kind)
    x, indices = ops.gather_batch(store, 5, Philox(1), return_indices=True)
    assert torch.equal((x * 255).round().to(torch.uint8), store.images(indices))
    assert torch.allclose(evaluate.pixels(store, torch.arange(3)), store.images(range(3)) / 255)
    with HostTraffic() as traffic:  # what a CUDA graph cannot hold
        store.rows(torch.arange(4))
    assert traffic.found == []
    trainer = trainer_of(SMALL, store, models=2)
    assert trainer.step()["loss"].isfinite().all()


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match="gives no images"):
        variant(BASE, "colour")


def test_each_has_a_fingerprint_of_its_own(picture):
    stores = [BASE, *(variant(BASE, kind) for kind in KINDS), variant(BASE, "scream", str(picture))]
    assert len({store.fingerprint["checksum"] for store in stores}) == 5
    assert stores[1].fingerprint == variant(BASE, "color").fingerprint
