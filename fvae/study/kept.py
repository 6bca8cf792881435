"""What is kept of a study: its finished runs without their checkpoints, small enough for git.

Such a folder is a study's folder as any other: ``fvae study`` and ``fvae paper`` take its runs as
finished, and so go on from it where the checkpoints are gone, or on another machine.
"""

import json
import shutil
from pathlib import Path

import msgspec

from fvae import data
from fvae.config import LATER, StudyConfig, TrainConfig
from fvae.errors import UserError
from fvae.files import write_atomically
from fvae.study import paper
from fvae.study import study as studies
from fvae.study.grid import OF_A_RUN, expand
from fvae.study.page import RESULTS_NAME, results_of, write_page
from fvae.study.work import FAILED_NAME, Asked, asked_of, failure, is_finished
from fvae.training import checkpoint, log, loop, run_data

#: Lines of a log that are kept, about.
_LINES = 60


def carry(source: Path, target: Path) -> list[str]:
    """Take the finished runs of a study over into another folder, without their checkpoints.

    Runs that are there, finished or with a checkpoint, stay as they are. The other folder gets the
    larger grid of the two, and ``results.csv`` and the paper's figures anew; this one gets its
    pages as it is by now.

    Args:
        source: a study's folder; another process may be at work in it.
        target: a folder that is new, or one of the same study.

    Returns:
        names of the runs that were copied.

    Raises:
        UserError: a folder holds no study, or one of other settings.
        OSError: a folder cannot be written.
    """
    kept, other = studies.read(source), studies.read(target)
    if kept is None:
        raise UserError(f"{source}: holds no study; name a folder of `fvae study` or `fvae paper`")
    if other is None:
        studies.check_free(target)
    else:
        kept = _larger(other, kept, target)
    config = StudyConfig.from_fields(kept["settings"], (*LATER, *OF_A_RUN))
    runs, asked = expand(config), asked_of(kept["settings"], kept["factors"])
    is_paper = paper.is_paper(kept.get("preset"))
    results = results_of(source, runs, kept)
    write_page(source, kept, results)
    if is_paper:  # so that the best models are drawn, whose checkpoints stay behind
        paper.write_page(source, kept, results, lambda: data.load(**run_data.where(config)))
    target.mkdir(parents=True, exist_ok=True)
    studies.write(target, kept)
    copied = [name for name, config in runs.items() if _take(source, target, name, config, asked)]
    results = results_of(target, runs, kept)
    write_atomically(target / RESULTS_NAME, results.csv())
    if is_paper:
        paper.write_figures(target, results)
    return copied


def _larger(a: dict, b: dict, out: Path) -> dict:
    """Return which of two studies includes the other, with what both were made with."""
    try:
        studies.check_same(a["settings"], b["settings"], out)
    except UserError as error:
        try:
            studies.check_same(b["settings"], a["settings"], out)
        except UserError:
            raise error from None
        a, b = b, a
    made = a.get("made", [])
    return b | {"made": made + [one for one in b.get("made", []) if one not in made]}


def _take(source: Path, target: Path, name: str, config: TrainConfig, asked: Asked | None) -> bool:
    """Copy a run if it is finished and not there; return whether it was."""
    run, to = source / "runs" / name, target / "runs" / name
    if not is_finished(run, config, asked):
        return False
    there = is_finished(to, config, asked) or (to / checkpoint.NAME).exists()
    names = ["traversal.png"]
    if not there:
        to.mkdir(parents=True, exist_ok=True)
        names += [loop.CONFIG_NAME, run_data.NAME, FAILED_NAME]
        names += [path.name for path in run.glob("eval-*.json")]
    for path in (run / one for one in names):
        if path.exists() and not (there and (to / path.name).exists()):
            shutil.copy(path, to)
    if not there:
        lines = log.read(run)
        every = -(-len(lines) // _LINES) or 1
        # Counted from the first, so that the runs of a setting keep the same steps.
        thin = [one for i, one in enumerate(lines) if not (i + 1) % every or one is lines[-1]]
        write_atomically(to / log.NAME, "".join(json.dumps(one) + "\n" for one in thin))
        state = checkpoint.state_of(run)
        if state and failure(run) is None:
            # Written last: with it the run counts as finished.
            write_atomically(to / checkpoint.KEPT, msgspec.json.encode(state), b"\n")
    return not there
