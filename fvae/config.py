"""Every setting of a training run: the only place where a hyperparameter has a default.

The command line is made from these fields: a field's docstring is its help text.
"""

import dataclasses
import json
import math
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, get_args, get_origin

import msgspec

from fvae.errors import UserError
from fvae.files import from_json
from fvae.registry import OBJECTIVES
from fvae.settings import correlation_of, plain

#: Settings that a file of an older version lacks; what is now their default was then the rule.
LATER = (
    "mi_weight", "critic_steps", "gradient_penalty", "noise_dim", "categorical_sizes",
    "images", "factors", "image_size", "likelihood", "metrics", "correlate", "conv_kernels",
    "shuffle", "tc_sampling", "dip_lambda", "dip_ratio", "capacity", "capacity_steps",
    "capacity_weight", "tc_betas", "dip_lambdas", "capacities", "branches", "own",
    "learning_rate_schedule", "learning_rate_warmup_steps", "output_bias", "kl_start", "kl_steps",
)  # fmt: skip


@dataclass(frozen=True)
class TrainConfig:
    """One training run; written to the run folder as ``config.json``.

    Numbers from Kim & Mnih 2018 unless a field says otherwise.
    """

    objective: str = "factor-vae"
    """What to minimise: reconstruction + KL (vae), + beta KL (beta-vae), + KL + gamma TC
    (factor-vae), + the KL's three parts with beta on the TC (beta-tcvae), + KL + a penalty on the
    covariance of the codes' means (dip-vae-i) or of the codes (dip-vae-ii), or + the distance of
    the KL from a growing capacity (annealed-vae); or a game between a generator and a critic that
    guesses the generator's codes (infogan, infowgan-gp)."""
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
    correlate: tuple[str, ...] = ()
    """Pairs of factors that vary together in training, "first,second:sigma" each, as in Träuble et
    al. 2021: p(c1, c2) goes as exp(-(c1 - c2)^2 / (2 sigma^2)), both scaled to 0..1; sigma 0.2 is
    strong, 0.7 weak. All else stays uniform, and scores are those of the whole set."""
    likelihood: Literal["bernoulli", "gaussian"] = "bernoulli"
    """p(x|z) of a pixel: Bernoulli, whose logit the decoder gives, or a Gaussian of variance 1,
    whose mean it gives. infogan and infowgan-gp have none."""
    gamma: float = 35.0
    """Weight of the total correlation (factor-vae only). 35 was best on 2D Shapes."""
    beta: float = 4.0
    """Weight of the KL (beta-vae), or of the total correlation (beta-tcvae). 4 was best on 2D
    Shapes for beta-vae, from memory of the paper."""
    tc_sampling: Literal["weighted", "stratified"] = "weighted"
    """Weights with which a batch stands for the data set in the total correlation (beta-tcvae
    only): equal ones, which shift its parts by constants, or stratified ones, whose q(z) has no
    bias; Chen et al. 2018, appendix C."""
    dip_lambda: float = 10.0
    """Weight lambda_od of the covariances off the diagonal (dip-vae-i, dip-vae-ii)."""
    dip_ratio: float | None = None
    """lambda_d / lambda_od, the weight of the variances' distance from 1 over that of the
    covariances (dip-vae-i, dip-vae-ii); None is 10 for dip-vae-i and 1 for dip-vae-ii, as in Kumar
    et al. 2018."""
    kl_start: float = 1.0
    """Weight of factor-vae's KL at first, from which it goes linearly to 1 over kl_steps."""
    kl_steps: int = 0
    """Steps until factor-vae's KL weighs 1."""
    capacity: float = 25.0
    """KL in nats at which the capacity of annealed-vae ends."""
    capacity_steps: int = 100_000
    """Steps over which annealed-vae's capacity grows linearly from 0; Locatello et al. 2019."""
    capacity_weight: float = 1000.0
    """Weight gamma of the distance between KL and capacity (annealed-vae only); Burgess et al.
    2018."""
    warmup_steps: int = 0
    """Steps over which gamma, beta, dip_lambda or the mutual information's weight grows linearly
    from 0 to its value."""
    steps: int = 300_000
    """Training steps; the paper's number for 2D Shapes (from memory)."""
    batch_size: int = 64
    """Images in a batch; factor-vae draws a second batch of this size for the permuted codes."""
    shuffle: Literal["second", "same"] = "second"
    """Batch whose codes factor-vae permutes for its discriminator: a second one, as in the paper's
    Algorithm 2, or the same one, as in Locatello et al. 2019."""
    latent_dim: int = 10
    """Latent dimensions d; of infogan and infowgan-gp, the continuous codes."""
    learning_rate: float = 1e-4
    """Adam's learning rate of encoder and decoder (betas .9, .999), or of the generator."""
    disc_learning_rate: float = 1e-4
    """Adam's learning rate of the discriminator (betas .5, .9), or of critic and Q head."""
    learning_rate_schedule: Literal["constant", "cosine"] = "constant"
    """What becomes of both learning rates after their warm-up: they stay, or fall as half a cosine
    to 0 at the end of --steps, which can then not be raised."""
    learning_rate_warmup_steps: int = 0
    """Steps over which both learning rates grow linearly to their values."""
    disc_units: int = 1000
    """Units of each hidden layer of the discriminator."""
    disc_hidden_layers: int = 6
    """Hidden layers of the discriminator; six, or five as some read the paper's "6 layer MLP"."""
    conv_channels: tuple[int, int, int, int] = (32, 32, 64, 64)
    """Channels of the encoder's four convolutions; the decoder mirrors them."""
    conv_kernels: tuple[int, int, int, int] = (4, 4, 4, 4)
    """Sides in pixels of the encoder's four kernels, even numbers; the decoder's are 4."""
    hidden_units: int = 128
    """Units of the fully connected layer of encoder and decoder; the paper takes 256 on sets
    other than 2D Shapes."""
    output_bias: Literal["random", "mean"] = "random"
    """What the biases of the decoder's last layer begin with (the GANs have none): random numbers
    near 0, or each channel's mean over the images, for bernoulli its logit."""
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
    processor is faster with it."""
    backend: str | None = None
    """Force one backend of the ops; None picks by device."""
    graph: bool = True
    """On a GPU, capture the whole step as a CUDA graph and replay it."""
    branches: bool = False
    """Let what is independent in that graph run at once; not measured on a GPU yet."""
    checkpoint_every: int | None = None
    """Steps between checkpoints; None saves once a minute, and always at the end."""
    log_every: int = 50
    """Steps between lines of log.jsonl; each line holds means over the interval."""

    def __post_init__(self) -> None:
        """Check every field; raise a UserError that names the first bad one."""
        for one in dataclasses.fields(self):
            option = f"--{one.name.replace('_', '-')}"
            value = plain(option, one.type, getattr(self, one.name))
            object.__setattr__(self, one.name, value)  # what frozen forbids all others
            known = get_args(one.type)
            if get_origin(one.type) is Literal and value not in known:
                raise UserError(f"{option}: got {value!r}, expected one of {', '.join(known)}")
        optional = () if self.checkpoint_every is None else ("checkpoint_every",)
        for name in _POSITIVE + optional:
            value = getattr(self, name)
            if not value > 0 or not math.isfinite(value):
                raise UserError(f"--{name.replace('_', '-')}: got {value}, expected more than 0")
        for name in _NOT_NEGATIVE:
            value = getattr(self, name)
            if value is not None and (not value >= 0 or not math.isfinite(value)):
                raise UserError(f"--{name.replace('_', '-')}: got {value}, expected 0 or more")
        if len(self.conv_channels) != 4 or min(self.conv_channels) < 1:
            raise UserError(
                f"--conv-channels: got {self.conv_channels}, expected four positive numbers"
            )
        if len(self.conv_kernels) != 4 or any(k < 2 or k % 2 for k in self.conv_kernels):
            raise UserError(
                f"--conv-kernels: got {self.conv_kernels}, expected four even numbers of at least 2"
            )
        if self.image_size is not None and self.image_size < SMALLEST_IMAGE:
            raise UserError(
                f"--image-size: got {self.image_size}, expected at least {SMALLEST_IMAGE} pixels"
            )
        if self.kl_start != 1 and not self.kl_steps:
            raise UserError(f"--kl-start {self.kl_start}: goes to 1 over --kl-steps; give that too")
        if min(self.categorical_sizes, default=2) < 2:
            raise UserError(
                f"--categorical-sizes: got {self.categorical_sizes}, expected numbers of at least 2"
            )
        for pair in self.correlate:
            correlation_of(pair)
        self._check_likelihood(self.objective)
        self._check_owned(getattr(self, "objectives", (self.objective,)))  # those of a study

    def _check_owned(self, objectives: tuple[str, ...]) -> None:
        for name in _OWNED:
            value = getattr(self, name)
            if value == getattr(TrainConfig, name):
                continue
            owners = [one for one, objective in OBJECTIVES.items() if objective.takes(name)]
            if not set(objectives) & set(owners):
                raise UserError(
                    f"--{name.replace('_', '-')} {value}: {', '.join(objectives)} takes none; leave"
                    f" it out, or take {' or '.join(owners)}"
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
            return cls.from_fields(from_json(path.read_text(encoding="utf-8")))
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(
                f"{path}: no such file; {path.parent} is not a run folder made by `fvae train`"
            ) from None
        except UserError as error:
            raise UserError(f"{path}: {error}; restore it or train again") from None
        except (OSError, ValueError) as error:
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
    dip_lambda: float = field(init=False, default=TrainConfig.dip_lambda)
    capacity: float = field(init=False, default=TrainConfig.capacity)
    seed: int = field(init=False, default=TrainConfig.seed)

    objectives: tuple[str, ...] = ("factor-vae", "beta-vae")
    """What to train; vae, infogan and infowgan-gp have no weight to vary."""
    gammas: tuple[float, ...] = (10.0, 20.0, 30.0, 40.0, 50.0, 100.0)
    """Weights of the total correlation, for factor-vae; those of Locatello et al. 2019."""
    betas: tuple[float, ...] = (1.0, 2.0, 4.0, 6.0, 8.0, 16.0)
    """Weights of the KL, for beta-vae; those of Locatello et al. 2019."""
    tc_betas: tuple[float, ...] = (1.0, 2.0, 4.0, 6.0, 8.0, 10.0)
    """Weights of the total correlation, for beta-tcvae; those of Locatello et al. 2019."""
    dip_lambdas: tuple[float, ...] = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
    """Weights lambda_od, for dip-vae-i and dip-vae-ii; those of Locatello et al. 2019."""
    capacities: tuple[float, ...] = (5.0, 10.0, 25.0, 50.0, 75.0, 100.0)
    """Capacities in nats, for annealed-vae; those of Locatello et al. 2019."""
    own: tuple[str, ...] = ()
    """Settings of one objective's runs alone, such as infowgan-gp:steps=1200,learning_rate=1e-4."""
    seeds: int = 5
    """Runs of each setting, with the seeds 0, 1, ..."""
    protocol: str = "kim2018"
    """Protocol of the scores, as of `fvae eval`."""
    metrics: tuple[str, ...] | None = None
    """Which scores to take, as of `fvae eval`; besides udr, udr_lasso and model_centrality, which
    compare the runs of a setting and need no labels."""
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
        for name in ("objectives", *GRIDS):
            if not getattr(self, name):
                raise UserError(f"--{name.replace('_', '-')}: got none, expected one or more")
        for name in GRIDS:
            for value in getattr(self, name):
                if not value >= 0 or not math.isfinite(value):
                    raise UserError(f"--{name.replace('_', '-')}: got {value}, expected 0 or more")


