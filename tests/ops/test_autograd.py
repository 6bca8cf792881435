"""Gradients of every op in every way that PyTorch has: twice, by torch.func, in forward mode."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

from fvae import Philox, ops, philox

BACKENDS = ["reference", "triton"]
RNG = Philox(7, step=3)
B, D = 5, 4
WEIGHT = torch.linspace(-1, 1, D * 2).view(D, 2)


def _noise(rows=B, dims=D):
    count = rows * dims
    word = philox.words(RNG.seed, RNG.step, philox.Stream.NOISE, count + count % 2)
    return philox.normal(word)[:count].view(rows, dims)


def _images(x):
    return x[:, None, :, None]


def everything(mu, logvar, backend=None):
    """A loss through all differentiable ops, of no order in which second derivatives vanish."""
    z, kl = ops.reparameterize(mu, logvar, RNG, backend)
    permuted = ops.permute_dims(z, RNG, backend)
    weight = WEIGHT.to(z.dtype)
    tc, disc_loss, _ = ops.logit_ratio(z @ weight, permuted @ weight, backend)
    nll = ops.bernoulli_nll(_images(z), _images(logvar.detach() > 0), backend)
    square = ops.gaussian_nll(_images(z * z), _images(mu.detach() > 0), backend)
    return (kl**2).sum() + tc**2 + disc_loss + nll + square + (permuted[0] ** 3).sum()


def textbook(mu, logvar):
    """The same in plain PyTorch."""
    z = mu + (logvar / 2).exp() * _noise().to(mu.dtype)
    kl = ((mu**2 + logvar.exp() - logvar - 1) / 2).mean(0)
    rows = ops.permute_dims(torch.arange(B).float()[:, None].expand(B, D), RNG).long()
    permuted = z.gather(0, rows)
    logits, logits_perm = z @ WEIGHT.to(z.dtype), permuted @ WEIGHT.to(z.dtype)
    tc = (logits[:, 0] - logits[:, 1]).mean()
    classes = torch.tensor([0, 1]).repeat_interleave(B)
    disc_loss = F.cross_entropy(torch.cat((logits, logits_perm)), classes)
    target, other = (logvar.detach() > 0).to(z.dtype), (mu.detach() > 0).to(z.dtype)
    nll = F.binary_cross_entropy_with_logits(z, target, reduction="sum") / B
    square = ((z * z - other) ** 2).sum() / 2 / B
    return (kl**2).sum() + tc**2 + disc_loss + nll + square + (permuted[0] ** 3).sum()


def _inputs(*models, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    shape = (2, *models, B, D)
    return torch.randn(shape, generator=generator).to(dtype).unbind(0)


def _penalty(loss, inputs):
    """Gradients of a gradient penalty, the second derivatives that people take."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    first = torch.autograd.grad(loss(*inputs), inputs, create_graph=True)
    penalty = sum((g**2).sum() for g in first)
    return torch.autograd.grad(penalty, inputs)


# --- second derivatives ---------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_gradient_penalty_equals_the_textbook_s(backend):
    got = _penalty(lambda *x: everything(*x, backend), _inputs())
    torch.testing.assert_close(got, _penalty(textbook, _inputs()), rtol=1e-4, atol=1e-4)


def test_the_kl_term_of_a_penalty_is_whole():
    """Of 1/B (mu^2 / 2) the penalty is |mu / B|^2, whose gradient is 2 mu / B^2."""
    mu = torch.randn(B, D, requires_grad=True)
    kl = ops.reparameterize(mu, torch.zeros(B, D), RNG)[1].sum()
    (first,) = torch.autograd.grad(kl, mu, create_graph=True)
    (second,) = torch.autograd.grad((first**2).sum(), mu)
    torch.testing.assert_close(second, 2 * mu / B**2)


def _double(*shape):
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def test_gradgradcheck_of_each_op():
    """In the inputs, and in the gradient that comes from above."""
    target = torch.rand(2, 1, 3, 3, dtype=torch.float64)
    mu, logvar, logits = _double(3, 2), _double(3, 2), _double(2, 1, 3, 3)
    assert gradgradcheck(lambda m, v: ops.reparameterize(m, v, RNG), (mu, logvar))
    assert gradgradcheck(lambda m: ops.permute_dims(m, RNG), (mu,))
    assert gradgradcheck(lambda a, b: ops.logit_ratio(a, b)[:2], (mu, logvar))
    assert gradgradcheck(lambda x: ops.bernoulli_nll(x, target), (logits,))
    assert gradgradcheck(lambda x: ops.gaussian_nll(x, target), (logits,))
    models = _double(2, 3, 2), _double(2, 3, 2)
    assert gradgradcheck(lambda m, v: ops.reparameterize(m, v, Philox([1, 2])), models)


