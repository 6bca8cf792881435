"""beta-tcvae, dip-vae and annealed-vae, each against sums in float64 over a whole data set."""

import dataclasses
import itertools
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small import SMALL, assert_a_killed_run_resumes_to_the_same, bits, log, refused, run

import fvae
from fvae import ops
from fvae.config import DIP_RATIOS, TrainConfig
from fvae.errors import UserError
from fvae.philox import Philox
from fvae.registry import OBJECTIVES
from fvae.training import regularised
from fvae.training.distributed import World
from fvae.training.objectives import weight_at, weight_of
from fvae.training.trainer import Trainer

NEW = ("beta-tcvae", "dip-vae-i", "dip-vae-ii", "annealed-vae")


def _posteriors(rows, dims, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mu, logvar, noise = torch.randn(3, rows, dims, generator=generator, dtype=torch.float64)
    return mu + (logvar / 2).exp() * noise, 1.5 * mu, logvar


def _log_normal(z, mu, logvar):
    """log N(z_ik; mu_jk, logvar_jk) in float64, [i, j, k]."""
    z, mu, logvar = (np.asarray(part, np.float64) for part in (z, mu, logvar))
    squared = (z[:, None] - mu) ** 2 / np.exp(logvar)
    return -0.5 * (np.log(2 * np.pi) + logvar + squared)


def _exact(z, mu, logvar):
    """log q(z_i), sum_k log q(z_ik) and log q(z_i|x_i), q the mean of all posteriors."""
    each = _log_normal(z, mu, logvar)
    joint = np.log(np.exp(each.sum(-1)).mean(1))
    product = np.log(np.exp(each).mean(1)).sum(-1)
    return joint, product, np.einsum("iik->i", each)


def _close(found, expected, tolerance=1e-5):
    for ours, theirs in zip(found, expected, strict=True):
        assert np.asarray(ours.detach()) == pytest.approx(theirs, rel=tolerance, abs=tolerance)


shapes = {"rows": st.integers(2, 9), "dims": st.integers(1, 4), "seed": st.integers(0, 999)}


# --- the decomposition ----------------------------------------------------------------------------


@given(**shapes, more=st.integers(0, 10**6))
def test_weighted_is_the_mixture_of_the_batch_and_a_constant(rows, dims, seed, more):
    codes = _posteriors(rows, dims, seed)
    joint, product, own = _exact(*codes)
    _close(ops.pairwise_tc(*codes), (joint, product, own))
    n = rows + more
    _close(
        ops.pairwise_tc(*codes, n, "weighted"),
        (joint - math.log(n), product - dims * math.log(n), own),
    )


@pytest.mark.parametrize("size", [2, 3, 4, 6])
@pytest.mark.parametrize("dims", [1, 3])
def test_stratified_has_no_bias(size, dims):
    # All batches with image 0 in front, the others drawn without replacement, in every order.
    z, mu, logvar = _posteriors(6, dims)
    each = _log_normal(z[:1], mu, logvar)
    q = np.exp(each.sum(-1)).mean()
    q_k = np.exp(each).mean(1)[0]
    joint, marginal = [], []
    for others in itertools.permutations(range(1, 6), size - 1):
        batch = [0, *others]
        found = ops.pairwise_tc(z[batch], mu[batch], logvar[batch], 6, "stratified")
        joint.append(math.exp(found[0][0]))
        one = [
            ops.pairwise_tc(*(t[batch, k : k + 1] for t in (z, mu, logvar)), 6, "stratified")[1][0]
            for k in range(dims)
        ]
        marginal.append([math.exp(value) for value in one])
        assert float(found[1][0]) == pytest.approx(float(sum(one)), rel=1e-5, abs=1e-5)
    assert np.mean(joint) == pytest.approx(q, rel=1e-5)
    assert np.mean(marginal, 0) == pytest.approx(q_k, rel=1e-5)


@given(rows=st.integers(2, 9), more=st.integers(-1, 10**6))
def test_stratified_weights_sum_to_one(rows, more):
    codes = [part.repeat(rows, 1) for part in _posteriors(1, 2)]
    joint, _, own = ops.pairwise_tc(*codes, rows + more, "stratified")
    assert torch.allclose(joint, own, atol=1e-5)


@pytest.mark.parametrize("sampling", ["weighted", "stratified"])
@pytest.mark.parametrize("wide", [60.0, 80.0, -40.0])
def test_wide_and_narrow_posteriors_are_finite(sampling, wide):
    z, mu, logvar = _posteriors(5, 3)
    logvar = torch.full_like(logvar, wide)
    codes = [t.float().requires_grad_() for t in (mu + (logvar / 2).exp() * z, mu, logvar)]
    found = ops.pairwise_tc(*codes, 100, sampling)
    gradients = torch.autograd.grad(sum(part.sum() for part in found), codes)
    assert all(bool(part.isfinite().all()) for part in (*found, *gradients))


def test_models_are_decomposed_each_alone():
    codes = [
        torch.stack([a, b]) for a, b in zip(_posteriors(5, 3), _posteriors(5, 3, 1), strict=True)
    ]
    for args in ((), (40,), (40, "stratified")):
        together = ops.pairwise_tc(*codes, *args)
        for m in range(2):
            _close([t[m] for t in together], ops.pairwise_tc(*(c[m] for c in codes), *args))


def test_what_cannot_be_decomposed():
    codes = _posteriors(5, 3)
    with pytest.raises(ValueError, match="sampling: got 'mine'"):
        ops.pairwise_tc(*codes, 40, "mine")
    with pytest.raises(ValueError, match="dataset_size: got 3, expected at least 4"):
        ops.pairwise_tc(*codes, 3, "stratified")


# --- terms ----------------------------------------------------------------------------------------


class Codes(torch.nn.Module):
    """A VAE of fixed posteriors, which reconstructs with an error of 7 nats."""

    def __init__(self, mu, logvar):
        super().__init__()
        self.mu, self.logvar = torch.nn.Parameter(mu), torch.nn.Parameter(logvar)

    def encode(self, x):
        return self.mu, self.logvar

    def decode(self, z):
        self.z = z.detach()
        return z

    def nll(self, decoded, target, backend):
        return decoded.new_full((), 7.0)


def _terms(terms, rows, dims, seed, weight, **settings):
    _, mu, logvar = _posteriors(rows, dims, seed)
    model = Codes(mu, logvar)
    found = terms(model, torch.zeros(1), weight, Philox(seed), **settings)
    return model, {name: term.detach().double() for name, term in found.items()}, found["loss"]


@given(**shapes, beta=st.floats(0, 20), sampling=st.sampled_from(["weighted", "stratified"]))
def test_beta_tcvae_of_a_whole_data_set(rows, dims, seed, beta, sampling):
    model, found, _ = _terms(
        regularised.beta_tcvae, rows, dims, seed, beta, dataset_size=rows, tc_sampling=sampling
    )
    z, mu, logvar = model.z, model.mu.detach(), model.logvar.detach()
    joint, product, own = _exact(z, mu, logvar)
    prior = _log_normal(z, np.zeros((1, dims)), np.zeros((1, dims))).sum((1, 2))
    if sampling == "weighted":
        joint, product = joint - math.log(rows), product - dims * math.log(rows)
    else:  # a whole data set stands for itself, but the next image makes up for what is left out
        w = np.full((rows, rows), 1 / (rows - 1))
        for i in range(rows):
            w[i, (i + 1) % rows] = 1 / (rows * (rows - 1))
            w[i, i] = 1 / rows
        each = _log_normal(z, mu, logvar)
        joint = np.log((w * np.exp(each.sum(-1))).sum(1))
        product = np.log((w[..., None] * np.exp(each)).sum(1)).sum(-1)
    expected = {
        "mi": (own - joint).mean(), "tc": (joint - product).mean(),
        "dim_kl": (product - prior).mean(),
    }  # fmt: skip
    expected["loss"] = 7 + expected["mi"] + beta * expected["tc"] + expected["dim_kl"]
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value, rel=1e-4, abs=1e-4), name
    # The parts add up to the KL of the very codes, of which kl is the expectation.
    parts = found["mi"] + found["tc"] + found["dim_kl"]
    assert float(parts) == pytest.approx((own - prior).mean(), rel=1e-4, abs=1e-4)


