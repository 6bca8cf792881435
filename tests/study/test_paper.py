"""The paper's study at its smallest: presets, page, what is kept of it, and going on from there."""

import csv
import json
import re
import shutil

import pytest
from small import command, refused, write_npz

from bench import paper as bench_paper
from bench import rows
from bench.figures import read
from fvae import report
from fvae.config import RECIPES, StudyConfig
from fvae.errors import UserError
from fvae.study.grid import expand, own_of
from fvae.study.kept import carry
from fvae.study.presets import PRESETS, SCALES, SETS, paper_preset
from fvae.study.published import PUBLISHED
from fvae.training import checkpoint


@pytest.fixture(scope="module", autouse=True)
def _without_reports(one_thread, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FVAE_CACHE", str(tmp_path_factory.mktemp("cache")))
        # A run's own page takes a second, and is tested elsewhere.
        patch.setattr(report, "write_report", lambda run, _: (run / "report.html").touch())
        yield


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """The command, on 32 random images."""
    source = write_npz(tmp_path_factory.mktemp("data") / "dsprites.npz")
    return [
        "paper", "--scale", "smoke", "--data", source, "--steps", 4, "--batch-size", 3,
        "--own", "infowgan-gp:steps=2,log_every=1", "--log-every", 2, "--betas", 4, "--precision",
        "fp32", "--latent-dim", 3,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def made(words, tmp_path_factory):
    """A finished study in a folder whose name is markup, and what the command printed."""
    out = tmp_path_factory.mktemp("paper") / "<b>&s"
    status, said, errors = command(*words, "--out", out)
    assert status == 0, errors
    assert said.split() == [str(out / "study.html"), str(out / "paper.html")]
    return out, errors


def _copy(made, to):
    shutil.copytree(made[0], to)
    return to


def _page(folder):
    text = (folder / "paper.html").read_text()
    assert text.rstrip().endswith("</html>")
    return text


def _statuses(folder):
    with (folder / "results.csv").open() as file:
        return {row["run"]: row["status"] for row in csv.DictReader(file)}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_grid_of_runs(name):
    runs = expand(StudyConfig(**PRESETS[name]))
    assert len({run.to_json() for run in runs.values()}) == len(runs) > 1


def test_what_the_scales_are():
    cpu = expand(StudyConfig(**PRESETS["paper-2d-shapes-cpu"]))
    assert len(cpu) == 3 * (3 + 3 + 1)
    assert {run.gamma for run in cpu.values() if run.objective == "factor-vae"} == {10, 20, 35}
    of = {run.objective: run for run in cpu.values()}
    assert of["factor-vae"].steps == of["beta-vae"].steps == 12_000
    assert of["infowgan-gp"].steps < 2_000
    assert of["factor-vae"].warmup_steps == RECIPES["fast"]["warmup_steps"] == 4000
    for name, steps, units in (("2d-shapes", 300_000, 128), ("3d-shapes", 500_000, 256)):
        full = StudyConfig(**PRESETS[paper_preset(name, "full")])
        assert (full.steps, full.seeds, full.hidden_units) == (steps, 10, units)
        assert not full.own
    assert {35.0, 40.0} <= set(StudyConfig(**PRESETS["paper-2d-shapes-full"]).gammas)
    assert all(PUBLISHED[name] for name in SETS)
    assert SCALES == ("smoke", "cpu", "full")


def test_settings_of_one_objective_alone():
    config = StudyConfig(own=("vae:steps=7,learning_rate=1e-5", "vae:graph=false"), seeds=1)
    assert own_of(config, "vae") == {"steps": 7, "learning_rate": 1e-5, "graph": False}
    assert own_of(config, "factor-vae") == {}
    for wrong in ("vae", "vae:", "vae:steps", "vae:steps=", ":steps=1", "vae:steps=1,steps=2",
                  "nothing:steps=1", "vae:nothing=1", "vae:seed=1", "vae:data=x", "vae:steps=a",
                  "vae:steps=1.5", "factor-vae:steps=0"):  # fmt: skip
        with pytest.raises(UserError):
            expand(StudyConfig(own=(wrong,)))


def test_runs_go_seed_by_seed(made):
    done = re.findall(r"(\S+)-seed(\d): done", made[1])
    settings = ["factor-vae-gamma10", "factor-vae-gamma35", "beta-vae-beta4", "infowgan-gp"]
    assert done == [(setting, seed) for seed in "01" for setting in settings]


def test_the_page_has_the_papers_figures_and_stands_alone(made):
    folder, _ = made
    text = _page(folder)
    for part in (
        "Reconstruction error against FactorVAE score", "Score against weight",
        "Total correlation over training", "Each objective at its best", "The best model of"
        " factor-vae", "The best model of beta-vae", "The best model of infowgan-gp", "Votes",
        "Ours beside the published numbers", "Made with", "Settings",
    ):  # fmt: skip
        assert part in text
    assert "nothing about the objectives" in text  # a smoke
    assert "InfoGAN-CR&#x27;s repository, Table 1" in text and "from memory" in text
    assert "Runs that are missing" not in text and "8 of 8 runs finished" in text
    assert "&lt;b&gt;&amp;s" in text and "<b>&s" not in text
    assert set(re.findall(r'(?:src|href)="([^",]*)', text)) == {
        "study.html", "data:image/png;base64",
    }  # fmt: skip
    objectives = ("factor-vae", "beta-vae", "infowgan-gp")
    figures = {path.stem for path in (folder / "figures").glob("*.png")}
    assert figures == {"trade-off", "weights", "tc", *(f"votes-{name}" for name in objectives)}
    assert len(list(folder.glob("runs/*/traversal.png"))) == 3
    kept = json.loads((folder / "study.json").read_text())
    assert kept["preset"] == "paper-2d-shapes-smoke"
    assert {"commit", "torch", "device"} <= kept["made"][0].keys()


def test_again_nothing_is_trained(made, words, tmp_path):
    folder = _copy(made, tmp_path / "s")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("checkpoint.safetensors")}
    status, _, errors = command(*words, "--out", folder)
    assert (status, "nothing to do" in errors) == (0, True)
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_what_is_missing_is_said(made, words, tmp_path):
    folder = _copy(made, tmp_path / "s")
    failed, gone = folder / "runs/beta-vae-beta4-seed0", folder / "runs/infowgan-gp-seed1"
    (failed / "failed.json").write_text(json.dumps({"message": "not <finite>"}))
    command(*words, "--out", folder)
    text = _page(folder)
    assert "1 of 8 runs are missing</b>, 1 of them failed" in text
    assert "not &lt;finite&gt;" in text
    shutil.rmtree(gone)
    carry(folder, tmp_path / "kept")  # draws the page as it is
    text = _page(folder)
    assert "2 of 8 runs are missing" in text and "unfinished" in text


def test_without_any_run_the_page_says_so(made, tmp_path):
    folder = _copy(made, tmp_path / "s")
    shutil.rmtree(folder / "runs")
    assert carry(folder, tmp_path / "kept") == []
    text = _page(folder)
    assert "No run is finished and scored yet" in text and "8 of 8 runs are missing" in text


def test_a_study_goes_on_from_what_is_kept(made, words, tmp_path, monkeypatch, capsys):
    kept, again = tmp_path / "kept", tmp_path / "again"
    partial = _copy(made, tmp_path / "partial")
    missing = "factor-vae-gamma35-seed1"
    shutil.rmtree(partial / "runs" / missing)

    def call(what, folder):
        monkeypatch.setattr("sys.argv", ["paper", what, str(folder), "--at", str(kept)])
        bench_paper.main()
        return capsys.readouterr().out.split()

    assert len(call("keep", partial)) == 7
    assert call("keep", partial) == []
    record = read(kept / bench_paper.RECORD)
    found = record["numbers"]
    assert (found["runs"], found["steps"], found["protocol"]) == (8, 4, "kim2018")
    assert sum(len(one["scores"]) for one in found["settings"].values()) == 7
    assert {one["setting"] for one in found["compared"]} == found["settings"].keys()
    assert len(rows.paper(record)) == 2 + len(found["settings"])
    said, done = rows.claim(record)
    assert all(name in said for name in ("factor-vae", "beta-vae"))
    assert done.startswith("7 of 8 runs, of 4 steps")
    assert {path.suffix for path in kept.rglob("*.*")} == {".json", ".jsonl", ".csv", ".png"}
    assert all(path.stat().st_size < 200_000 for path in kept.rglob("*.*"))
    for name in ("results.csv", "figures/trade-off.png"):
        assert (kept / name).read_bytes() == (partial / name).read_bytes()
    assert len(call("start", again)) == 7
    status, _, errors = command(*words, "--out", again)
    assert status == 0
    assert re.findall(r"(\S+): done", errors) == [missing]
    assert set(_statuses(again).values()) == {"done"}
    assert _page(again).count("checkpoint is gone") == 0
    # A run that was trained twice is the same: only its checkpoint knows.
    assert _statuses(again) == _statuses(made[0])
    assert call("keep", again) == [missing]
    assert {path.name for path in (again / "runs").glob(f"*/{checkpoint.NAME}")} == {
        checkpoint.NAME
    }


def test_more_steps_train_kept_runs_anew(made, words, tmp_path):
    kept = tmp_path / "kept"
    carry(made[0], kept)
    run = kept / "runs/beta-vae-beta4-seed0"
    assert checkpoint.state_of(run).step == 4
    more = [6 if one == 4 and words[i - 1] == "--steps" else one for i, one in enumerate(words)]
    status, _, errors = command(*more, "--out", kept)
    assert status == 0, errors
    assert checkpoint.state_of(run).step == 6 and not (run / checkpoint.KEPT).exists()


def test_what_is_kept_and_damaged_is_made_again(made, words, tmp_path):
    kept = tmp_path / "kept"
    carry(made[0], kept)
    (kept / "runs/beta-vae-beta4-seed0" / checkpoint.KEPT).write_text("{")
    status, _, errors = command(*words, "--out", kept)
    assert status == 0
    assert re.findall(r"(\S+): done", errors) == ["beta-vae-beta4-seed0"]


def test_bad_input_is_refused_in_a_line(made, words, tmp_path, monkeypatch, capsys):
    assert "'tiny'" in refused("paper", "--scale", "tiny")
    assert "'4d-shapes'" in refused("paper", "--set", "4d-shapes")
    assert "given twice" in refused("paper", "--scale", "smoke", "--scale", "cpu")
    assert "--own vae" in refused(*words, "--own", "vae", "--out", tmp_path / "x")
    assert not (tmp_path / "x").exists()
    assert "was made with 3" in refused("paper", "--out", made[0])  # of other settings
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").touch()
    assert "holds no study" in refused(*words, "--out", tmp_path / "other")
    assert (tmp_path / "other" / "mine.txt").exists()
    with pytest.raises(UserError, match="holds no study"):
        carry(tmp_path / "nowhere", tmp_path / "kept")
    monkeypatch.setattr("sys.argv", ["paper", "start", "x", "--at", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit) as stop:
        bench_paper.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
