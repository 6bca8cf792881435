"""Images of any square size and number of channels, and both likelihoods."""

import dataclasses
import json
import math

import pytest
import torch
from safetensors import safe_open
from small import (
    SMALL,
    assert_a_killed_run_resumes_to_the_same,
    command,
    log,
    options,
    refused,
    run,
    square,
    tensors,
    trainer_of,
)

import fvae
from fvae import evaluate, ops, report
from fvae.config import StudyConfig, TrainConfig
from fvae.data import Store
from fvae.errors import UserError
from fvae.models import vae as nets
from fvae.models.infogan import InfoGAN
from fvae.training import checkpoint, infogan, loop, objectives, run_data, stacked
from fvae.training.trainer import Trainer

# C, side, binary: sides that stay even, become odd and are odd; 31 and 16 end at one pixel; bits
# that are whole bytes and no whole words, and bits that are neither.
IMAGES = [
    (1, 16, True), (2, 17, True), (1, 28, True), (3, 31, False), (4, 32, False), (5, 50, True),
    (13, 33, False), (1, 96, False), (3, 100, False), (3, 128, False),
]  # fmt: skip
ODD = [(1, 28, True), (2, 17, True), (3, 31, False)]
LIKELIHOODS = ("bernoulli", "gaussian")


@pytest.mark.parametrize("image", IMAGES, ids=str)
@pytest.mark.parametrize("objective", ["factor-vae", "beta-vae", "infowgan-gp"])
def test_a_run_of_any_size(objective, image, tmp_path):
    channels, side, _ = image
    store = square(*image)
    likelihood = "gaussian" if objective == "beta-vae" else "bernoulli"
    config = dataclasses.replace(SMALL, objective=objective, likelihood=likelihood, steps=2)
    run(config, store, tmp_path)
    kept = TrainConfig.from_file(tmp_path / "config.json")
    loop.train(dataclasses.replace(kept, steps=3), store, tmp_path)
    model = fvae.load(tmp_path)
    assert model.image_shape == store.image_shape
    decoded, mu, _ = model(torch.rand(2, channels, side, side))
    assert decoded.shape == (2, channels, side, side)
    pictures = model.pixels(decoded)
    assert 0 <= pictures.min() <= pictures.max() <= 1
    codes, information = evaluate.encode(model, store, torch.arange(40))
    assert codes.isfinite().all()
    assert information.isfinite().all()


def test_the_layers_mirror_each_other():
    for side in range(16, 70):
        vae = nets.VAE(2, 3, (2, 3, 4, 5), 6, side)
        x, sides = torch.rand(1, 2, side, side), []
        for layer in vae.encoder[:8]:
            sides.append(x.shape[-1])
            x = layer(x)
        assert [*sides[::2], x.shape[-1]] == nets.sizes(side)
        assert x.shape[-1] >= 1
        z, back = torch.randn(1, 3), []
        for layer in vae.decoder:
            z = layer(z)
            back += [z.shape[-1]] if z.dim() == 4 else []
        assert list(dict.fromkeys(back)) == list(dict.fromkeys(nets.sizes(side)[::-1]))
        assert z.shape == (1, 2, side, side)


@pytest.mark.parametrize("image", ODD, ids=str)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_a_killed_run_of_any_size_resumes_to_the_same(image, likelihood, tmp_path):
    config = dataclasses.replace(SMALL, likelihood=likelihood)
    assert_a_killed_run_resumes_to_the_same(config, square(*image), tmp_path)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("side", [16, 28, 33])
def test_stacked_runs_are_those_of_each_alone(side, likelihood, tmp_path):
    store = square(1, side, binary=True)
    configs = [dataclasses.replace(SMALL, seed=s, steps=4, likelihood=likelihood) for s in (0, 3)]
    together = [tmp_path / f"together{m}" for m in range(2)]
    made = [loop.create_run(c, folder) for c, folder in zip(configs, together, strict=True)]
    stacked.train(made, store, together)
    for config, folder in zip(configs, together, strict=True):
        alone = run(config, store, tmp_path / f"alone{config.seed}")
        for name, value in tensors(folder).items():
            # One order of sums differs: that of the last bias.
            scale = float(value.abs().max()) if value.numel() else 0.0
            torch.testing.assert_close(value, alone[name], rtol=0, atol=1e-5 * scale)
        assert fvae.load(folder).image_shape == (1, side, side)


