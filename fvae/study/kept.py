"""What is kept of a study: its finished runs without their checkpoints, small enough for git.

Such a folder is a study's folder as any other: ``fvae study`` and ``fvae paper`` take its runs as
finished, and so go on from it where the checkpoints are gone, or on another machine.
"""

import json
import shutil
from pathlib import Path

import msgspec

from fvae.config import TrainConfig
from fvae.files import write_atomically
from fvae.study.work import FAILED_NAME, Asked, failure, is_finished
from fvae.training import checkpoint, log, loop, run_data

#: Lines of a log that are kept, about.
_LINES = 60


def copy_finished(
    source: Path, target: Path, runs: dict[str, TrainConfig], asked: Asked | None
) -> list[str]:
    """Copy the finished runs of a study into another folder, without their checkpoints.

    Runs that the other folder has, finished or with a checkpoint, stay as they are.

    Args:
        source: a study's folder.
        target: a study's folder.
        runs: the runs of the grid by name.
        asked: the scores that make a run finished.

    Returns:
        names of the runs that were copied.

    Raises:
        OSError: the folder cannot be written.
    """
    copied = []
    for name, config in runs.items():
        run, to = source / "runs" / name, target / "runs" / name
        there = is_finished(to, config, asked) or (to / checkpoint.NAME).exists()
        if not there and is_finished(run, config, asked):
            to.mkdir(parents=True, exist_ok=True)
            _copy(run, to)
            copied.append(name)
    return copied


def _copy(run: Path, to: Path) -> None:
    names = (loop.CONFIG_NAME, run_data.NAME, FAILED_NAME, "traversal.png")
    for path in (*(run / name for name in names), *run.glob("eval-*.json")):
        if path.exists():
            shutil.copy(path, to)
    lines = log.read(run)
    every = -(-len(lines) // _LINES) or 1
    # Counted from the first, so that runs of one setting keep the same steps.
    kept = [one for i, one in enumerate(lines) if not (i + 1) % every or one is lines[-1]]
    write_atomically(to / log.NAME, "".join(json.dumps(one) + "\n" for one in kept))
    state = checkpoint.state_of(run)
    if state and failure(run) is None:
        # Written last: with it the run counts as finished.
        write_atomically(to / checkpoint.KEPT, msgspec.json.encode(state) + b"\n")
