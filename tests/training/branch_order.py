"""``python branch_order.py GUARD``: the order of steps' launches on streams, as JSON lines.

On fake CUDA tensors, as in fake_cuda.py, with its own walk through the backward pass.
"""

import contextlib
import json
import sys
from unittest import mock

import torch
from small import bits
from stream_order import Order, parallel

from bench import launches
from bench.launches import MODE, built_for_real, pretend
from fvae.config import TrainConfig
from fvae.models import branches
from fvae.models.branches import Branches
from fvae.training.stacked import StackedTrainer
from fvae.training.trainer import Trainer


class Forgetful(list):
    """Keeps nothing."""

    def append(self, one):
        pass


class Forgetting(Branches):
    """Lets go of what is read apart."""

    def __init__(self):
        super().__init__()
        self._kept = Forgetful()


class NotJoining(Branches):
    """Gives the gradients without waiting for them."""

    def _join(self):
        self._forked.clear()
        super()._join()


class NotMeeting(Branches):
    """Does not wait for what went beside the step."""

    def meet(self):
        pass


class NotForking(Branches):
    """Lets a branch begin before what it reads is there."""

    def _fork(self, name, ready=None):
        stream = self._forked[name] = branches._stream(0, name)
        return torch.cuda.stream(stream)


class Early(Branches):
    """Lets the players' way back begin where their way forth did."""

    def beside(self):
        self._ready = self._first = getattr(self, "_first", None) or branches._here().record_event()
        return super().beside()


BROKEN = (Forgetting, NotJoining, NotMeeting, NotForking, Early)


@contextlib.contextmanager
def released():
    """Let each node of the graph drop what it saved once it has run, as the engine does."""
    used, call = [], launches._call

    def unpack(holder):
        used.append(holder)
        return holder[0]

    def call_and_release(node, grads):
        found = call(node, grads)
        for holder in used:
            holder.clear()
        used.clear()
        return found

    with (
        torch.autograd.graph.saved_tensors_hooks(lambda t: [t], unpack),
        mock.patch.object(launches, "_call", call_and_release),
    ):
        yield


def record(forks=Branches, models=1, **settings):
    """Do a step on a second pass, when all that is made once is there; return its order."""
    config = TrainConfig(device="cuda", graph=False, **settings)
    store = bits(200)
    if models == 1:
        trainer = Trainer(config, store)
    else:
        trainer = StackedTrainer([config] * models, store)
    trainer.branches = forks() if forks else None
    order = Order()
    with contextlib.ExitStack() as patches:
        order.stand_in(
            lambda name, value: patches.enter_context(mock.patch.object(torch.cuda, name, value))
        )
        branches._stream.cache_clear()
        trainer.step()
        with order, released():
            trainer.step()
    branches._stream.cache_clear()
    kept = ("_kept", "_owed", "_forked", "_ready")
    order.left = [name for name in kept if getattr(trainer.branches, name, None)]
    return order


def promised(order):
    """Whether what was promised to be parallel is: by name."""
    of = {}
    for operation in order.operations:
        of.setdefault(operation.name, []).append(operation)
    backward = of["convolution_backward"]
    weights = [one for one in backward if list(one.args[-1]) == [False, True, False]]
    inputs = [one for one in backward if list(one.args[-1]) == [True, False, False]]
    # Each weight's gradient beside the gradient of the input that is made next, a layer down.
    steps = zip(weights, inputs[1:], strict=False)
    found = {"weights": len(weights) > 5 and all(parallel(a, b) for a, b in steps)}
    if "permute_dims" in of:
        (permuted,), (nll,) = of["permute_dims"], of["bernoulli_nll"]
        (ratio,) = of["logit_ratio"]
        found["players forward"] = parallel(permuted, nll) and parallel(ratio, nll)
        # Theirs have a factor, or leave the weight's gradient to the optimizer.
        players = [o for o in of["linear_backward"] if len(o.inputs) == 5 or o.args[-1] is False]
        decoder = inputs[:4]
        found["players backward"] = len(players) > 5 and all(
            parallel(a, b) for a in players for b in decoder
        )
    return found


def main():
    """Print a line for each kind of step."""
    pretend(sys.argv[1])
    for trainer_class in (Trainer, StackedTrainer):
        built_for_real(trainer_class)
    factor = {"objective": "factor-vae"}
    kinds = [{"precision": p, **factor} for p in ("bf16", "fp32", "fp16")]
    kinds += [{"objective": o, "precision": "bf16"} for o in ("vae", "beta-tcvae")]
    kinds += [{"shuffle": "same", "precision": "bf16", **factor}]
    kinds += [{"models": 2, "precision": "bf16", **factor}]
    kinds += [{"disc_units": 2000, "precision": "bf16", **factor}]  # products of cuBLAS

    with MODE:
        for kind in kinds:
            for forks in (None, Branches):
                order = record(forks, **kind)
                line = {**kind, "forks": bool(forks), "races": order.races, "left": order.left}
                line |= {"streams": len(order.streams), "launches": order.total}
                line |= {"longest": order.main.depth}
                if forks and not {"models", "disc_units", "backend"} & set(kind):
                    line["promised"] = promised(order)
                print(json.dumps(line))
        for broken in BROKEN:
            races = record(broken, precision="bf16", **factor).races
            print(json.dumps({"broken": broken.__name__, "races": races}))


if __name__ == "__main__":
    main()
