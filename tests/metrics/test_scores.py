"""The other scores: known codes, values by hand, and each formula once more as a slow loop."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.feature_selection import mutual_info_classif
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import log_loss, mutual_info_score, roc_auc_score

from fvae import metrics
from fvae.errors import UserError
from fvae.metrics.factors import Factors, Unsuited
from fvae.metrics.histogram import binned
from fvae.metrics.modularity import _modularity
from fvae.metrics.sampling import samples_of
from fvae.philox import Philox

NAMES = ("modularity", "explicitness", "irs", "mig_sup", "jemmig", "infomec", "mcc")
SIZES = (3, 4, 5, 24)
WIDE = (8, 9, 10, 11)


def score(name, codes, *args, **kwargs):
    """The result of a metric, where no warning may come."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return getattr(metrics, f"{name}_score")(codes, *args, **kwargs)


def unit(sizes=SIZES):
    """The factors, each of mean 0 and variance 1, float64 [N, K]."""
    grid = classes(sizes)
    return (grid - grid.mean(0)) / grid.std(0)


def classes(sizes):
    """The classes of a grid, int64 [N, K]."""
    return np.stack(np.unravel_index(np.arange(math.prod(sizes)), sizes), axis=1)


def noise(dims, sizes=SIZES, seed=0):
    return np.random.default_rng(seed).standard_normal((math.prod(sizes), dims))


def rotated():
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((4, 4)))[0]
    return unit() @ turn


def labelled(rows=900, seed=0, most=12):
    """Correlated codes of random combinations of classes, and these: [n, 4], [n, 3]."""
    rng = np.random.default_rng(seed)
    labels = np.stack([rng.integers(0, n, rows) for n in (3, 5, most)], axis=1)
    mixed = np.hstack((labels, labels[:, :1])) @ rng.standard_normal((4, 4))
    return mixed + rng.standard_normal((rows, 4)), labels


# --- known codes ----------------------------------------------------------------------------------

# The least that a perfect code scores, and the most that a rotated one and noise do. Modularity of
# the bias that noise has is any number; to linear classifiers a rotated code is the code.
KNOWN = {
    "modularity": (0.999, 0.95, 1.0),
    "explicitness": (0.6, 0.62, 0.05),
    "irs": (0.97, 0.6, 0.5),
    "mig_sup": (0.9, 0.4, 0.01),
    "jemmig": (0.95, 0.5, 0.15),
    "infomec": (0.98, 0.6, 1.0),
    "mcc": (0.9999, 0.95, 0.05),
}


@pytest.mark.parametrize("name", NAMES)
def test_perfect_rotated_noise(name):
    perfect, twisted, chance = KNOWN[name]
    assert score(name, unit(), SIZES).score >= perfect
    assert score(name, rotated(), SIZES).score <= twisted
    assert score(name, noise(5, WIDE), WIDE).score <= chance


@pytest.mark.parametrize("name", NAMES)
def test_order_and_sign_of_dimensions_are_nothing(name):
    codes, labels = labelled()
    want = score(name, codes, factors=labels).score
    turned = codes[:, [2, 0, 3, 1]] * [1, -1, -1, 1]
    assert score(name, turned, factors=labels).score == pytest.approx(want, abs=2e-3)


