"""The two players with anybody's discriminator: compiled, transformed, differentiated twice."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.utils.parametrizations import spectral_norm

from fvae import Philox, ops
from fvae.drop_in import tc_and_disc_loss
from fvae.models.stacked import stack
from fvae.models.vae import Discriminator


class AnyDiscriminator(Discriminator):
    """Not the class itself, so that the generic two passes serve it."""


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.second.weight = self.first.weight

    def forward(self, z):
        return self.last(torch.tanh(self.second(torch.tanh(self.first(z)))))


def _mlp(*middle, out=2):
    return nn.Sequential(nn.Linear(4, 8), *middle, nn.Linear(8, out))


KINDS = {
    "two logits": lambda: _mlp(nn.ReLU()),
    "one logit": lambda: nn.Sequential(_mlp(nn.ReLU(), out=1), nn.Flatten(0)),
    "batch norm": lambda: _mlp(nn.BatchNorm1d(8), nn.ReLU()),
    "dropout": lambda: _mlp(nn.Dropout(0.0), nn.LeakyReLU(0.2, inplace=True)),
    "spectral norm": lambda: nn.Sequential(spectral_norm(nn.Linear(4, 8)), nn.Linear(8, 2)),
    "tied weights": Tied,
    "a subclass of ours": lambda: AnyDiscriminator(4, 8, 2),
    "ours": lambda: Discriminator(4, 8, 2),
}


def _step(discriminator, z, z_perm):
    tc, disc_loss, accuracy = tc_and_disc_loss(discriminator, z, z_perm)
    return 3 * tc + disc_loss, accuracy


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_graph_is_the_eager_step(kind):
    torch._dynamo.reset()
    z0, z_perm = torch.randn(6, 4), torch.randn(6, 4)
    discriminator = KINDS[kind]()
    state = copy.deepcopy(discriminator.state_dict())
    results = []
    for step in (_step, torch.compile(_step, fullgraph=True, backend="aot_eager")):
        discriminator.load_state_dict(state)
        discriminator.zero_grad()
        z = z0.clone().requires_grad_()
        loss, accuracy = step(discriminator, z, z_perm)
        loss.backward()
        grads = [p.grad for p in discriminator.parameters()]
        buffers = [b.clone() for b in discriminator.buffers()]
        results.append([loss.detach(), accuracy, z.grad, *grads, *buffers])
    torch.testing.assert_close(results[1], results[0])


def test_buffers_move_once():
    norm = nn.BatchNorm1d(4)
    discriminator = nn.Sequential(norm, nn.Linear(4, 2))
    z, z_perm = torch.randn(6, 4), torch.randn(6, 4)
    tc_and_disc_loss(discriminator, z, z_perm)
    assert norm.num_batches_tracked == 1
    torch.testing.assert_close(norm.running_mean, 0.1 * torch.cat((z, z_perm)).mean(0))
    seen = []
    discriminator = spectral_norm(nn.Linear(4, 2))
    discriminator.register_forward_hook(lambda module, args, out: seen.append(module.weight))
    tc_and_disc_loss(discriminator, z, z_perm)
    assert len(seen) == 2  # both passes, with the same weight
    torch.testing.assert_close(seen[0], seen[1])


def test_what_is_no_module_is_refused():
    layer, z = nn.Linear(4, 2), torch.randn(6, 4)
    for function in (lambda z: layer(z), layer.forward):
        with pytest.raises(TypeError, match="expected a torch.nn.Module"):
            tc_and_disc_loss(function, z, z)


def _pair():
    ours, other = Discriminator(3, 6, 2).double(), AnyDiscriminator(3, 6, 2).double()
    other.load_state_dict(ours.state_dict())
    return ours, other


def test_second_derivatives_of_the_shared_backward():
    z = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    z_perm = torch.randn(5, 3, dtype=torch.float64)
    found = []
    for discriminator in _pair():
        tc, loss, _ = tc_and_disc_loss(discriminator, z, z_perm)
        inputs = (z, *discriminator.parameters())
        first = torch.autograd.grad(tc * tc + loss * tc, inputs, create_graph=True)
        penalty = sum((g**2).sum() for g in first)
        found.append(torch.autograd.grad(penalty, inputs, allow_unused=True))
    torch.testing.assert_close(*found)
    ours, _ = _pair()
    assert torch.autograd.gradgradcheck(lambda z: tc_and_disc_loss(ours, z, z_perm)[0] ** 2, z)


def test_float64_stays_float64():
    ours, other = _pair()
    z, z_perm = torch.randn(2, 5, 3, dtype=torch.float64).unbind()
    got, want = (tc_and_disc_loss(one, z, z_perm) for one in (ours, other))
    assert got[0].dtype == got[1].dtype == torch.float64
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


class Loss(nn.Module):
    def __init__(self, discriminator):
        super().__init__()
        self.discriminator = discriminator

    def forward(self, z, z_perm):
        return _step(self.discriminator, z, z_perm)[0]


def test_an_ensemble_and_gradients_by_torch_func():
    z, z_perm = torch.randn(3, 5, 3), torch.randn(5, 3)
    models = [Loss(Discriminator(3, 6, 2)) for _ in range(3)]
    parameters, _ = stack_module_state(models)

    def loss(parameters, z):
        return functional_call(models[0], parameters, (z, z_perm))

    got = vmap(grad(loss, argnums=(0, 1)))(parameters, z)
    for m, model in enumerate(models):
        one = z[m].clone().requires_grad_()
        model(one, z_perm).backward()
        torch.testing.assert_close(got[1][m], one.grad)
        for name, p in model.named_parameters():
            torch.testing.assert_close(got[0][name][m], p.grad)


def test_stacked_discriminators_differentiate_twice_as_each_alone():
    models = [Discriminator(3, 6, 2).double() for _ in range(2)]
    z, z_perm = torch.randn(2, 2, 5, 3, dtype=torch.float64).unbind()

    def penalty(discriminator, z, z_perm):
        z = z.clone().requires_grad_()
        tc, loss, _ = tc_and_disc_loss(discriminator, z, z_perm)
        inputs = (z, *discriminator.parameters())
        first = torch.autograd.grad((tc * loss).sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum((g**2).sum() for g in first), inputs)

    together = penalty(stack(models), z, z_perm)
    for m, model in enumerate(models):
        alone = penalty(model, z[m], z_perm[m])
        torch.testing.assert_close([g[m] for g in together], list(alone))


def _losses(discriminator, dtype, scale=1.0):
    """A step of somebody's loop; the losses, and the gradients of all weights, unscaled."""
    torch.manual_seed(1)
    encoder, decoder = nn.Linear(16, 8), nn.Linear(4, 16)
    modules = nn.ModuleList([encoder, decoder, discriminator])
    x = torch.rand(16, 16)
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        mu, logvar = encoder(x).chunk(2, 1)
        z, kl = ops.reparameterize(mu, logvar, Philox(2))
        logits = decoder(z).view(16, 1, 4, 4)
        recon = ops.bernoulli_nll(logits, x.view(16, 1, 4, 4))
        z_perm = ops.permute_dims(z.detach(), Philox(3))
        tc, disc_loss, _ = tc_and_disc_loss(discriminator, z, z_perm)
        loss = recon + kl.sum() + 10 * tc + disc_loss
    assert dtype is None or z.dtype == logits.dtype == dtype
    optimizer = torch.optim.SGD(modules.parameters(), 0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=dtype == torch.float16)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    grads = [p.grad for p in modules.parameters()]
    modules.zero_grad()
    return loss.detach(), grads


