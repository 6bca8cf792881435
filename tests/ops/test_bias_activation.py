import re

import pytest
import torch
import torch.nn.functional as F
from shared import assert_close
from torch.library import opcheck

from fvae import ops


@pytest.mark.parametrize("slope", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (3, 9, 5), (4, 3, 5, 6)])
def test_in_place(shape, dtype, slope):
    y = torch.randn(shape).to(dtype)
    bias = torch.randn(shape[1:2] if len(shape) == 4 else (*shape[:-2], shape[-1])).to(dtype)
    added = bias[:, None, None] if len(shape) == 4 else bias.unsqueeze(-2)
    for given, want in ((bias, y.double() + added.double()), (None, y.double())):
        got = y.clone()
        assert ops.bias_activation(got, given, slope) is None
        assert_close(got, F.leaky_relu(want, slope).to(dtype), dtype)


def test_opcheck_and_bad_input():
    opcheck(torch.ops.fvae.bias_activation.default, (torch.randn(5, 3), torch.randn(3), 0.2))
    opcheck(torch.ops.fvae.bias_activation.default, (torch.randn(5, 3), None, 0.0))
    with pytest.raises(ValueError, match=re.escape("bias: got [5], expected [3]")):
        ops.bias_activation(torch.zeros(5, 3), torch.zeros(5), 0.0)
    with pytest.raises(TypeError, match="y: got"):
        ops.bias_activation(torch.zeros(5, 3).long(), None, 0.0)


def test_a_graph_that_kept_y_notices():
    y = torch.ones(2, 3, requires_grad=True).exp()
    loss = y.square().sum()
    ops.bias_activation(y, None, 0.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
