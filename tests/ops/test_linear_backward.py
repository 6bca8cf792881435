import re

import pytest
import torch
import torch.nn.functional as F
from shared import assert_close
from torch.library import opcheck

from fvae import ops
from fvae.models import layers


def _layer(shape, dtype, slope):
    """x, weight, y and its gradient; what autograd makes of them in float64."""
    *models, rows, inputs, outputs = shape
    x, weight, bias, grad = (
        torch.randn(*models, *s).to(dtype)
        for s in ((rows, inputs), (outputs, inputs), (outputs,), (rows, outputs))
    )
    exact = [t.double().requires_grad_() for t in (x, weight, bias)]
    y = F.leaky_relu(exact[0] @ exact[1].mT + exact[2].unsqueeze(-2), slope)
    want = torch.autograd.grad(y, exact, grad.double())
    return (grad, y.detach().to(dtype), x, weight, slope), want


@pytest.mark.parametrize("slope", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 3, 5), (65, 10, 17), (3, 9, 4, 6)])
def test_equals_autograd(shape, dtype, slope):
    args, want = _layer(shape, dtype, slope)
    total = torch.float64 if dtype == torch.float64 else torch.float32
    # The op itself, and what a CPU does in its place.
    for run in (ops.linear_backward, layers.linear_backward):
        got = run(*args, total)
        for value, expected, kind in zip(got, want, (dtype, total, total), strict=True):
            assert value.dtype == kind
            scale = expected.abs().max().clamp_min(1)
            assert_close(value.double() / scale, expected / scale, dtype)
        nothing, *rest = run(*args, total, False)
        assert nothing.numel() == 0
        for a, b in zip(rest, got[1:], strict=True):
            assert torch.equal(a, b)
    grad_x, *nothing = ops.linear_backward(*args, total, need_weight=False)
    assert torch.equal(grad_x, ops.linear_backward(*args, total)[0])
    assert [t.numel() for t in nothing] == [0, 0]


def test_a_factor_weighs_the_rows_for_the_weights_alone():
    for shape in ((7, 3, 5), (3, 9, 4, 6)):
        args, _ = _layer(shape, torch.float32, 0.2)
        factor = torch.randn(args[2].shape[:-1])
        for run in (ops.linear_backward, layers.linear_backward):
            got = run(*args, torch.float32, True, factor)
            plain = run(*args, torch.float32)
            scaled = run(factor[..., None] * args[0], *args[1:], torch.float32)
            torch.testing.assert_close(got, (plain[0], *scaled[1:]))


def test_opcheck():
    for shape in ((7, 3, 5), (3, 9, 4, 6)):
        args, _ = _layer(shape, torch.float32, 0.2)
        factor = torch.randn(args[2].shape[:-1])
        op = torch.ops.fvae.linear_backward.default
        opcheck(op, (*args, torch.float32, True, factor))
        opcheck(op, (*args, torch.bfloat16, False))
        opcheck(op, (*args, torch.bfloat16, True, None, False))


def test_bad_input():
    args, _ = _layer((7, 3, 5), torch.float32, 0.2)
    grad, y, x, weight, slope = args

    def refuse(error, message, *args):
        with pytest.raises(error, match=re.escape(message)):
            ops.linear_backward(*args)

    refuse(ValueError, "weight: got [5, 2], expected [5, 3]", grad, y, x, weight[:, :2], slope)
    refuse(ValueError, "grad: got [6, 5], expected [7, 5]", grad[:6], y, x, weight, slope)
    refuse(ValueError, "y: got [7, 4], expected [7, 5]", grad, y[:, :4], x, weight, slope)
    refuse(ValueError, "factor: got [5], expected [7]", *args, torch.float32, True, torch.ones(5))
    refuse(ValueError, "need_weight: got False", *args, torch.float32, False, None, False)
    refuse(TypeError, "dtype: got torch.int64", *args, torch.int64)
