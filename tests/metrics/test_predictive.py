"""MIG, SAP and DCI: ranking of known codes, and the pieces against scikit-learn."""

import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.metrics import mutual_info_score
from sklearn.svm import LinearSVC

from fvae import metrics
from fvae.errors import UserError
from fvae.metrics.dci import _one_sided
from fvae.metrics.factors import Factors, classes_of
from fvae.metrics.linear_svm import fit_predict
from fvae.metrics.protocols import MIG
from fvae.metrics.samples import Draw
from fvae.metrics.sampling import samples_of
from fvae.philox import Philox

SIZES = (3, 4, 5, 8)
N = math.prod(SIZES)
K = len(SIZES)
SCORES = [metrics.mig_score, metrics.sap_score, metrics.dci_score]


def factors(sizes=SIZES):
    return classes_of(torch.arange(math.prod(sizes)), sizes).double() / torch.tensor(sizes)


def noise(dims, sizes=SIZES):
    return torch.randn(
        math.prod(sizes), dims, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )


def rotated():
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((K, K)))[0]
    return factors() @ torch.tensor(turn)


@pytest.mark.parametrize("score", SCORES)
def test_perfect_above_rotated_above_noise(score):
    wide = (8, 10, 24, 48)
    perfect = score(torch.cat((factors(), torch.zeros(N, 1)), dim=1), SIZES).score
    twisted = score(rotated(), SIZES).score
    # On a small grid a code of noise still names its image; on a wide one it knows nothing.
    chance = score(noise(5, wide), wide).score
    assert perfect > twisted + 0.1
    assert perfect > chance + 0.3
    assert chance < 0.05


@pytest.mark.parametrize("score", [metrics.mig_score, metrics.dci_score])
def test_perfect_code_scores_one(score):
    assert score(torch.exp(factors()).flip(1), SIZES).score == pytest.approx(1.0, abs=0.01)


def test_perfect_code_is_complete_and_informative():
    result = metrics.dci_score(factors(), SIZES)
    assert result.completeness > 0.99 and result.informativeness > 0.999
    np.testing.assert_allclose(result.importance, np.eye(K), atol=0.01)


def test_a_copied_dimension_costs_what_the_definitions_say():
    v = factors()
    twice = torch.cat((v, v), dim=1)
    assert metrics.mig_score(twice, SIZES).score == 0.0
    assert metrics.sap_score(twice, SIZES).score == 0.0
    assert metrics.dci_score(twice, SIZES).score > 0.99  # each dimension still knows one factor


@pytest.mark.parametrize("score", SCORES)
def test_collapsed_codes_score_zero_without_warning(score):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert score(torch.full((N, 3), 0.1), SIZES).score == 0.0


@pytest.mark.parametrize("score", SCORES)
def test_one_dimension_and_one_factor(score):
    assert score(factors((5,)), (5,)).score > 0.2
    assert 0 <= score(factors()[:, :1], SIZES).score < 0.6


def test_dci_of_one_dimension():
    # It is all that each factor needs (complete), and knows them all alike (not disentangled).
    result = metrics.dci_score(factors()[:, :1], SIZES)
    assert (result.score, result.completeness) == (0.0, 1.0)


@pytest.mark.parametrize("score", SCORES)
def test_seed_decides_everything(score):
    a, b, c = (score(rotated(), SIZES, seed=s).score for s in (1, 1, 2))
    assert a == b != c


def test_mutual_information_equals_scikit_learn():
    codes = rotated()
    result = metrics.mig_score(codes, SIZES, seed=3)
    grid = Factors.grid(SIZES)
    draw = Draw.of(codes, grid, samples_of(grid, MIG.samples, 0, Philox(3))[0])
    for j in range(K):
        edges = np.histogram(draw.codes[:, j], MIG.bins)[1][:-1]
        bins = np.digitize(draw.codes[:, j], edges)
        for k in range(K):
            expected = mutual_info_score(bins, draw.labels[k])
            assert result.information[j, k] == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize(("count", "spread"), [(2, 0.5), (2, 0.01), (3, 2.0), (5, 0.1), (32, 0.02)])
def test_linear_machine_equals_scikit_learn(count, spread):
    rng = np.random.default_rng(count)
    y = np.minimum(rng.integers(0, count + 2, 2000), count - 1)  # unequal classes
    x = 3 + y / count + spread * rng.standard_normal(len(y))
    x_test = np.linspace(x.min(), x.max(), 1001)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = LinearSVC(C=0.01, class_weight="balanced", tol=1e-8, max_iter=100_000)
        expected = model.fit(x[:, None], y).predict(x_test[:, None])
    # Only test features on a border between two classes may fall the other way.
    assert (fit_predict(x, y, x_test, 0.01) != expected).mean() < 0.005


def test_linear_machine_on_a_constant_feature():
    y = np.arange(30) % 3
    assert len(set(fit_predict(np.zeros(30), y, np.zeros(5), 0.01))) == 1


def test_entropy_shares():
    assert _one_sided(np.eye(3)) == pytest.approx(1)
    assert _one_sided(np.ones((4, 3))) == pytest.approx(0, abs=1e-12)
    # Row 0 knows two factors equally, row 1 one; shares 2/3 and 1/3.
    mixed = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    assert _one_sided(mixed) == pytest.approx(2 / 3 * (1 - math.log(2, 3)) + 1 / 3)
    assert _one_sided(np.zeros((2, 3))) == 0.0


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codes": torch.zeros(N, 2, dtype=torch.int32)}, "codes: got torch.int32, expected float"),
        ({"codes": torch.zeros(7, 2)}, "codes: got 7 rows, expected 480"),
        ({"codes": torch.full((N, 1), torch.nan)}, "codes: row 0 is .nan., expected finite"),
        ({"factor_sizes": ()}, "factor_sizes: got .., expected at least one"),
        ({"seed": None}, "seed: got None, expected a whole number"),
    ],
)
def test_bad_input_is_named(score, options, message):
    with pytest.raises(UserError, match=message):
        score(**{"codes": factors(), "factor_sizes": SIZES, **options})