@pytest.mark.parametrize("image", [*ODD, (3, 16, False)], ids=str)
def test_one_convolution_for_several_models_is_as_many(image):
    trainers = [trainer_of(SMALL, square(*image), 3, one) for one in (True, False)]
    x, z = torch.rand(3, 2, *trainers[0].store.image_shape), torch.randn(3, 2, 4)
    vaes = [trainer.vae for trainer in trainers]
    torch.testing.assert_close(vaes[0].encode(x), vaes[1].encode(x))
    torch.testing.assert_close(vaes[0].decode(z), vaes[1].decode(z))
    assert trainers[0].step()["loss"].isfinite().all()


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("image", ODD, ids=str)
def test_the_packed_target_of_a_gpu_gives_the_loss_of_the_images(image, likelihood, monkeypatch):
    store = square(*image)
    config = dataclasses.replace(SMALL, likelihood=likelihood, learning_rate=1e-9)
    autocast, found = torch.autocast, []
    monkeypatch.setattr(torch, "autocast", lambda kind, *a, **k: autocast("cpu", *a, **k))
    for models, backend in ((1, "reference"), (1, "triton"), (2, "reference")):
        for device in ("cpu", "cuda"):
            config = dataclasses.replace(config, backend=backend)
            trainer = trainer_of(config, store, models, one_convolution=False)
            trainer.device = torch.device(device)
            if device == "cuda":
                assert trainer._packed(torch.arange(3)).dtype == torch.uint8
            found.append(trainer._step()["recon"].reshape(-1)[:1])
    torch.testing.assert_close(found, [found[0]] * 6)


@pytest.mark.parametrize("image", [(1, 28, True), (3, 31, False)], ids=str)
def test_the_penalty_of_an_odd_side_is_that_of_a_double_backward(image):
    channels, side, _ = image
    critic = InfoGAN(channels, 2, 1, (), (4, 4, 4, 4), 8, side).critic.double()
    x = torch.rand(5, channels, side, side).double().requires_grad_()
    ours = infogan.input_gradient(critic.penalised(), x.detach())
    (expected,) = torch.autograd.grad(critic.score(critic.trunk(x)).sum(), x)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 15, 15), (1, 28, 32), (3, 64, 48)])
def test_images_that_no_network_takes(shape):
    store = Store("odd", torch.zeros(3, math.prod(shape), dtype=torch.uint8), shape, False)
    for objective in ("factor-vae", "infogan"):
        config = dataclasses.replace(SMALL, objective=objective)
        with pytest.raises(UserError, match=f"images are {shape[1]} x {shape[2]}, expected square"):
            Trainer(config, store)


def test_settings_that_do_not_go_together():
    with pytest.raises(UserError, match="--image-size: got 15, expected at least 16"):
        TrainConfig(image_size=15)
    with pytest.raises(UserError, match="--likelihood: got 'laplace', expected one of bernoulli"):
        TrainConfig(likelihood="laplace")
    for make in (
        lambda: TrainConfig(objective="infogan", likelihood="gaussian"),
        lambda: StudyConfig(objectives=("vae", "infogan"), likelihood="gaussian"),
    ):
        with pytest.raises(UserError, match="--likelihood gaussian: infogan reconstructs nothing"):
            make()
    with pytest.raises(
        UserError, match="images are 28 x 28, and --image-size, or the run, says 64"
    ):
        Trainer(dataclasses.replace(SMALL, image_size=64), square(1, 28))


def test_a_model_takes_images_of_its_own_size(tmp_path):
    run(dataclasses.replace(SMALL, steps=1), square(1, 28), tmp_path / "a")
    model = fvae.load(tmp_path / "a")
    with pytest.raises(
        ValueError, match=r"x: got images \[2, 1, 31, 31\], expected \[B, 1, 28, 28"
    ):
        model.encode(torch.rand(2, 1, 31, 31))  # which has the same layers
    for other in (square(1, 31), square(3, 28)):
        config = TrainConfig.from_file(tmp_path / "a" / "config.json")
        config = dataclasses.replace(config, steps=2)
        with pytest.raises(UserError, match="was trained on"):
            report.write_report(tmp_path / "a", other)
        with pytest.raises(UserError, match="was trained on"):
            loop.train(config, other, tmp_path / "a")
    (tmp_path / "a" / run_data.NAME).unlink()  # as of version 0.1
    for other in (square(1, 31), square(3, 28)):
        with pytest.raises(UserError, match="but the model was trained on"):
            report.write_report(tmp_path / "a", other)
        with pytest.raises(UserError, match="was made with image_size = 28|is of shape|belongs to"):
            loop.train(config, other, tmp_path / "a")


