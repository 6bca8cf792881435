import pytest
import torch
import torch.nn.functional as F
from shared import assert_close, packed
from torch.library import opcheck

from fvae import ops

# 5 x 5 bits leave seven of four bytes over, 3 x 7 x 7 five of nineteen.
SHAPES = [(1, 1, 8, 8), (7, 3, 4, 4), (3, 1, 64, 64), (3, 1, 5, 5), (2, 3, 7, 7), (2, 1, 28, 28)]


def _textbook(logits, x):
    return F.binary_cross_entropy_with_logits(logits, x, reduction="sum") / len(logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_each_form_of_target(shape, dtype):
    logits = (torch.randn(shape) * 4).to(dtype).requires_grad_()
    bits = torch.rand(shape) > 0.5
    octets = torch.randint(0, 256, shape, dtype=torch.uint8)
    forms = [(bits, bits.float()), (packed(bits), bits.float()), (octets, octets / 255)]
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
    opcheck(op, (logits[..., :5, :5], torch.randint(0, 256, (3, 10), dtype=torch.uint8)))


def test_what_the_last_byte_has_left_over_is_not_read():
    logits, bits = torch.randn(2, 3, 1, 5, 5), torch.rand(2, 3, 1, 5, 5) > 0.5
    rows = packed(bits)
    rows[..., -1] |= 0b11111110
    assert torch.equal(ops.bernoulli_nll(logits, rows), ops.bernoulli_nll(logits, bits))


@pytest.mark.parametrize("wrong", [1.01, -0.01, torch.inf, torch.nan])
def test_a_target_outside_0_to_1(wrong):
    logits = torch.randn(2, 3, 1, 8, 8, requires_grad=True)
    target = torch.rand(2, 3, 1, 8, 8)
    target[1, 2, 0, 7, 7] = wrong
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        for x in (logits, logits.detach()):
            with pytest.raises(ValueError, match="target: got values from .*, expected .* 0..1"):
                ops.bernoulli_nll(x, target.to(dtype))
    # Where nothing can be raised, nothing looks right.
    compiled = torch.compile(ops.bernoulli_nll, fullgraph=True, backend="aot_eager")
    assert compiled(logits[1], target[1]).isnan()
    assert compiled(logits[0], target[0]).isfinite()
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        assert ops.bernoulli_nll(torch.empty(3, 1, 8, 8), torch.empty(3, 1, 8, 8)).shape == ()


def test_logits_that_are_not_a_number_are_nobodys_fault():
    assert ops.bernoulli_nll(torch.full((1, 1, 2, 2), torch.nan), torch.rand(1, 1, 2, 2)).isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_black_pixels_leave_no_gradient_too_small_to_compute_with(dtype):
    # Below 1.2e-38 a processor takes a hundred times as long, and products of it are smaller yet.
    logits = torch.linspace(-200, 0, 4096).view(2, 1, 32, 64).to(dtype).requires_grad_()
    target = torch.zeros_like(logits)
    nll = ops.bernoulli_nll(logits, target)
    (grad,) = torch.autograd.grad(nll, logits)
    assert ((grad == 0) == (logits <= -69)).all() and (grad[grad != 0] > 1e-31).all()
    assert_close(grad.float(), logits.detach().float().sigmoid() / 2, dtype)
    want = F.softplus(logits.detach().double()).sum() / 2
    torch.testing.assert_close(nll.double(), want, rtol=1e-5, atol=0)
    # A white pixel is not free there.
    nll = ops.bernoulli_nll(logits, torch.ones_like(logits))
    assert nll.item() == pytest.approx(-logits.double().sum().item() / 2 + want.item(), rel=1e-5)


def test_bad_input():
    logits = torch.randn(3, 1, 8, 8)
    with pytest.raises(ValueError, match=r"target: got shape \[3, 1, 8, 7\]"):
        ops.bernoulli_nll(logits, torch.rand(3, 1, 8, 7))
    with pytest.raises(TypeError, match="target: got torch.int64"):
        ops.bernoulli_nll(logits, torch.ones(3, 1, 8, 8, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"or uint8 \[3, 4\] of packed bits"):
        ops.bernoulli_nll(logits[..., :5, :5], torch.zeros(3, 3, dtype=torch.uint8))
