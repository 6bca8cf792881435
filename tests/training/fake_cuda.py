"""``python fake_cuda.py GUARD``: steps on fake CUDA tensors; prints what they did as JSON lines.

A fake tensor has shape, dtype and device, and no numbers. GUARD is the library made of
csrc/cuda_guard.cpp. A program of its own, because the guard stays for the life of a process; it
needs tests/ on its path. Forward passes and updates alone: the backward pass of a CUDA tensor needs
a device, so gradients are zeros.
"""

import dataclasses
import itertools
import json
import sys

import torch
import torch.cuda.amp.common  # noqa: F401
from shared import HostTraffic
from small import NETS, bits, layers, photographs, square, trainer_of
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils._pytree import tree_leaves

from bench.launches import MODE, built_for_real, pretend
from fvae.config import TrainConfig
from fvae.training.infogan import InfoGANTrainer
from fvae.training.stacked import StackedTrainer
from fvae.training.trainer import Trainer

SMALL = TrainConfig(
    device="cuda", batch_size=4, latent_dim=3, disc_units=8, warmup_steps=5, critic_steps=2,
    graph=False, **NETS,
)  # fmt: skip
FALLS = {"learning_rate_schedule": "cosine", "learning_rate_warmup_steps": 5}
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
OBJECTIVES = (
    "vae", "beta-vae", "factor-vae", "beta-tcvae", "dip-vae-i", "dip-vae-ii", "annealed-vae",
    "infogan", "infowgan-gp",
)  # fmt: skip


PRODUCTS = (
    "convolution", "cudnn_convolution_relu", "addmm", "_addmm_activation", "mm", "bmm", "baddbmm"
)  # fmt: skip


class DeviceTraffic(HostTraffic):
    """Count operations and half products, and record what touches memory of the host, too."""

    def __init__(self):
        super().__init__()
        self.count, self.low = 0, dict.fromkeys(HALVES, 0)

    def note(self, name, args, kwargs):
        self.count += 1
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        if name in self.WAITS or any(t.device.type != "cuda" for t in tensors):
            self.found.append(name)
        if name in PRODUCTS:
            for precision, dtype in HALVES.items():
                self.low[precision] += all(t.dtype == dtype for t in tensors)


def table_for_real(self):
    """Let the table of a draw by weight be made of numbers: a fake tensor has none."""
    device, self.device = self.device, torch.device("cpu")
    with unset_fake_temporarily():
        table = make_table(self)
    self.device = device
    return table if table is None else MODE.from_tensor(table).to(device)


make_table, Trainer._table = Trainer._table, table_for_real


def odd(images):
    """Images whose rows are no whole words, and 289 of their 296 bits."""
    return square(1, 17, binary=True, images=images)


#: Kinds of store whose images are drawn by weight, as ones made on demand are.
CORRELATED = {"layers": ("a,b:0.3", "b,c:0.3"), "odd": ("a,b:0.3",)}
STORES = {"bits": bits, "bytes": photographs, "layers": layers, "odd": odd}


def step(models=1, kind="bits", **settings):
    """Do a step but for its backward pass; return what it did."""
    config = dataclasses.replace(SMALL, **settings)
    trainer = trainer_of(config, STORES[kind](50), models, one_convolution=False)
    encoded = []
    if hasattr(trainer, "networks"):
        vae = trainer.networks[0]
        encode = vae.encode
        vae.encode = lambda x: encoded.append(tuple(x.shape)) or encode(x)

    def backward(loss, gradient=None, inputs=None):
        for p in inputs or getattr(trainer, "parts", None) or trainer.optimizer.leaves:
            p.grad = torch.zeros_like(p)

    torch.Tensor.backward = backward
    with DeviceTraffic() as traffic:
        terms = trainer.step()
    return {
        "models": models, "kind": kind, **settings, "operations": traffic.count,
        "half_products": traffic.low, "host": traffic.found, "encoded": encoded,
        "state": sorted(trainer.state()),
        "terms": {n: [t.device.type, str(t.dtype), list(t.shape)] for n, t in terms.items()},
    }  # fmt: skip


def main():
    """Print a line for each kind of step."""
    pretend(sys.argv[1])
    for trainer_class in (Trainer, StackedTrainer, InfoGANTrainer):
        built_for_real(trainer_class)
    # The reference, whose operations a precision changes least, in that of a GPU's default.
    kinds = (("fp32", None), ("tf32", None), ("bf16", None), ("fp16", None), ("bf16", "reference"))
    backends = (None, "reference")
    with MODE:
        for objective, (precision, backend) in itertools.product(OBJECTIVES, kinds):
            gan = objective.startswith("info")
            settings = {"objective": objective, "precision": precision, "backend": backend}
            settings["categorical_sizes"] = (3,) if gan else ()
            for models in (1,) if gan else (1, 3):
                print(json.dumps(step(models, **settings)))
        for kind, backend in itertools.product(STORES, backends):
            for likelihood, precision in itertools.product(("bernoulli", "gaussian"), HALVES):
                settings = {"kind": kind, "precision": precision, "backend": backend}
                settings["correlate"] = CORRELATED.get(kind, ())
                print(json.dumps(step(likelihood=likelihood, **settings)))
        stratified = {"objective": "beta-tcvae", "tc_sampling": "stratified"}
        for settings in (stratified, {"objective": "factor-vae", "shuffle": "same"}, FALLS):
            for models in (1, 3):
                print(json.dumps(step(models, precision="bf16", **settings)))
        with DeviceTraffic() as traffic:
            torch.tensor([1.0, 2.0], device="cuda") + torch.ones(2).to("cuda")
        print(json.dumps({"probe": traffic.found}))


if __name__ == "__main__":
    main()
