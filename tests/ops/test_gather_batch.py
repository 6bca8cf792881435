from types import SimpleNamespace

import pytest
import torch
from torch.library import opcheck

from fvae import Philox, ops, philox


def _store(binary, images=37, shape=(3, 8, 8)):
    pixels = shape[0] * shape[1] * shape[2]
    width = -(-pixels // 8) if binary else pixels
    data = torch.randint(0, 256, (images, width), dtype=torch.uint8)
    return SimpleNamespace(data=data, binary=binary, image_shape=shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("batch", [1, 7, 65])
def test_images_are_those_of_the_indices(binary, batch, dtype):
    store = _store(binary)
    x, indices = ops.gather_batch(store, batch, Philox(4), dtype=dtype, return_indices=True)
    rng = Philox(4)
    words = philox.words(rng.seed, rng.step, philox.Stream.BATCH, batch)
    assert indices.tolist() == [int(w) * 37 >> 32 for w in words]
    rows = store.data[indices]
    if binary:
        bits = [[byte >> b & 1 for byte in row for b in range(8)] for row in rows.tolist()]
        expected = torch.tensor(bits).view(batch, 3, 8, 8).to(dtype)
    else:
        expected = (rows.float() / 255).view(batch, 3, 8, 8).to(dtype)
    torch.testing.assert_close(x, expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-6, atol=0)
    assert x.dtype == dtype


@pytest.mark.parametrize("shape", [(1, 5, 5), (3, 5, 5), (1, 28, 28)])
def test_rows_of_any_length(shape):
    for binary in (True, False):
        store = _store(binary, shape=shape)
        x, indices = ops.gather_batch(store, 9, Philox(4), return_indices=True)
        rows = store.data[indices]
        if binary:
            rows = torch.stack([(rows >> b) & 1 for b in range(8)], -1).flatten(1)
            rows = rows[:, : x[0].numel()]
        assert torch.equal(x, (rows.float() * (1 if binary else 1 / 255)).view(9, *shape))


def test_indices_are_uniform():
    # 37 cells, 1e5 draws: 36 degrees of freedom, beyond 112 with probability 8e-10.
    _, indices = ops.gather_batch(_store(True), 100_000, Philox(0), return_indices=True)
    counts = torch.bincount(indices, minlength=37)
    assert ((counts - 1e5 / 37) ** 2 / (1e5 / 37)).sum() < 112


def test_several_keys():
    store = _store(False)
    together = ops.gather_batch(store, 5, Philox([1, 2]))
    assert together.shape == (2, 5, 3, 8, 8)
    assert torch.equal(together[1], ops.gather_batch(store, 5, Philox(2)))


def test_opcheck():
    store, rng = _store(True), Philox(1)
    args = (store.data, [3, 8, 8], True, 5, rng.seed, rng.step, 0, torch.float32)
    opcheck(torch.ops.fvae.gather_batch.default, args)


def test_bad_input():
    with pytest.raises(ValueError, match="batch_size: got 0"):
        ops.gather_batch(_store(True), 0, Philox(0))
    for binary, expected in ((True, 24), (False, 192)):
        store = _store(binary)
        store.data = store.data[:, 1:]
        with pytest.raises(ValueError, match=rf"rows of .* bytes, expected {expected} for images"):
            ops.gather_batch(store, 3, Philox(0))
    empty = SimpleNamespace(data=torch.empty(0, 8, dtype=torch.uint8), binary=True, image_shape=())
    with pytest.raises(ValueError, match="store.data"):
        ops.gather_batch(empty, 3, Philox(0))
