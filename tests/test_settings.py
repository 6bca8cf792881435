"""A run, its codes and scores are the same whatever else the program has set."""

import dataclasses
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from settings import SETTINGS, state
from shared import assert_equal
from small import SMALL, tensors

import fvae
from fvae import Philox, data, evaluate, metrics, ops, report
from fvae.data import Store
from fvae.training import loop, stacked

SIZES = (3, 4, 5)
pytestmark = pytest.mark.usefixtures("one_thread")


def _random(*shape, **kind):
    with torch.device("cpu"):
        generator = torch.Generator().manual_seed(1)
        if kind:
            return torch.randint(0, 256, shape, generator=generator, **kind)
        return torch.randn(shape, generator=generator, dtype=torch.float32)


STORE = Store(
    "bits", _random(60, 512, dtype=torch.uint8), (1, 64, 64), True, ("a", "b", "c"), SIZES
)


def _run(folder, objective="factor-vae"):
    config = dataclasses.replace(SMALL, steps=2, objective=objective)
    loop.train(loop.create_run(config, folder), STORE, folder)
    model = fvae.load(folder)
    codes, _ = evaluate.encode(model, STORE, torch.arange(60, device="cpu"))
    with torch.device("cpu"):
        return tensors(folder) | {"codes": codes}


def _scores():
    codes, sizes = _random(60, 4), SIZES
    scores = [metrics.mig_score(codes, sizes), metrics.sap_score(codes, sizes)]
    scores += [metrics.factor_vae_score(codes.numpy(), sizes, protocol="exhaustive")]
    scores += [metrics.dci_score(codes, sizes), metrics.beta_vae_score(codes, sizes)]
    return [one.score for one in scores]


def _ops():
    mu, rng = _random(7, 3), Philox(3, device="cpu")
    x = ops.gather_batch(STORE, 4, rng)
    z, kl = ops.reparameterize(mu, mu, rng)
    permuted = ops.permute_dims(z, rng)
    ratio = ops.logit_ratio(z[:, :2], permuted[:, :2])
    nlls = [ops.bernoulli_nll(x - 0.5, x), ops.gaussian_nll(x - 0.5, x > 0.5)]
    return [x, z, kl, permuted, *ratio, *nlls, STORE.images([0, 5])]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return _run(tmp_path_factory.mktemp("plain") / "run"), _scores(), _ops()


@pytest.mark.parametrize("name", SETTINGS)
def test_nothing_that_is_set_reaches_a_run(name, plain, tmp_path):
    run, scores, results = plain
    with SETTINGS[name]():
        before = state()
        got = _run(tmp_path / "run"), _scores(), _ops()
        assert state() == before  # nor does a run reach what is set
    assert_equal(got[0], run)
    assert got[1] == scores
    for found, want in zip(got[2], results, strict=True):
        assert found.device == want.device and torch.equal(found, want)


@pytest.mark.parametrize("name", ["default device", "default dtype float64", "inference mode"])
def test_gans_stacked_runs_reports_and_files(name, tmp_path, own_cache):
    from small import write_npz

    archive = write_npz(tmp_path / "dsprites.npz")
    found = []
    for context in (torch.enable_grad, SETTINGS[name]):
        folder = tmp_path / str(len(found))
        with context():
            _run(folder / "gan", "infowgan-gp")
            runs = [folder / f"stacked{seed}" for seed in (0, 1)]
            configs = [dataclasses.replace(SMALL, steps=2, seed=seed) for seed in (0, 1)]
            configs = [loop.create_run(c, run) for c, run in zip(configs, runs, strict=True)]
            stacked.train(configs, STORE, runs)
            report.write_report(runs[0], STORE)
            read = data.load(archive)
        found.append({f"{i}{k}": v for i, r in enumerate(runs) for k, v in tensors(r).items()})
        found[-1] |= tensors(folder / "gan") | {"read": read.data}
    assert_equal(*found)


AFTER_A_FORK = """
    import os, torch, numpy
    import fvae, fvae.drop_in, fvae.metrics
    from fvae import Philox, drop_in, metrics, ops

    torch.set_num_threads(2)
    # By NumPy: after work on two threads no PyTorch program may fork and go on with two.
    codes = torch.from_numpy(numpy.sin(numpy.arange(24000.0)).reshape(6000, 4)).float()

    def work():
        z = ops.permute_dims(codes[:64], Philox(0))
        ops.bernoulli_nll(torch.zeros(64, 1, 64, 64), torch.zeros(64, 1, 64, 64))
        return metrics.factor_vae_score(codes, (30, 20, 10), protocol="kim2018").score

    class Items(torch.utils.data.Dataset):
        def __len__(self): return 6000
        def __getitem__(self, i):
            ops.permute_dims(codes[:8], Philox(i))
            return codes[i]
    {body}
"""
FORKS = {
    "after the import": """
    child = os.fork()
    if not child:
        work()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    work()
    """,
    "workers after ops of several threads": """
    work()
    drop_in.score(lambda x: x, Items(), (30, 20, 10), "mig", num_workers=1, batch_size=1000)
    """,
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("when", FORKS)
def test_a_fork(when):
    code = AFTER_A_FORK.format(body=FORKS[when])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        env=os.environ | {"OMP_NUM_THREADS": "2"}, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
