"""pairwise_tc: three densities of each code under the batch's mixture, and their gradients."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shared import SHAPES, assert_close, needs_extension, threads
from torch.library import opcheck

from fvae import ops
from fvae.ops.pairs import pair_weights

BACKENDS = ["reference", pytest.param("cpp", marks=needs_extension)]
MODES = [(None, "weighted"), (1000, "weighted"), (1000, "stratified")]


def _batch(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in "abc"]


def _normal(z, mu, logvar):
    return -0.5 * (math.log(2 * math.pi) + logvar + (z - mu) ** 2 / math.exp(logvar))


def _loop(z, mu, logvar, dataset_size, sampling):
    """The formulas, one pair after another, in float64."""
    size, dims = z.shape
    z, mu, logvar = z.tolist(), mu.tolist(), logvar.tolist()
    found = []
    for i, j in itertools.product(range(size), repeat=2):
        if dataset_size is None:
            w = 1 / size
        elif sampling == "weighted":
            w = 1 / (dataset_size * size)
        elif i == j:
            w = 1 / dataset_size
        elif j == (i + 1) % size:
            w = (dataset_size - size + 1) / (dataset_size * (size - 1))
        else:
            w = 1 / (size - 1)
        logs = [_normal(z[i][k], mu[j][k], logvar[j][k]) for k in range(dims)]
        found.append((w, logs))
    joint, product, own = [], [], []
    for i in range(size):
        row = found[i * size : (i + 1) * size]
        joint.append(math.log(sum(w * math.exp(sum(logs)) for w, logs in row)))
        product.append(
            sum(math.log(sum(w * math.exp(logs[k]) for w, logs in row)) for k in range(dims))
        )
        own.append(sum(row[i][1]))
    return [torch.tensor(t, dtype=torch.float64) for t in (joint, product, own)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_equals_a_loop_over_all_pairs(mode, backend):
    for size, dims in ((1, 1), (2, 3), (7, 4)):
        batch = _batch(size, dims)
        got = ops.pairwise_tc(*batch, *mode, backend)
        assert_close(list(got), _loop(*batch, *mode), torch.float64)


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [*SHAPES, (3, 33, 5), (300, 2)])
def test_the_extension_equals_the_reference(shape, dtype):
    batch = _batch(*shape, dtype=dtype)
    weights = pair_weights(shape[-2], 1000, "stratified")
    run = {name: ops.BACKENDS[name] for name in ("cpp", "reference")}
    both = [table["pairwise_tc"](*batch, *weights) for table in run.values()]
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    assert_close(both[0], both[1], exact)
    grads = [t * 0 + torch.linspace(-1, 1, shape[-2], dtype=t.dtype) for t in both[1][:3]]
    args = (*grads, *batch, both[1][0], both[1][3], *weights)
    backward = [table["pairwise_tc_backward"](*args) for table in run.values()]
    for got, expected in zip(*backward, strict=True):
        scale = expected.abs().max().clamp_min(1)
        assert_close(got / scale, expected / scale, dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients(backend):
    batch = [t.requires_grad_() for t in _batch(5, 3)]
    for mode in MODES:
        run = lambda *t, mode=mode: ops.pairwise_tc(*t, *mode, backend)  # noqa: E731
        assert torch.autograd.gradcheck(run, batch)
    assert torch.autograd.gradgradcheck(run, batch)
    models = [t.requires_grad_() for t in _batch(2, 3, 2)]
    assert torch.autograd.gradcheck(lambda *t: ops.pairwise_tc(*t, backend=backend), models)


@pytest.mark.parametrize("backend", BACKENDS)
def test_models_and_layouts(backend):
    batch = _batch(3, 20, 5, dtype=torch.float32)
    together = ops.pairwise_tc(*batch, 100, "stratified", backend)
    for m in range(3):
        alone = ops.pairwise_tc(*(t[m] for t in batch), 100, "stratified", backend)
        for both, one in zip(together, alone, strict=True):
            torch.testing.assert_close(both[m], one)
            assert backend == "reference" or torch.equal(both[m], one)
    turned = [t.mT.contiguous().mT for t in batch]
    for got, expected in zip(
        ops.pairwise_tc(*turned, 100, "stratified", backend), together, strict=True
    ):
        torch.testing.assert_close(got, expected)


@needs_extension
def test_any_number_of_threads_gives_the_same_bits():
    found = []
    for count in (1, 2, 3):
        with threads(count):
            batch = [t.requires_grad_() for t in _batch(130, 4, dtype=torch.float32)]
            out = ops.pairwise_tc(*batch, backend="cpp")
            grads = torch.autograd.grad(sum(t.sum() for t in out), batch)
            found.append([*out, *grads])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@given(
    logvar=st.floats(-60, 60), spread=st.floats(0, 60), offset=st.floats(-50, 50),
    size=st.integers(1, 9), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_variance_stays_finite(backend, logvar, spread, offset, size, seed):
    z, mu, noise = _batch(size, 3, dtype=torch.float32, seed=seed)
    logvar = (logvar + spread * noise).clamp(-60, 60)
    mu = mu + offset
    batch = [t.requires_grad_() for t in (mu + z * torch.exp(0.5 * logvar), mu, logvar)]
    out = ops.pairwise_tc(*batch, 1000, "stratified" if size > 1 else "weighted", backend)
    assert all(t.isfinite().all() for t in out)
    # No mixture is below its own component's share.
    assert bool((out[0] >= out[2] - math.log(1000 * size) - 1e-3 * out[2].abs() - 1e-3).all())
    grads = torch.autograd.grad(sum(t.sum() for t in out), batch)
    assert not any(g.isnan().any() for g in grads)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_that_is_no_number_is_hidden(backend):
    batch = _batch(5, 3, dtype=torch.float32)
    batch[0][2, 1] = torch.nan
    for out in ops.pairwise_tc(*batch, backend=backend):
        assert out[2].isnan() and out.isnan().sum() == 1


def test_the_whole_set_as_a_batch_is_the_aggregate_posterior():
    # q(z) = mean of q(z|x) over all images, which nothing else than a sum can be.
    z, mu, logvar = _batch(9, 2)
    log_qz, *_ = ops.pairwise_tc(z, mu, logvar)
    density = torch.distributions.Normal(mu, torch.exp(0.5 * logvar))
    exact = density.log_prob(z.unsqueeze(1)).sum(-1).exp().mean(1).log()
    assert_close(log_qz, exact, torch.float64)


def test_stratified_batches_have_the_density_as_their_mean():
    # Over all batches of three out of six, without replacement and with z_0's own image in front.
    z, mu, logvar = _batch(6, 2, seed=3)
    exact = ops.pairwise_tc(z, mu, logvar)[0][0].exp()
    estimates = []
    for rest in itertools.permutations(range(1, 6), 2):
        rows = torch.tensor([0, *rest])
        log_qz, *_ = ops.pairwise_tc(z[rows], mu[rows], logvar[rows], 6, "stratified")
        estimates.append(log_qz[0].exp())
    assert_close(torch.stack(estimates).mean(), exact, torch.float64)


def test_weights_of_a_row_sum_to_what_they_stand_for():
    for batch, total in ((2, 2), (5, 9), (64, 63), (64, 737_280)):
        own, following, others = (math.exp(w) for w in pair_weights(batch, total, "stratified"))
        assert own + following + (batch - 2) * others == pytest.approx(1)
    assert math.exp(pair_weights(64, 737_280, "weighted")[0]) == pytest.approx(1 / 737_280 / 64)


def test_transforms():
    z, mu, logvar = _batch(2, 6, 3)
    together = torch.vmap(lambda *t: ops.pairwise_tc(*t, 50))(z, mu, logvar)
    each = [ops.pairwise_tc(z[i], mu[i], logvar[i], 50) for i in range(2)]
    for got, *want in zip(together, *each, strict=True):
        torch.testing.assert_close(got, torch.stack(want))
    tc = lambda z: (lambda out: (out[0] - out[1]).mean())(ops.pairwise_tc(z, mu[0], logvar[0]))  # noqa: E731
    z = z[0].requires_grad_()
    torch.testing.assert_close(torch.func.grad(tc)(z), torch.autograd.grad(tc(z), z)[0])
    tangent = torch.ones_like(z)
    _, slope = torch.func.jvp(tc, (z,), (tangent,))
    torch.testing.assert_close(slope, torch.autograd.grad(tc(z), z)[0].sum())


def test_opcheck():
    batch = _batch(2, 7, 3, dtype=torch.float32)
    batch[0] = batch[0].mT.contiguous().mT
    opcheck(torch.ops.fvae.pairwise_tc.default, (*batch, -1.0, -2.0, -3.0))
    out = torch.ops.fvae.pairwise_tc(*batch, -1.0, -2.0, -3.0)
    args = (*out[:3], *batch, out[0], out[3], -1.0, -2.0, -3.0)
    opcheck(torch.ops.fvae.pairwise_tc_backward.default, args)


def test_compiled_whole():
    batch = _batch(7, 3, dtype=torch.float32)
    run = torch.compile(lambda *t: ops.pairwise_tc(*t, 100), fullgraph=True, backend="aot_eager")
    for got, want in zip(run(*batch), ops.pairwise_tc(*batch, 100), strict=True):
        torch.testing.assert_close(got, want)


def test_bad_input():
    z, mu, logvar = _batch(5, 3, dtype=torch.float32)
    with pytest.raises(ValueError, match="mu: "):
        ops.pairwise_tc(z, mu[:4], logvar)
    with pytest.raises(TypeError, match="z: "):
        ops.pairwise_tc(z.long(), mu, logvar)
    with pytest.raises(ValueError, match="dataset_size: got 3, expected at least 4 for batches"):
        ops.pairwise_tc(z, mu, logvar, 3, "stratified")
    with pytest.raises(ValueError, match="dataset_size: got 0"):
        ops.pairwise_tc(z, mu, logvar, 0)
    with pytest.raises(ValueError, match="sampling: got 'both'"):
        ops.pairwise_tc(z, mu, logvar, 100, "both")
    with pytest.raises(TypeError, match="dataset_size"):
        ops.pairwise_tc(z, mu, logvar, 10.5)