def test_a_third_derivative():
    """d^3 / dlogvar^3 of the KL is exp(logvar) / 2."""
    logvar = torch.randn(1, 3, requires_grad=True)
    found = ops.reparameterize(torch.zeros(1, 3), logvar, RNG)[1].sum()
    for _ in range(3):
        (gradient,) = torch.autograd.grad(found, logvar, create_graph=True)
        found = gradient.sum()
    torch.testing.assert_close(gradient, logvar.exp() / 2)


def test_the_fast_gradient_is_the_differentiable_one():
    mu, logvar = (x.requires_grad_() for x in map(torch.clone, _inputs()))
    fast = torch.autograd.grad(everything(mu, logvar), (mu, logvar))
    slow = torch.autograd.grad(everything(mu, logvar), (mu, logvar), create_graph=True)
    torch.testing.assert_close(slow, fast, rtol=1e-6, atol=1e-6)
    assert all(g.requires_grad for g in slow) and not any(g.requires_grad for g in fast)


# --- torch.func -----------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_per_sample_gradients_are_those_of_a_loop(backend):
    mu, logvar = _inputs(3)

    def loss(m, v):
        return everything(m, v, backend)

    want = [grad(textbook, argnums=(0, 1))(*one) for one in zip(mu, logvar, strict=True)]
    want = [torch.stack(each) for each in zip(*want, strict=True)]
    mapped = vmap(grad(loss, argnums=(0, 1)))(mu, logvar)
    of_the_sum = grad(lambda *x: vmap(loss)(*x).sum(), argnums=(0, 1))(mu, logvar)
    for got in (mapped, of_the_sum):
        for g, w in zip(got, want, strict=True):
            torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-4)


