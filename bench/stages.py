"""A training step's time on a device by stage: each stage done alone, beside the whole step."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bench.arithmetic import arithmetic, precisions
from bench.device_timing import Call, graph_of, in_turns
from bench.record import Record
from bench.setup import Setup
from fvae import ops
from fvae.device import AUTOCAST, autocast
from fvae.training.graph import WARM_UP
from fvae.training.trainer import Trainer
from fvae.training.two_players import two_players

_STEP = "whole step"


def stages_of(trainer: Trainer) -> dict[str, Call]:
    """Return the stages of a factor-vae step on a GPU, forward and backward, in their order.

    Inputs and gradients of each are made once. Left out are the sums of losses and of z's
    gradients and, in float16, the scaling of gradients.
    """
    config, rng, backend = trainer.config, trainer.rng, trainer.config.backend
    vae, discriminator = trainer.networks
    half = AUTOCAST.get(config.precision) if trainer.device.type == "cuda" else None

    def draw() -> tuple[Tensor, Tensor]:
        images, indices = ops.gather_batch(
            trainer.store, 2 * config.batch_size, rng, backend, dtype=half or torch.float32,
            return_indices=True,
        )  # fmt: skip
        rng.advance()
        return images, trainer._packed(indices[: config.batch_size])

    def codes() -> tuple[Tensor, Tensor]:
        z, second, kl_dims = ops.reparameterize_both(mu, logvar, rng, backend)
        with torch.no_grad():
            ops.permute_dims(second, rng, backend)
        return z, kl_dims.sum(-1)

    images, target = draw()
    images = trainer._laid_out(images)
    with torch.no_grad(), autocast(trainer.device, config.precision):
        mu, logvar = (t.clone().requires_grad_() for t in vae.encode(images))
    z = codes()[0].detach().requires_grad_()
    z_perm = ops.permute_dims(z.detach(), rng, backend)
    for leaf in trainer.optimizer.leaves:
        leaf.grad = torch.zeros_like(leaf)
    forward: dict[str, tuple[Callable[[], Sequence[Tensor]], list[Tensor]]] = {
        "encoder": (lambda: vae.encode(images), [*vae.encoder.parameters()]),
        "codes": (codes, [mu, logvar]),
        "decoder, likelihood": (
            lambda: (vae.nll(vae.decode(z), target, backend),),
            [z, *vae.decoder.parameters()],
        ),
        "discriminator": (
            lambda: two_players(discriminator, z, z_perm, backend)[:2],
            [z, *discriminator.parameters()],
        ),
    }
    both = {name: _and_backward(trainer, *each) for name, each in forward.items()}
    return {"images": draw, **both, "adam": trainer.optimizer.step}


def _and_backward(
    trainer: Trainer, forward: Callable[[], Sequence[Tensor]], inputs: list[Tensor]
) -> Call:
    """Return a call of a function and of the backward pass to its inputs."""

    def run() -> Sequence[Tensor]:
        with autocast(trainer.device, trainer.config.precision):
            return forward()

    given = [torch.ones_like(output) for output in run()]
    return lambda: torch.autograd.grad(run(), inputs, given)


def timed(setup: Setup, record: Record) -> dict[str, dict]:
    """Microseconds of the stages and of the whole step, by precision.

    On a GPU each is the replay of a graph, and they take turns in the step's order, so that a
    stage finds in the cache what a step would have left there. The stages' sum is more than the
    step by what each graph needs to start.
    """
    found = {}
    for precision in precisions(setup.device):
        with record.attempt(f"stages/{precision}"), arithmetic(precision):
            trainer = Trainer(setup.config(precision=precision), setup.on_device)
            for _ in range(1 if setup.tiny else WARM_UP + 2):
                trainer.step()
            calls = stages_of(trainer)
            if setup.device == "cuda":
                calls = {name: graph_of(run).replay for name, run in calls.items()}
            found[precision] = in_turns(calls | {_STEP: trainer.step}, setup.device, cold=False)
    return found


def table(found: dict[str, dict]) -> str:
    """Return a line for each precision and stage, with its share of the stages' sum."""
    lines = []
    for precision, times in found.items():
        step = times[_STEP]["p50"]
        each = {name: t["p50"] for name, t in times.items() if name != _STEP}
        total = sum(each.values())
        lines.append(f"{precision}: {total:.0f} us in stages, {step:.0f} us a step")
        lines += [f"{us:>10.1f} us {us / total:>5.0%}  {name}" for name, us in each.items()]
    return "\n".join(lines)
