import pytest
import torch
from shared import assert_close, packed
from torch.library import opcheck

from fvae import ops

SHAPES = [(1, 1, 8, 8), (7, 3, 4, 4), (3, 1, 64, 64), (3, 1, 5, 5), (2, 3, 7, 7)]


def _textbook(mean, x):
    """-log N(x; mean, 1) of PyTorch, less its constant."""
    constant = 0.5 * torch.log(torch.tensor(2 * torch.pi, dtype=mean.dtype))
    log_p = torch.distributions.Normal(mean, torch.ones_like(mean)).log_prob(x)
    return -(log_p + constant).sum() / len(mean)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_each_form_of_target(shape, dtype):
    mean = (torch.randn(shape) * 4).to(dtype).requires_grad_()
    bits = torch.rand(shape) > 0.5
    octets = torch.randint(0, 256, shape, dtype=torch.uint8)
    anything = torch.randn(shape) * 3
    forms = [(bits, bits), (packed(bits), bits), (octets, octets / 255), (anything, anything)]
    for target, x in forms:
        nll = ops.gaussian_nll(mean, target)
        (got,) = torch.autograd.grad(nll, mean)
        wide = mean.detach().double()
        x = x.double()
        torch.testing.assert_close(nll.double(), _textbook(wide, x), rtol=1e-5, atol=1e-5)
        assert_close(got.float(), ((wide - x) / len(mean)).float(), dtype)
        assert got.dtype == dtype


def test_zero_is_a_perfect_reconstruction():
    x = torch.randn(2, 3, 1, 5, 5)
    mean = x.clone().requires_grad_()
    nll = ops.gaussian_nll(mean, x)
    assert nll.tolist() == [0, 0]
    assert not torch.autograd.grad(nll.sum(), mean)[0].any()


def test_gradcheck():
    mean = torch.randn(2, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    target = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda v: ops.gaussian_nll(v, target), mean)


def test_channels_last_keeps_the_layout():
    for channels in (1, 3):
        mean = torch.randn(3, channels, 8, 8).contiguous(memory_format=torch.channels_last)
        target = torch.rand(3, channels, 8, 8)
        nll, grad = torch.ops.fvae.gaussian_nll(mean, target)
        torch.testing.assert_close(nll, _textbook(mean, target))
        assert grad.stride() == mean.stride()


def test_models():
    mean, target = torch.randn(2, 3, 1, 4, 4), torch.rand(2, 3, 1, 4, 4)
    together = ops.gaussian_nll(mean, target)
    for m in range(2):
        torch.testing.assert_close(together[m], ops.gaussian_nll(mean[m], target[m]))


def test_opcheck():
    op = torch.ops.fvae.gaussian_nll.default
    mean = torch.randn(3, 3, 8, 8)
    opcheck(op, (mean, torch.rand(3, 3, 8, 8)))
    opcheck(op, (mean.contiguous(memory_format=torch.channels_last).bfloat16(), mean > 0))
    opcheck(op, (mean, torch.randint(0, 256, (3, 24), dtype=torch.uint8)))


def test_bad_input():
    mean = torch.randn(3, 1, 8, 8)
    with pytest.raises(ValueError, match=r"target: got shape \[3, 1, 8, 7\]"):
        ops.gaussian_nll(mean, torch.rand(3, 1, 8, 7))
    with pytest.raises(TypeError, match="target: got torch.int64"):
        ops.gaussian_nll(mean, torch.ones(3, 1, 8, 8, dtype=torch.int64))
    with pytest.raises(TypeError, match="mean: got torch.int64"):
        ops.gaussian_nll(mean.long(), mean)
