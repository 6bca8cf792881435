"""``torch.compile(fullgraph=True)`` takes every public op, and the result is the eager one."""

import pytest
import torch

from bench.registry import cases
from fvae import ops


@pytest.mark.parametrize("case", cases(batches=(5,), image_batches=(3,)), ids=lambda c: c.label)
def test_public_op_in_a_full_graph(case):
    torch._dynamo.reset()
    compiled = torch.compile(lambda: case.run(None), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(), case.run("reference"))


def test_gradients_through_a_full_graph():
    from fvae import Philox

    rng = Philox(3)

    def loss(mu, logvar, weight):
        z, kl = ops.reparameterize(mu, logvar, rng)
        permuted = ops.permute_dims(z, rng)
        tc, disc_loss, _ = ops.logit_ratio(z @ weight, permuted @ weight)
        nll = ops.bernoulli_nll((z @ weight)[..., None, None], mu[:, :2, None, None] > 0)
        return kl.sum() + tc + disc_loss + nll + permuted[0].sum()

    arguments = [torch.randn(7, 10), torch.randn(7, 10), torch.randn(10, 2)]
    arguments = [a.requires_grad_() for a in arguments]
    eager = loss(*arguments)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(*arguments)
    torch.testing.assert_close(compiled, eager)
    grads = torch.autograd.grad(compiled, arguments)
    torch.testing.assert_close(grads, torch.autograd.grad(eager, arguments))
