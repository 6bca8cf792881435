"""The CUDA kernels: their own source run on a CPU, and compiled for each target.

On a CPU a thread stands for each CUDA thread (``cuda_on_host.h`` beside this file).
"""

import ctypes
import os
import re
import subprocess
from math import prod
from pathlib import Path

import pytest
import torch
from shared import (
    CODE_DTYPES,
    COMPILER,
    ROOT,
    SIZES,
    assert_close,
    compile_library,
    drawn_index,
    grid_index,
    needs_nvcc,
)

from fvae import Philox
from fvae.ops import RowIndex, reference
from fvae.philox import Stream

HERE = Path(__file__).parent
TARGETS = ("sm_80", "sm_90a", "sm_100")

_FIELDS = (
    "codes", "models", "rows", "dims", "sizes", "factors", "count", "samples", "balanced",
    "seed", "step", "stream", "warps", "kind", "offsets",
    "lists",
)  # fmt: skip


class Case(ctypes.Structure):
    _fields_ = [
        (n, ctypes.c_void_p if n in ("codes", "sizes", "offsets", "lists") else ctypes.c_int64)
        for n in _FIELDS
    ]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    if not COMPILER:
        pytest.skip("no C++ compiler on PATH")
    path = tmp_path_factory.mktemp("kernels") / "kernels_on_host.so"
    flags = ["-O2", "-Wall", "-Werror", "-Wno-unknown-pragmas", "-pthread"]
    flags += os.environ.get("CXXFLAGS", "").split()
    found = ctypes.CDLL(compile_library(HERE / "kernels_on_host.cpp", path, *flags))
    found.run_groups.restype = ctypes.c_int64
    return found


# Kind of each dtype's loads: the widest first, each where the row allows it.
def _kinds(dtype, dims):
    if dtype == torch.float32:
        return [k for k, size in ((0, 1), (1, 2), (2, 4)) if dims % size == 0]
    return [{torch.bfloat16: 3, torch.float64: 4, torch.float16: 5}[dtype]]


def _case(codes, sizes, count, samples, balanced, rng, stream, warps, kind):
    """The kernels' arguments; ``sizes`` are a grid's, or a RowIndex."""
    index = sizes if isinstance(sizes, RowIndex) else None
    array = torch.tensor(index.sizes if index else sizes)
    lists = [index.offsets, index.rows] if index else []
    models, rows, dims = codes.shape
    case = Case(
        codes.data_ptr(), models, rows, dims, array.data_ptr(), len(array), count, samples,
        balanced, rng.seed.item(), rng.step.item(), stream.at(rng.lane), warps, kind,
        *(t.data_ptr() for t in lists),
    )  # fmt: skip
    case.keep = (codes, array, lists)
    return ctypes.byref(case)


def _reference(name, codes, sizes, *args):
    """What the reference gives, of a grid or with a RowIndex."""
    if isinstance(sizes, RowIndex):
        args, sizes = (*args, sizes.offsets, sizes.rows), sizes.sizes
    return getattr(reference, name)(codes, sizes, *args)


def _factors(sizes):
    return sizes.sizes if isinstance(sizes, RowIndex) else sizes


def _pointer(tensor):
    return ctypes.c_void_p(tensor.data_ptr())


def _votes(library, codes, sizes, count, samples, balanced, scale, active, rng, kind):
    """What the kernel counts, [models, dims, factors]."""
    counts = torch.zeros(len(codes), codes.shape[2], len(_factors(sizes)), dtype=torch.int64)
    case = _case(codes, sizes, count, samples, balanced, rng, Stream.VOTES, 2, kind)
    assert library.run_votes(case, _pointer(scale), _pointer(active), _pointer(counts))
    return counts


# Sizes of a grid, or labels of 2, 61, 500 rows; models, dims, samples: one dimension, one tile less
# and more, several chunks of samples.
CASES = [
    (SIZES, 1, 10, 7), (SIZES, 2, 10, 64), ((2, 3), 1, 1, 2), ((7,), 1, 4, 5),
    ((3, 5, 2), 1, 33, 130), ((4, 6), 2, 40, 301), (drawn_index(2, [2], 0), 1, 1, 2),
    (drawn_index(61, [2, 9, 3], 1), 2, 10, 7), (drawn_index(500, [300], 2), 1, 33, 130),
    (drawn_index(61, [3] * 35, 3), 1, 10, 7),
]  # fmt: skip


