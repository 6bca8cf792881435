import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shared import GRIDS, HOST_BACKENDS, SIZES, assert_close, drawn_codes, needs_extension
from torch.library import opcheck

from fvae import Philox, ops
from fvae.ops import reference


@pytest.mark.parametrize("backend", HOST_BACKENDS)
@pytest.mark.parametrize("balanced", [True, False])
def test_equals_a_plain_loop(backend, balanced):
    codes, rng = torch.randn(60, 6), Philox(3)
    ((factor, rows),) = reference.pair_chunks(SIZES, 20, 7, balanced, rng.seed, rng.step, 0)
    features, factors = ops.pair_features(
        codes, SIZES, points=20, pairs=7, rng=rng, balanced=balanced, backend=backend
    )
    assert torch.equal(factors, factor)
    for p in range(20):
        mean = sum((codes[a] - codes[b]).abs() for a, b in rows[p].tolist()) / 7
        torch.testing.assert_close(features[p], mean)


def test_chunks_do_not_change_the_result(monkeypatch):
    def features():
        return ops.pair_features(
            torch.arange(60.0)[:, None], SIZES, points=20, pairs=7, rng=Philox(3),
            backend="reference",
        )  # fmt: skip

    whole = features()
    monkeypatch.setattr("fvae.ops.reference._PAIRS_AT_ONCE", 30)
    for a, b in zip(features(), whole, strict=True):
        assert torch.equal(a, b)


@needs_extension
@given(
    **GRIDS,
    points=st.integers(1, 100),
    pairs=st.integers(1, 100),
    balanced=st.booleans(),
)
def test_extension_agrees_with_the_reference(
    sizes, models, dims, points, pairs, balanced, dtype, seed
):
    codes, _ = drawn_codes(sizes, models, dims, dtype, seed, mean=100)
    (x, k), (expected, factors) = (
        ops.pair_features(
            codes, sizes, points=points, pairs=pairs, rng=Philox(seed).at_lane(1),
            balanced=balanced, backend=backend,
        )
        for backend in ("cpp", "reference")
    )  # fmt: skip
    assert torch.equal(k, factors)
    assert x.dtype == torch.float32
    assert_close(x, expected, torch.float32)


def test_opcheck():
    rng = Philox(1)
    args = (torch.randn(2, 60, 4), list(SIZES), 20, 5, True, rng.seed, rng.step, 0)
    opcheck(torch.ops.fvae.pair_features.default, args)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": torch.randn(61, 4)}, "codes: got 61 rows, expected 60"),
        ({"points": 0}, "points: got 0"),
        ({"pairs": 0}, "pairs: got 0"),
        ({"rng": Philox([1, 2])}, "rng: has several keys"),
        ({"backend": "triton"}, "pair_features has reference"),
    ],
)
def test_bad_input(change, message):
    arguments = {"codes": torch.randn(60, 4), "points": 3, "pairs": 5, "rng": Philox(0)} | change
    with pytest.raises(ValueError, match=message):
        ops.pair_features(arguments.pop("codes"), SIZES, **arguments)
