"""The CUDA kernels: their own source run on a CPU, and compiled for each target.

On a CPU a thread stands for each CUDA thread (``cuda_on_host.h`` beside this file).
"""

import ctypes
import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path

import pytest
import torch
from shared import CODE_DTYPES, COMPILER, ROOT, SIZES, assert_close, compile_library, needs_nvcc

from fvae import Philox
from fvae.ops import reference
from fvae.philox import Stream

HERE = Path(__file__).parent
TARGETS = ("sm_80", "sm_90a", "sm_100")

_FIELDS = (
    "codes", "models", "rows", "dims", "sizes", "factors", "count", "samples", "balanced",
    "seed", "step", "stream", "warps", "kind",
)  # fmt: skip


class Case(ctypes.Structure):
    _fields_ = [
        (n, ctypes.c_void_p if n in ("codes", "sizes") else ctypes.c_int64) for n in _FIELDS
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
    return [3] if dtype == torch.bfloat16 else [4]


def _case(codes, sizes, count, samples, balanced, rng, stream, warps, kind):
    array = torch.tensor(sizes)
    models, rows, dims = codes.shape
    case = Case(
        codes.data_ptr(), models, rows, dims, array.data_ptr(), len(sizes), count, samples,
        balanced, rng.seed.item(), rng.step.item(), stream.at(rng.lane), warps, kind,
    )  # fmt: skip
    case.keep = (codes, array)
    return ctypes.byref(case)


def _pointer(tensor):
    return ctypes.c_void_p(tensor.data_ptr())


def _votes(library, codes, sizes, count, samples, balanced, scale, active, rng, kind):
    """What the kernel counts, [models, dims, factors]."""
    counts = torch.zeros(len(codes), codes.shape[2], len(sizes), dtype=torch.int64)
    case = _case(codes, sizes, count, samples, balanced, rng, Stream.VOTES, 2, kind)
    assert library.run_votes(case, _pointer(scale), _pointer(active), _pointer(counts))
    return counts


# sizes, models, dims, samples: one dimension, one tile less and more, several chunks of samples.
CASES = [
    (SIZES, 1, 10, 7), (SIZES, 2, 10, 64), ((2, 3), 1, 1, 2), ((7,), 1, 4, 5),
    ((3, 5, 2), 1, 33, 130), ((4, 6), 2, 40, 301),
]  # fmt: skip


@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize("dtype", CODE_DTYPES)
@pytest.mark.parametrize(("sizes", "models", "dims", "samples"), CASES)
def test_votes_equal_the_reference(library, sizes, models, dims, samples, dtype, balanced):
    codes = (torch.randn(models, prod(sizes), dims) + 3).to(dtype)
    scale = codes.float().var(1)
    active = torch.rand(models, dims) < 0.8
    rng = Philox(2**63 + 5, step=2**33 + 1).at_lane(1)
    args = (codes, sizes, 13, samples, balanced, scale, active)
    expected = reference.metric_votes(*args, rng.seed, rng.step, rng.lane)
    for kind in _kinds(dtype, dims):
        assert torch.equal(_votes(library, *args, rng, kind), expected)


@pytest.mark.parametrize("dtype", CODE_DTYPES)
@pytest.mark.parametrize(("sizes", "models", "dims", "samples"), CASES)
def test_pair_features_equal_the_reference(library, sizes, models, dims, samples, dtype):
    codes = torch.randn(models, prod(sizes), dims).to(dtype)
    rng = Philox(7, step=3)
    expected, factors = reference.pair_features(
        codes, sizes, 5, samples, False, rng.seed, rng.step, rng.lane
    )
    for kind in _kinds(dtype, dims):
        features = torch.full_like(expected, torch.nan)
        fixed = torch.full_like(factors, -1)
        case = _case(codes, sizes, 5, samples, False, rng, Stream.PAIRS, 2, kind)
        assert library.run_pairs(case, _pointer(features), _pointer(fixed))
        assert_close(features, expected, torch.float32)
        assert torch.equal(fixed, factors)


def _run_groups(library, codes, sizes):
    """Return the variances, and how many blocks the groups were shared out among."""
    models, _, dims = codes.shape
    variance = torch.full((models, sum(sizes), dims), torch.nan)
    kind = _kinds(codes.dtype, dims)[0]
    case = _case(codes, sizes, 1, 2, False, Philox(0), Stream.VOTES, 1, kind)
    pieces = library.run_groups(case, ctypes.c_int64(sum(sizes)), _pointer(variance))
    return variance, pieces


# The last three: groups of 4096, 2187 and 3125 rows, two blocks each, with runs of 1 to 4096 rows.
GROUPS = [
    ((3, 4), 1, 10), ((2, 3), 2, 33), ((2,) * 13, 1, 10), ((3,) * 8, 1, 33), ((5,) * 6, 2, 1),
]  # fmt: skip


@pytest.mark.parametrize("dtype", CODE_DTYPES)
@pytest.mark.parametrize(("sizes", "models", "dims"), GROUPS)
def test_grouped_variance_equals_the_reference(library, sizes, models, dims, dtype):
    codes = (torch.randn(models, prod(sizes), dims) * 3 + 100).to(dtype)
    variance, pieces = _run_groups(library, codes, sizes)
    assert pieces == sum(sizes) * (2 if prod(sizes) > 2048 else 1)
    expected = reference.grouped_variance(codes, sizes)
    assert_close(variance, expected, torch.float32)


def test_a_group_of_several_blocks_whose_codes_are_equal_has_variance_zero(library):
    codes = torch.tensor([0.1, 1e6 + 0.3, 1.0]).repeat(1, 2**13, 1)
    codes[0, 5000, 2] = torch.nan
    variance, pieces = _run_groups(library, codes, (2,) * 13)
    assert pieces == 2 * 26
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
def test_nvcc_compiles_the_kernels_without_a_spill(library, tmp_path):
    include = Path(torch.__file__).parent / "include"

    def compile(target):
        command = [
            "nvcc", "-O3", "-std=c++20", "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020b000000000000",
            "-isystem", str(include), "-gencode",
            f"arch={target.replace('sm', 'compute')},code={target}", "-Xptxas", "-v",
            "-c", str(ROOT / "csrc/device.cu"), "-o", str(tmp_path / f"{target}.o"),
        ]  # fmt: skip
        return target, subprocess.run(command, capture_output=True, text=True)

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(compile, TARGETS))
    head = ("kernel", "codes", "load", "target", "registers", "shared", "stack+spill")
    print("\n" + "".join(f"{title:<10}" for title in head))
    # Bytes of a warp at d = 10, or of a block of the groups' kernels.
    shared = {"vote": library.warp_bytes(10, 1), "pair": library.warp_bytes(10, 2)}
    shared["group"] = shared["variance"] = library.group_bytes()
    for target, result in results:
        assert result.returncode == 0, result.stderr
        entries = re.findall(
            r"Compiling entry function '(\S+)' for '(\S+)'.*?"
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?"
            r"Used (\d+) registers",
            result.stderr,
            re.DOTALL,
        )
        # votes and pairs: float by 4, 8, 16 bytes, double by 8, 16, bfloat16 by 2, 4, 8, 16.
        # Groups: a kernel of each dtype, and one that adds up their sums.
        assert len(entries) == 2 * 9 + 3 + 1
        for symbol, arch, *numbers, registers in entries:
            kernel = re.search(r"(vote|pair|group|variance)_kernel", symbol)[1]
            of = re.search(r"kernelI(.)", symbol)
            dtype = {"f": "float32", "d": "float64"}.get(of[1], "bfloat16") if of else "-"
            load = re.search(r"Li(\d+)E", symbol)
            row = (kernel, dtype, load[1] if load else "-", arch, registers, shared[kernel])
            print("".join(f"{cell:<10}" for cell in (*row, "+".join(numbers))))
            assert numbers == ["0", "0", "0"], symbol
            assert arch == target