def _rows(sizes):
    return len(sizes) if isinstance(sizes, RowIndex) else prod(sizes)


@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize("dtype", CODE_DTYPES)
@pytest.mark.parametrize(("sizes", "models", "dims", "samples"), CASES)
def test_votes_equal_the_reference(library, sizes, models, dims, samples, dtype, balanced):
    codes = (torch.randn(models, _rows(sizes), dims) + 3).to(dtype)
    scale = codes.float().var(1)
    active = torch.rand(models, dims) < 0.8
    rng = Philox(2**63 + 5, step=2**33 + 1).at_lane(1)
    args = (codes, sizes, 13, samples, balanced, scale, active)
    expected = _reference("metric_votes", *args, rng.seed, rng.step, rng.lane)
    for kind in _kinds(dtype, dims):
        assert torch.equal(_votes(library, *args, rng, kind), expected)


def _pairs(library, codes, sizes, points, pairs, rng, kind):
    """What the kernel makes: features [models, points, dims], factors [points]."""
    features = torch.full((len(codes), points, codes.shape[2]), torch.nan)
    fixed = torch.full((points,), -1)
    case = _case(codes, sizes, points, pairs, False, rng, Stream.PAIRS, 2, kind)
    assert library.run_pairs(case, _pointer(features), _pointer(fixed))
    return features, fixed


@pytest.mark.parametrize("dtype", CODE_DTYPES)
@pytest.mark.parametrize(("sizes", "models", "dims", "samples"), CASES)
def test_pair_features_equal_the_reference(library, sizes, models, dims, samples, dtype):
    codes = torch.randn(models, _rows(sizes), dims).to(dtype)
    rng = Philox(7, step=3)
    expected, factors = _reference(
        "pair_features", codes, sizes, 5, samples, False, rng.seed, rng.step, rng.lane
    )
    for kind in _kinds(dtype, dims):
        features, fixed = _pairs(library, codes, sizes, 5, samples, rng, kind)
        assert_close(features, expected, torch.float32)
        assert torch.equal(fixed, factors)


def _run_groups(library, codes, sizes):
    """Return the variances, and how many blocks the groups were shared out among."""
    models, _, dims = codes.shape
    groups = sum(_factors(sizes))
    variance = torch.full((models, groups, dims), torch.nan)
    kind = _kinds(codes.dtype, dims)[0]
    case = _case(codes, sizes, 1, 2, False, Philox(0), Stream.VOTES, 1, kind)
    pieces = library.run_groups(case, ctypes.c_int64(groups), _pointer(variance))
    return variance, pieces


# Groups of 4096, 2187 and 3125 rows, several blocks each, with runs of 1 to 4096 rows; lists of one
# row and of thousands, which begin and end anywhere between two multiples of 2048.
GROUPS = [
    ((3, 4), 1, 10), ((2, 3), 2, 33), ((2,) * 13, 1, 10), ((3,) * 8, 1, 33), ((5,) * 6, 2, 1),
    (drawn_index(9001, [2, 3], 0), 2, 10), (drawn_index(4096, [2, 2, 40], 1), 1, 33),
    (drawn_index(61, [2] * 35, 2), 1, 1),
]  # fmt: skip


@pytest.mark.parametrize("dtype", CODE_DTYPES)
@pytest.mark.parametrize(("sizes", "models", "dims"), GROUPS)
def test_grouped_variance_equals_the_reference(library, sizes, models, dims, dtype):
    codes = (torch.randn(models, _rows(sizes), dims) * 3 + 100).to(dtype)
    variance, pieces = _run_groups(library, codes, sizes)
    assert pieces == sum(_factors(sizes)) + len(_factors(sizes)) * _rows(sizes) // 2048
    expected = _reference("grouped_variance", codes, sizes)
    assert_close(variance, expected, torch.float32)


