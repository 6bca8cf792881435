from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.library import opcheck

from fvae import ops

BACKENDS = [name for name in ("reference", "cpp") if name in ops.BACKENDS]


@pytest.mark.parametrize("backend", BACKENDS)
@given(
    sizes=st.lists(st.integers(2, 7), min_size=1, max_size=4),
    models=st.integers(1, 3),
    dims=st.integers(1, 40),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    seed=st.integers(0, 2**32),
)
def test_equals_numpy_group_by_group(backend, sizes, models, dims, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    codes = (torch.randn(models, prod(sizes), dims, generator=generator) + 1e3).to(dtype)
    grid = codes.double().numpy().reshape(models, *sizes, dims)
    expected = [
        np.take(grid, value, axis=1 + k).reshape(models, -1, dims).var(axis=1)
        for k, size in enumerate(sizes)
        for value in range(size)
    ]
    got = ops.grouped_variance(codes, sizes, backend)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), np.stack(expected, axis=1), rtol=2e-6, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_constant_has_variance_zero_and_a_nan_shows(backend):
    codes = torch.full((60, 3), 0.1)
    codes[:, 1] = 1e6 + 0.3
    codes[7, 2] = torch.nan
    variance = ops.grouped_variance(codes, (3, 4, 5), backend)
    assert (variance[:, :2] == 0).all()
    # Image 7 has classes 0, 1, 2.
    assert variance[:, 2].isnan().nonzero().flatten().tolist() == [0, 3 + 1, 7 + 2]


def test_opcheck():
    opcheck(torch.ops.fvae.grouped_variance.default, (torch.randn(2, 60, 4), [3, 4, 5]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_input(backend):
    with pytest.raises(ValueError, match="codes: got 61 rows, expected 60"):
        ops.grouped_variance(torch.randn(61, 4), (3, 4, 5), backend)
    with pytest.raises(TypeError, match="codes: got torch.int64"):
        ops.grouped_variance(torch.ones(60, 4, dtype=torch.int64), (3, 4, 5), backend)


@pytest.mark.skipif("cpp" not in BACKENDS, reason=f"no extension: {ops.EXTENSION_ERROR}")
def test_raw_op_checks_what_it_is_given():
    codes = torch.randn(1, 60, 4)
    with pytest.raises(RuntimeError, match="expected 2 to|expected 1 to|product of factor_sizes"):
        torch.ops.fvae.grouped_variance(codes, [7, 8])
    with pytest.raises(RuntimeError, match="codes: expected float32"):
        torch.ops.fvae.grouped_variance(codes.half(), [3, 4, 5])
    with pytest.raises(RuntimeError, match="codes: got 0 models of 4 dimensions"):
        torch.ops.fvae.grouped_variance(codes[:0], [3, 4, 5])
