"""Sums over the programs of a launch: their counters, and the same bits however they are split."""

import pytest
import torch
from shared import DEVICE, assert_close

from fvae import Philox, ops
from fvae.kernels import counters, tiles


@pytest.fixture
def take(monkeypatch, counters_of_a_gpu):
    """A function from a stream (None while a graph is recorded) and a count to counters."""
    mine = counters_of_a_gpu(size=8)

    def of(stream, models):
        monkeypatch.setattr(counters, "current_stream", lambda device: stream)
        return mine.take(models)

    return of


def _places(*tensors):
    return [set(range(t.data_ptr(), t.data_ptr() + 4 * len(t), 4)) for t in tensors]


def _apart(*tensors):
    places = _places(*tensors)
    return len(set.union(*places)) == sum(map(len, places))


def test_launches_of_one_stream_share_and_those_of_two_do_not(take):
    first, second = take(1, 3), take(2, 3)
    assert _places(take(1, 3)) == _places(first)
    assert _places(take(1, 2))[0] < _places(first)[0]
    assert _apart(first, second)
    assert len(take(1, 5)) == 5
    assert _places(take(2, 3)) == _places(second)


def test_each_launch_of_a_graph_has_counters_of_its_own(take):
    eager = take(1, 2)
    graphs = [take(None, 3) for _ in range(2)]
    # There are eight: the rest are made in the graph, which then clears them at each replay.
    made = [take(None, 3) for _ in range(2)]
    assert _apart(eager, *graphs, *made, take(None, 2))
    assert all(not t.any() for t in (eager, *graphs, *made))
    assert graphs[1].data_ptr() == graphs[0].data_ptr() + 12


def test_a_graph_recorded_first_leaves_nothing_to_later_launches(take):
    graph = take(None, 2)
    assert _apart(graph, take(1, 2), take(None, 2), take(None, 2))


@pytest.mark.parametrize("keys", [1, 3])
def test_many_programs_sum_to_the_same_bits_each_time(monkeypatch, keys, poisoned_outputs):
    monkeypatch.setattr(tiles, "KL_ELEMENTS", 8)
    monkeypatch.setattr(tiles, "KL_PROGRAMS", 5)
    monkeypatch.setattr(tiles, "PARTIALS", 8)
    monkeypatch.setattr(tiles, "LOGIT_ROWS", 4)
    monkeypatch.setattr(tiles, "NLL_TILE", 64)
    monkeypatch.setattr(tiles, "NLL_PROGRAMS", 5)
    rng = Philox(7 if keys == 1 else range(keys), device=DEVICE)
    mu, logvar = torch.randn(2, 3, 29, 3, device=DEVICE)
    z, perm = torch.randn(2, 3, 29, 2, device=DEVICE)
    logits = torch.randn(3, 7, 1, 8, 12, device=DEVICE)
    for name, *args in (
        ("reparameterize", mu, logvar, rng.seed, rng.step, 0),
        ("logit_ratio", z, perm),
        ("bernoulli_nll", logits, logits > 0),
    ):
        run, reference = (ops.BACKENDS[backend][name] for backend in ("triton", "reference"))
        first, again = run(*args), run(*args)
        assert all(map(torch.equal, first, again))
        assert_close(first, reference(*args), torch.float32)
