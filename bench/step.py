"""``python -m bench.step``: the textbook step and ours, interleaved in one run.

Prints one JSON line ``{"ratio_bf16": .., "ratio_fp32": ..}``, textbook time over ours, medians over
rounds that take turns; ``ratio_bf16`` is null where the processor has no bf16 in hardware. Before
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


def _textbook_step(store: data.Store) -> Callable[[], object]:
    """Draw batches by ``randint`` from images held as float32, as is usual, and step."""
    images = reference.unpack(
        store.data[torch.arange(0, len(store), len(store) // 8192)],
        store.image_shape,
        store.binary,
        torch.float32,
    )
    textbook = Textbook()

    def step() -> None:
        first, second = (images[torch.randint(len(images), (64,))] for _ in range(2))
        textbook.step(first, second)

    return step


def _work(name: str, pipe: Connection) -> None:
    """Time a round of steps each time the parent asks; the first answer is the warm-up's."""
    store = data.load("dsprites")
    if name == "textbook":
        step = _textbook_step(store)
    else:
        keep_freed_memory()  # as `fvae train` does
        step = trainer(store, name).step
    while True:
        start = time.perf_counter()
        for _ in range(STEPS_A_ROUND):
            step()
        pipe.send((time.perf_counter() - start) / STEPS_A_ROUND)
        if not pipe.recv():
            return


def measure(store: data.Store, rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Seconds a step of "textbook", "fp32" and "bf16" in each round, interleaved.

    Each runs in a process of its own, as it would in use: in one process they would share the
    allocator's state, and what one frees would speed up another. One works at a time.
    """
    errors = compare(store)
    worst = max(errors, key=errors.get)
    if not errors[worst] < 1e-5:
        raise SystemExit(f"not timed: {worst} differs by {errors[worst]:.1e} from the textbook")
    names = ["textbook", "fp32"]
    if has_fast_bf16(torch.device("cpu")):
        names.append("bf16")
    context = multiprocessing.get_context("spawn")
    pipes, seconds = {}, {name: [] for name in names}
    for name in names:
        pipes[name], theirs = context.Pipe()
        context.Process(target=_work, args=(name, theirs), daemon=True).start()
        pipes[name].recv()
    for _ in range(rounds):
        for name, pipe in pipes.items():
            pipe.send(True)
            seconds[name].append(pipe.recv())
    for pipe in pipes.values():
        pipe.send(False)
    return seconds


def main() -> None:
    """Measure and print the JSON line."""
    out = options("bench.step", __doc__).parse_args().out
    seconds = measure(data.load("dsprites"))
    found = {
        f"ratio_{name}": over(seconds["textbook"], seconds[name]) if name in seconds else None
        for name in ("bf16", "fp32")
    }
    times = milliseconds(seconds)
    print(", ".join(f"{name} {ms['p50']:.1f} ms" for name, ms in times.items()), file=sys.stderr)
    keep(out, found | {"ms": times})
    # In a process of its own, which then takes fake tensors for real ones.
    counted = subprocess.run(
        [sys.executable, "-m", "bench.launches"], capture_output=True, text=True, check=False
    )
    launches = counted.stdout.strip() or counted.stderr.strip().rpartition("\n")[2]
    print(f"kernels a step starts on a GPU, and MB that they move: {launches}", file=sys.stderr)
    print(json.dumps({name: ratio and ratio["p50"] for name, ratio in found.items()}))


if __name__ == "__main__":
    main()
