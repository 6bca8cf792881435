"""Codes with labels of anybody's."""

import json

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

from fvae import Philox, drop_in, metrics, ops
from fvae.errors import UserError
from own import case

SIZES = (3, 4, 5, 8)
DSPRITES = (3, 6, 40, 32, 32)


def grid(sizes):
    """Labels of a full grid, the last factor fastest: int64 [N, K]."""
    return np.stack(np.unravel_index(np.arange(np.prod(sizes)), sizes), axis=1)


def combinations(sizes=SIZES, count=5000):
    """Labels of random combinations."""
    rng = np.random.default_rng(0)
    return np.stack([rng.integers(0, n, count) for n in sizes], axis=1)


def noisy(labels):
    """Codes = labels + 0.01 noise."""
    return labels + 0.01 * np.random.default_rng(1).standard_normal(labels.shape)


def every(codes, factors):
    """Every usual metric, to three digits."""
    if not isinstance(factors, metrics.Factors):
        factors = metrics.Factors.of(factors)
    taken = {n: m.score(torch.tensor(codes), factors, "kim2018", 0, None)
             for n, m in metrics.METRICS.items() if m.usual}  # fmt: skip
    return {name: round(result.score, 3) for name, result in taken.items()}


def refusal(call):
    """The one line with which a call is refused."""
    try:
        return call()
    except UserError as error:
        return str(error)


def _near(got, **right):
    return all(abs(got[name] - value) <= 0.03 for name, value in right.items())


# --- labels that are no full grid -----------------------------------------------------------------


@case("labels + 0.01 noise, 5,000 random combinations of 3 x 4 x 5 x 8", "1; SAP 0.5, as a grid")
def random_combinations(folder):
    got = every(noisy(combinations()), combinations())
    return got, _near(got, factor_vae=1, beta_vae=1, mig=1, dci=1, sap=0.5)


@case("the same of four factors of two values", "1; SAP 0.5, as chance is 0.5")
def binary_combinations(folder):
    labels = combinations((2, 2, 2, 2))
    got = every(noisy(labels), labels)
    return got, _near(got, factor_vae=1, beta_vae=1, mig=1, dci=1, sap=0.5)


@case("a full grid in random order", "the grid's scores")
def any_order(folder):
    sizes = (20, 25, 30)
    labels, order = grid(sizes), np.random.default_rng(0).permutation(15_000)
    codes = labels @ np.array([[0.05, 0.01, 0], [0, 0.04, 0.01], [0, 0, 0.03]])
    got = every(codes[order], labels[order])
    return got, _near(got, **every(codes, metrics.Factors.grid(sizes)))


@case("a full grid as labels, row by row", "the grid's votes, bit for bit")
def a_grid_as_labels(folder):
    codes = np.random.default_rng(0).standard_normal((480, 6))
    sizes = metrics.factor_vae_score(codes, SIZES)
    labels = metrics.factor_vae_score(codes, factors=grid(SIZES))
    return labels.votes.tolist(), torch.equal(labels.votes, sizes.votes)


@case("half of the combinations missing, two factors correlated", "1 for votes and DCI")
def missing_and_correlated(folder):
    labels = combinations((6, 6, 5, 5), 6000)
    labels[::2, 1] = labels[::2, 0]
    labels = labels[labels[:, 2] + labels[:, 3] < 5]
    got = every(noisy(labels), labels)
    return got, _near(got, factor_vae=1, beta_vae=1, dci=1)


@case("the MIG of correlated factors", "its ceiling: 1 - I(v_k; v_l) / H(v_k), mean 0.75")
def correlated_ceiling(folder):
    labels = combinations((6, 6), 6000)
    labels[::2, 1] = labels[::2, 0]
    result = metrics.mig_score(noisy(labels), factors=labels)
    joint = np.histogram2d(*labels.T, bins=6)[0] / len(labels)
    shared = (joint * np.log(joint / np.outer(joint.sum(1), joint.sum(0)))).sum()
    right = np.mean([1 + shared / (p * np.log(p)).sum() for p in (joint.sum(0), joint.sum(1))])
    return round(result.ceiling, 3), abs(result.ceiling - right) < 1e-9


