"""All trials: a kind at a time in each of two processes."""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from torture import Tally

#: What the commands import, some of it late: once, for all kinds and their forks.
_LOADED = [
    "torture.disks", "torture.files", "torture.kills", "torture.readers", "torture.words",
    "fvae.doctor", "fvae.evaluate", "fvae.opening", "fvae.progress", "fvae.study.study",
    "sklearn.ensemble", "sklearn.linear_model", "sklearn.svm",
]  # fmt: skip


def _kinds() -> dict[str, tuple[Callable[[Path, int], list[Tally]], int]]:
    """What each kind of trial runs, and how many trials are all; the longest first."""
    from torture.disks import full_disks
    from torture.files import run_files
    from torture.kills import kills
    from torture.readers import readers
    from torture.words import words

    return {
        "kills": (kills, 300),
        "readers": (readers, 2000),
        "files": (run_files, 500),
        "words": (lambda folder, count: [words(folder, count)], 300),
        "disks": (full_disks, 7),
    }


def trials_of(kind: str, folder: Path, share: float) -> list[Tally]:
    """Do a share of one kind's trials in an empty folder; for a process that does nothing else."""
    from fvae import report

    torch.set_num_threads(1)
    os.environ["FVAE_CACHE"] = str(folder / "cache")
    if kind == "kills":
        # A report takes a second, and is one write like any other; the command line makes it.
        report.write_report = lambda run, store: (run / "report.html").write_text("</html>")
    run, all_of_them = _kinds()[kind]
    return run(folder, max(2, round(all_of_them * share)))


def trials(folder: Path, share: float = 1.0) -> list[Tally]:
    """Do a share of all trials, in an empty folder: a kind at a time on each of two cores."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(_LOADED)
    # A process for each kind, so that none forks from what another has left.
    with ProcessPoolExecutor(2, mp_context=server, max_tasks_per_child=1) as pool:
        each = []
        for kind in _kinds():
            (folder / kind).mkdir()
            each.append(pool.submit(trials_of, kind, folder / kind, share))
        return [tally for one in each for tally in one.result()]
