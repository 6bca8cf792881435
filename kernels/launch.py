"""Starting a kernel: where it can run, and the strides of an input."""

import os

import torch
from torch import Tensor

from fvae.errors import UserError


def interpreted() -> bool:
    """Return whether kernels run through Triton's interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def launch(kernel, grid: tuple[int, ...], args: tuple, **meta) -> None:
    """Start a kernel on the device of its first tensor.

    Raises:
        UserError: the tensors are on the CPU and the interpreter is off.
    """
    device = next(a for a in args if isinstance(a, Tensor)).device
    if device.type == "cuda":
        with torch.cuda.device(device):
            kernel[grid](*args, **meta)
        return
    if not interpreted():
        raise UserError(
            f"backend='triton': needs CUDA tensors, got {device.type}; move them to a GPU, or set"
            " TRITON_INTERPRET=1 before Python starts to run the kernels in Triton's interpreter"
        )
    kernel[grid](*args, **meta)


def strides_3d(x: Tensor) -> tuple[int, int, int]:
    """Return the strides of ``[M, B, d]``; that of M is 0 where x is ``[B, d]``."""
    return (0,) * (3 - x.dim()) + x.stride()
