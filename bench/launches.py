"""``python -m bench.launches``: what a training step starts and moves on a GPU, without one.

Does a step of the default FactorVAE and VAE on fake CUDA tensors, which have shape, dtype and
device and no numbers, and counts the kernels that would be started, and the megabytes that they
would read and write: a line of JSON, on standard error the operations. ``bench.step`` prints the
line, too; bench/README.md has the numbers.

An operation of PyTorch counts one launch, and

* none where it makes a view or memory alone;
* a convolution with a bias two, the second for the bias;
* the backward pass of a convolution one for each gradient that it makes;
* an op of ours what its launcher starts.

Launches that an operation makes inside, such as a layout's change before a convolution, are not
seen.

The bytes of an operation are those of its inputs and outputs, each tensor once, and once more if it
is changed in place; memory that is there twice, as in a tensor and a view of it, once. Convolutions
that count several launches read and write for each. What a cache keeps from one launch for the
next is not taken off, and of the data set all is read, which here is 64 images.
"""

import contextlib
import ctypes
import json
import math
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from bench.record import keep, options
from fvae.config import TrainConfig
from fvae.data import Store
from fvae.ops.registry import CPU_LAYERS, WORDS
from fvae.training.trainer import Trainer

#: A device guard that does nothing, which fake CUDA tensors want where PyTorch has no CUDA.
GUARD = Path(__file__).parent.parent / "tests/csrc/cuda_guard.cpp"

MODE = FakeTensorMode()

_LIBRARY: torch.library.Library | None = None

#: Operations that make memory, or say something about it, and start nothing.
_FREE = {
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "alias",
    "_unsafe_view", "_reshape_alias", "device", "is_same_size", "lift_fresh", "promote_types",
}  # fmt: skip


#: Ops of ours that start nothing: a GPU's step has others in their place.
OF_A_CPU = (*CPU_LAYERS, WORDS)


class Launches(TorchDispatchMode):
    """Count what starts kernels: ``counts`` and ``bytes`` have a number for each operation."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    @property
    def total(self) -> int:
        """Kernels started."""
        return sum(self.counts.values())

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Count one operation and do it."""
        name = function.overloadpacket.__name__
        launches = _launches(function, name, args, kwargs or {})
        changed = _changed(function, args, kwargs or {})
        out = function(*args, **(kwargs or {}))
        self.counts[name] += launches
        if launches:
            each = _passes(name, args, out) or [[*tree_leaves((args, kwargs, out)), *changed]]
            self.bytes[name] += sum(map(_memory, each))
        return out


def _launches(function: Any, name: str, args: tuple, kwargs: dict) -> int:
    if function.namespace == "fvae":
        return 0 if name in OF_A_CPU else len(_planned(name, args, kwargs))
    if name in _FREE or function.is_view:
        return 0
    if name == "convolution":
        return 1 + (args[2] is not None)
    if name == "convolution_backward":
        return sum(args[-1])
    return 1


def _passes(name: str, args: tuple, out: Any) -> list[list]:
    """Inputs and outputs of each launch of an operation; none where it is as good as one."""
    if name == "convolution" and args[2] is not None:
        return [[*args[:2], out], [args[2], out], [out]]
    if name == "convolution_backward":
        grad, x, weight = args[:3]
        each = zip(([grad, weight], [grad, x], [grad]), out, args[-1], strict=True)
        return [[*read, made] for read, made, wanted in each if wanted]
    return []


def _changed(function: Any, args: tuple, kwargs: dict) -> list:
    """What an operation changes in place."""
    given = zip(function._schema.arguments, args, strict=False)
    named = [(a, kwargs[a.name]) for a in function._schema.arguments if a.name in kwargs]
    each = [(a, x) for a, x in [*given, *named] if a.alias_info and a.alias_info.is_write]
    # Adam's copies of the weights are written, and not read.
    changed = tree_leaves([x for a, x in each if a.name != "copies"])
    return [_Again(x) for x in changed if isinstance(x, Tensor)]


