"""What every op asks of its arguments."""

import torch
from torch import Tensor

from fvae.philox import Philox

#: Dtypes that an op takes.
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_float(name: str, x: Tensor, dims: tuple[int, ...], shape: str) -> None:
    """Check that an input is floating point, not empty, and has one of some numbers of dimensions.

    Raises:
        TypeError: it has another dtype.
        ValueError: it has another shape.
    """
    if x.dtype not in FLOATS:
        raise TypeError(f"{name}: got {x.dtype}, expected float32 or bfloat16")
    if x.dim() not in dims or x.numel() == 0:
        raise ValueError(f"{name}: got shape {list(x.shape)}, expected {shape}, not empty")


def check_same(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """Check that an input has shape, dtype and device of another.

    Raises:
        ValueError: it has not.
    """
    if x.shape != other.shape or x.dtype != other.dtype or x.device != other.device:
        raise ValueError(
            f"{name}: got {list(x.shape)} {x.dtype} on {x.device}, expected that of {other_name}:"
            f" {list(other.shape)} {other.dtype} on {other.device}"
        )


def keys(rng: Philox | None, like: Tensor) -> tuple[Tensor, Tensor, int]:
    """Return the raw key, step and lane, checked against an input ``[B, d]`` or ``[M, B, d]``."""
    if rng is None:
        rng = Philox.from_torch(like.device)
    if rng.seed.device != like.device:
        raise ValueError(
            f"rng: is on {rng.seed.device}, but the input is on {like.device};"
            f" make it with Philox(seed, device={str(like.device)!r})"
        )
    if rng.seed.dim() and (like.dim() != 3 or rng.seed.shape[0] != like.shape[0]):
        raise ValueError(
            f"rng: has {rng.seed.shape[0]} keys, expected one key, or an input [M, B, d] with a"
            f" key for each model; the input is {list(like.shape)}"
        )
    return rng.seed, rng.step, rng.lane
