"""Whether layers take their fused forms, or are PyTorch's own."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from fvae.ops.autograd import transformed

_PLAINLY = ContextVar("plainly", default=False)


@contextmanager
def plainly(whether: bool = True) -> Iterator[None]:
    """Within it, all layers are PyTorch's own."""
    token = _PLAINLY.set(whether or _PLAINLY.get())
    try:
        yield
    finally:
        _PLAINLY.reset(token)


def is_plain() -> bool:
    """Whether layers are PyTorch's own here, as its compiler and its transforms need them."""
    return torch.compiler.is_compiling() or _PLAINLY.get() or transformed()


def is_fused(x: Tensor) -> bool:
    """Whether layers are to be as few kernels as there are."""
    return x.device.type == "cuda" and not is_plain()
