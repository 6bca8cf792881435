"""Runs in float16: their loss scale, alone and stacked. On a CPU, where people may not train so."""

import dataclasses

import pytest
import torch
from shared import assert_equal
from small import SMALL, trainer_of

from fvae.config import LOSS_SCALE, TrainConfig
from fvae.device import resolve_precision
from fvae.errors import UserError
from fvae.training import checkpoint, loop
from fvae.training.scaling import LossScale

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


def _config(**changes):
    return dataclasses.replace(SMALL, **({"precision": "fp16"} | changes))


@pytest.mark.parametrize("objective", ["vae", "factor-vae", "infogan", "infowgan-gp"])
def test_a_float16_run_stays_close_to_a_float32_run(objective, store):
    terms = []
    for precision in ("fp16", "fp32"):
        trainer = trainer_of(_config(objective=objective, precision=precision), store)
        if trainer.scale:
            trainer.scale.factor.fill_(16.0)  # no update is left out
        terms += [trainer.step() for _ in range(3)][2:]
    assert trainer.scale is None
    for name, low in terms[0].items():
        torch.testing.assert_close(low, terms[1][name], rtol=5e-3, atol=5e-3)


def test_an_update_that_overflows_is_left_out_and_the_factor_halved(store):
    trainer = trainer_of(_config(objective="factor-vae"), store)
    trainer.scale.factor.fill_(2.0**40)
    before = {name: t.clone() for name, t in trainer.state().items()}
    terms = trainer.step()
    after = trainer.state()
    assert all(t.isfinite().all() for t in terms.values())
    for name, value in before.items():
        if name.startswith("loss_scale.factor"):
            assert after[name] == value / 2
        elif name != "rng.step":
            assert torch.equal(after[name], value), name
    while trainer.scale.good == 0:
        trainer.step()
    moved = [name for name, value in before.items() if not torch.equal(after[name], value)]
    assert len(moved) > 20 and trainer.is_finite()
    steps = [t for name, t in after.items() if name.startswith("optimizer.step.")]
    assert {int(step) for step in steps} == {1}


@pytest.mark.parametrize("models", [None, 2])
def test_the_factor_grows_after_long_enough_and_never_to_infinity(models):
    scale = LossScale(CPU, models)
    gradient = torch.ones(3)
    for _ in range(LOSS_SCALE.interval):
        for m in range(models) if models else [None]:
            assert scale.unscale([gradient.clone()], m) == 0
        scale.update()
    assert torch.equal(scale.factor, torch.full_like(scale.factor, 2 * LOSS_SCALE.first))
    assert not scale.good.any()
    scale.factor.fill_(2.0**127)
    scale.good.fill_(LOSS_SCALE.interval - 1)
    scale.update()
    assert scale.factor.isfinite().all()


def test_gradients_are_divided():
    scale = LossScale(CPU)
    gradients = [torch.full((2,), LOSS_SCALE.first), torch.full((3,), 2 * LOSS_SCALE.first)]
    scale.unscale(gradients)
    assert torch.equal(gradients[0], torch.ones(2)) and torch.equal(gradients[1], 2 * torch.ones(3))
    assert scale.unscale([torch.tensor([1.0, torch.nan])]) == 1


def test_each_of_the_stacked_runs_has_its_own_factor(store):
    config = _config(objective="factor-vae")
    together = trainer_of(config, store, 3, one_convolution=False)
    alone = [trainer_of(dataclasses.replace(config, seed=m, gamma=m + 1.0), store) for m in (0, 1)]
    for trainer, factor in ((together, together.scale.factor[1]), (alone[1], None)):
        (trainer.scale.factor if factor is None else factor).fill_(2.0**30)
    for trainer in (together, *alone):
        for _ in range(12):
            trainer.step()
    for m, one in enumerate(alone):
        got, want = together.state_of(m), one.state()
        assert got.keys() == want.keys()
        for name, value in want.items():
            if "loss_scale" in name or "optimizer.step" in name or "rng" in name:
                assert torch.equal(got[name], value), (m, name)
    assert together.scale.factor[1] > together.scale.factor[0]
    again = trainer_of(config, store, 3, one_convolution=False)
    again.restore_all([together.state_of(m) for m in range(3)], None)
    for m in range(3):
        assert_equal(again.state_of(m), together.state_of(m))


def test_a_checkpoint_holds_the_factor_and_a_resumed_run_is_the_same(store, tmp_path):
    config = _config(objective="factor-vae")
    whole = trainer_of(config, store)
    for _ in range(9):
        whole.step()
    first = trainer_of(config, store)
    for _ in range(4):
        first.step()
    checkpoint.save(tmp_path, first.state(), config)
    resumed = trainer_of(config, store)
    resumed.restore(checkpoint.read(tmp_path, config), tmp_path)
    for _ in range(5):
        resumed.step()
    assert_equal(resumed.state(), whole.state())
    assert "loss_scale.factor" in checkpoint.read(tmp_path, config)


def test_without_cuda_it_is_refused_in_one_line():
    with pytest.raises(UserError, match="--precision fp16: needs a CUDA device"):
        resolve_precision("fp16", CPU)
    assert resolve_precision("fp16", torch.device("cuda")) == "fp16"
    with pytest.raises(UserError, match="fp16"):
        loop.settle(TrainConfig(device="cpu", precision="fp16"))
