import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shared import SHAPES
from torch.library import opcheck

from fvae import Philox, ops
from fvae.ops import reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*SHAPES, (3, 7, 10), (2, 1, 4)])
def test_each_column_keeps_its_values(shape, dtype):
    z = torch.randn(shape).to(dtype)
    permuted = ops.permute_dims(z, Philox(5))
    assert permuted.dtype == dtype
    assert torch.equal(permuted.sort(-2).values, z.sort(-2).values)


def test_order_is_that_of_key_and_row():
    # The definition, with Python's big integers: sort (word << 32 | row) of each column.
    rng = Philox(8, step=3)
    got = reference.permutation(rng.seed, rng.step, 0, (7, 3))
    from fvae import philox

    words = philox.words(rng.seed, rng.step, philox.Stream.PERMUTATION, 3 * 8).view(3, 8)
    for column in range(3):
        keys = [int(words[column, row]) << 32 | row for row in range(7)]
        assert got[:, column].tolist() == sorted(range(7), key=lambda row: keys[row])  # noqa: B023


@given(st.integers(1, 40), st.integers(1, 5), st.integers(0, 2**64 - 1))
def test_is_a_permutation(rows, dims, seed):
    rng = Philox(seed)
    p = reference.permutation(rng.seed, rng.step, 0, (rows, dims))
    assert torch.equal(p.sort(0).values, torch.arange(rows)[:, None].expand(rows, dims))


def test_several_models_with_a_key_each_equal_each_alone():
    z = torch.randn(3, 9, 4)
    together = ops.permute_dims(z, Philox([1, 2, 3]))
    for m in range(3):
        assert torch.equal(together[m], ops.permute_dims(z[m], Philox(m + 1)))


def test_every_permutation_of_four_rows_equally_often():
    # Chi-square of 24 cells over 1e5 permutations: beyond 90 (23 degrees of freedom) with
    # probability 6e-10.
    draws = 100_000
    rng = Philox(2)
    p = reference.permutation(rng.seed, rng.step, 0, (4, draws))
    code = (p * torch.tensor([64, 16, 4, 1])[:, None]).sum(0)
    counts = torch.stack(
        [
            (code == sum(v * w for v, w in zip(q, (64, 16, 4, 1), strict=True))).sum()
            for q in itertools.permutations(range(4))
        ]
    )
    assert counts.sum() == draws
    expected = draws / 24
    assert ((counts - expected) ** 2 / expected).sum() < 90


def test_columns_are_independent():
    # Where row 0 of two columns comes from, 16 cells: 15 degrees of freedom, beyond 75 with
    # probability 6e-10.
    draws = 50_000
    rng = Philox(4)
    p = reference.permutation(rng.seed, rng.step, 0, (4, 2 * draws))[0].view(draws, 2)
    counts = torch.bincount(p[:, 0] * 4 + p[:, 1], minlength=16)
    assert ((counts - draws / 16) ** 2 / (draws / 16)).sum() < 75


def test_gradient_is_the_inverse_permutation():
    z = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    rng = Philox(1)
    assert torch.autograd.gradcheck(lambda z: ops.permute_dims(z, rng), z)


def test_advancing_before_backward_is_refused_not_wrong():
    z = torch.randn(7, 3, requires_grad=True)
    rng = Philox(1)
    permuted = ops.permute_dims(z, rng)
    rng.advance()
    with pytest.raises(RuntimeError, match="inplace"):
        permuted.sum().backward()


def test_step_and_lane_draw_anew():
    z = torch.arange(50.0)[:, None]
    rng = Philox(1)
    first, other_lane = ops.permute_dims(z, rng), ops.permute_dims(z, rng.at_lane(1))
    again = ops.permute_dims(z, rng)
    rng.advance()
    assert torch.equal(first, again)
    assert not torch.equal(first, other_lane)
    assert not torch.equal(first, ops.permute_dims(z, rng))


def test_without_rng_the_global_seed_governs():
    z = torch.randn(64, 10)
    torch.manual_seed(3)
    first = ops.permute_dims(z)
    second = ops.permute_dims(z)
    torch.manual_seed(3)
    assert torch.equal(first, ops.permute_dims(z))
    assert not torch.equal(first, second)


def test_non_contiguous_input():
    z = torch.randn(10, 7).t()
    assert torch.equal(ops.permute_dims(z, Philox(1)), ops.permute_dims(z.contiguous(), Philox(1)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(dtype):
    rng = Philox(1)
    z = torch.randn(10, 7).t().to(dtype)
    opcheck(torch.ops.fvae.permute_dims.default, (z, rng.seed, rng.step, 0))
    opcheck(torch.ops.fvae.permute_dims_backward.default, (z, rng.seed, rng.step, 0))


@pytest.mark.parametrize(
    ("z", "error", "message"),
    [
        (torch.randn(7), ValueError, r"z: got shape \[7\]"),
        (torch.randn(0, 3), ValueError, r"z: got shape \[0, 3\]"),
        (torch.ones(7, 3, dtype=torch.int64), TypeError, "z: got torch.int64"),
    ],
)
def test_bad_input(z, error, message):
    with pytest.raises(error, match=message):
        ops.permute_dims(z, Philox(0))


def test_bad_backend_and_keys():
    with pytest.raises(ValueError, match="backend: got 'fast', but permute_dims has reference"):
        ops.permute_dims(torch.randn(7, 3), Philox(0), backend="fast")
    with pytest.raises(ValueError, match="rng: has 2 keys"):
        ops.permute_dims(torch.randn(7, 3), Philox([1, 2]))
