"""factor-vae's KL may weigh more at first, and weighs 1 in the end."""

import dataclasses

import pytest
from shared import assert_equal
from small import SMALL, assert_a_killed_run_resumes_to_the_same

from fvae.errors import UserError
from fvae.training.trainer import Trainer

FALLS = dataclasses.replace(SMALL, kl_start=5.0, kl_steps=4, warmup_steps=3, gamma=2.0)


@pytest.mark.parametrize("start", [5.0, 0.0])
def test_its_weight_goes_linearly_to_1(start, store):
    trainer = Trainer(dataclasses.replace(FALLS, kl_start=start), store)
    for step in range(6):
        gamma = 2.0 * min(1.0, step / 3)
        terms = {name: term.double() for name, term in trainer.step().items()}
        rest = terms["recon"] + gamma * terms["tc"] + terms["disc_loss"]
        b = start + (1 - start) * min(1.0, step / 4)
        # The loss is float32 and mostly recon.
        assert float((terms["loss"] - rest) / terms["kl"]) == pytest.approx(b, abs=0.05)


def test_a_weight_of_1_all_along_is_none(store):
    plain = dataclasses.replace(FALLS, kl_start=1.0, kl_steps=0)
    one, other = (Trainer(c, store) for c in (plain, dataclasses.replace(plain, kl_steps=4)))
    for _ in range(3):
        one.step()
        other.step()
    assert_equal(one.state(), other.state())


def test_a_resumed_run_is_the_uninterrupted_one(store, tmp_path):
    config = dataclasses.replace(FALLS, kl_steps=100)
    assert_a_killed_run_resumes_to_the_same(config, store, tmp_path)


def test_a_weight_without_steps_is_refused():
    with pytest.raises(UserError, match="--kl-start 8.0: goes to 1 over --kl-steps; give that too"):
        dataclasses.replace(SMALL, kl_start=8.0)
