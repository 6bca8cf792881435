"""Every Triton kernel against the reference, through Triton's interpreter where no GPU is.

The interpreter has to be chosen before Triton is imported: conftest.py does.
"""

import copy
import os
import subprocess
import sys

import pytest
import torch
from shared import DEVICE, SHAPES, assert_close, packed, triton_and_reference
from torch.library import opcheck

from fvae import Philox, ops, philox
from fvae.kernels import fused_adam, report, tiles
from fvae.kernels.launch import planned

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Grids stay small in the interpreter: the widest of the shared shapes is for the GPU.
MATRICES = [*SHAPES, (3, 7, 5)] if DEVICE == "cuda" else [(1, 1), (7, 3), (65, 2), (3, 7, 5)]


SLOPES = [0.0, 0.2, 1.0]


pytestmark = pytest.mark.usefixtures("poisoned_outputs")


def _any_two(shapes):
    """Shapes, dtypes and slopes of layers: any two of them meet, but on a GPU all three."""
    cases = [
        pytest.param(shape, dtype, slope, id=f"{shape}-{dtype}-{slope}".replace(" ", ""))
        for i, shape in enumerate(shapes)
        for j, dtype in enumerate(DTYPES)
        for k, slope in enumerate(SLOPES)
        if DEVICE == "cuda" or (i + j + k) % len(SLOPES) == 0
    ]
    return pytest.mark.parametrize(("shape", "dtype", "slope"), cases)


def _normal(shape, dtype):
    return torch.randn(shape, device=DEVICE).to(dtype)


def _keys(shape):
    """One key, at a step beyond 32 bits; and where there are models, one each."""
    yield Philox(2**63 + 12345, step=2**33 + 7, device=DEVICE).at_lane(3)
    if len(shape) == 3:
        yield Philox(range(5, 5 + shape[0]), step=1, device=DEVICE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", MATRICES)
def test_permute_dims(shape, dtype):
    for rng in _keys(shape):
        args = (_normal(shape, dtype), rng.seed, rng.step, rng.lane)
        for name in ("permute_dims", "permute_dims_backward"):
            got, expected = triton_and_reference(name, *args)
            assert torch.equal(got, expected)


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("permute_dims", 128),
        ("permute_dims_backward", 128),
        ("permute_dims", 4097),
        ("permute_dims_backward", 4097),
        # As many as a block sorts: ten seconds in the interpreter.
        pytest.param("permute_dims", 4096, marks=pytest.mark.slow),
        pytest.param("permute_dims_backward", 4096, marks=pytest.mark.slow),
    ],
)
def test_permute_dims_of_many_rows(name, rows):
    rng = Philox(1, device=DEVICE)
    args = (torch.arange(rows, device=DEVICE).float()[:, None], rng.seed, rng.step, 0)
    got, expected = triton_and_reference(name, *args)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", MATRICES)
def test_reparameterize(shape, dtype):
    for rng in _keys(shape):
        mu, logvar = _normal(shape, dtype), _normal(shape, dtype)
        key = (rng.seed, rng.step, rng.lane)
        assert_close(*triton_and_reference("reparameterize", mu, logvar, *key), dtype)
        grad_kl = torch.randn(*shape[:-2], shape[-1], device=DEVICE)
        grads = (_normal(shape, dtype), grad_kl)
        assert_close(
            *triton_and_reference("reparameterize_backward", *grads, mu, logvar, *key), dtype
        )