@given(**shapes, weight=st.floats(0, 50), ratio=st.one_of(st.none(), st.floats(0, 20)))
@pytest.mark.parametrize("name", ["dip-vae-i", "dip-vae-ii"])
def test_dip_vae_penalises_the_covariance(name, rows, dims, seed, weight, ratio):
    terms = OBJECTIVES[name].terms
    model, found, _ = _terms(terms, rows, dims, seed, weight, dip_ratio=ratio)
    mu, logvar = (p.detach().numpy() for p in (model.mu, model.logvar))
    covariance = np.cov(mu, rowvar=False, bias=True).reshape(dims, dims)
    if name == "dip-vae-ii":
        covariance = covariance + np.diag(np.exp(logvar).mean(0))
    diagonal = np.diag(covariance)
    off, diag = ((covariance - np.diag(diagonal)) ** 2).sum(), ((diagonal - 1) ** 2).sum()
    ratio = {"dip-vae-i": 10, "dip-vae-ii": 1}[name] if ratio is None else ratio
    assert DIP_RATIOS == {"dip-vae-i": 10, "dip-vae-ii": 1}
    expected = 7 + float(found["kl"]) + weight * off + weight * ratio * diag
    assert float(found["cov_off"]) == pytest.approx(off, rel=1e-6, abs=1e-9)
    assert float(found["cov_diag"]) == pytest.approx(diag, rel=1e-6)
    assert float(found["loss"]) == pytest.approx(expected, rel=1e-5)


