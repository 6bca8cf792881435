import re

import pytest
import torch
import torch.nn.functional as F
from shared import assert_close
from torch.library import opcheck

from fvae import ops

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SHAPES = [(1, 1), (5, 7), (65, 33), (3, 9, 5), (4, 3, 5, 6), (2, 1, 40, 40), (3, 40, 1, 1)]
BACKENDS = ["reference"]  # the kernels are held against it in tests/kernels


def _inputs(shape, dtype):
    grad, y = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    y.view(-1)[0] = 0.0
    return grad, y


def _sum_of(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


@pytest.mark.parametrize("slope", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_autograd(backend, shape, dtype, slope):
    product = torch.randn(shape, dtype=torch.float64)
    channels = shape[1:2] if len(shape) == 4 else (*shape[:-2], shape[-1])
    bias = torch.randn(channels, dtype=torch.float64, requires_grad=True)
    product.requires_grad_()
    added = bias[:, None, None] if len(shape) == 4 else bias.unsqueeze(-2)
    y = F.leaky_relu(product + added, slope)
    grad = torch.randn(shape).to(dtype)
    want = torch.autograd.grad(y, (product, bias), grad.double())
    args = (grad, y.detach().to(dtype), slope, _sum_of(dtype))
    delta, scaled, total = ops.activation_backward(*args, backend=backend)
    assert scaled.numel() == 0
    if slope == 1:
        assert delta.numel() == 0
    else:
        assert_close(delta, want[0].to(dtype), dtype)
    assert_close(total, want[1].to(total.dtype), torch.float32)


@pytest.mark.parametrize("slope", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [s for s in SHAPES if len(s) < 4] + [(130, 2)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_factor_of_each_row(backend, shape, dtype, slope):
    grad, y = _inputs(shape, dtype)
    factor = torch.randn(shape[:-1]).to(_sum_of(dtype))
    args = (grad, y, slope, _sum_of(dtype))
    plain = ops.activation_backward(*args, backend="reference")
    delta, scaled, total = ops.activation_backward(*args, factor, backend=backend)
    assert torch.equal(delta, plain[0])
    exact = factor[..., None].double() * (grad if slope == 1 else plain[0]).double()
    tolerance = torch.float16 if dtype == torch.bfloat16 else dtype
    assert_close(scaled, exact.to(dtype), dtype)
    if dtype in (torch.float32, torch.float64):
        assert_close(total, exact.sum(-2).to(total.dtype), torch.float32)
    else:
        assert_close(total, exact.sum(-2).float(), tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_no_number_goes_on(backend):
    grad, y = torch.ones(3, 2), torch.tensor([[torch.nan, 1.0], [-1.0, 0.0], [2.0, -torch.inf]])
    grad[2, 0] = torch.nan
    delta, _, total = ops.activation_backward(grad, y, 0.0, backend=backend)
    assert delta[:2].tolist() == [[1, 1], [0, 0]]
    assert delta[2, 0].isnan() and total[0].isnan() and total[1] == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_layout(backend):
    for dtype in (torch.float32, torch.bfloat16):
        grad, y = _inputs((3, 5, 4, 6), dtype)
        want = ops.activation_backward(grad, y, 0.0, backend=backend)
        last = [t.contiguous(memory_format=torch.channels_last) for t in (grad, y)]
        for given in ((last[0], y), (grad, last[1]), last, (grad.float(), y)):
            got = ops.activation_backward(*given, 0.0, backend=backend)
            assert torch.equal(got[0], want[0])
            torch.testing.assert_close(got[2], want[2])
            assert got[0].is_contiguous(memory_format=torch.channels_last)
        grad, y = _inputs((7, 5), dtype)
        want = ops.activation_backward(grad, y, 0.2, backend=backend)
        got = ops.activation_backward(grad.t().contiguous().t(), y, 0.2, backend=backend)
        assert torch.equal(got[0], want[0])
        torch.testing.assert_close(got[2], want[2])


def test_opcheck():
    op = torch.ops.fvae.activation_backward.default
    images = [
        t.contiguous(memory_format=torch.channels_last)
        for t in _inputs((4, 3, 5, 6), torch.float32)
    ]
    opcheck(op, (*images, 0.0, torch.bfloat16))
    matrices = _inputs((2, 7, 5), torch.bfloat16)
    opcheck(op, (*matrices, 0.2, torch.float32, torch.randn(2, 7)))
    opcheck(op, (*matrices, 1.0, torch.float32))


def test_bad_input():
    def refuse(error, message, *args, **options):
        with pytest.raises(error, match=re.escape(message)):
            ops.activation_backward(*args, **options)

    y = torch.zeros(4, 3)
    refuse(ValueError, "grad: got [4, 2], expected [4, 3]", y[:, :2], y, 0.0)
    refuse(ValueError, "factor: got [3], expected [4]", y, y, 0.0, factor=torch.zeros(3))
    refuse(TypeError, "y: got torch.int64", y, y.long(), 0.0)
    refuse(TypeError, "dtype: got torch.int32", y, y, 0.0, torch.int32)
    images = torch.zeros(2, 3, 4, 4)
    refuse(ValueError, "factor: got one for images", images, images, 0.0, factor=torch.zeros(2))
    refuse(ValueError, "backend: got 'cuda'", y, y, 0.0, backend="cuda")
