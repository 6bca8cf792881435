"""The promise behind the benchmark: ours and the textbook compute the same."""

import pytest

from bench import registry, step, votes
from fvae import ops


def test_losses_and_gradients_are_those_of_the_textbook(dsprites):
    errors = step.compare(dsprites)
    assert {"recon", "kl", "tc", "disc_loss"} < errors.keys()
    assert len(errors) > 30
    worst = max(errors, key=errors.get)
    assert errors[worst] < 1e-5, worst


def test_every_op_is_in_the_registry():
    found = registry.cases(batches=(2,), image_batches=(2,))
    assert {case.op for case in found} == set(ops.OPS)
    for case in found:
        assert case.bytes > 0


def test_an_op_without_its_backend_is_not_timed_against_itself(monkeypatch, capsys):
    monkeypatch.delitem(ops.BACKENDS, "cpp", raising=False)
    monkeypatch.setattr(ops, "EXTENSION_ERROR", "the compiler failed (x.cpp:1: error: y)")
    assert registry.backend("metric_votes", "cpu") == "reference"
    with pytest.raises(SystemExit) as exit:
        votes.main([])
    assert exit.value.code == 2
    assert capsys.readouterr().err == (
        "bench.votes: metric_votes on cpu: the reference would be timed against itself: the"
        " extension's cpu part is not built: the compiler failed (x.cpp:1: error: y)\n"
    )


def test_an_op_that_has_only_the_reference_is_told_apart_from_one_that_lacks_its_backend(
    monkeypatch,
):
    monkeypatch.setitem(ops.BACKENDS, "cpp", {"metric_votes": None})
    assert registry.backend("metric_votes", "cpu") == "cpp"
    assert registry.why_not_compared("metric_votes", "cpu") is None
    assert "nothing to compare" in registry.why_not_compared("gather_batch", "cpu")
    monkeypatch.delitem(ops.BACKENDS, "triton", raising=False)
    monkeypatch.delitem(ops.BACKENDS, "cuda", raising=False)
    monkeypatch.setattr(ops, "CUDA_EXTENSION_ERROR", "no nvcc")
    assert registry.why_not_compared("gather_batch", "cuda").endswith("itself: no triton")
    assert registry.why_not_compared("metric_votes", "cuda").endswith(
        "cuda part is not built: no nvcc"
    )