@given(**shapes, capacity=st.floats(0, 100), gamma=st.floats(0, 2000))
def test_annealed_vae_draws_the_kl_to_its_capacity(rows, dims, seed, capacity, gamma):
    model, found, loss = _terms(
        regularised.annealed_vae, rows, dims, seed, capacity, capacity_weight=gamma
    )
    mu, logvar = model.mu, model.logvar
    kl = (mu.square() + logvar.exp() - logvar - 1).sum(1).mean() / 2
    gap = (kl - capacity).abs()
    torch.testing.assert_close(found["gap"], gap.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found["loss"], (7 + gamma * gap).detach(), rtol=1e-5, atol=1e-3)
    got, want = (torch.autograd.grad(t, (mu, logvar)) for t in (loss, gamma * gap))
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_capacity_grows_to_its_end():
    config = TrainConfig(objective="annealed-vae", capacity=25, capacity_steps=100, warmup_steps=7)
    at = weight_at(*weight_of(config))
    assert [at(step) for step in (0, 1, 50, 100, 1000)] == [0, 0.25, 12.5, 25, 25]
    assert float(at(torch.tensor(50))) == 12.5


# --- runs -----------------------------------------------------------------------------------------


def _config(objective, **changes):
    own = {"annealed-vae": {"capacity": 3.0, "capacity_steps": 8, "capacity_weight": 2.0}}
    return dataclasses.replace(
        SMALL, objective=objective, **own.get(objective, {"warmup_steps": 7}), **changes
    )


@pytest.mark.parametrize("objective", NEW)
def test_a_killed_run_resumes_to_the_same(objective, store, tmp_path):
    assert_a_killed_run_resumes_to_the_same(_config(objective), store, tmp_path)
    terms = {
        "beta-tcvae": {"mi", "tc", "dim_kl"}, "annealed-vae": {"gap"},
        "dip-vae-i": {"cov_off", "cov_diag"}, "dip-vae-ii": {"cov_off", "cov_diag"},
    }[objective]  # fmt: skip
    for line in log(tmp_path / "a"):
        assert line.keys() == {"step", "weight", "loss", "recon", "kl", "kl_dims"} | terms
    mu, logvar = fvae.load(tmp_path / "a").encode(store.images([0, 1]).float())
    assert mu.shape == logvar.shape == (2, 4)


@pytest.mark.parametrize("objective", NEW)
def test_settings_and_the_number_of_images_reach_the_terms(objective, store):
    own = {"dip_ratio": 3.0} if "dip" in objective else {}
    own |= {"tc_sampling": "stratified"} if objective == "beta-tcvae" else {}
    assert Trainer(_config(objective, **own), store).constants == {
        "beta-tcvae": {"dataset_size": 40, "tc_sampling": "stratified"},
        "annealed-vae": {"capacity_weight": 2.0},
    }.get(objective, own)  # fmt: skip


