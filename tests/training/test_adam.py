"""The optimizer is PyTorch's own Adam, bit for bit."""

import pytest
import torch

from fvae.training.adam import EPSILON, Adam


def _players(seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(5, 3), (7,), (4, 2, 3, 3)]
    return [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in shapes]


def _groups(each):
    return [
        {"params": each[:2], "lr": 1e-2, "betas": (0.9, 0.999)},
        {"params": each[2:], "lr": 3e-3, "betas": (0.5, 0.9)},
    ]


@pytest.mark.parametrize("found_inf", [None, 0.0, 1.0])
def test_it_is_the_fused_adam_of_pytorch(found_inf):
    ours, theirs = _players(0), _players(0)
    adam, expected = Adam(_groups(ours)), torch.optim.Adam(_groups(theirs), fused=True)
    assert all(group["eps"] == EPSILON for group in expected.param_groups)
    for step in range(20):
        grads = _players(step + 1)
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            # Every third step one tensor has no gradient, as where one player alone is stepped.
            a.grad = b.grad = None if i == step % 3 else grads[i].detach()
        if found_inf is not None and step % 2:
            word = torch.tensor(found_inf)
            adam.found_inf = expected.found_inf = word
        adam.step()
        expected.step()
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)
        for key, value in expected.state[b].items():
            assert torch.equal(adam.state[a][key], value), key
    adam.zero_grad()
    assert all(p.grad is None for p in ours)
