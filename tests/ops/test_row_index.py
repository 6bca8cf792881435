"""Labels in place of a grid: the index itself, and the metrics' ops with one."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shared import (
    CODE_DTYPES,
    HOST_BACKENDS,
    SIZES,
    assert_close,
    drawn_classes,
    grid_classes,
    grid_index,
    needs_extension,
    threads,
)
from torch.library import opcheck

from fvae import Philox, ops
from fvae.ops import RowIndex, drawing, reference

each_backend = pytest.mark.parametrize("backend", HOST_BACKENDS)

# Strategies: labels of anybody's, and codes of them.
LABELS = {
    "rows": st.integers(2, 150),
    "sizes": st.lists(st.integers(2, 200), min_size=1, max_size=4),
    "models": st.integers(1, 3),
    "dims": st.integers(1, 40),
    "dtype": st.sampled_from(CODE_DTYPES),
    "seed": st.integers(0, 2**64 - 1),
}


def _codes(rows, models, dims, dtype, seed):
    generator = torch.Generator().manual_seed(seed % 2**63)
    return torch.randn(models, rows, dims, generator=generator).to(dtype)


def _all(codes, sizes, backend, balanced=False, votes=60, samples=9, seed=3):
    """Votes, features, factors and variances."""
    scale = codes.float().var(-2)
    rng = Philox(seed, step=2).at_lane(1)
    given = dict(rng=rng, balanced=balanced, backend=backend)
    return (
        ops.metric_votes(
            codes, sizes, votes=votes, samples=samples, scale=scale,
            active=torch.ones_like(scale, dtype=torch.bool), **given,
        ),
        *ops.pair_features(codes, sizes, points=votes, pairs=samples, **given),
        ops.grouped_variance(codes, sizes, backend),
    )  # fmt: skip


# --- the index ------------------------------------------------------------------------------------


@given(LABELS["rows"], LABELS["sizes"], LABELS["seed"])
def test_lists_of_an_index(rows, sizes, seed):
    classes = drawn_classes(rows, sizes, seed)
    index = RowIndex.of(classes)
    assert len(index) == rows
    assert index.sizes == tuple((classes.amax(0) + 1).tolist())
    group = 0
    for k, size in enumerate(index.sizes):
        for value in range(size):
            begin, end = index.offsets[group : group + 2].tolist()
            expected = (classes[:, k] == value).nonzero().flatten()
            assert index.rows[begin:end].tolist() == expected.tolist()
            assert index.counts[group] == len(expected)
            group += 1
    assert index.offsets[-1] == len(index.rows) == rows * len(sizes)


def _readonly(classes):
    classes.flags.writeable = False
    return classes


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "given",
    [
        *(lambda c, d=d: c.to(d) for d in (torch.bool, torch.uint8, torch.int16, torch.uint16)),
        *(lambda c, d=d: c.numpy().astype(d) for d in ("u1", "<i4", ">i4", "u8", "bool")),
        lambda c: _readonly(c.numpy()),
        lambda c: np.asfortranarray(c.numpy()),
        lambda c: c.flip(0).numpy()[::-1],
        lambda c: c.repeat_interleave(2, dim=1)[:, ::2],
        lambda c: c.tolist(),
    ],
)
def test_integers_of_any_kind(given):
    classes = drawn_classes(20, [2, 2], 0)
    expected, got = RowIndex.of(classes), RowIndex.of(given(classes))
    assert got.sizes == expected.sizes
    assert torch.equal(got.rows, expected.rows)
    assert torch.equal(got.offsets, expected.offsets)
    assert (got.rows.dtype, got.offsets.dtype) == (torch.int32, torch.int64)


def test_an_index_is_where_the_labels_are():
    labels = drawn_classes(20, [2, 2], 0).numpy()
    with torch.device("meta"):
        assert RowIndex.of(labels).device == torch.device("cpu")


def test_an_index_moves():
    index = RowIndex.of(drawn_classes(20, [2, 5], 0))
    assert index.to("cpu") is index
    assert index.to(torch.device("cpu")).device == torch.device("cpu")


@pytest.mark.parametrize(
    ("classes", "error", "message"),
    [
        (np.array([["a"]], dtype=object), TypeError, "object"),
        (np.zeros((5, 1), dtype=np.float16), TypeError, "classes: got torch.float16"),
        (torch.rand(5, 2), TypeError, "classes: got torch.float32, expected integers"),
        (torch.zeros(5, dtype=torch.int64), ValueError, r"classes: got shape \[5\], expected \[N"),
        (torch.zeros(0, 2, dtype=torch.int64), ValueError, r"classes: got shape \[0, 2\]"),
        (torch.zeros(5, 0, dtype=torch.int64), ValueError, r"classes: got shape \[5, 0\]"),
        (torch.tensor([[0, 0], [1, -1]]), ValueError, "factor 1 has values from -1 to 0 in 2 rows"),
        (torch.tensor([[0, 0], [1, 2**40]]), ValueError, "factor 1 has values from 0 to 1099511"),
        (torch.tensor([[0], [2], [2]]), ValueError, "value 1 of factor 0 does not occur, though 2"),
        (torch.tensor([[1], [1]]), ValueError, "value 0 of factor 0 does not occur"),
    ],
)
def test_labels_that_have_no_index(classes, error, message):
    with pytest.raises(error, match=message):
        RowIndex.of(classes)


_OFFSETS, _ROWS = torch.tensor([0, 1, 3]), torch.tensor([0, 1, 2], dtype=torch.int32)


@pytest.mark.parametrize(
    ("sizes", "offsets", "rows", "error", "message"),
    [
        ((2,), _OFFSETS.int(), _ROWS, TypeError, "offsets: got torch.int32"),
        ((2,), _OFFSETS, _ROWS.long(), TypeError, "rows: got torch.int64"),
        ((2,), _OFFSETS, _ROWS[None], TypeError, r"rows: got torch.int32 \[1, 3\]"),
        ((), _OFFSETS, _ROWS, ValueError, r"sizes: got \(\)"),
        ((2, 0), _OFFSETS, _ROWS, ValueError, r"sizes: got \(2, 0\)"),
        ((1, 1), _OFFSETS, _ROWS, ValueError, r"sizes: got \(1, 1\) for 3 rows"),
        ((3,), _OFFSETS, _ROWS, ValueError, "offsets: got 3 on cpu, expected 4"),
        ((2,), torch.tensor([0, 0, 3]), _ROWS, ValueError, "rows: are not the lists"),
        ((2,), torch.tensor([0, 1, 4]), _ROWS, ValueError, "rows: are not the lists"),
        ((2,), torch.tensor([1, 2, 3]), _ROWS, ValueError, "rows: are not the lists"),
        ((2,), _OFFSETS, _ROWS + 1, ValueError, "rows: are not the lists"),
        ((2,), _OFFSETS, _ROWS - 1, ValueError, "rows: are not the lists"),
        ((1, 1), _OFFSETS, torch.arange(4).int(), ValueError, "rows: are not the lists"),
    ],
)
def test_a_made_up_index_is_refused(sizes, offsets, rows, error, message):
    with pytest.raises(error, match=message):
        RowIndex(sizes, offsets, rows)


# --- the ops --------------------------------------------------------------------------------------


@each_backend
@given(
    st.lists(st.integers(2, 7), min_size=1, max_size=4), st.booleans(), st.integers(0, 2**64 - 1),
    st.sampled_from(CODE_DTYPES),
)  # fmt: skip
def test_a_grid_as_labels_is_the_grid_bit_for_bit(backend, sizes, balanced, seed, dtype):
    index = grid_index(sizes)
    codes = _codes(len(index), 2, 5, dtype, seed)
    labelled, grid = (_all(codes, s, backend, balanced, seed=seed) for s in (index, sizes))
    for got, expected in zip(labelled, grid, strict=True):
        assert torch.equal(got, expected)


def test_a_word_draws_the_same_row_of_a_grid_and_of_its_labels():
    # Words at the ends of every value's and row's range.
    sizes, index = SIZES, grid_index(SIZES)
    edges = (torch.arange(1, 60) << 32) // 60
    word = torch.cat([edges - 1, edges, edges + 1, torch.tensor([0, 2**32 - 1])])
    chooser, word = word[:, None], word[None, :]
    for k in range(3):
        factor = torch.tensor(k)
        expected = drawing.drawn_rows(sizes, None, None, factor, chooser, word)
        got = drawing.drawn_rows(sizes, index.offsets, index.rows, factor, chooser, word)
        assert torch.equal(got, expected)


@each_backend
@given(**LABELS)
def test_the_order_of_rows_does_not_matter(backend, rows, sizes, models, dims, dtype, seed):
    # Rows in another order, those of a value in the old one: the same codes are drawn.
    classes, codes = drawn_classes(rows, sizes, seed), _codes(rows, models, dims, dtype, seed)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed % 2**63))
    index = RowIndex.of(classes)
    back = order.argsort()
    moved = RowIndex(index.sizes, index.offsets, back[index.rows.long()].int())
    for got, expected in zip(
        _all(codes[:, order], moved, backend), _all(codes, index, backend), strict=True
    ):
        assert torch.equal(got, expected)


@needs_extension
@settings(derandomize=True)
@given(**LABELS, votes=st.integers(1, 200), samples=st.integers(2, 70), balanced=st.booleans())
def test_extension_agrees_with_the_reference(
    rows, sizes, models, dims, dtype, seed, votes, samples, balanced
):
    index = RowIndex.of(drawn_classes(rows, sizes, seed))
    codes = _codes(rows, models, dims, dtype, seed)
    got, expected = (
        _all(codes, index, backend, balanced, votes, samples, seed)
        for backend in ("cpp", "reference")
    )
    # Rounding decides between variances that are equal but for their last bits, which a list of a
    # few rows and codes of 16 bits make often. The examples are fixed: no rare one fails later.
    moved = votes // 20 + 1 if dtype.itemsize == 2 or rows < 50 else 1
    assert (got[0] - expected[0]).abs().sum() <= 2 * moved
    assert_close(got[1], expected[1], torch.float32)
    assert torch.equal(got[2], expected[2])
    assert_close(got[3], expected[3], torch.float32)


@each_backend
def test_samples_of_a_vote_share_a_value_that_is_drawn_as_often_as_it_occurs(backend):
    # A code that names the value, beside noise: it never varies where its factor is fixed.
    counts = torch.tensor([1, 9, 40, 150])
    labels = torch.arange(4).repeat_interleave(counts)[torch.randperm(200)]
    index = RowIndex.of(torch.stack([labels, torch.arange(200) % 2], dim=1))
    rng = Philox(5)
    factor, rows = reference.vote_samples(
        index.sizes, 8000, 20, True, rng.seed, rng.step, 0, index.offsets, index.rows
    )
    values = labels[rows[factor == 0]]
    assert (values == values[:, :1]).all()
    # chi-squared of 3 degrees of freedom is above 31 in less than one of a million cases.
    expected = counts / 200 * 4000
    assert ((values[:, 0].bincount(minlength=4) - expected) ** 2 / expected).sum() < 31
    # Within a value every row is drawn alike: 149 degrees of freedom, below 250 likewise.
    drawn = rows[factor == 0][values[:, 0] == 3].flatten()
    seen = drawn.bincount(minlength=200)[labels == 3].double()
    assert ((seen - seen.mean()) ** 2 / seen.mean()).sum() < 250
    codes = torch.stack([labels.float(), torch.randn(200)], dim=1)
    votes = ops.metric_votes(
        codes, index, votes=400, samples=20, scale=codes.var(0), rng=rng, balanced=True,
        active=torch.ones(2, dtype=torch.bool), backend=backend,
    )  # fmt: skip
    assert votes[0, 0] == 200


@each_backend
def test_a_value_of_one_row(backend):
    index = RowIndex.of(torch.tensor([[0], [1], [1], [1]]))
    codes = torch.tensor([[5.0], [1.0], [2.0], [3.0]])
    assert ops.grouped_variance(codes, index, backend).tolist() == [[0.0], pytest.approx([2 / 3])]
    features, _ = ops.pair_features(
        codes, index, points=500, pairs=1, rng=Philox(1), backend=backend
    )
    # A pair shares its value: the row of 5 is beside none but itself.
    assert set(features.flatten().tolist()) == {0.0, 1.0, 2.0}


@each_backend
def test_more_factors_and_values_than_a_grid_has(backend):
    # 40 factors of two values, and one of 5,000 of which each has two rows.
    classes = torch.cat(
        [torch.randint(2, (10_000, 40)), torch.randperm(10_000)[:, None] // 2], dim=1
    )
    index = RowIndex.of(classes)
    assert index.sizes == (2,) * 40 + (5000,)
    codes = classes.float()
    variance = ops.grouped_variance(codes, index, backend)
    assert variance.shape == (5080, 41)
    # In the group of a value of factor k, code k is constant.
    of = torch.arange(41).repeat_interleave(torch.tensor(index.sizes))
    assert (variance.gather(1, of[:, None]) == 0).all()
    if backend != "reference":
        expected = _all(codes[:, :7], index, "reference")
        got = _all(codes[:, :7], index, backend)
        assert torch.equal(got[0], expected[0])
        assert_close(got[1], expected[1], torch.float32)


@needs_extension
def test_many_votes_with_any_threads():
    # Codes of more than a cache: the votes are counted group by group.
    index = RowIndex.of(drawn_classes(120_000, [40, 3, 700], 0))
    codes = torch.randn(120_000, 10)
    with threads(1):
        expected = _all(codes, index, "reference", votes=3000, samples=20)
    for count in (1, 3):
        with threads(count):
            got = _all(codes, index, "cpp", votes=3000, samples=20)
        assert torch.equal(got[0], expected[0])
        assert_close(got[3], expected[3], torch.float32)


def test_in_a_full_graph():
    index, codes = RowIndex.of(drawn_classes(30, [3, 4], 0)), torch.randn(30, 4)
    compiled = torch.compile(
        lambda z: _all(z, index, None), fullgraph=True, backend="aot_eager"
    )(codes)  # fmt: skip
    for got, expected in zip(compiled, _all(codes, index, None), strict=True):
        assert torch.equal(got, expected)


def test_opcheck():
    rng, index = Philox(1), RowIndex.of(drawn_classes(30, [3, 4], 0))
    codes, lists = torch.randn(2, 30, 4), (index.offsets, index.rows)
    sizes, key = list(index.sizes), (rng.seed, rng.step, 0)
    scale, active = codes.var(1), torch.ones(2, 4, dtype=torch.bool)
    named = torch.ops.fvae
    opcheck(named.metric_votes.default, (codes, sizes, 20, 5, True, scale, active, *key, *lists))
    opcheck(named.pair_features.default, (codes, sizes, 20, 5, True, *key, *lists))
    opcheck(named.grouped_variance.default, (codes, sizes, *lists))


@each_backend
def test_bad_input(backend):
    index, codes = RowIndex.of(drawn_classes(30, [3, 4], 0)), torch.randn(30, 4)
    with pytest.raises(ValueError, match="codes: got 31 rows, but 30 are labelled"):
        ops.grouped_variance(torch.randn(31, 4), index, backend)
    constant = RowIndex.of(torch.zeros(30, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"factor_sizes: got \[1\], expected at least one"):
        ops.grouped_variance(codes, constant, backend)
    with pytest.raises(ValueError, match=r"the index is on cpu, .* on meta; move it with .to\("):
        ops.grouped_variance(codes.to("meta"), index, backend)
    for labels in (grid_classes(SIZES), np.zeros((30, 2)), [3.0, 4.0], torch.rand(3)):
        with pytest.raises(ValueError, match=r"factor_sizes: expected whole numbers.*RowIndex"):
            ops.grouped_variance(codes, labels, backend)


@needs_extension
def test_raw_op_checks_what_it_is_given():
    index, codes = RowIndex.of(drawn_classes(30, [3, 4], 0)), torch.randn(1, 30, 4)
    sizes, offsets, rows = list(index.sizes), index.offsets, index.rows
    op = torch.ops.fvae.grouped_variance
    for wrong, message in (
        ((sizes, offsets, None), "expected both or none"),
        ((sizes, None, rows), "expected both or none"),
        ((sizes, offsets.int(), rows), "expected int64 and int32"),
        ((sizes, offsets[1:], rows), "one offset more than there are values"),
        ((sizes, offsets, rows[1:]), "one offset more than there are values"),
        ((sizes[:1], offsets, rows), "one offset more than there are values"),
        ((sizes, offsets.flip(0), rows), "offsets: expected to rise from 0"),
        ((sizes, offsets.clamp(max=5), rows), "offsets: expected to rise from 0"),
    ):
        with pytest.raises(RuntimeError, match=message):
            op(codes, *wrong)
