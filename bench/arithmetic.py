"""The arithmetic of a row: what fp32, tf32, bf16 and fp16 mean on a device, set and recorded.

Two rows are compared only where their arithmetic is the same. PyTorch's own default is neither
of the first two: its matrix products are IEEE float32, its convolutions TF32.
"""

import contextlib
from collections.abc import Iterator
from typing import get_args

import torch

from fvae.config import TrainConfig

#: Name -> whether matrix products and whether convolutions of float32 tensors take TF32.
TF32 = {
    "fp32": (False, False),
    "tf32": (True, True),
    "bf16": (False, True),  # of what autocast leaves in float32; PyTorch's default
    "fp16": (False, True),
    "default": (False, True),
}


def precisions(device: str) -> list[str]:
    """Return the precisions of ``fvae train`` on a device, other than "auto"."""
    known = [p for p in get_args(TrainConfig.__annotations__["precision"]) if p != "auto"]
    return known if device == "cuda" else [p for p in known if p == "fp32"]


@contextlib.contextmanager
def arithmetic(name: str) -> Iterator[None]:
    """Let float32 products be computed as a name in :data:`TF32` says, then as before."""
    before = {kind: used == "tf32" for kind, used in current().items()}
    try:
        _set(*TF32[name])
        yield
    finally:
        _set(**before)


def current() -> dict[str, str]:
    """Return how products of float32 tensors are computed at this moment: "ieee" or "tf32"."""
    used = {
        "matmul": torch.backends.cuda.matmul.fp32_precision,
        "convolution": torch.backends.cudnn.conv.fp32_precision,
    }
    return {kind: "tf32" if value == "tf32" else "ieee" for kind, value in used.items()}


def _set(matmul: bool, convolution: bool) -> None:
    # The older names set both the older and the newer state; with the newer ones alone, what
    # reads the older state, as torch.compile does, stops with an error.
    torch.backends.cuda.matmul.allow_tf32 = matmul
    torch.backends.cudnn.allow_tf32 = convolution
