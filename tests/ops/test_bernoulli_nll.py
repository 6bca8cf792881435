import pytest
import torch
import torch.nn.functional as F
from shared import assert_close
from torch.library import opcheck

from fvae import ops

SHAPES = [(1, 1, 8, 8), (7, 3, 4, 4), (3, 1, 64, 64)]


def _textbook(logits, x):
    return F.binary_cross_entropy_with_logits(logits, x, reduction="sum") / len(logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_each_form_of_target(shape, dtype):
    logits = (torch.randn(shape) * 4).to(dtype).requires_grad_()
    bits = torch.rand(shape) > 0.5
    octets = torch.randint(0, 256, shape, dtype=torch.uint8)
    weights = 1 << torch.arange(8)
    packed = (bits.flatten(1).unflatten(1, (-1, 8)) * weights).sum(-1).to(torch.uint8)
    forms = [(bits, bits.float()), (packed, bits.float()), (octets, octets / 255)]
    forms.append((torch.rand(shape), None))
    for target, x in forms:
        x = target if x is None else x
        nll = ops.bernoulli_nll(logits, target)
        (got,) = torch.autograd.grad(nll, logits)
        wide = logits.detach().float().requires_grad_()
        expected = _textbook(wide, x)
        (want,) = torch.autograd.grad(expected, wide)
        torch.testing.assert_close(nll, expected, rtol=1e-5, atol=1e-4)
        assert_close(got.float(), want, dtype)
        assert got.dtype == dtype


def test_gradcheck():
    logits = torch.randn(2, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    target = torch.rand(2, 1, 4, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda v: ops.bernoulli_nll(v, target), logits)


def test_channels_last_and_huge_logits():
    logits = torch.randn(3, 3, 8, 8).contiguous(memory_format=torch.channels_last) * 1e4
    target = torch.rand(3, 3, 8, 8)
    torch.testing.assert_close(ops.bernoulli_nll(logits, target), _textbook(logits, target))


def test_models():
    logits, target = torch.randn(2, 3, 1, 4, 4), torch.rand(2, 3, 1, 4, 4)
    together = ops.bernoulli_nll(logits, target)
    for m in range(2):
        torch.testing.assert_close(together[m], ops.bernoulli_nll(logits[m], target[m]))


def test_opcheck():
    op = torch.ops.fvae.bernoulli_nll.default
    logits = torch.randn(3, 3, 8, 8)
    opcheck(op, (logits, torch.rand(3, 3, 8, 8)))
    opcheck(op, (logits.contiguous(memory_format=torch.channels_last).bfloat16(), logits > 0))
    opcheck(op, (logits, torch.randint(0, 256, (3, 24), dtype=torch.uint8)))


def test_bad_input():
    logits = torch.randn(3, 1, 8, 8)
    with pytest.raises(ValueError, match=r"target: got shape \[3, 1, 8, 7\]"):
        ops.bernoulli_nll(logits, torch.rand(3, 1, 8, 7))
    with pytest.raises(TypeError, match="target: got torch.int64"):
        ops.bernoulli_nll(logits, torch.ones(3, 1, 8, 8, dtype=torch.int64))
