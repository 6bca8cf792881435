"""The ``fvae`` command, made from the configuration dataclasses."""

import contextlib
import dataclasses
import errno
import io
import json
import os
import re
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console

from fvae.config import StudyConfig, TrainConfig
from fvae.errors import UserError
from fvae.registry import DATA, METRICS, OBJECTIVES, Registry

if TYPE_CHECKING:
    from fvae.data import Store

_stderr = Console(stderr=True, highlight=False)


@dataclasses.dataclass(frozen=True)
class Train(TrainConfig):
    """Train a model and write a run folder: configuration, log, checkpoint, report."""

    out: Path | None = None
    """Run folder to make; None is runs/OBJECTIVE-seedN."""
    resume: Path | None = None
    """Run folder to continue; its config.json gives every setting, and only --steps (to a larger
    number), --device, --checkpoint-every, --log-every and --data, if the data have moved, may be
    given besides."""


@dataclasses.dataclass(frozen=True)
class Eval:
    """Score a run: FactorVAE metric, Higgins' metric, MIG, SAP and DCI on the same codes."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    protocol: str = "kim2018"
    """kim2018, locatello2019, or exhaustive (every image, no random numbers; FactorVAE metric
    only). Scores of different protocols are not comparable."""
    seed: int = 0
    """Seed of the metrics' random numbers."""
    bins: int | None = None
    """Bins of the mutual information gap; None is the protocol's 20. With fewer bins than a factor
    has values its ceiling is below 1; scores of different bins are not comparable."""
    json: bool = False
    """Print JSON with every constant of the protocol and the votes, instead of a table."""
    device: str = "auto"
    """Where to encode: auto, cpu or cuda."""
    data: str | None = None
    """Where the run's data are now, if they have moved; they must be the same."""
    factors: str | None = None
    """Where their labels are now, if they have moved or came later; as of `fvae train`."""


@dataclasses.dataclass(frozen=True)
class Report:
    """Write the run's report.html: curves, scores, reconstructions, traversals."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    data: str | None = None
    """Where the run's data are now, if they have moved; they must be the same."""
    factors: str | None = None
    """Where their labels are now, if they have moved or came later; as of `fvae train`."""


@dataclasses.dataclass(frozen=True)
class Traverse:
    """Write latent traversals as traversal.png and traversal.gif."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    out: Path | None = None
    """Folder for the two files; None is the run folder."""
    data: str | None = None
    """Where the run's data are now, if they have moved; they must be the same."""
    factors: str | None = None
    """Where their labels are now, if they have moved or came later; as of `fvae train`."""


@dataclasses.dataclass(frozen=True)
class Study(StudyConfig):
    """Train, score and compare a grid of objectives, weights and seeds on one page.

    The same command again continues a study that was stopped, and does nothing when all is done;
    --steps, --seeds and the grid may then be raised. Settings of training hold for every run.
    """

    out: Path = Path("runs/study")
    """The study's folder: study.html, results.csv, study.json, and a run folder for each run."""


@dataclasses.dataclass(frozen=True)
class Data:
    """Load a data set once (rendering or converting it into the cache) and describe it."""

    source: tyro.conf.Positional[str] = "dsprites"
    """What `fvae train --data` takes."""
    images: str | None = None
    """As of `fvae train`: the array of images in the file."""
    factors: str | None = None
    """As of `fvae train`: where the labels are."""
    image_size: int | None = None
    """As of `fvae train`: the side to which pictures are resized."""


