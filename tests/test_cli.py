import itertools
import json
import re
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from test_train import SMALL_OPTIONS

from fvae import cli


def _fvae(capsys, *arguments):
    """Run the command; return (exit status, standard output, standard error)."""
    with pytest.raises(SystemExit) as stop:
        cli.main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "a"
    with pytest.raises(SystemExit) as stop:
        cli.main(
            ["train", *SMALL_OPTIONS, "--steps", "20", "--log-every", "5", "--out", str(folder)]
        )
    assert stop.value.code == 0
    return folder


def test_a_run_folder_holds_what_it_says(run):
    names = {path.name for path in run.iterdir()}
    assert {"config.json", "log.jsonl", "checkpoint.safetensors", "report.html"} <= names


def test_eval_report_traverse(run, capsys):
    status, out, _ = _fvae(capsys, "eval", run, "--device", "cpu", "--json")
    assert status == 0
    result = json.loads(out)
    for metric in ("factor_vae", "beta_vae", "mig", "sap", "dci"):
        assert 0 <= result[metric]["score"] <= 1
    assert (result["protocol"], result["seed"]) == ("kim2018", 0)
    assert np.array(result["factor_vae"]["votes"]).shape == (4, 5)
    assert result["factor_vae"]["protocol"]["votes"] == 800

    status, out, _ = _fvae(capsys, "eval", run, "--device", "cpu", "--protocol", "kim2018")
    assert status == 0
    assert "factor_vae" in out
    assert "posX" in out

    assert _fvae(capsys, "report", run)[0] == 0
    page = (run / "report.html").read_text()
    for title in ("Losses", "Scores", "Votes", "Reconstructions", "traversals", "Configuration"):
        assert re.search(f"<h2>[^<]*{title}", page)
    # Self-contained: every picture is inside, nothing is fetched.
    assert "src=" in page
    assert re.findall(r'(?:src|href)="(?!data:image/)', page) == []

    assert _fvae(capsys, "traverse", run, "--out", run / "pictures")[0] == 0
    with Image.open(run / "pictures" / "traversal.gif") as gif:
        assert gif.n_frames >= 10
    with Image.open(run / "pictures" / "traversal.png") as png:
        assert png.width > 300


def test_exhaustive_reads_every_image(run, capsys):
    arguments = ("--protocol", "exhaustive", "--json", "--device", "cpu")
    status, out, _ = _fvae(capsys, "eval", run, *arguments)
    assert status == 0
    result = json.loads(out)
    assert result["images_encoded"] == 737_280
    # Twenty steps leave every dimension at the prior: pruned, and said so.
    assert result["factor_vae"]["score"] == 0
    assert "no active dimension" in result["factor_vae"]["note"]
    assert result["beta_vae"]["score"] is None


def test_resume_of_a_finished_run_does_nothing(run, capsys):
    before = (run / "checkpoint.safetensors").read_bytes()
    assert _fvae(capsys, "train", "--resume", run)[0] == 0
    assert (run / "checkpoint.safetensors").read_bytes() == before


def test_doctor_and_data(capsys):
    status, out, _ = _fvae(capsys, "doctor")
    assert status == 0
    for thing in ("torch", "triton", "cuda", "compiler", "cache", "metric_votes", "permute_dims"):
        assert thing in out
    status, out, _ = _fvae(capsys, "data", "dsprites")
    assert status == 0
    assert "737,280" in out
    assert "posX" in out


def test_help_documents_every_option_with_its_default(capsys):
    import dataclasses

    from fvae.config import TrainConfig

    status, out, _ = _fvae(capsys, "train", "--help")
    assert status == 0
    for field in dataclasses.fields(TrainConfig):
        prefix = "--no-" if field.default is True else "--"
        assert prefix + field.name.replace("_", "-") in out
    # Lines are broken where they are full.
    assert "default: factor-vae" in re.sub(r"[\s│]+", " ", out)
    assert out.count("default:") >= len(dataclasses.fields(TrainConfig))


def test_checkpoints_by_time_or_by_steps(run, capsys, tmp_path):
    kept = lambda: json.loads((tmp_path / "a/config.json").read_text())["checkpoint_every"]  # noqa: E731
    options = [*SMALL_OPTIONS, "--steps", "1", "--out", tmp_path / "a"]
    assert json.loads((run / "config.json").read_text())["checkpoint_every"] is None
    assert _fvae(capsys, "train", *options, "--checkpoint-every", "7")[0] == 0
    assert kept() == 7
    resume = ["train", "--resume", tmp_path / "a"]
    assert _fvae(capsys, *resume)[0] == 0
    assert kept() == 7
    assert _fvae(capsys, *resume, "--checkpoint-every", "None")[0] == 0
    assert kept() is None
    status, _, error = _fvae(capsys, *resume, "--checkpoint-every", "0")
    assert status == 2
    assert "--checkpoint-every: got 0, expected more than 0" in error


def test_the_module_and_the_command_are_one():
    done = subprocess.run(
        [sys.executable, "-m", "fvae", "--help"], check=True, capture_output=True, text=True
    )
    for name in ("train", "eval", "report", "traverse", "study", "data", "doctor"):
        assert name in done.stdout


