from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shared import GRIDS, HOST_BACKENDS, SIZES, drawn_codes, needs_extension, threads
from torch.library import opcheck

from fvae import Philox, ops
from fvae.ops import reference


@pytest.fixture(params=HOST_BACKENDS)
def _votes(request):
    def votes(codes, rng, balanced=True, active=None, scale=None, votes=200, samples=7):
        scale = codes.var(-2) if scale is None else scale
        active = torch.ones_like(scale, dtype=torch.bool) if active is None else active
        return ops.metric_votes(
            codes, SIZES, votes=votes, samples=samples, scale=scale, active=active, rng=rng,
            balanced=balanced, backend=request.param,
        )  # fmt: skip

    return votes


@pytest.mark.parametrize("balanced", [True, False])
def test_equals_a_plain_loop(_votes, balanced):
    codes = torch.randn(60, 6)
    scale = codes.var(0)
    rng = Philox(3)
    factor, index = reference.vote_samples(SIZES, 200, 7, balanced, rng.seed, rng.step, 0)
    expected = np.zeros((6, 3), dtype=np.int64)
    for k, rows in zip(factor.tolist(), index.tolist(), strict=True):
        local = codes.numpy()[rows].var(axis=0, ddof=1)
        expected[np.argmin(local / scale.numpy()), k] += 1
    assert np.array_equal(_votes(codes, rng, balanced).numpy(), expected)


@given(
    st.lists(st.integers(2, 7), min_size=1, max_size=4), st.booleans(), st.integers(0, 2**64 - 1)
)
def test_samples_of_a_vote_share_one_value(sizes, balanced, seed):
    rng = Philox(seed)
    factor, index = reference.vote_samples(sizes, 30, 9, balanced, rng.seed, rng.step, 0)
    assert index.min() >= 0
    assert index.max() < prod(sizes)
    for k, rows in zip(factor.tolist(), index, strict=True):
        classes = np.unravel_index(rows.numpy(), sizes)
        assert len(set(classes[k].tolist())) == 1
    if balanced:
        assert factor.tolist() == [v % len(sizes) for v in range(30)]


def test_samples_are_uniform_over_the_images_with_the_value():
    # Factor 1 of (3, 4, 5) at a value: 15 images each. 60 cells over 3e4 samples: 59 degrees of
    # freedom, beyond 150 with probability 2e-9.
    rng = Philox(6)
    factor, index = reference.vote_samples(SIZES, 9000, 10, True, rng.seed, rng.step, 0)
    counts = torch.bincount(index[factor == 1].flatten(), minlength=60)
    # The ten samples of a vote share their value: within a value the counts are uniform.
    grid = counts.view(3, 4, 5).double()
    expected = grid.sum((0, 2), keepdim=True) / 15
    assert ((grid - expected) ** 2 / expected).sum() < 150


def test_models_see_the_same_votes(_votes):
    codes = torch.randn(2, 60, 4)
    together = _votes(codes, Philox(1))
    for m in range(2):
        assert torch.equal(together[m], _votes(codes[m], Philox(1)))


def test_inactive_and_constant_dimensions_never_win(_votes):
    codes = torch.randn(60, 4)
    codes[:, 1] = 2.5
    active = torch.tensor([True, True, False, True])
    votes = _votes(codes, Philox(1), active=active)
    assert votes[1].sum() == votes[2].sum() == 0
    assert votes.sum() == 200
    assert _votes(codes, Philox(1), active=torch.zeros(4, dtype=torch.bool)).sum() == 0


def test_ties_go_to_the_lowest_index_and_nan_never_wins(_votes):
    codes = torch.randn(60, 1).repeat(1, 3)
    assert _votes(codes, Philox(1))[0].sum() == 200
    codes[:, 0] = torch.nan
    scale = torch.ones(3)
    assert _votes(codes, Philox(1), scale=scale)[1].sum() == 200
    codes[:, :] = torch.nan  # all alike: the lowest that is in the race
    active = torch.tensor([False, True, True])
    assert _votes(codes, Philox(1), scale=scale, active=active)[1].sum() == 200


