"""UDR and ModelCentrality: what is alike scores 1, what has nothing in common scores low."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from fvae.errors import UserError
from fvae.metrics.across import (
    ACROSS,
    Codes,
    agreement,
    centralities,
    relative_strength,
    udr_scores,
)
from fvae.metrics.dci import dci_score

SIMILARITIES = ("spearman", "lasso")


def drawn(seed, rows=400, dims=5):
    return np.random.default_rng(seed).normal(size=(rows, dims))


def model(codes, informative=None):
    return Codes.of(codes, np.ones(codes.shape[1]) if informative is None else informative)


def test_the_relative_strength_by_hand():
    # Columns: .8^2 / (.8 + .2) + .6^2 / (0 + .6); rows: .8^2 / .8 + .6^2 / (.2 + .6).
    similarity = np.array([[0.8, 0.0], [0.2, 0.6]])
    expected = (0.64 + 0.6 + 0.8 + 0.45) / 4
    assert relative_strength(similarity) == pytest.approx(expected, rel=1e-12)
    # One informative dimension against three.
    assert relative_strength(np.array([[0.5, 0.5, 0.0]])) == pytest.approx((1 + 0.25) / 4)


def test_the_relative_strength_of_nothing_is_0():
    for shape in ((0, 0), (0, 3), (2, 0)):
        assert relative_strength(np.zeros(shape)) == 0
    assert relative_strength(np.zeros((2, 3))) == 0
    assert relative_strength(np.eye(4)[[2, 0, 3, 1]]) == 1


def test_udr_is_the_median_over_the_others_of_their_similarity():
    codes = [drawn(0) @ drawn(s, 5, 5) for s in (1, 2, 3, 4)]
    got = udr_scores([model(c) for c in codes])
    for i, score in enumerate(got):
        each = []
        for j in set(range(4)) - {i}:
            r = np.array([[abs(spearmanr(a, b).statistic) for b in codes[j].T] for a in codes[i].T])
            each.append(((r.max(0) ** 2 / r.sum(0)).sum() + (r.max(1) ** 2 / r.sum(1)).sum()) / 10)
        assert score == pytest.approx(np.median(each), rel=1e-9)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_alike_is_high_and_unrelated_is_low(similarity):
    codes = drawn(0, 4000)
    alike = udr_scores([model(codes)] * 3, similarity)
    entangled = udr_scores([model(codes @ drawn(s, 5, 5)) for s in (1, 2, 3)], similarity)
    unrelated = udr_scores([model(drawn(s, 4000)) for s in (1, 2, 3)], similarity)
    assert min(alike) > (0.85 if similarity == "lasso" else 0.95)  # Lasso takes 0.1 off a weight
    assert max(unrelated) < 0.05 < min(entangled) and max(entangled) < 0.7
    assert alike[0] == alike[1] == alike[2]


@pytest.mark.parametrize("similarity", SIMILARITIES)
@given(
    order=st.permutations(range(5)),
    scale=st.lists(st.floats(1e-6, 1e6), min_size=5, max_size=5),
    signs=st.lists(st.sampled_from([-1.0, 1.0]), min_size=5, max_size=5),
    shift=st.floats(-10, 10),
    seed=st.integers(0, 99),
)
def test_order_unit_sign_and_offset_change_nothing(similarity, order, scale, signs, shift, seed):
    codes = [drawn(seed + 7) @ drawn(seed + s, 5, 5) for s in range(3)]
    informative = np.array([1.0, 0.02, 0.005, 2.0, 0.5])
    models = [model(c, informative) for c in codes]
    other = (codes[1] * np.array(scale) * np.array(signs) + np.array(scale) * shift)[:, order]
    changed = [models[0], model(other, informative[order]), models[2]]
    got, expected = udr_scores(changed, similarity), udr_scores(models, similarity)
    assert got == pytest.approx(expected, abs=1e-3 if similarity == "lasso" else 1e-9)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_collapsed_dimensions_are_ignored(similarity):
    base = [drawn(0) @ drawn(s, 5, 5) for s in (1, 2, 3)]
    more = [np.hstack([codes, drawn(s, dims=4)]) for s, codes in enumerate(base, 50)]
    information = np.array([1.0] * 5 + [0.01, 0.0, 0.009, 0.0])
    with_noise = udr_scores([model(codes, information) for codes in more], similarity)
    assert with_noise == udr_scores([model(codes) for codes in base], similarity)
    collapsed = udr_scores([model(codes, np.zeros(5)) for codes in base], similarity)
    assert collapsed == [0, 0, 0]


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_a_constant_dimension_is_like_nothing(similarity):
    codes = drawn(0)
    codes[:, 2] = 1e6 + 1 / 3
    scores = udr_scores([model(codes)] * 2, similarity)
    assert scores == udr_scores([model(codes)] * 2, similarity)
    # Four of five dimensions have their like in the other model, the fifth counts as 0.
    assert all(0.6 < score < 0.81 for score in scores)


def votes(seed, dims, fixed, samples=16):
    """Codes of a generator's own votes: one dimension fixed in each."""
    z = np.random.default_rng(seed).normal(size=(len(fixed), samples, dims))
    z[np.arange(len(fixed)), :, fixed] = z[np.arange(len(fixed)), 0, fixed][:, None]
    return z.reshape(-1, dims)


