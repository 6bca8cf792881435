"""packed_bits, conv_from_bits and conv_to_pixels against PyTorch's convolutions in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from shared import TOLERANCE, needs_extension, threads
from torch.library import opcheck

from fvae import ops

BACKENDS = ["reference", pytest.param("cpp", marks=needs_extension)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)

# Images, side, channels: more images than are summed together, channels that fill no vector.
FIRST = [(1, 8, 1), (19, 16, 32), (3, 64, 5)]
# Images, height, width, channels, colours.
LAST = [(1, 1, 1, 1, 1), (9, 5, 7, 32, 1), (2, 8, 8, 33, 3), (17, 2, 3, 9, 4)]


def _raw(name, backend):
    return ops.implementation(name, backend)


def _close(got, expected, dtype):
    rtol, atol = TOLERANCE[dtype]
    scale = max(1.0, float(expected.detach().abs().max()))
    torch.testing.assert_close(got.double() / scale, expected / scale, rtol=rtol, atol=atol)


def _images(count, side, dtype=torch.float32):
    return (torch.rand(count, 1, side, side) > 0.7).to(dtype)


@each_backend
@each_dtype
def test_bits_are_those_of_numpy(dtype, backend):
    x = _images(3, 24, dtype)
    bits = ops.packed_bits(x, backend)
    assert bits.tolist() == np.packbits(x.flatten().to(torch.uint8).numpy()).tolist()
    # Wherever a pixel is something else, there are none.
    for at in (0, 7, 600, x.numel() - 1):
        for wrong in (0.5, -1.0, 2.0, torch.nan, torch.inf):
            other = x.clone()
            other.view(-1)[at] = wrong
            assert ops.packed_bits(other, backend) is None


@each_backend
@each_dtype
@pytest.mark.parametrize(("images", "side", "channels"), FIRST)
def test_the_first_layer_and_its_gradients(images, side, channels, dtype, backend):
    x = _images(images, side)
    bits = ops.packed_bits(x)
    weight, bias = torch.randn(channels, 1, 4, 4).to(dtype), torch.randn(channels).to(dtype)
    y = ops.conv_from_bits(bits, side, weight, bias, backend)
    w, b = (t.double().requires_grad_() for t in (weight, bias))
    expected = F.relu(F.conv2d(x.double(), w, b, 2, 1)).permute(0, 2, 3, 1)
    assert y.is_contiguous() and y.dtype == dtype
    _close(y, expected, dtype)
    grad = torch.randn(y.shape).to(dtype)
    found = _raw("conv_from_bits_backward", backend)(grad, y, bits)
    # The ReLU's mask is that of the rounded output.
    delta = torch.where(y <= 0, 0, grad.double())
    sums = F.conv2d(x.double(), w, b, 2, 1).permute(0, 2, 3, 1)
    for got, of in zip(found, torch.autograd.grad(sums, (w, b), delta), strict=True):
        _close(got, of, torch.float32)


@each_backend
@each_dtype
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("images", "height", "width", "channels", "colours"), LAST)
def test_the_last_layer_and_its_gradients(
    images, height, width, channels, colours, relu, dtype, backend
):
    x = torch.randn(images, height, width, channels).to(dtype)
    weight, bias = torch.randn(channels, colours, 4, 4).to(dtype), torch.randn(colours).to(dtype)
    y = ops.conv_to_pixels(x, weight, bias, relu, backend)
    u, w, b = (t.double().requires_grad_() for t in (x, weight, bias))
    h = (F.relu(u) if relu else u).permute(0, 3, 1, 2)
    expected = F.conv_transpose2d(h, w, b, 2, 1).permute(0, 2, 3, 1)
    assert y.is_contiguous() and y.dtype == dtype
    _close(y, expected, dtype)
    grad = torch.randn(y.shape).to(dtype)
    backward = _raw("conv_to_pixels_backward", backend)
    grad_x, *sums = backward(grad, x, weight, relu, True)
    of_x, *of = torch.autograd.grad(expected, (u, w, b), grad.double())
    _close(grad_x, of_x, dtype)
    for got, one in zip(sums, of, strict=True):
        _close(got, one, torch.float32)
    none, *again = backward(grad, x, weight, relu, False)
    assert none.numel() == 0
    for got, one in zip(again, sums, strict=True):
        assert torch.equal(got, one)


@each_backend
def test_what_is_no_number_stays_so(backend):
    bits = ops.packed_bits(torch.ones(1, 1, 8, 8))
    y = ops.conv_from_bits(bits, 8, torch.full((1, 1, 4, 4), torch.nan), torch.zeros(1), backend)
    assert y.isnan().all()
    x = torch.full((1, 2, 2, 3), -1.0)
    x[0, 0, 0, 0] = torch.nan
    weight = torch.ones(3, 1, 4, 4)
    for relu in (False, True):
        y = ops.conv_to_pixels(x, weight, torch.zeros(1), relu, backend)
        assert y[0, 0, 0].isnan().all() and not y[0, 3, 3].isnan().any()
        grad = torch.ones(1, 4, 4, 1)
        grad_x = _raw("conv_to_pixels_backward", backend)(grad, x, weight, relu, True)[0]
        assert bool(grad_x[0, 0, 0, 0] > 0)  # a ReLU's of what is no number


@needs_extension
def test_sums_are_the_same_for_any_number_of_threads():
    bits = ops.packed_bits(_images(37, 16))
    weight, bias = torch.randn(9, 1, 4, 4), torch.randn(9)
    x, last = torch.randn(37, 3, 5, 9), torch.randn(9, 1, 4, 4)
    grad = torch.randn(37, 6, 10, 1)

    def everything():
        y = ops.conv_from_bits(bits, 16, weight, bias, "cpp")
        return [
            y,
            *_raw("conv_from_bits_backward", "cpp")(y.cos(), y, bits),
            ops.conv_to_pixels(x, last, torch.zeros(1), True, "cpp"),
            *_raw("conv_to_pixels_backward", "cpp")(grad, x, last, True, True),
        ]

    found = []
    for count in (1, 2, 5):
        with threads(count):
            found.append(everything())
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            assert torch.equal(one, other)


@needs_extension
@each_dtype
def test_opcheck(dtype):
    x, run = _images(3, 8, dtype), torch.ops.fvae
    weight, bias = torch.randn(5, 1, 4, 4).to(dtype), torch.randn(5).to(dtype)
    opcheck(run.packed_bits.default, (x,))
    bits = ops.packed_bits(x)
    opcheck(run.conv_from_bits.default, (bits, 8, weight, bias))
    y = ops.conv_from_bits(bits, 8, weight, bias)
    opcheck(run.conv_from_bits_backward.default, (y, y, bits))
    last, one = torch.randn(5, 1, 4, 4).to(dtype), bias[:1]
    opcheck(run.conv_to_pixels.default, (y, last, one, True))
    grad = torch.randn(3, 8, 8, 1).to(dtype)
    for need_x in (True, False):
        opcheck(run.conv_to_pixels_backward.default, (grad, y, last, False, need_x))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.packed_bits(torch.zeros(1, 1, 3, 3)), "x: got 9 pixels"),
        (lambda: ops.packed_bits(torch.zeros(1, 1, 8, 8, dtype=torch.uint8)), "x: "),
        (lambda: ops.conv_from_bits(torch.zeros(7, dtype=torch.uint8), 8, torch.ones(2, 1, 4, 4),
                                    torch.ones(2)), "bits: got 7 bytes"),
        (lambda: ops.conv_from_bits(torch.zeros(18, dtype=torch.uint8), 12,
                                    torch.ones(2, 1, 4, 4), torch.ones(2)), "bits: got 18 bytes"),
        (lambda: ops.conv_from_bits(torch.zeros(8, dtype=torch.uint8), 8, torch.ones(2, 2, 4, 4),
                                    torch.ones(2)), "weight and bias: got"),
        (lambda: ops.conv_to_pixels(torch.zeros(1, 2, 2, 3), torch.ones(2, 1, 4, 4),
                                    torch.ones(1)), "weight and bias: got"),
        (lambda: ops.conv_to_pixels(torch.zeros(1, 2, 2, 3), torch.ones(3, 1, 4, 4),
                                    torch.ones(1), backend="triton"), "conv_to_pixels has"),
    ],
)  # fmt: skip
def test_bad_input(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()
