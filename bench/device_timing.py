"""Timers: calls and the replays of their graphs on a device, and steps a second, in turns.

A GPU works on its own: a call is timed by events on the device, and many steps by the host's clock
between two synchronisations. What a call of a few microseconds is said to take depends on what
stands before it: nothing, and the device waits for the host; the same call, and its data are in
the cache. So something long stands there, behind which the host runs ahead.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from fvae.training.graph import WARM_UP, StepGraph

Call = Callable[[], object]
Times = dict[str, float]
_Name = TypeVar("_Name")

# Turns on a CPU: there to try the programs, not to be quoted.
_CPU_TURNS = 3

# About how long all turns of a comparison last on a GPU, and how many there are.
_TURNS_SECONDS = 0.25
_LEAST_TURNS, _MOST_TURNS = 3, 400

# What stands before a call on a GPU: more bytes than its caches hold, or a wait of 0.1 ms.
_CACHED_BYTES = 256 << 20
_WAITED_CYCLES = 200_000


def synchronize(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def spread(values: list[float]) -> Times:
    """Return the 20th, 50th and 80th percentile by name, of any number of values."""
    ordered = sorted(values)
    return {f"p{q}": ordered[round(q / 100 * (len(ordered) - 1))] for q in (20, 50, 80)}


def in_turns(
    calls: dict[_Name, Call], device: str, cold: bool = True, turns: int | None = None
) -> dict[_Name, Times]:
    """Percentiles of each call's time on the device, in microseconds; the calls take turns.

    On a GPU a call of many launches takes as long as the host needs to give them; the replay of
    its graph (:func:`graph_of`) takes what the device needs. The first turns, in which clocks
    rise, do not count.

    Args:
        calls: name -> a call.
        device: where they work.
        cold: clear a GPU's cache before each; otherwise a call finds what those before it left.
        turns: on a CPU that is to be measured; the first does not count. None is a few, for trying
            a program.
    """
    if device == "cuda":
        return _by_events(calls, cold)
    times = seconds_in_turns(calls, turns + 1 if turns else _CPU_TURNS)
    return {n: spread([1e6 * t for t in each[bool(turns) :]]) for n, each in times.items()}


def seconds_in_turns(calls: dict[_Name, Call], turns: int) -> dict[_Name, list[float]]:
    """Seconds of each call by the host's clock, turn by turn, on a CPU."""
    times: dict[_Name, list[float]] = {name: [] for name in calls}
    for _ in range(turns):
        for name, run in calls.items():
            started = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - started)
    return times


def over(theirs: list[float], ours: list[float], digits: int = 2) -> Times:
    """Percentiles of their time over ours of the same turn."""
    each = spread([a / b for a, b in zip(theirs, ours, strict=True)])
    return {name: round(value, digits) for name, value in each.items()}


def milliseconds(times: dict[str, list[float]]) -> dict[str, Times]:
    """Percentiles in milliseconds of seconds by name."""
    return {
        name: {p: round(1e3 * t, 3) for p, t in spread(each).items()}
        for name, each in times.items()
    }


def _by_events(calls: dict[_Name, Call], cold: bool) -> dict[_Name, Times]:
    """Let calls take turns between events, each behind something long that keeps the host ahead."""
    buffer = torch.empty(_CACHED_BYTES if cold else 0, dtype=torch.uint8, device="cuda")
    pairs: dict[_Name, list] = {name: [] for name in calls}

    def turn() -> None:
        for name, run in calls.items():
            if cold:
                buffer.zero_()
            else:
                torch.cuda._sleep(_WAITED_CYCLES)
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            pairs[name].append((start, end))

    turn()
    turns = int(_TURNS_SECONDS / seconds_of(turn, 1, "cuda"))
    turns = min(max(turns, _LEAST_TURNS), _MOST_TURNS)
    seconds_of(turn, turns, "cuda")
    counted = turns - turns // 5
    return {
        name: spread([1e3 * start.elapsed_time(end) for start, end in each[-counted:]])
        for name, each in pairs.items()
    }


def microseconds(run: Call, device: str, turns: int | None = None) -> Times:
    """Percentiles of one call's time, as :func:`in_turns` takes it."""
    return in_turns({"": run}, device, turns=turns)[""]


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


def eager_and_graph(
    calls: dict[str, Call], device: str
) -> dict[str, dict[str, Times | str | None]]:
    """Time calls as they are and as replays of their graphs, all of them in turns.

    Returns:
        for each name ``eager`` and ``graph``, a message where there can be no graph.
    """
    found: dict[str, dict[str, Times | str | None]] = {}
    kinds = {}
    for name, run in calls.items():
        found[name] = {"eager": None, "graph": None}
        kinds[name, "eager"] = run
        if device == "cuda":
            try:
                kinds[name, "graph"] = graph_of(run).replay
            except RuntimeError as error:
                torch.cuda.synchronize()  # a broken device must not pass for a call without one
                found[name]["graph"] = f"no graph: {str(error).splitlines()[0]}"
    for (name, kind), times in in_turns(kinds, device).items():
        found[name][kind] = times
    return found


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


def medians(found: dict) -> Any:
    """Return the same with each percentiles' median in their place."""
    if "p50" in found:
        return found["p50"]
    return {name: medians(x) if isinstance(x, dict) else x for name, x in found.items()}
