"""Bringing a study to its end: plan, start, finish, show; started anew it goes on."""

import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch
from rich.console import Console

from fvae import data, evaluate
from fvae.config import GRIDS, LATER, StudyConfig, TrainConfig
from fvae.errors import UserError, warn
from fvae.files import from_json, locked, write_atomically
from fvae.study import across, intervals, paper
from fvae.study import page as study_page
from fvae.study.grid import OF_A_RUN, expand
from fvae.study.launch import import_ray, ray_tasks, torchrun
from fvae.study.made import made_with
from fvae.study.plan import Plan, make_plan
from fvae.study.progress import StudyProgress
from fvae.study.work import (
    Asked,
    OnEvent,
    Stop,
    across_of,
    asked_of,
    failure,
    is_finished,
    of_one_run,
    release_memory,
    steps_done,
    work,
)
from fvae.training import checkpoint, loop, run_data
from fvae.training.trainer import make_trainer

STUDY_NAME = "study.json"
LOG_NAME = "workers.log"

_GRID = ("objectives", "seeds", *GRIDS)
#: Settings that change nothing about a result, so that they may change from call to call; that the
#: data are the same is checked by their fingerprint.
_FREE = (
    "strategy", "devices", "launcher", "device", "graph", "branches", "checkpoint_every",
    "log_every", "data", "images", "factors", "metrics",
)  # fmt: skip


def study(
    config: StudyConfig, out: Path, show_progress: bool = False, preset: str | None = None
) -> int:
    """Bring a study to its end: train, score and show every run that is not finished.

    Args:
        config: the grid and the settings of its runs.
        out: the study's folder; one that holds a study is continued.
        show_progress: show bars on stderr rather than lines.
        preset: whose settings these are; one of the paper's has a page of its own.

    Returns:
        exit status: 0, 1 if a run failed, or 128 + the number of the signal that ended it early.

    Raises:
        UserError: the folder holds something else or a study of other settings, or a setting
            cannot work.
    """
    kept = read(out)
    if kept and config.precision == "auto":
        config = dataclasses.replace(config, precision=kept["settings"]["precision"])
    config = loop.settle(config)
    examples = {c.objective: c for c in expand(config).values()}
    _check_machine(config)
    names = of_one_run(config.metrics)
    if names or not config.metrics:
        evaluate.chosen(names, config.protocol)  # refuse what there is not
    settings = settings_of(config)
    store = None
    if kept:
        check_same(kept["settings"], settings, out)
    else:
        check_free(out)
        store = data.load(**run_data.where(config), progress=show_progress)
        for run in examples.values():
            make_trainer(run, store)  # refuse what cannot train
        if store.labels is not None and names != []:  # or cannot be scored
            taken = evaluate.chosen(names, config.protocol, store)
            evaluate.rows_of(evaluate.factors_of(store)[0], config.protocol, names=taken)
        elif names:
            evaluate.chosen(names, config.protocol, store)
        release_memory(config.device)
        out.mkdir(parents=True, exist_ok=True)
        kept = {
            "settings": {}, "factors": list(store.factor_names), "execution": None,
            "fingerprint": store.fingerprint,
        }  # fmt: skip
    try:
        with locked(out):
            kept["preset"] = preset if paper.is_paper(preset) else kept.get("preset")
            return _bring_to_its_end(config, settings, kept, out, store, show_progress)
    except BlockingIOError:
        raise UserError(
            f"--out {out}: another `fvae study` is at work there; wait for it"
        ) from None


