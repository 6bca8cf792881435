"""The FactorVAE metric against known codes, slow loops and its invariances."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fvae import metrics
from fvae.errors import UserError
from fvae.metrics import sampling
from fvae.ops.reference import vote_samples
from fvae.philox import Philox

SIZES = (3, 4, 5, 8)
N = math.prod(SIZES)
K = len(SIZES)
PROTOCOLS = ("kim2018", "locatello2019", "exhaustive")


def classes(sizes=SIZES):
    """Factor classes of each row, by NumPy's own row-major order."""
    return np.stack(np.unravel_index(np.arange(math.prod(sizes)), sizes), axis=1)


def perfect(sizes=SIZES):
    """Each dimension a function of one factor, in another order, between dead and noisy ones."""
    v = classes(sizes).astype(np.float64)
    noise = np.random.default_rng(0).standard_normal((len(v), 1))
    dead = np.full((len(v), 1), 0.1)
    return np.concatenate(
        (np.exp(v[:, 2:3] / 2), dead, v[:, :1], noise, -(v[:, 3:] ** 3), 5 * v[:, 1:2]), axis=1
    )


def noise(seed=0, dims=6, sizes=SIZES):
    return np.random.default_rng(seed).standard_normal((math.prod(sizes), dims))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_perfect_code_scores_one(protocol, dtype):
    result = metrics.factor_vae_score(torch.tensor(perfect()).to(dtype), SIZES, protocol)
    assert result.score == 1.0
    assert result.protocol.name == protocol
    assert result.active.tolist() == [True, False, True, True, True, True]
    assert result.votes.dtype == torch.int64
    # Dimension -> factor, as built; the dead and the noisy dimension win nothing.
    assert result.votes.ne(0).nonzero().tolist() == [[0, 2], [2, 0], [4, 3], [5, 1]]


def test_votes_count_what_the_protocol_says():
    kim = metrics.factor_vae_score(noise(), SIZES)
    assert kim.votes.sum(0).tolist() == [200] * 4
    assert kim.eval_score is None and kim.score == kim.train_score
    locatello = metrics.factor_vae_score(noise(), SIZES, "locatello2019")
    assert int(locatello.votes.sum()) == 10_000
    assert locatello.score == locatello.eval_score != locatello.train_score
    exhaustive = metrics.factor_vae_score(noise(), SIZES, "exhaustive")
    assert exhaustive.votes.sum(0).tolist() == list(SIZES)


def test_noise_scores_chance():
    # The code is independent of the factors, so each evaluation vote's factor is a fair draw of K
    # given its winner only if no dimension happens to vary with a factor; on 92,160 rows that
    # chance structure is far below the slack. Binomial bound (Hoeffding): P(error > t) <=
    # 2 exp(-2 n t^2) with n = 5,000, t = 0.04 is 2.3e-7.
    sizes = (8, 10, 24, 48)
    result = metrics.factor_vae_score(noise(3, 6, sizes), sizes, "locatello2019")
    assert abs(result.score - 1 / len(sizes)) < 0.04
    # The 800 votes of kim2018 train and score. Each of the 4^6 classifiers exceeds 1/4 by t with
    # probability <= exp(-2 * 800 * t^2), so P(the best exceeds 1/4 + 0.125) <= 4096 * 1.4e-11.
    result = metrics.factor_vae_score(noise(3, 6, sizes), sizes)
    assert 0.25 <= result.score < 0.375


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_rotated_perfect_code_scores_less(protocol):
    # Each dimension is the sum of all factors with some signs: fixing one tells nothing.
    v = classes()
    v = (v - v.mean(0)) / v.std(0)
    signs = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]])
    assert metrics.factor_vae_score(v @ signs, SIZES, protocol).score < 0.4


def slow_votes(codes, sizes, count, samples, balanced, scale, active, seed, lane):
    rng = Philox(seed)
    factor, index = vote_samples(sizes, count, samples, balanced, rng.seed, rng.step, lane)
    votes = np.zeros((codes.shape[1], len(sizes)), int)
    for k, rows in zip(factor.tolist(), index.numpy(), strict=True):
        best, winner = math.inf, None
        for j in range(codes.shape[1]):
            if not active[j]:
                continue
            x = codes[rows, j]
            ratio = ((x - x.mean()) ** 2).sum() / (len(x) - 1) / scale[j]
            if ratio < best:
                best, winner = ratio, j
        votes[winner, k] += 1
    return votes


def slow_accuracy(train, scored):
    right = sum(
        scored[j][max(range(K), key=lambda k: (train[j][k], -k))] for j in range(len(train))
    )
    return right / scored.sum()