def test_noise_agrees_to_rounding_over_the_whole_circle():
    mu = torch.zeros(3000, 1, device=DEVICE)
    rng = Philox(3, device=DEVICE)
    got, expected = triton_and_reference("reparameterize", mu, mu, rng.seed, rng.step, 0)
    torch.testing.assert_close(got[0], expected[0], rtol=2e-6, atol=2e-6)
    words = philox.words(rng.seed, rng.step, philox.Stream.NOISE, 3000)
    assert torch.bincount(words[1::2] >> 29, minlength=8).min() > 100  # every octant is met


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 7, 65, 1500])
def test_logit_ratio(rows, dtype):
    z, perm = _normal((rows, 2), dtype) * 20, _normal((rows, 2), dtype) * 20
    assert_close(*triton_and_reference("logit_ratio", z, perm), torch.float32)
    stacked = triton_and_reference("logit_ratio", torch.stack((z, perm)), torch.stack((perm, z)))
    assert_close(*stacked, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (7, 10), (33, 17), (3, 19, 5)])
def test_pairwise_tc(shape, dtype):
    batch = [_normal(shape, dtype) for _ in range(3)]
    batch[1] = batch[1].mT.contiguous().mT
    weights = (-7.0, -3.0, -1.0)
    got, expected = triton_and_reference("pairwise_tc", *batch, *weights)
    assert_close(got, expected, torch.float32)
    grads = [_normal(shape[:-1], torch.float32) for _ in range(3)]
    args = (*grads, *batch, expected[0], expected[3], *weights)
    for got, expected in zip(*triton_and_reference("pairwise_tc_backward", *args), strict=True):
        scale = expected.abs().max().clamp_min(1)
        assert_close(got / scale, expected / scale, dtype)


def test_pairwise_tc_far_apart_and_beyond():
    # Shares of pairs that are nothing next to others', and what is no number.
    z, mu, logvar = (_normal((9, 3), torch.float32) for _ in range(3))
    batch = (z, 1e4 * mu, (40 * logvar).clamp(-60, 60))
    args = (*[torch.ones(9, device=DEVICE)] * 3, *batch)
    for weights in ((-7.0, -3.0, -1.0), (-7.0, -float("inf"), -1.0)):
        got, expected = triton_and_reference("pairwise_tc", *batch, *weights)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        backward = ops.BACKENDS["triton"]["pairwise_tc_backward"]
        grads = backward(*args, expected[0], expected[3], *weights)
        assert all(g.isfinite().all() for g in grads)
    z[4, 1] = torch.nan
    for out in ops.BACKENDS["triton"]["pairwise_tc"](*batch, -1.0, -1.0, -1.0)[:3]:
        assert out[4].isnan() and out.isnan().sum() == 1


LAYERS = [(1, 1), (70, 130), (3, 9, 5), (4, 3, 5, 6), (2, 1, 64, 64), (40, 3, 16, 16)]


@_any_two(LAYERS)
def test_activation_backward_and_bias_activation(shape, dtype, slope):
    images = len(shape) == 4
    y = _normal(shape, dtype)
    channels = shape[1:2] if images else (*shape[:-2], shape[-1])
    for grad in (_normal(shape, dtype), _normal(shape, torch.float32)):
        turned = [
            t.contiguous(memory_format=torch.channels_last) if images else t.mT.contiguous().mT
            for t in (grad, y)
        ]
        for args in ((grad, y), (turned[0], y), turned):
            for factor in (None,) if images else (None, _normal(shape[:-1], torch.float32)):
                rest = (slope, torch.float32, factor)
                got, expected = triton_and_reference("activation_backward", *args, *rest)
                assert_close(got[:2], expected[:2], dtype)
                scale = expected[2].abs().max().clamp_min(1)
                assert_close(got[2] / scale, expected[2] / scale, torch.float16)
    for bias in (None, _normal(channels, torch.float32)):
        each = [y.clone(), y.clone()]
        for backend, one in zip(("triton", "reference"), each, strict=True):
            ops.bias_activation(one, bias, slope, backend)
        assert_close(*each, dtype)


