"""A run knows the data that it was trained on, wherever they are now."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from small import SMALL, SMALL_OPTIONS, bits, command, layers, options, refused, run, write_npz

from fvae import data, evaluate, report
from fvae.config import StudyConfig, TrainConfig
from fvae.data import Store
from fvae.errors import UserError
from fvae.study.grid import OF_A_RUN
from fvae.training import loop, run_data, stacked

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = ["--steps", "2", "--precision", "fp32"]


@pytest.fixture
def source(tmp_path, own_cache):
    (tmp_path / "here").mkdir()
    return write_npz(tmp_path / "here" / "set.npz")


@pytest.fixture
def moved(source, tmp_path):
    """A run, and where its data are now."""
    words = ["--data", source, "--out", tmp_path / "run"]
    assert command("train", *SMALL_OPTIONS, *STEPS, *words)[0] == 0
    (tmp_path / "there").mkdir()
    return tmp_path / "run", source.rename(tmp_path / "there" / "other name.npz")


def kept(folder):
    return json.loads((folder / "data.json").read_text())


def test_a_fingerprint_is_of_the_images(tmp_path):
    store = bits(40)
    run(SMALL, store, tmp_path / "a")
    assert kept(tmp_path / "a") == store.fingerprint
    assert store.fingerprint["count"] == 40 and store.fingerprint["image_shape"] == [1, 64, 64]
    same = dataclasses.replace(store, name="other", data=store.data.clone())
    assert same.fingerprint["checksum"] == store.fingerprint["checksum"]
    for row in range(40):
        changed = store.data.clone()
        changed[row, -1] ^= 1
        other = dataclasses.replace(store, data=changed)
        assert other.fingerprint["checksum"] != store.fingerprint["checksum"]
    a, b = layers(100), layers(100)
    swapped = dataclasses.replace(a, factor_sizes=(5, 5, 4), factor_names=("c", "b", "a"))
    assert a.fingerprint["checksum"] != b.fingerprint["checksum"]
    assert swapped.fingerprint["checksum"] == a.fingerprint["checksum"]  # names do not count


def test_of_a_large_set_a_sample_counts(monkeypatch):
    monkeypatch.setattr("fvae.data.store._HASHED_WHOLE", 1000)
    monkeypatch.setattr("fvae.data.store._SAMPLE", 8)
    store, other = bits(40), bits(40)
    again = dataclasses.replace(store, data=store.data.clone())
    assert again.fingerprint == store.fingerprint != other.fingerprint
    for row in (0, 39):
        changed = store.data.clone()
        changed[row] ^= 1
        assert dataclasses.replace(store, data=changed).fingerprint != store.fingerprint


def test_other_data_are_refused_everywhere(tmp_path):
    store = bits(40)
    run(SMALL, store, tmp_path / "a")
    config = TrainConfig.from_file(tmp_path / "a" / "config.json")
    for other in (bits(40), bits(41), Store("p", store.data[:, :256], (1, 16, 16), False)):
        for work in (
            lambda: loop.train(dataclasses.replace(config, steps=20), other, tmp_path / "a"),  # noqa: B023
            lambda: stacked.train([config] * 2, other, [tmp_path / "a"] * 2),  # noqa: B023
            lambda: report.write_report(tmp_path / "a", other),  # noqa: B023
            lambda: report.write_traversals(tmp_path / "a", other),  # noqa: B023
        ):
            with pytest.raises(
                UserError, match="was trained on bits.*and this is.*--data"
            ) as error:
                work()
            assert "\n" not in str(error.value)
    grid = dict(factor_names=("a", "b"), factor_sizes=(5, 8))
    with pytest.raises(UserError, match="was trained on"):
        evaluate.evaluate(tmp_path / "a", dataclasses.replace(bits(40), **grid))


def test_a_run_that_does_not_tell_is_warned_of(tmp_path, capsys):
    store = bits(40)
    run(SMALL, store, tmp_path / "a")
    (tmp_path / "a" / "data.json").unlink()
    report.write_report(tmp_path / "a", store)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "holds no data.json" in said
    config = TrainConfig.from_file(tmp_path / "a" / "config.json")
    loop.train(dataclasses.replace(config, steps=14), store, tmp_path / "a")
    assert capsys.readouterr().err.count("\n") == 1
    assert kept(tmp_path / "a") == store.fingerprint  # from here on it tells
    (tmp_path / "a" / "data.json").write_text("{")
    with pytest.raises(UserError, match="data.json: not a readable fingerprint"):
        report.write_report(tmp_path / "a", store)


def test_data_that_moved(moved, tmp_path):
    folder, there = moved
    for words in (["report", folder], ["traverse", folder], ["eval", folder, "--device", "cpu"]):
        error = refused(*words)
        assert "no such file" in error and "say where by --data" in error
        assert command(*words, "--data", there)[0] == 0
    assert "say where by --data" in refused("train", "--resume", folder, "--steps", "3")
    assert command("train", "--resume", folder, "--steps", "3", "--data", there)[0] == 0
    assert json.loads((folder / "config.json").read_text())["data"] == str(there)
    assert command("train", "--resume", folder, "--steps", "4")[0] == 0  # it knows now
    assert command("report", folder)[0] == 0


def test_other_data_under_the_same_shape(moved, tmp_path):
    folder, there = moved
    images = np.random.default_rng(5).integers(0, 2, (32, 64, 64), dtype=np.uint8)
    wrong = write_npz(tmp_path / "wrong.npz", imgs=images)
    before = (folder / "config.json").read_text()
    for words in (
        ["report", folder],
        ["traverse", folder],
        ["eval", folder, "--device", "cpu"],
        ["train", "--resume", folder, "--steps", "3"],
    ):
        error = refused(*words, "--data", wrong)
        assert (
            f"{folder}: was trained on dsprites (32 images of 1 x 64 x 64 bits, checksum" in error
        )
    assert (folder / "config.json").read_text() == before


def test_labels_may_come_later(tmp_path, own_cache):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 256, (8, 64, 64), np.uint8))
    out = tmp_path / "run"
    words = ["--data", tmp_path / "x.npy", "--out", out]
    assert command("train", *SMALL_OPTIONS, *STEPS, *words)[0] == 0
    assert "no ground-truth factors" in refused("eval", out, "--device", "cpu")
    (tmp_path / "y.csv").write_text("a,b\n" + "".join(f"{i % 2},{i // 3}\n" for i in range(8)))
    store = data.load(tmp_path / "x.npy", factors=str(tmp_path / "y.csv"))
    run_data.check(out, store)
    words = ["--factors", tmp_path / "y.csv", "--steps", "3"]
    assert command("train", "--resume", out, *words)[0] == 0
    assert json.loads((out / "config.json").read_text())["factors"] == str(tmp_path / "y.csv")
    # A full grid puts the images into its order, which a run goes on in.
    (tmp_path / "y.csv").write_text("a,b\n" + "".join(f"{i % 2},{i // 2}\n" for i in range(8)))
    assert "was trained on" in refused("train", "--resume", out, "--steps", "4")


def test_a_study_whose_data_moved(source, tmp_path):
    out = tmp_path / "study"
    config = StudyConfig(
        **{f.name: getattr(SMALL, f.name) for f in dataclasses.fields(SMALL)
           if f.name not in (*OF_A_RUN, "data", "steps")},
        steps=2, objectives=("vae",), seeds=1, protocol="exhaustive", data=str(source),
    )  # fmt: skip
    words = ["study", *options(config)]
    assert command(*words, "--out", out)[0] == 0
    there = source.rename(tmp_path / "there.npz")
    images = np.random.default_rng(5).integers(0, 2, (32, 64, 64), dtype=np.uint8)
    wrong = write_npz(tmp_path / "wrong.npz", imgs=images)
    more = ["--out", out, "--seeds", "2"]
    before = (out / "study.json").read_text()
    assert "was trained on" in refused(*words, *more, "--data", wrong)
    assert (out / "study.json").read_text() == before
    assert command(*words, *more, "--data", there)[0] == 0
    assert len(list((out / "runs").iterdir())) == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("command", ["train", "study", "eval", "resume"])
def test_cuda_where_there_is_none_is_refused_before_any_data_are_read(
    command, tmp_path, own_cache, monkeypatch
):
    monkeypatch.setattr(data, "load", lambda *_, **__: pytest.fail("data were loaded"))
    words = {
        "train": ["train", "--out", tmp_path / "a"],
        "study": ["study", "--out", tmp_path / "a"],
        "eval": ["eval", tmp_path / "run"],
        "resume": ["train", "--resume", tmp_path / "run"],
    }[command]
    if command in ("eval", "resume"):
        loop.create_run(SMALL, tmp_path / "run")
    assert "no CUDA device" in refused(*words, "--device", "cuda")
    assert not (tmp_path / "a").exists() and not own_cache.exists()
