"""Data sets with labels instead of a grid: scored, shown and compared as grids are."""

import csv
import json
import re

import numpy as np
import pytest
import torch
from small import SMALL_OPTIONS, bits, command, refused

import fvae
from fvae import drop_in, evaluate, metrics
from fvae.data import Store
from fvae.errors import UserError
from fvae.registry import DATA, DataSet

IMAGES = 240


def labelled(**columns):
    """A store of random images with these labels."""
    labels = torch.stack([torch.as_tensor(c) for c in columns.values()], dim=1)
    labels = labels.double() if labels.is_floating_point() else labels.long()
    data = bits(IMAGES, torch.Generator().manual_seed(0)).data
    return Store("labelled", data, (1, 64, 64), True, tuple(columns), labels=labels)


def columns():
    rng = np.random.default_rng(0)
    return {name: rng.permutation(IMAGES) % n for name, n in (("kind", 3), ("angle", 40))}


@pytest.fixture
def source(request, monkeypatch):
    """The name of a data set with labels of the test's parameter, as --data takes it."""
    DATA.add(DataSet("labelled", "with labels", lambda progress: labelled(**request.param)))
    yield "labelled"
    DATA.remove("labelled")


CLASSES = columns() | {"colour": np.zeros(IMAGES, int), "row": np.arange(IMAGES)}
REAL = columns() | {"size": np.random.default_rng(1).random(IMAGES)}


def train(source, folder):
    run = folder / "run"
    steps = ["--steps", "2", "--data", source, "--out", run]
    assert command("train", *SMALL_OPTIONS, *steps)[0] == 0
    return run


@pytest.mark.parametrize("source", [CLASSES], indirect=True, ids=["classes"])
def test_a_set_of_classes(source, tmp_path):
    run = train(source, tmp_path)
    status, out, _ = command("eval", run, "--device", "cpu", "--json")
    assert status == 0
    result = json.loads(out)
    assert result == json.loads((run / "eval-kim2018.json").read_text())
    assert all(0 <= result[name]["score"] <= 1 for name, m in metrics.METRICS.items() if m.usual)
    assert result["factors"] == [{"name": "kind", "values": 3}, {"name": "angle", "values": 40}]
    why = {"colour": "has one value", "row": "has a value for each image or so"}
    assert result["factors_left_out"] == why
    assert result["factor_vae"]["factor_names"] == ["kind", "angle"]
    assert result["mig"]["ceilings"][1] < np.log(20) / np.log(40) + 0.01
    assert result["mig"]["protocol"]["bins"] == 20
    # The same codes by hand.
    store, model = labelled(**CLASSES), fvae.load(run)
    codes, kl = evaluate.encode(model, store, torch.arange(IMAGES))
    by_hand = metrics.factor_vae_score(codes, factors=store.labels[:, :2], kl=kl)
    assert by_hand.votes.tolist() == result["factor_vae"]["votes"]

    status, out, _ = command("eval", run, "--device", "cpu", "--bins", "50")
    assert status == 0
    more = json.loads((run / "eval-kim2018-bins50.json").read_text())
    assert more["bins"] == more["mig"]["protocol"]["bins"] == 50
    assert more["protocol"] == "kim2018, 50 bins"
    assert more["mig"]["ceilings"][1] > result["mig"]["ceilings"][1]
    assert result == json.loads((run / "eval-kim2018.json").read_text())
    row = re.search(r"│ mig +│ +(\d\.\d{3}) │ exact +│ +(\d\.\d{3}) │", out)
    assert row.groups() == (f"{more['mig']['score']:.3f}", f"{more['mig']['ceiling']:.3f}")
    assert "protocol kim2018, 50 bins, seed 0" in out and "angle" in out
    assert "left out: colour has one value, row has a value for each image" in out
    assert "the factors themselves" in out

    assert command("report", run)[0] == 0
    page = (run / "report.html").read_text()
    for name, one in (("kim2018", result), ("kim2018, 50 bins", more)):
        cells = f"<td>{one['mig']['score']:.3f}&nbsp;/&nbsp;{one['mig']['ceiling']:.3f}</td>"
        assert f'<th scope="col">{name}</th>' in page
        assert re.search(f'<th scope="row">mig</th>[^\n]*{cells}', page)
    assert "Votes of the FactorVAE metric, kim2018" in page

    line = refused("eval", run, "--protocol", "exhaustive", "--bins", "50", "--device", "cpu")
    assert "--bins 50" in line
    assert "bins: got 1, expected" in refused("eval", run, "--bins", "1", "--device", "cpu")