@pytest.mark.parametrize("seed", [0, 7])
def test_kim_votes_equal_a_slow_loop(seed):
    codes = noise(seed) * [1, 100, 1e-3, 1, 2, 3] + classes()[:, [0, 1, 2, 3, 0, 1]]
    kl = [1, 1, 1, 0.05, 0.1, 1]
    result = metrics.factor_vae_score(codes, SIZES, seed=seed, kl=kl)
    active = [True, True, True, False, True, True]
    assert result.active.tolist() == active
    votes = slow_votes(codes, SIZES, 800, 100, True, codes.var(0), active, seed, 0)
    assert result.votes.tolist() == votes.tolist()
    assert result.score == slow_accuracy(votes, votes)


def test_locatello_votes_equal_a_slow_loop():
    codes = noise(4) * [1, 0.04, 0.06, 1, 2, 3]
    scale = codes.var(0, ddof=1)
    active = np.sqrt(scale) >= 0.05
    assert active.tolist() == [True, False, True, True, True, True]
    result = metrics.factor_vae_score(codes, SIZES, "locatello2019", seed=2)
    train = slow_votes(codes, SIZES, 10_000, 64, False, scale, active, 2, 0)
    scored = slow_votes(codes, SIZES, 5_000, 64, False, scale, active, 2, 1)
    assert result.active.tolist() == active.tolist()
    assert result.votes.tolist() == train.tolist()
    assert result.train_score == slow_accuracy(train, train)
    assert result.eval_score == slow_accuracy(train, scored)


def test_exhaustive_equals_brute_force():
    codes = noise(5) + 0.3 * classes()[:, [0, 1, 2, 3, 0, 1]]
    v = classes()
    votes = np.zeros((6, K), int)
    for k, n in enumerate(SIZES):
        for value in range(n):
            votes[(codes[v[:, k] == value].var(0) / codes.var(0)).argmin(), k] += 1
    score = sum(votes[j, votes[j].argmax()] / SIZES[votes[j].argmax()] for j in range(6)) / K
    for seed in (0, 1):
        result = metrics.factor_vae_score(codes, SIZES, "exhaustive", seed)
        assert result.votes.tolist() == votes.tolist()
        assert result.score == pytest.approx(score, rel=1e-14)


def test_exhaustive_weighs_factors_equally():
    # All votes of both factors go to one dimension: it can be right for one factor only.
    v = classes((2, 30))
    result = metrics.factor_vae_score(
        np.stack((v[:, 0] * 1.0, np.zeros(60)), 1), (2, 30), "exhaustive"
    )
    assert result.votes.tolist() == [[2, 30], [0, 0]]
    assert result.score == 0.5


def test_ties_go_to_the_lowest_dimension():
    v = classes().astype(float)
    twice = np.concatenate((v, v), axis=1)
    for protocol in PROTOCOLS:
        votes = metrics.factor_vae_score(twice, SIZES, protocol).votes
        assert votes[:K].sum() > 0 and votes[K:].sum() == 0


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("value", [0.0, 0.1, -1e6])
def test_all_collapsed_scores_zero_and_says_so(protocol, value):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = metrics.factor_vae_score(np.full((N, 3), value), SIZES, protocol)
    assert result.score == 0.0 and result.note == "no active dimension"
    assert result.votes.tolist() == [[0] * K] * 3
    assert not result.active.any()


@pytest.mark.parametrize("protocol", ["kim2018", "exhaustive"])
def test_kl_prunes(protocol):
    kl = torch.tensor([0.099, 5, 0.1, 0.0, 2.0, 2.0])
    result = metrics.factor_vae_score(perfect(), SIZES, protocol, kl=kl)
    assert result.active.tolist() == [False, False, True, False, True, True]
    assert metrics.factor_vae_score(perfect(), SIZES, protocol, kl=[0.0] * 6).note


def test_locatello_reads_no_kl():
    plain = metrics.factor_vae_score(perfect(), SIZES, "locatello2019")
    pruned = metrics.factor_vae_score(perfect(), SIZES, "locatello2019", kl=[0.0] * 6)
    assert plain.active.equal(pruned.active) and plain.score == pruned.score


@given(
    seed=st.integers(0, 2**64 - 1),
    protocol=st.sampled_from(["kim2018", "exhaustive"]),
    powers=st.lists(st.integers(-40, 40), min_size=4, max_size=4),
    signs=st.lists(st.sampled_from([-1.0, 1.0]), min_size=4, max_size=4),
    shifts=st.lists(st.floats(-1e3, 1e3), min_size=4, max_size=4),
)
def test_unit_and_offset_of_a_dimension_do_not_matter(seed, protocol, powers, signs, shifts):
    codes = noise(11, 4) + classes() / 4
    scaled = (codes + np.array(shifts)) * np.array(signs) * np.exp2(powers)
    before = metrics.factor_vae_score(codes, SIZES, protocol, seed)
    after = metrics.factor_vae_score(scaled, SIZES, protocol, seed)
    assert before.votes.equal(after.votes) and before.score == after.score


