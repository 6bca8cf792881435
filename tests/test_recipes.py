"""Recipes and presets: the settings of published studies, and what may be changed of them."""

import dataclasses
import json
import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small import SMALL, bits, command, options, refused, run, square, write_npz
from torch import nn

import fvae
from fvae import report
from fvae.commands import parse
from fvae.config import GRIDS, RECIPES, StudyConfig, TrainConfig
from fvae.models import infogan
from fvae.models import vae as nets
from fvae.study.grid import expand
from fvae.study.presets import PRESETS
from fvae.training import memory
from fvae.training.trainer import Trainer

STUDY = [f.name for f in dataclasses.fields(StudyConfig) if f.init]


def _config(words, kind=TrainConfig):
    command = parse(words.split())
    names = [f.name for f in dataclasses.fields(kind) if f.init]
    return kind(**{name: getattr(command, name) for name in names})


def _layers(network):
    """Each convolution's and linear layer's inputs, outputs and side of the kernel."""
    found = []
    for layer in network:
        if isinstance(layer, nn.Linear):
            found.append((layer.in_features, layer.out_features))
        elif isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            assert layer.stride == (2, 2)
            found.append((layer.in_channels, layer.out_channels, layer.kernel_size[0]))
    return found


def test_the_models_of_the_large_study():
    config = _config("train --recipe locatello2019")
    vae, discriminator = nets.build(config, 1, True)
    # Locatello et al. 2019, appendix: architecture and hyperparameters.
    assert _layers(vae.encoder) == [
        (1, 32, 4), (32, 32, 4), (32, 64, 2), (64, 64, 2), (1024, 256), (256, 20),
    ]  # fmt: skip
    assert _layers(vae.decoder) == [
        (10, 256), (256, 1024), (64, 64, 4), (64, 32, 4), (32, 32, 4), (32, 1, 4),
    ]  # fmt: skip
    assert vae.decode(vae.encode(torch.rand(2, 1, 64, 64))[0]).shape == (2, 1, 64, 64)
    widths = [layer.out_features for layer in discriminator.layers]
    assert widths == [1000] * 6 + [2]
    small = dataclasses.replace(config, device="cpu", precision="fp32", disc_units=8)
    trainer = Trainer(small, bits(10))
    groups = [(g["lr"], g["betas"]) for g in trainer.optimizer.param_groups]
    assert groups == [(1e-4, (0.9, 0.999)), (1e-4, (0.5, 0.9))]
    assert (config.batch_size, config.shuffle, config.steps) == (64, "same", 300_000)
    weights = sum(p.numel() for n in (vae, discriminator) for p in n.parameters() if p.dim() > 1)
    assert memory.weights(config, 1) == weights


def test_no_recipe_is_kim2018():
    assert _config("train") == _config("train --recipe kim2018") == TrainConfig()
    assert TrainConfig(**RECIPES["kim2018"]) == TrainConfig()
    assert RECIPES["kim2018"].keys() == RECIPES["locatello2019"].keys()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_settings_of_runs_and_of_studies(name):
    assert RECIPES[name].keys() == RECIPES["kim2018"].keys()
    for objective in ("factor-vae", "infowgan-gp"):
        config = _config(f"train --recipe {name} --objective {objective}")
        assert config == TrainConfig(**RECIPES[name], objective=objective)
    assert _config(f"study --recipe {name}", StudyConfig) == StudyConfig(**RECIPES[name])


def test_the_paper_is_the_default_and_fast_is_fewer_steps_at_a_larger_rate():
    fast = TrainConfig(**RECIPES["fast"])
    assert TrainConfig(**RECIPES["paper"]) == TrainConfig()
    assert fast.steps < TrainConfig.steps and fast.learning_rate > TrainConfig.learning_rate
    assert 0 < fast.warmup_steps < fast.steps


@pytest.mark.parametrize("place", ["{} --recipe locatello2019", "--recipe=locatello2019 {}"])
def test_an_option_wins_over_the_recipe(place):
    given = "--hidden-units 77 --conv-kernels 2 2 6 4 --shuffle second"
    config = _config("train " + place.format(given))
    assert (config.hidden_units, config.conv_kernels) == (77, (2, 2, 6, 4))
    assert config.shuffle == "second"
    changed = {f.name for f in dataclasses.fields(config)
               if getattr(config, f.name) != f.default}  # fmt: skip
    assert changed == {"hidden_units", "conv_kernels"}


def test_the_grid_of_the_large_study():
    config = _config("study --preset locatello2019", StudyConfig)
    assert config == StudyConfig(**PRESETS["locatello2019"])
    assert (config.protocol, config.seeds) == ("locatello2019", 50)
    runs = expand(config)
    assert len(runs) == 6 * 6 * 50
    recipe = RECIPES["locatello2019"]
    assert all(getattr(c, name) == recipe[name] for c in runs.values() for name in recipe)
    weights = {}
    for one in runs.values():
        name = {"annealed-vae": "capacity", "factor-vae": "gamma"}.get(one.objective, "beta")
        name = "dip_lambda" if "dip" in one.objective else name
        weights.setdefault(one.objective, {})[getattr(one, name)] = None
    assert {name: list(found) for name, found in weights.items()} == {
        "beta-vae": [1, 2, 4, 6, 8, 16],
        "factor-vae": [10, 20, 30, 40, 50, 100],
        "beta-tcvae": [1, 2, 4, 6, 8, 10],
        "dip-vae-i": [1, 2, 5, 10, 20, 50],
        "dip-vae-ii": [1, 2, 5, 10, 20, 50],
        "annealed-vae": [5, 10, 25, 50, 75, 100],
    }
    annealed = runs["annealed-vae-capacity25-seed7"]
    assert (annealed.capacity_weight, annealed.capacity_steps) == (1000, 100_000)
    assert runs["dip-vae-i-dip_lambda10-seed0"].dip_ratio is None


