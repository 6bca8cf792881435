"""The CUDA-graph step: what needs a GPU is skipped, saying so, elsewhere."""

import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fvae.config import TrainConfig
from fvae.data import LayeredStore, Store
from fvae.stacked import StackedTrainer
from fvae.train import Trainer

needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no GPU: the graphed step is not tried"
)


class _HostTraffic(TorchDispatchMode):
    """Record what a graph cannot hold: a value read by the host, a constant made on the host."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in ("_local_scalar_dense", "lift_fresh", "nonzero", "equal", "is_nonzero"):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


def bits(images: int) -> Store:
    data = torch.randint(0, 256, (images, 512), dtype=torch.uint8)
    return Store("bits", data, (1, 64, 64), True, (), ())


def layers(images: int) -> Store:
    """Images made on demand from two parts of five colours each."""
    data = torch.randint(0, 128, (images // 25 * 10, 4096), dtype=torch.uint8)
    sizes = (5, 5, images // 25)
    return LayeredStore("layers", data, (1, 64, 64), False, ("a", "b", "c"), sizes, parts=2)


def _trainer(config, store, models):
    if models == 1:
        return Trainer(config, store)
    configs = [dataclasses.replace(config, seed=m, gamma=m + 1.0) for m in range(models)]
    return StackedTrainer(configs, store, models)


@pytest.mark.parametrize("models", [1, 2])
@pytest.mark.parametrize("store", [bits, layers])
@pytest.mark.parametrize("objective", ["vae", "beta-vae", "factor-vae"])
def test_a_step_of_kernels_never_waits_for_the_host(objective, store, models):
    # Through the interpreter on the CPU, a GPU's step: the same Python, the same launches.
    config = TrainConfig(
        objective=objective, device="cuda" if torch.cuda.is_available() else "cpu",
        precision="fp32", backend="triton", batch_size=2, latent_dim=2, disc_units=8,
        conv_channels=(4, 4, 4, 4), hidden_units=8, warmup_steps=5, graph=False,
    )  # fmt: skip
    trainer = _trainer(config, store(50), models)
    trainer.step()
    with _HostTraffic() as traffic:
        trainer.step()
    assert traffic.found == []


def test_the_probe_sees_host_traffic():
    with _HostTraffic() as traffic:
        torch.ones(2).sum().item()
        torch.tensor([1.0, 2.0])
    assert traffic.found == ["_local_scalar_dense", "lift_fresh"]


@needs_gpu
@pytest.mark.parametrize("models", [1, 3])
@pytest.mark.parametrize("store", [bits, layers])
@pytest.mark.parametrize("objective", ["beta-vae", "factor-vae"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_graph_equals_eager(objective, precision, store, models):
    store = store(500)
    config = TrainConfig(
        objective=objective, device="cuda", precision=precision, disc_units=64, warmup_steps=20
    )
    graphed = _trainer(config, store, models)
    eager = _trainer(dataclasses.replace(config, graph=False), store, models)
    for _ in range(30):
        a, b = graphed.step(), eager.step()
        for name in b:
            torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-3)
    assert graphed.graph is not None
    assert int(graphed.rng.step) == graphed.step_count == 30
    for name, value in eager.state().items():
        torch.testing.assert_close(graphed.state()[name], value, rtol=1e-2, atol=1e-4)


@needs_gpu
def test_a_replay_draws_anew():
    config = TrainConfig(device="cuda", disc_units=64, learning_rate=1e-12, precision="fp32")
    trainer = Trainer(config, bits(500))
    losses = {float(trainer.step()["recon"]) for _ in range(10)}
    assert len(losses) == 10