@case("SmallNORB's 4,860 combinations x 5, perfect code, instance left out", 1.0)
def small_norb(folder):
    labels = grid((5, 9, 18, 6, 5))[:, :4]
    got = [metrics.factor_vae_score(labels * 1.0, None, p, factors=labels).score
           for p in metrics.PROTOCOLS]  # fmt: skip
    return got, got == [1.0] * 3


@case("the same with the instance named as a factor", "kim2018 0.8, locatello2019 0.795, ceilings")
def small_norb_instance(folder):
    labels = grid((5, 9, 18, 6, 5))
    got = [metrics.factor_vae_score(labels[:, :4] * 1.0, None, p, factors=labels)
           for p in metrics.PROTOCOLS]  # fmt: skip
    shown = [(round(r.score, 3), round(r.ceiling, 3)) for r in got]
    return shown, shown[0] == shown[2] == (0.8, 0.8) and shown[1][0] == 0.795 <= shown[1][1]


# --- real values, and few that share one ----------------------------------------------------------


@case("5,000 real-valued labels [N, 3], codes = labels + 0.001 noise", "SAP (R^2), DCI, MIG 0.9-1")
def real_values(folder):
    labels = np.random.default_rng(0).random((5000, 3))
    codes = labels + 0.1 * (noisy(labels) - labels)
    got = {f.__name__: round(f(codes, factors=labels).score, 3)
           for f in (metrics.sap_score, metrics.dci_score, metrics.mig_score)}  # fmt: skip
    return got, min(got.values()) > 0.9


@case("the FactorVAE metric of real values", "one line: bin the factor")
def votes_of_real_values(folder):
    labels = np.random.default_rng(0).random((600, 3))
    got = refusal(lambda: metrics.factor_vae_score(labels, factors=labels))
    return got, "factor 0 is real-valued" in got and "np.digitize" in got


@case("a factor value that one row has", "one line: factor, value, how many rows")
def too_few(folder):
    labels = combinations()
    labels[17, 2] = 40
    got = refusal(lambda: metrics.beta_vae_score(noisy(labels), factors=labels))
    return got, got.startswith("factors: factor 2 has value 40 in 1 row")


@case("a class that occurs in the test rows alone", "scores in 0..1")
def rare_class(folder):
    labels = combinations()
    labels[:2, 1] = 7, 9
    codes = noisy(labels)
    got = [round(f(codes, factors=labels).score, 3)
           for f in (metrics.mig_score, metrics.sap_score, metrics.dci_score)]  # fmt: skip
    return got, all(0 <= score <= 1 for score in got)


# --- mistakes -------------------------------------------------------------------------------------


def _one_line(given, right, **options):
    @case(given, right)
    def refused(folder):
        codes = noisy(combinations())
        got = {refusal(lambda f=f: f(codes, **options)) for f in (
            metrics.factor_vae_score, metrics.beta_vae_score, metrics.mig_score,
            metrics.sap_score, metrics.dci_score)}  # fmt: skip
        line = got.pop()
        return line, not got and isinstance(line, str) and "\n" not in line and right in line


_nan, _constant = combinations() * 1.0, combinations()
_nan[5, 1], _constant[:, 3] = np.nan, 4
_one_line("labels [N, K] as factor_sizes", "give labels of rows as factors=",
          factor_sizes=combinations())  # fmt: skip
_one_line("a list of 5,000 labels as factor_sizes", "give labels of rows as factors=",
          factor_sizes=combinations()[:, 0].tolist())  # fmt: skip
_one_line("sizes as factors", "expected [5000, K], a row for each code", factors=SIZES)
_one_line("sizes and labels", "got both, expected one", factor_sizes=SIZES, factors=combinations())
_one_line("a NaN label", "factor 1 is nan in row 5", factors=_nan)
_one_line("a constant factor", "factor 3 has one value, 4, in all 5,000 rows", factors=_constant)
_one_line("one row of labels", "expected [5000, K]", factors=combinations()[:1])
_one_line("labels as text", "has dtype", factors=combinations().astype(str))


# --- ceilings -------------------------------------------------------------------------------------