@dataclass(frozen=True)
class _Again:
    """A tensor that a launch meets once more."""

    tensor: Tensor


def _memory(found: list) -> int:
    """Bytes of tensors, of which those of one storage are at most its own."""
    views: dict[int, dict[tuple, int]] = {}
    whole: dict[int, int] = {}
    total = 0
    for x in found:
        if isinstance(x, _Again):
            total += _bytes(x.tensor)
        elif isinstance(x, Tensor):
            storage = x.untyped_storage()
            whole[storage._cdata] = storage.nbytes()
            where = (x.storage_offset(), *x.shape, *x.stride())
            views.setdefault(storage._cdata, {})[where] = _bytes(x)
    return total + sum(min(whole[key], sum(of.values())) for key, of in views.items())


def _bytes(x: Tensor) -> int:
    """Bytes that a tensor has in memory, where what is broadcast lies once."""
    each = (n for n, stride in zip(x.shape, x.stride(), strict=True) if stride)
    return x.element_size() * math.prod(each) if x.numel() else 0


def _planned(name: str, args: tuple, kwargs: dict) -> list:
    """What the launcher of an op starts."""
    from fvae import kernels
    from fvae.kernels.launch import planned

    def without_numbers(x: Tensor) -> Tensor:
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")

    with unset_fake_temporarily(), planned() as launches:
        args, kwargs = tree_map_only(Tensor, without_numbers, (args, kwargs))
        kernels.IMPLEMENTATIONS[name](*args, **kwargs)
    return launches


def module_to(self, device, memory_format=torch.preserve_format):
    """Stand in for ``Module.to``: each parameter becomes a fake one on the device."""
    for module in self.modules():
        for name, p in list(module._parameters.items()):
            form = memory_format if p.dim() == 4 else torch.preserve_format
            fake = MODE.from_tensor(p.detach())
            with MODE:
                module._parameters[name] = nn.Parameter(fake.to(device, memory_format=form))
    return self


def built_for_real(trainer_class: type) -> None:
    """Let a trainer make its networks of real tensors: fake ones cannot be initialised."""
    build = trainer_class._build

    def wrapped(self, channels):
        with unset_fake_temporarily():
            return build(self, channels)

    trainer_class._build = wrapped


def _fused_convolution(x, weight, bias, stride, padding, dilation, groups):
    return torch.ops.aten.convolution(
        x, weight, None, stride, padding, dilation, False, (0, 0), groups
    )


def _noted(ctx: Any, value: bool) -> None:
    """Stand in for ``ctx.set_materialize_grads``, whose setting cannot be read."""
    ctx.materialize_grads = ctx.makes_zeros = value


def pretend(guard: str) -> None:
    """Let this process, for the rest of its life, take fake CUDA tensors for real ones."""
    global _LIBRARY
    ctypes.CDLL(guard)
    if not torch.backends.cuda.is_built():  # such a PyTorch has the name alone
        _LIBRARY = torch.library.Library("aten", "IMPL")
        _LIBRARY.impl("cudnn_convolution_relu", _fused_convolution, "Meta")
    nn.Module.to = module_to
    Tensor.backward = backward
    torch.autograd.function.FunctionCtx.set_materialize_grads = _noted
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.cuda.is_bf16_supported = lambda *args, **kwargs: True


@contextlib.contextmanager
def guard() -> Iterator[str]:
    """Compile the guard.

    Raises:
        RuntimeError: there is a GPU, or no compiler.
    """
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if torch.cuda.is_available() or not compiler:
        raise RuntimeError("there is a GPU, or no C++ compiler")
    folder = Path(torch.__file__).parent
    with tempfile.TemporaryDirectory() as temporary:
        path = str(Path(temporary, "guard.so"))
        flags = ["-isystem", str(folder / "include"), "-L", str(folder / "lib"), "-lc10"]
        command = [compiler, "-std=c++20", "-shared", "-fPIC", str(GUARD), "-o", path, *flags]
        subprocess.run(command, check=True)
        yield path


