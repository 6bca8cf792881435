"""What is taken as factors: sizes or labels, classes or real values, and what is refused."""

import math

import numpy as np
import pytest
import torch

from fvae import metrics
from fvae.errors import UserError
from fvae.metrics import sampling
from fvae.metrics.factors import Factors, Unsuited
from fvae.registry import Metric

SIZES = (3, 4, 5)
N = math.prod(SIZES)
LABELS = np.stack(np.unravel_index(np.arange(N), SIZES), axis=1)
CODES = np.random.default_rng(0).standard_normal((N, 3)) + LABELS
SCORES = [
    metrics.factor_vae_score, metrics.beta_vae_score, metrics.mig_score, metrics.sap_score,
    metrics.dci_score,
]  # fmt: skip
RNG = np.random.default_rng(1)


# --- classes or real values -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "real", "distinct"),
    [
        (np.arange(60) % 2 > 0, False, 2),
        (np.arange(60, dtype=np.uint8) % 7, False, 7),
        (np.arange(60) % 5 - 1000, False, 5),
        (np.arange(60, dtype=np.int64) // 20 * 10**12, False, 3),
        (np.arange(60) // 2 * 1.0, False, 30),  # whole numbers, whatever the dtype
        (np.arange(60) % 2 * 1e300, False, 2),
        (np.arange(60) % 2 - 0.5, False, 2),
        (np.linspace(0, 2 * np.pi, 40).repeat(10), False, 40),  # dSprites' orientation
        (np.linspace(0, 2 * np.pi, 40).repeat(9), True, 40),
        (np.float16(RNG.random(60)), True, None),
        (RNG.standard_normal(60), True, 60),
    ],
)
def test_what_is_a_class(column, real, distinct):
    factors = Factors.of(column)
    (found,) = factors.columns
    assert factors.real == (real,) and found.distinct == (distinct or found.distinct)
    assert factors.sizes == (0 if real else distinct,) and factors.rows == len(column)
    if real:
        assert np.array_equal(found.data, column.astype(float))
    else:
        assert np.array_equal(found.values[found.data], column)
        assert np.array_equal(found.values, np.unique(column))
        assert set(found.data) == set(range(distinct))


def test_real_values_can_be_asked_for():
    for real in ([1], [-2], ["b"]):
        factors = Factors.of(LABELS, ["a", "b", "c"], real)
        assert factors.real == (False, True, False)
        assert metrics.sap_score(CODES, factors=factors).accuracy.shape == (3, 3)
    for wrong in (["d"], [3], [1.5], [None]):
        with pytest.raises(UserError, match="real: got .*, expected numbers or names of the 3 col"):
            Factors.of(LABELS, ["a", "b", "c"], wrong)
    with pytest.raises(UserError, match="2 names for 3 columns"):
        Factors.of(LABELS, ["a", "b"])


@pytest.mark.parametrize(
    "given",
    [
        LABELS.tolist(),
        LABELS.astype(np.int8),
        LABELS.astype(np.float32),
        LABELS.astype(">i4")[::-1][::-1],
        LABELS.astype(object),
        np.asfortranarray(LABELS),
        torch.tensor(LABELS),
        torch.tensor(LABELS).bfloat16().requires_grad_(),
        list(torch.tensor(LABELS)),
        LABELS * 100 - 7,
        LABELS / 7 + 0.5,
        np.array([0.25, 3.5, 8, 9, 10])[LABELS],
    ],
    ids=lambda given: f"{type(given).__name__} {getattr(given, 'dtype', '')}",
)
def test_any_form_of_labels_is_the_same(given):
    votes = metrics.factor_vae_score(CODES, factors=LABELS).votes
    assert torch.equal(metrics.factor_vae_score(CODES, factors=given).votes, votes)


def test_one_column_is_one_factor():
    for score in SCORES:
        one, two = (score(CODES, factors=v) for v in (LABELS[:, 0], LABELS[:, :1]))
        assert one.score == two.score


# --- refused --------------------------------------------------------------------------------------


def _with(value, row=7, column=1, dtype=float):
    labels = LABELS.astype(dtype)
    labels[row, column] = value
    return labels


BAD = {
    "neither": ({}, "factor_sizes, factors: got neither, expected one"),
    "both": ({"factor_sizes": SIZES, "factors": LABELS}, "factor_sizes, factors: got both"),
    "labels where sizes belong": ({"factor_sizes": LABELS}, r"of shape \[60, 3\].*as factors="),
    "a tensor there": ({"factor_sizes": torch.tensor(LABELS)}, r"of shape \[60, 3\].*factors="),
    "lists there": ({"factor_sizes": LABELS.tolist()}, r"of shape \[60, 3\].*factors="),
    "one factor's labels there": ({"factor_sizes": LABELS[:, 0]}, r"of shape \[60\].*factors="),
    "a short column there": ({"factor_sizes": [0, 1, 2, 1]}, r"labels of rows as factors="),
    "arrays there": ({"factor_sizes": [np.arange(3)] * 2}, r"of shape \[2, 3\].*factors="),
    "sizes where labels belong": ({"factors": SIZES}, r"shape \[3\], .* go to factor_sizes"),
    "transposed": ({"factors": LABELS.T}, r"factors: got shape \[3, 60\], expected \[60, K\]"),
    "too few rows": ({"factors": LABELS[1:]}, r"got shape \[59, 3\], expected \[60, K\]"),
    "factors of other rows": ({"factors": Factors.of(LABELS[:40])}, "60 rows, expected 40"),
    "no row": ({"factors": np.zeros((0, 3))}, r"got shape \[0, 3\], expected labels \[N, K\]"),
    "no column": ({"factors": np.zeros((60, 0))}, r"got shape \[60, 0\], expected labels"),
    "three axes": ({"factors": LABELS[..., None]}, r"got shape \[60, 3, 1\], expected labels"),
    "a number": ({"factors": 3}, r"got shape \[\], expected labels"),
    "ragged": ({"factors": [[1], [1, 2]] * 30}, "factors: expected numbers .*, got no array"),
    "nan": ({"factors": _with(np.nan)}, "factors: factor 1 is nan in row 7, expected finite"),
    "inf": ({"factors": torch.tensor(_with(-np.inf))}, "factor 1 is -inf in row 7"),
    "masked": ({"factors": np.ma.masked_equal(LABELS, 2)}, "factor 0 is nan in row 40"),
    "constant": ({"factors": LABELS * [1, 0, 1]}, "factor 1 has one value, 0, in all 60 rows"),
    "complex": ({"factors": LABELS + 0j}, "column 0 has dtype complex128, expected numbers"),
    "text": ({"factors": LABELS.astype(str)}, "column 0 has dtype .*np.unique"),
    "an object": ({"factors": _with("red", dtype=object)}, "column 1 holds 'red', expected numb"),
    "None": ({"factors": _with(None, dtype=object)}, "column 1 holds None, expected numbers"),
}  # fmt: skip


@pytest.mark.parametrize("score", [*SCORES, metrics.needed])
@pytest.mark.parametrize("case", BAD)
def test_bad_factors_are_named(score, case):
    options, message = BAD[case]
    counts = ("sizes where", "transposed", "too few", "factors of other")
    if score is metrics.needed and case.startswith(counts):
        return  # it sees no codes to count
    with pytest.raises(UserError, match=message) as caught:
        score(**options, **({} if score is metrics.needed else {"codes": CODES}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("score", SCORES[:2])
def test_values_that_no_two_rows_share(score):
    few = _with(9, 7, 2, int)
    named = Factors.of(few, ["shape", "scale", "azimuth"])
    for factors, name in ((few, "factor 2"), (named, r"factor 2 \(azimuth\)")):
        with pytest.raises(Unsuited, match=f"factors: {name} has value 9 in 1 row, .* at least 2"):
            score(CODES, factors=factors)
    few[0, 2] = -4
    with pytest.raises(Unsuited, match=r"has value -4 in 1 row \(and 1 more such values\)"):
        score(CODES, factors=few)
    with pytest.raises(Unsuited, match="factor 0 is real-valued .60 different .* np.digitize"):
        score(CODES, factors=RNG.random((N, 2)))
    few[:, 2] = np.digitize(few[:, 2], np.quantile(few[:, 2], [0.2, 0.4, 0.6, 0.8]))  # the remedy
    assert 0 < score(CODES, factors=few).score <= 1


@pytest.mark.parametrize("score", SCORES[2:])
def test_labels_that_name_the_row(score):
    numbers = np.arange(N)
    with pytest.raises(Unsuited, match=r"factor 0 has 60 values in 60 rows.*Factors.of\(.*real"):
        score(CODES, factors=numbers)
    assert 0 <= score(CODES, factors=Factors.of(numbers, real=[0])).score <= 1  # the remedy


def test_a_factor_that_does_not_vary_where_it_is_learnt():
    rare = np.zeros(N, int)
    rare[sampling.samples_of(Factors.of(LABELS), 10_000, 5000, sampling.Philox(0))[1][:2]] = 1
    for score in (metrics.sap_score, metrics.dci_score):
        with pytest.raises(Unsuited, match="factor 0 has one value in all 40 rows that were drawn"):
            score(CODES, factors=rare)
    assert 0 < metrics.mig_score(CODES, factors=rare).score < 1  # which reads every row


# --- the registry's contract ----------------------------------------------------------------------


def test_a_metric_written_for_grids_takes_grids_and_refuses_labels():
    def rows(factor_sizes, protocol, seed):
        yield torch.arange(math.prod(factor_sizes))

    def score(codes, factor_sizes, protocol, seed, kl):
        return [*factor_sizes, len(factor_sizes), factor_sizes[-1], *factor_sizes[:2]]

    metrics.METRICS.add(Metric("mine", "mine", score, rows))
    try:
        grid, labels = Factors.grid(SIZES), Factors.of(LABELS)
        assert len(metrics.needed(SIZES, "mine")) == N
        mine = metrics.METRICS["mine"].score
        assert mine(CODES, grid, "kim2018", 0, None) == [3, 4, 5, 3, 5, 3, 4]
        with pytest.raises(Unsuited, match="takes the sizes of a full grid, not labels"):
            metrics.needed(factors=labels)
        with pytest.raises(Unsuited, match="takes the sizes of a full grid, not labels"):
            mine(CODES, labels, "kim2018", 0, None)
    finally:
        metrics.METRICS.remove("mine")


@pytest.mark.parametrize("name", [n for n, m in metrics.METRICS.items() if not m.posterior])
def test_every_entry_takes_sizes_and_labels(name):
    score = metrics.METRICS[name].score
    most = 1 if metrics.METRICS[name].supervised else 3  # nats, or the unit of the codes squared
    for factors in (SIZES, Factors.grid(SIZES), Factors.of(LABELS)):
        assert 0 <= score(torch.tensor(CODES), factors, "kim2018", 0, None).score <= most


@pytest.mark.parametrize("bins", [1, 0, -3, 2.5, "many", 10**9])
def test_bad_bins(bins):
    with pytest.raises(UserError, match="bins: got .*, expected a whole number from 2 to 10,000"):
        metrics.mig_score(CODES, SIZES, bins=bins)