@case("a perfect code of dSprites", "MIG 0.896, of at most 0.896")
def dsprites_ceiling(folder):
    result = metrics.mig_score(grid(DSPRITES) * 1.0, DSPRITES)
    got = round(result.score, 3), round(result.ceiling, 3)
    return got, got == (0.896, 0.896)


@case("the same with bins=40", "MIG and ceiling above 0.97, under another protocol's name")
def more_bins(folder):
    result = metrics.mig_score(grid(DSPRITES) * 1.0, DSPRITES, bins=40)
    got = round(result.score, 3), round(result.ceiling, 3), result.protocol.name
    return got, 0.97 < got[0] == got[1] < 1 and got[2] == "locatello2019, 40 bins"


@case("two latents for four factors", "FactorVAE 0.5 of at most 0.5; DCI at most 0.5")
def few_latents(folder):
    codes = grid(SIZES)[:, :2] * 1.0
    votes, dci = metrics.factor_vae_score(codes, SIZES), metrics.dci_score(codes, SIZES)
    got = votes.score, votes.ceiling, round(dci.score, 3), round(dci.ceiling, 3)
    return got, got[:2] == (0.5, 0.5) and got[2] <= got[3] == 0.5


@case("fvae eval of a set with 40 angles; --bins 50", "a ceiling beside the score; none, recorded")
def eval_prints_ceilings(folder):
    from small import SMALL_OPTIONS, bits, command

    from fvae.data import Store
    from fvae.registry import DATA, DataSet

    labels = torch.stack((torch.arange(240) % 3, torch.arange(240) % 40), dim=1)
    store = Store("angles", bits(240).data, (1, 64, 64), True, ("kind", "angle"), labels=labels)
    DATA.add(DataSet("angles", "40 angles", lambda progress: store))
    try:
        command("train", *SMALL_OPTIONS, "--steps", "1", "--data", "angles", "--out", folder / "r")
        _, table, _ = command("eval", folder / "r", "--device", "cpu")
        _, text, _ = command("eval", folder / "r", "--device", "cpu", "--bins", "50", "--json")
    finally:
        DATA.remove("angles")
    (line,) = (row for row in table.splitlines() if row.startswith("│ mig"))
    result = json.loads(text)["mig"]
    cell = line.split("│")[4].strip()
    got = cell, round(result["ceiling"], 3), result["protocol"]["bins"]
    return got, 0.8 < float(cell) < 0.92 and result["protocol"]["bins"] == 50


# --- sets and loops -------------------------------------------------------------------------------


@case("scikit-learn's digits, PCA of 10 dimensions", "MIG 0.06, SAP 0.01, accuracy 0.88; notes")
def digits(folder):
    images, labels = load_digits(return_X_y=True)
    codes = PCA(10, random_state=0).fit_transform(images)
    got = every(codes, labels)
    dci = metrics.dci_score(codes, factors=labels)
    votes = metrics.factor_vae_score(codes, factors=labels)
    got["informativeness"] = round(dci.informativeness, 3)
    got["note"] = votes.note
    fine = got["factor_vae"] == got["beta_vae"] == got["dci"] == 1 and "one factor" in votes.note
    right = {"mig": 0.056, "sap": 0.013, "informativeness": 0.876}  # as the README of metrics says
    return got, fine and all(abs(got[name] - value) < 0.02 for name, value in right.items())


@case("drop_in.score of images with labels, any order", 1.0)
def any_loop(folder):
    labels = combinations(count=800)
    images = torch.tensor(labels).float()[:, None, None]
    got = drop_in.score(lambda x: x.flatten(1), images, factors=labels).score
    return got, got == 1.0


@case("a metric that comes later, of labels", "the share of active dimensions: 1.0")
def later_metric(folder):
    from fvae.metrics import sampling
    from fvae.registry import METRICS, Metric

    def rows(factors, protocol, seed):
        return sampling.sample_rows(factors, 1000, 0, seed)

    def active(codes, factors, protocol, seed, kl):
        std = codes[torch.cat(list(rows(factors, protocol, seed)))].std(0)
        return float((std > 0.05).double().mean())

    METRICS.add(Metric("later", "active dimensions", active, rows))
    try:
        labels = combinations(count=3000)
        codes = torch.full((3000, 4), torch.nan, dtype=torch.float64)
        needed = metrics.needed(metrics="later", factors=labels)
        codes[needed] = torch.tensor(noisy(labels))[needed]
        got = METRICS["later"].score(codes, metrics.Factors.of(labels), "kim2018", 0, None)
    finally:
        METRICS.remove("later")
    return got, got == 1.0 and len(needed) == 1000


