import dataclasses
import os
import signal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from shared import assert_equal, disk_full_after
from small import (
    SMALL,
    Killed,
    assert_same_run,
    checkpoints_noted,
    kill_at,
    log,
    made,
    photographs,
    signal_at,
    step_of,
    tensors,
)

import fvae
from fvae.errors import UserError
from fvae.models import vae as nets
from fvae.models.stacked import StackedVAE, stack
from fvae.philox import Philox
from fvae.training import checkpoint, loop, stacked
from fvae.training.trainer import Trainer
from fvae.training.two_players import two_players


def _group(objective="factor-vae", **changes):
    """Three runs that differ in everything that stacked runs may differ in."""
    config = dataclasses.replace(SMALL, objective=objective, **changes)
    dip, annealed = "dip" in objective, objective == "annealed-vae"
    return [
        dataclasses.replace(
            config, seed=s, gamma=10.0 * s + 5, beta=1.0 + s, warmup_steps=w,
            **({"dip_lambda": 2.0 + s} if dip else {}),
            **({"capacity": 1.0 + s, "capacity_steps": w} if annealed else {}),
        )
        for s, w in ((0, 0), (1, 7), (3, 200))
    ]  # fmt: skip


def _create(configs, folder):
    runs = [folder / str(m) for m in range(len(configs))]
    return [loop.create_run(c, run) for c, run in zip(configs, runs, strict=True)], runs


def _run(configs, store, folder, **callbacks):
    configs, runs = _create(configs, folder)
    number = stacked.train(configs, store, runs, **callbacks)
    return runs, number


def _assert_close(a, b, tolerance=1e-4):
    """Relative to each tensor's largest entry, or 1e-6 where that is less."""
    assert a.keys() == b.keys()
    for name, value in b.items():
        if value.is_floating_point() and value.numel():
            bound = max(tolerance * float(value.detach().abs().max()), 1e-6)
            error = float((a[name] - value).detach().abs().max())
            assert error < bound, (name, error, bound)
        else:
            assert torch.equal(a[name], value), name


@pytest.mark.parametrize(
    ("objective", "group", "changes"),
    [
        ("beta-vae", 1, {}), ("beta-vae", 3, {}), ("factor-vae", 1, {}), ("factor-vae", 3, {}),
        ("beta-tcvae", 1, {}), ("beta-tcvae", 1, {"tc_sampling": "stratified"}),
        ("dip-vae-i", 1, {}), ("dip-vae-ii", 1, {"dip_ratio": 3.0}), ("annealed-vae", 1, {}),
        ("factor-vae", 1, {"shuffle": "same", "conv_kernels": (4, 4, 2, 2)}),
        ("factor-vae", 1, {"learning_rate_schedule": "cosine", "learning_rate_warmup_steps": 9}),
        ("factor-vae", 1, {"kl_start": 5.0, "kl_steps": 15}),
    ],
)  # fmt: skip
def test_steps_are_those_of_each_model_alone(objective, group, changes, store):
    configs = _group(objective, **changes)
    if objective == "beta-vae":
        configs[0] = dataclasses.replace(configs[0], objective="vae")
    together = stacked.StackedTrainer(configs, store, group)
    alone = [Trainer(c, store) for c in configs]
    check = assert_equal if group == 1 else _assert_close
    for _ in range(25):  # beyond the second model's warm-up
        terms = together.step()
        for m, trainer in enumerate(alone):
            check({k: v[m] for k, v in terms.items()}, trainer.step())
    for m, trainer in enumerate(alone):
        weights = {k: v for k, v in trainer.state().items() if not k.startswith("optimizer")}
        check({k: together.state_of(m)[k] for k in weights}, weights)


@pytest.mark.parametrize("objective", ["beta-vae", "factor-vae"])
def test_run_folders_are_those_of_each_model_alone(objective, store, tmp_path):
    seen = []
    configs = _group(objective)
    runs, _ = _run(configs, store, tmp_path / "a", on_log=lambda m, line: seen.append((m, line)))
    configs, alone = _create(configs, tmp_path / "b")
    for config, ours, run in zip(configs, runs, alone, strict=True):
        loop.train(config, store, run)
        assert {p.name for p in ours.iterdir()} == {p.name for p in run.iterdir()}
        assert_same_run(ours, run)
        x = torch.rand(2, 1, 64, 64)
        torch.testing.assert_close(fvae.load(ours).encode(x), fvae.load(run).encode(x))
    assert [(m, line["step"]) for m, line in seen] == [(m, s) for s in (4, 8, 12) for m in range(3)]


def test_one_model_is_a_run(store, tmp_path):
    runs, _ = _run([SMALL], store, tmp_path / "a")
    loop.train(loop.create_run(SMALL, tmp_path / "b"), store, tmp_path / "b")
    assert_same_run(runs[0], tmp_path / "b")


