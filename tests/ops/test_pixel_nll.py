"""The extension's losses of pixels against the reference's, wherever the numbers lie."""

import itertools
import re

import pytest
import torch
from shared import assert_close, needs_extension, packed, threads

from fvae import ops

OPS = ["bernoulli_nll", "gaussian_nll"]
FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
# Of one channel and of three, of whole vectors and not, of whole bytes and not; with models.
SHAPES = [(3, 1, 64, 64), (2, 3, 8, 8), (5, 1, 5, 5), (2, 4, 3, 7, 7), (1, 1, 1, 1)]


def _both(op, *args):
    return [ops.BACKENDS[name][op](*args) for name in ("cpp", "reference")]


def _targets(shape, generator):
    bits = torch.rand(shape, generator=generator) > 0.5
    octets = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    numbers = torch.rand(shape, generator=generator)
    return [bits, packed(bits), octets, *(numbers.to(dtype) for dtype in FLOATS)]


@needs_extension
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_each_type_and_form(op, shape):
    generator = torch.Generator().manual_seed(0)
    for dtype in FLOATS:
        out = (torch.randn(shape, generator=generator) * 8).to(dtype)
        for target in _targets(shape, generator):
            (nll, grad), (want, want_grad) = _both(op, out, target)
            assert nll.dtype == want.dtype and grad.dtype == want_grad.dtype
            # PyTorch's softplus leaves out e^-l from l = 20 on.
            tight = 1e-9 if dtype == torch.float64 else 1e-6
            torch.testing.assert_close(nll, want, rtol=tight, atol=tight, equal_nan=True)
            assert_close(grad, want_grad, dtype)


@needs_extension
@pytest.mark.parametrize("op", OPS)
def test_wherever_the_numbers_lie(op):
    generator = torch.Generator().manual_seed(1)
    channels_last = (0, 2, 3, 1), (0, 3, 1, 2)
    turned, apart = ((0, 1, 3, 2), (0, 1, 3, 2)), ((3, 0, 1, 2), (1, 2, 3, 0))
    for dtype, (to, back) in itertools.product(FLOATS, (channels_last, turned, apart)):
        plain = torch.randn(2, 3, 6, 5, generator=generator).to(dtype)
        moved = plain.permute(to).contiguous().permute(back)
        for target in _targets(plain.shape, generator):
            nll, grad = ops.BACKENDS["cpp"][op](moved, target)
            want, want_grad = ops.BACKENDS["cpp"][op](plain, target)
            torch.testing.assert_close(nll, want)  # summed in the order of memory
            assert torch.equal(grad, want_grad)
            # As the fake says, for what is compiled.
            assert grad.stride() == torch.empty_like(moved, dtype=grad.dtype).stride()
    # With gaps, and a target with gaps.
    wide = torch.randn(2, 3, 6, 9, generator=generator)
    bits = torch.rand(2, 3, 6, 9, generator=generator) > 0.5
    for out, target in ((wide[..., :5], bits[..., :5]), (wide[:, 1:2], bits[:, :1])):
        nll, grad = ops.BACKENDS["cpp"][op](out, target)
        want, want_grad = ops.BACKENDS["cpp"][op](out.contiguous(), target.contiguous())
        assert torch.equal(nll, want) and torch.equal(grad, want_grad)


@needs_extension
@pytest.mark.parametrize("op", OPS)
def test_any_number_of_threads_and_models_gives_the_same_bits(op):
    generator = torch.Generator().manual_seed(2)
    out = torch.randn(3, 21, 1, 32, 32, generator=generator)
    target = torch.randint(0, 256, (3, 21, 128), generator=generator, dtype=torch.uint8)
    found = []
    for count in (1, 2, 3):
        with threads(count):
            found.append(ops.BACKENDS["cpp"][op](out, target))
    for nll, grad in found[1:]:
        assert torch.equal(nll, found[0][0]) and torch.equal(grad, found[0][1])
    for m in range(3):
        nll, grad = ops.BACKENDS["cpp"][op](out[m], target[m])
        assert torch.equal(nll, found[0][0][m]) and torch.equal(grad, found[0][1][m])


@needs_extension
def test_logits_of_any_size():
    # Of each a pixel that is black, one that is white and one between; what is no number stays so.
    ends = [torch.inf, -torch.inf, torch.nan, 0.0, -0.0, 88.0, -88.0, 1e-30, -1e-30, 3e38, -3e38]
    values = torch.cat([torch.linspace(-120, 120, 9601), torch.tensor(ends)])
    each = values.view(-1, 1, 1, 1, 1)  # models of a pixel
    for x in (0.0, 1.0, 0.3):
        target = torch.full_like(each, x)
        (nll, grad), (want, want_grad) = _both("bernoulli_nll", each, target)
        # A black pixel's are exact however small they are.
        close = {"rtol": 1e-6, "atol": 1e-5 if x else 1e-29, "equal_nan": True}
        torch.testing.assert_close(nll, want, **close)
        torch.testing.assert_close(grad, want_grad, **close | {"atol": 1e-7 if x else 0})


@needs_extension
@pytest.mark.parametrize("op", OPS)
def test_no_images(op):
    empty = torch.zeros(2, 0, 1, 8, 8)
    nll, grad = ops.BACKENDS["cpp"][op](empty, empty)
    assert nll.isnan().all() and nll.shape == (2,) and grad.shape == empty.shape


@needs_extension
def test_a_target_outside_0_to_1_is_nan_for_its_model_alone():
    logits, target = torch.randn(3, 2, 1, 8, 8), torch.rand(3, 2, 1, 8, 8)
    for wrong in (1.01, -0.01, torch.inf, torch.nan):
        other = target.clone()
        other[1, 0, 0, 7, 7] = wrong
        nll = ops.BACKENDS["cpp"]["bernoulli_nll"](logits, other)[0]
        assert nll.isnan().tolist() == [False, True, False]


@needs_extension
@pytest.mark.parametrize("op", OPS)
def test_what_the_extension_itself_refuses(op):
    # Whoever calls the raw op reads no memory that is not his.
    def refuse(message, out, target):
        with pytest.raises(RuntimeError, match=re.escape(message)):
            getattr(torch.ops.fvae, op)(out, target)

    out = torch.zeros(2, 1, 8, 8)
    refuse("expected [B, C, H, W]", out[0], out[0])
    refuse("target: expected the shape", out, torch.zeros(2, 1, 8, 7))
    refuse("target: expected the shape", out, torch.zeros(2, 7, dtype=torch.uint8))
    refuse("target: expected floating point", out, out.long())
    refuse("expected float32, bfloat16", out.long(), out)
