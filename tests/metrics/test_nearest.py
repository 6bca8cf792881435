"""Mutual information from distances to neighbours, against scikit-learn and against the plane."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import digamma
from sklearn.feature_selection import mutual_info_classif, mutual_info_regression

from fvae.metrics import nearest

NUMBERS = st.lists(
    st.sampled_from([0.0, 1.0, 0.1, 0.3, -2.5, 1e-17, 1e6]) | st.floats(-3, 3),
    min_size=2,
    max_size=30,
)


def _spread(kind, classes, rng):
    noise = rng.standard_normal(len(classes))
    if kind == "perfect":
        return classes * 1.0
    if kind == "rounded":
        return np.round(noise, 1)
    return classes + noise if kind == "noisy" else noise


@pytest.mark.parametrize("kind", ["perfect", "noisy", "noise", "rounded"])
@pytest.mark.parametrize(("rows", "neighbours"), [(3000, 10), (900, 3)])
def test_classes_equal_scikit_learn(kind, rows, neighbours):
    rng = np.random.default_rng(rows)
    y = rng.integers(0, 20, rows)
    x = _spread(kind, y, rng)
    x = (x - x.mean()) / x.std()
    ours = nearest.with_classes(nearest.untied(x, np.random.RandomState(5)), y, neighbours)
    options = {"discrete_features": False, "n_neighbors": neighbours, "random_state": 5}
    assert ours == pytest.approx(mutual_info_classif(x[:, None], y, **options)[0], abs=1e-12)


@pytest.mark.parametrize("kind", ["perfect", "noisy", "noise", "rounded"])
def test_values_equal_scikit_learn(kind):
    rng = np.random.default_rng(0)
    x = _spread(kind, rng.integers(0, 20, 2000), rng)
    x = (x - x.mean()) / x.std()
    y = x + rng.standard_normal(2000)
    y = (y - y.mean()) / y.std()
    random = np.random.RandomState(5)
    ours = nearest.with_values(nearest.untied(x, random), nearest.untied(y, random), 10)
    theirs = mutual_info_regression(x[:, None], y, n_neighbors=10, random_state=5)[0]
    assert ours == pytest.approx(theirs, abs=1e-12)


def test_what_is_known_exactly():
    rng = np.random.default_rng(0)
    x = rng.standard_normal(5000)
    assert nearest.with_values(x, x, 7) == pytest.approx(nearest.greatest(5000, 7))
    assert nearest.greatest(5000, 7) == pytest.approx(digamma(5000) - digamma(7))
    # Of correlation r, two normal variables share -log(1 - r^2) / 2 nats; of unit steps, log n.
    y = 0.8 * x + 0.6 * rng.standard_normal(5000)
    assert nearest.with_values(x, y, 10) == pytest.approx(-np.log(0.36) / 2, abs=0.06)
    v = np.arange(5000) % 8
    separate = nearest.with_classes(v + 1e-3 * x, v, 10)
    assert separate == pytest.approx(digamma(5000) - digamma(625))
    assert separate == pytest.approx(np.log(8), abs=1e-3)


def test_few_rows():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert nearest.with_classes(np.array([1.0, 2.0]), np.array([0, 1]), 3) == 0.0
        assert nearest.with_values(np.zeros(1), np.zeros(1), 3) == 0.0
        assert nearest.greatest(1, 3) == 0.0
        # The one row of class 1 is left out; its two neighbours are each other's first.
        x, y = np.array([0.0, 5.0, 0.5]), np.array([0, 1, 0])
        assert nearest.with_classes(x, y, 3) == pytest.approx(0.0)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(numbers=NUMBERS, k=st.integers(1, 6))
def test_neighbours_in_a_line_are_those_that_a_search_finds(numbers, k):
    x = np.sort(np.array(numbers))
    k = min(k, len(x) - 1)
    apart = np.abs(x[:, None] - x)
    reach = np.array([np.sort(np.delete(row, i))[k - 1] for i, row in enumerate(apart)])
    np.testing.assert_array_equal(nearest._reach(x, k), reach)
    closer = (apart <= np.nextafter(reach, 0)[:, None]).sum(1)
    np.testing.assert_array_equal(nearest._closer(x, x, reach), closer)
