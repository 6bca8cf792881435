import pytest
import torch
from torch import nn

from fvae import Philox, ops
from fvae.models.vae import VAE, Discriminator
from fvae.training import objectives
from fvae.training.two_players import two_players


class AnyDiscriminator(Discriminator):
    """Not the class itself, so that the generic two passes serve it."""


def _pair(dtype=torch.float64, dims=5):
    ours = Discriminator(dims, 16, 3).to(dtype)
    other = AnyDiscriminator(dims, 16, 3).to(dtype)
    other.load_state_dict(ours.state_dict())
    return ours, other


@pytest.mark.parametrize("rows", [1, 7, 65])
def test_shared_backward_equals_two_passes(rows):
    results = []
    z = torch.randn(rows, 5, requires_grad=True)
    z_perm = torch.randn(rows, 5)
    for discriminator in _pair(torch.float32):
        tc, loss, accuracy = two_players(discriminator, z, z_perm)
        grads = torch.autograd.grad(3.5 * tc + 1.7 * loss, [z, *discriminator.parameters()])
        results.append([tc, loss, accuracy, *grads])
    for shared, generic in zip(*results, strict=True):
        torch.testing.assert_close(shared, generic, rtol=1e-5, atol=1e-7)


def test_shared_backward_equals_the_textbook():
    discriminator, _ = _pair(torch.float32)
    z = torch.randn(9, 5, requires_grad=True)
    z_perm = torch.randn(9, 5)
    tc, loss, _ = two_players(discriminator, z, z_perm)
    got = torch.autograd.grad(tc + loss, [z, *discriminator.parameters()])

    logits = discriminator(z)
    (want_z,) = torch.autograd.grad((logits[:, 0] - logits[:, 1]).mean(), z)
    both = discriminator(torch.cat((z, z_perm)).detach())
    classes = torch.arange(2).repeat_interleave(9)
    want = torch.autograd.grad(
        nn.functional.cross_entropy(both, classes), discriminator.parameters()
    )
    for g, w in zip(got, [want_z, *want], strict=True):
        torch.testing.assert_close(g, w, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", [0, 1])
def test_no_leak_between_the_players(kind):
    discriminator = _pair(torch.float32)[kind]
    z = torch.randn(7, 5, requires_grad=True)
    z_perm = torch.randn(7, 5, requires_grad=True)
    tc, loss, _ = two_players(discriminator, z, z_perm)
    loss.backward(retain_graph=True)
    assert z.grad is None or z.grad.abs().max() == 0
    before = [p.grad.clone() for p in discriminator.parameters()]
    tc.backward()
    assert z.grad.abs().max() > 0
    assert z_perm.grad is None or z_perm.grad.abs().max() == 0
    for p, grad in zip(discriminator.parameters(), before, strict=True):
        assert torch.equal(p.grad, grad)


def test_autocast_stays_close_to_fp32():
    discriminator, _ = _pair(torch.float32)
    z, z_perm = torch.randn(64, 5, requires_grad=True), torch.randn(64, 5)
    grads = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            tc, loss, _ = two_players(discriminator, z, z_perm)
        grads.append(torch.autograd.grad(tc + loss, [z, *discriminator.parameters()]))
    for exact, rough in zip(*grads, strict=True):
        assert rough.dtype == torch.float32
        assert (exact - rough).norm() < 0.1 * exact.norm()


def test_one_step_of_any_loop_compiles():
    vae, discriminator = VAE(1, 4, (4, 4, 4, 4), 8), Discriminator(4, 8, 2)
    x = torch.rand(6, 1, 64, 64)

    def loss(x, rng):
        return objectives.factor_vae(vae, discriminator, x[:3], x[3:], 10.0, rng)["loss"]

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(x, Philox(0))
    compiled.backward()
    got = [p.grad for p in vae.parameters()]
    vae.zero_grad()
    eager = loss(x, Philox(0))
    eager.backward()
    torch.testing.assert_close(compiled, eager)
    for a, p in zip(got, vae.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad, rtol=1e-4, atol=1e-5)


def test_objectives_add_up():
    vae, discriminator = VAE(3, 4, (4, 4, 4, 4), 8), Discriminator(4, 8, 2)
    x, second = torch.rand(3, 3, 64, 64), torch.rand(3, 3, 64, 64)
    terms = objectives.beta_vae(vae, x, 4.0, Philox(0))
    torch.testing.assert_close(terms["loss"], terms["recon"] + 4 * terms["kl"])
    torch.testing.assert_close(terms["kl"], terms["kl_dims"].sum())
    mu, logvar = vae.encode(x)
    z, _ = ops.reparameterize(mu, logvar, Philox(0))
    torch.testing.assert_close(terms["recon"], ops.bernoulli_nll(vae.decode(z), x))
    terms = objectives.factor_vae(vae, discriminator, x, second, 35.0, Philox(0))
    total = terms["recon"] + terms["kl"] + 35 * terms["tc"] + terms["disc_loss"]
    torch.testing.assert_close(terms["loss"], total)


def test_warm_up_is_linear():
    weight = objectives.weight_at(35.0, 10)
    assert [weight(0), weight(5), weight(10), weight(99)] == [0.0, 17.5, 35.0, 35.0]
    assert objectives.weight_at(4.0, 0)(0) == 4.0


def test_default_discriminator_has_the_papers_size():
    count = sum(p.numel() for p in Discriminator(10).parameters())
    assert count == 5_018_002
    assert sum(p.numel() for p in Discriminator(10, hidden_layers=5).parameters()) == 4_017_002


def test_bad_shapes():
    with pytest.raises(ValueError, match="z_perm: got"):
        two_players(Discriminator(5, 8, 1), torch.randn(4, 5), torch.randn(3, 5))