# --- the ops of the metrics -----------------------------------------------------------------------


def _votes_of(codes, sizes, backend=None):
    scale = codes.float().var(0)
    return ops.metric_votes(
        codes, sizes, votes=400, samples=20, scale=scale, rng=Philox(0), backend=backend,
        active=torch.ones_like(scale, dtype=torch.bool),
    )  # fmt: skip


def _labels(rows, sizes):
    generator = torch.Generator().manual_seed(0)
    return torch.stack([torch.randint(n, (rows,), generator=generator) for n in sizes], dim=1)


@case("a full grid of 3 x 4 x 5, given as labels to the ops", "the grid's numbers, bit for bit")
def _(folder):
    sizes = (3, 4, 5)
    labels = torch.cartesian_prod(*(torch.arange(n) for n in sizes))
    codes = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    grid, labelled = (
        (
            _votes_of(codes, s),
            *ops.pair_features(codes, s, points=50, pairs=20, rng=Philox(1)),
            ops.grouped_variance(codes, s),
        )
        for s in (sizes, ops.RowIndex.of(labels))
    )
    same = [torch.equal(a, b) for a, b in zip(grid, labelled, strict=True)]
    return f"equal: {same}", all(same)


@case("a full grid as labels, its rows shuffled", "the grid's accuracy, within 0.05")
def _(folder):
    sizes = (3, 4, 5)
    labels = torch.cartesian_prod(*(torch.arange(n) for n in sizes))
    generator = torch.Generator().manual_seed(0)
    codes = labels + 0.7 * torch.randn(60, 3, generator=generator)
    order = torch.randperm(60, generator=generator)
    votes = _votes_of(codes, sizes), _votes_of(codes[order], ops.RowIndex.of(labels[order]))
    grid, shuffled = (float(v.amax(1).sum() / v.sum()) for v in votes)
    return f"{grid:.3f} and {shuffled:.3f}", abs(grid - shuffled) < 0.05


@case("5,000 random combinations, some twice, most missing", "C++ has the reference's votes")
def _(folder):
    labels = _labels(5000, (10, 20, 30, 40))
    codes = labels + 0.01 * torch.randn(labels.shape, generator=torch.Generator().manual_seed(1))
    index = ops.RowIndex.of(labels)
    got = _votes_of(codes, index)
    accuracy = float(got.amax(1).sum() / got.sum())
    return f"accuracy {accuracy}", accuracy == 1 and torch.equal(
        got, _votes_of(codes, index, "reference")
    )


@case("40 factors, and one of 5,000 values", "the votes of the 40 go to their own codes")
def _(folder):
    many = torch.arange(10_000)[:, None] // 2
    labels = torch.cat([_labels(10_000, (2,) * 40), many], dim=1)
    votes = _votes_of(labels.float(), ops.RowIndex.of(labels))[:, :40]
    wrong = int(votes.sum() - votes.diagonal().sum())
    return f"{wrong} of {int(votes.sum())} votes elsewhere", wrong == 0


@case("codes in float16", "the votes of the same numbers in float32")
def _(folder):
    labels = _labels(500, (3, 4, 5))
    codes = torch.randn(500, 6, generator=torch.Generator().manual_seed(1)).half()
    index = ops.RowIndex.of(labels)
    moved = int((_votes_of(codes, index) - _votes_of(codes.float(), index)).abs().sum())
    return f"{moved} votes moved", moved == 0


@case("labels that leave the value 1 out", "an error that names it")
def _(folder):
    try:
        ops.RowIndex.of(torch.tensor([[0], [2], [2]]))
    except ValueError as error:
        return error, "value 1 of factor 0 does not occur" in str(error)
    return "no error", False
