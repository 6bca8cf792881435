"""Scores of codes with labels: any rows, whatever the order, the repeats and the correlations."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import LinearRegression
from sklearn.metrics import mutual_info_score
from sklearn.svm import LinearSVC

from fvae import metrics
from fvae.metrics import dci
from fvae.metrics.factors import Factors
from fvae.metrics.histogram import binned
from fvae.metrics.sampling import samples_of
from fvae.philox import Philox

SIZES = (3, 4, 5, 8)
GRID = np.stack(np.unravel_index(np.arange(480), SIZES), axis=1)
VOTED = [metrics.factor_vae_score, metrics.beta_vae_score]
LEARNT = [metrics.mig_score, metrics.sap_score, metrics.dci_score]
SCORES = VOTED + LEARNT


def combinations(count=5000, sizes=SIZES, seed=0):
    """Random combinations of the factors, int64 [count, K]."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(0, n, count) for n in sizes], axis=1)


def noisy(labels, spread=0.01, seed=1):
    return labels + spread * np.random.default_rng(seed).standard_normal(labels.shape)


def mixed(labels, seed=2):
    """A code that knows each factor in several dimensions."""
    turn = np.linalg.qr(np.random.default_rng(seed).standard_normal((labels.shape[1],) * 2))[0]
    return (labels / labels.max(0)) @ turn


# --- a full grid given as labels ------------------------------------------------------------------


@pytest.mark.parametrize("protocol", metrics.PROTOCOLS)
def test_a_grid_as_labels_has_the_same_votes(protocol):
    codes = noisy(mixed(GRID), 0.1)
    sizes = metrics.factor_vae_score(codes, SIZES, protocol)
    labels = metrics.factor_vae_score(codes, protocol=protocol, factors=GRID)
    assert torch.equal(sizes.votes, labels.votes)
    assert (sizes.score, sizes.ceiling) == (labels.score, labels.ceiling)


@pytest.mark.parametrize("protocol", ["kim2018", "locatello2019"])
def test_a_grid_as_labels_has_the_same_pairs(protocol):
    codes = noisy(mixed(GRID), 0.1)
    sizes = metrics.beta_vae_score(codes, SIZES, protocol)
    assert sizes == metrics.beta_vae_score(codes, protocol=protocol, factors=GRID)


@pytest.mark.parametrize("score", LEARNT)
def test_a_grid_as_labels_scores_as_the_grid(score):
    # On a wide grid hardly any image is drawn twice, so that the two ways of drawing are alike:
    # accuracies of 5,000 test images, and information of 10,000, repeat to 0.01.
    sizes = (30, 40, 50)
    grid = np.stack(np.unravel_index(np.arange(60_000), sizes), axis=1)
    codes = noisy(mixed(grid)[:, :2], 0.05)
    order = np.random.default_rng(0).permutation(len(grid))
    of_labels = score(codes[order], factors=grid[order]).score
    assert of_labels == pytest.approx(score(codes, sizes).score, abs=0.03)


# --- right values ---------------------------------------------------------------------------------


def test_a_perfect_code_of_random_combinations():
    labels = combinations()
    codes = noisy(labels)
    for protocol in metrics.PROTOCOLS:
        assert metrics.factor_vae_score(codes, None, protocol, factors=labels).score == 1.0
    for protocol in ("kim2018", "locatello2019"):
        assert metrics.beta_vae_score(codes, None, protocol, factors=labels).score > 0.99
    gap, forest = (f(codes, factors=labels) for f in (metrics.mig_score, metrics.dci_score))
    assert 0.99 < gap.score <= gap.ceiling + 1e-3
    assert forest.score > 0.99 and forest.completeness > 0.99 and forest.informativeness > 0.999
    sap = metrics.sap_score(codes, factors=labels)
    # Eight classes are hard for a linear machine on one feature, in a grid too; two are not, but
    # of them chance is half.
    assert sap.score == pytest.approx(sap.perfect, abs=0.01)
    assert sap.perfect == pytest.approx(metrics.sap_score(GRID * 1.0, SIZES).score, abs=0.1)
    assert f"{sap.perfect:.3f}" in sap.note
    two = labels[:, 1:] % 2
    assert metrics.sap_score(noisy(two), factors=two).score == pytest.approx(0.5, abs=0.06)


