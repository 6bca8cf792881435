"""Whether layers take their fused forms, or are PyTorch's own."""

from collections.abc import Iterator, Sequence
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


def again(out: Tensor, tensors: Sequence[Tensor], grad: Tensor) -> list[Tensor | None]:
    """Gradients that can themselves be differentiated, of those tensors that want one.

    Args:
        out: a layer's output, made anew by operations that autograd follows.
        tensors: what it was made of.
        grad: its gradient.
    """
    wanted = [t for t in tensors if t.requires_grad]
    each = iter(torch.autograd.grad(out, wanted, grad, create_graph=True))
    return [next(each) if t.requires_grad else None for t in tensors]