def backward(loss: Tensor, gradient: Tensor | None = None, inputs: Any = None) -> None:
    """Stand in for ``Tensor.backward``, whose engine wants a device: walk the graph in its order.

    The order in which several gradients of a tensor are added may be another.
    """
    given = torch.ones_like(loss) if gradient is None else gradient
    if loss.grad_fn is None:
        return
    waiting: Counter[Any] = Counter()
    stack, seen = [loss.grad_fn], {loss.grad_fn}
    while stack:
        for following, _ in stack.pop().next_functions:
            waiting[following] += 1
            if following and following not in seen:
                seen.add(following)
                stack.append(following)
    grads: dict[Any, dict[int, Tensor]] = {loss.grad_fn: {0: given}}
    ready = [loss.grad_fn]
    with torch.no_grad():
        while ready:
            node = max(ready, key=lambda one: one._sequence_nr())  # as the engine does
            ready.remove(node)
            edges = [edge for edge in node.next_functions if edge[0]]
            for (following, place), grad in zip(edges, _call(node, grads), strict=True):
                if grad is not None:
                    like = following._input_metadata[place]
                    if list(grad.shape) != list(like.shape):  # of what was broadcast
                        grad = grad.sum_to_size(like.shape)
                    grad, sums = grad.to(like.dtype), grads.setdefault(following, {})
                    sums[place] = sums[place] + grad if place in sums else grad
                waiting[following] -= 1
                if not waiting[following]:
                    ready.append(following)


def _call(node: Any, grads: dict[Any, dict[int, Tensor]]) -> list[Tensor | None]:
    """The gradients that a node makes of its outputs', one for each of its edges."""
    given, edges = grads.pop(node, {}), node.next_functions
    wanted = [bool(following) for following, _ in edges]
    if not given:
        return [None] * sum(wanted)
    if hasattr(node, "variable"):
        if given:
            node.variable.grad = given[0].detach()
        return []
    each = [given.get(i) for i in range(len(node._input_metadata))]
    if isinstance(node, torch.autograd.function.BackwardCFunction):
        for i, like in enumerate(node._input_metadata):
            if each[i] is None and getattr(node, "makes_zeros", True):
                each[i] = torch.zeros(like.shape, dtype=like.dtype, device="cuda")
        found, wanted = node.apply(*each), node.needs_input_grad
    else:
        found = node(*each)
    found = found if isinstance(found, tuple) else (found,)
    return [grad for grad, want in zip(found, wanted, strict=True) if want]


def step(objective: str, precision: str) -> Launches:
    """Return what the second step of a default run does: all that is made once is there then."""
    config = TrainConfig(objective=objective, device="cuda", precision=precision, graph=False)
    with MODE:
        images = torch.zeros(64, 512, dtype=torch.uint8)
        trainer = Trainer(config, Store("bits", images, (1, 64, 64), True, (), ()))
        trainer.step()
        with Launches() as traffic:
            trainer.step()
    return traffic


def main() -> None:
    """Count, and print."""
    out = options("bench.launches", __doc__).parse_args().out
    with guard() as library:
        pretend(library)
    built_for_real(Trainer)
    found, moved, each = {}, {}, {}
    for objective in ("factor-vae", "vae"):
        for precision in ("bf16", "fp32"):
            name, traffic = f"{objective} {precision}", step(objective, precision)
            found[name] = traffic.total
            moved[f"{name} MB"] = round(traffic.bytes.total() / 1e6, 1)
            each[name] = {
                op: {"launches": n, "MB": round(traffic.bytes[op] / 1e6, 1)}
                for op, n in traffic.counts.most_common()
                if n
            }
            started = (f"{op} {x['launches']} ({x['MB']} MB)" for op, x in each[name].items())
            print(f"{name}: {', '.join(started)}", file=sys.stderr)
    keep(out, found | moved | {"by_operation": each})
    print(json.dumps(found | moved))


if __name__ == "__main__":
    main()