def test_missing_combinations_and_correlation():
    # The second factor follows the first, and the upper corner of third and fourth is missing.
    rng = np.random.default_rng(0)
    a = rng.integers(0, 6, 6000)
    b = np.where(rng.random(6000) < 0.5, a, rng.integers(0, 6, 6000))
    c, d = rng.integers(0, 5, (2, 6000))
    kept = c + d < 6
    labels = np.stack((a, b, c, d), axis=1)[kept]
    codes = noisy(labels)
    assert metrics.factor_vae_score(codes, factors=labels).score == 1.0
    assert metrics.beta_vae_score(codes, factors=labels).score > 0.99
    assert metrics.dci_score(codes, factors=labels).score > 0.99
    result = metrics.mig_score(codes, factors=labels)
    h = [mutual_info_score(v, v) for v in labels.T]
    ab, cd = mutual_info_score(*labels[:, :2].T), mutual_info_score(*labels[:, 2:].T)
    expected = [1 - ab / h[0], 1 - ab / h[1], 1 - cd / h[2], 1 - cd / h[3]]
    np.testing.assert_allclose(result.ceilings, expected, atol=1e-9)
    np.testing.assert_allclose(result.gaps, expected, atol=0.01)


def test_repeated_combinations_with_an_instance_left_out():
    # Small NORB: category, elevation, azimuth, lighting; five toys of each category.
    sizes = (5, 9, 18, 6, 5)
    labels = np.stack(np.unravel_index(np.arange(np.prod(sizes)), sizes), axis=1)
    labels = labels[np.random.default_rng(0).permutation(len(labels))]
    codes = labels[:, :4].astype(np.float32)
    for protocol in metrics.PROTOCOLS:
        assert metrics.factor_vae_score(codes, None, protocol, factors=labels[:, :4]).score == 1.0
    named = metrics.factor_vae_score(codes, factors=labels)
    assert (named.score, named.ceiling) == (0.8, 0.8)  # four dimensions cannot tell five factors
    named = metrics.factor_vae_score(codes, None, "locatello2019", factors=labels)
    assert named.score == pytest.approx(0.8, abs=0.03)  # 5,000 votes: Hoeffding 2.5e-4 at 0.03
    assert named.score <= named.ceiling


def test_one_factor_says_that_it_says_nothing():
    labels = combinations(600)[:, 2]
    for score in VOTED:
        result = score(noisy(np.stack((labels,) * 3, axis=1)), factors=labels)
        assert result.score == 1.0 and result.note.startswith("one factor")


def test_noise_scores_chance():
    labels = combinations(4000)
    codes = np.random.default_rng(5).standard_normal((4000, 6))
    result = metrics.factor_vae_score(codes, None, "locatello2019", factors=labels)
    assert result.score < 0.5
    assert metrics.mig_score(codes, factors=labels).score < 0.02
    assert metrics.sap_score(codes, factors=labels).score < 0.05


# --- real-valued factors --------------------------------------------------------------------------


def test_a_perfect_code_of_real_values():
    labels = np.random.default_rng(0).random((5000, 3)) * [1, 100, 1e-3]
    codes = noisy(labels / [1, 100, 1e-3], 0.001)
    sap, forest = (f(codes, factors=labels) for f in (metrics.sap_score, metrics.dci_score))
    assert sap.score > 0.99 and sap.perfect > 0.99
    assert forest.score > 0.99 and forest.informativeness > 0.99
    result = metrics.mig_score(codes, factors=labels)
    assert 0.9 < result.score <= result.ceiling < 1
    collapsed = np.zeros((5000, 2))
    for score in LEARNT:
        assert score(collapsed, factors=labels).score == pytest.approx(0, abs=1e-12)


def test_real_values_against_scikit_learn():
    rng = np.random.default_rng(3)
    labels = rng.random((900, 2))
    codes = labels @ rng.standard_normal((2, 3)) + 0.3 * rng.standard_normal((900, 3))
    train, test = samples_of(Factors.of(labels), 10_000, 5000, Philox(4))
    x, y = codes[train], labels[train]
    r2 = [[LinearRegression().fit(a[:, None], b).score(a[:, None], b) for b in y.T] for a in x.T]
    np.testing.assert_allclose(metrics.sap_score(codes, factors=labels, seed=4).accuracy, r2)
    forest = RandomForestRegressor(10, max_features=None, min_samples_leaf=5, random_state=0)
    right = [
        forest.fit(x, b).score(codes[test], c) for b, c in zip(y.T, labels[test].T, strict=True)
    ]
    result = metrics.dci_score(codes, factors=labels, seed=4)
    assert result.informativeness == pytest.approx(np.mean(right))
    information = metrics.mig_score(codes, factors=labels, bins=7).information
    for j, k in np.ndindex(3, 2):
        cut = [binned(column, 7) for column in (codes[:, j], labels[:, k])]
        assert information[j, k] == pytest.approx(mutual_info_score(*cut))


def test_classes_against_scikit_learn():
    labels = combinations(900)
    codes = noisy(mixed(labels), 0.1)
    train, test = samples_of(Factors.of(labels), 10_000, 5000, Philox(4))
    result = metrics.sap_score(codes, factors=labels, seed=4)
    mig = metrics.mig_score(codes, factors=labels, seed=4)
    for j, k in np.ndindex(2, 4):
        model = LinearSVC(C=0.01, class_weight="balanced", tol=1e-8, max_iter=100_000)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(codes[train][:, [j]], labels[train, k])
        right = model.score(codes[test][:, [j]], labels[test, k])
        assert result.accuracy[j, k] == pytest.approx(right, abs=0.01)
        # Every one of so few rows is read, once.
        joint = mutual_info_score(binned(codes[:, j], 20), labels[:, k])
        assert mig.information[j, k] == pytest.approx(joint)


