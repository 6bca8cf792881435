"""Checkpoints: one safetensors file with weights, optimizer state, seed and step.

Nothing is pickled. The file's metadata holds the configuration that made it.
"""

import dataclasses
import json
import time
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from fvae.config import TrainConfig
from fvae.device import as_imported
from fvae.errors import UserError
from fvae.files import write_atomically
from fvae.models import vae as nets
from fvae.models.infogan import InfoGAN
from fvae.models.vae import VAE
from fvae.registry import OBJECTIVES

NAME = "checkpoint.safetensors"
_FORMAT = "1"

#: Settings that may differ between a run and its continuation. Where the data are may change; that
#: they are the same is checked by their fingerprint (:mod:`fvae.training.run_data`).
RESUMABLE = (
    "steps", "device", "graph", "checkpoint_every", "log_every", "data", "images", "factors",
)  # fmt: skip

#: Seconds between checkpoints where ``checkpoint_every`` is None. At full size, 66 MB are fetched
#: from the device and synced to the disk while training waits: 0.2 to 0.3 s, at most 0.5 % of a
#: minute, for which no thread that writes meanwhile is worth its while.
INTERVAL = 60.0

#: The time in seconds. It asks the processor alone: no device is waited for.
clock = time.monotonic


class Schedule:
    """When a run's next checkpoint is due: by its steps, or by the clock since the last one.

    Args:
        every: steps between checkpoints; None is one each :data:`INTERVAL` seconds.
    """

    def __init__(self, every: int | None) -> None:
        self.every = every
        self.saved()

    def saved(self) -> None:
        """Take note that a checkpoint was written now."""
        self._last = clock()

    def at(self, step: int) -> bool:
        """Return whether one is due by the number of steps done."""
        return self.every is not None and step % self.every == 0

    def by_clock(self) -> bool:
        """Return whether one is due by now."""
        return self.every is None and clock() - self._last >= INTERVAL


def save(run: Path, tensors: dict[str, Tensor], config: TrainConfig, name: str = NAME) -> None:
    """Write the run's checkpoint, whole or not at all, as the file ``name`` of its folder.

    Raises:
        OSError: the folder is read-only or the disk is full.
    """
    # safetensors refuses non-contiguous tensors: channels_last weights are written row-major.
    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    metadata = {"format": _FORMAT, "config": json.dumps(json.loads(config.to_json()))}
    write_atomically(run / name, safetensors.torch.save(plain, metadata))


def read(run: Path, config: TrainConfig, name: str = NAME) -> dict[str, Tensor]:
    """Read a run's checkpoint, the file ``name`` of its folder, checked against its configuration.

    Raises:
        UserError: the file is missing, cut short, or of another configuration.
    """
    return _read(run, config, name)[0]


def _read(run: Path, config: TrainConfig, name: str = NAME) -> tuple[dict[str, Tensor], dict]:
    """Return the tensors as :func:`read`, and the settings that the file was made with."""
    path = run / name
    if not path.is_file():
        raise UserError(f"{path}: no such file; {run} is not a run folder made by `fvae train`")
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: cut short or damaged ({error}); restore a copy or train again"
        ) from None
    if metadata.get("format") != _FORMAT or "config" not in metadata:
        raise UserError(f"{path}: not a checkpoint of this version of fvae; train again")
    made_by = json.loads(metadata["config"])
    for name, value in json.loads(config.to_json()).items():
        # A setting that came later than the file had its default's effect then. The size of the
        # images is the data set's, unless it was asked for.
        free = name in RESUMABLE or (name == "image_size" and value is None)
        if not free and made_by.get(name, value) != value:
            raise UserError(
                f"{path}: was made with {name} = {made_by.get(name)!r}, but"
                f" {run / 'config.json'} says {value!r}; put back the one that belongs to it"
            )
    return tensors, made_by


def load_weights(module: nn.Module, tensors: dict[str, Tensor], prefix: str, path: Path) -> None:
    """Copy the tensors ``prefix + parameter name`` into a module, keeping its memory formats.

    Raises:
        UserError: a tensor is missing or has another shape.
    """
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            value = tensors.get(prefix + name)
            if value is None or value.shape != parameter.shape:
                found = "missing" if value is None else f"of shape {list(value.shape)}"
                raise UserError(
                    f"{path}: {prefix + name} is {found}, expected {list(parameter.shape)};"
                    " it belongs to another configuration"
                )
            parameter.copy_(value)


@as_imported()
def load(run: str | Path, device: torch.device | str = "cpu") -> VAE | InfoGAN:
    """Return the trained model of a run folder, in eval mode.

    Args:
        run: a folder written by ``fvae train``.
        device: where to put the weights.

    Returns:
        model with ``encode(x [B, C, H, W] in 0..1) -> (mu, logvar)``, each ``[B, d]``,
        ``decode(z) -> logits [B, C, H, W]`` (means, of a Gaussian likelihood), ``pixels(decoded)``,
        the pictures of these in 0..1, and ``image_shape``, (C, H, W). Of an infogan or infowgan-gp
        run, mu and logvar are those of Q(c|x), and decode sets the generator's noise to 0.

    Raises:
        UserError: not a run folder, or its checkpoint is missing, cut short or of another
            configuration.
    """
    run = Path(run)
    config = TrainConfig.from_file(run / "config.json")
    tensors, made_by = _read(run, config)
    # Not in files from before the setting, when all images were of one size.
    config = dataclasses.replace(config, image_size=made_by.get("image_size"))
    objective = OBJECTIVES[config.objective]
    prefix = objective.part + "."
    first = tensors.get(prefix + objective.first)
    if first is None:
        raise UserError(f"{run / NAME}: holds no encoder; it belongs to another configuration")
    make = objective.model or (lambda *shape: nets.build(*shape)[0])
    model = make(config, first.shape[1])
    load_weights(model, tensors, prefix, run / NAME)
    model.requires_grad_(False)
    return nets.channels_last(model, device).eval()
