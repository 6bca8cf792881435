import pytest
import torch
from shared import SHAPES, assert_close
from torch.distributions import Normal, kl_divergence
from torch.library import opcheck

from fvae import Philox, ops, philox


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [*SHAPES, (3, 7, 5)])
def test_equals_torch_distributions(shape, dtype):
    mu, logvar = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    z, kl = ops.reparameterize(mu, logvar, Philox(3))
    q = Normal(mu.float(), (0.5 * logvar.float()).exp())
    count = mu.numel()
    rng = Philox(3)
    eps = philox.normal(philox.words(rng.seed, rng.step, philox.Stream.NOISE, count + count % 2))[
        :count
    ].view(shape)
    assert_close(z.float(), q.mean + q.stddev * eps, dtype)
    expected = kl_divergence(q, Normal(0.0, 1.0)).mean(-2)
    torch.testing.assert_close(kl, expected, rtol=1e-5, atol=1e-5)
    assert z.dtype == dtype
    assert kl.dtype == torch.float32


def test_gradcheck():
    mu, logvar = (torch.randn(5, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    rng = Philox(9)
    assert torch.autograd.gradcheck(lambda m, v: ops.reparameterize(m, v, rng), (mu, logvar))


def test_several_models_with_a_key_each_equal_each_alone():
    mu, logvar = torch.randn(2, 7, 3), torch.randn(2, 7, 3)
    z, kl = ops.reparameterize(mu, logvar, Philox([5, 6]))
    for m in range(2):
        z_alone, kl_alone = ops.reparameterize(mu[m], logvar[m], Philox(5 + m))
        assert torch.equal(z[m], z_alone)
        torch.testing.assert_close(kl[m], kl_alone)


def test_kl_is_zero_at_the_prior_and_noise_is_standard():
    zero = torch.zeros(20_000, 10)
    z, kl = ops.reparameterize(zero, zero, Philox(0))
    assert torch.equal(kl, torch.zeros(10))
    # 2e5 normals: 5.5 standard errors, false alarm 8e-8 for each of the two.
    assert abs(z.mean()) < 5.5 / 2e5**0.5
    assert abs(z.var() - 1) < 5.5 * (2 / 2e5) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_opcheck(dtype):
    rng = Philox(1)
    mu, logvar = torch.randn(10, 7).t().to(dtype), torch.randn(7, 10).to(dtype)
    key = (rng.seed, rng.step, 2)
    opcheck(torch.ops.fvae.reparameterize.default, (mu, logvar, *key))
    opcheck(torch.ops.fvae.reparameterize_backward.default, (mu, torch.randn(10), mu, logvar, *key))


def test_bad_input():
    mu = torch.randn(7, 3)
    with pytest.raises(ValueError, match=r"logvar: got \[7, 4\]"):
        ops.reparameterize(mu, torch.randn(7, 4))
    with pytest.raises(ValueError, match="logvar: got .*bfloat16"):
        ops.reparameterize(mu, mu.bfloat16())
    with pytest.raises(TypeError, match="mu: got torch.int64"):
        ops.reparameterize(mu.long(), mu)
