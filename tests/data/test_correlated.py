"""Weights that correlate factors: the density in numbers, what is drawn, what is refused."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from shared import grid_classes

from fvae import Philox, data, ops
from fvae.data import Store
from fvae.errors import UserError

SIZES, NAMES = (3, 6, 4, 5), ("shape", "scale", "x", "y")


def _grid():
    rows = torch.zeros(math.prod(SIZES), 1, dtype=torch.uint8)
    return Store("grid", rows, (1, 2, 4), True, NAMES, SIZES)


def _labelled(*columns):
    labels = torch.as_tensor(np.stack(columns, axis=1))
    rows = torch.zeros(len(labels), 1, dtype=torch.uint8)
    return Store("labelled", rows, (1, 2, 4), True, NAMES[: len(columns)], labels=labels)


def _density(c, n, sigma):
    return math.exp(-((c[0] / (n[0] - 1) - c[1] / (n[1] - 1)) ** 2) / (2 * sigma**2))


@pytest.mark.parametrize(
    "pairs",
    [["shape,scale:0.2"], ["scale,shape:0.7"], ["shape, scale : 0.2", "x,y:0.4"],
     ["shape,x:.3", "x,y:1e-1"], ["shape,scale:inf"], ["x,y:0.01"], []],
)  # fmt: skip
def test_the_density_of_a_grid(pairs):
    w = data.correlated(_grid(), pairs)
    assert w.dtype == torch.float64 and w.max() == 1
    for classes, weight in zip(grid_classes(SIZES).tolist(), w.tolist(), strict=True):
        expected = 1.0
        for pair in pairs:
            names, sigma = pair.split(":")
            places = [NAMES.index(name.strip()) for name in names.split(",")]
            c, n = ([values[k] for k in places] for values in (classes, SIZES))
            expected *= _density(c, n, float(sigma))
        assert weight == pytest.approx(expected, rel=1e-12, abs=1e-300)


def test_one_pair_as_text():
    store = _grid()
    assert torch.equal(data.correlated(store, "x,y:1"), data.correlated(store, ["x,y:1"]))


def test_labels_are_scaled_from_least_to_greatest():
    rng = np.random.default_rng(0)
    a, b = rng.integers(-4, 9, 50), rng.integers(0, 1000, 50)
    for x, y in ((a, b), (a * 1.0, b / 7 - 3)):
        w = data.correlated(_labelled(x, y), ["shape,scale:0.4"])
        apart = (x - x.min()) / (x.max() - x.min()) - (y - y.min()) / (y.max() - y.min())
        expected = np.exp(-(apart**2) / (2 * 0.4**2))
        np.testing.assert_allclose(w, expected / expected.max(), rtol=1e-12)


def test_labels_of_a_grid_are_the_grid():
    columns = grid_classes(SIZES).numpy().T
    pairs = ["shape,scale:0.2", "scale,y:0.5"]
    assert torch.equal(data.correlated(_labelled(*columns), pairs), data.correlated(_grid(), pairs))


def test_the_pair_varies_together_and_nothing_else():
    store, count = _grid(), 300_000
    table = ops.alias_table(data.correlated(store, ["shape,scale:0.4"]))
    _, rows = ops.gather_batch(store, count, Philox(11), table=table, return_indices=True)
    density = [[_density((s, c), SIZES, 0.4) for c in range(6)] for s in range(3)]
    expected = np.array(density)[:, :, None, None] / np.sum(density) / 20
    expected = np.broadcast_to(expected, SIZES).reshape(-1) * count
    counts = np.bincount(rows, minlength=len(store))
    assert expected.min() > 20
    assert stats.chisquare(counts, expected).pvalue > 1e-7
    pairs = counts.reshape(18, 20).sum(1)
    assert stats.chisquare(pairs, expected.reshape(18, 20).sum(1)).pvalue > 1e-7
    others = counts.reshape(18, 20).sum(0)
    assert stats.chisquare(others).pvalue > 1e-7
    # What the test sees: of uniform draws nothing is left.
    _, plain = ops.gather_batch(store, count, Philox(11), return_indices=True)
    assert stats.chisquare(np.bincount(plain, minlength=len(store)), expected).pvalue < 1e-100


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["shape,colour:0.2"], "data set grid has no factor 'colour', expected two of shape, sc"),
        (["shape:0.2"], "expected two factors and sigma, as in shape,scale:0.2"),
        (["shape,scale"], "expected two factors and sigma, as in shape,scale:0.2"),
        ([""], "expected two factors and sigma"),
        (["shape,scale,x:0.2"], "expected two factors and sigma"),
        (["shape,:0.2"], "expected two factors and sigma"),
        (["shape,shape:0.2"], "names shape twice, expected two factors"),
        (["shape,scale:0"], "sigma is '0', expected a number above 0"),
        (["shape,scale:-1"], "sigma is '-1', expected a number above 0"),
        (["shape,scale:nan"], "sigma is 'nan', expected a number above 0"),
        (["shape,scale:"], "sigma is '', expected a number above 0"),
        (["shape,scale:strong"], "sigma is 'strong', expected a number above 0"),
        (["x,y:0.2", "y,x:0.4"], "the same two factors come twice"),
    ],
)
def test_what_is_refused(pairs, message):
    with pytest.raises(UserError, match=message) as caught:
        data.correlated(_grid(), pairs)
    assert str(caught.value).startswith(f"--correlate {pairs[-1]}: ")
    assert "\n" not in str(caught.value)


def test_sets_that_cannot_be():
    plain = Store("plain", torch.zeros(3, 1, dtype=torch.uint8), (1, 2, 4), True)
    with pytest.raises(UserError, match="data set plain has no known factors"):
        data.correlated(plain, ["a,b:0.2"])
    store = _labelled(np.array([0, 1, 2]), np.array([5, 5, 5]))
    with pytest.raises(UserError, match="factor scale of data set labelled has one value"):
        data.correlated(store, ["shape,scale:0.2"])
    # No image lies on the line: the nearest count, as far as numbers hold how near they are.
    store = _labelled(np.array([0, 0, 1]), np.array([1, 0.9, 0]))
    assert data.correlated(store, ["shape,scale:1e-3"]).tolist() == [0, 1, 0]
    with pytest.raises(UserError, match="sigma is too small"):
        data.correlated(store, ["shape,scale:1e-300"])
