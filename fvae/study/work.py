"""The work of a study in one process: train, score and show runs, each claimed by a lock.

Any number of processes may walk over the same list of runs, on one machine or several that share
the folder: a lock on the run's folder says who has it, and ends with the process that holds it.
Started by torchrun this file is a worker, which takes its job as an argument and prints events.
"""

import contextlib
import dataclasses
import gc
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fvae import data, evaluate, report
from fvae.config import TrainConfig
from fvae.data import Store
from fvae.device import keep_freed_memory
from fvae.errors import UserError, warn
from fvae.files import from_json, locked, write_atomically
from fvae.metrics.across import ACROSS
from fvae.registry import METRICS
from fvae.training import checkpoint, loop, stacked

FAILED_NAME = "failed.json"


class Asked(NamedTuple):
    """The scores that a study asks of each run: a protocol, and names of metrics (None: usual)."""

    protocol: str
    names: Sequence[str] | None = None


def asked_of(settings: dict[str, Any], factors: Sequence[str]) -> Asked | None:
    """Return the scores that the settings of a study ask of each run, None where they ask none."""
    names = settings.get("metrics")
    if names and "all" in names:
        names = [n for n, m in METRICS.items() if settings["protocol"] in m.protocols
                 and (factors or not m.supervised)]  # fmt: skip
    if names is None:
        return Asked(settings["protocol"]) if factors else None
    names = of_one_run(names)
    return Asked(settings["protocol"], names) if names else None


def of_one_run(names: Sequence[str] | None) -> list[str] | None:
    """Return names without the scores that compare runs; None, the usual ones, has none."""
    return None if names is None else [name for name in names if name not in ACROSS]


def across_of(settings: dict[str, Any]) -> list[str]:
    """Return the scores that compare runs, of those that the settings of a study ask for."""
    names = settings.get("metrics") or ()
    return [name for name in ACROSS if name in names or "all" in names]


#: Called with the run's name, what is done to it ("train", "score", "done", "failed") and its step.
OnEvent = Callable[[str, str, int], None]


class Stop:
    """SIGINT, SIGTERM and SIGHUP ask for an end: after the step in training, at once in scoring.

    Attributes:
        number: the signal's number, 0 before it came.
        droppable: whether the signal may raise ``Stop.Now`` in what is going on.
    """

    class Now(Exception):
        """Raised by the signal where the work can be dropped."""

    def __init__(self, forgiving: bool = False) -> None:
        self.number = 0
        self._forgiving = forgiving  # a second signal ends nothing: a launcher may repeat it
        self.droppable = False
        self._previous: dict[int, loop.Handler] = {}

    def _catch(self, number: int, frame: object) -> None:
        if not self._forgiving:
            signal.signal(number, self._previous[number])
        self.number = number
        if self.droppable:
            self.droppable = False
            raise Stop.Now

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            for number in loop.ENDS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._catch)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def steps_done(run: Path) -> int:
    """Return the step of the run's checkpoint or of what was kept of it, 0 if there is neither."""
    state = checkpoint.state_of(run)
    return state.step if state else 0


