"""Boosted trees against scikit-learn's, and what cannot be learnt or taken."""

import numpy as np
import pytest
import torch
from sklearn.ensemble import GradientBoostingClassifier
from torch.library import opcheck

from fvae import ops

TRAIN = 400


@pytest.fixture(params=["cpp", "reference"])
def backend(request):
    if request.param == "cpp" and ops.EXTENSION_ERROR:
        pytest.skip(ops.EXTENSION_ERROR)
    return request.param


def data(dims=4, rows=600, sizes=(2, 3, 5), noise=0.4, seed=0):
    """Codes [n, d] that know factors of some sizes through noise, and labels [K, n]."""
    rng = np.random.default_rng(seed)
    y = np.stack([rng.integers(0, n, rows) for n in sizes])
    x = (y / np.array(sizes)[:, None]).T @ rng.standard_normal((len(sizes), dims))
    return torch.tensor(x + noise * rng.standard_normal(x.shape)), torch.tensor(y).double()


def both(x, y, real, **options):
    options = {"stages": 20} | options
    parts = x[:TRAIN], y[:, :TRAIN], real, x[TRAIN:]
    return [ops.boosted_trees(*parts, backend=b, **options) for b in ("cpp", "reference")]


@pytest.mark.parametrize("dims", [1, 4, 7])
def test_regression_equals_scikit_learn(dims):
    x, y = data(dims)
    smooth = x.sum(1, keepdim=True).T.sin() + 0.1 * y[1]
    (importance, predicted), (theirs, expected) = both(x, smooth, [True])
    # A node of two rows is split as well by any dimension: few rows are predicted otherwise.
    torch.testing.assert_close(importance, theirs, rtol=0, atol=1e-9 if dims == 1 else 2e-3)
    differ = (predicted - expected).abs() > 1e-9
    assert differ.double().mean() <= (0 if dims == 1 else 0.05)


def test_classes_on_one_dimension_equal_scikit_learn():
    # No two dimensions can offer equally good splits; labels need not be 0, 1, ...
    x, y = data(1, sizes=(2, 3, 5))
    (importance, predicted), (theirs, expected) = both(x, 2 * y - 3, [False] * 3)
    assert importance.equal(torch.ones(3, 1).double()) and theirs.equal(importance)
    assert (predicted != expected).double().mean() < 0.01
    assert set(predicted[1].tolist()) <= {-3.0, -1.0, 1.0}


@pytest.mark.parametrize("noise", [0.05, 0.4, 2.0])
def test_classes_equal_scikit_learn_as_far_as_its_seeds_equal_one_another(noise):
    x, y = data(4, noise=noise)
    (importance, predicted), (theirs, expected) = both(x, y, [False] * 3)
    for k, labels in enumerate(y[:, :TRAIN].numpy()):
        models = [
            GradientBoostingClassifier(n_estimators=20, random_state=seed).fit(
                x[:TRAIN].float().numpy(), labels
            )
            for seed in range(3)
        ]
        found = np.stack([m.feature_importances_ for m in models])
        np.testing.assert_allclose(theirs[k], found[0], atol=1e-12)
        apart = np.ptp(found, axis=0).max()
        assert np.abs(importance[k].numpy() - found.mean(0)).max() <= 1e-3 + 2 * apart
    right, theirs_right = ((p == y[:, TRAIN:]).double().mean() for p in (predicted, expected))
    assert abs(right - theirs_right) < 0.02


def test_scores_equal_scikit_learn():
    # One split a stage is best by far, so that none is a matter of order.
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 300).astype(float)
    x = torch.tensor((y + 0.001 * rng.standard_normal(300))[:, None]).float()
    raw = [
        ops.implementation("boosted_trees", b)(x, torch.tensor(y)[None], [4], x, 5, 0.1)[1]
        for b in ("cpp", "reference")
    ]
    torch.testing.assert_close(*raw, rtol=0, atol=1e-9)


