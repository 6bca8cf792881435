"""A VAE on a CPU whose first and last convolution are ours, beside PyTorch's layers."""

import pytest
import torch
from shared import calls_of, needs_extension
from torch import nn

from fvae import ops
from fvae.models import ends, forms, sequences
from fvae.models.convolution import Convolution, ConvTranspose2d
from fvae.models.vae import VAE, channels_last

pytestmark = needs_extension

PRECISIONS = ("fp32", "autocast", "bf16")


@pytest.fixture
def calls(monkeypatch):
    """The names of our ops that were called."""
    return calls_of(("conv_from_bits", "conv_to_pixels"), ends._FVAE, monkeypatch)


def _vae(channels=1, side=32):
    torch.manual_seed(0)
    vae = VAE(channels, 5, (8, 8, 8, 8), 16, side)
    return channels_last(vae, "cpu"), (torch.rand(6, channels, side, side) > 0.8).float()


def _step(vae, x, precision):
    """What a step makes of images: logits, and the gradients of all weights."""
    vae.zero_grad()
    if precision == "bf16":
        vae, x = vae.to(torch.bfloat16), x.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        mu, logvar = vae.encode(x)
        decoded = vae.decode((mu + logvar).to(x.dtype))
    (decoded.float().square().mean() + mu.sum()).backward()
    return [
        decoded.detach().float(),
        mu.detach(),
        *(p.grad.float().clone() for p in vae.parameters()),
    ]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_step_is_that_of_pytorch_s_layers(precision, channels, calls):
    vae, x = _vae(channels)
    ours = _step(vae, x, precision)
    assert calls == ["conv_from_bits"] * (channels == 1) + ["conv_to_pixels"]
    with forms.plainly():
        theirs, exact = _step(vae, x, precision), _step(*_vae(channels), "fp32")
    for one, other, want in zip(ours, theirs, exact, strict=True):
        scale = float(want.abs().max())
        error, their_error = (float((t - want).abs().max()) / scale for t in (one, other))
        # In bfloat16 each is as far off as the other, and not alike.
        assert error < 1e-5 if precision == "fp32" else error < 0.02 + 2 * their_error


def test_nobody_s_gradient_is_wanted(calls):
    vae, x = _vae()
    for half in (False, True):
        vae = vae.to(torch.bfloat16) if half else vae
        with torch.no_grad():
            mu, _ = vae.encode(x.to(torch.bfloat16) if half else x)
            with forms.plainly():
                expected, _ = vae.encode(x.to(torch.bfloat16) if half else x)
        torch.testing.assert_close(mu, expected, rtol=2e-2, atol=2e-3 if half else 1e-6)
    assert calls == ["conv_from_bits"] * 2


def _grey(vae, x):
    return vae, x * 0.5


def _not_last(vae, x):
    vae.encoder.insert(1, nn.Identity())
    return vae, x


def _hooked(vae, x):
    vae.encoder[0].register_forward_hook(lambda *_: None)
    return vae, x


def _toward_images(vae, x):
    return vae, x.requires_grad_()


def _float64(vae, x):
    return vae.double(), x.double()


@pytest.mark.parametrize("change", [_grey, _not_last, _hooked, _toward_images, _float64])
def test_what_is_not_ours_is_pytorch_s(change, calls):
    vae, x = change(*_vae())
    mu, _ = vae.encode(x)
    mu.sum().backward()
    assert calls == []
    with forms.plainly():
        assert torch.equal(mu, vae.encode(x)[0])


def test_without_the_extension_nothing_is(monkeypatch, calls):
    backends = {name: table for name, table in ops.BACKENDS.items() if name != "cpp"}
    monkeypatch.setattr(ops, "BACKENDS", backends)
    vae, x = _vae()
    _step(vae, x, "fp32")
    assert calls == []


def test_gradients_of_gradients_are_those_of_pytorch_s_layers():
    vae, x = _vae()

    def twice():
        outputs = (*vae.encode(x), vae.decode(torch.ones(2, 5)))
        loss = sum(out.float().square().sum() for out in outputs)
        first = torch.autograd.grad(loss, list(vae.parameters()), create_graph=True)
        penalty = sum(g.square().sum() for g in first)
        return torch.autograd.grad(penalty, list(vae.parameters()), allow_unused=True)

    ours = twice()
    with forms.plainly():
        theirs = twice()
    for one, other in zip(ours, theirs, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            scale = other.abs().max()
            torch.testing.assert_close(one / scale, other / scale, rtol=0, atol=1e-4)


@pytest.mark.parametrize("count", range(1, 5))
def test_sequences_of_any_length(count, calls):
    layers = nn.Sequential(
        nn.Conv2d(1, 8, 4, 2, 1), nn.ReLU(), ConvTranspose2d(8, 1, 4, 2, 1), nn.Identity()
    )[:count]
    x = (torch.rand(3, 1, 16, 16) > 0.5).float()
    torch.testing.assert_close(sequences.run(layers, x), layers(x), rtol=1e-5, atol=1e-6)
    assert calls == ["conv_from_bits"] * (count > 1) + ["conv_to_pixels"] * (count > 2)
    calls.clear()
    after = nn.Sequential(nn.ReLU(), layers[-1] if count == 3 else ConvTranspose2d(8, 1, 4, 2, 1))
    y = torch.randn(3, 8, 4, 4)
    torch.testing.assert_close(sequences.run(after, y), after(y), rtol=1e-5, atol=1e-6)
    assert calls == ["conv_to_pixels"]


def test_other_kernels_are_left_alone():
    x, weight = torch.ones(1, 1, 8, 8), torch.ones(2, 1, 3, 3)
    form = Convolution((2, 2), (1, 1), None)
    assert ends.first(x, weight, torch.ones(2), form) is None
    weight = torch.ones(2, 1, 4, 4)
    assert ends.first(x, weight, torch.ones(2), form._replace(padding=(0, 0))) is None
    assert ends.first(x[..., :6], weight, torch.ones(2), form) is None
    wide = torch.ones(1, ends.MOST_COLOURS + 1, 4, 4)
    up = form._replace(output_padding=(0, 0))
    assert ends.last(x, wide, torch.ones(ends.MOST_COLOURS + 1), up) is None
