"""What of a step runs at once: its order is right, its numbers are those of one stream."""

import dataclasses
from pathlib import Path

import pytest
import torch
from shared import assert_equal, fake_cuda_lines, needs_compiler
from small import NETS, bits, trainer_of
from stream_order import Order

from fvae.config import TrainConfig
from fvae.errors import UserError
from fvae.models import branches, forms
from fvae.models.branches import Branches
from fvae.training import loop
from fvae.training.trainer import Trainer

SMALL = TrainConfig(
    device="cpu", batch_size=3, latent_dim=3, disc_units=8, disc_hidden_layers=2, warmup_steps=5,
    learning_rate=1e-3, **NETS,
)  # fmt: skip
#: A bound of products beyond which a linear layer's weight gradient is a call of its own.
BOUNDS = (1 << 28, 0)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Layers as a GPU has them, and streams that record."""
    monkeypatch.setattr(forms, "is_fused", lambda x: not forms.is_plain())
    order = Order()
    order.stand_in(lambda name, value: monkeypatch.setattr(torch.cuda, name, value))
    branches._stream.cache_clear()
    yield order
    branches._stream.cache_clear()


def _after(config, order, forks, models=1):
    trainer = trainer_of(config, bits(50, torch.Generator().manual_seed(0)), models)
    trainer.branches = Branches() if forks else None
    terms = [{name: t.clone() for name, t in trainer.step().items()} for _ in range(2)]
    with order:
        terms.append(trainer.step())
    each = {f"{i} {name}": t for i, one in enumerate(terms) for name, t in one.items()}
    return each | {name: t.clone() for name, t in trainer.state().items()}


@pytest.mark.parametrize("objective", ["factor-vae", "vae", "beta-tcvae"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("bound", BOUNDS)
def test_numbers_are_those_of_one_stream(as_on_a_gpu, monkeypatch, objective, precision, bound):
    # The engine is the real one, and so is what it frees and when.
    monkeypatch.setattr("fvae.ops.layers.FEW_PRODUCTS", bound)
    config = dataclasses.replace(SMALL, objective=objective, precision=precision)
    want = _after(config, Order(), forks=False)
    got = _after(config, as_on_a_gpu, forks=True)
    assert_equal(got, want)
    assert len(as_on_a_gpu.streams) == 2 + (objective == "factor-vae") * (1 + (bound == 0))
    assert as_on_a_gpu.races == []
    assert as_on_a_gpu.main.depth < as_on_a_gpu.total


@pytest.mark.parametrize("change", [{"shuffle": "same"}, {"backend": "reference"}, {"models": 2}])
def test_other_steps_of_factor_vae(as_on_a_gpu, change):
    change = dict(change)
    models = change.pop("models", 1)
    config = dataclasses.replace(SMALL, precision="fp32", **change)
    want = _after(config, Order(), False, models)
    assert_equal(_after(config, as_on_a_gpu, True, models), want)
    assert len(as_on_a_gpu.streams) > 1
    assert as_on_a_gpu.races == []


def test_only_a_whole_backward_pass_owes(as_on_a_gpu):
    # A gradient that an objective takes on the way, of some inputs, is no gradient of the loss.
    config = dataclasses.replace(SMALL, precision="fp32", objective="vae")
    trainer = Trainer(config, bits(50))
    x = torch.rand(2, 1, 64, 64, requires_grad=True)
    with branches.branched(Branches()):
        (grad,) = torch.autograd.grad(trainer.vae.encode(x)[0].sum(), x)
    assert grad.abs().sum() > 0
    assert all(p.grad is None for p in trainer.vae.parameters())


@pytest.mark.parametrize("objective", ["infogan", "infowgan-gp"])
def test_a_game_of_several_passes_owes_nothing(as_on_a_gpu, objective):
    config = dataclasses.replace(SMALL, objective=objective, precision="fp32", critic_steps=2)
    want = _after(config, Order(), forks=False)
    assert_equal(_after(config, as_on_a_gpu, forks=True), want)
    assert len(as_on_a_gpu.streams) == 1


def test_off_unless_asked_for_and_refused_without_a_graph():
    assert TrainConfig().branches is False
    assert Trainer(dataclasses.replace(SMALL, precision="fp32"), bits(50)).branches is None
    for change in ({"device": "cpu"}, {"graph": False}):
        with pytest.raises(UserError, match="--branches: .*leave it out"):
            loop.settle(dataclasses.replace(SMALL, branches=True, **change))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: no stream is real")
@pytest.mark.parametrize("objective", ["factor-vae", "vae", "beta-tcvae"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_graph_with_branches_equals_one_without(objective, precision):
    config = TrainConfig(objective=objective, device="cuda", precision=precision)
    apart = Trainer(dataclasses.replace(config, branches=True), bits(500))
    plain = Trainer(config, bits(500))
    for _ in range(50):
        apart.step()
        plain.step()
    assert apart.graph.captured
    assert_equal(apart.state(), plain.state())


@pytest.fixture(scope="module")
def lines():
    return fake_cuda_lines(Path(__file__).parent / "branch_order.py")


without_a_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def _with(lines, name):
    return [line for line in lines if name in line]


@without_a_gpu
@needs_compiler
def test_a_gpus_step_has_no_race_and_keeps_nothing(lines):
    assert len(_with(lines, "races")) == 2 * 8 + 5
    for line in _with(lines, "forks"):
        assert line["races"] == line["left"] == [], line


@without_a_gpu
@needs_compiler
def test_it_starts_the_same_kernels_in_a_shorter_chain(lines):
    found = _with(lines, "forks")
    for off, on in zip(found[::2], found[1::2], strict=True):
        assert (off["streams"], off["longest"]) == (1, off["launches"]), off
        assert on["launches"] == off["launches"] > on["longest"], on
        game = on["objective"] == "factor-vae"
        assert on["streams"] >= 2 + (game and "models" not in on), on
        assert on["longest"] < (0.8 if game else 0.95) * on["launches"], on


@without_a_gpu
@needs_compiler
def test_what_is_promised_is_parallel(lines):
    found = _with(lines, "promised")
    assert len(found) == 6
    for line in found:
        assert all(line["promised"].values()), line
        assert len(line["promised"]) == (3 if line["objective"] == "factor-vae" else 1)


@without_a_gpu
@needs_compiler
def test_what_is_left_out_is_noticed(lines):
    for line in _with(lines, "broken"):
        assert line["races"], line
