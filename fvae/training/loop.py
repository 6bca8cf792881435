"""The training loop of one run: log, checkpoint, stop, resume."""

import contextlib
import dataclasses
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, TypeAlias, TypeVar

from torch import Tensor

from fvae.config import TrainConfig
from fvae.data import Store, absolute, absolute_factors
from fvae.device import as_imported, resolve_device, resolve_precision
from fvae.errors import UserError
from fvae.files import holds, locked, write_atomically
from fvae.training import checkpoint, log, run_data
from fvae.training.distributed import World
from fvae.training.means import Means
from fvae.training.trainer import Trainer, make_trainer, sized

CONFIG_NAME = "config.json"

#: What ``signal.signal`` takes and returns.
Handler: TypeAlias = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None

_Config = TypeVar("_Config", bound=TrainConfig)

#: Terms that the progress line and the report's summary show, where a run has them.
HEADLINES = (
    "recon", "kl", "tc", "disc_accuracy", "cov_off", "cov_diag", "gap", "wasserstein",
    "gradient_penalty", "mi",
)  # fmt: skip


def check_free(run: Path) -> None:
    """Check that a run folder can be made: it does not exist or is empty.

    Raises:
        UserError: the folder holds another run or other files.
    """
    if run.exists():
        if not run.is_dir():
            raise UserError(f"--out {run}: is a file; name a folder")
        if (run / CONFIG_NAME).exists():
            raise UserError(
                f"--out {run}: already holds a run; continue it with --resume {run}, or name"
                " another folder"
            )
        if any(run.iterdir()):
            raise UserError(f"--out {run}: is not empty; name a new folder")


@contextlib.contextmanager
def claimed(run: Path) -> Iterator[None]:
    """Be the only one that writes into a run folder; readers need no leave.

    Whoever has claimed it may train it.

    Raises:
        UserError: another process trains the run.
    """
    if holds(run):
        yield
        return
    try:
        with locked(run):
            yield
    except BlockingIOError:
        raise UserError(
            f"{run}: another process is training it; wait for it, or stop it first"
        ) from None
    except (FileNotFoundError, NotADirectoryError) as error:
        if error.filename != str(run):
            raise
        raise UserError(f"{run}: no such folder; make a run with `fvae train`") from None


def claim(run: Path, claims: contextlib.ExitStack, world: World) -> None:
    """Let the main process of a world claim a run until the stack is left.

    Raises:
        UserError: another process trains the run; every process of the world raises it.
    """

    def enter() -> None:
        claims.enter_context(claimed(run))

    world.on_main(enter)


def create_run(config: TrainConfig, run: Path) -> TrainConfig:
    """Make a run folder, and return the configuration with device and precision settled.

    Raises:
        UserError: the folder holds another run or other files.
        OSError: it cannot be made.
    """
    check_free(run)
    config = settle(config)
    run.mkdir(parents=True, exist_ok=True)
    with claimed(run):
        check_free(run)  # no other process has made one meanwhile
        write_atomically(run / CONFIG_NAME, config.to_json())
    return config


def settle(config: _Config) -> _Config:
    """Return the configuration with "auto" replaced by what is here, and the data path absolute."""
    device = resolve_device(config.device)
    precision = resolve_precision(config.precision, device)
    if config.branches and (device.type != "cuda" or not config.graph):
        raise UserError(
            "--branches: parts of a CUDA graph, which is on a CUDA device and without --no-graph;"
            " leave it out, or give --no-branches"
        )
    return dataclasses.replace(
        config,
        device="cuda" if device.type == "cuda" else "cpu",
        precision=precision,
        # A run is scored and shown from any folder.
        data=absolute(config.data),
        factors=config.factors and absolute_factors(config.factors),
    )


