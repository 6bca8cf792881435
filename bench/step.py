"""``python -m bench.step``: the textbook step and ours, interleaved in one run.

Prints one JSON line ``{"ratio_bf16": .., "ratio_fp32": ..}``, textbook time over ours, medians of
interleaved rounds; ``ratio_bf16`` is null where the processor has no bf16 in hardware. Before
timing, it checks that both compute the same losses and gradients in fp32.
"""

import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from bench.baseline import Textbook
from fvae import data, objectives, ops, reference
from fvae.config import TrainConfig
from fvae.device import has_fast_bf16
from fvae.philox import Philox
from fvae.train import Trainer

ROUNDS = 15
STEPS_A_ROUND = 4


def trainer(store: data.Store, precision: str) -> Trainer:
    """Return our default FactorVAE run on the CPU."""
    return Trainer(TrainConfig(device="cpu", precision=precision), store)


def twin(ours: Trainer) -> Textbook:
    """Return a textbook with our trainer's weights, noise and permutations."""
    rng, calls = ours.rng, {"noise": 0}

    def noise(mu: Tensor) -> Tensor:
        lane = calls["noise"]
        calls["noise"] = 1 - lane
        zero = torch.zeros_like(mu)
        return ops.reparameterize(zero, zero, rng.at_lane(lane))[0]

    textbook = Textbook(noise=noise, permute=lambda z: ops.permute_dims(z, rng))
    pairs = [
        (textbook.encoder, ours.vae.encoder),
        (textbook.decoder, ours.vae.decoder),
        (textbook.disc, ours.discriminator),
    ]
    with torch.no_grad():
        for theirs, own in pairs:
            for p, q in zip(theirs.parameters(), own.parameters(), strict=True):
                p.copy_(q)
    return textbook


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest magnitude."""
    got, expected = got.detach(), expected.detach()
    scale = expected.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    return float((got - expected).abs().max() / scale)


def compare(store: data.Store) -> dict[str, float]:
    """Relative error of each loss and each gradient, ours against the textbook, same input, fp32.

    Ours runs as a step would run it, channels_last and one backward pass, with the weights and
    random numbers of step 0. The textbook runs without oneDNN here: that library's fp32 gradient
    of a transposed convolution's bias is off by 6e-5 from a float64 run, ours by 8e-8.
    """
    ours = trainer(store, "fp32")
    textbook = twin(ours)
    x = ops.gather_batch(store, 128, Philox(1))
    first, second = x.split(64)
    with torch.backends.mkldnn.flags(enabled=False):
        expected = textbook.losses(first, second)
    terms = objectives.factor_vae(ours.vae, ours.discriminator, first, second, 35.0, ours.rng)
    terms["loss"].backward()
    errors = {name: relative_error(terms[name], value) for name, value in expected.items()}
    theirs = [*textbook.vae_parameters, *textbook.disc.parameters()]
    own = [*ours.vae.named_parameters(), *ours.discriminator.named_parameters()]
    for (name, q), p in zip(own, theirs, strict=True):
        errors[f"grad of {name} {list(q.shape)}"] = relative_error(q.grad, p.grad)
    return errors


def _seconds(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    for _ in range(STEPS_A_ROUND):
        step()
    return (time.perf_counter() - start) / STEPS_A_ROUND


def measure(store: data.Store, rounds: int = ROUNDS) -> dict[str, float]:
    """Median seconds a step of "textbook", "fp32" and "bf16", interleaved round by round.

    Both sides draw their own batches: the textbook by ``randint`` from images held as float32,
    as is usual, ours by gather_batch from the packed store.
    """
    errors = compare(store)
    worst = max(errors, key=errors.get)
    if not errors[worst] < 1e-5:
        raise SystemExit(f"not timed: {worst} differs by {errors[worst]:.1e} from the textbook")
    images = reference.unpack(
        store.data[torch.arange(0, len(store), len(store) // 8192)],
        store.image_shape,
        store.binary,
        torch.float32,
    )
    textbook = Textbook()

    def textbook_step() -> None:
        first, second = (images[torch.randint(len(images), (64,))] for _ in range(2))
        textbook.step(first, second)

    steps = {"textbook": textbook_step, "fp32": trainer(store, "fp32").step}
    if has_fast_bf16(torch.device("cpu")):
        steps["bf16"] = trainer(store, "bf16").step
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        _seconds(step)  # warm up
    for _ in range(rounds):
        for name, step in steps.items():
            seconds[name].append(_seconds(step))
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    """Measure and print the JSON line."""
    seconds = measure(data.load("dsprites"))
    ratios = {
        f"ratio_{name}": round(seconds["textbook"] / seconds[name], 2) if name in seconds else None
        for name in ("bf16", "fp32")
    }
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