@pytest.mark.parametrize("kind", ["ours", "a subclass of ours", "one logit"])
def test_float16_under_autocast_with_a_grad_scaler(kind):
    discriminator = KINDS[kind]()
    loss, grads = _losses(discriminator, None)
    low, low_grads = _losses(discriminator, torch.float16, scale=1024.0)
    torch.testing.assert_close(low, loss, rtol=1e-3, atol=1e-3)
    for got, want in zip(low_grads, grads, strict=True):
        assert got.dtype == torch.float32
        assert (got - want).norm() <= 0.02 * want.norm() + 1e-4


@pytest.mark.parametrize(
    "dtypes", [(torch.float16, torch.float32), (torch.bfloat16, torch.float16)]
)
def test_codes_of_two_dtypes(dtypes):
    z, z_perm = (torch.randn(6, 4).to(dtype) for dtype in dtypes)
    ours, other = Discriminator(4, 8, 2), AnyDiscriminator(4, 8, 2)
    other.load_state_dict(ours.state_dict())
    want = tc_and_disc_loss(ours, z.float(), z_perm.float())
    torch.testing.assert_close(tc_and_disc_loss(ours, z, z_perm), want)
    with torch.autocast("cpu", torch.bfloat16):
        got = tc_and_disc_loss(other, z, z_perm)
    torch.testing.assert_close(got[:2], want[:2], rtol=0.05, atol=0.05)