def test_mean_ten_thousand_times_the_deviation(_votes):
    codes = torch.randn(60, 4, dtype=torch.float64)
    shifted = (codes + 1e4).float()
    exact = (shifted.double() - 1e4).float()  # what rounding to float32 left of the codes
    scale = codes.var(0)
    assert torch.equal(
        _votes(shifted, Philox(1), scale=scale), _votes(exact, Philox(1), scale=scale)
    )


@needs_extension
@settings(derandomize=True)
@given(
    **GRIDS,
    votes=st.integers(1, 300),
    samples=st.integers(2, 200),
    balanced=st.booleans(),
    step=st.integers(0, 2**40),
)
def test_extension_has_the_votes_of_the_reference(
    sizes, models, dims, votes, samples, balanced, dtype, seed, step
):
    codes, generator = drawn_codes(sizes, models, dims, dtype, seed)
    scale = torch.rand(models, dims, generator=generator)
    active = torch.rand(models, dims, generator=generator) < 0.8
    got, expected = (
        ops.metric_votes(
            codes, sizes, votes=votes, samples=samples, scale=scale, active=active,
            rng=Philox(seed, step).at_lane(1), balanced=balanced, backend=backend,
        )
        for backend in ("cpp", "reference")
    )  # fmt: skip
    # Rounding decides between variances that are equal but for their last bits; bfloat16 codes
    # make such ties. The examples are fixed, so that no rare one fails a later run.
    moved = 1 + (votes // 100 if dtype == torch.bfloat16 else 0)
    assert (got - expected).abs().sum() <= 2 * moved


@needs_extension
def test_fifteen_thousand_votes_on_a_transposed_view_with_any_threads():
    sizes, d = (3, 6, 10, 8, 8), 10
    codes = torch.randn(2, d, prod(sizes)).transpose(1, 2)
    arguments = dict(
        votes=15_000, samples=64, scale=codes.var(1), rng=Philox(4),
        active=torch.ones(2, d, dtype=torch.bool),
    )  # fmt: skip
    expected = ops.metric_votes(codes, sizes, backend="reference", **arguments)
    for count in (1, 3):
        with threads(count):
            assert torch.equal(ops.metric_votes(codes, sizes, **arguments), expected)


def test_one_factor_of_two_values(_votes):
    codes = torch.randn(2, 3)
    votes = ops.metric_votes(
        codes, (2,), votes=9, samples=2, scale=torch.ones(3), rng=Philox(0),
        active=torch.ones(3, dtype=torch.bool),
    )  # fmt: skip
    # One image has the value: every variance is 0, and ties go to the lowest.
    assert votes.tolist() == [[9], [0], [0]]


def test_opcheck():
    rng, codes = Philox(1), torch.randn(2, 60, 4)
    active = torch.ones(2, 4, dtype=torch.bool)
    args = (codes, list(SIZES), 20, 5, True, codes.var(1), active, rng.seed, rng.step, 0)
    opcheck(torch.ops.fvae.metric_votes.default, args)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": torch.randn(61, 4)}, "codes: got 61 rows, expected 60"),
        ({"codes": torch.randn(60, 0)}, r"codes: got shape \[60, 0\]"),
        ({"factor_sizes": (2,) * 32}, "factor_sizes: the product"),
        ({"votes": 2**32}, "votes: got 4294967296, expected 1 to"),
        ({"factor_sizes": (60, 1)}, "factor_sizes: got"),
        ({"votes": 0}, "votes: got 0"),
        ({"samples": 1}, "samples: got 1"),
        ({"scale": torch.ones(5)}, "scale: got shape"),
        ({"active": torch.ones(3, dtype=torch.bool)}, "active: got shape"),
        ({"rng": Philox([1, 2])}, "rng: has several keys"),
    ],
)
def test_bad_input(change, message):
    arguments = {
        "codes": torch.randn(60, 4), "factor_sizes": SIZES, "votes": 10, "samples": 5,
        "scale": torch.ones(4), "active": torch.ones(4, dtype=torch.bool), "rng": Philox(0),
    }  # fmt: skip
    arguments |= change
    with pytest.raises(ValueError, match=message):
        ops.metric_votes(arguments.pop("codes"), arguments.pop("factor_sizes"), **arguments)
