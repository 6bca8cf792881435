"""What several test files share: numbers, devices, compilers, probes. Runs are small.py's."""

import contextlib
import json
import os
import runpy
import shutil
import subprocess
import sys
from math import prod
from pathlib import Path

import pytest
import torch
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from fvae import ops

TESTS = Path(__file__).parent
ROOT = TESTS.parent
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# --- numbers --------------------------------------------------------------------------------------

# One table of tolerances by dtype, (rtol, atol), for every op against its reference.
TOLERANCE = {
    torch.float64: (1e-12, 1e-12),
    torch.float32: (1e-5, 1e-6),
    torch.bfloat16: (2e-2, 2e-2),
    torch.float16: (2e-3, 2e-3),
}

# Odd shapes: one row, one column, sizes that are no power of two.
SHAPES = [(1, 1), (1, 10), (7, 1), (7, 10), (65, 17), (64, 10)]


def assert_close(got, expected, dtype):
    """Within the tolerance of a dtype."""
    rtol, atol = TOLERANCE[dtype]
    torch.testing.assert_close(got, expected, rtol=rtol, atol=atol)


def assert_equal(a, b):
    """Two dicts of tensors hold the same bits."""
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def triton_and_reference(name, *args):
    """What the two implementations of an op give."""
    return [ops.BACKENDS[backend][name](*args) for backend in ("triton", "reference")]


def packed(bits):
    """Images of bits, bool ``[..., C, H, W]``, as the rows of a binary store."""
    flat = bits.flatten(-3).to(torch.uint8)
    flat = torch.nn.functional.pad(flat, (0, -flat.shape[-1] % 8)).unflatten(-1, (-1, 8))
    return (flat << torch.arange(8, dtype=torch.uint8, device=bits.device)).sum(-1).to(torch.uint8)


# --- the ops of the metrics -----------------------------------------------------------------------

SIZES = (3, 4, 5)
HOST_BACKENDS = [name for name in ("reference", "cpp") if name in ops.BACKENDS]
needs_extension = pytest.mark.skipif(
    "cpp" not in ops.BACKENDS, reason=f"no extension: {ops.EXTENSION_ERROR}"
)
CODE_DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]

# Strategies: any grid of factors, and codes of it.
GRIDS = {
    "sizes": st.lists(st.integers(2, 7), min_size=1, max_size=4),
    "models": st.integers(1, 3),
    "dims": st.integers(1, 40),
    "dtype": st.sampled_from(CODE_DTYPES),
    "seed": st.integers(0, 2**64 - 1),
}


def drawn_codes(sizes, models, dims, dtype, seed, mean=0.0):
    """Normal codes [models, N, dims] of a grid; and the generator, for more."""
    generator = torch.Generator().manual_seed(seed % 2**63)
    codes = torch.randn(models, prod(sizes), dims, generator=generator) + mean
    return codes.to(dtype), generator


def grid_classes(sizes):
    """Classes [N, K] of the rows of a grid."""
    return torch.stack(torch.unravel_index(torch.arange(prod(sizes)), tuple(sizes)), dim=1)


def grid_index(sizes):
    """A grid as labels."""
    return ops.RowIndex.of(grid_classes(sizes))


def drawn_classes(rows, sizes, seed):
    """Random labels [rows, K], correlated, some values rare: at most so many values of each factor.

    Every value up to the greatest occurs, and each factor has two.
    """
    generator = torch.Generator().manual_seed(seed % 2**63)
    shared = torch.rand(rows, 1, generator=generator)
    mixed = (shared + torch.rand(rows, len(sizes), generator=generator)) / 2
    classes = (mixed**2 * torch.tensor(sizes)).long()
    classes[0], classes[1] = 0, 1
    return torch.stack([c.unique(return_inverse=True)[1] for c in classes.unbind(1)], dim=1)


def drawn_index(rows, sizes, seed):
    """Such labels' index."""
    return ops.RowIndex.of(drawn_classes(rows, sizes, seed))


# --- machines -------------------------------------------------------------------------------------

COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
needs_compiler = pytest.mark.skipif(not COMPILER, reason="no C++ compiler on PATH")
needs_nvcc = pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc on PATH")


def compile_library(source, path, *flags):
    """Compile one C++ file to a shared library; return its path."""
    command = [COMPILER, "-std=c++20", "-shared", "-fPIC", str(source), "-o", str(path), *flags]
    subprocess.run(command, check=True)
    return str(path)


def run_program(path, *arguments, **environment):
    """Run one of the programs beside the tests, which may import what the tests share."""
    paths = [str(TESTS), str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    return subprocess.run(
        [sys.executable, str(path), *map(str, arguments)],
        env=os.environ | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def fake_cuda_lines(program):
    """What a program beside the tests prints that works on fake CUDA tensors, as JSON lines.

    It is given the library that lets it, see cuda_guard.cpp, and runs in a fork.
    """
    from torture import in_child

    from bench.launches import guard

    def run():
        sys.argv = [str(program), library]
        runpy.run_path(str(program), run_name="__main__")
        return 0

    with guard() as library:
        done = in_child(run, limit=600.0)
    assert done.status == 0, done.err
    return [json.loads(line) for line in done.out.splitlines()]


@contextlib.contextmanager
def threads(count):
    """PyTorch computes with that many threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# --- what goes wrong ------------------------------------------------------------------------------


def full_disk(*_):
    """Stand in for a function that writes."""
    raise OSError(28, "No space left on device")


def disk_full_after(writes):
    """Stand in for ``os.fsync`` on a disk that takes so many files and no more."""
    fsync, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) > writes:
            full_disk()
        fsync(handle)

    return full


# --- probes ---------------------------------------------------------------------------------------


class HostTraffic(TorchDispatchMode):
    """Record what a CUDA graph cannot hold: values read by the host, constants made on the host."""

    WAITS = ("_local_scalar_dense", "lift_fresh", "nonzero", "equal", "is_nonzero")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.note(function.overloadpacket.__name__, args, kwargs)
        return function(*args, **(kwargs or {}))

    def note(self, name, args, kwargs):
        """Called for each operation; a subclass may look at more."""
        if name in self.WAITS:
            self.found.append(name)


def calls_of(names, of, monkeypatch):
    """The names of those ops of a module that are called from now on, in their order."""
    found = []
    for name in names:
        run = getattr(of, name)

        def counted(*args, name=name, run=run):
            found.append(name)
            return run(*args)

        monkeypatch.setattr(of, name, counted)
    return found
