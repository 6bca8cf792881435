"""Every setting of a training run: the only place where a hyperparameter has a default.

The command line is made from these fields: a field's docstring is its help text.
"""

import dataclasses
import json
import math
import os
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NamedTuple, Self, get_args, get_origin

import msgspec

from fvae.errors import UserError
from fvae.registry import OBJECTIVES
from fvae.scalars import boolean, integer, real

#: Settings that a file of an older version lacks; what is now their default was then the rule.
LATER = (
    "mi_weight", "critic_steps", "gradient_penalty", "noise_dim", "categorical_sizes",
    "images", "factors", "image_size", "likelihood", "metrics",
)  # fmt: skip


@dataclass(frozen=True)
class TrainConfig:
    """One training run; written to the run folder as ``config.json``.

    Numbers from Kim & Mnih 2018 unless a field says otherwise.
    """

    objective: str = "factor-vae"
    """What to minimise: reconstruction + KL (vae), + beta KL (beta-vae), or + KL + gamma TC
    (factor-vae); or a game between a generator and a critic that guesses the generator's codes
    (infogan, infowgan-gp)."""
    data: str = "dsprites"
    """Data set: the name of one made here, such as "dsprites"; or the path of a published set
    (dSprites .npz, 3D Shapes .h5, 3D Faces .pth, MPI3D .npz, Cars3D, SmallNORB), of a .npz, .npy
    or .h5 with an array of images, or of a folder, .zip or .tar of pictures (CelebA, 3D Chairs)."""
    images: str | None = None
    """Array of images in the file, where it holds several; None takes the only one."""
    factors: str | None = None
    """Labels: an array in the file, or several with commas between; a .csv or .npy file with a row
    for each image; for pictures, a .csv whose first column names them. None looks for labels,
    factors, y and the like in the file, or for labels.csv or factors.csv in or beside the folder;
    "no" trains without."""
    image_size: int | None = None
    """Side in pixels to which the pictures of a folder, .zip or .tar are resized, at least 16; None
    is 64. Any other data set comes at its own size, which is all that may be given."""
    likelihood: Literal["bernoulli", "gaussian"] = "bernoulli"
    """p(x|z) of a pixel: Bernoulli, whose logit the decoder gives, or a Gaussian of variance 1,
    whose mean it gives. infogan and infowgan-gp have none."""
    gamma: float = 35.0
    """Weight of the total correlation (factor-vae only). 35 was best on 2D Shapes."""
    beta: float = 4.0
    """Weight of the KL (beta-vae only). Best on 2D Shapes, from memory of the paper."""
    warmup_steps: int = 0
    """Steps over which gamma, beta or the mutual information's weight grows linearly from 0 to
    its value."""
    steps: int = 300_000
    """Training steps; the paper's number for 2D Shapes (from memory)."""
    batch_size: int = 64
    """Images in a batch; factor-vae draws a second batch of this size for the permuted codes."""
    latent_dim: int = 10
    """Latent dimensions d; of infogan and infowgan-gp, the continuous codes."""
    learning_rate: float = 1e-4
    """Adam's learning rate of encoder and decoder (betas .9, .999), or of the generator."""
    disc_learning_rate: float = 1e-4
    """Adam's learning rate of the discriminator (betas .5, .9), or of critic and Q head."""
    disc_units: int = 1000
    """Units of each hidden layer of the discriminator."""
    disc_hidden_layers: int = 6
    """Hidden layers of the discriminator; six, or five as some read the paper's "6 layer MLP"."""
    conv_channels: tuple[int, int, int, int] = (32, 32, 64, 64)
    """Channels of the encoder's four convolutions; the decoder mirrors them."""
    hidden_units: int = 128
    """Units of the fully connected layer of encoder and decoder; the paper takes 256 on sets
    other than 2D Shapes."""
    mi_weight: float = 1.0
    """Weight lambda of the mutual information bound (infogan, infowgan-gp); Chen et al. 2016."""
    critic_steps: int = 5
    """Critic steps for each generator step (infowgan-gp; infogan takes one); Gulrajani et al.
    2017."""
    gradient_penalty: float = 10.0
    """Weight of the gradient penalty (infowgan-gp only); Gulrajani et al. 2017."""
    noise_dim: int = 5
    """Noise variables of the generator beside the codes (infogan, infowgan-gp), uniform in
    [-1, 1]; 5 as in the dSprites experiments of Lin et al. 2020 (InfoGAN-CR)."""
    categorical_sizes: tuple[int, ...] = ()
    """Number of values of each categorical code (infogan, infowgan-gp); none by default. They are
    not part of the representation that is scored."""
    seed: int = 0
    """Seed of the initial weights and of every random number of the run."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes a CUDA device if there is one."""
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    """Arithmetic of the networks: IEEE float32 in every layer (fp32), TensorFloat-32 in every layer
    (tf32, on CUDA devices from Ampere on), or products in bfloat16 (bf16) or, with a loss scale, in
    float16 (fp16, on CUDA devices), with float32 weights and losses; auto takes bf16 where the
    processor computes it in hardware."""
    backend: str | None = None
    """Force one backend of the ops; None picks by device."""
    graph: bool = True
    """On a GPU, capture the whole step as a CUDA graph and replay it."""
    checkpoint_every: int | None = None
    """Steps between checkpoints; None saves once a minute, and always at the end."""
    log_every: int = 50
    """Steps between lines of log.jsonl; each line holds means over the interval."""

    def __post_init__(self) -> None:
        """Check every field; raise a UserError that names the first bad one."""
        for one in dataclasses.fields(self):
            option = f"--{one.name.replace('_', '-')}"
            value = _plain(option, one.type, getattr(self, one.name))
            object.__setattr__(self, one.name, value)  # what frozen forbids all others
        optional = () if self.checkpoint_every is None else ("checkpoint_every",)
        for name in _POSITIVE + optional:
            value = getattr(self, name)
            if not value > 0 or not math.isfinite(value):
                raise UserError(f"--{name.replace('_', '-')}: got {value}, expected more than 0")
        for name in ("gamma", "beta", "warmup_steps", "mi_weight", "gradient_penalty", "noise_dim"):
            value = getattr(self, name)
            if not value >= 0 or not math.isfinite(value):
                raise UserError(f"--{name.replace('_', '-')}: got {value}, expected 0 or more")
        if len(self.conv_channels) != 4 or min(self.conv_channels) < 1:
            raise UserError(
                f"--conv-channels: got {self.conv_channels}, expected four positive numbers"
            )
        if self.image_size is not None and self.image_size < SMALLEST_IMAGE:
            raise UserError(
                f"--image-size: got {self.image_size}, expected at least {SMALLEST_IMAGE} pixels"
            )
        if min(self.categorical_sizes, default=2) < 2:
            raise UserError(
                f"--categorical-sizes: got {self.categorical_sizes}, expected numbers of at least 2"
            )
        self._check_likelihood(self.objective)
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise UserError(
                    f"--{name}: got {getattr(self, name)!r}, expected one of {', '.join(known)}"
                )

    def _check_likelihood(self, objective: str) -> None:
        if OBJECTIVES[objective].terms is None and self.likelihood != TrainConfig.likelihood:
            raise UserError(
                f"--likelihood {self.likelihood}: {objective} reconstructs nothing; leave it out"
            )

    def to_json(self) -> str:
        """Return the settings as JSON, a line each."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_fields(cls, fields: dict[str, Any], optional: Collection[str] = LATER) -> Self:
        """Return the settings of a dictionary that went through JSON.

        Args:
            fields: settings by name.
            optional: names that may be missing, and then have their defaults.

        Raises:
            UserError: a setting is missing, unknown, or of another type or range.
        """
        if not isinstance(fields, dict):
            raise UserError(f"got {fields!r}, expected settings by name")
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(fields.keys() - known)
        if unknown:
            raise UserError(
                f"made by a newer fvae, or not by fvae: has the unknown setting {unknown[0]!r};"
                " update fvae"
            )
        missing = sorted(known - fields.keys() - set(optional))
        if missing:
            raise UserError(f"the setting {missing[0]!r} is missing")
        try:
            return msgspec.convert(fields, cls)
        except msgspec.ValidationError as error:
            if isinstance(error.__cause__, UserError):
                raise error.__cause__ from None
            what, _, place = str(error).partition(" - at `$.")
            name = place.rstrip("`")
            value = fields.get(re.split(r"\W", name)[0])
            raise UserError(f"{name}: got {value!r}. {what}".replace("`", "")) from None

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """Read the settings back from a ``config.json``.

        Raises:
            UserError: the file is missing, is not JSON, or a setting is missing, unknown, or of
                another type or range.
        """
        try:
            return cls.from_fields(json.loads(path.read_text(encoding="utf-8")))
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(
                f"{path}: no such file; {path.parent} is not a run folder made by `fvae train`"
            ) from None
        except UserError as error:
            raise UserError(f"{path}: {error}; restore it or train again") from None
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(
                f"{path}: not a readable configuration ({error}); restore it or train again"
            ) from None


@dataclass(frozen=True)
class StudyConfig(TrainConfig):
    """A grid of training runs, each objective with each of its weights and each seed.

    The inherited fields hold for every run, but for those that the grid sets.
    """

    objective: str = field(init=False, default=TrainConfig.objective)
    gamma: float = field(init=False, default=TrainConfig.gamma)
    beta: float = field(init=False, default=TrainConfig.beta)
    seed: int = field(init=False, default=TrainConfig.seed)

    objectives: tuple[str, ...] = ("factor-vae", "beta-vae")
    """What to train; objectives other than factor-vae and beta-vae have no weight to vary."""
    gammas: tuple[float, ...] = (10.0, 20.0, 30.0, 40.0, 50.0, 100.0)
    """Weights of the total correlation, for factor-vae; those of Locatello et al. 2019."""
    betas: tuple[float, ...] = (1.0, 2.0, 4.0, 6.0, 8.0, 16.0)
    """Weights of the KL, for beta-vae; those of Locatello et al. 2019, from memory."""
    seeds: int = 5
    """Runs of each setting, with the seeds 0, 1, ..."""
    protocol: str = "kim2018"
    """Protocol of the scores, as of `fvae eval`."""
    metrics: tuple[str, ...] | None = None
    """Which scores to take, as of `fvae eval`."""
    strategy: Literal["auto", "one-by-one", "processes", "stacked", "stacked-processes"] = "auto"
    """How runs share a device: one after another, one process a core (CPU), several stacked in one
    step, or several stacked in each of one process a core (CPU); auto measures and takes the
    fastest."""
    devices: int = 1
    """Processes to spread the runs over: each has a GPU, or an equal share of the cores."""
    launcher: Literal["local", "ray"] = "local"
    """What starts the processes of --devices: torchrun on this machine, or a Ray cluster whose
    machines see the study's folder (pip install 'fvae[ray]')."""

    def __post_init__(self) -> None:
        """Check every field; raise a UserError that names the first bad one."""
        super().__post_init__()
        for name in ("seeds", "devices"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name}: got {getattr(self, name)}, expected 1 or more")
        for name in self.objectives:
            self._check_likelihood(name)
        for name in ("objectives", "gammas", "betas"):
            if not getattr(self, name):
                raise UserError(f"--{name}: got none, expected one or more")
        for name in ("gammas", "betas"):
            for value in getattr(self, name):
                if not value >= 0 or not math.isfinite(value):
                    raise UserError(f"--{name}: got {value}, expected 0 or more")


