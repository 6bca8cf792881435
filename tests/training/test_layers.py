"""Layers in one call are the modules, whoever looks at them and however they are differentiated."""

import pytest
import torch
from torch import nn

from fvae import Philox, ops
from fvae.models import forms, sequences
from fvae.models.vae import VAE, Discriminator


def _vae(dtype=torch.float32, channels=3):
    torch.manual_seed(0)
    return VAE(channels, 4, (5, 4, 7, 4), 9).to(dtype), torch.rand(3, channels, 64, 64).to(dtype)


def _by_modules(vae, x):
    return vae.decoder(vae.encoder(x).chunk(2, 1)[0])


def _fused(vae, x):
    return vae.decode(vae.encode(x)[0].to(x.dtype))


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Layers as a GPU has them, of the operations that a CPU has."""
    monkeypatch.setattr(forms, "is_fused", lambda x: not forms.is_plain())


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "autocast", "float64"])
def test_values_and_gradients_are_the_modules(as_on_a_gpu, precision, last):
    dtype = {"bf16": torch.bfloat16, "float64": torch.float64}.get(precision, torch.float32)
    vae, x = _vae(dtype)
    if last:
        vae = vae.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    found, tight = [], precision in ("fp32", "float64")
    for run in (_fused, _by_modules):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
            out = run(vae, x)
        grads = torch.autograd.grad(out.float().square().sum(), [x, *vae.parameters()])
        assert [g.dtype for g in grads] == [t.dtype for t in (x, *vae.parameters())]
        with (
            torch.no_grad(),
            torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"),
        ):
            torch.testing.assert_close(run(vae, x), out.detach(), rtol=0, atol=0)
        found.append([out, *grads])
    for got, want in zip(*found, strict=True):
        # Rounding in bfloat16 is noise, which single numbers may be: their norm tells.
        assert (got - want).norm() <= (1e-5 if tight else 0.1) * want.norm()


def test_plainly_all_layers_are_pytorchs(as_on_a_gpu, monkeypatch):
    vae, x = _vae()
    monkeypatch.setattr(sequences, "one_layer", lambda *args: pytest.fail("is fused"))
    with forms.plainly():
        want = _fused(vae, x)
    with pytest.raises(pytest.fail.Exception):
        _fused(vae, x)
    torch.testing.assert_close(want, _by_modules(vae, x), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_cpu_training_is_pytorchs_and_encoding_oneDNNs(dtype):
    vae, x = _vae(dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(vae.encode(x)[0], vae.encoder(x).float().chunk(2, 1)[0])
    with torch.inference_mode():
        got, want = vae.encode(x)[0], vae.encoder(x).float().chunk(2, 1)[0]
    torch.testing.assert_close(got, want, atol=1e-6 if dtype == torch.float32 else 1e-2, rtol=0)


def test_gradients_of_gradients(as_on_a_gpu):
    found = []
    for run in (_fused, _by_modules):
        vae, x = _vae()
        x.requires_grad_()
        (grad,) = torch.autograd.grad(run(vae, x).square().sum(), x, create_graph=True)
        grad.square().sum().backward()
        found.append([p.grad for p in vae.parameters() if p.grad is not None])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4 * float(want.abs().max()))


def test_hooks_see_every_layer(as_on_a_gpu):
    vae, x = _vae()
    seen = []
    want = vae.encode(x)
    for layer in vae.encoder:
        layer.register_forward_hook(lambda module, *_: seen.append(type(module).__name__))
    torch.testing.assert_close(vae.encode(x), want)
    assert seen == [type(layer).__name__ for layer in vae.encoder]
    discriminator = Discriminator(4, 8, 2)
    discriminator.layers[1].register_forward_hook(lambda *_: seen.append("discriminator"))
    discriminator(torch.randn(2, 4))
    assert seen[-1] == "discriminator"


def test_a_layer_of_another_kind_is_asked_itself(as_on_a_gpu):
    class Twice(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    x = torch.randn(3, 4)
    odd = nn.Sequential(Twice(4, 5), nn.ReLU(), nn.Linear(5, 4, bias=False), nn.LeakyReLU(0.3))
    torch.testing.assert_close(sequences.run(odd, x), odd(x))
    conv = nn.Sequential(nn.Conv2d(2, 3, 3, padding="same"), nn.ReLU(), nn.Flatten())
    image = torch.randn(2, 2, 5, 5)
    torch.testing.assert_close(sequences.run(conv, image), conv(image))


def test_transforms_go_through(as_on_a_gpu):
    vae, x = _vae()
    state = dict(vae.named_parameters())

    def loss(state, x):
        return torch.func.functional_call(vae, state, (x[None],))[0].square().sum()

    grads = torch.func.vmap(torch.func.grad(loss), (None, 0))(state, x)
    loss(state, x[0]).backward()
    for name, p in vae.named_parameters():
        if p.grad is not None:
            scale = p.grad.abs().max()
            torch.testing.assert_close(grads[name][0] / scale, p.grad / scale, rtol=1e-3, atol=1e-4)


def test_what_is_no_number_reaches_the_output():
    for dtype in (torch.float32, torch.bfloat16):
        vae, x = _vae(dtype)
        with torch.no_grad():
            vae.encoder[0].weight[1] = torch.nan
            assert vae.encode(x)[0].isnan().all()


def test_both_batches_are_each_alone():
    mu, logvar, rng = torch.randn(8, 3), torch.randn(8, 3), Philox(3)
    for t in (mu, logvar):
        t.requires_grad_()
    z, second, kl = ops.reparameterize_both(mu, logvar, rng)
    want = ops.reparameterize(mu[:4], logvar[:4], rng)
    torch.testing.assert_close((z, kl), want)
    other = ops.reparameterize(mu[4:], logvar[4:], rng.at_lane(1))[0]
    torch.testing.assert_close(second, other.detach())
    assert not second.requires_grad
    got = torch.autograd.grad(z.square().sum() + kl.sum(), (mu, logvar), create_graph=True)
    loss = want[0].square().sum() + want[1].sum()
    torch.testing.assert_close(got, torch.autograd.grad(loss, (mu, logvar), create_graph=True))
    again = torch.autograd.grad(got[0].square().sum(), mu)
    assert again[0][:4].abs().min() > 0 and again[0][4:].abs().max() == 0
    key = (rng.seed, rng.step, rng.lane)
    args = (mu.detach(), logvar.detach(), *key)
    torch.library.opcheck(torch.ops.fvae.reparameterize_both.default, args)
    with pytest.raises(ValueError, match="mu: got 3 rows"):
        ops.reparameterize_both(mu[:3], logvar[:3], rng)
