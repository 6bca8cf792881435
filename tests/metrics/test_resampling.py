"""Sampling errors: what they predict is how the scores of other draws spread."""

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from fvae import metrics
from fvae.metrics import METRICS, Factors
from fvae.metrics.resampling import of_votes

SIZES = (3, 6, 8, 8)
GRID = Factors.grid(SIZES)
ROWS = torch.arange(GRID.rows)
#: What the error may be off by. It leaves out that all votes share a sample of the global variance.
FACTOR = 1.6


def _codes(seed=0):
    """Codes in which each factor is in two dimensions, with noise: scores well inside 0 to 1."""
    rng = np.random.default_rng(seed)
    classes = np.stack(np.unravel_index(np.arange(GRID.rows), SIZES), 1)
    z = (classes - classes.mean(0)) / classes.std(0)
    mixed = np.hstack((z + 0.4 * z[:, [1, 2, 3, 0]], 0.5 * z))
    return torch.from_numpy(mixed + 3 * rng.standard_normal(mixed.shape)).float()


def _error(name, codes, factors, protocol, seed=0, rows=None):
    metric = METRICS[name]

    def score(codes, factors):
        return metric.score(codes, factors, protocol, seed, None)

    rows = torch.arange(factors.rows) if rows is None else rows
    return metric.error(score(codes, factors), score, codes, factors, seed, rows)


def _within(predicted, scores):
    """The spread of the scores is the predicted one, but for a factor and chance of 1e-7 a side."""
    n = len(scores)
    low, high = (np.sqrt(chi2.ppf(p, n - 1) / (n - 1)) for p in (1e-7, 1 - 1e-7))
    ratio = np.std(scores, ddof=1) / predicted
    return low / FACTOR < ratio < high * FACTOR


@pytest.mark.parametrize("protocol", ["kim2018", "locatello2019"])
def test_votes_predict_how_scores_of_other_seeds_spread(protocol):
    codes = _codes()
    results = [metrics.factor_vae_score(codes, SIZES, protocol, seed) for seed in range(150)]
    scores = [result.score for result in results]
    assert 0.3 < np.mean(scores) < 0.95
    errors = [of_votes(result, None, codes, GRID, 0, ROWS) for result in results]
    assert _within(np.mean(errors), scores)
    # One alone tells it, too: it is what a user sees.
    assert np.mean(errors) / 1.5 < min(errors) < max(errors) < 1.5 * np.mean(errors)


@pytest.mark.parametrize("name", ["beta_vae", "mig", "modularity", "gaussian_tc"])
def test_other_errors_predict_how_scores_of_other_seeds_spread(name):
    codes, protocol, many = _codes(), "kim2018", Factors.grid((*SIZES, 12))
    # Twelve rows of each combination, with noise of their own: more than a sample takes.
    codes = codes.repeat_interleave(12, 0)
    codes += 0.3 * torch.randn(codes.shape, generator=torch.Generator().manual_seed(1))
    score = METRICS[name].score
    scores = [score(codes, many, protocol, seed, None).score for seed in range(40)]
    errors = [_error(name, codes, many, protocol, seed) for seed in range(4)]
    assert _within(np.sqrt(np.mean(np.square(errors))), scores)


@pytest.mark.parametrize("name", [n for n, m in METRICS.items() if m.error])
def test_an_error_is_the_same_again_and_leaves_the_score(name):
    codes = _codes()
    before = METRICS[name].score(codes, GRID, "kim2018", 3, None).score
    first, again = (_error(name, codes, GRID, "kim2018", 3) for _ in range(2))
    assert first == again
    # The scores that ask for no factors have read all the 1,152 rows.
    assert first > 0 if METRICS[name].supervised else first == 0
    assert METRICS[name].score(codes, GRID, "kim2018", 3, None).score == before


def test_where_nothing_is_drawn_there_is_no_error():
    codes, labels = _codes(), np.stack(np.unravel_index(np.arange(GRID.rows), SIZES), 1)
    assert _error("factor_vae", codes, GRID, "exhaustive") == 0
    assert _error("mig", codes, Factors.of(labels), "kim2018") == 0
    # Without an active dimension there is no vote to draw again.
    assert _error("factor_vae", torch.zeros_like(codes), GRID, "kim2018") is None


def test_labels_of_which_most_are_read_have_less_error():
    codes, many = _codes().repeat(10, 1), np.tile(np.arange(GRID.rows) // 8 % 8, 10)
    codes += 0.3 * torch.randn(codes.shape, generator=torch.Generator().manual_seed(1))
    error = {n: _error("mig", codes[:n], Factors.of(many[:n]), "kim2018") for n in (10_010, 11_520)}
    assert 0 < 2 * error[10_010] < error[11_520]


def test_factors_of_some_rows():
    rows = torch.tensor([5, 5, 1151, 0])
    taken = GRID.take(rows)
    assert taken.sizes == SIZES and taken.rows == 4
    assert [list(a) for a in taken.at(torch.arange(4))] == [list(a) for a in GRID.at(rows)]
    assert Factors.unknown(9).take(rows).rows == 4
    labels = Factors.of([[0.5, 1], [1.5, 1], [2.7, 2]], names=("a", "b"))
    some = labels.take(torch.tensor([2, 0]))
    assert some.real == labels.real == (True, False) and some.names == ("a", "b")
    assert [list(a) for a in some.at(torch.arange(2))] == [[2.7, 0.5], [1, 0]]