def test_an_option_wins_over_the_preset():
    config = _config("study --seeds 2 --preset locatello2019 --objectives vae --gammas 3 --steps 9",
                     StudyConfig)  # fmt: skip
    assert (config.seeds, config.objectives, config.gammas, config.steps) == (2, ("vae",), (3,), 9)
    assert config.conv_kernels == (4, 4, 2, 2)
    config = _config("study --preset locatello2019 --recipe kim2018", StudyConfig)
    assert (config.conv_kernels, config.hidden_units, config.seeds) == ((4, 4, 4, 4), 128, 50)
    assert _config("study --recipe locatello2019", StudyConfig).hidden_units == 256


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train --recipe mine", "'mine' for argument '--recipe'.*kim2018.*locatello2019"),
        ("study --preset mine", "'mine' for argument '--preset'.*locatello2019"),
        ("train --recipe", "--recipe"),
        ("train --preset locatello2019", "--preset"),
        ("train --recipe kim2018 --recipe locatello2019", "--recipe: given twice"),
        ("study --objectives vae --capacity-steps 3", "--capacity-steps 3: vae takes none"),
        ("study --objectives vae --dip-lambdas -3", "--dip-lambdas: got -3.0, expected 0 or more"),
        ("study --tc-betas nan", "--tc-betas: got nan, expected 0 or more"),
        ("study --capacity 3", "--capacity"),
        ("study --dip-lambda 3", "--dip-lambda"),
    ],
)
def test_what_is_refused(words, message, tmp_path):
    assert re.search(message, refused(*words.split(), "--out", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_recipe_is_for_the_first_command(tmp_path):
    run(dataclasses.replace(SMALL, steps=1), bits(10), tmp_path / "run")
    words = ("train", "--resume", tmp_path / "run", "--recipe", "kim2018")
    assert "--recipe kim2018: cannot be given with --resume" in refused(*words)


def test_a_run_keeps_the_settings_themselves(tmp_path, monkeypatch, own_cache):
    monkeypatch.setattr(report, "write_report", lambda run, _: run)
    source = write_npz(tmp_path / "dsprites.npz")
    small = options(SMALL, "disc_units", "disc_hidden_layers", "conv_channels", "device", "seed")
    words = ("train", "--recipe", "locatello2019", "--data", source, "--steps", 2, *small)
    assert command(*words, "--out", tmp_path / "run")[0] == 0
    kept = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (kept["conv_kernels"], kept["shuffle"], kept["hidden_units"]) == (
        [4, 4, 2, 2],
        "same",
        256,
    )
    assert "recipe" not in kept
    assert command("train", "--resume", tmp_path / "run", "--steps", 4)[0] == 0
    assert command("eval", tmp_path / "run", "--protocol", "exhaustive")[0] == 0
    model = fvae.load(tmp_path / "run")
    assert [k for *_, k in _layers(model.encoder)[:4]] == [4, 4, 2, 2]


@given(
    kernels=st.tuples(*[st.sampled_from([2, 4, 6, 8])] * 4),
    side=st.integers(16, 67),
    channels=st.integers(1, 3),
)
def test_kernels_halve_every_side(kernels, side, channels):
    config = dataclasses.replace(SMALL, conv_kernels=kernels, image_size=side)
    vae, discriminator = nets.build(config, channels, True)
    x = torch.rand(2, channels, side, side)
    assert vae.decode(vae.encode(x)[0]).shape == x.shape
    gan = infogan.build(config, channels)
    assert gan.decode(gan.encode(x)[0]).shape == x.shape
    for encoder in (vae.encoder, gan.critic.trunk):
        assert [layer.kernel_size[0] for layer in encoder if isinstance(layer, nn.Conv2d)] == list(
            kernels
        )
    both = (*vae.parameters(), *discriminator.parameters())
    assert memory.weights(config, channels) == sum(p.numel() for p in both if p.dim() > 1)


def test_a_gan_trains_with_other_kernels(tmp_path):
    config = dataclasses.replace(
        SMALL, objective="infowgan-gp", conv_kernels=(4, 4, 2, 2), steps=2, likelihood="bernoulli"
    )
    tensors = run(config, square(1, 17), tmp_path / "run")
    assert all(math.isfinite(float(t.double().sum())) for t in tensors.values())
    fvae.load(tmp_path / "run").encode(torch.rand(2, 1, 17, 17))


def test_files_from_before_these_settings_load(tmp_path):
    fields = json.loads(StudyConfig().to_json())
    new = {"conv_kernels", "shuffle", "tc_sampling", "dip_lambda", "dip_ratio", "capacity",
           "capacity_steps", "capacity_weight", *GRIDS[2:]}  # fmt: skip
    old = {name: value for name, value in fields.items() if name not in new}
    assert StudyConfig.from_fields(old) == StudyConfig()
    old = {n: v for n, v in json.loads(TrainConfig().to_json()).items() if n not in new}
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert TrainConfig.from_file(tmp_path / "config.json") == TrainConfig()
    assert (
        new - {"tc_betas", "dip_lambdas", "capacities"}
        <= json.loads(TrainConfig().to_json()).keys()
    )
    assert set(GRIDS) <= fields.keys()
