"""Draws by weight: the table's exact probabilities, and what gather_batch draws with it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from small import layers
from torch.library import opcheck

from fvae import Philox, ops, philox


def shares(table):
    """How many of the N 2**32 pairs of words give each row."""
    keep, alias = (t.numpy() for t in (table >> 31, table & (2**31 - 1)))
    rows = np.arange(len(table))
    found = np.where(alias == rows, 2**32, keep)
    np.add.at(found, alias, 2**32 - found)
    return found


WEIGHTS = st.lists(
    st.one_of(st.just(0.0), st.floats(0, 1e300), st.floats(0, 10), st.integers(0, 3)),
    min_size=1, max_size=40,
).filter(any)  # fmt: skip


@given(WEIGHTS)
def test_probabilities_are_the_weights(weights):
    found, w = shares(ops.alias_table(weights)), np.array(weights, float)
    assert found.sum() == len(w) * 2**32
    assert (found[w == 0] == 0).all()
    expected = w / w.max()
    expected *= len(w) * 2**32 / expected.sum()
    assert np.abs(found - expected).max() <= 2 + len(w) / 2**20


def test_probabilities_of_many_rows():
    w = np.random.default_rng(0).random(700_001) ** 9
    found = shares(ops.alias_table(torch.from_numpy(w)))
    assert found.sum() == len(w) * 2**32
    assert np.abs(found - w / w.sum() * len(w) * 2**32).max() <= 2 + len(w) / 2**20


def test_equal_weights_change_nothing():
    store = _store(37)
    for weights in ([2.5] * 37, torch.ones(37), np.full(37, 1e-300)):
        table = ops.alias_table(weights)
        assert (table & (2**31 - 1)).tolist() == list(range(37))
        drawn = ops.gather_batch(store, 50, Philox(4), table=table)
        assert torch.equal(drawn, ops.gather_batch(store, 50, Philox(4)))


def _store(images):
    data = torch.randint(0, 256, (images, 24), dtype=torch.uint8)
    return SimpleNamespace(data=data, binary=True, image_shape=(3, 8, 8))


def test_two_words_draw_a_row():
    store, weights = _store(9), torch.tensor([0, 0, 5.0, 1, 1, 1e-3, 0, 2, 0])
    table, rng = ops.alias_table(weights), Philox([4, 2**63 + 1], step=3).at_lane(2)
    x, indices = ops.gather_batch(store, 11, rng, table=table, return_indices=True)
    first, second = (
        philox.words(rng.seed, rng.step, stream.at(2), 11)
        for stream in (philox.Stream.BATCH, philox.Stream.ALIAS)
    )
    for m, b in np.ndindex(2, 11):
        entry = int(table[int(first[m, b]) * 9 >> 32])
        stays = int(second[m, b]) < entry >> 31
        expected = int(first[m, b]) * 9 >> 32 if stays else entry & (2**31 - 1)
        assert indices[m, b] == expected
        assert weights[expected] > 0
    rows = (store.data[indices][..., None] >> torch.arange(8)) & 1
    assert torch.equal(x, rows.view(2, 11, 3, 8, 8).float())


def test_images_on_demand():
    store = layers(50)
    table = ops.alias_table(torch.arange(50))
    x, indices = ops.gather_batch(store, 7, Philox(3), table=table, return_indices=True)
    assert torch.equal(x, store.images(indices).float() * (1 / 255))


def test_rows_are_drawn_by_weight():
    weights = torch.rand(60, generator=torch.Generator().manual_seed(1)) + 0.1
    draw, count = ops.alias_table(weights), 200_000
    _, rows = ops.gather_batch(_store(60), count, Philox(7), table=draw, return_indices=True)
    expected = (weights / weights.sum()).double().numpy() * count
    counts = torch.bincount(rows, minlength=60).numpy()
    assert stats.chisquare(counts, expected * count / expected.sum()).pvalue > 1e-7


def test_opcheck():
    store, rng = _store(37), Philox(1)
    args = (store.data, [3, 8, 8], True, 5, rng.seed, rng.step, 0, torch.float32)
    opcheck(torch.ops.fvae.gather_batch.default, (*args, ops.alias_table(torch.rand(37))))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([], r"got shape \[0\], expected \[N\]"),
        ([[1.0]], r"got shape \[1, 1\], expected \[N\]"),
        ([1, -1], "got -1.0 in row 1, expected finite numbers of at least 0"),
        ([1, 2, np.nan], "got nan in row 2"),
        (torch.tensor([np.inf]), "got inf in row 0"),
        ([0, 0.0], "got 0 in all rows"),
    ],
)
def test_weights_that_are_none(weights, message):
    with pytest.raises(ValueError, match=message):
        ops.alias_table(weights)


@pytest.mark.parametrize(
    "table",
    [torch.zeros(36, dtype=torch.int64), torch.zeros(37), torch.zeros(37, 1, dtype=torch.int64),
     torch.zeros(37, dtype=torch.int64, device="meta")],
)  # fmt: skip
def test_tables_that_are_none(table):
    with pytest.raises(ValueError, match=r"table: got .*, expected \[37\] torch.int64 on cpu"):
        ops.gather_batch(_store(37), 3, Philox(0), table=table)
