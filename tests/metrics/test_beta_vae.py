"""The beta-VAE metric, its draws, and the rows that the metrics need."""

import math
import warnings

import pytest
import torch

from fvae import metrics, philox
from fvae.errors import UserError
from fvae.metrics.factors import classes_of
from fvae.metrics.protocols import BETA_VAE
from fvae.ops.reference import pair_chunks
from fvae.philox import Philox, Stream

SIZES = (3, 4, 5, 8)
N = math.prod(SIZES)
K = len(SIZES)


def perfect(sizes=SIZES):
    v = classes_of(torch.arange(math.prod(sizes)), sizes).double() / torch.tensor(sizes)
    return torch.cat((torch.exp(v.flip(1)), torch.full((len(v), 1), 0.1)), dim=1)


def noise(sizes=SIZES, dims=6):
    return torch.randn(math.prod(sizes), dims, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("protocol", ["kim2018", "locatello2019"])
def test_perfect_code_scores_one(protocol):
    result = metrics.beta_vae_score(perfect(), SIZES, protocol)
    assert result.score > 0.999 and result.train_score > 0.999
    assert result.protocol.name == protocol


def test_noise_scores_chance():
    sizes = (8, 10, 24, 48)
    # Hoeffding on 5,000 points that the classifier has not seen: P(error > 0.04) <= 2.3e-7.
    result = metrics.beta_vae_score(noise(sizes), sizes, "locatello2019")
    assert abs(result.score - 1 / K) < 0.04
    # kim2018 scores its own 800 training points with d + 1 = 7 weights a class: an optimist.
    assert metrics.beta_vae_score(noise(sizes), sizes).score < 0.45


def test_collapsed_codes_warn_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for protocol in BETA_VAE:
            result = metrics.beta_vae_score(torch.zeros(N, 3), SIZES, protocol)
            assert 0.2 < result.score < 0.3


def test_pairs_are_the_words_that_the_docstring_names():
    rng = Philox(9).at_lane(1)
    stride = [math.prod(SIZES[k + 1 :]) for k in range(K)]
    for balanced in (True, False):
        ((factor, rows),) = pair_chunks(SIZES, 10, 7, balanced, rng.seed, rng.step, rng.lane)
        index = torch.arange(80)
        word = philox.words_at(rng.seed, rng.step, 256 + Stream.PAIRS, index).view(10, 8, 4)
        for p in range(10):
            k = p % K if balanced else int(word[p, 0, 0]) * K >> 32
            assert int(factor[p]) == k
            for pair in range(7):
                value, first, second = word[p, 1 + pair, :3].tolist()
                value = value * SIZES[k] >> 32
                same = [i for i in range(N) if i // stride[k] % SIZES[k] == value]
                expected = [same[w * len(same) >> 32] for w in (first, second)]
                assert rows[p, pair].tolist() == expected


def test_pairs_share_their_factor_and_nothing_else():
    sizes = (20, 30, 40)
    rng = Philox(0)
    for factor, rows in pair_chunks(sizes, 300, 40, False, rng.seed, rng.step, 0):
        v = classes_of(rows, sizes)
        same = v[:, :, 0] == v[:, :, 1]
        assert same.gather(2, factor[:, None, None].expand(-1, 40, 1)).all()
        # Other factors agree by chance alone, 1 / n: far below a tenth.
        assert same.double().mean() < 1 / 3 + 0.1
        assert len(v[0, :, 0, factor[0]].unique()) > 1  # each pair draws its own value


def test_one_factor_is_always_told():
    assert metrics.beta_vae_score(noise((60,)), (60,)).score == 1.0


def test_seed_decides_everything():
    scores = [metrics.beta_vae_score(noise(), SIZES, seed=s).score for s in (1, 1, 2, 3, 4)]
    assert scores[0] == scores[1]
    assert len(set(scores)) > 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "exhaustive"}, "protocol: got 'exhaustive', but beta_vae has kim2018, loc"),
        ({"codes": torch.zeros(7, 2)}, "codes: got 7 rows, expected 480"),
        ({"codes": torch.full((N, 2), torch.inf)}, "codes: row 0 is .inf, inf., expected finite"),
        ({"factor_sizes": (480, 1)}, r"factor_sizes: got \[480, 1\], expected"),
        ({"seed": "x"}, "seed: got 'x', expected a whole number"),
    ],
)
def test_bad_input_is_named(options, message):
    with pytest.raises(UserError, match=message):
        metrics.beta_vae_score(**{"codes": noise(), "factor_sizes": SIZES, **options})


# --- needed ---------------------------------------------------------------------------------

SCORES = {
    "beta_vae": metrics.beta_vae_score,
    "mig": metrics.mig_score,
    "sap": metrics.sap_score,
    "dci": metrics.dci_score,
}
WIDE = (8, 40, 40, 40)


@pytest.mark.parametrize("name", SCORES)
def test_only_needed_rows_are_read(name):
    codes = noise(WIDE, 2)
    rows = metrics.needed(WIDE, [name], "kim2018", 2)
    assert len(rows) < len(codes)
    poisoned = torch.full_like(codes, torch.nan)
    poisoned[rows] = codes[rows]
    assert SCORES[name](poisoned, WIDE, seed=2).score == SCORES[name](codes, WIDE, seed=2).score
    poisoned[rows[0]] = torch.inf
    with pytest.raises(UserError, match=f"codes: row {rows[0]} is"):
        SCORES[name](poisoned, WIDE, seed=2)


def test_needed_is_the_sorted_union():
    each = [metrics.needed(WIDE, [name], "kim2018", 2) for name in metrics.METRICS]
    union = metrics.needed(WIDE, seed=2)
    assert union.dtype == torch.int64
    assert union.equal(torch.cat(each).unique())
    assert not union.equal(metrics.needed(WIDE, seed=3))
    assert metrics.needed(WIDE, "mig", seed=2).equal(each[2])
    assert len(metrics.needed(WIDE, [])) == 0


def test_exhaustive_needs_every_row():
    assert metrics.needed(SIZES, ["factor_vae"], "exhaustive").tolist() == list(range(N))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((SIZES, ["fid"]), "metrics: got 'fid', expected one of factor_vae, beta_vae"),
        ((SIZES, ["beta_vae"], "exhaustive"), "protocol: got 'exhaustive', but beta_vae has"),
        (((1,), ["mig"]), "factor_sizes: got"),
    ],
)
def test_needed_names_bad_input(arguments, message):
    with pytest.raises(UserError, match=message):
        metrics.needed(*arguments)