def _plain(option: str, kind: Any, value: Any) -> Any:
    """Return a setting as JSON holds it: NumPy's numbers and those in tensors as Python's."""
    of = get_args(kind)
    if isinstance(kind, UnionType):  # of one kind and None
        return None if value is None else _plain(option, of[0], value)
    try:
        if get_origin(kind) is tuple:
            if isinstance(value, str) or not hasattr(value, "__iter__"):
                raise TypeError(f"{option}: got {value!r}, expected several values")
            return tuple(_plain(option, of[0], one) for one in value)
        if kind in (bool, int, float):
            return {bool: boolean, int: integer, float: real}[kind](option, value)
        if kind is str and isinstance(value, os.PathLike):
            return os.fspath(value)
        if kind is str and not isinstance(value, str):
            raise TypeError(f"{option}: got {value!r}, expected a name")
    except TypeError as error:
        raise UserError(str(error)) from None
    return value


#: Side of the pictures of a folder where image_size is None, and of what came before that setting.
IMAGE_SIZE = 64
#: Four convolutions halve the side four times.
SMALLEST_IMAGE = 16

_POSITIVE = (
    "steps",
    "batch_size",
    "latent_dim",
    "learning_rate",
    "disc_learning_rate",
    "disc_units",
    "disc_hidden_layers",
    "hidden_units",
    "critic_steps",
    "log_every",
)
_CHOICES = {
    "likelihood": ("bernoulli", "gaussian"),
    "device": ("auto", "cpu", "cuda"),
    "precision": ("auto", "fp32", "tf32", "bf16", "fp16"),
}


class LossScale(NamedTuple):
    """What a float16 run multiplies its loss by: numbers of PyTorch's ``GradScaler``."""

    first: float = 65536.0
    growth: float = 2.0
    backoff: float = 0.5
    interval: int = 2000


LOSS_SCALE = LossScale()
VAE_BETAS = (0.9, 0.999)
DISC_BETAS = (0.5, 0.9)
#: Adam's betas of both players: Chen et al. 2016 (the first; their code), Gulrajani et al. 2017.
GAN_BETAS = {"infogan": (0.5, 0.999), "infowgan-gp": (0.5, 0.9)}
