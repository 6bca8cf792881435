"""Training on correlated factors: what every trainer draws, resumes, stacks; the command line."""

import csv
import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from shared import assert_equal
from small import (
    SMALL,
    SMALL_OPTIONS,
    assert_a_killed_run_resumes_to_the_same,
    command,
    layers,
    made,
    options,
    refused,
    square,
)

import fvae
from fvae import data, evaluate, metrics, ops, report
from fvae.config import StudyConfig, TrainConfig
from fvae.data import Store
from fvae.errors import UserError
from fvae.registry import DATA, DataSet
from fvae.study.grid import OF_A_RUN
from fvae.training.stacked import StackedTrainer, stackable
from fvae.training.trainer import Trainer, make_trainer

pytestmark = pytest.mark.usefixtures("one_thread")

PAIRS = ("a,b:0.1",)
CORRELATED = dataclasses.replace(SMALL, correlate=PAIRS)


def _labelled():
    """Images with real-valued labels."""
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(np.stack([rng.random(40), rng.integers(0, 3, 40)], 1))
    plain = square(1, 16)
    return Store("labelled", plain.data, (1, 16, 16), False, ("a", "b"), labels=labels)


STORES = {"grid": lambda: square(1, 16), "labels": _labelled, "on demand": lambda: layers(50)}


@pytest.fixture
def drawn(monkeypatch):
    """Images of each draw of a trainer."""
    found, gather = [], ops.gather_batch

    def noting(*args, **kwargs):
        out = gather(*args, **kwargs)
        found.append(out[0] if kwargs.get("return_indices") else out)
        return out

    monkeypatch.setattr(ops, "gather_batch", noting)
    yield found
    monkeypatch.undo()


@pytest.mark.parametrize("kind", STORES)
@pytest.mark.parametrize("objective", ["vae", "factor-vae", "infogan", "infowgan-gp"])
def test_every_objective_draws_by_weight(objective, kind, drawn):
    store = STORES[kind]()
    config = dataclasses.replace(CORRELATED, objective=objective, critic_steps=2)
    trainer = make_trainer(config, store)
    table = ops.alias_table(data.correlated(store, PAIRS))
    for _ in range(3):
        rng = trainer.rng.at_lane(0)
        rng.step = rng.step.clone()
        trainer.step()
        (x,) = drawn
        drawn.clear()
        expected = ops.gather_batch(store, len(x), rng, table=table)
        assert torch.equal(x, expected)
        assert not torch.equal(x, ops.gather_batch(store, len(x), rng))
        drawn.clear()


def test_without_pairs_nothing_changes(drawn):
    store = square(1, 16)
    trainer = make_trainer(SMALL, store)
    assert trainer.table is None
    infinite = make_trainer(dataclasses.replace(SMALL, correlate=("a,b:inf",)), store)
    for _ in range(3):
        assert_equal(trainer.step(), infinite.step())
    assert_equal(trainer.state(), infinite.state())


@pytest.mark.parametrize("kind", STORES)
def test_a_resumed_run_is_the_uninterrupted_one(kind, tmp_path):
    assert_a_killed_run_resumes_to_the_same(CORRELATED, STORES[kind](), tmp_path)


def test_stacked_runs_are_those_of_each_alone():
    store = layers(50)
    configs = [dataclasses.replace(CORRELATED, seed=s, gamma=5.0 + s) for s in (0, 3)]
    together, alone = StackedTrainer(configs, store), [Trainer(c, store) for c in configs]
    for _ in range(5):
        terms = together.step()
        for m, trainer in enumerate(alone):
            assert_equal({k: v[m] for k, v in terms.items()}, trainer.step())
    assert not stackable(configs[0], dataclasses.replace(configs[1], correlate=()))


def test_the_configuration_keeps_the_pairs():
    config = TrainConfig(correlate=["a,b:0.2", "c,d:inf"])
    kept = json.loads(config.to_json())
    assert kept["correlate"] == ["a,b:0.2", "c,d:inf"]
    assert TrainConfig.from_fields(kept) == config
    del kept["correlate"]
    assert TrainConfig.from_fields(kept).correlate == ()
    for wrong in (["a,b"], ["a,a:1"], ["a,b:0"], [""], "a,b:0.2", [3]):
        with pytest.raises(UserError, match="--correlate"):
            TrainConfig(correlate=wrong)


