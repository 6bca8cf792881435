"""The scores that ask for no factors."""

import math
import warnings

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from sklearn.metrics import mutual_info_score

from fvae import drop_in, metrics
from fvae.errors import UserError
from fvae.metrics.factors import Factors
from fvae.metrics.histogram import binned
from fvae.metrics.sampling import unlabelled_rows
from fvae.philox import Philox

NAMES = ("gaussian_tc", "wasserstein", "mutual_information")


def score(name, *args, **kwargs):
    """The result of a metric, where no warning may come."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return getattr(metrics, f"{name}_score")(*args, **kwargs)


def codes_of(rows=3000, dims=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((rows, dims)) @ rng.standard_normal((dims, dims))


def test_against_the_formulas():
    codes = codes_of()
    cov = np.cov(codes.T)
    apart = np.diag(np.diag(cov))
    # KL of two Gaussians of mean 0.
    kl = (
        np.trace(np.linalg.inv(apart) @ cov)
        - 4
        + math.log(np.linalg.det(apart) / np.linalg.det(cov))
    )
    assert score("gaussian_tc", codes).score == pytest.approx(kl / 2)
    root = sqrtm(apart)
    want = np.trace(cov + apart - 2 * sqrtm(root @ cov @ root)).real
    result = score("wasserstein", codes)
    assert result.score == pytest.approx(want)
    assert result.normalised == pytest.approx(want / np.trace(cov))
    np.testing.assert_allclose(result.covariance, cov, atol=1e-12)
    cut = [binned(z, 20) for z in codes.T]
    pairs = [mutual_info_score(cut[i], cut[j]) for i in range(4) for j in range(4) if i != j]
    result = score("mutual_information", codes)
    assert result.score == pytest.approx(np.mean(pairs))
    assert result.information[1, 1] == pytest.approx(mutual_info_score(cut[1], cut[1]))


def test_by_hand():
    # Four points of correlation 1/2: x in -1, -1, 1, 1 and y = x / 2 + e in units of variance 1.
    x = np.array([-1.0, -1, 1, 1])
    y = x / 2 + math.sqrt(3) / 2 * np.array([-1.0, 1, -1, 1])
    codes = np.stack((x, y), axis=1)
    assert score("gaussian_tc", codes).score == pytest.approx(-math.log(3 / 4) / 2)
    # S = 4/3 [[1, 1/2], [1/2, 1]]: tr (D^1/2 S D^1/2)^1/2 = 4/3 (sqrt 3/2 + sqrt 1/2).
    want = 2 - math.sqrt(3 / 2) - math.sqrt(1 / 2)
    assert score("wasserstein", codes).normalised == pytest.approx(want)
    assert score("wasserstein", codes).score == pytest.approx(want * 8 / 3)
    same = np.repeat(codes[:, :1], 3, axis=1)
    assert score("wasserstein", same).normalised == pytest.approx(2 - 2 / math.sqrt(3))
    assert score("mutual_information", same).score == pytest.approx(math.log(2))


@pytest.mark.parametrize("name", NAMES)
def test_independent_dependent_and_collapsed(name):
    codes = np.random.default_rng(0).standard_normal((9000, 4))
    assert 0 <= score(name, codes).score < 0.02
    assert score(name, codes @ np.linalg.qr(codes_of(4))[0] * [1, 2, 3, 4]).score < 0.02
    assert score(name, codes + codes[:, :1]).score > 0.1
    for collapsed, note in ((np.full((50, 3), 0.1), "no dimension"), (codes[:, :1], "one dim")):
        result = score(name, collapsed)
        assert result.score == 0.0 and result.note.startswith(note)
    more = np.insert(codes_of(), 2, 0.1, axis=1)
    want = score(name, codes_of()).score * (12 / 20 if name == "mutual_information" else 1)
    assert score(name, more).score == pytest.approx(want)


def test_linearly_dependent_dimensions():
    codes = codes_of()
    for third in (codes[:, 0], codes[:, 0] - 2 * codes[:, 1], -5 * codes[:, 1] + 3):
        result = score("gaussian_tc", np.column_stack((codes[:, :2], third)))
        assert 14 < result.score < math.inf and "infinite" in result.note
    assert score("gaussian_tc", codes).note == ""
    assert score("gaussian_tc", codes_of(3, 5)).note  # fewer rows than dimensions


def test_units_are_nothing_to_the_total_correlation():
    codes = codes_of()
    want = score("gaussian_tc", codes).score
    assert score("gaussian_tc", codes * [1e-8, 1, 1e8, 3] + 7).score == pytest.approx(want)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", [600, 12_000])
def test_factors_are_nothing(name, rows):
    codes = codes_of(rows)
    sizes = (rows // 100, 10, 10)
    labels = np.arange(rows) % 7
    want = score(name, codes).score
    assert want == score(name, codes, sizes).score == score(name, codes, factors=labels).score
    assert want == score(name, torch.tensor(codes), factors=Factors.unknown(rows)).score
    assert (want == score(name, codes, seed=1).score) == (rows == 600)
    read = metrics.needed(factors=Factors.unknown(rows), metrics=name)
    assert torch.equal(read, metrics.needed(sizes, name))
    assert len(read) == rows if rows == 600 else 6000 < len(read) < 10_000
    if rows > 10_000:  # those that other metrics learn from
        assert torch.equal(read, metrics.needed(sizes, "mig"))
    hidden = np.full_like(codes, np.nan)
    hidden[read] = codes[read]
    assert score(name, hidden).score == want
    assert len(unlabelled_rows(Factors.unknown(rows), 10_000, Philox(0))) == min(rows, 10_000)


@pytest.mark.parametrize("name", NAMES)
def test_bad_input_is_named(name):
    with pytest.raises(UserError, match="codes: got 1 rows, expected at least 2"):
        score(name, np.zeros((1, 3)))
    with pytest.raises(UserError, match=r"codes: got shape \[\], expected"):
        score(name, np.float64(3))
    with pytest.raises(UserError, match="codes: got int64, expected floating point"):
        score(name, np.zeros((4, 3), int))
    with pytest.raises(UserError, match=r"codes: row 2 is \[nan"):
        score(name, np.array([[1.0], [2.0], [np.nan]]))
    with pytest.raises(UserError, match="codes: got 4 rows, expected 5, the number of rows"):
        score(name, np.zeros((4, 3)), factors=Factors.unknown(5))
    with pytest.raises(UserError, match="both, expected one"):
        score(name, np.zeros((4, 3)), (2, 2), factors=np.arange(4) % 2)


@pytest.mark.parametrize("name", NAMES)
def test_images_without_factors(name):
    images = torch.rand(50, 6, generator=torch.Generator().manual_seed(0))
    got = drop_in.score(lambda x: x[:, :3], images, metric=name)
    assert got.score == score(name, images[:, :3]).score
    with pytest.raises(UserError, match="factor_sizes: the data set has none"):
        drop_in.score(lambda x: x[:, :3], images, metric="mig")
