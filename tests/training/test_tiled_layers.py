"""A VAE on a CPU whose inner convolutions are ours, beside PyTorch's layers."""

import pytest
import torch
from shared import calls_of, needs_extension

from fvae.models import forms, tiles
from fvae.models.convolution import Convolution
from fvae.models.vae import VAE, channels_last
from fvae.ops import convolution

pytestmark = needs_extension


@pytest.fixture(autouse=True)
def calls(monkeypatch):
    """Calls of our ops, on any processor: slower ones have them in loops."""
    monkeypatch.setattr(convolution, "has_matrix_units", lambda: True)
    monkeypatch.setattr(convolution, "has_wide_vectors", lambda: True)
    return calls_of(("conv4x4", "conv4x4_backward"), tiles._FVAE, monkeypatch)


def _vae(channels=(16, 16, 32, 16)):
    torch.manual_seed(0)
    vae = channels_last(VAE(1, 5, channels, 16, 32), "cpu")
    return vae, (torch.rand(5, 1, 32, 32) > 0.8).float()


def _step(vae, x, dtype):
    vae, x = vae.to(dtype), x.to(dtype)
    mu, logvar = vae.encode(x)
    decoded = vae.decode((mu + logvar).to(dtype))
    (decoded.float().square().mean() + mu.sum()).backward()
    grads = [p.grad.float().clone() for p in vae.parameters()]
    return [decoded.detach().float(), mu.detach(), *grads]


@pytest.mark.parametrize(
    ("dtype", "finer", "rounding"),
    [(torch.bfloat16, torch.float32, 0.02), (torch.float32, torch.float64, 1e-5)],
    ids=["bf16", "fp32"],
)
def test_a_step_is_that_of_pytorch_s_layers(dtype, finer, rounding, calls):
    ours = _step(*_vae(), dtype)
    assert calls == ["conv4x4"] * 6 + ["conv4x4_backward"] * 6
    with forms.plainly():
        theirs, exact = _step(*_vae(), dtype), _step(*_vae(), finer)
    for one, other, want in zip(ours, theirs, exact, strict=True):
        scale = float(want.abs().max())
        error, their_error = (float((t - want).abs().max()) / scale for t in (one, other))
        # Each is as far off as the other, and not alike.
        assert error < rounding + 2 * their_error


def test_nobody_s_gradient_is_wanted(calls):
    vae, x = _vae()
    vae, x = vae.to(torch.bfloat16), x.bfloat16()
    with torch.no_grad():
        mu, _ = vae.encode(x)
        with forms.plainly():
            expected, _ = vae.encode(x)
    torch.testing.assert_close(mu, expected, rtol=2e-2, atol=4e-3)
    assert calls == ["conv4x4"] * 3


def test_gradients_of_gradients_are_those_of_pytorch_s_layers():
    weight, bias = torch.randn(16, 16, 4, 4) / 16, torch.randn(16)
    x = torch.randn(2, 16, 4, 4)
    leaves = [t.bfloat16().requires_grad_() for t in (x, weight, bias)]

    def twice(run):
        first = torch.autograd.grad(run(*leaves).square().sum(), leaves, create_graph=True)
        penalty = sum(g.float().square().sum() for g in first)
        return torch.autograd.grad(penalty, leaves)

    for transposed in (False, True):
        form = Convolution((2, 2), (1, 1), (0, 0) if transposed else None)
        assert tiles.fits(*leaves[:2], form, 0.0)
        ours = twice(lambda x, w, b, form=form: tiles.convolve(x, w, b, form, 0.0))
        theirs = twice(lambda x, w, b, up=transposed: tiles._plainly(x, w, b, up).relu())
        for one, other in zip(ours, theirs, strict=True):
            scale = other.float().abs().max()
            torch.testing.assert_close(one / scale, other / scale, rtol=0, atol=0.05)


@pytest.mark.parametrize("channels", [(8, 16, 32, 16), (16, 24, 32, 16), (16, 16, 32, 8)])
def test_other_channels_are_left_alone(channels, calls):
    ours = _step(*_vae(channels), torch.bfloat16)
    assert calls.count("conv4x4") == calls.count("conv4x4_backward") < 6
    assert all(t.isfinite().all() for t in ours)


def test_other_layers_are_left_alone():
    form, x, weight = (
        Convolution((2, 2), (1, 1), None),
        torch.ones(1, 16, 4, 4),
        torch.ones(16, 16, 4, 4),
    )
    x, weight = x.bfloat16(), weight.bfloat16()
    assert tiles.fits(x, weight, form, 0.0) and tiles.fits(x, weight, form, 1.0)
    assert not tiles.fits(x, weight, form, 0.2)
    assert tiles.fits(x.float(), weight.float(), form, 0.0)
    assert not tiles.fits(x.double(), weight.double(), form, 0.0)
    assert not tiles.fits(x.float(), weight, form, 0.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert not tiles.fits(x.float(), weight.float(), form, 0.0)
    assert not tiles.fits(x[..., :3], weight, form, 0.0)
    assert not tiles.fits(x, weight, form._replace(padding=(0, 0)), 0.0)
    assert not tiles.fits(x, weight[..., :2], form, 0.0)
    with torch.autocast("cpu", torch.float16):
        assert not tiles.fits(x, weight, form, 0.0)


def test_on_a_processor_that_is_not_fast_with_them_nothing_is(monkeypatch, calls):
    monkeypatch.setattr(convolution, "has_matrix_units", lambda: False)
    _step(*_vae(), torch.bfloat16)
    monkeypatch.setattr(convolution, "has_wide_vectors", lambda: False)
    _step(*_vae(), torch.float32)
    assert calls == []
