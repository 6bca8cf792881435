import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shared import needs_extension

from fvae import Philox, ops, philox
from fvae.philox import Stream

# Published known-answer vectors of Philox4x32-10 (Random123, kat_vectors): counter, key, result.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip

WORD = st.integers(0, 2**32 - 1)


def _tensor(text):
    return torch.tensor([int(word, 16) for word in text.split()])


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_known_answers(counter, key, answer):
    assert torch.equal(philox.philox4x32(_tensor(counter), _tensor(key)), _tensor(answer))


def _plain_philox(counter, key):
    """The algorithm in Python integers, as the paper states it."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        low = 2**32 - 1
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & low, (p0 >> 32) ^ c[3] ^ k[1], p0 & low]
        k = [(k[0] + 0x9E3779B9) & low, (k[1] + 0xBB67AE85) & low]
    return c


@given(st.tuples(WORD, WORD, WORD, WORD), st.tuples(WORD, WORD))
def test_equals_the_algorithm_in_plain_integers(counter, key):
    got = philox.philox4x32(torch.tensor(counter), torch.tensor(key))
    assert got.tolist() == _plain_philox(counter, key)


@given(st.integers(-(2**63), 2**64 - 1), st.integers(0, 2**40), st.integers(0, 2**24 - 1))
def test_counter_and_key_layout(seed, step, lane):
    rng = Philox(seed, step).at_lane(lane)
    stream = 256 * rng.lane + Stream.NOISE
    words = philox.words(rng.seed, rng.step, stream, 6)
    key = (seed % 2**32, seed % 2**64 >> 32)
    expected = []
    for index in range(2):
        expected += _plain_philox((index, stream, step % 2**32, step >> 32), key)
    assert words.tolist() == expected[:6]


def test_several_keys_draw_what_each_draws_alone():
    together = Philox([3, 9, -1])
    words = philox.words(together.seed, together.step, 1, 10)
    for row, seed in zip(words, [3, 9, -1], strict=True):
        alone = Philox(seed)
        assert torch.equal(row, philox.words(alone.seed, alone.step, 1, 10))


def test_advance_is_seen_by_every_lane():
    rng = Philox(0)
    other = rng.at_lane(5)
    rng.advance()
    assert other.step.item() == 1


def test_without_a_key_the_global_generator_governs():
    torch.manual_seed(1)
    first = Philox.from_torch()
    second = Philox.from_torch()
    torch.manual_seed(1)
    again = Philox.from_torch()
    assert first.seed.item() == again.seed.item() != second.seed.item()


@given(WORD, st.integers(1, 2**31))
def test_bounded_is_in_range(word, bound):
    assert 0 <= philox.bounded(torch.tensor(word), bound).item() < bound


def test_normal_of_the_extreme_words():
    low, high = 0, 2**32 - 1
    values = philox.normal(torch.tensor([low, low, high, low, low, high, high, high]))
    assert values.isfinite().all()
    assert values.abs().max() == pytest.approx(5.768, abs=1e-3)


def test_normal_moments():
    # Mean and variance of 4e5 normals stray by 5.5 standard errors with probability 8e-8.
    n = 400_000
    rng = Philox(11)
    z = philox.normal(philox.words(rng.seed, rng.step, Stream.NOISE, n)).double()
    assert abs(z.mean()) < 5.5 / n**0.5
    assert abs(z.var() - 1) < 5.5 * (2 / n) ** 0.5
    assert abs((z**4).mean() - 3) < 5.5 * (96 / n) ** 0.5
    # Both numbers of a Box-Muller pair are independent.
    assert abs((z[0::2] * z[1::2]).mean()) < 5.5 / (n / 2) ** 0.5


def test_bad_arguments():
    with pytest.raises(ValueError, match="step: got -1"):
        Philox(0, step=-1)
    with pytest.raises(ValueError, match="lane: got -1"):
        Philox(0).at_lane(-1)


@needs_extension
@given(
    seeds=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=3),
    step=st.integers(0, 2**63 - 1),
    stream=st.integers(0, 2**32 - 1),
    index=st.lists(st.integers(0, 2**32 - 1), max_size=9),
)
def test_the_extension_s_words_are_the_same(seeds, step, stream, index):
    index = torch.tensor(index, dtype=torch.int64)
    for seed in (torch.tensor(seeds), torch.tensor(seeds[0])):
        key = (seed, torch.tensor(step), stream, index)
        found, expected = ops.BACKENDS["cpp"]["philox_words"](*key), philox.words_of_tensors(*key)
        assert torch.equal(found, expected) and found.dtype == expected.dtype
        assert torch.equal(philox.words_at(*key), expected)