def test_eager_gradients_through_a_vmap():
    mu, logvar = (x.requires_grad_() for x in map(torch.clone, _inputs(3)))
    got = torch.autograd.grad(vmap(everything)(mu, logvar).sum(), (mu, logvar))
    loop = sum(everything(*one) for one in zip(mu, logvar, strict=True))
    torch.testing.assert_close(got, torch.autograd.grad(loop, (mu, logvar)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("in_dims", "moved"), [((1, 2), True), ((0, None), False)])
def test_any_dimension_may_be_mapped_or_none(in_dims, moved):
    mu, logvar = _inputs(3)
    if moved:
        got = vmap(everything, in_dims)(mu.movedim(0, 1), logvar.movedim(0, 2))
    else:
        logvar = logvar[:1].expand(3, B, D)
        got = vmap(everything, in_dims)(mu, logvar[0])
    want = [everything(*one) for one in zip(mu, logvar, strict=True)]
    torch.testing.assert_close(got, torch.stack(want))


@pytest.mark.parametrize("key", [5, [5, 6]])
@pytest.mark.parametrize("backend", BACKENDS)
def test_models_inside_a_vmap_draw_what_they_draw_in_a_loop(key, backend):
    mu, logvar = _inputs(3, 2)

    def draws(m, v):
        rng = Philox(key)
        z, kl = ops.reparameterize(m, v, rng, backend)
        return z, kl, ops.permute_dims(m, rng, backend)

    got = vmap(draws)(mu, logvar)
    for i in range(3):
        z, kl, permuted = draws(mu[i], logvar[i])
        assert torch.equal(got[0][i], z) and torch.equal(got[2][i], permuted)
        torch.testing.assert_close(got[1][i], kl)


def test_mapped_keys_and_steps():
    mu, logvar = _inputs(3)
    seeds, steps = torch.tensor([4, 5, 6]), torch.tensor([0, 1, 2])

    def draw(m, v, seed, step):
        rng = Philox(seed)
        rng.step = step
        return ops.reparameterize(m, v, rng)[0], ops.permute_dims(m, rng)

    for step_dim, given in ((None, steps[0]), (0, steps)):
        got = vmap(draw, (0, 0, 0, step_dim))(mu, logvar, seeds, given)
        for i in range(3):
            rng = Philox(4 + i, step=0 if step_dim is None else i)
            assert torch.equal(got[0][i], ops.reparameterize(mu[i], logvar[i], rng)[0])
            assert torch.equal(got[1][i], ops.permute_dims(mu[i], rng))


def test_without_rng_vmap_s_randomness_decides():
    z = torch.randn(B, D).expand(2, B, D)
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(ops.permute_dims)(z)
    same = vmap(ops.permute_dims, randomness="same")(z)
    different = vmap(ops.permute_dims, randomness="different")(z)
    assert torch.equal(*same) and not torch.equal(*different)


def test_each_form_of_target_is_mapped():
    logits = torch.randn(3, 2, 1, 4, 4)
    bits = torch.rand(3, 2, 1, 4, 4) > 0.5
    packed = (bits.flatten(2).unflatten(2, (-1, 8)) * (1 << torch.arange(8))).sum(-1).byte()
    for target in (bits, packed, bits.float(), bits.byte() * 255):
        for op in (ops.bernoulli_nll, ops.gaussian_nll):
            got = vmap(op)(logits, target)
            torch.testing.assert_close(
                got, torch.stack([op(*x) for x in zip(logits, target, strict=True)])
            )
            got = vmap(grad(op), (None, 0))(logits[0], target)
            want = [grad(op)(logits[0], one) for one in target]
            torch.testing.assert_close(got, torch.stack(want))


def test_hessians():
    inputs = _inputs(dtype=torch.float64)
    want = hessian(textbook)(*inputs)
    for found in (hessian(everything), jacrev(jacrev(everything)), jacrev(jacfwd(everything))):
        torch.testing.assert_close(found(*inputs), want, rtol=1e-6, atol=1e-6)


# --- forward mode ---------------------------------------------------------------------------------


def test_forward_mode():
    inputs, tangents = _inputs(dtype=torch.float64), tuple(map(torch.cos, _inputs()))
    tangents = tuple(t.double() for t in tangents)
    _, want = jvp(textbook, inputs, tangents)
    _, got = jvp(everything, inputs, tangents)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(jacfwd(everything)(*inputs), jacrev(textbook)(*inputs))
    with forward_ad.dual_level(), torch.no_grad():
        duals = [forward_ad.make_dual(x, t) for x, t in zip(inputs, tangents, strict=True)]
        found = forward_ad.unpack_dual(everything(*duals)).tangent
    torch.testing.assert_close(found, want, rtol=1e-6, atol=1e-6)


# --- what else an op is given ---------------------------------------------------------------------


def test_a_target_that_is_another_network_s_gets_its_gradient():
    logits, target = torch.randn(2, 1, 3, 3), torch.rand(2, 1, 3, 3)
    assert_grad = torch.testing.assert_close
    assert_grad(grad(ops.bernoulli_nll, argnums=1)(logits, target), -logits / 2)
    target.requires_grad_()
    (found,) = torch.autograd.grad(ops.gaussian_nll(logits, target), target)
    assert_grad(found, (target - logits) / 2)


def test_what_inference_mode_made():
    with torch.inference_mode():
        rng, target, z_perm = Philox(3), torch.rand(2, 1, 3, 3), torch.randn(4, 2)
    logits = torch.randn(2, 1, 3, 3, requires_grad=True)
    ops.bernoulli_nll(logits, target).backward()
    torch.testing.assert_close(logits.grad, (logits.detach().sigmoid() - target) / 2)
    mu = torch.randn(4, 2, requires_grad=True)
    z, _ = ops.reparameterize(mu, mu, rng)
    z.sum().backward()
    rng.advance()
    from fvae.models.vae import Discriminator
    from fvae.training.two_players import two_players

    tc, loss, _ = two_players(Discriminator(2, 4, 1), mu, z_perm)
    (tc + loss).backward()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", [ops.bernoulli_nll, ops.gaussian_nll])
def test_a_small_gradient_in_half_precision_lives_until_its_loss_scale(op, backend):
    """Of 64 images a pixel 1e-6 off has a gradient of 1.6e-8, which float16 does not hold."""
    x = torch.zeros(64, 1, 8, 8)
    off = torch.full_like(x, -13.8155 if op is ops.bernoulli_nll else 1e-6, dtype=torch.float16)
    off.requires_grad_()
    scale = 65536.0
    (found,) = torch.autograd.grad(op(off, x, backend) * scale, off)
    value = off.detach().double()
    want = (value.sigmoid() if op is ops.bernoulli_nll else value) / 64 * scale
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.double(), want, rtol=1e-3, atol=0)