@pytest.mark.parametrize("sizes", [SIZES, (2,) * 13])
def test_a_grid_with_an_index_is_the_grid_bit_for_bit(library, sizes):
    codes = torch.randn(2, prod(sizes), 10)
    index, rng = grid_index(sizes), Philox(2**40 + 1, step=5)
    scale, active = codes.var(1), torch.ones(2, 10, dtype=torch.bool)
    run = {
        "votes": lambda s: _votes(library, codes, s, 40, 9, False, scale, active, rng, 1),
        "features": lambda s: _pairs(library, codes, s, 7, 9, rng, 1)[0],
        "factors": lambda s: _pairs(library, codes, s, 7, 9, rng, 1)[1],
        "variances": lambda s: _run_groups(library, codes, s)[0],
    }
    for name, of in run.items():
        assert torch.equal(of(sizes), of(index)), name


def test_a_group_of_several_blocks_whose_codes_are_equal_has_variance_zero(library):
    codes = torch.tensor([0.1, 1e6 + 0.3, 1.0]).repeat(1, 2**13, 1)
    codes[0, 5000, 2] = torch.nan
    variance, pieces = _run_groups(library, codes, (2,) * 13)
    assert pieces == 26 + 13 * 4
    assert (variance[..., :2] == 0).all()
    # A NaN is in one value's group of each factor.
    assert variance[0, :, 2].view(13, 2).isnan().sum(1).tolist() == [1] * 13


def test_votes_at_a_mean_of_ten_thousand_deviations(library):
    codes = torch.randn(1, 60, 6, dtype=torch.float64)
    shifted = (codes + 1e4).float()
    scale, active = codes.float().var(1), torch.ones(1, 6, dtype=torch.bool)
    rng = Philox(1)
    exact = (shifted.double() - 1e4).float()  # what rounding to float32 left of the codes
    args = (SIZES, 60, 16, True, scale, active)
    key = (rng.seed, rng.step, 0)
    expected = reference.metric_votes(exact, *args, *key)
    assert torch.equal(_votes(library, shifted, *args, rng, 0), expected)
    assert torch.equal(reference.metric_votes(shifted, *args, *key), expected)


@needs_nvcc
@pytest.mark.compiles
@pytest.mark.parametrize(
    "target",
    [pytest.param(name, marks=[] if name == "sm_90a" else pytest.mark.slow) for name in TARGETS],
)
def test_nvcc_compiles_the_kernels_without_a_spill(library, tmp_path, target):
    include = Path(torch.__file__).parent / "include"

    command = [
        "nvcc", "-O3", "-std=c++20", "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020b000000000000",
        "-isystem", str(include), "-Xptxas", "-v", "-fatbin",
        "-gencode", f"arch={target.replace('sm', 'compute')},code={target}",
    ]  # fmt: skip
    command += [str(ROOT / "csrc/device.cu"), "-o", str(tmp_path / "device.fatbin")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    head = ("kernel", "rows", "codes", "load", "target", "registers", "shared", "stack+spill")
    print("\n" + "".join(f"{title:<10}" for title in head))
    # Bytes of a warp at d = 10, or of a block of the groups' kernels.
    shared = {"vote": library.warp_bytes(10, 1), "pair": library.warp_bytes(10, 2)}
    shared["group"] = shared["variance"] = library.group_bytes()
    every = re.findall(
        r"Compiling entry function '(\S+)' for '(\S+)'.*?"
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?"
        r"Used (\d+) registers",
        result.stderr,
        re.DOTALL,
    )
    # Of a grid and of an index: votes and pairs by float of 4, 8, 16 bytes, double of 8, 16,
    # bfloat16 and float16 of 2, 4, 8, 16. Groups: a kernel of each dtype, and one that adds up
    # their sums.
    assert len(every) == 2 * (2 * 13 + 4 + 1)
    for symbol, arch, *numbers, registers in every:
        kernel = re.search(r"(vote|pair|group|variance)_kernel", symbol)[1]
        source = re.search(r"Grid|Index", symbol)[0]
        of = re.search(r"kernelI(f|d|\w*?BFloat16|\w*?Half)?", symbol)[1] or "-"
        dtype = {"f": "float32", "d": "float64"}.get(of, of.lstrip("NS_0123456789"))
        load = re.search(r"Li(\d+)E", symbol)
        row = (kernel, source, dtype, load[1] if load else "-", arch, registers, shared[kernel])
        print("".join(f"{cell:<10}" for cell in (*row, "+".join(numbers))))
        assert numbers == ["0", "0", "0"], symbol
        assert arch == target