def test_seed_decides_everything():
    first, again, other = (metrics.factor_vae_score(noise(), SIZES, seed=s) for s in (5, 5, 6))
    assert first.votes.equal(again.votes)
    assert not first.votes.equal(other.votes)
    assert metrics.factor_vae_score(noise(), SIZES, seed=np.int64(5)).votes.equal(first.votes)


def test_only_needed_rows_are_read():
    sizes = (6, 12, 20, 40)
    codes = noise(1, 3, sizes).astype(np.float32)
    rows = metrics.needed(sizes, ["factor_vae"], "kim2018", 3)
    assert len(rows) < len(codes)
    poisoned = np.full_like(codes, np.nan)
    poisoned[rows] = codes[rows]
    whole = metrics.factor_vae_score(codes, sizes, seed=3)
    part = metrics.factor_vae_score(poisoned, sizes, seed=3)
    assert whole.votes.equal(part.votes) and whole.score == part.score
    poisoned[rows[17]] = np.inf
    with pytest.raises(UserError, match=f"codes: row {rows[17]} is .*inf.*expected finite"):
        metrics.factor_vae_score(poisoned, sizes, seed=3)


def test_inputs_come_in_any_memory_layout():
    codes = noise()
    expected = metrics.factor_vae_score(codes, SIZES).votes
    frozen = codes.copy()
    frozen.setflags(write=False)
    variants = (
        np.asfortranarray(codes),
        codes[::-1].copy()[::-1],
        codes.astype(">f8"),
        codes.astype(np.longdouble),
        frozen,
        torch.tensor(codes, requires_grad=True),
        torch.tensor(codes).T.contiguous().T,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for variant in variants:
            assert metrics.factor_vae_score(variant, SIZES).votes.equal(expected)


@pytest.mark.parametrize(
    ("codes", "sizes", "options", "message"),
    [
        (np.zeros((N, 2), int), SIZES, {}, r"codes: got int64, expected floating point"),
        (torch.zeros(N, 2, dtype=torch.bool), SIZES, {}, r"codes: got torch.bool, expected float"),
        (np.zeros(N), SIZES, {}, r"codes: got shape \[480\], expected \[N, d\]"),
        (np.zeros((N, 0)), SIZES, {}, r"codes: got shape \[480, 0\], expected .* at least 1"),
        (np.zeros((N + 1, 2)), SIZES, {}, r"codes: got 481 rows, expected 480, .*\[3, 4, 5, 8\]"),
        (np.full((N, 2), np.nan), SIZES, {}, r"codes: row 0 is \[nan, nan\], expected finite"),
        (noise(), (1, *SIZES), {}, r"factor_sizes: got \[1, 3, 4, 5, 8\], .* at least 2 values"),
        (noise(), (), {}, r"factor_sizes: got \[\], expected at least one factor"),
        (noise(), (3.0, 160), {}, r"factor_sizes: got \(3.0, 160\), expected whole numbers"),
        (noise(), 480, {}, r"factor_sizes: got 480, expected whole numbers"),
        (noise(), SIZES, {"protocol": "kim"}, r"protocol: got 'kim', .*kim2018, locatello2019, ex"),
        (noise(), SIZES, {"protocol": None}, r"protocol: got None, but factor_vae has kim2018"),
        (noise(), SIZES, {"seed": 1.5}, r"seed: got 1.5, expected a whole number"),
        (noise(), SIZES, {"kl": [1.0]}, r"kl: got \[1.0\], expected 6 finite numbers"),
        (noise(), SIZES, {"kl": [1, 2, 3, 4, 5, np.nan]}, r"kl: got .*nan.*, expected 6 finite"),
        (noise(), SIZES, {"kl": "high"}, r"kl: got 'high', expected 6 numbers"),
    ],
)
def test_bad_input_is_named(codes, sizes, options, message):
    with pytest.raises(UserError, match=message) as caught:
        metrics.factor_vae_score(codes, sizes, **options)
    assert "\n" not in str(caught.value)


def test_scale_draws_are_other_draws_than_samples():
    rng = Philox(0)
    draws = [sampling.uniform_rows((50, 60), 100, rng.at_lane(lane)) for lane in range(3)]
    assert not draws[0].equal(draws[1]) and not draws[1].equal(draws[2])
    assert sampling.scale_rows(SIZES, 10_000, rng).tolist() == list(range(N))
    assert len(sampling.scale_rows((200, 60), 10_000, rng)) == 10_000