def test_a_run_of_another_likelihood_is_not_continued(tmp_path):
    run(dataclasses.replace(SMALL, steps=1), square(1, 16), tmp_path / "a")
    config = TrainConfig.from_file(tmp_path / "a" / "config.json")
    with pytest.raises(UserError, match="was made with likelihood = 'bernoulli'"):
        checkpoint.read(tmp_path / "a", dataclasses.replace(config, likelihood="gaussian"))


# --- the size is kept -----------------------------------------------------------------------------


def test_a_checkpoint_says_the_size_and_one_from_before_is_of_64(tmp_path):
    for side in (28, 64):
        folder = tmp_path / str(side)
        run(dataclasses.replace(SMALL, steps=1), square(1, side), folder)
        with safe_open(folder / checkpoint.NAME, "pt") as file:
            assert json.loads(file.metadata()["config"])["image_size"] == side
    config = TrainConfig.from_file(folder / "config.json")
    before = {k: v for k, v in json.loads(config.to_json()).items() if k != "image_size"}
    old = TrainConfig.from_fields(before)
    (folder / "config.json").write_text(json.dumps(before))
    checkpoint.save(folder, tensors(folder), old)
    assert fvae.load(folder).image_shape == (1, 64, 64)


# --- the likelihood -------------------------------------------------------------------------------


def test_the_likelihood_is_what_the_objective_minimises():
    x, rng = torch.rand(3, 1, 16, 16), fvae.Philox(0)
    for likelihood, nll in (("bernoulli", ops.bernoulli_nll), ("gaussian", ops.gaussian_nll)):
        config = dataclasses.replace(SMALL, likelihood=likelihood, image_size=16)
        vae, _ = nets.build(config, 1)
        terms = objectives.beta_vae(vae, x, 4.0, rng)
        z, kl = ops.reparameterize(*vae.encode(x), rng)
        assert terms["recon"] == nll(vae.decode(z), x)
        torch.testing.assert_close(terms["loss"], terms["recon"] + 4 * kl.sum())


def test_an_objective_of_images_outside_0_to_1_is_not_a_number():
    vae, _ = nets.build(dataclasses.replace(SMALL, image_size=16), 1)
    x = torch.rand(3, 1, 16, 16)
    assert objectives.beta_vae(vae, x, 4.0, fvae.Philox(0))["loss"].isfinite()
    assert objectives.beta_vae(vae, 255 * x, 4.0, fvae.Philox(0))["loss"].isnan()


def test_pictures_of_both_likelihoods():
    decoded = torch.tensor([-2.0, 0.25, 3.0]).view(1, 1, 1, 3)
    gaussian, bernoulli = (nets.VAE(likelihood=name) for name in ("gaussian", "bernoulli"))
    assert gaussian.pixels(decoded).flatten().tolist() == [0, 0.25, 1]
    assert torch.equal(bernoulli.pixels(decoded), decoded.sigmoid())


def test_a_gaussian_run_learns_the_mean_image(tmp_path):
    """Constant images of value v: the mean goes to v, which no likelihood of bits would need."""
    data = torch.full((40, 256), 51, dtype=torch.uint8)  # 0.2
    store = Store("gray", data, (1, 16, 16), False)
    config = dataclasses.replace(
        SMALL, objective="vae", likelihood="gaussian", steps=100, learning_rate=2e-2
    )
    run(config, store, tmp_path)
    lines = log(tmp_path)
    assert lines[-1]["recon"] < 0.05 < lines[0]["recon"]
    model = fvae.load(tmp_path)
    assert (model.pixels(model.decode(torch.zeros(1, 4))) - 0.2).abs().max() < 0.05