#: Settings of a study that hold weights of an objective.
GRIDS = ("gammas", "betas", "tc_betas", "dip_lambdas", "capacities")


def foreign(objective: str) -> tuple[str, ...]:
    """Return the settings that an objective has no use for, and which are refused with it."""
    return tuple(name for name in _OWNED if not OBJECTIVES[objective].takes(name))


#: Side of the pictures of a folder where image_size is None, and of what came before that setting.
IMAGE_SIZE = 64
#: Four convolutions halve the side four times.
SMALLEST_IMAGE = 16

_POSITIVE = ("steps", "batch_size", "latent_dim", "learning_rate", "disc_learning_rate",
             "disc_units", "disc_hidden_layers", "hidden_units", "critic_steps",
             "log_every")  # fmt: skip
_NOT_NEGATIVE = ("gamma", "beta", "warmup_steps", "mi_weight", "gradient_penalty", "noise_dim",
                 "dip_lambda", "dip_ratio", "capacity", "capacity_steps", "capacity_weight",
                 "learning_rate_warmup_steps", "kl_start", "kl_steps")  # fmt: skip
# Refused with objectives that have no use for them.
_OWNED = ("tc_sampling", "dip_lambda", "dip_ratio", "capacity", "capacity_steps",
          "capacity_weight")  # fmt: skip


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
#: lambda_d / lambda_od where --dip-ratio is None: Kumar et al. 2018.
DIP_RATIOS = {"dip-vae-i": 10.0, "dip-vae-ii": 1.0}