@pytest.fixture
def source(monkeypatch):
    """The name of a grid, as --data takes it."""

    def grid(progress):
        generator = torch.Generator().manual_seed(0)
        rows = torch.randint(0, 256, (60, 512), dtype=torch.uint8, generator=generator)
        return Store("grid", rows, (1, 64, 64), True, ("a", "b", "c"), (3, 4, 5))

    DATA.add(DataSet("some-grid", "a grid", grid))
    # Pages take seconds, and are no subject here.
    monkeypatch.setattr(report, "write_report", lambda run, _: (run / "report.html").touch())
    yield "some-grid"
    DATA.remove("some-grid")


def test_the_command_line(source, tmp_path):
    run = tmp_path / "run"
    words = [*SMALL_OPTIONS, "--steps", "3", "--data", source, "--out", run]
    pairs = ["--correlate", "a,b:0.2", "b,c:0.4"]
    with made(Trainer, lambda trainer: trainer.table) as tables:
        assert command("train", *words, *pairs)[0] == 0
    store = data.load(source)
    expected = ops.alias_table(data.correlated(store, ["a,b:0.2", "b,c:0.4"]))
    assert [t.tolist() for t in tables] == [expected.tolist()]
    assert TrainConfig.from_file(run / "config.json").correlate == ("a,b:0.2", "b,c:0.4")
    # Scores are of the whole grid: the rows that they read are those of any run.
    status, out, _ = command("eval", run, "--protocol", "exhaustive", "--device", "cpu", "--json")
    assert status == 0
    codes, kl = evaluate.encode(fvae.load(run), store, torch.arange(60))
    by_hand = metrics.factor_vae_score(codes, (3, 4, 5), protocol="exhaustive", kl=kl)
    assert json.loads(out)["factor_vae"]["score"] == by_hand.score
    # A continuation has the run's pairs, and no others.
    with made(Trainer, lambda trainer: trainer.table) as tables:
        assert command("train", "--resume", run, "--steps", "5")[0] == 0
    assert [t.tolist() for t in tables] == [expected.tolist()]
    line = refused("train", "--resume", run, "--steps", "9", "--correlate", "a,b:0.3")
    assert "--correlate ('a,b:0.3',): cannot be given with --resume" in line


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("a,colour:0.2", "data set grid has no factor 'colour', expected two of a, b, c"),
        ("a,b", "expected two factors and sigma, as in shape,scale:0.2"),
        ("a,b:-0.1", "sigma is '-0.1', expected a number above 0"),
        ("a,b:weak", "sigma is 'weak', expected a number above 0"),
        ("a,a:0.2", "names a twice, expected two factors"),
    ],
)
def test_what_the_command_line_refuses(pair, message, source, tmp_path):
    run = tmp_path / "run"
    for name in ("train", "study"):
        line = refused(name, "--data", source, "--device", "cpu", "--out", run, "--correlate", pair)
        assert f" --correlate {pair}: " in line
        assert message in line
        assert not run.exists()


def test_a_study_holds_them_for_every_run(source, tmp_path):
    common = {f.name: getattr(SMALL, f.name) for f in dataclasses.fields(TrainConfig)}
    for name in OF_A_RUN:
        del common[name]
    common |= {"data": source, "correlate": PAIRS, "steps": 4}
    config = StudyConfig(
        **common, objectives=("vae", "factor-vae"), gammas=(10.0,), seeds=1,
        protocol="exhaustive", strategy="one-by-one",
    )  # fmt: skip
    words = ["study", "--out", tmp_path, *options(config)]
    with made(Trainer, lambda trainer: trainer.table) as tables:
        assert command(*words)[0] == 0
    assert len(tables) >= 2 and all(table is not None for table in tables)
    for run in (tmp_path / "runs").iterdir():
        assert TrainConfig.from_file(run / "config.json").correlate == PAIRS
    with (tmp_path / "results.csv").open() as file:
        assert all(math.isfinite(float(row["recon"])) for row in csv.DictReader(file))
    others = ["study", "--out", tmp_path, *options(dataclasses.replace(config, correlate=()))]
    assert "correlate" in refused(*others)
