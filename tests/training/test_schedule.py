"""Learning rates that change with the step: their values, and that every kind of step has them."""

import dataclasses
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shared import assert_equal
from small import (
    SMALL,
    assert_a_killed_run_resumes_to_the_same,
    refused,
    run,
    step_of,
    tensors,
    trainer_of,
)

from fvae.config import TrainConfig
from fvae.errors import UserError
from fvae.training import loop
from fvae.training.adam import schedule_of
from fvae.training.trainer import Trainer

BOTH = {"learning_rate_schedule": "cosine", "learning_rate_warmup_steps": 4}
FALLS = dataclasses.replace(SMALL, **BOTH)


def _shares(**settings):
    schedule = schedule_of(TrainConfig(**settings))
    return [schedule(step) for step in range(settings["steps"])]


def test_the_values_of_a_warm_up_and_of_half_a_cosine():
    assert schedule_of(TrainConfig()) is None
    assert _shares(steps=6, learning_rate_warmup_steps=4) == [0.25, 0.5, 0.75, 1, 1, 1]
    falling = [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]
    assert _shares(steps=4, learning_rate_schedule="cosine") == pytest.approx(falling, abs=1e-15)
    assert _shares(steps=8, **BOTH) == pytest.approx([0.25, 0.5, 0.75, 1, *falling], abs=1e-15)


@given(st.integers(1, 500), st.integers(0, 600), st.sampled_from(["constant", "cosine"]))
def test_it_rises_then_falls_and_is_never_nought(steps, warmup, kind):
    shares = _shares(
        steps=steps, learning_rate_schedule=kind, learning_rate_warmup_steps=max(1, warmup)
    )
    top = min(max(1, warmup), steps)
    assert all(0 < share <= 1 for share in shares)
    assert shares[:top] == sorted(shares[:top])
    assert shares[top - 1 :] == sorted(shares[top - 1 :], reverse=True)


@pytest.mark.parametrize(
    ("objective", "models"), [("vae", 1), ("factor-vae", 1), ("factor-vae", 3), ("infowgan-gp", 1)]
)
def test_each_step_has_its_rate_for_both_players(objective, models, store):
    config = dataclasses.replace(FALLS, objective=objective, disc_learning_rate=3e-4)
    trainer = trainer_of(config, store, models)
    rates, schedule = trainer.optimizer._settings, schedule_of(config)
    others = rates[:, 1:].clone()
    for step in range(config.steps):
        trainer.step()
        expected = [schedule(step) * group["lr"] for group in trainer.optimizer.param_groups]
        assert rates[:, 0].tolist() == np.float32(expected).tolist()
        assert torch.equal(rates[:, 1:], others)


def test_an_update_is_that_of_its_rate(store):
    first = Trainer(FALLS, store)
    quarter = {"learning_rate": FALLS.learning_rate / 4}
    quarter["disc_learning_rate"] = FALLS.disc_learning_rate / 4
    slow = Trainer(dataclasses.replace(SMALL, **quarter), store)
    for trainer in (first, slow):
        trainer.step()
    assert_equal(first.state(), slow.state())


@pytest.mark.parametrize("backend", [None, "reference"])
def test_a_resumed_run_is_the_uninterrupted_one(backend, store, tmp_path):
    config = dataclasses.replace(FALLS, backend=backend, learning_rate_warmup_steps=7)
    assert_a_killed_run_resumes_to_the_same(config, store, tmp_path)


def test_a_replayed_step_reads_the_rates_where_it_was_captured(store):
    """On the device, in the one tensor that the update was handed."""
    trainer, read = Trainer(FALLS, store), []

    class Graph:
        captured = False

        def step(self, run):
            self.captured = True
            self.rates = trainer.optimizer._settings
            return run()

        def replay(self):
            read.append(self.rates[0, 0].item())

    trainer.graph = Graph()
    for _ in range(FALLS.steps):
        trainer.step()
    expected = [schedule_of(FALLS)(step) * FALLS.learning_rate for step in range(1, FALLS.steps)]
    assert read == np.float32(expected).tolist()


def test_the_end_of_a_cosine_stays_where_it_is(store, tmp_path):
    folder = tmp_path / "a"
    run(FALLS, store, folder)
    before = tensors(folder)
    message = refused("train", "--resume", folder, "--steps", 20)
    assert "--steps 20: cannot be given with --resume, the run has 12" in message
    with pytest.raises(UserError, match="was made with steps = 12"):
        loop.train(dataclasses.replace(FALLS, steps=20), store, folder)
    assert_equal(tensors(folder), before)


def test_a_run_that_only_warms_up_can_be_raised(store, tmp_path):
    warm = dataclasses.replace(SMALL, learning_rate_warmup_steps=15)
    longer = dataclasses.replace(warm, steps=20)
    run(warm, store, tmp_path / "a")
    loop.train(longer, store, tmp_path / "a")
    assert step_of(tmp_path / "a") == 20
    assert_equal(tensors(tmp_path / "a"), run(longer, store, tmp_path / "b"))


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--learning-rate-schedule", "linear", "constant.*cosine|'linear'"),
        ("--learning-rate-warmup-steps", "-1", "got -1, expected 0 or more"),
        ("--learning-rate-warmup-steps", "0.5", "0.5"),
    ],
)
def test_what_is_refused(option, value, message, tmp_path):
    said = refused("train", option, value, "--out", tmp_path / "out")
    assert option in said and re.search(message, said)
    assert not (tmp_path / "out").exists()
