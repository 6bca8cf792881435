"""The decoder's last bias may begin with the images' mean pixel; all else is as without."""

import dataclasses

import pytest
import torch
from shared import assert_equal
from small import (
    SMALL,
    assert_a_killed_run_resumes_to_the_same,
    bits,
    photographs,
    trainer_of,
)

from fvae.training.trainer import Trainer

MEAN = dataclasses.replace(SMALL, output_bias="mean")
LAST = "vae.decoder.11.bias"


def _sparse(images):
    """Photographs whose second channel is black and whose third is white."""
    store = photographs(images)
    store.data[:, 4096 : 2 * 4096] = 0
    store.data[:, 2 * 4096 :] = 255
    return store


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("backend", [None, "reference"])
def test_it_is_the_mean_of_each_channel(likelihood, backend):
    config = dataclasses.replace(MEAN, likelihood=likelihood, backend=backend)
    trainer = Trainer(config, _sparse(20))
    first, *rest = trainer.vae.decoder[-1].bias.tolist()
    mean = float(trainer.store.images(list(range(20)))[:, 0].float().mean())
    mean = mean if mean < 1 else mean / 255
    ends = torch.tensor([1e-3, 1 - 1e-3]).logit() if likelihood == "bernoulli" else [0, 1]
    assert rest == pytest.approx(list(map(float, ends)), abs=1e-5)
    got = torch.tensor(first).sigmoid() if likelihood == "bernoulli" else first
    assert float(got) == pytest.approx(mean, abs=2e-3)  # the pixels are uniform: all images alike


def test_no_other_weight_is_another():
    store = bits(50)
    plain, mean = (Trainer(config, store).state() for config in (SMALL, MEAN))
    changed = [name for name, value in mean.items() if not torch.equal(value, plain[name])]
    assert changed == [LAST]
    seeds = [dataclasses.replace(MEAN, seed=s) for s in range(2)]
    biases = {Trainer(config, store).state()[LAST].item() for config in seeds}
    assert len(biases) == 1


def test_stacked_models_and_networks_in_half_begin_so_too():
    store = bits(50)
    together = trainer_of(MEAN, store, 2, one_convolution=False)
    alone = Trainer(dataclasses.replace(MEAN, gamma=1.0), store)  # as trainer_of's first
    for _ in range(2):
        together.step()
        alone.step()
    weights = {k: v for k, v in alone.state().items() if k.startswith("vae")}
    found = together.state_of(0)
    assert_equal({k: found[k] for k in weights}, weights)
    half = Trainer(dataclasses.replace(MEAN, precision="bf16"), store)
    working = half.networks[0].decoder[-1].bias
    assert torch.equal(working, half.vae.decoder[-1].bias.bfloat16())


def test_a_resumed_run_is_the_uninterrupted_one(store, tmp_path):
    assert_a_killed_run_resumes_to_the_same(MEAN, store, tmp_path)


def test_a_gan_has_no_such_bias(store):
    config = dataclasses.replace(MEAN, objective="infogan")
    plain = dataclasses.replace(SMALL, objective="infogan")
    assert_equal(trainer_of(config, store).state(), trainer_of(plain, store).state())
