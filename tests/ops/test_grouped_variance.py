import numpy as np
import pytest
import torch
from hypothesis import given
from shared import GRIDS, HOST_BACKENDS, SIZES, drawn_codes, needs_extension
from torch.library import opcheck

from fvae import ops

each_backend = pytest.mark.parametrize("backend", HOST_BACKENDS)


@each_backend
@given(**GRIDS)
def test_equals_numpy_group_by_group(backend, sizes, models, dims, dtype, seed):
    codes, _ = drawn_codes(sizes, models, dims, dtype, seed, mean=1e3)
    grid = codes.double().numpy().reshape(models, *sizes, dims)
    expected = [
        np.take(grid, value, axis=1 + k).reshape(models, -1, dims).var(axis=1)
        for k, size in enumerate(sizes)
        for value in range(size)
    ]
    got = ops.grouped_variance(codes, sizes, backend)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), np.stack(expected, axis=1), rtol=2e-6, atol=1e-12)


@each_backend
def test_a_constant_has_variance_zero_and_a_nan_shows(backend):
    codes = torch.full((60, 3), 0.1)
    codes[:, 1] = 1e6 + 0.3
    codes[7, 2] = torch.nan
    variance = ops.grouped_variance(codes, SIZES, backend)
    assert (variance[:, :2] == 0).all()
    # Image 7 has classes 0, 1, 2.
    assert variance[:, 2].isnan().nonzero().flatten().tolist() == [0, 3 + 1, 7 + 2]


def test_opcheck():
    opcheck(torch.ops.fvae.grouped_variance.default, (torch.randn(2, 60, 4), [3, 4, 5]))


@each_backend
def test_bad_input(backend):
    with pytest.raises(ValueError, match="codes: got 61 rows, expected 60"):
        ops.grouped_variance(torch.randn(61, 4), SIZES, backend)
    with pytest.raises(TypeError, match="codes: got torch.int64"):
        ops.grouped_variance(torch.ones(60, 4, dtype=torch.int64), SIZES, backend)


@needs_extension
def test_raw_op_checks_what_it_is_given():
    codes = torch.randn(1, 60, 4)
    with pytest.raises(RuntimeError, match="expected 2 to|expected 1 to|product of factor_sizes"):
        torch.ops.fvae.grouped_variance(codes, [7, 8])
    with pytest.raises(RuntimeError, match="codes: expected float32"):
        torch.ops.fvae.grouped_variance(codes.int(), [3, 4, 5])
    with pytest.raises(RuntimeError, match="codes: got 0 models of 4 dimensions"):
        torch.ops.fvae.grouped_variance(codes[:0], [3, 4, 5])
