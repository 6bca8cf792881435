"""Total correlation of the aggregate posterior: Gaussians of known correlation, exact mixtures."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from fvae import drop_in, metrics
from fvae.errors import UserError
from fvae.metrics import total_correlation
from fvae.metrics.total_correlation import total_correlation_score


def correlated_pairs(rho, rows, dims=10, variance=0.1, seed=0):
    """mu and logvar whose aggregate is N(0, 1) in each dimension, of pairs correlated by rho."""
    noise = torch.randn(2, rows, dims // 2, generator=torch.Generator().manual_seed(seed))
    each = 1 - variance
    within = rho / each
    second = within * noise[0] + math.sqrt(1 - within**2) * noise[1]
    mu = math.sqrt(each) * torch.stack((noise[0], second), -1).flatten(1)
    return mu, torch.full_like(mu, math.log(variance))


@pytest.fixture
def short(monkeypatch):
    """A discriminator of a few steps."""
    few = dataclasses.replace(
        metrics.TOTAL_CORRELATION, steps=3, train_samples=300, test_samples=100, units=8
    )
    monkeypatch.setattr(total_correlation, "TOTAL_CORRELATION", few)


@pytest.mark.parametrize(
    "rho",
    [pytest.param(0.0, marks=pytest.mark.slow), 0.6, pytest.param(0.85, marks=pytest.mark.slow)],
)
def test_gaussians_of_correlated_pairs(rho, monkeypatch):
    if rho == 0.6:  # which half the discriminator's steps tell
        fewer = dataclasses.replace(metrics.TOTAL_CORRELATION, steps=1000)
        monkeypatch.setattr(total_correlation, "TOTAL_CORRELATION", fewer)
    # Two dimensions a pair; TC of d dimensions is -(d / 4) log(1 - rho^2).
    true = -10 / 4 * math.log(1 - rho**2)
    found = total_correlation_score(*correlated_pairs(rho, 20_000))
    assert found.discriminator == pytest.approx(true, rel=0.12, abs=0.03)
    assert found.score == found.discriminator and 0.45 < found.disc_accuracy < 1
    # I(z; x) is 11.5 nats here, more than log 10,000: the pairs cannot show it, and it is said.
    assert "too large" in found.note and found.pairwise > true


def test_pairs_of_wide_posteriors_find_the_value(monkeypatch):
    fewer = dataclasses.replace(metrics.TOTAL_CORRELATION, steps=400)  # of the discriminator
    monkeypatch.setattr(total_correlation, "TOTAL_CORRELATION", fewer)
    # I(z; x) = 2 log 2 in all: well below log n.
    true = -2 / 4 * math.log(1 - 0.3**2)
    found = total_correlation_score(*correlated_pairs(0.3, 20_000, dims=2, variance=0.5))
    assert found.pairwise == pytest.approx(true, abs=0.02)
    assert found.discriminator == pytest.approx(true, abs=0.02)
    assert found.information == pytest.approx(-0.5 * math.log(0.5**2 - 0.0), abs=0.1)
    assert found.note == ""


def test_the_pairwise_estimate_is_the_mixture_in_float64(short):
    mu, logvar = (torch.randn(400, 3, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    rng = total_correlation.Philox(0)
    z, _ = total_correlation.ops.reparameterize(mu[:50], logvar[:50], rng)
    m, v, x = (t.double().numpy() for t in (mu[:50], logvar[:50].exp(), z))
    logs = -0.5 * ((x[:, None] - m) ** 2 / v + np.log(2 * np.pi * v))
    joint = np.logaddexp.reduce(logs.sum(-1), axis=1) - np.log(50)
    product = (np.logaddexp.reduce(logs, axis=1) - np.log(50)).sum(-1)
    own = np.diagonal(logs.sum(-1))
    tc, information = total_correlation._pairwise(mu[:50], logvar[:50], rng)
    assert tc == pytest.approx((joint - product).mean(), abs=1e-4)
    assert information == pytest.approx((own - joint).mean(), abs=1e-4)


def test_it_can_be_repeated_and_leaves_no_trace(short):
    mu, logvar = correlated_pairs(0.5, 400)
    before = torch.random.get_rng_state()
    first, again, other = (total_correlation_score(mu, logvar, seed) for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert dataclasses.astuple(first) == dataclasses.astuple(again)
    assert first.score != other.score
    as_arrays = total_correlation_score(mu.double().numpy(), logvar.numpy(), 3)
    assert as_arrays.score == first.score


def test_only_the_drawn_rows_are_read(short):
    mu, logvar = correlated_pairs(0.5, 400)
    rows = torch.cat(total_correlation.samples_of(metrics.Factors.unknown(400), 300, 100,
                                                  total_correlation.Philox(5)))  # fmt: skip
    assert len(rows.unique()) < 400
    poisoned = [torch.full_like(t, torch.nan) for t in (mu, logvar)]
    for part, whole in zip(poisoned, (mu, logvar), strict=True):
        part[rows] = whole[rows]
    assert (
        total_correlation_score(*poisoned, 5).score == total_correlation_score(mu, logvar, 5).score
    )


def test_one_dimension_has_none(short):
    found = total_correlation_score(*(t[:, :1] for t in correlated_pairs(0.5, 400)))
    assert found.score == found.pairwise == 0.0 and "one dimension" in found.note


def test_collapsed_dimensions_add_nothing(short):
    mu = torch.zeros(400, 4)
    found = total_correlation_score(mu, mu)
    assert found.pairwise == pytest.approx(0.0, abs=1e-5)


def test_bad_input():
    mu, logvar = correlated_pairs(0.5, 400)
    with pytest.raises(UserError, match=r"logvar: got shape \[400, 9\], expected that of codes"):
        total_correlation_score(mu, logvar[:, :9])
    with pytest.raises(UserError, match="logvar: row .* expected finite"):
        total_correlation_score(mu, torch.full_like(logvar, torch.nan))
    with pytest.raises(UserError, match="codes: got 400 rows, expected 100"):
        total_correlation_score(mu, logvar, factors=np.arange(100) % 7)
    with pytest.raises(UserError, match="total_correlation_score"):
        drop_in.score(lambda x: x, np.zeros((4, 2)), [2, 2], metric="total_correlation")