# --- what is read ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "train", "test"), [(4, 3, 1), (11, 8, 3), (900, 600, 300), (16000, 10000, 5000)]
)
def test_no_row_trains_and_tests(rows, train, test):
    factors = Factors.of(np.arange(rows) % 2)
    first, second = samples_of(factors, 10_000, 5000, Philox(1))
    assert (len(first), len(second)) == (train, test)
    both = torch.cat((first, second))
    assert len(both.unique()) == train + test and 0 <= both.min() <= both.max() < rows
    every, none = samples_of(factors, 10_000, 0, Philox(1))
    assert len(every.unique()) == min(rows, 10_000) and len(none) == 0
    assert torch.equal(every[:train], first)  # so that fewer images need encoding


@pytest.mark.parametrize("name", [n for n, m in metrics.METRICS.items() if not m.posterior])
def test_only_needed_rows_are_read(name):
    labels = np.repeat(combinations(20_000), 2, axis=0)
    codes = torch.tensor(noisy(labels[:, :2]))
    metric = metrics.METRICS[name]
    rows = metrics.needed(None, name, seed=2, factors=labels)
    assert len(rows) < len(codes)
    poisoned = torch.full_like(codes, torch.nan)
    poisoned[rows] = codes[rows]
    factors = Factors.of(labels)
    whole, part = (metric.score(z, factors, "kim2018", 2, None) for z in (codes, poisoned))
    assert whole.score == part.score


@pytest.mark.parametrize("score", SCORES)
def test_the_seed_decides_the_draws_alone(score):
    labels = combinations(3000)
    codes = noisy(mixed(labels), 0.2)
    a, b, c = (score(codes, factors=labels, seed=s).score for s in (1, 1, 2))
    assert a == b
    assert a != c or score is metrics.mig_score  # which reads every row


@pytest.mark.parametrize("score", LEARNT)
def test_a_class_that_only_the_test_rows_have(score):
    labels = combinations(300)
    last = samples_of(Factors.of(labels), 10_000, 5000, Philox(0))[1][-1]
    labels[last, 1] = 99
    assert 0 <= score(noisy(labels), factors=labels).score <= 1


# --- ceilings -------------------------------------------------------------------------------------


def test_ceilings_of_the_mutual_information_gap():
    sizes = (3, 40)
    grid = np.stack(np.unravel_index(np.arange(120), sizes), axis=1) * 1.0
    result = metrics.mig_score(grid, sizes)
    np.testing.assert_allclose(result.ceilings, [1, np.log(20) / np.log(40)], atol=0.01)
    assert result.ceiling == result.score == pytest.approx(result.ceilings.mean())
    assert result.protocol == metrics.MIG
    wide = metrics.mig_score(grid, sizes, bins=40)
    assert wide.ceiling == wide.score > 0.98
    assert (wide.protocol.name, wide.protocol.bins) == ("locatello2019, 40 bins", 40)
    assert metrics.mig_score(grid, sizes, bins=np.int64(20)).protocol == metrics.MIG


@pytest.mark.parametrize("dims", [1, 2, 3, 4, 6])
def test_ceilings_of_few_dimensions(dims):
    codes = np.concatenate((GRID * 1.0, GRID[:, :2]), axis=1)[:, :dims]
    for protocol in metrics.PROTOCOLS:
        votes = metrics.factor_vae_score(codes, SIZES, protocol)
        # Each dimension predicts one factor; of 5,000 votes on random factors 3 % is 4 sigma.
        exact = 0.03 if protocol == "locatello2019" else 0
        assert votes.ceiling == pytest.approx(min(1, dims / 4), abs=exact)
        assert votes.ceiling - 2 * exact <= votes.score <= votes.ceiling
    shown = metrics.dci_score(codes, SIZES)
    # Factors shared out as evenly as they go: entropy of the shares to base 4.
    shares = {1: [1], 2: [0.5, 0.5], 3: [0.5, 0.25, 0.25]}.get(dims, [0.25] * 4)
    assert shown.ceiling == pytest.approx(-sum(p * np.log(p) for p in shares) / np.log(4))
    assert shown.score <= shown.ceiling + 1e-9


def test_no_importance_passes_the_ceiling():
    rng = np.random.default_rng(0)
    for _ in range(300):
        dims, factors = rng.integers(1, 7, 2)
        importance = rng.dirichlet(np.full(dims, 0.05), factors).T * (rng.random(factors) > 0.2)
        importance[0, 0] += not importance.any()
        if factors > 1:
            assert dci._one_sided(importance) <= dci._ceiling(importance) + 1e-9