@pytest.mark.parametrize("objective", NEW)
def test_shards_have_the_terms_and_gradients_of_the_whole(objective, monkeypatch):
    """Whatever the shards: DistributedDataParallel takes the mean of their gradients."""
    size, rows, dims = 3, 4, 3
    _, mu, logvar = _posteriors(size * rows, dims)
    terms, constants = OBJECTIVES[objective].terms, {}
    if objective == "beta-tcvae":
        constants = {"dataset_size": 50, "tc_sampling": "stratified"}
    whole = Codes(mu, logvar)
    want = terms(whole, torch.zeros(1), 1.7, Philox(3), **constants)
    want["loss"].backward()

    shards = [
        Codes(*(t[r * rows : (r + 1) * rows].clone() for t in (mu, logvar))) for r in range(size)
    ]
    kl = [terms(s, torch.zeros(1), 1.7, Philox(3), **constants)["kl"].detach() for s in shards]

    class Shard(World):
        """A process that knows what the others hold, so that nothing is sent."""

        def gather(self, x):
            own = x.detach() + self.size * (x - x.detach())
            parts = [kl[r][None] if x.dim() == 1 else self.others(r, x) for r in range(size)]
            return torch.cat(parts[: self.rank] + [own] + parts[self.rank + 1 :])

        def others(self, r, x):
            known = [whole.z, mu, logvar]
            mine = slice(self.rank * rows, (self.rank + 1) * rows)
            whole_of = next(t for t in known if torch.equal(t[mine], x.detach()))
            return whole_of[r * rows : (r + 1) * rows]

    losses, gradients = [], []
    for rank, shard in enumerate(shards):
        found = terms(shard, torch.zeros(1), 1.7, Philox(3), draws=Shard(rank, size), **constants)
        found["loss"].backward()
        gradients.append(torch.stack([shard.mu.grad, shard.logvar.grad]) / size)
        losses.append(found["loss"].detach())
    assert torch.allclose(torch.stack(losses).mean(), want["loss"].detach(), rtol=1e-5)
    expected = torch.stack([whole.mu.grad, whole.logvar.grad])
    torch.testing.assert_close(torch.cat(gradients, 1), expected, rtol=1e-5, atol=1e-7)


# --- factor-vae on one batch ----------------------------------------------------------------------


def test_the_same_batch_is_shuffled(store, monkeypatch):
    class Noted(World):
        def reparameterize(self, *args):
            z, kl = super().reparameterize(*args)
            noted.append(z.detach())
            return z, kl

        def permute_dims(self, z, *args):
            noted.append(z)
            return super().permute_dims(z, *args)

    drawn, gather = [], ops.gather_batch

    def gather_noted(store, count, *args, **kwargs):
        drawn.append(count)
        return gather(store, count, *args, **kwargs)

    monkeypatch.setattr(ops, "gather_batch", gather_noted)
    for shuffle, images in (("second", 2), ("same", 1)):
        noted = []
        config = dataclasses.replace(SMALL, shuffle=shuffle)
        trainer = Trainer(config, store, Noted())
        trainer.step()
        assert drawn.pop() == images * config.batch_size
        assert len(noted) == images + 1
        assert torch.equal(noted[0], noted[-1]) == (shuffle == "same")


def test_other_objectives_do_not_know_of_a_second_batch(store, tmp_path):
    configs = [dataclasses.replace(SMALL, objective="vae", shuffle=s) for s in ("second", "same")]
    a, b = (run(c, store, tmp_path / c.shuffle) for c in configs)
    assert all(torch.equal(a[name], b[name]) for name in a)


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--capacity", 3], "--capacity 3.0: factor-vae takes none.* take annealed-vae"),
        (["--objective", "vae", "--dip-lambda", 3], "--dip-lambda 3.0: vae .*dip-vae-i or dip-vae"),
        (["--objective", "dip-vae-i", "--capacity-steps", 3], "--capacity-steps 3: dip-vae-i"),
        (["--objective", "beta-vae", "--tc-sampling", "stratified"], "--tc-sampling.*beta-tcvae"),
        (["--objective", "dip-vae-i", "--dip-lambda", -1], "--dip-lambda: got -1.0, expected 0 or"),
        (["--objective", "dip-vae-ii", "--dip-ratio", "nan"], "--dip-ratio: got nan, expected 0"),
        (["--objective", "annealed-vae", "--capacity", "inf"], "--capacity: got inf, expected 0"),
        (["--objective", "beta-tcvae", "--tc-sampling", "mine"], "--tc-sampling"),
        (["--shuffle", "third"], "--shuffle"),
        (["--conv-kernels", 4, 4, 3, 4], "--conv-kernels: got .*expected four even numbers"),
        (["--conv-kernels", 4, 4, 0, 4], "--conv-kernels: got .*expected four even numbers"),
        (["--conv-kernels", 4, 4], "--conv-kernels"),
    ],
)  # fmt: skip
def test_a_bad_setting_is_refused(words, message, tmp_path):
    assert re.search(message, refused("train", "--out", tmp_path / "run", *words))
    assert not (tmp_path / "run").exists()


def test_a_batch_larger_than_the_data_is_not_stratified():
    config = _config("beta-tcvae", tc_sampling="stratified", batch_size=6)
    assert Trainer(config, bits(5)).step()["tc"].isfinite()
    with pytest.raises(UserError, match="--batch-size 6 and 4 images, expected a batch of 2 to 5"):
        Trainer(config, bits(4))
    with pytest.raises(UserError, match="--batch-size 1 and 40 images"):
        Trainer(dataclasses.replace(config, batch_size=1), bits(40))
