"""Parts of a training step that do not wait for each other, each on a CUDA stream of its own.

A captured graph keeps the order of the streams that it was captured from. On one stream each launch
waits for the one before; here a step forks where it need not:

* the players' game needs the codes alone, and runs :meth:`Branches.beside` the decoder, forward and
  backward;
* a convolution's weight gradient holds up nothing before Adam, and is made :meth:`Branches.apart`.

Which memory stays whose is the rule of ``torch.Tensor.record_stream``'s documentation for those who
manage lifetimes themselves: the allocator gives a freed block to its stream of creation alone, so a
tensor may be used on another stream if that one is waited for before the tensor is freed. What is
read apart is therefore kept until the branches join, at the cost of its memory; and a tensor of
a branch that the step's stream reads may go, because all later work of the branch waits for a point
of the step's stream behind that reading.

Autograd takes no part. Every node is made, and run, on the stream of the step; what forks does so
inside a node and is waited for by this module. So a gradient that is not yet there must not reach
the engine, which may copy it at once: it is owed to its leaf, and given when the branches join. The
engine runs nodes in the reverse order of their making, and in a thread of its own, which sees no
context variable: a node keeps the branches of its forward pass.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor

_T = TypeVar("_T")


class Branches:
    """The forks of one trainer's steps, on the current device."""

    def __init__(self) -> None:
        self._forked: dict[str, torch.cuda.Stream] = {}
        self._kept: list[tuple] = []
        self._owed: list[tuple[Tensor, Tensor]] = []
        self._ready: torch.cuda.Event | None = None
        self._trunk = "step"
        self._open = False

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Within it, work goes beside that of the step, from here on or from :meth:`mark`.

        What it reads of the step's tensors stays with the caller until :meth:`meet`.
        """
        ready, self._ready = self._ready, None
        with self._fork("players", ready):
            self._trunk = "players"
            try:
                yield
            finally:
                self._trunk = "step"

    def mark(self) -> None:
        """Let the next :meth:`beside` wait for what the step has started so far, and no more."""
        self._ready = _here().record_event()

    def meet(self) -> None:
        """Let the step wait for what went beside it."""
        _here().wait_stream(self._forked["players"])

    def apart(self, make: Callable[..., _T], *args: Any) -> _T:
        """Return ``make(*args)``, which holds up nothing and is there when the branches join."""
        self._kept.append(args)
        with self._fork(f"weights of {self._trunk}"):
            return make(*args)

    @contextmanager
    def owing(self) -> Iterator[None]:
        """Within it gradients are owed, namely those of a loss; at its end the branches join."""
        self._open = True
        try:
            yield
            self._join()
        finally:
            self._open = False
            for kept in (self._forked, self._owed, self._kept):
                kept.clear()
            self._ready = None

    def owes(self, *leaves: Tensor) -> bool:
        """Return whether gradients of tensors may be owed: now, and to leaves of one dtype."""
        fit = all(leaf.is_leaf and leaf.requires_grad for leaf in leaves)
        return self._open and fit and len({leaf.dtype for leaf in leaves}) == 1

    def owe(self, leaves: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
        """Give gradients to leaves when the branches join."""
        self._owed += zip(leaves, grads, strict=True)

    def _join(self) -> None:
        """Let the step wait for every branch, and give the leaves their gradients."""
        for stream in self._forked.values():
            _here().wait_stream(stream)
        for leaf, grad in self._owed:
            leaf.grad = grad if leaf.grad is None else leaf.grad + grad

    @contextmanager
    def _fork(self, name: str, ready: "torch.cuda.Event | None" = None) -> Iterator[None]:
        stream = self._forked[name] = _stream(torch.cuda.current_device(), name)
        if ready is None:
            stream.wait_stream(_here())
        else:
            stream.wait_event(ready)
        with torch.cuda.stream(stream):
            yield


@functools.cache
def _stream(device: int, name: str) -> "torch.cuda.Stream":
    """One of a name for all steps and captures: cuBLAS keeps 32 MiB for each stream."""
    return torch.cuda.Stream(device)


def _here() -> "torch.cuda.Stream":
    return torch.cuda.current_stream(torch.cuda.current_device())


# --- with branches or without ---------------------------------------------------------------------

_CURRENT: ContextVar[Branches | None] = ContextVar("branches", default=None)


@contextmanager
def branched(branches: Branches | None) -> Iterator[None]:
    """Within it, forward passes fork, and so do their backward passes; None forks nothing."""
    token = _CURRENT.set(branches)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def current() -> Branches | None:
    """Return the branches of the step that is running; None where it has none."""
    return None if torch.compiler.is_compiling() else _CURRENT.get()


def beside(branches: Branches | None) -> contextlib.AbstractContextManager[None]:
    """Return :meth:`Branches.beside`, or what does nothing."""
    return contextlib.nullcontext() if branches is None else branches.beside()


def in_line(make: Callable[..., _T], *args: Any) -> _T:
    """Return ``make(*args)``: what stands for :meth:`Branches.apart` where nothing forks."""
    return make(*args)


class _Joined(torch.autograd.Function):
    @staticmethod
    def forward(ctx, branches, *tensors):
        ctx.branches = branches
        branches.meet()
        return tensors

    @staticmethod
    def backward(ctx, *grads):
        # The gradients that the branch begins with are there, and nothing of the trunk's yet.
        ctx.branches.mark()
        return None, *grads


def joined(branches: Branches | None, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Return what was made beside the step, for the step to use."""
    return tensors if branches is None else _Joined.apply(branches, *tensors)