def test_who_finds_what_was_fixed_agrees():
    fixed = np.resize(np.arange(4), 200)
    z = votes(0, 4, fixed)
    assert agreement(model(z), fixed) == 1
    assert agreement(model(z[:, [2, 0, 3, 1]] * [1e-3, -1, 50, 1]), fixed) == 1
    with_noise = np.hstack([z, np.zeros((len(z), 1)), drawn(1, len(z), 1)])
    assert agreement(model(with_noise, np.array([1, 1, 1, 1, 1, 0.0])), fixed) == 1
    # Three dimensions can tell three of four.
    assert agreement(model(z[:, :3]), fixed) == pytest.approx(0.75, abs=0.1)
    # Nothing to do with it: chance is 1/4, and the majority of 50 votes a dimension a little more.
    assert agreement(model(drawn(3, len(z), 4)), fixed) < 0.45


def test_who_informs_of_nothing_agrees_with_nobody():
    z = votes(0, 4, np.zeros(3, int))
    assert agreement(model(z, np.zeros(4)), np.zeros(3, int)) == 0
    assert agreement(model(np.ones_like(z)), np.zeros(3, int)) == 0
    assert agreement(model(z), []) == 0


def test_centrality_is_the_mean_of_both_directions():
    a = np.array([[9.0, 0.8, 0.2], [0.6, 9.0, 0.4], [0.0, 0.2, 9.0]])
    assert centralities(a) == pytest.approx([(0.7 + 0.1) / 2, (0.7 + 0.3) / 2, (0.1 + 0.3) / 2])
    assert centralities(np.ones((3, 3))) == [1, 1, 1]


def test_bad_input_is_one_line():
    codes, ones = drawn(0, 20), np.ones(5)
    torn = codes.copy()
    torn[3, 2] = np.nan
    for bad, information in [
        (codes[0], ones), (codes, ones[:4]), (codes[:0], ones), (torn, ones),
        (codes, ones * np.inf),
    ]:  # fmt: skip
        with pytest.raises(UserError, match="^codes: ") as caught:
            Codes.of(bad, information)
        assert "\n" not in str(caught.value)
    for models in ([], [model(codes)], [model(codes), model(codes[:10])]):
        with pytest.raises(UserError, match="^models: got codes of .* expected two or more"):
            udr_scores(models)
    assert set(ACROSS) == {"udr", "udr_lasso", "model_centrality"}


def test_dimensions_that_are_nearly_the_same_are_no_reason_to_warn():
    base, rng = drawn(0, 2000, 1), np.random.default_rng(2)
    codes = [base * rng.normal(size=10) + 0.03 * rng.normal(size=(2000, 10)) for _ in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = udr_scores([Codes.of(z, np.ones(10)) for z in codes], "lasso")
        linear = dci_score(codes[0], factors=(base[:, 0] > 0).astype(int), protocol="linear")
    assert all(0 <= score <= 1 for score in found) and np.isfinite(linear.score)
