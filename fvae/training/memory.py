"""Whether a training step fits into memory, told before anything of that size is asked for.

An operating system that promises more memory than there is kills who uses it, without a word.
"""

from pathlib import Path

import torch

from fvae.config import TrainConfig
from fvae.errors import UserError
from fvae.registry import OBJECTIVES
from fvae.training.objectives import drawn

_FLOAT = 4  # bytes


def weights(config: TrainConfig, channels: int) -> int:
    """Number of weights of encoder, decoder and discriminator."""
    side = (config.image_size or 64) // 16
    flat, d = config.conv_channels[3] * side * side, config.latent_dim
    c = [channels, *config.conv_channels]
    each = zip(c[:-1], c[1:], config.conv_kernels, strict=True)
    total = sum((16 + k * k) * a * b for a, b, k in each)  # the decoder's kernels are 4 x 4
    total += config.hidden_units * (2 * flat + 3 * d)
    if OBJECTIVES[config.objective].discriminator:
        units, layers = config.disc_units, config.disc_hidden_layers
        total += units * (d + 2) + units * units * (layers - 1)
    return total


def bytes_an_image(config: TrainConfig, channels: int) -> int:
    """Bytes that a step keeps for each image of a batch: outputs of layers, and their gradients."""
    objective, side = OBJECTIVES[config.objective], config.image_size or 64
    images, halves = channels * side * side, 0
    for c in config.conv_channels:
        side //= 2
        halves += c * side * side
    numbers = drawn(config) * (images + halves) + (images + halves)
    numbers += 3 * (2 * config.hidden_units + 4 * config.latent_dim)
    if objective.discriminator:
        numbers += 2 * config.disc_units * config.disc_hidden_layers
    return 2 * _FLOAT * numbers


def check_memory(config: TrainConfig, channels: int) -> None:
    """Check that the weights, and a batch, fit into what is free.

    Args:
        config: settings, of which ``image_size`` is the data set's.
        channels: C of the images.

    Raises:
        UserError: they do not; the message says what fits.
    """
    free = free_memory(config.device)
    # Each weight has a gradient and two moments.
    fixed, each = 4 * _FLOAT * weights(config, channels), bytes_an_image(config, channels)
    if fixed > free:
        raise UserError(
            f"the networks need about {fixed / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free;"
            " take a smaller --latent-dim, --disc-units, --hidden-units or --conv-channels"
        )
    if fixed + each * config.batch_size > free:
        raise UserError(
            f"--batch-size {config.batch_size}: a step needs about"
            f" {(fixed + each * config.batch_size) / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are"
            f" free; about {(free - fixed) // each:,} images fit"
        )


def free_memory(device: str) -> int:
    """Bytes that a process may still take on a device of a setting, as far as that can be told."""
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else 1 << 62
    found = [1 << 62]
    for line in _text("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            found.append(int(line.split()[1]) * 1024)
    limit, used = _text("/sys/fs/cgroup/memory.max"), _text("/sys/fs/cgroup/memory.current")
    if limit.strip().isdigit() and used.strip().isdigit():
        found.append(int(limit) - int(used))
    return max(0, min(found))


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
