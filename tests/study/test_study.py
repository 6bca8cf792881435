import csv
import dataclasses
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shared import assert_equal
from small import SMALL, bits, command, made, options, refused, tensors, write_npz
from torture.samples import begin, until

from fvae import data, report
from fvae.config import StudyConfig, TrainConfig
from fvae.errors import UserError
from fvae.study import plan as study_plan
from fvae.study import study
from fvae.study import work as study_work
from fvae.study.grid import OF_A_RUN, expand, setting_of
from fvae.study.work import Stop, steps_done
from fvae.training import loop
from fvae.training.trainer import Trainer

_WRITE_REPORT = report.write_report
_COMMON = {
    f.name: getattr(SMALL, f.name)
    for f in dataclasses.fields(TrainConfig)
    if f.name not in OF_A_RUN
}


@pytest.fixture(scope="module", autouse=True)
def _own_cache(one_thread, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FVAE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A published file of 32 random images: every factor has two values."""
    return write_npz(tmp_path_factory.mktemp("data") / "dsprites.npz")


@pytest.fixture
def small(source, monkeypatch):
    """Four runs of 12 steps; `exhaustive` scores take no time, nor do reports."""
    monkeypatch.setattr(report, "write_report", lambda run, _: (run / "report.html").touch())
    return StudyConfig(
        **(_COMMON | {"data": str(source)}), gammas=(10.0, 35.0), betas=(4.0,), seeds=1,
        objectives=("factor-vae", "beta-vae", "vae"), protocol="exhaustive",
    )  # fmt: skip


def _assert_equal(a, b):
    """Two studies have the same runs, with the same weights."""
    a, b = ({path.name: path for path in (folder / "runs").iterdir()} for folder in (a, b))
    assert a.keys() == b.keys() != set()
    for run in a:
        assert_equal(tensors(a[run]), tensors(b[run]))


def _results(folder):
    with (folder / "results.csv").open() as file:
        return {row["run"]: row for row in csv.DictReader(file)}


def _state(folder):
    """Every file below, with content and time of writing."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


weights = st.lists(st.floats(0, 1e30), min_size=1, max_size=4, unique=True).map(tuple)


@given(
    objectives=st.permutations(["vae", "beta-vae", "factor-vae"]).flatmap(
        lambda o: st.integers(1, 3).map(lambda n: tuple(o[:n]))
    ),
    gammas=weights,
    betas=weights,
    seeds=st.integers(1, 3),
    steps=st.integers(1, 1000),
)
def test_the_grid_is_the_product_and_names_are_unique(objectives, gammas, betas, seeds, steps):
    config = StudyConfig(
        objectives=objectives, gammas=gammas, betas=betas, seeds=seeds, steps=steps
    )
    runs = expand(config)
    of = {"factor-vae": gammas, "beta-vae": betas, "vae": (None,)}
    expected = [(o, w, s) for o in objectives for w in of[o] for s in range(seeds)]
    field = {"factor-vae": "gamma", "beta-vae": "beta"}
    found = [
        (c.objective, getattr(c, field[c.objective]) if c.objective in field else None, c.seed)
        for c in runs.values()
    ]
    assert found == expected
    for name, run in runs.items():
        assert re.fullmatch(r"[\w.+-]+", name)
        assert name == f"{setting_of(run)}-seed{run.seed}"
        assert run.steps == steps


def test_names_are_the_settings():
    runs = expand(StudyConfig(gammas=(10, 0.5), betas=(4,), seeds=2))
    assert list(runs)[:3] == [
        "factor-vae-gamma10-seed0", "factor-vae-gamma10-seed1", "factor-vae-gamma0.5-seed0",
    ]  # fmt: skip
    assert "beta-vae-beta4-seed1" in runs


def test_a_study_makes_runs_scores_and_a_page_and_again_nothing(small, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "write_report", _WRITE_REPORT)
    config = dataclasses.replace(
        small, protocol="kim2018", objectives=("factor-vae",), gammas=(10.0,), seeds=2
    )
    arguments = ["study", *options(config), "--out", tmp_path / "s"]
    status, out, _ = command(*arguments)
    assert status == 0
    assert out.strip() == str(tmp_path / "s" / "study.html")
    folder = tmp_path / "s"
    names = {path.name for path in folder.iterdir()}
    assert names == {"study.json", "study.html", "results.csv", "runs"}
    rows = _results(folder)
    assert list(rows) == list(expand(config))
    for name, row in rows.items():
        files = {path.name for path in (folder / "runs" / name).iterdir()}
        assert files >= {"config.json", "log.jsonl", "report.html", "eval-kim2018.json"}
        last = json.loads((folder / "runs" / name / "log.jsonl").read_text().splitlines()[-1])
        scores = json.loads((folder / "runs" / name / "eval-kim2018.json").read_text())
        assert (row["status"], row["steps"]) == ("done", "12")
        assert float(row["recon"]) == last["recon"]
        for metric in ("factor_vae", "beta_vae", "mig", "sap", "dci"):
            assert float(row[metric]) == scores[metric]["score"]
    page = (folder / "study.html").read_text()
    for title in (
        "Disentanglement against reconstruction", "Total correlation over training",
        "Settings compared", "Runs", "How the runs were executed", "Settings of the study",
    ):  # fmt: skip
        assert f"<h2>{title}</h2>" in page
    assert page.count('src="data:image/png;base64,') == 3
    links = re.findall(r'(?:src|href)="(?!data:image/)([^"]*)"', page)
    assert links == [f"runs/{name}/report.html" for name in rows]
    assert all((folder / link).is_file() for link in links)
    gamma = [float(rows[f"factor-vae-gamma10-seed{s}"]["recon"]) for s in (0, 1)]
    assert f"{np.mean(gamma):.2f}&nbsp;&plusmn;&nbsp;{np.std(gamma, ddof=1):.2f}" in page
    assert "kim2018" in page

    before = _state(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load", lambda *_, **__: pytest.fail("data was loaded"))
        status, _, err = command(*arguments)
    assert status == 0
    assert "nothing to do" in err
    assert _state(folder) == before
    (folder / "study.html").unlink()
    assert command(*arguments)[0] == 0
    assert (folder / "study.html").read_text() == page

    # The run folders are ordinary ones.
    one = folder / "runs" / "factor-vae-gamma10-seed0"
    assert command("eval", one, "--protocol", "exhaustive", "--device", "cpu")[0] == 0
    assert command("report", one)[0] == 0


def test_killed_and_run_again_is_the_uninterrupted_study(small, tmp_path):
    config = dataclasses.replace(small, steps=150, checkpoint_every=20, objectives=("factor-vae",))
    assert study.study(config, tmp_path / "a") == 0
    process = begin("study", *options(config), "--out", tmp_path / "b")
    first, second = (tmp_path / "b" / "runs" / name for name in expand(config))
    until(lambda: steps_done(second) >= 40)
    process.send(signal.SIGKILL)
    assert process.wait().status == -signal.SIGKILL
    assert 40 <= steps_done(second) < 150
    finished = _state(first)
    assert study.study(config, tmp_path / "b") == 0
    assert _state(first) == finished
    _assert_equal(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a/results.csv").read_text() == (tmp_path / "b/results.csv").read_text()


def _workers(folder):
    """Process ids of torchrun's workers for a study."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"fvae.study.work" in words and b"torch.distributed.run" not in words:
            found += [int(path.parent.name)] * (str(folder).encode() in b" ".join(words))
    return found


def test_processes_give_the_same(small, tmp_path):
    config = dataclasses.replace(small, objectives=("factor-vae",))
    assert study.study(config, tmp_path / "a") == 0
    assert study.study(dataclasses.replace(config, devices=2), tmp_path / "b") == 0
    _assert_equal(tmp_path / "a", tmp_path / "b")
    assert _results(tmp_path / "a") == _results(tmp_path / "b")


@pytest.mark.slow
def test_processes_outlive_the_death_of_one(small, tmp_path, capfd):
    config = dataclasses.replace(
        small, steps=300, checkpoint_every=20, objectives=("factor-vae",), gammas=(1, 2, 3)
    )
    assert study.study(config, tmp_path / "a") == 0
    folder = tmp_path / "b"
    killed = []

    def kill_one():
        # Both are at work.
        under_way = lambda r: 20 <= steps_done(r) < 300  # noqa: E731
        until(lambda: sum(map(under_way, (folder / "runs").glob("*"))) == 2)
        killed.extend(_workers(folder)[:1])
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    status = study.study(dataclasses.replace(config, devices=2), folder)
    killer.join()
    assert killed
    assert status == 1
    error = capfd.readouterr().err
    named = re.search(r"runs/(\S+): its process died", error).group(1)
    rows = _results(folder)
    assert [n for n, row in rows.items() if row["status"] == "unfinished"] == [named]
    assert study.study(config, folder) == 0
    _assert_equal(tmp_path / "a", folder)
    assert _workers(folder) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_workers_of_a_study_that_dies_save_before_they_end(number, small, tmp_path):
    config = dataclasses.replace(
        small, steps=100_000, checkpoint_every=50_000, objectives=("factor-vae",), devices=2,
        gammas=(1, 2), log_every=1,
    )  # fmt: skip
    words = ["study", "--out", tmp_path / "a", *options(config)]
    command = [sys.executable, "-m", "fvae", *map(str, words)]
    nowhere, default = subprocess.DEVNULL, lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL)
    # Whatever our own shell made of SIGHUP, as under nohup.
    process = subprocess.Popen(command, stderr=nowhere, stdout=nowhere, preexec_fn=default)
    runs = tmp_path / "a" / "runs"

    def at_work():
        logs = [path for path in runs.glob("*/log.jsonl") if path.stat().st_size > 1000]
        return len(logs) == 2

    try:
        until(at_work)
        process.send_signal(number)
        process.wait(60)
    finally:
        process.kill()
    until(lambda: not _workers(tmp_path / "a"), 60)
    for run in runs.iterdir():
        lines = (run / "log.jsonl").read_text().splitlines()
        assert steps_done(run) == json.loads(lines[-1])["step"] > 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_with_checkpoints(number, small, tmp_path, monkeypatch, capfd):
    assert study.study(small, tmp_path / "a") == 0
    real = loop.train
    calls = []

    def interrupted(config, store, run, on_log=lambda line: None, on_step=lambda step: None):
        def stop(step):
            on_step(step)
            if len(calls) == 3 and step == 7:
                os.kill(os.getpid(), number)

        calls.append(run.name)
        return real(config, store, run, on_log, stop)

    config = dataclasses.replace(small, strategy="one-by-one")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train", interrupted)
        assert study.study(config, tmp_path / "b") == 128 + number
    assert "give the same command again" in capfd.readouterr().err
    names = list(expand(small))
    assert calls == names[:3]
    assert [steps_done(tmp_path / "b" / "runs" / n) for n in names] == [12, 12, 7, 0]
    assert study.study(config, tmp_path / "b") == 0
    _assert_equal(tmp_path / "a", tmp_path / "b")


def test_a_signal_ends_scoring_at_once(small, tmp_path, monkeypatch):
    def slow(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    with monkeypatch.context() as patch:
        patch.setattr(study_work.evaluate, "evaluate", slow)
        assert study.study(small, tmp_path / "a") == 128 + signal.SIGTERM
    assert study.study(small, tmp_path / "a") == 0


def test_a_diverged_run_is_named_and_the_others_go_on(small, tmp_path, capfd):
    config = dataclasses.replace(small, gammas=(10.0, 1e300))
    assert study.study(config, tmp_path / "a") == 1
    name = "factor-vae-gamma1e+300-seed0"
    error = capfd.readouterr().err
    assert f"{name} failed" in error
    assert "not finite" in error
    rows = _results(tmp_path / "a")
    assert {n: row["status"] for n, row in rows.items() if row["status"] != "done"} == {
        name: "failed"
    }
    page = (tmp_path / "a" / "study.html").read_text()
    section = page[page.index("<h2>Failed runs</h2>") :]
    assert name in section
    assert "is not finite by step" in section
    before = _state(tmp_path / "a")
    assert study.study(config, tmp_path / "a") == 1
    assert _state(tmp_path / "a") == before


def test_the_end_of_a_schedule_is_not_raised(small, tmp_path):
    falls = dataclasses.replace(small, objectives=("vae",), learning_rate_schedule="cosine")
    study.study(falls, tmp_path / "a")
    before = _state(tmp_path / "a")
    with pytest.raises(UserError, match="--steps 20: .* was made with .*; leave it so"):
        study.study(dataclasses.replace(falls, steps=20), tmp_path / "a")
    assert _state(tmp_path / "a") == before


def test_other_settings_are_refused_and_a_grid_can_grow(small, tmp_path):
    folder = tmp_path / "a"
    small = dataclasses.replace(small, objectives=("factor-vae",))
    study.study(small, folder)
    before = _state(folder)
    for change, message in [
        ({"learning_rate": 0.5}, "--learning-rate 0.5: .* was made with 0.001"),
        ({"conv_channels": (4, 4, 4, 8)}, r"--conv-channels .*4 4 4 4"),
        ({"protocol": "kim2018"}, "--protocol kim2018: .* was made with exhaustive"),
        ({"steps": 5}, "--steps 5: .* can only be raised"),
        ({"gammas": (10.0,)}, "--gammas: .* 10.0 35.0; values can only be added"),
        ({"protocol": "mine"}, "--protocol: got 'mine', expected one of kim2018"),
    ]:
        with pytest.raises(UserError, match=message) as error:
            study.study(dataclasses.replace(small, **change), folder)
        assert "\n" not in str(error.value)
    assert _state(folder) == before

    grown = dataclasses.replace(small, steps=20, gammas=(10.0, 20.0, 35.0), seeds=2)
    assert study.study(grown, folder) == 0
    assert study.study(grown, tmp_path / "b") == 0
    _assert_equal(folder, tmp_path / "b")
    rows = _results(folder)
    assert rows == _results(tmp_path / "b")
    assert {row["steps"] for row in rows.values()} == {"20"}
    for name in rows:
        scored = (folder / "runs" / name / "eval-exhaustive.json").stat().st_mtime_ns
        assert scored > (folder / "runs" / name / "checkpoint.safetensors").stat().st_mtime_ns


def test_bad_input_leaves_nothing(small, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "study.json").write_text("{")
    before = _state(tmp_path)
    for words, message in [
        (["--out", "new", "--gammas", "-1"], "--gammas: got -1"),
        (["--out", "new", "--gamma", "1"], "--gamma"),
        (["--out", "new", "--seeds", "0"], "--seeds: got 0"),
        (["--out", "new", "--devices", "0"], "--devices: got 0"),
        (["--out", "new", "--objectives", "gan"], "gan"),
        (["--out", "new", "--data", "nowhere.npz"], "nowhere.npz"),
        (["--out", "new", "--strategy", "magic"], "magic"),
        (["--out", "mine"], "not empty and holds no study"),
        (["--out", "file"], "is a file"),
        (["--out", "bad"], "not a readable study"),
    ]:
        words[1] = str(tmp_path / words[1])
        assert message in refused("study", *options(small), *words)
    assert _state(tmp_path) == before


def test_two_studies_do_not_share_a_folder(small, tmp_path):
    study.study(small, tmp_path / "a")
    with study_work.locked(tmp_path / "a"):
        with pytest.raises(UserError, match="another `fvae study` is at work there"):
            study.study(small, tmp_path / "a")


def test_a_set_without_factors_has_a_page_without_scores(small, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "load", lambda *_, **__: bits(40))
    assert study.study(small, tmp_path / "a") == 0
    page = (tmp_path / "a" / "study.html").read_text()
    assert "<h2>KL and TC against reconstruction</h2>" in page
    assert "no ground-truth factors" in page
    assert "Disentanglement against reconstruction" not in page
    assert list((tmp_path / "a").rglob("eval-*")) == []
    for row in _results(tmp_path / "a").values():
        assert (row["status"], row["factor_vae"]) == ("done", "")


# --- strategies ----------------------------------------------------------------------------------


def test_stacked_runs_end_as_they_do_alone(small, tmp_path):
    assert study.study(small, tmp_path / "a") == 0
    config = dataclasses.replace(small, strategy="stacked")
    assert study.study(config, tmp_path / "b") == 0
    execution = json.loads((tmp_path / "b" / "study.json").read_text())["execution"]
    assert execution["strategy"] == "stacked"
    _assert_equal(tmp_path / "a", tmp_path / "b")


def test_of_a_stack_only_the_diverged_run_fails(small, tmp_path):
    config = dataclasses.replace(small, strategy="stacked", gammas=(1e300, 10.0))
    assert study.study(config, tmp_path / "a") == 1
    status = {n: row["status"] for n, row in _results(tmp_path / "a").items()}
    assert status.pop("factor-vae-gamma1e+300-seed0") == "failed"
    assert set(status.values()) == {"done"}


@pytest.fixture
def plan_for(small, tmp_path, monkeypatch):
    """Plan six runs whose steps take given times in each strategy."""

    def plan(times, steps=100_000, **settings):
        monkeypatch.setattr(
            study_plan,
            "step_seconds",
            lambda configs, *_: times["stacked" if len(configs) > 1 else "one-by-one"],
        )
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
        monkeypatch.setattr(
            study_plan,
            "_measure_processes",
            lambda groups, *_: {
                o: times["stacked-processes" if len(g) > 1 else "processes"]
                for o, g in groups.items()
            },
        )
        config = dataclasses.replace(
            small, objectives=("factor-vae",), gammas=(1, 2, 3), seeds=2, steps=steps, **settings
        )
        log = tmp_path / "log"
        with Stop() as stop:
            return study_plan.make_plan(config, tmp_path, expand(config), bits(4), log, stop)

    return plan


@pytest.mark.parametrize(
    ("times", "strategy"),
    [
        # Seconds a run's step, two at work in both kinds of processes; of all six where stacked.
        ((1.0, 2.0, 9.0, 2.0), "one-by-one"),
        ((1.0, 0.6, 2.0, 0.5), "stacked"),
        ((1.0, 0.6, 5.0, 0.7), "processes"),
        ((1.0, 0.6, 5.0, 0.5), "stacked-processes"),
        ((1.0, 0.92, 5.9, 0.95), "one-by-one"),
    ],
)
def test_the_plan_is_the_fastest_and_within_noise_the_plain_one(times, strategy, plan_for):
    names = ("one-by-one", "processes", "stacked", "stacked-processes")
    times = dict(zip(names, times, strict=True))
    plan = plan_for(times)
    assert plan.strategy == strategy
    assert sorted(sum(plan.groups, [])) == sorted(sum(plan_for(times).groups, []))
    shape = {"processes": (2, 1, 6), "stacked": (1, 1, 1), "one-by-one": (1, 1, 6)}
    shape["stacked-processes"] = (2, 1, 2)
    assert (plan.processes, plan.threads, len(plan.groups)) == shape[strategy]
    assert plan.step_seconds["stacked"]["factor-vae"] == pytest.approx(times["stacked"] / 6)


def test_a_short_study_is_not_piloted(plan_for):
    plan = plan_for({"one-by-one": 1e-3, "processes": 1e-9}, steps=100)
    assert plan.strategy == "one-by-one"
    assert list(plan.step_seconds) == ["one-by-one"]


def test_a_strategy_that_is_asked_for_is_taken(plan_for):
    plan = plan_for({"one-by-one": 1.0, "processes": 9.0}, strategy="processes")
    assert (plan.strategy, plan.processes, plan.step_seconds) == ("processes", 2, {})


def test_the_pilot_measures_and_leaves_nothing(small, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    configs = [c for c in expand(small).values() if c.objective == "factor-vae"]
    with Stop() as stop:
        assert 0 < study_work.step_seconds(configs[:1], bits(4), 0.05, stop) < 1
        assert 0 < study_work.step_seconds(configs, bits(4), 0.05, stop) < 1
    assert list(tmp_path.glob("fvae-*")) == []


def test_the_pilots_trainers_leave_no_memory_taken(small, tmp_path, monkeypatch):
    emptied = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    configs = [c for c in expand(small).values() if c.objective == "factor-vae"]
    with made(Trainer, weakref.ref) as alive, Stop() as stop:
        study_work.step_seconds(configs[:1], bits(4), 0.0, stop)
        study_work.step_seconds(configs, bits(4), 0.0, stop)
    assert [trainer() for trainer in alive] == [None, None]
    for device, initialised in (("cpu", True), ("cuda", False)):
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda on=initialised: on)
        study_work.release_memory(device)
    assert emptied == []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    study_work.release_memory("cuda")
    assert emptied == [True]


def test_the_pilot_on_a_gpu_counts_what_is_done_not_what_is_handed_over(small, monkeypatch):
    now, steps, waits = [0.0], [], []

    def synchronize():
        waits.append(steps[-1])
        now[0] = 0.5 * steps[-1]

    def endless(config, store, run, on_step):
        for step in itertools.count(1):
            steps.append(step)
            now[0] += 1e-6  # to hand over a step
            on_step(step)

    monkeypatch.setattr(loop, "train", endless)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    config = dataclasses.replace(next(iter(expand(small).values())), device="cuda")
    with Stop() as stop:
        assert study_work.step_seconds([config], None, 10.0, stop) == 0.5
    assert waits == [6, 16, 32]


@pytest.fixture
def one_gpu(monkeypatch):
    """A machine with one GPU, as far as PyTorch tells; the devices that were made current."""
    current = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    return current


def test_workers_take_a_gpu_only_if_the_study_is_for_gpus(
    small, tmp_path, monkeypatch, one_gpu, capfd
):
    jobs = []
    monkeypatch.setattr(study, "torchrun", lambda job, *_: jobs.append(job) or (True, []))
    study.study(dataclasses.replace(small, devices=2, strategy="processes"), tmp_path / "a")
    (job,) = jobs
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    # The study never closes our standard input.
    monkeypatch.setattr(os, "read", lambda *_: threading.Event().wait())
    for device, taken in (("cpu", []), ("cuda", [1])):
        assert job["device"] == "cpu"
        study_work._worker(json.loads(json.dumps(job | {"groups": [], "device": device})))
        assert one_gpu == taken
        assert json.loads(capfd.readouterr().out.splitlines()[-1]) == {"rank": 1, "ended": True}


def test_a_study_for_the_cpu_asks_for_no_gpus(small, tmp_path, one_gpu):
    with pytest.raises(UserError, match="--devices 2: PyTorch sees 1 CUDA devices"):
        study._check_machine(dataclasses.replace(small, devices=2, device="cuda"))
    study._check_machine(dataclasses.replace(small, devices=2, device="cpu"))


@pytest.mark.slow
def test_the_pilot_of_real_processes(small, tmp_path, monkeypatch):
    monkeypatch.setattr(study_plan, "_WORTH_A_PILOT", 0.0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    assert study.study(dataclasses.replace(small, steps=300), tmp_path / "a") == 0
    execution = json.loads((tmp_path / "a" / "study.json").read_text())["execution"]
    strategies = ("one-by-one", "processes", "stacked", "stacked-processes")
    assert tuple(execution["step_seconds"]) == strategies
    for strategy in strategies:
        assert all(t > 0 for t in execution["step_seconds"][strategy].values())
    assert execution["strategy"] in strategies


@pytest.mark.slow
def test_a_study_on_a_local_ray_gives_the_same(small, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'fvae[ray]'")
    assert study.study(small, tmp_path / "a") == 0
    spread = dataclasses.replace(small, launcher="ray", devices=2)
    assert study.study(spread, tmp_path / "b") == 0
    _assert_equal(tmp_path / "a", tmp_path / "b")


def test_ray_that_is_not_installed_is_one_line(small, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"--launcher ray: .*pip install 'fvae\[ray\]'"):
        study.study(dataclasses.replace(small, launcher="ray"), tmp_path / "a")
    assert list(tmp_path.glob("fvae-*")) == []


def test_what_is_torn_in_a_study_is_made_again_or_named(small, tmp_path, capfd):
    small = dataclasses.replace(small, objectives=("vae", "beta-vae"))
    assert study.study(small, tmp_path / "a") == 0
    first, second = sorted((tmp_path / "a" / "runs").iterdir())
    whole = _results(tmp_path / "a")
    for path, content in [
        (first / "eval-exhaustive.json", "{"), (first / "eval-exhaustive.json", "5"),
        (first / "log.jsonl", "5\n{}\n"), (second / "log.jsonl", ""),
        (first / "failed.json", "{"), (second / "failed.json", '{"message": 5}'),
        (tmp_path / "a" / "results.csv", "\0"), (tmp_path / "a" / "study.html", ""),
        (first / "config.json", "{}"), (second / "config.json", "\0"),
        (second / "report.html", None),
    ]:  # fmt: skip
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_text(content)
        assert study.study(small, tmp_path / "a") == 0, path
    for run in (first, second):
        assert TrainConfig.from_file(run / "config.json") == loop.settle(expand(small)[run.name])
    assert "</html>" in (tmp_path / "a" / "study.html").read_text()
    rows = _results(tmp_path / "a")
    for name, row in rows.items():
        expected = whole[name] | ({} if row["recon"] else dict.fromkeys(("recon", "kl"), ""))
        assert row == expected
    kept = tmp_path / "a" / "study.json"
    good = kept.read_text()
    for bad in ["", "5", "[" * 5000, good.replace('"seeds": 1', '"seeds": true'),
                good.replace('"settings": {', '"settings": {"later": 1, '),
                good.replace('"factors": [', '"factors": [5, ')]:  # fmt: skip
        kept.write_text(bad)
        with pytest.raises(UserError, match="not a readable study") as caught:
            study.study(small, tmp_path / "a")
        assert "\n" not in str(caught.value)
    kept.write_text(good)
    assert study.study(small, tmp_path / "a") == 0
