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

#: The name that the whole step has beside its stages.
WHOLE = "whole step"


def stages_of(trainer: Trainer) -> dict[str, Call]:
    """Return the stages of a factor-vae step, forward and backward, in their order.

    Inputs and gradients of each are made once. Left out are the sums of losses and of z's
    gradients and, in float16, the scaling of gradients. On a CPU, as in its step, nothing goes back
    through the second batch, and the images are the target.
    """
    config, rng, backend = trainer.config, trainer.rng, trainer.config.backend
    vae, discriminator = trainer.networks
    gpu = trainer.device.type == "cuda"
    half = AUTOCAST.get(config.precision) if gpu else None

    def draw() -> tuple[Tensor, Tensor]:
        images, indices = ops.gather_batch(
            trainer.store, 2 * config.batch_size, rng, backend, dtype=half or torch.float32,
            return_indices=True,
        )  # fmt: skip
        rng.advance()
        first = indices[: config.batch_size]
        return images, trainer._packed(first) if gpu else images[: config.batch_size]

    def encode() -> Sequence[Tensor]:
        if gpu:
            return vae.encode(images)
        first, second = images.chunk(2)
        with torch.no_grad():
            vae.encode(second)
        return vae.encode(first)

    def codes() -> tuple[Tensor, Tensor]:
        if gpu:
            z, second, kl_dims = ops.reparameterize_both(mu, logvar, rng, backend)
        else:
            z, kl_dims = ops.reparameterize(mu, logvar, rng, backend)
            with torch.no_grad():
                second = ops.reparameterize(mu, logvar, rng.at_lane(1), backend)[0]
        with torch.no_grad():
            ops.permute_dims(second, rng, backend)
        return z, kl_dims.sum(-1)

    images, target = draw()
    images = trainer._laid_out(images)
    with torch.no_grad(), autocast(trainer.device, config.precision):
        mu, logvar = (t.clone().requires_grad_() for t in encode())
    z = codes()[0].detach().requires_grad_()
    z_perm = ops.permute_dims(z.detach(), rng, backend)
    leaves = trainer.optimizer.leaves
    gradients = [torch.zeros_like(leaf) for leaf in leaves]

    def give_gradients() -> None:
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.grad = gradient

    def adam() -> None:
        give_gradients()  # which a whole step, in between, takes away
        trainer.optimizer.step()

    give_gradients()
    forward: dict[str, tuple[Callable[[], Sequence[Tensor]], list[Tensor]]] = {
        "encoder": (encode, [*vae.encoder.parameters()]),
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
    return {"images": draw, **both, "adam": adam}


def _and_backward(
    trainer: Trainer, forward: Callable[[], Sequence[Tensor]], inputs: list[Tensor]
) -> Call:
    """Return a call of a function and of the backward pass to its inputs."""

    def run() -> Sequence[Tensor]:
        with autocast(trainer.device, trainer.config.precision):
            return forward()

    given = [torch.ones_like(output) for output in run()]
    return lambda: torch.autograd.grad(run(), inputs, given)


def timed(
    setup: Setup, record: Record, names: Sequence[str] = (), turns: int | None = None
) -> dict[str, dict]:
    """Microseconds of the stages and of the whole step, by precision.

    On a GPU each is the replay of a graph, and they take turns in the step's order, so that a
    stage finds in the cache what a step would have left there. The stages' sum is more than the
    step by what each graph needs to start.

    Args:
        setup: device, data and sizes.
        record: where what fails is noted.
        names: precisions; all of :func:`bench.arithmetic.precisions` if none is given.
        turns: on a CPU that is measured.
    """
    found = {}
    for precision in names or precisions(setup.device):
        with record.attempt(f"stages/{precision}"), arithmetic(precision):
            trainer = Trainer(setup.config(precision=precision), setup.on_device)
            for _ in range(1 if setup.tiny else WARM_UP + 2):
                trainer.step()
            calls = stages_of(trainer)
            if setup.device == "cuda":
                calls = {name: graph_of(run).replay for name, run in calls.items()}
            found[precision] = in_turns(
                calls | {WHOLE: trainer.step}, setup.device, cold=False, turns=turns
            )
    return found


def table(found: dict[str, dict]) -> str:
    """Return a line for each precision and stage, with its share of the stages' sum."""
    lines = []
    for precision, times in found.items():
        step = times[WHOLE]["p50"]
        each = {name: t["p50"] for name, t in times.items() if name != WHOLE}
        total = sum(each.values())
        lines.append(f"{precision}: {total:.0f} us in stages, {step:.0f} us a step")
        lines += [f"{us:>10.1f} us {us / total:>5.0%}  {name}" for name, us in each.items()]
    return "\n".join(lines)