# The models of Locatello et al. 2019.
_LOCATELLO2019: dict[str, Any] = {
    "steps": 300_000, "batch_size": 64, "shuffle": "same", "latent_dim": 10,
    "likelihood": "bernoulli", "learning_rate": 1e-4, "disc_learning_rate": 1e-4,
    "disc_units": 1000, "disc_hidden_layers": 6, "conv_channels": (32, 32, 64, 64),
    "conv_kernels": (4, 4, 2, 2), "hidden_units": 256, "warmup_steps": 0,
    "learning_rate_schedule": "constant", "learning_rate_warmup_steps": 0, "output_bias": "random",
    "kl_start": 1.0, "kl_steps": 0,
}  # fmt: skip
_KIM2018 = {name: getattr(TrainConfig, name) for name in _LOCATELLO2019}
#: What --recipe takes: values of several settings.
RECIPES: dict[str, dict[str, Any]] = {
    "paper": _KIM2018, "kim2018": _KIM2018, "locatello2019": _LOCATELLO2019,
    # Minutes on a CPU rather than hours; what was tried is in bench/LOG.md.
    "fast": _KIM2018 | {"steps": 12_000, "learning_rate": 1e-3, "learning_rate_warmup_steps": 1000,
                        "warmup_steps": 4000, "kl_start": 8.0, "kl_steps": 4000,
                        "disc_units": 256, "disc_hidden_layers": 4},
}  # fmt: skip
