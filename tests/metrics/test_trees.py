"""DCI by boosted trees and by L1 regression, accuracy downstream: codes whose score is known."""

import math

import numpy as np
import pytest
import torch

from fvae import metrics
from fvae.errors import UserError

SIZES = (3, 4, 5)
N = math.prod(SIZES)
GRID = np.stack(np.unravel_index(np.arange(N), SIZES), axis=1).astype(float)
NAMES = ["locatello2019", "linear"]


@pytest.fixture(scope="module")
def labelled():
    """600 rows of two factors of classes and a real-valued one; noise that knows nothing."""
    rng = np.random.default_rng(0)
    labels = np.c_[rng.integers(0, 2, 600), rng.integers(0, 4, 600), rng.random(600)]
    return labels, rng.standard_normal((600, 3))


def dci(name, codes, labels):
    return metrics.dci_score(codes, factors=metrics.Factors.of(labels, real=[2]), protocol=name)


@pytest.mark.parametrize("name", NAMES)
def test_perfect_code_scores_one_in_any_order_and_sign(name, labelled):
    labels, _ = labelled
    result = dci(name, np.c_[-labels[:, 2], labels[:, 0], np.zeros(600), labels[:, 1]], labels)
    assert result.score == pytest.approx(1, abs=0.02)
    assert result.completeness == pytest.approx(1, abs=0.02)
    assert result.informativeness > 0.97
    assert result.protocol.name == name
    assert result.importance.argmax(0).tolist() == [1, 3, 0]


@pytest.mark.parametrize("name", NAMES)
def test_perfect_above_rotated_above_noise(name, labelled):
    labels, noise = labelled
    scaled = (labels - labels.mean(0)) / labels.std(0)
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((3, 3)))[0]
    perfect, rotated, chance = (dci(name, z, labels) for z in (scaled, scaled @ turn, noise))
    assert perfect.score > rotated.score + 0.3
    assert perfect.informativeness >= rotated.informativeness > chance.informativeness + 0.3
    for result in (perfect, rotated, chance):
        assert 0 <= result.score <= 1 + 1e-12 and 0 <= result.completeness <= 1 + 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_constant_codes_score_zero(name, labelled):
    result = dci(name, np.full((600, 2), 0.1), labelled[0])
    assert (result.score, result.completeness) == (0.0, 0.0)
    assert not result.importance.any()


def test_linear_by_hand():
    # Orthogonal dimensions, so that the lasso shrinks each weight, a correlation, by 0.02.
    rng = np.random.default_rng(0)
    labels = np.c_[np.repeat([0, 1], 1500), np.tile([0, 1], 1500)][rng.permutation(3000)]
    a, b = (2 * labels - 1).T
    result = metrics.dci_score(np.c_[a + b, a - b].astype(float), factors=labels,
                               protocol="linear")  # fmt: skip
    np.testing.assert_allclose(result.importance, math.sqrt(0.5) - 0.02, atol=0.03)
    assert result.score == pytest.approx(0, abs=1e-2)
    assert result.informativeness == pytest.approx(1 - 0.02 * math.sqrt(2), abs=0.01)


def test_a_dimension_of_two_factors_and_its_ceiling(labelled):
    # One dimension is important to both of two factors: D = 0, C = 1.
    labels = labelled[0][:, :2]
    result = metrics.dci_score(labels @ [[1.0], [2.0]], factors=labels, protocol="locatello2019")
    assert (result.score, result.completeness) == (0.0, 1.0)
    assert result.ceiling == pytest.approx(0, abs=1e-12)
    assert result.importance.tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("name", NAMES)
def test_of_a_full_grid(name):
    result = metrics.dci_score(GRID[:, :2], SIZES[:2] + (5,), protocol=name)
    assert result.importance.shape == (2, 3)
    assert result.importance[:, :2].argmax(0).tolist() == [0, 1]


def test_the_forest_is_the_default():
    a, b = metrics.dci_score(GRID, SIZES), metrics.dci_score(GRID, SIZES, protocol="forest")
    assert a.score == b.score and a.protocol is metrics.DCI


def test_an_unknown_protocol_is_named():
    with pytest.raises(UserError, match="protocol: got 'lasso', but dci has forest, locatello2019"):
        metrics.dci_score(GRID, SIZES, protocol="lasso")


def test_downstream_of_few_rows(labelled):
    labels, noise = labelled
    factors = metrics.Factors.of(labels, real=[2])
    good, bad = (metrics.downstream_score(z, factors=factors) for z in (labels, noise))
    assert good.labels == (100, 400) and "400 labels at most" in good.note
    assert good.accuracy.shape == (2, 2, 3) and good.models == ("logistic", "boosted")
    assert good.mean[1, -1] == good.score > 0.99
    np.testing.assert_allclose(good.efficiency, good.mean[:, :1] / good.mean[:, 1:])
    # Chance: 1/2, 1/4, and R^2 of 0; 200 rows test.
    assert bad.accuracy[1, 1] == pytest.approx([0.5, 0.25, 0], abs=0.2)
    assert ((bad.accuracy >= 0) & (bad.accuracy <= 1)).all()


def test_downstream_where_the_first_labels_are_all_alike():
    # Class 1 is rare: with some seed none of it is among the first hundred.
    labels = (np.arange(2000) % 400 == 0).astype(int)
    result = metrics.downstream_score(labels[:, None] * 1.0, factors=labels)
    assert result.labels == (100, 1000, 1334)
    assert (result.accuracy > 0.99).all()


@pytest.mark.parametrize("score", [metrics.downstream_score, metrics.dci_score])
def test_codes_beyond_float32_are_refused(score):
    options = {} if score is metrics.downstream_score else {"protocol": "locatello2019"}
    with pytest.raises(UserError, match="codes: some are beyond float32"):
        score(torch.tensor(GRID) * 1e300, SIZES, **options)
