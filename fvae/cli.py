"""The ``fvae`` command: what is done for each thing that it can be asked for."""

import contextlib
import dataclasses
import errno
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from fvae.commands import Data, Doctor, Eval, Paper, Report, Study, Train, Traverse, parse
from fvae.config import StudyConfig, TrainConfig
from fvae.errors import UserError
from fvae.streams import OutputLost, abandon, end_in_order

if TYPE_CHECKING:
    from fvae.data import Store

_stderr = Console(stderr=True, highlight=False)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exit with 0, 2 for a user's mistake, or 128 + a signal's number."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command = None
    try:
        command = parse(arguments)
        status = _COMMANDS[type(command)](command)
        sys.stdout.flush()
    except UserError as error:
        _fail(str(error))
    except OutputLost as error:
        abandon(1)
        if error.errno == errno.EPIPE:  # `fvae ... | head`: the reader has what it wanted
            _exit(128 + signal.SIGPIPE)
        _fail(f"standard output: {error.strerror}; send it to a file or a terminal")
    except OSError as error:
        # Full disk, read-only folder: the system names the cause, the file name the thing.
        thing = error.filename or "the output folder"
        remedy = "name a folder that you can write to"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            again = "give the same command again"
            if isinstance(command, Train):
                again = "go on with `fvae train --resume`"
            remedy = f"free some space, then {again}"
        _fail(f"{os.fsdecode(thing)}: {error.strerror or error}; {remedy}")
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    _exit(status)


def _fail(message: str) -> None:
    if os.environ.get("RANK", "0") != "0" and "TORCHELASTIC_RUN_ID" in os.environ:
        # Torchrun ends us as soon as process 0 has failed. If it has not, the error is ours alone.
        time.sleep(5)
    print("fvae: error: " + " ".join(message.split()), file=sys.stderr)
    _exit(2)


def _exit(status: int) -> None:
    if "TORCHELASTIC_RUN_ID" in os.environ:
        # Gloo's threads may still hold tensors; should one let go of them while the interpreter
        # shuts down, the process would abort.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


# --- commands: each returns the exit status ----------------------------------------------------


def _config_of(command: Train) -> TrainConfig:
    names = [f.name for f in dataclasses.fields(TrainConfig)]
    return TrainConfig(**{name: getattr(command, name) for name in names})


def _data_of(command: Any) -> "Store":
    from fvae import opening

    return opening.data_of(command.run, command.data, command.factors, _stderr.is_terminal)


def _train(command: Train) -> int:
    from fvae import opening, report
    from fvae.device import keep_freed_memory
    from fvae.files import write_atomically
    from fvae.progress import TrainingProgress
    from fvae.training import distributed, loop, run_data
    from fvae.training.trainer import sized

    end_in_order()
    config = _config_of(command)
    if command.backend is not None:
        _check_backend(command.backend, config.device)
    with distributed.join(config) as world, contextlib.ExitStack() as claims:
        _stderr.quiet = not world.main

        # Before any data are drawn or converted: what this machine has not is refused.
        config = world.on_main(lambda: loop.settle(config))

        def load(run: Path | None = None) -> "Store":
            place = run_data.where(config)
            return world.on_node_first(lambda: opening.load(place, run, _stderr.is_terminal))

        if command.resume is not None:
            run = command.resume
            loop.claim(run, claims, world)
            store = load(run)
            world.on_main(lambda: run_data.check(run, store, quietly=True))
            world.on_main(lambda: write_atomically(run / loop.CONFIG_NAME, config.to_json()))
        else:
            run = command.out or Path("runs") / f"{config.objective}-seed{config.seed}"
            world.on_main(lambda: loop.check_free(run))
            store = load()
            config = sized(config, store)  # refused before there is a folder
            world.on_main(lambda: loop.create_run(config, run))
        keep_freed_memory()
        with TrainingProgress(config.steps, _stderr) as progress:
            signal_number = loop.train(config, store, run, progress.on_log, progress.on_step, world)
        if signal_number:
            stopped = f"stopped; continue with: fvae train --resume {run}"
            world.on_main(lambda: print(stopped, file=sys.stderr))
            return 128 + signal_number
    if world.main:
        print(report.write_report(run, store))
    return 0


def _check_backend(name: str, device: str) -> None:
    """Try the backend on a tiny input, before a run folder is made."""
    import torch

    from fvae import ops
    from fvae.device import resolve_device

    if name not in ops.BACKENDS:
        raise UserError(f"--backend {name}: expected one of {', '.join(ops.BACKENDS)}")
    ops.permute_dims(torch.zeros(1, 1, device=resolve_device(device)), backend=name)


def _eval(command: Eval) -> int:
    from fvae import evaluate
    from fvae.device import keep_freed_memory, resolve_device
    from fvae.report.terminal import score_table

    end_in_order()
    device = resolve_device(command.device)
    keep_freed_memory()
    store = _data_of(command)
    with _stderr.status("encoding") as status:
        result = evaluate.evaluate(
            command.run,
            store,
            command.protocol,
            command.seed,
            device,
            lambda done, total: status.update(f"encoding {done:,} of {total:,} images"),
            command.bins,
            command.metrics,
            command.precision,
        )
    if command.json:
        print(json.dumps(result, indent=2))
    else:
        Console().print(score_table(result))
    return 0


def _report(command: Report) -> int:
    from fvae import report

    end_in_order()
    print(report.write_report(command.run, _data_of(command)))
    return 0


def _traverse(command: Traverse) -> int:
    from fvae import report

    end_in_order()
    for path in report.write_traversals(command.run, _data_of(command), command.out):
        print(path)
    return 0


def _paper(command: Paper) -> int:
    from fvae.study.presets import paper_preset

    name = paper_preset(command.set, command.scale)
    return _bring_to_its_end(command, command.out or Path("runs") / name, name)


def _study(command: Study) -> int:
    return _bring_to_its_end(command, command.out, command.preset)


def _bring_to_its_end(command: Study | Paper, out: Path, preset: str | None) -> int:
    from fvae.device import keep_freed_memory
    from fvae.study.study import study

    end_in_order()
    if command.backend is not None:
        _check_backend(command.backend, command.device)
    keep_freed_memory()
    names = [f.name for f in dataclasses.fields(StudyConfig) if f.init]
    config = StudyConfig(**{name: getattr(command, name) for name in names})
    return study(config, out, _stderr.is_terminal, preset)


def _data(command: Data) -> int:
    from fvae import opening

    end_in_order()
    place = {"source": command.source, "images": command.images, "factors": command.factors,
             "image_size": command.image_size}  # fmt: skip
    Console().print(opening.described(opening.load(place, progress=_stderr.is_terminal)))
    return 0


def _doctor(_: Doctor) -> int:
    from fvae.doctor import diagnose

    findings = diagnose()
    width = max(len(name) for name, _ in findings)
    for name, finding in findings:
        print(f"{name:<{width}}  {finding}")
    return 0


#: Each returns the exit status.
_COMMANDS: dict[type, Callable[[Any], int]] = {
    Train: _train,
    Eval: _eval,
    Report: _report,
    Traverse: _traverse,
    Study: _study,
    Paper: _paper,
    Data: _data,
    Doctor: _doctor,
}