def _bring_to_its_end(
    config: StudyConfig,
    settings: dict,
    kept: dict,
    out: Path,
    store: data.Store | None,
    show_progress: bool,
) -> int:
    runs, expected = out / "runs", expand(config)

    def the_store() -> data.Store:
        nonlocal store
        if store is None:
            store = data.load(**run_data.where(config), progress=show_progress)
            if fingerprint := kept.get("fingerprint"):  # a study of version 0.1 has none
                run_data.compare(str(out), fingerprint, store)
        return store

    asked = asked_of(settings, kept["factors"])
    left = [n for n, c in expected.items() if not is_finished(runs / n, c, asked)]
    # Seed by seed, so that a study that is stopped has something of every setting.
    todo = {n: expected[n] for n in sorted(left, key=lambda name: expected[name].seed)}
    for name in expected.keys() - todo.keys():
        _repair(runs / name, expected[name])
    if todo:
        store = the_store()
    made = made_with(config.device)
    if todo and made not in kept.setdefault("made", []):
        kept["made"].append(made)
    kept["settings"] = settings
    if read(out) != kept:
        write(out, kept)
    compared = across_of(settings)
    if todo:
        assert store is not None
        for name, run in todo.items():
            _prepare(runs / name, run)
        with Stop() as stop:
            plan = make_plan(config, runs, todo, store, out / LOG_NAME, stop)
            if not stop.number:
                kept["execution"] = plan.to_dict()
                write(out, kept)
                ends = {n: c.steps for n, c in todo.items()}
                done = {n: steps_done(runs / n) for n in todo}
                with StudyProgress(ends, done, len(expected), plan, show_progress) as progress:
                    dead = _execute(plan, config, runs, asked, store, stop, progress.on_event)
        if stop.number:
            if paper.is_paper(kept["preset"]):  # what there is of it
                _show(out, expected, kept, the_store)
            return _stopped(stop)
        for name in dead:
            print(
                f"{runs / name}: its process died, perhaps for want of memory (see"
                f" {out / LOG_NAME}); to go on, give the same command again",
                file=sys.stderr,
            )
    elif not across.missing(out, expected, compared):
        print("every run is finished: nothing to do", file=sys.stderr)
    if across.missing(out, expected, compared):
        store = the_store()
        with Stop() as stop, contextlib.suppress(Stop.Now):
            stop.droppable = True
            across.update(out, expected, compared, store, config.device)
            stop.droppable = False
        if stop.number:
            return _stopped(stop)
    failed = {n: m for n in expected if (m := failure(runs / n))}
    for name, message in failed.items():
        print(f"{name} failed: {message}", file=sys.stderr)
    _show(out, expected, kept, the_store)
    unfinished = any(not is_finished(runs / n, c, asked) for n, c in expected.items())
    return 1 if failed or unfinished else 0


def _show(
    out: Path, runs: dict[str, TrainConfig], kept: dict, store: Callable[[], data.Store]
) -> None:
    """Write the study's pages, and print their paths."""
    results = study_page.results_of(out, runs, kept)
    page = study_page.write_page(out, kept, results)
    by_score = intervals.of_results(out / study_page.RESULTS_NAME)
    if kept.get("settings_by_score", {}) != by_score:
        write(out, kept | {"settings_by_score": by_score})
    if table := intervals.terminal_table(by_score):
        Console(stderr=True).print(table)
    print(page)
    if paper.is_paper(kept["preset"]):
        print(paper.write_page(out, kept, results, store))


def _stopped(stop: Stop) -> int:
    print("stopped; to go on, give the same command again", file=sys.stderr)
    return 128 + stop.number


def _execute(
    plan: Plan,
    config: StudyConfig,
    runs: Path,
    asked: Asked | None,
    store: data.Store,
    stop: Stop,
    on_event: OnEvent,
) -> list[str]:
    """Do the work; return the names of runs whose process died under them."""
    if config.launcher == "local" and plan.processes == 1:
        work(runs, plan.groups, asked, store, stop, on_event)
        return []
    job: dict[str, Any] = {
        "runs": str(runs.resolve()), "asked": asked, "data": run_data.where(config),
        "device": config.device, "threads": plan.threads,
    }  # fmt: skip
    if config.launcher == "ray":
        job["groups"] = plan.groups
        return ray_tasks(job, plan.processes, config.device == "cuda", on_event, stop)
    dead: list[str] = []
    groups = plan.groups

    def forward(event: dict) -> None:
        if "run" in event:
            on_event(event["run"], event["phase"], event["step"])

    # When a worker dies, perhaps for want of memory, the rest goes on with one process fewer.
    for processes in range(plan.processes, 0, -1):
        log = runs.parent / LOG_NAME
        ended, died = torchrun(job | {"groups": groups}, processes, log, forward, stop)
        dead += died
        groups = [group for group in groups if not set(group) & set(dead)]
        if ended or not groups:
            return dead
    if not dead:
        raise UserError(
            f"{log}: says why the study's processes died at the start; --strategy one-by-one needs"
            " none"
        )
    return dead


