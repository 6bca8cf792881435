"""The discriminator's gradients made where the optimizer uses them, as on a GPU: the same step."""

import dataclasses

import pytest
import torch
from small import NETS, bits, trainer_of

from fvae import ops
from fvae.config import TrainConfig
from fvae.models import forms
from fvae.training.distributed import World
from fvae.training.trainer import Trainer

SMALL = TrainConfig(
    device="cpu", precision="fp32", batch_size=4, latent_dim=3, disc_units=8, warmup_steps=5, **NETS
)  # fmt: skip


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Layers as a GPU has them, of the operations that a CPU has."""
    monkeypatch.setattr(forms, "is_fused", lambda x: not forms.is_plain())


def _trainers(models=1, **settings):
    """The same one twice; the second leaves the discriminator's gradients unmade."""
    config = dataclasses.replace(SMALL, **settings)
    store = bits(20)
    pair = [trainer_of(config, store, models) for _ in range(2)]
    pair[1]._leave_gradients_unmade()
    return pair


@pytest.mark.parametrize("models", [1, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_is_the_same(as_on_a_gpu, monkeypatch, precision, models):
    usual, unmade = _trainers(models, precision=precision)
    updated = []
    run = ops.linear_adam

    def counted(gradients, *args, **options):
        assert all(leaf.grad is None for leaf in unmade.networks[1].parameters())
        updated.append(len(gradients.xs))
        run(gradients, *args, **options)

    monkeypatch.setattr(ops, "linear_adam", counted)
    tight = {"rtol": 1e-4, "atol": 1e-6} if precision == "fp32" else {"rtol": 0.1, "atol": 1e-3}
    for _ in range(3):
        torch.testing.assert_close(usual.step(), unmade.step(), rtol=tight["rtol"], atol=1e-3)
    assert updated == [len(unmade.discriminator.layers)] * 3
    found, expected = unmade.state(), usual.state()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if name.startswith("optimizer.step"):
            assert torch.equal(found[name], value) and value.eq(3).all()
        elif not name.startswith(("rng", "optimizer.exp_avg_sq")):
            torch.testing.assert_close(found[name], value, **tight)
    for p, leaf in zip(unmade.optimizer.params, unmade.optimizer.leaves, strict=True):
        assert torch.equal(p.to(leaf.dtype), leaf)


def test_what_it_leaves_goes_on_in_the_usual_way(as_on_a_gpu, tmp_path):
    usual, unmade = _trainers()
    unmade.step()
    usual.restore({name: t.clone() for name, t in unmade.state().items()}, tmp_path)
    for _ in range(2):
        torch.testing.assert_close(usual.step(), unmade.step())
    assert unmade.is_finite()


@pytest.mark.parametrize("settings", [{"backend": "reference"}, {"batch_size": 1 << 8}])
def test_layers_of_pytorch_make_their_gradients(as_on_a_gpu, monkeypatch, settings):
    monkeypatch.setattr(ops.layers, "FEW_PRODUCTS", 1 << 12)
    monkeypatch.setattr(ops, "linear_adam", lambda *args, **options: pytest.fail("is used"))
    _, unmade = _trainers(**settings)
    before = unmade.discriminator.layers[0].weight.detach().clone()
    unmade.step()
    assert not torch.equal(unmade.discriminator.layers[0].weight, before)


def test_not_where_somebody_else_reads_the_gradients():
    trainer, unmade = _trainers()
    assert trainer.networks[1].take is None and unmade.networks[1].take is not None
    trainer.scale = object()
    trainer._leave_gradients_unmade()
    trainer.scale, trainer.world = None, World(0, 2)
    trainer._leave_gradients_unmade()
    assert trainer.networks[1].take is None
    vae = Trainer(dataclasses.replace(SMALL, objective="vae"), bits(20))
    vae._leave_gradients_unmade()
    assert len(vae.networks) == 1


def test_a_second_backward_pass_before_the_step_is_refused(as_on_a_gpu):
    _, unmade = _trainers()
    unmade._update = lambda: None
    unmade.step()
    with pytest.raises(RuntimeError, match="group 1: two backward passes before a step"):
        unmade.step()
    unmade.optimizer.zero_grad()
    unmade.step()