@as_imported()
def train(
    config: TrainConfig,
    store: Store,
    run: Path,
    on_log: Callable[[dict], None] = lambda line: None,
    on_step: Callable[[int], None] = lambda step: None,
    world: World | None = None,
) -> int:
    """Train until ``config.steps``, from the run's checkpoint if it has one.

    Checkpoints are written at the first start, every ``config.checkpoint_every`` steps or once a
    minute (:class:`fvae.training.checkpoint.Schedule`), at a signal and at the end.

    Args:
        config: settings as :func:`create_run` or ``TrainConfig.from_file`` returned them.
        store: the data set.
        run: the run folder.
        on_log: called with each line of ``log.jsonl``, by the process that writes it.
        on_step: called with the number of steps done after each.
        world: the processes that share the batch, of :func:`fvae.training.distributed.join`; None
            is this one alone.

    Returns:
        0, or the number of the signal (SIGINT, SIGTERM, SIGHUP) that ended the run early, after the
        step in which it came or, with other processes, some steps later; its checkpoint is then of
        the last step.

    Raises:
        UserError: a loss or weight stopped being finite (the last good checkpoint is kept), or
            the checkpoint or the data do not fit.
        OSError: the folder is read-only or the disk is full.
    """
    world, config = world or World(), sized(config, store)
    with contextlib.ExitStack() as claims:
        claim(run, claims, world)
        return _train(config, store, run, on_log, on_step, world)


def _train(
    config: TrainConfig,
    store: Store,
    run: Path,
    on_log: Callable[[dict], None],
    on_step: Callable[[int], None],
    world: World,
) -> int:
    world.on_main(lambda: run_data.check(run, store, quietly=True))
    trainer = make_trainer(config, store, world)
    means = Means()
    newest: list[dict[str, Tensor]] = []  # the main process's: the others read the file

    def recovered() -> bool:
        tensors = checkpoint.recover(run, config)
        newest.extend([] if tensors is None else [tensors])
        return bool(newest)

    if world.on_main(recovered):
        tensors = world.each(lambda: newest.pop() if newest else checkpoint.read(run, config))
        trainer.restore(tensors, run / checkpoint.NAME)
        means.restore([tensors], trainer.device)
    run_data.keep(run, store, world)
    seconds_so_far = world.on_main(lambda: log.cut(run, trainer.step_count))

    def save() -> None:
        means.share(world)
        if not all(means.are_finite()) or not trainer.is_finite():
            raise _diverged(trainer, run)
        world.on_main(lambda: checkpoint.save(run, trainer.state() | means.state(), config))
        schedule.saved()

    schedule = checkpoint.Schedule(config.checkpoint_every)
    if trainer.step_count == 0:
        save()
    started = time.monotonic() - seconds_so_far
    path = run / log.NAME if world.main else os.devnull
    number = 0  # of the signal that all processes have agreed to stop for
    with _StopSignal() as stop, open(path, "a") as log_file:
        while trainer.step_count < config.steps and not number:
            means.add(trainer.step())
            done = trainer.step_count
            on_step(done)
            end = done == config.steps
            logs = end or done % config.log_every == 0
            saves = end or schedule.at(done)
            # Of the clocks the main process's counts, so that all save at one step.
            if logs or saves or done % world.agree_every == 0:
                number, due = world.largest(stop.number, world.main and schedule.by_clock())
                saves = saves or bool(due or number)
            if logs:
                means.share(world)
                if not all(means.are_finite()):
                    raise _diverged(trainer, run)
                seconds = round(time.monotonic() - started, 3)
                line: dict[str, Any] = {"step": done, "seconds": seconds}
                line |= {"weight": trainer.weight_at(done - 1)} | means.of()
                means.clear()
                log_file.write(json.dumps(line) + "\n")
                log_file.flush()
                if world.main:
                    on_log(line)
            if saves:
                save()
    return number if trainer.step_count < config.steps else 0


def _diverged(trainer: Trainer, run: Path) -> UserError:
    return UserError(
        f"{run}: the loss or a weight is not finite by step {trainer.step_count}; the last good"
        " checkpoint is kept. Train again with a smaller --learning-rate, or --precision fp32"
    )


#: What asks a command to end: Ctrl-C, a request, the loss of the terminal.
ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _StopSignal:
    """Remember the first signal to end; a second one acts as it would without us."""

    def __init__(self) -> None:
        self.number = 0
        self._previous: dict[int, Handler] = {}

    def _catch(self, number: int, frame: object) -> None:
        self.number = number
        signal.signal(number, self._previous[number])

    def __enter__(self) -> "_StopSignal":
        try:
            for number in ENDS:
                # Ignored by whoever started us, as a shell's background job is: leave it so.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._catch)
        except ValueError:  # not the main thread: signals are somebody else's business
            self._previous.clear()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