@pytest.mark.parametrize("source", [REAL], indirect=True, ids=["real"])
def test_a_set_with_a_real_value(source, tmp_path):
    run = train(source, tmp_path)
    status, out, _ = command("eval", run, "--device", "cpu")
    assert status == 0
    result = json.loads((run / "eval-kim2018.json").read_text())
    for name in ("factor_vae", "beta_vae"):
        assert result[name]["score"] is None
        assert result[name]["note"].startswith("factors: factor 2 (size) is real-valued")
    assert result["factor_vae"]["votes"] == []
    assert all(0 <= result[name]["score"] <= 1 for name in ("mig", "sap", "dci"))
    assert result["factors"][2] == {"name": "size", "values": None}
    assert "real-valued" in " ".join(out.split())
    assert command("report", run)[0] == 0
    page = (run / "report.html").read_text()
    assert "<td>&ndash;<br><small>factors: factor 2 (size) is real-valued" in page
    line = refused("eval", run, "--device", "cpu", "--protocol", "exhaustive")
    assert "factor 2 (size) is real-valued" in line and "np.digitize" in line

    study = ["--data", source, "--out", tmp_path / "study", "--steps", "2", "--seeds", "1"]
    study += ["--objectives", "vae", "--strategy", "one-by-one", *SMALL_OPTIONS]
    assert "real-valued" in refused("study", *study, "--protocol", "exhaustive")
    assert not (tmp_path / "study").exists()
    assert command("study", *study)[0] == 0
    (row,) = csv.DictReader((tmp_path / "study/results.csv").open())
    assert row["status"] == "done" and row["factor_vae"] == "" and 0 <= float(row["mig"]) <= 1
    page = (tmp_path / "study/study.html").read_text()
    assert "of which the FactorVAE metric cannot be taken" in page
    assert re.search(r"A perfect code scores mig \d\.\d{3}\.", page)


def test_a_set_without_a_factor_that_varies(tmp_path):
    store = labelled(colour=np.ones(IMAGES, int), row=np.arange(IMAGES))
    why = "labelled: no label is a factor that can be scored: colour has one value; row has a"
    with pytest.raises(UserError, match=why):
        evaluate.evaluate(tmp_path, store)


def test_a_grid_says_its_ceiling_too(tmp_path):
    from fvae.report.terminal import ceiling

    result = {"mig": {"ceiling": 0.896}, "dci": {"ceiling": 1.0}, "old": {}}
    assert [ceiling(result, name) for name in (*result, "none")] == ["0.896", "", "", ""]


@pytest.mark.parametrize("metric", [n for n, m in metrics.METRICS.items() if not m.posterior])
def test_any_loop_with_labels(metric):
    labels = np.stack(list(columns().values()), axis=1)
    images = np.random.default_rng(0).random((IMAGES, 5)).astype(np.float32)
    images[:, :2] += labels
    seen = []

    def encode(x):
        seen.append(len(x))
        return torch.as_tensor(x)[:, :3]

    got = drop_in.score(encode, images, metric=metric, factors=labels)
    want = metrics.METRICS[metric].score(images[:, :3], metrics.Factors.of(labels), "kim2018", 0,
                                         None)  # fmt: skip
    assert got.score == want.score and max(seen) <= 128
    with pytest.raises(UserError, match=r"factors: got shape \[239, 2\], expected \[240, K\]"):
        drop_in.score(encode, images, metric=metric, factors=labels[1:])
    store = labelled(**columns())
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4096, 3))
    got = drop_in.score(model, store, metric=metric)
    assert got.score == drop_in.score(model, store, metric=metric, factors=store.labels).score
