"""Checkpoints: one safetensors file with weights, optimizer state, seed and step.

Nothing is pickled. The file's metadata holds the configuration that made it and the SHA-256 of all
the rest, and the checkpoint before the newest is kept, should the newest turn out damaged.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from fvae.config import TrainConfig
from fvae.device import as_imported
from fvae.errors import UserError, warn
from fvae.files import from_json, write_atomically
from fvae.models import vae as nets
from fvae.models.infogan import InfoGAN
from fvae.models.vae import VAE
from fvae.registry import OBJECTIVES

NAME = "checkpoint.safetensors"
#: The one before; it stays until another has come after the newest.
PREVIOUS = "checkpoint.previous.safetensors"
#: In a run folder whose checkpoint was left out on purpose: which state it was, as JSON.
KEPT = "kept.json"
#: A new one that is whole, and about to become the newest.
NEXT = f".{NAME}.next"
_FORMAT = "1"

#: Settings that may differ between a run and its continuation. Where the data are may change; that
#: they are the same is checked by their fingerprint (:mod:`fvae.training.run_data`).
RESUMABLE = (
    "steps", "device", "graph", "branches", "checkpoint_every", "log_every", "data", "images",
    "factors",
)  # fmt: skip


def resumable(schedule: str) -> tuple[str, ...]:
    """Return the settings that may differ between a run and its continuation, of a rate's schedule.

    With a schedule that ends with the run, another end would be another run from the first step on.
    """
    spans = schedule != "constant"
    return tuple(name for name in RESUMABLE if not (spans and name == "steps"))


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


class Damaged(UserError):
    """A checkpoint that is not what was written."""


@dataclass(frozen=True)
class State:
    """Which state of a run something was made of.

    Attributes:
        step: training steps done.
        fingerprint: SHA-256 of the checkpoint, hexadecimal.
    """

    step: int
    fingerprint: str


def save(run: Path, tensors: dict[str, Tensor], config: TrainConfig) -> None:
    """Write the run's checkpoint, whole or not at all; the one before is kept as PREVIOUS.

    Raises:
        OSError: the folder is read-only or the disk is full.
    """
    prepare(run, tensors, config)
    promote(run)


def prepare(run: Path, tensors: dict[str, Tensor], config: TrainConfig) -> None:
    """Write what :func:`promote` will make the run's checkpoint.

    Raises:
        OSError: the folder is read-only or the disk is full.
    """
    # safetensors refuses non-contiguous tensors: channels_last weights are written row-major.
    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    metadata = {"format": _FORMAT, "config": json.dumps(json.loads(config.to_json()))}
    content = memoryview(safetensors.torch.save(plain, metadata))
    header, start = _header(content)
    header["__metadata__"]["sha256"] = _digest(header, content[start:])
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data starts aligned
    write_atomically(run / NEXT, len(text).to_bytes(8, "little"), text, content[start:])


def promote(run: Path) -> None:
    """Make what :func:`prepare` wrote the run's checkpoint, and the old one its PREVIOUS.

    Raises:
        OSError: the folder is read-only or the disk is full; the old checkpoint is then untouched.
    """
    if (run / NAME).exists():
        second = run / f".{PREVIOUS}.next"
        second.unlink(missing_ok=True)
        try:
            os.link(run / NAME, second)
        except OSError:  # a file system without links
            shutil.copyfile(run / NAME, second)
        os.replace(second, run / PREVIOUS)
    os.replace(run / NEXT, run / NAME)


def recover(run: Path, config: TrainConfig) -> dict[str, Tensor] | None:
    """Return the newest checkpoint's tensors, None where there is none.

    Where the newest is damaged or gone, the one before takes its place. Only who holds the run's
    lock may call this.

    Raises:
        UserError: the newest is damaged, and there is no whole one before it.
        OSError: the folder cannot be written.
    """
    if not (run / NAME).exists() and not (run / PREVIOUS).exists():
        return None
    try:
        return read(run, config)
    except Damaged as damage:
        try:
            before = read(run, config, PREVIOUS)
        except UserError:
            raise damage from None
        step = int(before["rng.step"])
        warn(f"{damage}; going on from the checkpoint before it, of step {step}")
        os.replace(run / PREVIOUS, run / NAME)
        return before


def read(run: Path, config: TrainConfig, name: str = NAME) -> dict[str, Tensor]:
    """Read a run's checkpoint, the file ``name`` of its folder, checked against its configuration.

    Raises:
        Damaged: the file is missing, cut short, or its checksum is wrong.
        UserError: it is of another configuration.
    """
    return _read(run, config, name)[0]


def _read(
    run: Path, config: TrainConfig, name: str
) -> tuple[dict[str, Tensor], State, dict[str, Any]]:
    """Return the tensors as :func:`read`, their state, and the settings that made the file."""
    path = run / name
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise Damaged(
            f"{path}: no such file; {run} is not a run folder made by `fvae train`"
        ) from None
    except OSError as error:
        raise Damaged(f"{path}: cannot be read ({error.strerror})") from None
    try:
        header, start = _header(memoryview(content))
        metadata = header.get("__metadata__", {})
        digest = _digest(header, memoryview(content)[start:])
        if metadata.get("sha256", digest) != digest:
            raise ValueError("its checksum is wrong")
        tensors = safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError, TypeError, AttributeError) as error:
        raise Damaged(
            f"{path}: cut short or damaged ({error}); restore a copy or train again"
        ) from None
    try:
        if metadata["format"] != _FORMAT:
            raise ValueError
        made_by = dict(from_json(metadata["config"]))
        step = int(tensors["rng.step"])
    except (ValueError, KeyError, TypeError, RuntimeError):
        raise UserError(f"{path}: not a checkpoint of this version of fvae; train again") from None
    for setting, value in json.loads(config.to_json()).items():
        # A setting that came later than the file had its default's effect then. The size of the
        # images is the data set's, unless it was asked for.
        free = setting in resumable(config.learning_rate_schedule)
        free = free or (setting == "image_size" and value is None)
        if not free and made_by.get(setting, value) != value:
            raise UserError(
                f"{path}: was made with {setting} = {made_by.get(setting)!r}, but"
                f" {run / 'config.json'} says {value!r}; put back the one that belongs to it"
            )
    if "sha256" not in metadata:
        warn(f"{path}: made by an older fvae, without a checksum: damage would not be noticed")
    return tensors, State(step, digest), made_by


def state_of(run: Path) -> State | None:
    """Return which state the run is in, None where no checkpoint can be read.

    Of the file only the header and the step are read, where it has a checksum. Of a run that was
    kept without its checkpoint, this is the state that was kept.
    """
    path = run / NAME
    if not path.exists():
        return _kept(run)
    try:
        with open(path, "rb") as file:
            head = file.read(8)
            header, start = _header(memoryview(head + file.read(int.from_bytes(head, "little"))))
            digest = header["__metadata__"].get("sha256")
            if digest is None:
                file.seek(start)
                digest = _digest(header, memoryview(file.read()))
            begin, end = header["rng.step"]["data_offsets"]
            file.seek(start + begin)
            return State(int.from_bytes(file.read(end - begin), "little", signed=True), str(digest))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError):
        return None


def _kept(run: Path) -> State | None:
    try:
        return msgspec.convert(from_json((run / KEPT).read_bytes()), type=State)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        warn(f"{run / KEPT}: not a state that can be read ({error}); the run is made again")
        return None


def _header(content: memoryview) -> tuple[dict[str, Any], int]:
    """Return a safetensors file's header and where its data starts; raise ValueError."""
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 + length:
        raise ValueError("it is cut short")
    header = from_json(bytes(content[8 : 8 + length]))
    if not isinstance(header, dict):
        raise ValueError("its header is wrong")
    return header, 8 + length


def _digest(header: dict[str, Any], data: memoryview) -> str:
    """SHA-256 of everything in a file but the checksum itself."""
    metadata = {k: v for k, v in header.get("__metadata__", {}).items() if k != "sha256"}
    digest = hashlib.sha256(
        json.dumps(header | {"__metadata__": metadata}, sort_keys=True).encode()
    )
    digest.update(data)
    return digest.hexdigest()


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
    return load_state(Path(run), device)[0]


def load_state(run: Path, device: torch.device | str = "cpu") -> tuple[VAE | InfoGAN, State]:
    """As :func:`load`, with the state of the run that the model is of."""
    config = TrainConfig.from_file(run / "config.json")
    try:
        tensors, state, made_by = _read(run, config, NAME)
    except Damaged as damage:
        if not (run / PREVIOUS).exists():
            raise
        raise UserError(
            f"{damage}; `fvae train --resume {run}` goes on from the checkpoint before it"
        ) from None
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
    return nets.channels_last(model, device).eval(), state