def test_what_is_no_number_goes_through_a_relu():
    y = torch.tensor([[torch.nan, -1.0, 0.0, 2.0]], device=DEVICE)
    run = ops.BACKENDS["triton"]
    delta, _, total = run["activation_backward"](torch.ones_like(y), y, 0.0, torch.float32)
    assert delta.tolist() == [[1, 0, 0, 1]] and total.tolist() == [1, 0, 0, 1]
    run["bias_activation"](y, None, 0.0)
    assert y[0, 0].isnan() and y[0, 1:].tolist() == [0, 0, 2]


@_any_two([(1, 1, 1), (40, 33, 70), (3, 9, 5, 6), (128, 40, 2)])
def test_linear_backward(shape, dtype, slope):
    *models, rows, inputs, outputs = shape
    grad, y = (_normal((*models, rows, outputs), dtype) for _ in range(2))
    x, weight = _normal((*models, rows, inputs), dtype), _normal((*models, outputs, inputs), dtype)
    signs = torch.arange(1, 1 - 2 * outputs, -2, device=DEVICE).to(dtype).expand(grad.shape)
    for factor in (None, _normal((*models, rows), torch.float32)):
        for upstream, *needs in ((grad, 1, 1), (signs, 1, 1), (grad, 0, 1), (signs, 1, 0)):
            need_x, need_weight = map(bool, needs)
            args = (upstream, y, x, weight, slope, torch.float32, need_x, factor, need_weight)
            for got, expected in zip(*triton_and_reference("linear_backward", *args), strict=True):
                scale = expected.abs().max().clamp_min(1) if expected.numel() else 1
                assert_close(got / scale, expected / scale, dtype)


def _linear_adam(rows, widths, dtype, copies, counts=(), factor=True):
    """Arguments of linear_adam, of layers from width to width; the last has strides of 0."""
    *models, b = rows
    xs = [_normal((*rows, n), dtype) for n in widths]
    grads, ys = [_normal(x.shape, dtype) for x in xs[1:]], xs[1:]
    signs = torch.arange(1, 1 - 2 * widths[-1], -2, device=DEVICE).to(dtype)
    grads[-1] = signs.expand(ys[-1].shape)
    pairs = zip(widths[:-1], widths[1:], strict=True)
    shapes = [shape for k, n in pairs for shape in ((*models, n, k), (*models, n))]
    params = [_normal(shape, torch.float32) for shape in shapes]
    moments = [[torch.rand_like(p) for p in params] for _ in range(2)]
    copies = [torch.zeros_like(p, dtype=copies) for p in params] if copies else []
    steps = torch.randint(0, 9, (len(params), *counts), device=DEVICE).float()
    settings = torch.tensor([[1e-2, 0.9, 0.999], [1e-3, 0.5, 0.9]], device=DEVICE)
    slopes = [0.2, 0.0, *[0.3] * len(widths)][: len(grads) - 1] + [1.0]
    scale = torch.rand(rows, device=DEVICE) if factor else None
    layers = (grads, ys, xs[:-1], slopes)
    return [steps, settings, *layers, params, *moments, copies, 1, 1e-8, scale]


ROWS = [((1,), (1, 1), ()), ((40,), (3, 36, 70, 2), ()), ((3, 7), (5, 6, 2), ())]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "widths", "counts"), [*ROWS, ((3, 7), (5, 2), (3,))])
def test_linear_adam(rows, widths, counts, dtype):
    for factor, copies in ((True, torch.bfloat16), (False, torch.float16), (True, None)):
        mine = _linear_adam(rows, widths, dtype, copies, counts, factor)
        theirs = copy.deepcopy(mine)
        for _ in range(2):
            ops.BACKENDS["triton"]["linear_adam"](*mine)
            ops.BACKENDS["reference"]["linear_adam"](*theirs)
        assert torch.equal(mine[0], theirs[0])
        for i in (6, 7, 8):
            assert_close(mine[i], theirs[i], dtype)
        for p, rounded in zip(mine[6], mine[9], strict=False):
            assert torch.equal(rounded, p.to(copies))


