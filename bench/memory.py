"""The most memory that a step holds on a GPU: ours, the textbook's, and stacked models'."""

import gc
from collections.abc import Callable

import torch

from bench.arithmetic import arithmetic, precisions
from bench.device_timing import Call, synchronize
from bench.record import Record
from bench.setup import Setup
from bench.stacked import SIZES
from bench.step_rates import TEXTBOOKS, batches_of, textbook
from fvae.training.graph import WARM_UP
from fvae.training.stacked import StackedTrainer
from fvae.training.trainer import Trainer


def peak(make: Callable[[], Call], device: str) -> int | None:
    """Most bytes in use while something is built and takes some steps, beyond those before.

    Its weights, Adam's and the capture of a graph count; the data set that is on the device
    already does not. None on a CPU, whose memory is not counted.
    """
    gc.collect()
    before = 0
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    step = make()
    for _ in range(WARM_UP + 2):
        step()
    synchronize(device)
    return torch.cuda.max_memory_allocated() - before if device == "cuda" else None


def rows(setup: Setup, record: Record) -> list[dict]:
    """Return a row for each kind of step and precision, with ``bytes`` or None."""
    found = []
    known = precisions(setup.device)
    for precision in [p for p in ("bf16", "fp32") if p in known]:
        for kind, make in _kinds(setup, precision).items():
            with record.attempt(f"memory/{kind} {precision}"), arithmetic(precision):
                row = {"kind": kind, "precision": precision}
                found.append(row | {"bytes": peak(make, setup.device)})
    return found


def _kinds(setup: Setup, precision: str) -> dict[str, Callable[[], Call]]:
    """Return what builds each kind of step."""
    store = setup.on_device
    draw = batches_of(setup, on_device=True)

    def ours(graph: bool) -> Call:
        return Trainer(setup.config(precision=precision, graph=graph), store).step

    def theirs(name: str) -> Call:
        return textbook(setup, draw, precision, **TEXTBOOKS[name])

    def together(models: int, size: str) -> Call:
        fields = {"precision": precision} | ({} if setup.tiny else SIZES[size])
        configs = [setup.config(seed=seed, **fields) for seed in range(models)]
        return StackedTrainer(configs, store).step

    kinds: dict[str, Callable[[], Call]] = {
        "ours graph": lambda: ours(True),
        "ours eager": lambda: ours(False),
    }
    kinds |= {name: (lambda name=name: theirs(name)) for name in TEXTBOOKS}
    for size in SIZES:
        for models in (2,) if setup.tiny else (8, 32):
            kinds[f"{models} stacked, {size}"] = lambda m=models, size=size: together(m, size)
    return kinds


def table(found: list[dict]) -> str:
    """Return a line for each row, in MB (10^6 bytes)."""
    return "\n".join(
        f"{row['precision']:<6}{row['kind']:<24}"
        + ("not counted" if row["bytes"] is None else f"{row['bytes'] / 1e6:>10.1f} MB")
        for row in found
    )
