"""``python -m bench.step``: the textbook step and ours, interleaved in one run.

Prints one JSON line ``{"ratio_bf16": .., "ratio_fp32": ..}``, textbook time over ours, medians over
rounds that take turns; ``ratio_bf16`` is null where bf16 is no faster on the processor. Before
timing, it checks that both compute the same losses and gradients in fp32. On standard error stand
the times, and what a step starts and moves on a GPU (:mod:`bench.launches`).
"""

import json
import multiprocessing
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection

import torch
from torch import Tensor

from bench.baseline import Textbook
from bench.device_timing import milliseconds, over
from bench.record import keep, options
from fvae import data, ops
from fvae.config import TrainConfig
from fvae.device import has_fast_bf16, keep_freed_memory
from fvae.ops import reference
from fvae.philox import Philox
from fvae.training import objectives
from fvae.training.trainer import Trainer

ROUNDS = 12
STEPS_A_ROUND = 8


def trainer(store: data.Store, precision: str) -> Trainer:
    """Return our default FactorVAE run on the CPU."""
    return Trainer(TrainConfig(device="cpu", precision=precision), store)


def twin(ours: Trainer, **options) -> Textbook:
    """Return a textbook with our trainer's weights, noise and permutations.

    The options are further arguments of :class:`bench.baseline.Textbook`.
    """
    rng, calls = ours.rng, {"noise": 0}

    def noise(mu: Tensor) -> Tensor:
        lane = calls["noise"]
        calls["noise"] = 1 - lane
        zero = torch.zeros_like(mu)
        return ops.reparameterize(zero, zero, rng.at_lane(lane))[0]

    textbook = Textbook(
        gamma=ours.config.gamma,
        units=ours.config.disc_units,
        noise=noise,
        permute=lambda z: ops.permute_dims(z, rng),
        device=str(ours.device),
        **options,
    )
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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the switch warns about Intel GPUs
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


def _textbook_round() -> Callable[[], object]:
    """Draw batches by ``randint`` from images held as float32, as is usual, and step."""
    images = float_images(data.load("dsprites"))
    textbook = Textbook()

    def step() -> None:
        first, second = (images[torch.randint(len(images), (64,))] for _ in range(2))
        textbook.step(first, second)

    return times(step)


def float_images(store: data.Store, count: int = 8192) -> Tensor:
    """Some ``count`` images of a store, evenly spaced, as float32 ``[n, C, S, S]``."""
    rows = store.data[torch.arange(0, len(store), len(store) // count)]
    return reference.unpack(rows, store.image_shape, store.binary, torch.float32)


def our_round(precision: str, **fields) -> Callable[[], object]:
    """Make a default run on the CPU with some fields changed; return a round of its steps."""
    keep_freed_memory()  # as `fvae train` does
    config = TrainConfig(device="cpu", precision=precision, **fields)
    return times(Trainer(config, data.load("dsprites")).step)


def times(step: Callable[[], object], count: int = STEPS_A_ROUND) -> Callable[[], None]:
    """Return a call of a number of steps."""

    def round_of_steps() -> None:
        for _ in range(count):
            step()

    return round_of_steps


def _work(make: Callable[[], Callable[[], object]], pipe: Connection) -> None:
    """Time a round each time the parent asks; the first answer is the warm-up's."""
    run = make()
    while True:
        start = time.perf_counter()
        run()
        pipe.send(time.perf_counter() - start)
        if not pipe.recv():
            return


def in_processes(
    sides: dict[str, Callable[[], Callable[[], object]]], rounds: int = ROUNDS
) -> dict[str, list[float]]:
    """Seconds of each side's round, round by round.

    Each works in a process of its own, as it would in use: in one process they would share the
    allocator's state, and what one frees would speed up another. One works at a time.

    Args:
        sides: name -> a function that another process can call and that returns a round.
        rounds: how many count.
    """
    context = multiprocessing.get_context("spawn")
    pipes, seconds = {}, {name: [] for name in sides}
    for name, make in sides.items():
        pipes[name], theirs = context.Pipe()
        context.Process(target=_work, args=(make, theirs), daemon=True).start()
        pipes[name].recv()
    for _ in range(rounds):
        for name, pipe in pipes.items():
            pipe.send(True)
            seconds[name].append(pipe.recv())
    for pipe in pipes.values():
        pipe.send(False)
    return seconds


def measure(store: data.Store, rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Seconds a step of "textbook", "fp32" and "bf16" in each round, interleaved."""
    errors = compare(store)
    worst = max(errors, key=errors.get)
    if not errors[worst] < 1e-5:
        raise SystemExit(f"not timed: {worst} differs by {errors[worst]:.1e} from the textbook")
    sides: dict[str, Callable] = {"textbook": _textbook_round}
    for precision in cpu_precisions():
        sides[precision] = partial(our_round, precision)
    return {
        name: [t / STEPS_A_ROUND for t in each]
        for name, each in in_processes(sides, rounds).items()
    }


def cpu_precisions() -> list[str]:
    """Return fp32, and bf16 where the processor is faster with it."""
    return ["fp32", *(["bf16"] if has_fast_bf16(torch.device("cpu")) else [])]


def main() -> None:
    """Measure and print the JSON line."""
    out = options("bench.step", __doc__).parse_args().out
    seconds = measure(data.load("dsprites"))
    found = {
        f"ratio_{name}": over(seconds["textbook"], seconds[name]) if name in seconds else None
        for name in ("bf16", "fp32")
    }
    each = milliseconds(seconds)
    print(", ".join(f"{name} {ms['p50']:.1f} ms" for name, ms in each.items()), file=sys.stderr)
    keep(out, found | {"ms": each})
    # In a process of its own, which then takes fake tensors for real ones.
    counted = subprocess.run(
        [sys.executable, "-m", "bench.launches"], capture_output=True, text=True, check=False
    )
    launches = counted.stdout.strip() or counted.stderr.strip().rpartition("\n")[2]
    print(f"kernels a step starts on a GPU, and MB that they move: {launches}", file=sys.stderr)
    print(json.dumps({name: ratio and ratio["p50"] for name, ratio in found.items()}))


if __name__ == "__main__":
    main()