@dataclasses.dataclass(frozen=True)
class Doctor:
    """Say what this machine has and which backend each op will use."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exit with 0, 2 for a user's mistake, or 128 + a signal's number."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        command = _parse(arguments)
        status = _COMMANDS[type(command)](command)
    except UserError as error:
        _fail(str(error))
    except OSError as error:
        # Full disk, read-only folder: the system names the cause, the file name the thing.
        thing = error.filename or "the output folder"
        remedy = "name a folder that you can write to"
        if error.errno == errno.ENOSPC:
            remedy = "free some space, then go on with `fvae train --resume`"
        _fail(f"{thing}: {error.strerror or error}; {remedy}")
    except KeyboardInterrupt:
        status = 130
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


def _offer_registered() -> None:
    """Make the entries of the registries the choices and the help of the options that take them."""
    # Written as calls: Literal[...] and tuple[...] are for names that a type checker can read.
    objectives: Any = Literal.__getitem__(tuple(OBJECTIVES))
    Train.__annotations__["objective"] = _helped(objectives, "What to minimise: ", OBJECTIVES)
    Study.__annotations__["objectives"] = types.GenericAlias(tuple, (objectives, ...))
    drawn = (
        "Data set: the path of a published set (dSprites .npz, 3D Shapes .h5, 3D Faces .pth, MPI3D"
        " .npz, Cars3D, SmallNORB), of a .npz, .npy or .h5 with an array of images, or of a folder,"
        " .zip or .tar of pictures (CelebA, 3D Chairs); or made here, "
    )
    for command in (Train, Study):
        command.__annotations__["data"] = _helped(str, drawn, DATA)
    Eval.__doc__ = f"Score a run on the same codes: {', '.join(m.about for m in METRICS.values())}."


def _helped(kind: Any, text: str, entries: Registry[Any]) -> Any:
    """Return the type of an option whose help text ends with the entries and what they are."""
    named = "; ".join(f"{name}: {entry.about}" for name, entry in entries.items())
    return Annotated[kind, tyro.conf.arg(help=f"{text}{named}.")]


def _parse(arguments: list[str]) -> Any:
    _offer_registered()
    base, resumed = Train(), None
    if arguments[:1] == ["train"]:
        resumed = _option(arguments, "--resume")
        if resumed is not None:
            config = TrainConfig.from_file(Path(resumed) / "config.json")
            base = Train(**dataclasses.asdict(config), resume=Path(resumed))
    train = Annotated[Train, tyro.conf.subcommand("train", default=base)]
    commands: Any = train  # a union that only running code knows
    for kind in (Eval, Report, Traverse, Study, Data, Doctor):
        commands |= Annotated[kind, tyro.conf.subcommand(kind.__name__.lower())]
    # tyro prints an error as a box of several lines; people's scripts want one.
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            command = tyro.cli(
                commands,
                prog="fvae",
                description="Train, score and look at FactorVAE and its baselines.",
                args=arguments,
                config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitSubcommandPrefixes),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(_one_line(errors.getvalue())) from None
    if resumed is not None:
        _check_resume(base, command)
    return command


def _option(arguments: list[str], name: str) -> str | None:
    for i, argument in enumerate(arguments):
        if argument == name and i + 1 < len(arguments):
            return arguments[i + 1]
        if argument.startswith(name + "="):
            return argument[len(name) + 1 :]
    return None


def _one_line(box: str) -> str:
    rows = [re.sub(r"^\s*│|│\s*$", "", row).strip() for row in box.splitlines()]
    kept = [row for row in rows if row and not re.match(r"^[╭╰─]", row)]
    text = " ".join(kept)
    # The help text of the option, repeated, is what --help is for.
    text = re.sub(r"Argument helptext:.*?(?=For full helptext)", "", text)
    return re.sub(r"For full helptext, (?:run|see) (.*--help).*", r"see `\1`", text)


def _check_resume(base: Train, command: Train) -> None:
    from fvae.training.checkpoint import RESUMABLE

    for field in dataclasses.fields(Train):
        given, kept = getattr(command, field.name), getattr(base, field.name)
        option = "--" + field.name.replace("_", "-")
        if given != kept and field.name not in RESUMABLE:
            raise UserError(
                f"{option} {given}: cannot be given with --resume, the run has {kept};"
                " leave it out, or train a new run"
            )
    if command.steps < base.steps:
        raise UserError(
            f"--steps {command.steps}: the run was made for {base.steps}; it can only be raised"
        )


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

    config = _config_of(command)
    if command.backend is not None:
        _check_backend(command.backend, config.device)
    with distributed.join(config) as world:
        _stderr.quiet = not world.main

        # Before any data are drawn or converted: what this machine has not is refused.
        config = world.on_main(lambda: loop.settle(config))

        def load(run: Path | None = None) -> "Store":
            place = run_data.where(config)
            return world.on_node_first(lambda: opening.load(place, run, _stderr.is_terminal))

        if command.resume is not None:
            run = command.resume
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
        )
    if command.json:
        print(json.dumps(result, indent=2))
    else:
        Console().print(score_table(result))
    return 0


def _report(command: Report) -> int:
    from fvae import report

    print(report.write_report(command.run, _data_of(command)))
    return 0


def _traverse(command: Traverse) -> int:
    from fvae import report

    for path in report.write_traversals(command.run, _data_of(command), command.out):
        print(path)
    return 0


def _study(command: Study) -> int:
    from fvae.device import keep_freed_memory
    from fvae.study.study import study

    if command.backend is not None:
        _check_backend(command.backend, command.device)
    keep_freed_memory()
    names = [f.name for f in dataclasses.fields(StudyConfig) if f.init]
    config = StudyConfig(**{name: getattr(command, name) for name in names})
    return study(config, command.out, _stderr.is_terminal)


def _data(command: Data) -> int:
    from fvae import opening

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
    Data: _data,
    Doctor: _doctor,
}
