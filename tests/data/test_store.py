import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fvae.data import Store
from fvae.errors import UserError


def packed_store(images: np.ndarray) -> Store:
    """A binary store of 0/1 images [N, C, H, W], without factors."""
    bits = np.packbits(images.reshape(len(images), -1), axis=1, bitorder="little")
    return Store("bits", torch.from_numpy(bits), images.shape[1:], True)


def grid_store(sizes: tuple[int, ...]) -> Store:
    n = int(np.prod(sizes))
    data = torch.arange(n * 4).reshape(n, 4).to(torch.uint8)
    return Store("grid", data, (1, 2, 2), False, tuple("abcdef"[: len(sizes)]), sizes)


@given(st.integers(0, 2**32 - 1), st.sampled_from([(1, 1, 1), (1, 8, 8), (3, 5, 7), (2, 3, 4)]))
def test_images_of_a_binary_store_are_the_packed_images(seed, shape):
    images = np.random.default_rng(seed).integers(0, 2, (6, *shape), dtype=np.uint8)
    got = packed_store(images).images([5, 0, 0, 3])
    assert got.dtype == torch.uint8
    assert np.array_equal(got, images[[5, 0, 0, 3]])


def test_pixel_p_is_bit_p_mod_8_of_byte_p_div_8():
    store = Store("one bit", torch.tensor([[0, 0b100]], dtype=torch.uint8), (1, 4, 4), True)
    assert store.images([0]).flatten().nonzero().item() == 10


def test_images_of_a_byte_store_are_its_rows():
    store = grid_store((2, 3))
    assert store.images([5]).tolist() == [[[[20, 21], [22, 23]]]]
    assert store.nbytes == 24 and len(store) == 6


@pytest.mark.parametrize(
    "indices",
    [[1, 4], (1, 4), range(1, 5, 3), np.array([1, 4], np.int32), torch.tensor([1, 4])],
    ids=lambda x: type(x).__name__,
)
def test_indices_may_be_any_sequence_of_whole_numbers(indices):
    store = grid_store((2, 3))
    assert store.images(indices).flatten(1)[:, 0].tolist() == [4, 16]
    assert store.factors(indices).tolist() == [[0, 1], [1, 1]]


def test_no_indices_give_no_images():
    assert grid_store((2, 3)).images([]).shape == (0, 1, 2, 2)
    assert packed_store(np.ones((2, 1, 3, 3), np.uint8)).images([]).shape == (0, 1, 3, 3)
    assert grid_store((2, 3)).factors([]).shape == (0, 2)


@pytest.mark.parametrize("bad", [6, -1])
def test_an_index_out_of_range_is_named(bad):
    with pytest.raises(IndexError, match=f"index {bad} is out of range 0..5"):
        grid_store((2, 3)).images([0, bad])


def test_indices_that_are_not_whole_numbers_are_refused():
    for bad in ([0.5], [True]):
        with pytest.raises(UserError, match="whole numbers"):
            grid_store((2, 3)).images(bad)


@given(st.lists(st.integers(1, 7), min_size=1, max_size=5), st.data())
def test_index_inverts_factors(sizes, data):
    store = grid_store(tuple(sizes))
    indices = data.draw(st.lists(st.integers(0, len(store) - 1), min_size=1))
    classes = store.factors(indices)
    assert classes.dtype == torch.int64
    assert ((classes >= 0) & (classes < torch.tensor(sizes))).all()
    assert store.index(classes).tolist() == indices


def test_the_last_factor_varies_fastest():
    classes = grid_store((2, 3)).factors(range(6))
    assert classes.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]


def test_index_refuses_wrong_classes():
    store = grid_store((2, 3))
    with pytest.raises(IndexError, match="class of b 3 is out of range 0..2"):
        store.index([[0, 3]])
    with pytest.raises(UserError, match=r"shape \[1, 3\], expected \[n, 2\]"):
        store.index([[0, 0, 0]])


def test_a_store_without_factors_says_so():
    store = packed_store(np.ones((2, 1, 3, 3), np.uint8))
    for ask in (lambda: store.factors([0]), lambda: store.index([[0]])):
        with pytest.raises(UserError, match="bits has no known factors"):
            ask()


def test_to_moves_the_data_and_nothing_else():
    store = grid_store((2, 3)).to("meta")
    assert store.data.device.type == "meta"
    assert (store.factor_sizes, store.name) == ((2, 3), "grid")


@pytest.mark.parametrize(
    ("data", "factors", "message"),
    [
        (torch.zeros(6, 5, dtype=torch.uint8), ((), ()), r"\[6, 5\].*expected \[N, 4\]"),
        (torch.zeros(6, 4), ((), ()), "torch.float32"),
        (torch.zeros(6, 4, dtype=torch.uint8), (("a",), (5,)), "6 images.*need 5"),
        (torch.zeros(6, 4, dtype=torch.uint8), (("a",), (2, 3)), "1 factor names for 2"),
    ],
)
def test_a_store_that_does_not_fit_together_is_refused(data, factors, message):
    with pytest.raises(UserError, match=message):
        Store("bad", data, (1, 2, 2), False, *factors)


def labelled_store(dtype=torch.int64, **changes) -> Store:
    fields = {
        "factor_sizes": (),
        "factor_names": ("a", "b"),
        "labels": torch.tensor([[4, 1], [4, 1], [-2, 0]], dtype=dtype),
    } | changes
    return Store("labelled", torch.zeros(3, 4, dtype=torch.uint8), (1, 2, 2), False, **fields)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64])
def test_a_set_that_is_no_full_grid_has_labels(dtype):
    store = labelled_store(dtype)
    assert store.factors([2, 0]).tolist() == [[-2, 0], [4, 1]]
    assert store.factors([1]).dtype == dtype and store.factors([]).shape == (0, 2)
    assert torch.equal(store.to("meta").labels, store.labels)  # they stay where they are
    with pytest.raises(IndexError, match="index 3"):
        store.factors([3])
    with pytest.raises(UserError, match="no full grid"):
        store.index([[4, 1]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factor_sizes": (3, 1)}, "factor sizes and labels"),
        ({"factor_names": ("a",)}, r"labels are \[3, 2\].*expected \[3, 1\]"),
        ({"labels": torch.zeros(2, 2).long()}, r"labels are \[2, 2\]"),
        ({"labels": torch.zeros(3, 2)}, "float32"),
        ({"labels": torch.full((3, 2), torch.nan).double()}, "finite"),
        ({"labels": torch.zeros(3, 2, dtype=torch.int64, device="meta")}, "CPU"),
    ],
)
def test_labels_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        labelled_store(**changes)
