"""One training step: the textbook beside ours, after a check that they compute the same."""

import pytest
import torch

from bench.baseline import Textbook
from bench.step import compare, trainer
from fvae import data
from fvae.device import has_fast_bf16


@pytest.fixture(scope="module")
def store():
    return data.load("dsprites")


@pytest.fixture(scope="module")
def checked(store):
    assert max(compare(store).values()) < 1e-5


def test_textbook(benchmark, store):
    textbook = Textbook()
    first, second = store.images(torch.arange(0, 128_000, 1000)).float().split(64)
    benchmark(textbook.step, first, second)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_ours(benchmark, store, checked, precision):
    if precision == "bf16" and not has_fast_bf16(torch.device("cpu")):
        pytest.skip("bf16 is no faster here")
    benchmark(trainer(store, precision).step)