def _bad(*arguments, message):
    return pytest.param(arguments, message, id=" ".join(arguments)[:40] or "nothing")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        _bad("train", "--objective", "gan", message="gan.*factor-vae"),
        _bad("train", "--colour", "red", message="--colour"),
        _bad("train", "--gamma", "-1", message="--gamma: got -1"),
        _bad("train", "--gamma", "nan", message="--gamma: got nan"),
        _bad("train", "--gamma", "many", message="--gamma.*many"),
        _bad("train", "--batch-size", "0", message="--batch-size: got 0"),
        _bad("train", "--steps", "0", message="--steps: got 0"),
        _bad("train", "--conv-channels", "4", "4", "4", "0", message="--conv-channels"),
        _bad("train", "--device", "cuda", message="no CUDA device"),
        _bad("train", "--backend", "fast", message="--backend fast: expected one of reference"),
        _bad("train", "--data", "chairs", message="chairs"),
        _bad("train", "--data", "nowhere/dsprites.npz", message="nowhere/dsprites.npz"),
        _bad("train", "--data", "nowhere/3dshapes.h5", message="nowhere/3dshapes.h5"),
        _bad("train", "--resume", "nowhere", message="nowhere/config.json: no such file"),
        _bad("eval", "nowhere", message="nowhere/config.json: no such file"),
        _bad("report", "nowhere", message="nowhere/config.json: no such file"),
        _bad("traverse", "nowhere", message="nowhere/config.json: no such file"),
        _bad("dance", message="dance"),
        _bad("eval", message="RUN|run"),
        _bad("train", *SMALL_OPTIONS, "--steps", "2", "--out", "/proc/nowhere/a", message="/proc"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status, out, err = _fvae(capsys, *arguments)
    assert status == 2
    assert re.search(message, err), err
    assert err.count("\n") == 1
    assert "Traceback" not in out + err
    assert list(tmp_path.rglob("*")) == []


def test_bad_input_about_a_run(run, capsys, tmp_path):
    before = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    cases = [
        (("train", "--out", run), "already holds a run"),
        (("train", "--resume", run, "--gamma", "3"), "--gamma 3.0: cannot be given with --resume"),
        (("train", "--resume", run, "--steps", "3"), "it can only be raised"),
        (("eval", run, "--protocol", "mine"), "kim2018, locatello2019, exhaustive"),
    ]
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    cases.append((("train", "--out", other), "not empty"))
    for arguments, message in cases:
        status, _, err = _fvae(capsys, *arguments)
        assert status == 2
        assert message in err
        assert err.count("\n") == 1
    assert before == {path: path.read_bytes() for path in run.iterdir() if path.is_file()}


def test_a_damaged_run_is_named(run, capsys, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text((run / "config.json").read_text())
    (broken / "checkpoint.safetensors").write_bytes(
        (run / "checkpoint.safetensors").read_bytes()[:1000]
    )
    for command in ("eval", "report", "traverse"):
        status, _, err = _fvae(capsys, command, broken)
        assert (status, err.count("\n")) == (2, 1)
        assert "cut short or damaged" in err
    status, _, err = _fvae(capsys, "train", "--resume", broken)
    assert (status, err.count("\n")) == (2, 1)
    (broken / "config.json").write_text("{")
    status, _, err = _fvae(capsys, "eval", broken)
    assert (status, err.count("\n")) == (2, 1)
    assert "config.json: not a readable configuration" in err


def test_a_full_disk_is_one_line(capsys, tmp_path, monkeypatch):
    import os

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    out = tmp_path / "a"
    status, _, err = _fvae(capsys, "train", *SMALL_OPTIONS, "--steps", "2", "--out", out)
    assert (status, err.count("\n")) == (2, 1)
    assert re.search(r"a/config.json: No space left on device; free some space", err)


def _published(kind, folder):
    """A small file with the published layout: every factor has two values."""
    rng = np.random.default_rng(0)
    if kind == "npz":
        classes = np.array([(0, *c) for c in itertools.product(range(2), repeat=5)])
        path = folder / "dsprites.npz"
        images = rng.integers(0, 2, (32, 64, 64), dtype=np.uint8)
        np.savez_compressed(path, imgs=images, latents_classes=classes, latents_values=classes)
        return path
    path = folder / "3dshapes.h5"
    with h5py.File(path, "w") as file:
        file["images"] = rng.integers(0, 256, (64, 64, 64, 3), dtype=np.uint8)
        file["labels"] = np.array(list(itertools.product((0.0, 0.5), repeat=6)))
    return path


@pytest.mark.parametrize("kind", ["npz", "h5"])
def test_a_published_file_from_training_to_the_page(kind, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("FVAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    name = _published(kind, tmp_path).name
    options = [*SMALL_OPTIONS, "--steps", "3", "--log-every", "1", "--out", "a"]
    assert _fvae(capsys, "train", "--data", name, *options)[0] == 0
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    status, out, _ = _fvae(capsys, "eval", "../a", "--json", "--device", "cpu")
    assert status == 0
    votes = np.array(json.loads(out)["factor_vae"]["votes"])
    assert votes.shape == (4, 5 if kind == "npz" else 6)
    assert _fvae(capsys, "report", "../a")[0] == 0
    assert _fvae(capsys, "traverse", "../a")[0] == 0
    with Image.open(tmp_path / "a" / "traversal.gif") as gif:
        assert gif.convert("RGB").size[0] > 64