@pytest.mark.parametrize(
    ("objective", "precision"),
    [("vae", "fp32"), ("vae", "bf16"), ("factor-vae", "fp32"), ("factor-vae", "bf16"),
     ("beta-tcvae", "fp32"), ("dip-vae-ii", "fp32"), ("annealed-vae", "fp32")],
)  # fmt: skip
def test_a_resumed_group_is_the_uninterrupted_one(objective, precision, store, tmp_path):
    configs = _group(objective, precision=precision)
    whole, _ = _run(configs, store, tmp_path / "a")
    with pytest.raises(Killed):
        _run(configs, store, tmp_path / "b", on_step=kill_at(9))
    runs = [tmp_path / "b" / run.name for run in whole]
    assert {step_of(run) for run in runs} == {5}
    stacked.train(configs, store, runs)
    for a, b in zip(whole, runs, strict=True):
        assert_same_run(a, b)


def test_a_group_saves_at_one_step_once_a_minute(store, tmp_path):
    with checkpoints_noted() as noted:

        def tick(step):
            noted.now += 13.0

        _run(_group(checkpoint_every=None), store, tmp_path / "a", on_step=tick)
    assert noted.saved == [(str(m), step) for step in (0, 5, 10, 12) for m in range(3)]


def test_a_kill_between_two_replacements_leaves_one_step(store, tmp_path, monkeypatch):
    configs = _group()
    whole, _ = _run(configs, store, tmp_path / "a")
    replace, done = os.replace, []

    def kill_after_the_first(source, target):
        if str(source).endswith(".next") and "10" in done:
            raise Killed
        replace(source, target)
        if str(source).endswith(".next") and int(load_file(target)["rng.step"]) == 10:
            done.append("10")

    monkeypatch.setattr(os, "replace", kill_after_the_first)
    with pytest.raises(Killed):
        _run(configs, store, tmp_path / "b")
    monkeypatch.setattr(os, "replace", replace)
    runs = [tmp_path / "b" / run.name for run in whole]
    assert [step_of(run) for run in runs] == [10, 5, 5]
    steps = []
    stacked.train(configs, store, runs, on_step=steps.append)
    assert steps == [11, 12]
    for a, b in zip(whole, runs, strict=True):
        assert_equal(tensors(a), tensors(b))
        assert {p.name for p in b.iterdir()} == {p.name for p in a.iterdir()}


def test_a_full_disk_leaves_all_old_checkpoints(store, tmp_path, monkeypatch):
    def fill(step):
        if step == 8:  # the first run's new checkpoint is written, the second's is not
            monkeypatch.setattr(os, "fsync", disk_full_after(1))

    with pytest.raises(OSError, match="No space"):
        _run(_group(), store, tmp_path / "a", on_step=fill)
    for run in (tmp_path / "a").iterdir():
        assert step_of(run) == 5
        names = {p.name for p in run.iterdir()}
        assert names == {
            "config.json",
            "data.json",
            "log.jsonl",
            checkpoint.NAME,
            checkpoint.PREVIOUS,
        }


def test_checkpoints_are_interchangeable(store, tmp_path):
    configs = _group()
    short = [dataclasses.replace(c, steps=6) for c in configs]
    # Stacked, then alone.
    runs, _ = _run(short, store, tmp_path / "a")
    whole, _ = _run(configs, store, tmp_path / "whole")
    for config, run, expected in zip(configs, runs, whole, strict=True):
        loop.train(config, store, run)
        assert_equal(tensors(run), tensors(expected))
    # Alone, then stacked.
    short, runs = _create(short, tmp_path / "b")
    for config, run in zip(short, runs, strict=True):
        loop.train(config, store, run)
    stacked.train(configs, store, runs)
    for run, expected in zip(runs, whole, strict=True):
        assert_equal(tensors(run), tensors(expected))


def test_runs_at_different_steps_are_refused(store, tmp_path):
    configs, runs = _create(_group(), tmp_path)
    loop.train(dataclasses.replace(configs[1], steps=6), store, runs[1])
    with pytest.raises(UserError, match=r"different steps \(.*0 0, .*1 6, .*2 0\)"):
        stacked.train(configs, store, runs)
    assert step_of(runs[1]) == 6


def test_a_signal_stops_all_with_a_checkpoint(store, tmp_path):
    runs, number = _run(_group(), store, tmp_path, on_step=signal_at(7))
    assert number == signal.SIGTERM
    assert {step_of(run) for run in runs} == {7}


