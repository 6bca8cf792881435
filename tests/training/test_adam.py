"""The optimizer is PyTorch's own Adam, with copies in half precision where they are asked for."""

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
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
        assert torch.equal(adam.state[a]["step"], expected.state[b]["step"])
        for key, value in expected.state[b].items():
            # Of gradients of size 1, some of which cancel.
            torch.testing.assert_close(adam.state[a][key], value, rtol=1e-6, atol=1e-6)
    adam.zero_grad()
    assert all(p.grad is None for p in ours)


def test_leaves_have_the_gradients_and_get_rounded_copies():
    params = _players(0)
    leaves = [torch.nn.Parameter(p.detach().bfloat16()) for p in params]
    groups = _groups(params)
    for group, of in zip(groups, (leaves[:2], leaves[2:]), strict=True):
        group["leaves"] = of
    adam, alone, plain = Adam(groups), [p.detach().clone() for p in params], _players(0)
    other = Adam(_groups(plain))
    for step in range(3):
        for leaf, p, grad in zip(leaves, plain, _players(step + 1), strict=True):
            leaf.grad = grad.detach().bfloat16()
            p.grad = leaf.grad.float()
        adam.step()
        other.step()
        adam.zero_grad()
        assert all(leaf.grad is None for leaf in leaves)
    for p, leaf, expected, start in zip(params, leaves, plain, alone, strict=True):
        assert torch.equal(p, expected) and not torch.equal(p, start)
        assert torch.equal(leaf, p.bfloat16())
    with torch.no_grad():
        params[0].fill_(3.0)
    adam.copy()
    assert leaves[0].unique().tolist() == [3.0]


def test_models_that_count_apart_take_their_own_updates():
    stacked = [torch.nn.Parameter(torch.stack([p.detach()] * 2)) for p in _players(0)]
    adam, alone = Adam(_groups(stacked)), _players(0)
    parts, expected = adam.split(), Adam(_groups(alone))
    for step in range(2):
        for p, whole, grad in zip(alone, stacked, _players(step + 1), strict=True):
            p.grad = parts[whole][step].grad = grad.detach()
        adam.step()
        adam.zero_grad()
        if step == 0:
            expected.step()
        expected.zero_grad()
    for p, whole in zip(alone, stacked, strict=True):
        assert torch.equal(whole[0], p)
        assert [float(adam.state[part]["step"]) for part in parts[whole]] == [1.0, 1.0]