# --- pictures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 13])
def test_what_is_shown_of_any_number_of_channels(channels):
    images = torch.rand(2, channels, 5, 7)
    shown = report.run.shown(images)
    if channels in (1, 3):
        assert torch.equal(shown, images.permute(0, 2, 3, 1))
        return
    columns = {2: 2, 4: 2, 5: 3, 13: 4}[channels]
    assert shown.shape == (2, -(-channels // columns) * 5, columns * 7, 1)
    for c in range(channels):
        row, column = divmod(c, columns)
        tile = shown[:, row * 5 : row * 5 + 5, column * 7 : column * 7 + 7, 0]
        assert torch.equal(tile, images[:, c])


def test_report_and_traversals_of_two_channels(tmp_path):
    store = square(2, 20)
    run(dataclasses.replace(SMALL, steps=1, latent_dim=2), store, tmp_path)
    assert report.write_report(tmp_path, store).stat().st_size > 10_000
    assert all(path.exists() for path in report.write_traversals(tmp_path, store))


# --- the command line -----------------------------------------------------------------------------

TINY = dataclasses.replace(SMALL, steps=2, latent_dim=2, image_size=20)


def test_a_folder_of_pictures_at_another_size(tmp_path, own_cache):
    import numpy as np
    from PIL import Image

    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        (tmp_path / "pictures").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{i}.png")
    given = ["--data", tmp_path / "pictures", *options(TINY, *NAMES), "--likelihood", "gaussian"]
    status, _, error = command("train", *given, "--out", tmp_path / "run")
    assert status == 0, error
    assert command("train", "--resume", tmp_path / "run", "--steps", "3")[0] == 0
    assert log(tmp_path / "run")[-1]["step"] == 3
    assert command("traverse", tmp_path / "run")[0] == 0
    model = fvae.load(tmp_path / "run")
    assert (model.image_shape, model.likelihood) == ((3, 20, 20), "gaussian")
    out = command("data", tmp_path / "pictures", "--image-size", "20")[1]
    assert "4 of 3 x 20 x 20" in out
    error = refused("train", "--resume", tmp_path / "run", "--image-size", "28")
    assert "--image-size 28: cannot be given with --resume, the run has 20" in error


NAMES = (
    "steps", "batch_size", "latent_dim", "disc_units", "disc_hidden_layers", "conv_channels",
    "hidden_units", "device", "image_size",
)  # fmt: skip


def test_a_file_of_another_size(tmp_path, monkeypatch):
    """Its size is kept, asked for or not; what cannot train leaves no folder."""
    from fvae import opening

    given = options(TINY, *(name for name in NAMES if name != "image_size"))
    store = square(1, 28, images=4)
    monkeypatch.setattr(opening, "load", lambda *a: store)
    assert command("train", *given, "--out", tmp_path / "a")[0] == 0
    assert json.loads((tmp_path / "a" / "config.json").read_text())["image_size"] == 28
    assert command("train", "--resume", tmp_path / "a", "--steps", "3")[0] == 0
    monkeypatch.setattr(opening, "load", lambda *a: square(1, 15, images=4))
    assert "expected square ones" in refused("train", *given, "--out", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_size_that_a_data_set_does_not_have(tmp_path):
    error = refused("train", *options(TINY, *NAMES), "--out", tmp_path / "run")
    assert "dsprites: images are 64 x 64, and --image-size, or the run, says 20" in error
    assert not (tmp_path / "run").exists()


def test_a_study_of_another_size(tmp_path, monkeypatch):
    from fvae.study import study

    store = dataclasses.replace(square(1, 28, binary=True), factor_names=(), factor_sizes=())
    monkeypatch.setattr(study.data, "load", lambda *a, **k: store)
    config = StudyConfig(
        objectives=("factor-vae",), gammas=(1.0, 2.0), seeds=1, strategy="stacked", steps=2,
        likelihood="gaussian", device="cpu", precision="fp32",
        batch_size=3, latent_dim=2, disc_units=8, disc_hidden_layers=1, conv_channels=(4, 4, 4, 4),
        hidden_units=8,
    )  # fmt: skip
    assert study.study(config, tmp_path / "study") == 0
    for gamma in (1, 2):
        folder = tmp_path / "study" / "runs" / f"factor-vae-gamma{gamma}-seed0"
        assert fvae.load(folder).image_shape == (1, 28, 28)
        assert (folder / "report.html").exists()
