"""Numbers of every make, wherever one is taken."""

import json
import pathlib

import numpy as np
import pytest
import torch

from fvae import Philox, ops
from fvae.config import StudyConfig, TrainConfig
from fvae.errors import UserError
from fvae.models import vae as nets

THREES = [3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3), torch.tensor(3).short()]


@pytest.mark.parametrize("three", THREES, ids=repr)
def test_a_whole_number_of_any_make(three, store):
    assert Philox(three, step=three).seed == Philox(3).seed == 3
    assert Philox(0, step=three).step == 3
    assert Philox(0).at_lane(three).lane == 3
    assert torch.equal(Philox([three, three]).seed, torch.tensor([3, 3]))
    assert len(ops.gather_batch(store, three, Philox(0))) == 3
    config = TrainConfig(steps=three, seed=three, conv_channels=[three] * 4, gamma=three)
    assert (config.steps, config.seed, config.conv_channels) == (3, 3, (3, 3, 3, 3))
    assert json.loads(config.to_json())["gamma"] == 3


def test_keys_of_any_make():
    for keys in ([1, 2], (1, 2), range(1, 3), np.array([1, 2]), torch.tensor([1, 2])):
        assert Philox(keys).seed.tolist() == [1, 2]
    assert Philox(2**64 + 5).seed == 5 and Philox(-1).seed == Philox(2**64 - 1).seed == -1
    assert Philox(np.uint64(2**64 - 1)).seed == -1
    given = torch.tensor(7)
    rng = Philox(given)
    given += 1
    assert rng.seed == 7


@pytest.mark.parametrize(
    "bad", [True, 2.5, 3.0, "3", None, np.float32(3), np.bool_(1), torch.tensor(3.0), [2.5], [True]]
)
def test_what_is_no_whole_number(bad):
    with pytest.raises(TypeError, match="seed: got .*, expected (an )?integer"):
        Philox(bad)
    with pytest.raises(UserError, match="--seed: got .*, expected an integer"):
        TrainConfig(seed=bad)


def test_no_key_and_a_step_out_of_range():
    for none in ([], {}, np.array([])):
        with pytest.raises(ValueError, match="no keys"):
            Philox(none)
    for step in (-1, 2**63):
        with pytest.raises(ValueError, match="step: got"):
            Philox(0, step=step)


def test_real_numbers_of_any_make():
    for ten in (10, 10.0, np.float32(10), np.float64(10), np.int32(10), torch.tensor(10.0)):
        config = TrainConfig(gamma=ten, graph=np.bool_(False), data=pathlib.Path("a.npz"))
        kept = json.loads(config.to_json())
        assert (kept["gamma"], kept["graph"], kept["data"]) == (10, False, "a.npz")
        assert TrainConfig.from_fields(kept) == config
    assert StudyConfig(gammas=np.array([1.0, 2.0]), seeds=np.int64(2)).gammas == (1.0, 2.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 2.5}, "--steps: got 2.5, expected an integer"),
        ({"steps": "5"}, "--steps: got '5', expected an integer"),
        ({"batch_size": True}, "--batch-size: got True"),
        ({"gamma": "10"}, "--gamma: got '10', expected a number"),
        ({"gamma": np.ones((40, 40))}, r"--gamma: got array\(\[\[1., 1., .*, expected a number"),
        ({"gamma": 1j}, "--gamma: got 1j"),
        ({"graph": 1}, "--graph: got 1, expected True or False"),
        ({"objective": 3}, "--objective: got 3, expected a name"),
        ({"data": None}, "--data: got None, expected a name"),
        ({"conv_channels": 4}, "--conv-channels: got 4, expected several values"),
        ({"conv_channels": (4, 4, 4, 2.5)}, "--conv-channels: got 2.5, expected an integer"),
        ({"checkpoint_every": "x"}, "--checkpoint-every: got 'x'"),
        ({"device": torch.device("cpu")}, "--device: got device"),
    ],
)
def test_a_setting_of_the_wrong_kind_is_named_in_one_line(change, message):
    with pytest.raises(UserError, match=message) as caught:
        TrainConfig(**change)
    assert "\n" not in str(caught.value)


def test_any_integer_is_a_seed_of_the_weights():
    def first(seed):
        return nets.build(TrainConfig(seed=seed), 1)[0].encoder[0].weight

    assert torch.equal(first(2**64 + 3), first(3))
    assert not torch.equal(first(-1), first(3))
