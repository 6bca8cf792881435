"""Compiling and starting kernels: what one compiles anew for, where it runs, an input's strides."""

import contextlib
import inspect
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from fvae.errors import UserError

# Programs along each axis of a CUDA grid.
_MOST_PROGRAMS = ((1 << 31) - 1, 65535, 65535)


@dataclass(frozen=True)
class Launch:
    """One start of a kernel, as :func:`launch` takes it."""

    kernel: object
    grid: tuple[int, ...]
    args: tuple
    meta: dict[str, object]


_planned: list[Launch] | None = None


def jit(*specialised: str) -> Callable:
    """Return ``triton.jit`` for a kernel that compiles anew for few of its arguments' values.

    Triton compiles a kernel once more where an integer is 1 or a multiple of 16 and was not
    before, or a pointer's alignment to 16 bytes differs. No launch that a CUDA graph records may
    compile, so a kernel has this for none of its arguments but those whose alignment widens its
    loads and stores, and which are new tensors or constants of a training run.

    Args:
        specialised: the names of these arguments.
    """

    def decorate(function: Callable):
        names = [n for n in inspect.signature(function).parameters if not n.isupper()]
        free = [n for n in names if n not in specialised]
        return triton.jit(function, do_not_specialize=free, do_not_specialize_on_alignment=free)

    return decorate


def interpreted() -> bool:
    """Return whether kernels run through Triton's interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


@contextlib.contextmanager
def planned() -> Iterator[list[Launch]]:
    """Collect launches instead of starting them, on any device: outputs stay unwritten."""
    global _planned
    before, _planned = _planned, []
    try:
        yield _planned
    finally:
        _planned = before


def only_planned() -> bool:
    """Return whether launches are collected: nothing that they would write is there."""
    return _planned is not None


def launch(kernel, grid: tuple[int, ...], args: tuple, **meta) -> None:
    """Start a kernel on the device of its first tensor.

    Raises:
        UserError: the tensors are on the CPU and the interpreter is off.
        ValueError: the grid has more programs than CUDA can start.
    """
    if any(size > most for size, most in zip(grid, _MOST_PROGRAMS, strict=False)):
        raise ValueError(
            f"backend='triton': got an input for a grid of {grid} programs, expected at most"
            f" {_MOST_PROGRAMS}; pass backend='reference'"
        )
    # Triton's default is about to change, and 3.9 warns of it.
    meta = {"enable_fp_fusion": True} | meta
    if _planned is not None:
        _planned.append(Launch(kernel, grid, args, meta))
        return
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


def check_below(name: str, count: int, limit: int, what: str) -> None:
    """Check a number that a kernel holds in an integer of fewer bits than a tensor may need.

    Raises:
        ValueError: it is ``limit`` or more; the argument, the number and the limit are named.
    """
    if count >= limit:
        raise ValueError(
            f"{name}: got {count} {what}, but backend='triton' needs fewer than {limit}"
        )


def strides_3d(x: Tensor) -> tuple[int, int, int]:
    """Return the strides of ``[M, B, d]``; that of M is 0 where x is ``[B, d]``."""
    return (0,) * (3 - x.dim()) + x.stride()
