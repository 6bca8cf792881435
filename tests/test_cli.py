import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from shared import full_disk
from small import SMALL_OPTIONS, command, refused, write_npz, write_shapes3d

from fvae import evaluate


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "a"
    steps = ["--steps", "20", "--log-every", "5"]
    assert command("train", *SMALL_OPTIONS, *steps, "--out", folder)[0] == 0
    return folder


def test_a_run_folder_holds_what_it_says(run):
    names = {path.name for path in run.iterdir()}
    assert {"config.json", "log.jsonl", "checkpoint.safetensors", "report.html"} <= names


@pytest.fixture
def few(own_cache, tmp_path):
    """A run on 192 images: how long 737,280 take is not what the command's tests are about."""
    source = write_npz(tmp_path / "dsprites.npz", (2, 2, 3, 4, 4))
    words = ["--data", source, *SMALL_OPTIONS, "--steps", "20", "--log-every", "5"]
    assert command("train", *words, "--out", tmp_path / "few")[0] == 0
    return tmp_path / "few"


def test_eval_report_traverse(few, monkeypatch):
    # Both scorings are of the same codes, which take the longest.
    encode, codes = evaluate.encode, []
    monkeypatch.setattr(evaluate, "encode", lambda *a: codes or codes.extend(encode(*a)) or codes)
    status, out, _ = command("eval", few, "--device", "cpu", "--json")
    assert status == 0
    result = json.loads(out)
    for metric in ("factor_vae", "beta_vae", "mig", "sap", "dci"):
        assert 0 <= result[metric]["score"] <= 1
    assert (result["protocol"], result["seed"]) == ("kim2018", 0)
    assert np.array(result["factor_vae"]["votes"]).shape == (4, 5)
    assert result["factor_vae"]["protocol"]["votes"] == 800

    status, out, _ = command("eval", few, "--device", "cpu", "--protocol", "kim2018")
    assert status == 0
    assert "factor_vae" in out
    assert "posX" in out

    assert command("report", few)[0] == 0
    page = (few / "report.html").read_text()
    for title in ("Losses", "Scores", "Votes", "Reconstructions", "traversals", "Configuration"):
        assert re.search(f"<h2>[^<]*{title}", page)
    # Self-contained: every picture is inside, nothing is fetched.
    assert "src=" in page
    assert re.findall(r'(?:src|href)="(?!data:image/)', page) == []

    assert command("traverse", few, "--out", few / "pictures")[0] == 0
    with Image.open(few / "pictures" / "traversal.gif") as gif:
        assert gif.n_frames >= 10
    with Image.open(few / "pictures" / "traversal.png") as png:
        assert png.width > 300


def test_exhaustive_reads_every_image(few):
    arguments = ("--protocol", "exhaustive", "--json", "--device", "cpu")
    status, out, _ = command("eval", few, *arguments)
    assert status == 0
    result = json.loads(out)
    assert result["images_encoded"] == 192
    # Twenty steps leave every dimension at the prior: pruned, and said so.
    assert result["factor_vae"]["score"] == 0
    assert "no active dimension" in result["factor_vae"]["note"]
    assert result["beta_vae"]["score"] is None


def test_resume_of_a_finished_run_does_nothing(run):
    before = (run / "checkpoint.safetensors").read_bytes()
    assert command("train", "--resume", run)[0] == 0
    assert (run / "checkpoint.safetensors").read_bytes() == before


def test_doctor_and_data():
    status, out, _ = command("doctor")
    assert status == 0
    for thing in ("torch", "triton", "cuda", "compiler", "cache", "metric_votes", "permute_dims"):
        assert thing in out
    status, out, _ = command("data", "dsprites")
    assert status == 0
    assert "737,280" in out
    assert "posX" in out


def test_help_documents_every_option_with_its_default():
    import dataclasses

    from fvae.config import TrainConfig

    status, out, _ = command("train", "--help")
    assert status == 0
    for field in dataclasses.fields(TrainConfig):
        prefix = "--no-" if field.default is True else "--"
        assert prefix + field.name.replace("_", "-") in out
    # Lines are broken where they are full.
    assert "default: factor-vae" in re.sub(r"[\s│]+", " ", out)
    assert out.count("default:") >= len(dataclasses.fields(TrainConfig))


def test_checkpoints_by_time_or_by_steps(run, tmp_path):
    kept = lambda: json.loads((tmp_path / "a/config.json").read_text())["checkpoint_every"]  # noqa: E731
    options = [*SMALL_OPTIONS, "--steps", "1", "--out", tmp_path / "a"]
    assert json.loads((run / "config.json").read_text())["checkpoint_every"] is None
    assert command("train", *options, "--checkpoint-every", "7")[0] == 0
    assert kept() == 7
    resume = ["train", "--resume", tmp_path / "a"]
    assert command(*resume)[0] == 0
    assert kept() == 7
    assert command(*resume, "--checkpoint-every", "None")[0] == 0
    assert kept() is None
    error = refused(*resume, "--checkpoint-every", "0")
    assert "--checkpoint-every: got 0, expected more than 0" in error


def test_the_module_and_the_command_are_one():
    done = subprocess.run(
        [sys.executable, "-m", "fvae", "--help"], check=True, capture_output=True, text=True
    )
    for name in ("train", "eval", "report", "traverse", "study", "data", "doctor"):
        assert name in done.stdout


def test_a_command_that_scores_nothing_loads_no_library_of_scores():
    code = (
        "import sys; from fvae import cli; sys.argv = ['fvae', 'train', '--help']\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "print({'sklearn', 'scipy.stats', 'torch._dynamo', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "set()"


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
def test_bad_input_is_one_line_and_status_2(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    err = refused(*arguments)
    assert re.search(message, err), err
    assert list(tmp_path.rglob("*")) == []


def test_bad_input_about_a_run(run, tmp_path):
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
        assert message in refused(*arguments)
    assert before == {path: path.read_bytes() for path in run.iterdir() if path.is_file()}


def test_a_damaged_run_is_named(run, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text((run / "config.json").read_text())
    (broken / "checkpoint.safetensors").write_bytes(
        (run / "checkpoint.safetensors").read_bytes()[:1000]
    )
    for name in ("eval", "report", "traverse"):
        assert "cut short or damaged" in refused(name, broken)
    refused("train", "--resume", broken)
    (broken / "config.json").write_text("{")
    assert "config.json: not a readable configuration" in refused("eval", broken)


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", full_disk)
    err = refused("train", *SMALL_OPTIONS, "--steps", "2", "--out", tmp_path / "a")
    assert re.search(r"a/config.json: No space left on device; free some space", err)


@pytest.mark.parametrize("kind", ["npz", "h5"])
def test_a_published_file_from_training_to_the_page(kind, tmp_path, monkeypatch, own_cache):
    monkeypatch.chdir(tmp_path)
    write, name = {
        "npz": (write_npz, "dsprites.npz"), "h5": (write_shapes3d, "3dshapes.h5"),
    }[kind]  # fmt: skip
    write(tmp_path / name)
    options = [*SMALL_OPTIONS, "--steps", "3", "--log-every", "1", "--out", "a"]
    assert command("train", "--data", name, *options)[0] == 0
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    status, out, _ = command("eval", "../a", "--json", "--device", "cpu")
    assert status == 0
    votes = np.array(json.loads(out)["factor_vae"]["votes"])
    assert votes.shape == (4, 5 if kind == "npz" else 6)
    assert command("report", "../a")[0] == 0
    assert command("traverse", "../a")[0] == 0
    with Image.open(tmp_path / "a" / "traversal.gif") as gif:
        assert gif.convert("RGB").size[0] > 64