def test_a_diverging_model_leaves_the_others_as_they_are(store, tmp_path):
    configs = _group(steps=20)
    whole, _ = _run(configs, store, tmp_path / "a")

    def poison(step):
        if step == 6:
            next(trainers[0].vae.parameters()).data[1].fill_(float("nan"))

    with made(stacked.StackedTrainer) as trainers:
        with pytest.raises(UserError, match=r"^\S*b/1: .*not finite by step 8") as error:
            _run(configs, store, tmp_path / "b", on_step=poison)
    assert "b/0" not in str(error.value) and "b/2" not in str(error.value)
    for m in (0, 2):
        assert_same_run(whole[m], tmp_path / "b" / str(m))
    kept = tensors(tmp_path / "b/1")
    assert int(kept["rng.step"]) == 5
    assert all(t.isfinite().all() for t in kept.values())
    assert [line["step"] for line in log(tmp_path / "b/1")] == [4]


def test_colour_images_train(tmp_path):
    colour = photographs(10)
    for group in (1, 3):
        together = stacked.StackedTrainer(_group(), colour, group)
        terms = together.step()
        for m, config in enumerate(_group()):
            expected = Trainer(config, colour).step()
            _assert_close({k: v[m] for k, v in terms.items()}, expected)


SAME = {"conv_kernels": (4, 4, 4, 2), "shuffle": "same", "learning_rate": 1.0,
        "disc_learning_rate": 1.0, "batch_size": 7, "latent_dim": 3,
        "disc_units": 9, "steps": 13, "precision": "bf16", "data": "x.npz", "log_every": 9,
        "checkpoint_every": 9, "hidden_units": 9, "conv_channels": (4, 4, 4, 8),
        "learning_rate_schedule": "cosine", "learning_rate_warmup_steps": 9}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_what_the_step_shares_must_be_equal(name, store):
    other = dataclasses.replace(SMALL, **{name: SAME[name]})
    assert not stacked.stackable(SMALL, other)
    with pytest.raises(UserError, match="cannot train in one step"):
        stacked.StackedTrainer([SMALL, other], store)


@given(
    st.integers(0, 2**70), st.floats(0, 1e6), st.floats(0, 1e6), st.integers(0, 10**6),
    st.sampled_from(["vae", "beta-vae", "factor-vae"]),
    st.sampled_from(["vae", "beta-vae", "factor-vae"]),
)  # fmt: skip
def test_seed_and_weight_may_differ(seed, gamma, beta, warmup, a, b):
    first = dataclasses.replace(SMALL, objective=a)
    own = {"seed": seed, "gamma": gamma, "beta": beta, "warmup_steps": warmup}
    other = dataclasses.replace(SMALL, objective=b, **own)
    assert stacked.stackable(first, other) == ((a == "factor-vae") == (b == "factor-vae"))
    assert stacked.stackable(first, other) == stacked.stackable(other, first)


@pytest.mark.parametrize("group", [1, 2, 4])
def test_stacked_networks_are_the_networks(group):
    configs = [dataclasses.replace(SMALL, seed=s) for s in range(4)]
    vaes, discriminators = zip(*(nets.build(c, 3, True) for c in configs), strict=True)
    whole = StackedVAE(vaes, group)
    x, z = torch.rand(4, 5, 3, 64, 64), torch.randn(4, 5, 4)
    for m, vae in enumerate(vaes):
        for got, expected in zip(whole.encode(x), vae.encode(x[m]), strict=True):
            torch.testing.assert_close(got[m], expected)
        torch.testing.assert_close(whole.decode(z)[m], vae.decode(z[m]))
    z.requires_grad_()
    z_perm = torch.randn(4, 5, 4)
    terms = two_players(stack(discriminators), z, z_perm)
    (terms[0].sum() + terms[1].sum()).backward()
    for m, discriminator in enumerate(discriminators):
        one = z[m].detach().requires_grad_()
        expected = two_players(discriminator, one, z_perm[m])
        (expected[0] + expected[1]).backward()
        for got, value in zip(terms, expected, strict=True):
            torch.testing.assert_close(got[m], value)
        torch.testing.assert_close(z.grad[m], one.grad)


def test_bad_shapes():
    vae, discriminator = nets.build(SMALL, 1, True)
    with pytest.raises(ValueError, match="expected a divisor of 3"):
        StackedVAE([vae] * 3, 2)
    with pytest.raises(ValueError, match=r"z: got \[2, 3, 4\]"):
        two_players(discriminator, torch.randn(2, 3, 4), torch.randn(2, 3, 4))
    with pytest.raises(ValueError, match=r"z: got \[3, 4\]"):
        two_players(stack([discriminator] * 2), torch.randn(3, 4), torch.randn(3, 4))


def test_each_model_draws_what_it_draws_alone(store):
    together = stacked.StackedTrainer(_group(), store)
    assert together.rng.seed.tolist() == Philox([0, 1, 3]).seed.tolist()