def test_a_tree_by_hand(backend):
    # Mean 2; the one stage moves each side of the split all the way to its mean.
    x = torch.tensor([[0.0, 5.0], [1.0, 5.0], [10.0, 5.0], [11.0, 5.0]])
    y = torch.tensor([[1.0, 1.0, 3.0, 3.0]])
    test = torch.tensor([[5.5, 0.0], [5.6, 0.0], [-9.0, 9.0]])  # the border is the midpoint, 5.5
    importance, predicted = ops.boosted_trees(
        x, y, [True], test, stages=1, rate=1.0, backend=backend
    )
    assert importance.tolist() == [[1.0, 0.0]]
    assert predicted.tolist() == [[1.0, 3.0, 1.0]]
    # Two classes, a Newton step from log odds 0: residuals +-1/2, curvature 1/4, so -2 and 2.
    scores = ops.implementation("boosted_trees", backend)(
        x, (y.double() - 1) / 2, [2], test, 1, 0.5
    )[1]
    assert scores[:, 0].tolist() == pytest.approx([-1.0, 1.0, -1.0])


def test_any_number_of_threads_gives_the_same():
    if ops.EXTENSION_ERROR:
        pytest.skip(ops.EXTENSION_ERROR)
    x, y = data()
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(both_of_ours(x, y))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(a.equal(b) for a, b in zip(found[0], other, strict=True))


def both_of_ours(x, y):
    return ops.boosted_trees(x, y, [False, False, True], x, stages=5, backend="cpp")


def test_values_closer_than_the_threshold_are_one(backend):
    x = torch.tensor([[0.0], [5e-8], [1.0]])
    y = torch.tensor([[0.0, 9.0, 9.0]])
    _, predicted = ops.boosted_trees(x, y, [True], x, stages=1, rate=1.0, backend=backend)
    assert predicted[0].tolist() == pytest.approx([4.5, 4.5, 9.0])


def test_nothing_to_learn(backend):
    x = torch.tensor([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]])
    y = torch.tensor([[0.0, 1.0, 1.0], [7.0, 7.0, 7.0], [1.0, 2.0, 6.0]])
    importance, predicted = ops.boosted_trees(x, y, [False, False, True], x, backend=backend)
    assert not importance.any()
    assert predicted[:, 0].tolist() == pytest.approx([1.0, 7.0, 3.0])


def test_two_rows(backend):
    x = torch.tensor([[0.0], [1.0]])
    _, predicted = ops.boosted_trees(x, torch.tensor([[4.0, 6.0]]), [False], x, backend=backend)
    assert predicted.tolist() == [[4.0, 6.0]]


def test_opcheck():
    x, y = data(3, 30)
    opcheck(torch.ops.fvae.boosted_trees.default, (x.float(), y, [2, 3, 5], x.float(), 2, 0.1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": torch.full((6, 2), torch.nan)}, "codes: expected finite"),
        ({"test": torch.full((6, 2), 1e300, dtype=torch.float64)}, "test: expected finite"),
        ({"test": torch.zeros(6, 3)}, "test: got 3 dimensions, but codes have 2"),
        ({"labels": torch.zeros(1, 5)}, r"labels: got shape \[1, 5\], expected \[1, 6\]"),
        ({"labels": torch.full((1, 6), torch.inf)}, "labels: expected finite"),
        ({"stages": 0}, "stages, rate: got 0, 0.1"),
        ({"codes": torch.zeros(6)}, r"codes: got shape \[6\], expected \[n, d\]"),
    ],
)
def test_bad_input_is_named(change, message):
    given = {"codes": torch.ones(6, 2), "labels": torch.arange(6.0)[None], "real": [True],
             "test": torch.ones(6, 2)} | change  # fmt: skip
    with pytest.raises(ValueError, match=message):
        ops.boosted_trees(**given)


def test_the_raw_op_checks_what_it_reads():
    if ops.EXTENSION_ERROR:
        pytest.skip(ops.EXTENSION_ERROR)
    x, y = torch.ones(4, 2), torch.tensor([[0.0, 1.0, 2.0, 0.0]]).double()
    op = torch.ops.fvae.boosted_trees
    for labels, classes, what in (
        (y, [2], "labels: factor 0 has 2"),
        (y, [4], "a class of factor 0 does not occur"),
        (y, [9], "classes: got 9"),
        (y + 0.5, [3], "labels: factor 0 has 0.5"),
        (y[:, :3], [3], "labels: expected"),
    ):
        with pytest.raises(RuntimeError, match=what):
            op(x, labels, classes, x, 1, 0.1)