def failure(run: Path) -> str | None:
    """Return why the run failed, None if it did not; what cannot be read says nothing."""
    path = run / FAILED_NAME
    try:
        message = from_json(path.read_text(encoding="utf-8"))["message"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        message = None
    if not isinstance(message, str):
        warn(f"{path}: damaged, and left out; the run is tried again")
        return None
    return message


def is_finished(run: Path, config: TrainConfig, asked: Asked | None) -> bool:
    """Return whether nothing is left to do for a run: trained, scored and shown, or failed."""
    if failure(run) is not None:
        return True
    shown = (run / "report.html").exists() or not (run / checkpoint.NAME).exists()
    if steps_done(run) < config.steps or not shown:
        return False
    if asked is None:
        return True
    scores = report.scores_of(run, asked.protocol)
    return scores is not None and all(n in scores for n in asked.names or ())


def work(
    runs: Path,
    groups: list[list[str]],
    asked: Asked | None,
    store: Store,
    stop: Stop,
    on_event: OnEvent = lambda run, phase, step: None,
) -> None:
    """Train, score and show every run that no other process has; wait for those that one has.

    A run that fails leaves ``failed.json`` with the message, and the next one goes on.

    Args:
        runs: the folder of the run folders, each with its ``config.json``.
        groups: names of runs; those of one group are trained together, stacked.
        asked: the scores, None where the set has no factors.
        store: the data set.
        stop: the request to end.
        on_event: called as things happen.

    Raises:
        OSError: the disk is full, or a folder cannot be written.
    """
    waiting = groups
    while waiting and not stop.number:
        taken = []
        for group in waiting:
            with _claimed([runs / name for name in group]) as mine:
                if not mine:
                    taken.append(group)
                elif not stop.number:
                    with contextlib.suppress(Stop.Now):
                        _do([runs / name for name in group], asked, store, stop, on_event)
        if taken == waiting:
            time.sleep(0.2)  # should a process die, its runs are taken over
        waiting = taken


@contextlib.contextmanager
def _claimed(folders: list[Path]) -> Iterator[bool]:
    """Lock all folders, or none: then another process has one."""
    with contextlib.ExitStack() as handles:
        try:
            for folder in folders:
                handles.enter_context(locked(folder))
        except BlockingIOError:
            handles.close()
            yield False
        else:
            yield True


def _do(runs: list[Path], asked: Asked | None, store: Store, stop: Stop, on_event: OnEvent) -> None:
    configs = {run: TrainConfig.from_file(run / loop.CONFIG_NAME) for run in runs}
    todo = [run for run in runs if not is_finished(run, configs[run], asked)]
    untrained = [run for run in todo if steps_done(run) < configs[run].steps]
    for run in untrained:
        # Whatever was scored is about to change; a failure that cannot be read is no more.
        of_it = ("report.html", "traversal.png", FAILED_NAME)
        for left in (*run.glob("eval-*.json"), *(run / name for name in of_it)):
            left.unlink(missing_ok=True)
    if untrained:
        stop.number = _train(untrained, configs, store, on_event) or stop.number
    for run in todo:
        if stop.number:
            return
        if failure(run) is not None:
            on_event(run.name, "failed", steps_done(run))
            continue
        on_event(run.name, "score", configs[run].steps)
        stop.droppable = True
        if asked:
            device = configs[run].device
            evaluate.evaluate(run, store, asked.protocol, device=device, names=asked.names)
        report.write_report(run, store)
        stop.droppable = False
        # Scoring has read the newest whole: the one before would double what a study takes.
        (run / checkpoint.PREVIOUS).unlink(missing_ok=True)
        on_event(run.name, "done", configs[run].steps)


def _train(
    runs: list[Path], configs: dict[Path, TrainConfig], store: Store, on_event: OnEvent
) -> int:
    """Train one run, or several stacked; return the number of the signal that ended it, or 0."""

    def on_step(step: int) -> None:
        for run in runs:
            on_event(run.name, "train", step)

    on_step(steps_done(runs[0]))
    if len(runs) > 1:
        try:
            return stacked.train([configs[run] for run in runs], store, runs, on_step=on_step)
        except UserError:
            # One of them failed. Alone, each goes on from its checkpoint, and that one says so.
            return next((n for run in runs if (n := _train([run], configs, store, on_event))), 0)
    try:
        return loop.train(configs[runs[0]], store, runs[0], on_step=on_step)
    except UserError as error:
        message = f"{error}; to try again, delete {runs[0] / FAILED_NAME}"
        step = steps_done(runs[0])
        text = json.dumps({"message": message, "checkpoint_step": step}, indent=2)
        write_atomically(runs[0] / FAILED_NAME, text + "\n")
        return 0


# --- the pilot: how long a step takes ------------------------------------------------------------


def step_seconds(configs: list[TrainConfig], store: Store, seconds: float, stop: Stop) -> float:
    """Return the time of one training step of one run, or of several stacked.

    The steps are those of a scratch folder that is deleted again, and no memory stays taken.

    Args:
        configs: settings of the runs; more than one is stacked.
        store: the data set.
        seconds: how long to measure; at least two steps are.
        stop: the request to end.

    Returns:
        seconds a step, for all the runs together; 0 if stopped.
    """
    cuda = configs[0].device == "cuda"
    warm_up = 6 if cuda else 1  # on a GPU, the capture of the graph comes first
    # A GPU is handed steps long before it does them: the clock counts where it is waited for.
    look_every = 16 if cuda else 1
    started = taken = 0.0
    never = 1 << 60

    def on_step(step: int) -> None:
        nonlocal started, taken
        if step != warm_up and (step < warm_up + 2 or step % look_every):
            return
        if cuda:
            torch.cuda.synchronize()
        now = time.perf_counter()
        if step == warm_up:
            started = now
        elif now - started >= seconds:
            taken = (now - started) / (step - warm_up)
            raise Stop.Now

    scratch = [
        dataclasses.replace(c, steps=never, checkpoint_every=never, log_every=never)
        for c in configs
    ]
    with tempfile.TemporaryDirectory(prefix="fvae-pilot-") as folder:
        runs = [Path(folder) / str(i) for i in range(len(configs))]
        for run in runs:
            run.mkdir()
        with contextlib.suppress(Stop.Now):
            if len(runs) > 1:
                stop.number = stacked.train(scratch, store, runs, on_step=on_step)
            else:
                stop.number = loop.train(scratch[0], store, runs[0], on_step=on_step)
    release_memory(configs[0].device)
    return taken


def release_memory(device: str) -> None:
    """Give back the memory of trainers that are gone, for the next one or for other processes.

    Args:
        device: that of the runs; where it is a GPU, PyTorch keeps freed blocks for itself.
    """
    gc.collect()
    if device == "cuda" and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


# --- a worker of torchrun ------------------------------------------------------------------------


def _worker(job: dict) -> None:
    rank = int(os.environ["RANK"])
    last = 0.0

    def say(**event: object) -> None:
        # One write, so that the lines of several workers do not mix. Nobody may be left to read it.
        with contextlib.suppress(OSError):
            os.write(1, (json.dumps({"rank": rank} | event) + "\n").encode())

    def on_event(run: str, phase: str, step: int) -> None:
        nonlocal last
        if phase != "train" or time.monotonic() - last > 0.3:
            last = time.monotonic()
            say(run=run, phase=phase, step=step)

    def watch() -> None:
        # The study keeps our standard input open for as long as it lives and wants us to go on.
        while os.read(0, 1):
            pass
        say(stopping=True)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
    torch.set_num_threads(job["threads"])
    keep_freed_memory()
    if job["device"] == "cuda":  # a job for the CPU may have more processes than there are GPUs
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    store = data.load(**job["data"])
    with Stop(forgiving=True) as stop:
        if "pilot" in job:
            torch.distributed.init_process_group("gloo")
            for objective, group in job["pilot"].items():
                configs = [TrainConfig.from_fields(fields) for fields in group]
                torch.distributed.barrier()
                seconds = step_seconds(configs, store, job["seconds"], stop)
                say(pilot=objective, seconds=seconds)
            torch.distributed.destroy_process_group()
        else:
            asked = Asked(*job["asked"]) if job["asked"] else None
            work(Path(job["runs"]), job["groups"], asked, store, stop, on_event)
    say(ended=True)


if __name__ == "__main__":
    try:
        _worker(json.loads(sys.argv[1]))
    except (UserError, OSError) as error:
        # For the study to say; a traceback would tell its user no more.
        print(json.dumps({"rank": int(os.environ["RANK"]), "error": str(error)}), flush=True)
        sys.exit(1)