def _prepare(run: Path, config: TrainConfig) -> None:
    """Make the run folder, or let its configuration have what may change."""
    run.mkdir(parents=True, exist_ok=True)
    if not (run / checkpoint.NAME).exists():  # what was kept of it is not what is asked for now
        (run / checkpoint.KEPT).unlink(missing_ok=True)
    path = run / loop.CONFIG_NAME
    if not path.exists() or path.read_bytes() != config.to_json().encode():
        write_atomically(path, config.to_json())


def _repair(run: Path, config: TrainConfig) -> None:
    """Make a finished run's configuration again, where it is damaged."""
    try:
        TrainConfig.from_file(run / loop.CONFIG_NAME)
    except UserError as error:
        warn(f"{error}; made again")
        write_atomically(run / loop.CONFIG_NAME, config.to_json())


# --- study.json ----------------------------------------------------------------------------------


def settings_of(config: StudyConfig) -> dict:
    """Return the settings of a study as ``study.json`` holds them."""
    settings = json.loads(config.to_json())
    return {name: value for name, value in settings.items() if name not in OF_A_RUN}


class _Execution(msgspec.Struct):
    strategy: str
    processes: int
    threads: int
    step_seconds: dict[str, dict[str, float]]
    reason: str


class _Kept(msgspec.Struct):
    settings: dict[str, Any]
    factors: list[str]
    execution: _Execution | None


def read(out: Path) -> dict | None:
    """Return the contents of a folder's ``study.json``, None where there is none.

    Raises:
        UserError: it is no folder, or the file cannot be read.
    """
    path = out / STUDY_NAME
    try:
        kept = from_json(path.read_text(encoding="utf-8"))
        known = msgspec.convert(kept, _Kept)
        StudyConfig.from_fields(known.settings, (*LATER, *OF_A_RUN))
        return kept
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise UserError(f"--out {out}: is a file; name a folder") from None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: not a readable study ({error}); restore it, or name another --out"
        ) from None


def write(out: Path, kept: dict) -> None:
    """Write a folder's ``study.json``."""
    write_atomically(out / STUDY_NAME, json.dumps(kept, indent=2) + "\n")


def check_free(out: Path) -> None:
    """Refuse a folder that holds something, and no study.

    Raises:
        UserError: it does.
    """
    # What a killed process left of a study.json is not somebody's file.
    if out.is_dir() and any(not p.name.startswith(f".{STUDY_NAME}.") for p in out.iterdir()):
        raise UserError(f"--out {out}: is not empty and holds no study; name a new folder")


def check_same(kept: dict, given: dict, out: Path) -> None:
    """Refuse settings that a study's folder was not made with, and that may not change.

    Raises:
        UserError: there is such a setting.
    """
    defaults = settings_of(StudyConfig())
    free = checkpoint.resumable(given["learning_rate_schedule"])
    for name, value in given.items():
        # What is now the default was the rule before there was such a setting, but for what was not
        # one at all: a grid of another objective, or the size that the data have.
        then = value if name in (*_GRID, "image_size") else defaults[name]
        old, option = kept.get(name, then), "--" + name.replace("_", "-")
        shown = " ".join(map(str, old)) if isinstance(old, list) else old
        if name in _FREE or value == old:
            continue
        if name == "seeds" or (name == "steps" and name in free):
            if value < old:
                raise UserError(
                    f"{option} {value}: {out} was made for {old}; it can only be raised"
                )
        elif name in _GRID:
            if not set(old) <= set(value):
                raise UserError(f"{option}: {out} was made for {shown}; values can only be added")
        else:
            raise UserError(
                f"{option} {value}: {out} was made with {shown}; leave it so, or name another --out"
            )


def _check_machine(config: StudyConfig) -> None:
    if config.launcher == "ray":
        import_ray()
    elif config.device == "cuda" and config.devices > torch.cuda.device_count():
        raise UserError(
            f"--devices {config.devices}: PyTorch sees {torch.cuda.device_count()} CUDA devices"
        )
