"""conv4x4 and its gradients against PyTorch's convolutions in float64."""

import pytest
import torch
import torch.nn.functional as F
from shared import needs_extension, threads
from torch.library import opcheck

from fvae import ops
from fvae.ops import convolution

BACKENDS = ["reference", pytest.param("cpp", marks=needs_extension)]
each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_dtype = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
each_kind = pytest.mark.parametrize("transposed", [False, True], ids=["down", "up"])

# Images, height and width of the small ones, their channels, the large ones' channels: fewer images
# than are multiplied together and more than are summed together, channels that fill no block.
SIZES = [(1, 1, 1, 16, 16), (3, 2, 5, 48, 32), (19, 4, 4, 32, 16), (9, 17, 16, 16, 48)]
each_size = pytest.mark.parametrize("sizes", SIZES, ids=str)


def _layer(sizes, transposed, dtype=torch.bfloat16):
    images, height, width, small, large = sizes
    shapes = (images, 2 * height, 2 * width, large), (images, height, width, small)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shapes[transposed], generator=generator)
    weight = torch.randn(small, 4, 4, large, generator=generator) / (16 * large) ** 0.5
    bias = torch.randn(large if transposed else small, generator=generator)
    return x.to(dtype), weight.to(dtype), bias.to(dtype)


def _plainly(x, weight, bias, transposed):
    run = F.conv_transpose2d if transposed else F.conv2d
    y = run(x.permute(0, 3, 1, 2), weight.permute(0, 3, 1, 2), bias, stride=2, padding=1)
    return y.permute(0, 2, 3, 1)


def _error(got, expected):
    expected = expected.detach()
    return float((got.double() - expected).abs().max() / expected.abs().max())


@each_backend
@each_dtype
@each_kind
@each_size
@pytest.mark.parametrize("relu", [False, True])
def test_a_layer_and_its_gradients(sizes, transposed, relu, dtype, backend):
    x, weight, bias = _layer(sizes, transposed, dtype)
    y = ops.conv4x4(x, weight, bias, relu, transposed, backend)
    assert y.dtype == dtype and y.is_contiguous()
    exact = [t.double().requires_grad_() for t in (x, weight, bias)]
    sums = _plainly(*exact, transposed)
    rounded = 2**-8 if dtype == torch.bfloat16 else 1e-5
    assert _error(y, F.relu(sums) if relu else sums) < rounded
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    backward = ops.implementation("conv4x4_backward", backend)
    found = backward(grad, y if relu else None, x, weight, transposed, True)
    # The ReLU's mask is that of the rounded output.
    delta = torch.where(y <= 0, 0, grad.double()) if relu else grad.double()
    expected = torch.autograd.grad(sums, exact, delta)
    for got, of, most in zip(found, expected, (rounded, 1e-5, 1e-5), strict=True):
        assert got.shape == of.shape and _error(got, of) < most
    assert found[1].dtype == found[2].dtype == torch.float32
    none, *again = backward(grad, y if relu else None, x, weight, transposed, False)
    assert none.numel() == 0
    for one, other in zip(again, found[1:], strict=True):
        assert torch.equal(one, other)


@each_backend
@each_dtype
@each_kind
def test_what_is_no_number_stays_so(transposed, dtype, backend):
    x, weight, bias = _layer((2, 4, 4, 16, 16), transposed, dtype)
    x[0, 0, 0, 3] = torch.nan
    for relu in (False, True):
        y = ops.conv4x4(x, weight, bias, relu, transposed, backend)
        assert y[0, 0, 0].isnan().all() and not y[1].isnan().any() and not y[0, -1].isnan().any()
        # Where an output is no number its gradient goes on.
        backward = ops.implementation("conv4x4_backward", backend)
        of_bias = backward(torch.ones_like(y), y, x, weight, transposed, True)[2]
        assert torch.equal(of_bias, (~(y <= 0)).sum((0, 1, 2)).float())


