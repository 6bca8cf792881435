"""Timers: one call's time on a device, the replay of its graph, and steps a second of several.

A GPU works on its own: one call is timed by events on the device, with the cache cleared before
each, and many steps by the host's clock between two synchronisations.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import triton

from fvae.training.graph import WARM_UP, StepGraph

Call = Callable[[], object]
Times = dict[str, float]

# Calls on a CPU: there to try the programs, not to be quoted.
_CPU_CALLS = 3


def synchronize(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def spread(values: list[float]) -> Times:
    """Return the 20th, 50th and 80th percentile by name, of any number of values."""
    ordered = sorted(values)
    return {f"p{q}": ordered[round(q / 100 * (len(ordered) - 1))] for q in (20, 50, 80)}


def microseconds(run: Call, device: str) -> Times:
    """Percentiles of a call's time on the device, in microseconds.

    On a GPU, where a call is many launches, this is how fast the host gives them; the replay of
    its graph (:func:`graph_of`) is what the device needs.
    """
    if device == "cuda":
        times = triton.testing.do_bench(run, warmup=20, rep=60, return_mode="all")
        return spread([1e3 * t for t in times])
    times = []
    for _ in range(_CPU_CALLS):
        started = time.perf_counter()
        run()
        times.append(1e6 * (time.perf_counter() - started))
    return spread(times)


def graph_of(run: Call) -> StepGraph:
    """Capture one call, which must not wait for the device; its inputs stay where they are.

    Raises:
        RuntimeError: it waits for the device, so that no graph can hold it.
    """
    graph = StepGraph()
    with _no_waiting():
        for _ in range(WARM_UP):
            graph.step(run)
    graph.step(run)
    return graph


@contextmanager
def _no_waiting() -> Iterator[None]:
    """Raise where the host would wait: a capture that fails leaves PyTorch's state in disorder."""
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def eager_and_graph(run: Call, device: str) -> dict[str, Times | str | None]:
    """Time a call as it is and as a graph's replay; a message where there can be no graph."""
    times: dict[str, Times | str | None] = {"eager": microseconds(run, device), "graph": None}
    if device == "cuda":
        try:
            times["graph"] = microseconds(graph_of(run).replay, device)
        except RuntimeError as error:
            torch.cuda.synchronize()  # a broken device must not pass for a call without a graph
            times["graph"] = f"no graph: {str(error).splitlines()[0]}"
    return times


def copy_bandwidth(device: str, size: int = 1 << 30) -> float:
    """Bytes a second, read plus written, of a copy of ``size`` bytes on the device."""
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / (1e-6 * microseconds(lambda: target.copy_(source), device)["p50"])


def seconds_of(step: Call, count: int, device: str) -> float:
    """Seconds of a number of steps, from an idle device to an idle device."""
    synchronize(device)
    started = time.perf_counter()
    for _ in range(count):
        step()
    synchronize(device)
    return time.perf_counter() - started


def interleaved(
    steps: dict[str, Call],
    device: str,
    rounds: int,
    round_seconds: float,
    attempt: Callable,
    warm_up: int = 10,
) -> dict[str, Times]:
    """Steps a second of each, percentiles over rounds that take turns.

    Taking turns, a device that warms up or slows down does so to all of them.

    Args:
        steps: name -> a step.
        device: where they work.
        rounds: how many rounds each takes.
        round_seconds: about how long a round of one of them lasts.
        attempt: ``attempt(name)`` is a context in which one of them may fail; it then takes no
            further part.
        warm_up: steps before the first round; a graph's capture is among them.
    """
    rates: dict[str, list[float]] = {name: [] for name in steps}
    counts: dict[str, int] = {}
    for name, step in steps.items():
        with attempt(name):
            seconds_of(step, warm_up, device)
            few = max(1, warm_up // 2)
            each = seconds_of(step, few, device) / few
            counts[name] = max(1, round(round_seconds / each))
    for _ in range(rounds):
        for name in list(counts):
            count = counts.pop(name)
            with attempt(name):
                rates[name].append(count / seconds_of(steps[name], count, device))
                counts[name] = count
    # In the order of the first round, whoever came through.
    return {name: spread(rates[name]) for name in steps if name in counts}


def median(times: Times | str | None) -> float | None:
    """Return the median of percentiles, None where there are none."""
    return times["p50"] if isinstance(times, dict) else None


def ratio(a: float | None, b: float | None) -> float | None:
    """Return a / b to three digits, None where one of them was not measured."""
    return None if a is None or b is None else float(f"{a / b:.3g}")
