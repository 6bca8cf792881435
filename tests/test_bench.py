"""The promise behind the benchmark: ours and the textbook compute the same."""

from bench import registry, step
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