@needs_extension
@each_dtype
@each_kind
def test_sums_are_the_same_for_any_number_of_threads(transposed, dtype):
    x, weight, bias = _layer((21, 4, 6, 16, 32), transposed, dtype)
    found = []
    for count in (1, 2, 5):
        with threads(count):
            y = ops.conv4x4(x, weight, bias, True, transposed, "cpp")
            run = torch.ops.fvae.conv4x4_backward
            found.append((y, *run(y.cos(), y, x, weight, transposed, True)))
    assert found[0][0].dtype == dtype
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            assert torch.equal(one, other)


@needs_extension
@each_dtype
@each_kind
def test_opcheck(transposed, dtype):
    x, weight, bias = _layer((2, 2, 2, 16, 16), transposed, dtype)
    run = torch.ops.fvae
    opcheck(run.conv4x4.default, (x, weight, bias, True, transposed))
    y = run.conv4x4(x, weight, bias, True, transposed)
    for of_relu, need_x in ((y, True), (None, False)):
        args = (y.cos(), of_relu, x, weight, transposed, need_x)
        opcheck(run.conv4x4_backward.default, args)


@each_backend
@each_dtype
def test_tensors_may_lie_in_any_order(dtype, backend):
    x, weight, bias = _layer((2, 3, 2, 16, 16), False, dtype)
    expected = ops.conv4x4(x, weight, bias, backend=backend)
    others = (t.mT.contiguous().mT for t in (x, weight))
    for given in ((*others, bias), (x, weight, bias.repeat_interleave(2)[::2])):
        assert torch.equal(ops.conv4x4(*given, backend=backend), expected)


def _given(**others):
    given = dict(zip(("x", "weight", "bias"), _layer((1, 2, 2, 16, 16), False), strict=True))
    return ops.conv4x4(**(given | others))


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        ({"x": torch.zeros(1, 4, 4, 16, dtype=torch.int64)}, TypeError, "x: got torch.int64"),
        ({"x": torch.zeros(1, 3, 4, 16).bfloat16()}, ValueError, "3 x 4, expected even sides"),
        ({"weight": torch.zeros(16, 16, 4, 4)}, ValueError, r"expected \[O, 4, 4, 16\] and \[O\]"),
        ({"bias": torch.zeros(3)}, ValueError, r"\[16, 4, 4, 16\] and \[3\]"),
        ({"backend": "triton"}, ValueError, "conv4x4 has"),
    ],
)
def test_bad_input_is_named(wrong, error, said):
    with pytest.raises(error, match=said):
        _given(**wrong)


@needs_extension
def test_other_channels_and_dtypes_are_the_reference_s(monkeypatch):
    layers = [((1, 2, 2, 8, 16), torch.float32), ((1, 2, 2, 16, 16), torch.float64)]
    layers += [((1, 2, 2, 16, 16), torch.float16)]
    # And of any layer where the processor is not fast with ours.
    for name in ("has_matrix_units", "has_wide_vectors"):
        monkeypatch.setattr(convolution, name, lambda: False)
    layers += [((1, 2, 2, 16, 16), dtype) for dtype in (torch.float32, torch.bfloat16)]
    for sizes, dtype in layers:
        given = _layer(sizes, False, dtype)
        assert torch.equal(ops.conv4x4(*given), ops.conv4x4(*given, backend="reference"))
    x, weight, bias = _layer((1, 2, 2, 8, 16), False)
    with pytest.raises(RuntimeError, match="8 and 16 channels, expected multiples of 16"):
        ops.conv4x4(x, weight, bias, backend="cpp")
    with pytest.raises(RuntimeError, match="expected bfloat16 or float32"):
        ops.conv4x4(*_layer((1, 2, 2, 16, 16), False, torch.float64), backend="cpp")
    x, weight, bias = _layer((1, 2, 2, 16, 16), False)
    for others in ((x.float(), weight, bias), (x, weight.float(), bias), (x, weight, bias.float())):
        with pytest.raises(RuntimeError, match="dtype that go with the others"):
            ops.conv4x4(*others, backend="cpp")
