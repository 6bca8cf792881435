"""What the ``fvae`` command can be asked for, made from the configuration dataclasses."""

import contextlib
import dataclasses
import io
import re
import types
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from fvae.config import RECIPES, StudyConfig, TrainConfig
from fvae.errors import UserError
from fvae.registry import DATA, METRICS, OBJECTIVES, Registry
from fvae.study.presets import PRESETS, SCALES, SETS, paper_preset


@dataclasses.dataclass(frozen=True)
class Train(TrainConfig):
    """Train a model and write a run folder: configuration, log, checkpoint, report."""

    recipe: str | None = None
    """Settings of a published study's models, which options beside it change: kim2018, the
    defaults, or locatello2019, with an encoder of kernels 4, 4, 2, 2, 256 hidden units and one
    batch a step; None is kim2018."""
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
    metrics: tuple[str, ...] | None = None
    """Which scores to take; all takes every one, None the usual ones. What was scored before of the
    same state stays beside them."""
    json: bool = False
    """Print JSON with every constant of the protocol and the votes, instead of a table."""
    device: str = "auto"
    """Where to encode: auto, cpu or cuda."""
    precision: str = "auto"
    """What to encode in: fp32 (IEEE float32), bf16, or auto, which is bf16 on a processor that has
    it. Scores of the two differ by less than their sampling does."""
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

    preset: str | None = None
    """A published study's grid and settings, which options beside it change: locatello2019, six
    objectives with six weights and 50 seeds each, of its recipe and protocol; the others are those
    of `fvae paper`."""
    recipe: str | None = None
    """As of `fvae train`; None is kim2018, or the preset's."""
    out: Path = Path("runs/study")
    """The study's folder: study.html, results.csv, study.json, and a run folder for each run."""


@dataclasses.dataclass(frozen=True)
class Paper(StudyConfig):
    """Reproduce the FactorVAE paper's comparison with beta-VAE and InfoWGAN-GP on one page.

    It is `fvae study --preset paper-SET-SCALE`: the same command again continues it, and the other
    options of a study change its settings. Beside the study's page comes paper.html, the paper's
    figures and ours beside the published numbers.
    """

    set: str = "2d-shapes"
    """The paper's data set: 2d-shapes (dSprites) or 3d-shapes (3D Shapes), both rendered here
    unless --data names the published file."""
    scale: str = "smoke"
    """smoke (minutes; shows that everything works, and nothing else), cpu (a night on two cores) or
    full (as published: 300,000 or 500,000 steps, 10 seeds)."""
    out: Path | None = None
    """The study's folder: paper.html, figures/, and what `fvae study` makes; None is
    runs/paper-SET-SCALE."""


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


def _offer_registered() -> None:
    """Make the entries of the registries the choices and the help of the options that take them."""
    # Written as calls: Literal[...] and tuple[...] are for names that a type checker can read.
    objectives: Any = Literal.__getitem__(tuple(OBJECTIVES))
    Train.__annotations__["objective"] = _helped(objectives, "What to minimise: ", OBJECTIVES)
    several = types.GenericAlias(tuple, (objectives, ...))
    Study.__annotations__["objectives"] = Paper.__annotations__["objectives"] = several
    recipes: Any = Literal.__getitem__((None, *RECIPES))
    Train.__annotations__["recipe"] = Study.__annotations__["recipe"] = recipes
    Study.__annotations__["preset"] = Literal.__getitem__((None, *PRESETS))
    Paper.__annotations__["set"] = Literal.__getitem__(SETS)
    Paper.__annotations__["scale"] = Literal.__getitem__(SCALES)
    drawn = (
        "Data set: the path of a published set (dSprites .npz, 3D Shapes .h5, 3D Faces .pth, MPI3D"
        " .npz, Cars3D, SmallNORB), of a .npz, .npy or .h5 with an array of images, or of a folder,"
        " .zip or .tar of pictures (CelebA, 3D Chairs); or made here, "
    )
    for command in (Train, Study, Paper):
        command.__annotations__["data"] = _helped(str, drawn, DATA)
    Eval.__doc__ = f"Score a run on the same codes: {', '.join(m.about for m in METRICS.values())}."


def _helped(kind: Any, text: str, entries: Registry[Any]) -> Any:
    """Return the type of an option whose help text ends with the entries and what they are."""
    named = "; ".join(f"{name}: {entry.about}" for name, entry in entries.items())
    return Annotated[kind, tyro.conf.arg(help=f"{text}{named}.")]


def parse(arguments: list[str]) -> Any:
    """Return the command that the words of a command line ask for, one of the classes above.

    Raises:
        UserError: there is no such command or option, or a value is wrong.
        SystemExit: help was asked for, and printed.
    """
    _offer_registered()
    names = ("recipe", "preset", "set", "scale")
    first = {name: _option(arguments, "--" + name) for name in names}
    recipe, preset = first["recipe"], first["preset"]
    if arguments[:1] == ["paper"]:
        which, scale = first["set"] or Paper.set, first["scale"] or Paper.scale
        first = {"set": which, "scale": scale}
        recipe, preset = None, paper_preset(which, scale)
    base, resumed = Train(), None
    if arguments[:1] == ["train"]:
        resumed = _option(arguments, "--resume")
        if resumed is not None:
            config = TrainConfig.from_file(Path(resumed) / "config.json")
            base = Train(**dataclasses.asdict(config), resume=Path(resumed))
    if arguments[:1] in (["train"], ["study"], ["paper"]):
        settings = PRESETS.get(preset or "", {}) | RECIPES.get(recipe or "", {})
        # In front, so that what was given wins.
        arguments = [arguments[0], *_words(settings), *arguments[1:]]
    train = Annotated[Train, tyro.conf.subcommand("train", default=base)]
    commands: Any = train  # a union that only running code knows
    for kind in (Eval, Report, Traverse, Study, Paper, Data, Doctor):
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
    for name, value in first.items():
        if str(getattr(command, name, value)) != str(value):
            raise UserError(f"--{name}: given twice; leave one of them out")
    if resumed is not None:
        if recipe is not None:
            raise UserError(
                f"--recipe {recipe}: cannot be given with --resume, the run has its settings; leave"
                " it out, or train a new run"
            )
        _check_resume(base, command)
    return command


def _words(settings: dict[str, Any]) -> list[str]:
    """The options that give some settings."""
    words = []
    for name, value in settings.items():
        each = value if isinstance(value, tuple) else (value,)
        words += ["--" + name.replace("_", "-"), *map(str, each)]
    return words


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
    # Where the terminal knows no lines, dashes draw the box.
    text = re.sub(r"-{5,}|^[|+ ]+|[|+ ]+$", "", " ".join(kept)).strip()
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