def test_linear_adam_wherever_weights_and_inputs_lie(monkeypatch):
    monkeypatch.setattr(tiles, "LINEAR_LAYERS", 2)  # so that there are several launches
    mine = _linear_adam((9,), (4, 8, 36, 2), torch.float32, torch.bfloat16)

    def moved(x):
        return torch.cat((x.flatten()[:1], x.flatten()))[1:].view(x.shape)

    def turned(x):
        return x.mT.contiguous().mT if x.dim() > 1 else x

    for change in (moved, turned):
        theirs = copy.deepcopy(mine)
        for i in (2, 3, 4, 6, 7, 8, 9):
            mine[i] = [change(x) for x in mine[i]]
        ops.BACKENDS["triton"]["linear_adam"](*mine)
        ops.BACKENDS["reference"]["linear_adam"](*theirs)
        for i in (6, 7, 8, 9):
            assert_close(mine[i], theirs[i], torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 1), (14, 3), (130, 2), (3, 14, 5)])
def test_reparameterize_both(shape, dtype):
    for rng in _keys(shape):
        mu, logvar = _normal((*shape[:-1], 2 * shape[-1]), dtype).chunk(2, -1)
        key = (rng.seed, rng.step, rng.lane)
        assert_close(*triton_and_reference("reparameterize_both", mu, logvar, *key), dtype)
        grad_z = _normal((*shape[:-2], shape[-2] // 2, shape[-1]), dtype)
        grad_kl = torch.randn(*shape[:-2], shape[-1], device=DEVICE)
        args = (grad_z, grad_kl, mu, logvar, *key)
        assert_close(*triton_and_reference("reparameterize_both_backward", *args), dtype)


def _adam(copies, dtype, shapes=((65, 17), (1,), (3, 2, 4, 4), (1100,))):
    """Arguments of fused_adam: two groups, a tensor in channels_last, one of more than a tile."""
    params = [_normal(shape, torch.float32) for shape in shapes]
    params[2] = params[2].contiguous(memory_format=torch.channels_last)
    grads = [torch.randn_like(p).to(dtype) for p in params]
    moments = [[torch.rand_like(p) for p in params] for _ in range(2)]
    copies = [torch.zeros_like(p, dtype=copies) for p in params] if copies else []
    settings = torch.tensor([[1e-2, 0.9, 0.999], [1e-3, 0.5, 0.9]], device=DEVICE)
    steps = torch.tensor([0.0, 3.0, 7.0, 1000.0], device=DEVICE)
    return (steps, settings, params, grads, *moments, copies, [0, 1, 0, 1], 1e-8)


@pytest.mark.parametrize("copies", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", DTYPES)
def test_fused_adam(dtype, copies):
    mine = _adam(copies, dtype)
    theirs = copy.deepcopy(mine)
    for found_inf in (None, 1.0, 0.0):
        word = None if found_inf is None else torch.tensor(found_inf, device=DEVICE)
        ops.BACKENDS["triton"]["fused_adam"](*mine, word)
        ops.BACKENDS["reference"]["fused_adam"](*theirs, word)
        for i in (0, 2, 4, 5):
            assert_close(mine[i], theirs[i], torch.float32)
        for p, rounded in zip(mine[2], mine[6], strict=False):
            assert torch.equal(rounded, p.to(copies))


def test_fused_adam_writes_a_table_once_for_the_same_pointers(monkeypatch):
    made, stream = [], [1]
    new = fused_adam._new_table
    monkeypatch.setattr(fused_adam, "_new_table", lambda *args: made.append(args) or new(*args))
    monkeypatch.setattr(fused_adam, "current_stream", lambda device: stream[0])
    monkeypatch.setattr(fused_adam, "_on_a_gpu", lambda device: True)
    fused_adam._kept_table.cache_clear()
    mine = _adam(torch.bfloat16, torch.bfloat16)
    theirs = copy.deepcopy(mine)
    # Twice the same; another stream; while a graph is recorded, each time; other gradients.
    for number, tables in ((1, 1), (1, 1), (2, 2), (None, 3), (None, 4), (1, 4)):
        stream[0] = number
        fused_adam.fused_adam(*mine)
        ops.BACKENDS["reference"]["fused_adam"](*theirs)
        assert len(made) == tables
    fused_adam.fused_adam(*mine[:3], [g.clone() for g in mine[3]], *mine[4:])
    assert len(made) == 5
    fused_adam.fused_adam(*mine[:3], mine[3], *mine[4:])
    assert len(made) == 5
    for _ in range(2):
        ops.BACKENDS["reference"]["fused_adam"](*theirs)
    for got, expected in zip(mine[2], theirs[2], strict=True):
        assert_close(got, expected, torch.float32)
    fused_adam._kept_table.cache_clear()


def test_fused_adam_compiles_once_for_any_pointers():
    keys = set()
    for n in (1, 3, 16, 38, 64):
        params = [torch.zeros(7 * n + i + 4, device=DEVICE) for i in range(n)]
        args = (params, params, params, params, [], [0] * n, 1e-8)
        with planned() as launches:
            fused_adam.fused_adam(torch.zeros(n), torch.zeros(2, 3), *args)
        keys.update(report.key_of(launch) for launch in launches)
    assert len(keys) == 3


def _target(form, logits):
    if form == "float":
        return torch.rand(logits.shape, device=DEVICE)
    if form == "bool":
        return torch.rand(logits.shape, device=DEVICE) > 0.5
    shape = logits.shape
    if form == "bits":
        shape = (*shape[:-3], -(-shape[-3:].numel() // 8))
    return torch.randint(0, 256, shape, dtype=torch.uint8, device=DEVICE)


NLLS = ["bernoulli_nll", "gaussian_nll"]
# 5 x 5 bits leave seven of four bytes over; 28 x 28 are whole bytes, but no whole words.
ODD = [(3, 1, 5, 5), (2, 2, 3, 7, 7), (2, 1, 28, 28)]


@pytest.mark.parametrize("form", ["float", "bool", "bytes", "bits"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (7, 3, 8, 8), (2, 3, 1, 64, 64), *ODD])
@pytest.mark.parametrize("name", NLLS)
def test_pixel_nll(name, shape, dtype, form):
    out = _normal(shape, dtype) * 20
    target = _target(form, out)
    assert_close(*triton_and_reference(name, out, target), dtype)
    # The counter of finished programs is ready for the next launch.
    assert_close(*triton_and_reference(name, out, target), dtype)


@pytest.mark.parametrize("name", NLLS)
@pytest.mark.parametrize("shape", [(3, 1, 8, 8), *ODD])
def test_packed_bits_give_the_bits_of_bool_wherever_they_lie(name, shape):
    out, bits = _normal(shape, torch.float32), torch.rand(shape, device=DEVICE) > 0.5
    rows = packed(bits)
    moved = torch.zeros(rows.numel() + 1, dtype=torch.uint8, device=DEVICE)[1:].view(rows.shape)
    run = ops.BACKENDS["triton"][name]
    nll, grad = run(out, bits)
    for target in (rows, moved.copy_(rows), rows.repeat_interleave(2, -1)[..., ::2]):
        got = run(out, target)
        torch.testing.assert_close(got[0], nll)  # its sum has another order
        assert torch.equal(got[1], grad)


def test_nll_of_channels_last_keeps_the_layout():
    for name in NLLS:
        out = _normal((2, 3, 8, 8), torch.float32).contiguous(memory_format=torch.channels_last)
        got, expected = triton_and_reference(name, out, _target("bits", out))
        torch.testing.assert_close(got, expected)
        assert got[1].stride() == out.stride()


@pytest.mark.parametrize("wrong", [1.01, -0.01, torch.inf, torch.nan])
def test_the_nll_of_a_target_outside_0_to_1_is_not_a_number(wrong):
    logits = _normal((2, 3, 1, 8, 8), torch.float32)
    target = torch.rand(logits.shape, device=DEVICE)
    target[1, 2, 0, 7, 7] = wrong
    nll, _ = ops.BACKENDS["triton"]["bernoulli_nll"](logits, target)
    assert nll.isnan().tolist() == [False, True]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 12), (1, 64, 64), (1, 5, 5), (3, 5, 5)])
@pytest.mark.parametrize("binary", [True, False])
def test_gather_batch(binary, shape, dtype):
    pixels = shape[0] * shape[1] * shape[2]
    count = -(-pixels // 8) if binary else pixels
    data = torch.randint(0, 256, (37, count), dtype=torch.uint8, device=DEVICE)
    for rng in (Philox(4, step=3, device=DEVICE), Philox([4, 9], device=DEVICE)):
        args = (data, list(shape), binary, 7, rng.seed, rng.step, 1, dtype)
        # Drawn alike, and by weight.
        for table in (None, ops.alias_table(torch.rand(37, device=DEVICE) ** 8)):
            got, expected = triton_and_reference("gather_batch", *args, table)
            assert torch.equal(got[1], expected[1])
            assert_close(got[0], expected[0], dtype)


def test_gather_batch_by_weight_of_any_table():
    rng, one = Philox(5, device=DEVICE), torch.zeros(300, device=DEVICE)
    one[299] = 1
    many = torch.rand(300, device=DEVICE) ** 20
    kinds = (one, one + 1e-9, many, many.flip(0) + 1, torch.ones(300, device=DEVICE))
    for i, weights in enumerate(kinds):
        table = ops.alias_table(weights)
        # A view of a larger tensor: where the entries lie is the launcher's business.
        entries = torch.stack((table, table), 1)[:, 1] if i % 2 else table
        data = torch.randint(0, 256, (300, 4), dtype=torch.uint8, device=DEVICE)
        args = (data, [4, 1, 1], False, 17, rng.seed, rng.step, 0, torch.float32, entries)
        got, expected = triton_and_reference("gather_batch", *args)
        assert torch.equal(got[1], expected[1])
        assert torch.equal(got[0], expected[0])
        assert weights[got[1]].min() > 0


@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 5, 5), (3, 5, 5), (1, 8, 8)])
@pytest.mark.parametrize("binary", [True, False])
def test_gather_batch_from_rows_wherever_they_lie(binary, shape):
    pixels = shape[0] * shape[1] * shape[2]
    width = -(-pixels // 8) if binary else pixels
    rng = Philox(4, step=3, device=DEVICE)

    def memory(*size):
        return torch.randint(0, 256, size, dtype=torch.uint8, device=DEVICE)

    for data in (
        memory(37, width), memory(37 * width + 3)[3:].view(37, width), memory(74, width)[::2],
        memory(37, width + 5)[:, 2:-3], memory(37, 2 * width)[:, ::2], memory(width, 37).t(),
    ):  # fmt: skip
        args = (data, list(shape), binary, 7, rng.seed, rng.step, 1, torch.float32)
        got, expected = triton_and_reference("gather_batch", *args)
        assert torch.equal(got[1], expected[1])
        assert torch.equal(got[0], expected[0])


def test_non_contiguous_input():
    rng = Philox(1, device=DEVICE)
    key = (rng.seed, rng.step, 0)
    mu, logvar = _normal((7, 10), torch.float32).chunk(2, dim=1)
    assert_close(*triton_and_reference("reparameterize", mu, logvar, *key), torch.float32)
    z = _normal((4, 7), torch.float32).t()
    assert_close(*triton_and_reference("permute_dims", z, *key), torch.float32)
    logits = _normal((2, 7), torch.float32).t()
    assert_close(*triton_and_reference("logit_ratio", logits, logits.flip(0)), torch.float32)
    images = _normal((3, 1, 8, 16), torch.float32)[..., ::2]
    assert_close(*triton_and_reference("bernoulli_nll", images, images > 0), torch.float32)


def test_public_ops_take_the_backend_and_its_gradient():
    rng = Philox(1, device=DEVICE)
    results = []
    for backend in ("triton", "reference"):
        torch.manual_seed(0)
        mu, logvar = (_normal((7, 2), torch.float32).requires_grad_() for _ in range(2))
        z, kl = ops.reparameterize(mu, logvar, rng, backend)
        tc, loss, _ = ops.logit_ratio(z, ops.permute_dims(z, rng, backend), backend)
        nll = ops.bernoulli_nll(z[..., None, None], z[..., None, None] > 0, backend)
        total = kl.sum() + tc + loss + nll
        results.append([total, *torch.autograd.grad(total, (mu, logvar))])
    torch.testing.assert_close(*results)


def test_refusals():
    rng = Philox(1, device=DEVICE)
    with pytest.raises(TypeError, match="permute_dims: backend='triton' computes in float32"):
        ops.permute_dims(torch.randn(3, 2, dtype=torch.float64, device=DEVICE), rng, "triton")
    with pytest.raises(ValueError, match="metric_votes has reference"):
        ops.metric_votes(
            torch.randn(4, 2, device=DEVICE), (2, 2), votes=1, samples=2, rng=rng,
            scale=torch.ones(2, device=DEVICE), backend="triton",
            active=torch.ones(2, dtype=torch.bool, device=DEVICE),
        )  # fmt: skip


@pytest.mark.skipif(DEVICE == "cuda", reason="there is a GPU: the backend works")
def test_without_a_gpu_and_without_the_interpreter_the_error_is_clear(tmp_path):
    code = (
        "import torch; from fvae import cli, ops\n"
        "try: ops.permute_dims(torch.randn(4, 2), backend='triton')\n"
        "except ValueError as error: print(error)\n"
        "cli.main(['train', '--backend', 'triton', '--device', 'cpu'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"TRITON_INTERPRET": "0"},
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert "backend='triton': needs CUDA tensors, got cpu" in done.stdout
    assert "TRITON_INTERPRET=1" in done.stdout
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(DEVICE != "cuda", reason="no GPU: the dispatcher's Triton ops are not tried")
def test_opcheck_on_the_gpu():
    rng = Philox(1, device=DEVICE)
    key = (rng.seed, rng.step, 0)
    mu = _normal((7, 10), torch.float32)
    opcheck(torch.ops.fvae.permute_dims.default, (mu, *key))
    opcheck(torch.ops.fvae.reparameterize.default, (mu, mu, *key))
    opcheck(torch.ops.fvae.logit_ratio.default, (mu[:, :2], mu[:, 2:4]))
    opcheck(torch.ops.fvae.pairwise_tc.default, (mu, mu, mu, -1.0, -1.0, -1.0))
    opcheck(torch.ops.fvae.reparameterize_both.default, (mu[:6], mu[:6], *key))
    opcheck(torch.ops.fvae.activation_backward.default, (mu, mu, 0.2, torch.float32))
    opcheck(torch.ops.fvae.bias_activation.default, (mu.clone(), mu[0], 0.2))
    args = (mu, mu, mu, mu.t() @ mu, 0.2, torch.float32, True, mu[:, 0])
    opcheck(torch.ops.fvae.linear_backward.default, args)
    opcheck(torch.ops.fvae.fused_adam.default, _adam(torch.bfloat16, torch.bfloat16))
    args = _linear_adam((7,), (3, 5), torch.bfloat16, torch.bfloat16)
    opcheck(torch.ops.fvae.linear_adam.default, tuple(args))
    images = _normal((3, 1, 8, 8), torch.float32)
    opcheck(torch.ops.fvae.bernoulli_nll.default, (images, images > 0))
    opcheck(torch.ops.fvae.gaussian_nll.default, (images, images > 0))
