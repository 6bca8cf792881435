"""``python -m bench.stacked``: four ways to train several models, on this machine's CPU.

Prints one JSON line: for the default size and for a small model (64-unit discriminator, 16
channels), and for fp32, and bf16 where the processor is faster with it, the steps a second and
model of runs one after another, of 4 and 8 models stacked in one step, and of one process a core
with one thread each. Medians of interleaved rounds; each way runs in processes of its own.
"""

import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import torch

from bench.record import keep, options
from bench.step import cpu_precisions
from fvae import data
from fvae.config import TrainConfig
from fvae.device import keep_freed_memory
from fvae.training.stacked import StackedTrainer
from fvae.training.trainer import Trainer

ROUNDS = 7
MODEL_STEPS = 8  # a round and process: eight steps of one model, or one of eight models
SIZES = {
    "default": {},
    "small": {"disc_units": 64, "conv_channels": (16, 16, 16, 16)},
}


def check(store: data.Store, size: dict) -> None:
    """Stop unless the first step's losses are those of each model alone, within 1e-5."""
    configs = [TrainConfig(device="cpu", precision="fp32", seed=s, **size) for s in range(2)]
    terms = StackedTrainer(configs, store).step()
    for m, config in enumerate(configs):
        for name, expected in Trainer(config, store).step().items():
            error = (terms[name][m] - expected).abs().max() / expected.abs().max().clamp_min(1e-30)
            if not error < 1e-5:
                raise SystemExit(f"not timed: {name} differs by {error:.1e} from a model alone")


def _work(models: int, threads: int, config: TrainConfig, pipe: Connection) -> None:
    """Time a round each time the parent asks; the first answer is the warm-up's."""
    torch.set_num_threads(threads)
    keep_freed_memory()  # as `fvae train` does
    store = data.load("dsprites")
    step: Callable[[], object]
    if models == 1:
        step = Trainer(config, store).step
    else:
        fields = dict(vars(config))
        step = StackedTrainer([TrainConfig(**fields | {"seed": s}) for s in range(models)], store)
        step = step.step
    while True:
        started = time.perf_counter()
        for _ in range(MODEL_STEPS // models):
            step()
        pipe.send(time.perf_counter() - started)
        if not pipe.recv():
            return


def measure(size: dict, precision: str, rounds: int = ROUNDS) -> dict[str, float]:
    """Steps a second and model of each way; medians of rounds, one way at work at a time."""
    cores = len(os.sched_getaffinity(0))
    # Name -> (processes, models in a step, threads).
    ways = {
        "one_after_another": (1, 1, cores),
        "stacked_4": (1, 4, cores),
        "stacked_8": (1, 8, cores),
        "process_a_core": (cores, 1, 1),
        "stacked_4_a_core": (cores, 4, 1),
    }
    context = multiprocessing.get_context("spawn")
    config = TrainConfig(device="cpu", precision=precision, **size)
    pipes: dict[str, list[Connection]] = {}
    for name, (processes, models, threads) in ways.items():
        pipes[name] = []
        for _ in range(processes):
            ours, theirs = context.Pipe()
            arguments = (models, threads, config, theirs)
            context.Process(target=_work, args=arguments, daemon=True).start()
            pipes[name].append(ours)
            ours.recv()
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, group in pipes.items():
            for pipe in group:
                pipe.send(True)
            seconds = max(pipe.recv() for pipe in group)
            rates[name].append(len(group) * MODEL_STEPS / seconds)
    for group in pipes.values():
        for pipe in group:
            pipe.send(False)
    return {name: round(statistics.median(values), 1) for name, values in rates.items()}


def main() -> None:
    """Measure and print the JSON line."""
    out = options("bench.stacked", __doc__).parse_args().out
    store = data.load("dsprites")
    result: dict[str, object] = {"cores": len(os.sched_getaffinity(0))}
    for name, size in SIZES.items():
        check(store, size)
        for precision in cpu_precisions():
            result[f"{name}_{precision}"] = measure(size, precision)
            print(name, precision, result[f"{name}_{precision}"], file=sys.stderr)
    keep(out, result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