@pytest.mark.parametrize("name", ["modularity", "explicitness", "jemmig", "mcc"])
def test_unit_of_dimensions_is_nothing(name):
    codes, labels = labelled()
    want = score(name, codes, factors=labels).score
    other = codes * [1e-4, 3, 1e5, 1] + [0, -7, 1e4, 1]
    assert score(name, other, factors=labels).score == pytest.approx(want, abs=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_collapsed_codes_score_zero_and_say_so(name):
    result = score(name, np.full((math.prod(SIZES), 3), 0.1), SIZES)
    assert result.score == 0.0
    assert "dimension" in result.note or name == "explicitness"


@pytest.mark.parametrize("name", NAMES)
def test_a_constant_dimension_more(name):
    codes, labels = labelled()
    want = score(name, codes, factors=labels).score
    if name == "modularity":
        want *= 4 / 5  # it counts, with 0
    more = np.insert(codes, 1, 0.1, axis=1)
    assert score(name, more, factors=labels).score == pytest.approx(want, abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_one_dimension_and_one_factor(name):
    for codes, sizes in ((unit((5,)), (5,)), (unit()[:, 3:], SIZES), (noise(4), SIZES)):
        assert -0.2 <= score(name, codes, sizes).score <= 1
    result = score(name, unit((5,)), (5,))
    assert result.score > 0.4
    assert ("one factor" in result.note) == (name in ("modularity", "mig_sup", "infomec"))


def test_fewer_dimensions_than_factors():
    two = unit()[:, 2:]
    assert score("mcc", two, SIZES).score == pytest.approx(0.5)
    assert score("mcc", two, SIZES).ceiling == 0.5
    assert score("mcc", two, SIZES).matched.tolist() == [-1, -1, 0, 1]
    for name in ("modularity", "mig_sup", "irs", "infomec"):  # they ask the dimensions there are
        assert score(name, two, SIZES).score > 0.9
    assert score("infomec", two, SIZES).explicitness < 0.55
    assert score("jemmig", two, SIZES).score < 0.8


def test_real_valued_factors():
    rng = np.random.default_rng(0)
    labels = rng.random((2000, 2))
    perfect = labels * [1, -5] + [0, 1]
    for name in NAMES:
        result = score(name, perfect, factors=labels)
        assert result.score > (0.4 if name == "explicitness" else 0.9)
        if name not in ("modularity", "infomec"):
            assert score(name, rng.random((2000, 2)), factors=labels).score < 0.05
    result = score("infomec", perfect, factors=labels)
    assert result.explicitness == pytest.approx(1) and result.compactness > 0.95
    assert score("mcc", perfect, factors=labels).score == pytest.approx(1)
    half = score("infomec", perfect[:, :1] + 0 * labels, factors=labels).explicitness
    assert half == pytest.approx(
        np.mean(
            [LinearRegression().fit(labels[:, :1], y).score(labels[:, :1], y) for y in labels.T]
        )
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_the_same_score(name):
    sizes = (3, 80, 4, 16)
    codes = unit(sizes)[:, ::2] + noise(2, sizes)
    known = Factors.of(classes(sizes)[:, ::2]) if name == "explicitness" else sizes
    first, again, other = (score(name, codes, known, seed=s).score for s in (1, 1, 2))
    assert first == again != other
    read = metrics.needed(known, name, seed=1)
    assert set(read.tolist()) <= set(metrics.needed(known, "sap", seed=1).tolist())
    assert len(read) < len(codes)
    hidden = np.full_like(codes, np.nan)
    hidden[read] = codes[read]
    assert score(name, torch.tensor(hidden), known, seed=1).score == first


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codes": torch.zeros(1440, 2, dtype=torch.int32)}, "codes: got torch.int32"),
        ({"codes": torch.zeros(7, 2)}, "codes: got 7 rows, expected 1440"),
        ({"codes": torch.full((1440, 1), torch.nan)}, "codes: row 0 is .nan., expected finite"),
        ({"factor_sizes": ()}, "factor_sizes: got .., expected at least one"),
        ({"factor_sizes": None, "factors": Factors.unknown(1440)}, "factors: none is known"),
        ({"seed": None}, "seed: got None, expected a whole number"),
    ],
)
def test_bad_input_is_named(name, options, message):
    with pytest.raises(UserError, match=message):
        score(name, **{"codes": unit(), "factor_sizes": SIZES, **options})


@pytest.mark.parametrize("name", NAMES)
def test_few_rows(name):
    for seed in range(4):
        labels = np.random.default_rng(seed).integers(0, 2, (9, 2))
        try:
            assert -1 <= score(name, noise(3, seed=seed)[:9], factors=labels).score <= 1
        except Unsuited as error:
            assert name == "explicitness" and "give more rows" in str(error)


def test_values_that_the_test_rows_do_not_have():
    rows = samples_of(Factors.of(np.arange(6) % 2), 10_000, 5_000, Philox(0))[0]
    labels = np.zeros(6, int)
    labels[rows[:2]] = 1
    with pytest.raises(Unsuited, match="factor 0 has no value that both some of the 4 rows"):
        score("explicitness", noise(2)[:6], factors=labels)


# --- by hand --------------------------------------------------------------------------------------


def test_modularity_by_hand():
    mutual = np.array([[2.0, 1.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    np.testing.assert_allclose(_modularity(mutual), [1 - 1 / 8, 1, 0, 0])
    # One dimension that holds both of two bits: as much of each.
    v = np.array(list(itertools.product((0, 1), repeat=2)) * 50)
    both = (v @ [2.0, 1.0])[:, None]
    assert score("modularity", both, factors=v).score == pytest.approx(0.0, abs=1e-9)
    assert score("mig_sup", both, factors=v).score == pytest.approx(0.0, abs=1e-9)
    assert score("mig_sup", both % 2, factors=v).score == pytest.approx(1.0)
    # H(z, v) = 2 log 2, of which I = log 2; nothing in a second dimension.
    result = score("jemmig", both, factors=v)
    np.testing.assert_allclose(result.jemmig, [math.log(2)] * 2)
    assert result.score == pytest.approx(1 - math.log(2) / math.log(40))
    # Both bits, each twice: H = I = log 2, and as much in another dimension.
    twice = np.hstack((v, v)) * 1.0
    assert score("jemmig", twice, factors=v).score == pytest.approx(1 - math.log(2) / math.log(40))
    assert score("jemmig", v * 1.0, factors=v).score == pytest.approx(1.0)


def test_irs_by_hand():
    v = np.array(list(itertools.product((0, 1), repeat=2)) * 50)
    result = score("irs", np.stack((v @ [1.0, 0.25], v @ [0.0, 2.0]), axis=1), factors=v)
    # The mean is 0.625, the farthest code 0.625 away; a fixed bit leaves 0.125 or 0.5.
    np.testing.assert_allclose(result.robustness, [[0.8, 0.2], [0, 1]], atol=1e-12)
    np.testing.assert_allclose(result.deviation, [0.625, 1.0])
    assert result.parents.tolist() == [0, 1]
    assert result.score == pytest.approx((0.625 * 0.8 + 1) / 1.625)


def test_mcc_by_hand():
    v = np.array(list(itertools.product((0, 1), repeat=2)) * 50)
    copies = np.stack((v[:, 0], -3.0 * v[:, 0]), axis=1)
    result = score("mcc", copies, factors=v)
    np.testing.assert_allclose(result.correlation, [[1, 0], [1, 0]], atol=1e-12)
    assert result.score == pytest.approx(0.5)
    assert (result.spearman, result.ceiling) == (pytest.approx(0.5), 1.0)


# --- each formula once more -----------------------------------------------------------------------


def entropy(v):
    p = np.unique(v, axis=0, return_counts=True)[1] / len(v)
    return -(p * np.log(p)).sum()


def test_against_slow_loops_from_histograms():
    codes, labels = labelled()
    cut = np.stack([binned(z, 20) for z in codes.T], axis=1)
    mutual = np.array([[mutual_info_score(z, v) for v in labels.T] for z in cut.T])
    rows = []
    for m in mutual:
        best = m.max()
        rows.append(1 - sum(x**2 for x in np.delete(m, m.argmax())) / (2 * best**2))
    assert score("modularity", codes, factors=labels).score == pytest.approx(np.mean(rows))

    share = np.sort(mutual / [entropy(v) for v in labels.T], axis=1)
    result = score("mig_sup", codes, factors=labels)
    assert result.score == pytest.approx((share[:, -1] - share[:, -2]).mean())
    perfect = []
    for own in (binned(v, 20) for v in labels.T):
        ranked = sorted(mutual_info_score(own, v) / entropy(v) for v in labels.T)
        perfect.append(ranked[-1] - ranked[-2])
    assert result.perfect == pytest.approx(np.mean(perfect))

    parts = []
    for k, v in enumerate(labels.T):
        order = np.argsort(mutual[:, k])
        joint = entropy(np.stack((cut[:, order[-1]], v), axis=1))
        gap = joint - mutual[order[-1], k] + mutual[order[-2], k]
        parts.append(1 - gap / (entropy(v) + math.log(20)))
    assert score("jemmig", codes, factors=labels).score == pytest.approx(np.mean(parts))


def test_irs_against_a_slow_loop():
    codes, labels = labelled(most=30)
    weights, best = [], []
    for z in codes.T:
        widest = max(abs(x - z.mean()) for x in z)
        robust = []
        for v in labels.T:
            edges = np.histogram(v, 20)[1][:-1]
            groups = np.digitize(v, edges)
            left = []
            for value in set(groups):
                inside = z[groups == value]
                left.append(np.percentile(np.abs(inside - inside.mean()), 99))
            robust.append(1 - np.mean(left) / widest)
        weights.append(widest)
        best.append(max(robust))
    want = np.average(best, weights=weights)
    assert score("irs", codes, factors=labels).score == pytest.approx(want)


def test_mcc_against_every_match():
    codes, labels = labelled()
    result = score("mcc", codes, factors=labels)
    for found, kind in ((result.score, np.corrcoef), (result.spearman, None)):
        both = np.hstack((codes, labels))
        table = spearmanr(both).statistic if kind is None else kind(both.T)
        table = np.abs(table)[:4, 4:]
        matches = itertools.permutations(range(4), 3)
        best = max(np.mean([table[j, k] for k, j in enumerate(m)]) for m in matches)
        assert found == pytest.approx(best)


def test_explicitness_against_scikit_learn():
    codes, labels = labelled()
    given = Factors.of(labels)
    train, test = (r.numpy() for r in samples_of(given, 10_000, 5_000, Philox(0)))
    assert len(train) == 600 and len(test) == 300
    mean, std = codes[train].mean(0), codes[train].std(0)
    x, x_test = (codes[train] - mean) / std, (codes[test] - mean) / std
    areas, shared = [], []
    for v in labels.T:
        positive = v[test] == np.unique(v)[:, None]
        models = [
            LogisticRegression(tol=1e-10, max_iter=10_000).fit(x, v[train] == value)
            for value in np.unique(v)
        ]
        chance = np.stack([model.predict_proba(x_test)[:, 1] for model in models])
        for found, kept in ((chance, areas), (chance / chance.sum(0), shared)):
            each = [roc_auc_score(*both) for both in zip(positive, found, strict=True)]
            kept.append(np.mean(each))
    result = score("explicitness", codes, factors=labels)
    np.testing.assert_allclose(result.factors, areas, atol=2e-4)
    assert result.study_auc == pytest.approx(np.mean(shared), abs=2e-4)
    assert result.study_auc > result.auc == pytest.approx(result.factors.mean())
    assert result.score == pytest.approx(2 * result.auc - 1)


def test_infomec_against_scikit_learn():
    # More than twice ten rows a class: of fewer scikit-learn's distances are rounded.
    codes, labels = labelled(3000)
    codes = np.hstack((codes, 0.01 * codes[:, :1] + 3))  # one that is pruned
    z = (codes - codes.mean(0)) / codes.std(0)
    options = {"discrete_features": False, "n_neighbors": 10, "random_state": 0}
    share = np.array(
        [[mutual_info_classif(x[:, None], v, **options)[0] / entropy(v) for v in labels.T]
         for x in z.T[:4]]
    )  # fmt: skip
    result = score("infomec", codes, factors=labels)
    assert result.active.tolist() == [True] * 4 + [False]
    np.testing.assert_allclose(result.information[:4], share, atol=1e-9)
    modular = np.mean([row.max() / row.sum() for row in share])
    compact = np.mean([row.max() / row.sum() for row in share.T])
    assert result.score == pytest.approx((modular - 1 / 3) / (2 / 3))
    assert result.compactness == pytest.approx((compact - 1 / 4) / (3 / 4))
    # The paper's code ends after 100 steps, and so does a score to compare with its.
    parts = []
    for v in labels.T:
        model = LogisticRegression(C=np.inf, class_weight="balanced", max_iter=100)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = log_loss(v, model.fit(z, v).predict_proba(z))
            null = log_loss(v, model.fit(0 * z, v).predict_proba(0 * z))
        parts.append((null - found) / null)
    assert result.explicitness == pytest.approx(np.mean(parts), abs=1e-6)
