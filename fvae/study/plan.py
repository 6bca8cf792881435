"""How the runs of a study share the machine: measure the ways there are, take the fastest."""

import dataclasses
import heapq
import os
from collections import defaultdict
from pathlib import Path

import torch

from fvae.config import StudyConfig, TrainConfig
from fvae.data import Store
from fvae.errors import UserError
from fvae.study.launch import torchrun
from fvae.study.work import Stop, step_seconds, steps_done
from fvae.training import run_data
from fvae.training.stacked import stackable

STACK = 16  # models in one step, at most: their optimizer states take 80 MB each at full size

# A pilot starts processes, which takes seconds: below this many seconds of work it cannot pay.
_WORTH_A_PILOT = 200.0
# A gain within the noise of the pilot is none.
_GAIN = 0.9


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to start.

    Attributes:
        strategy: "one-by-one", "processes", "stacked" or "stacked-processes".
        processes: how many; 1 is this process.
        threads: of each process.
        groups: names of runs; those of one group are trained stacked.
        step_seconds: time of one step of one run, by strategy and objective, where measured.
        reason: why this strategy, a sentence.
    """

    strategy: str
    processes: int
    threads: int
    groups: list[list[str]]
    step_seconds: dict[str, dict[str, float]]
    reason: str

    def to_dict(self) -> dict:
        """Return what is kept with the study."""
        kept = dataclasses.asdict(self)
        del kept["groups"]
        return kept


def make_plan(
    config: StudyConfig,
    runs: Path,
    todo: dict[str, TrainConfig],
    store: Store,
    log: Path,
    stop: Stop,
) -> Plan:
    """Choose the strategy for the runs that are left.

    Args:
        config: the study's settings.
        runs: the folder of the run folders.
        todo: the runs that are left, by name.
        store: the data set.
        log: file for what pilot processes say.
        stop: the request to end; the plan then means nothing.

    Raises:
        UserError: the strategy that was asked for is not available.
    """
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    cuda = config.device == "cuda"
    alone = [[name] for name in todo]
    stacks = _stacks(runs, todo, STACK)
    # The same for a process on each core: small enough that each has one.
    shares = _stacks(runs, todo, min(STACK, -(-len(todo) // cores)))
    spread = config.devices > 1 or config.launcher == "ray"

    def plan(strategy: str, reason: str, measured: dict | None = None) -> Plan:
        groups = {"stacked": stacks, "stacked-processes": shares}.get(strategy, alone)
        processes, threads = config.devices, max(1, cores // config.devices)
        if "processes" in strategy and not spread:
            processes, threads = max(1, min(cores, len(groups))), 1
        elif not spread:
            threads = torch.get_num_threads()
        return Plan(strategy, processes, threads, groups, measured or {}, reason)

    if "processes" in config.strategy and cuda and not spread:
        raise UserError(
            f"--strategy {config.strategy}: is for CPUs; on a GPU use stacked, or --devices"
        )
    if config.strategy != "auto":
        return plan(config.strategy, "asked for.")
    others = [] if cuda or spread or cores < 2 or len(todo) < 2 else ["processes"]
    others += ["stacked"] if len(stacks) < len(alone) and (cuda or not spread) else []
    others += ["stacked-processes"] if "processes" in others and len(shares) < len(alone) else []
    if not others:
        return plan("one-by-one", "there is no other way to share the device.")

    # One configuration for each objective: weights and seeds do not change the time of a step.
    examples = {c.objective: c for c in reversed(todo.values())}
    steps = {name: max(0, c.steps - steps_done(runs / name)) for name, c in todo.items()}

    def measure(seconds: float) -> dict[str, float]:
        return {o: step_seconds([c], store, seconds, stop) for o, c in examples.items()}

    def wall(groups: list[list[str]], times: dict[str, float], workers: int = 1) -> float:
        """Seconds until the last of some workers, who take groups in turn, is done."""
        free = [0.0] * workers
        for group in groups:
            each = max(steps[name] for name in group) * times[todo[group[0]].objective]
            heapq.heapreplace(free, free[0] + each * len(group) * workers)
        return max(free)

    measured = {"one-by-one": measure(0.2)}
    expected = wall(alone, measured["one-by-one"])
    if expected < _WORTH_A_PILOT or stop.number:
        reason = f"with about {expected:.0f} s of training left, measuring others does not pay."
        return plan("one-by-one", reason, measured)
    seconds = min(10.0, 0.01 * expected / len(examples))
    measured["one-by-one"] = measure(seconds)
    walls = {"one-by-one": wall(alone, measured["one-by-one"])}
    for strategy in [name for name in others if not stop.number]:
        ours = plan(strategy, "")
        group = {todo[g[0]].objective: [todo[n] for n in g] for g in sorted(ours.groups, key=len)}
        if "processes" in strategy:
            times = _measure_processes(group, config, ours, seconds, log, stop)
        else:
            times = {o: step_seconds(g, store, seconds, stop) / len(g) for o, g in group.items()}
        if times:
            measured[strategy] = times
            walls[strategy] = wall(ours.groups, times, ours.processes)
    best = min(walls, key=walls.__getitem__)
    if walls[best] > _GAIN * walls["one-by-one"]:
        best = "one-by-one"
    hours = ", ".join(f"{name} {value / 3600:.2f} h" for name, value in walls.items())
    return plan(best, f"training that is left, as foreseen from the pilot: {hours}.", measured)


def _stacks(runs: Path, todo: dict[str, TrainConfig], most: int) -> list[list[str]]:
    """Group runs of equal shape that stand at the same step, ``most`` in a group."""
    groups: list[list[str]] = []
    open_groups: dict[int, list[list[str]]] = defaultdict(list)
    for name, config in todo.items():
        same_step = open_groups[steps_done(runs / name)]
        for group in same_step:
            fits = stackable(todo[group[0]], config)
            if len(group) < most and fits:
                group.append(name)
                break
        else:
            groups.append([name])
            same_step.append(groups[-1])
    return groups


def _measure_processes(
    groups: dict[str, list[TrainConfig]],
    config: StudyConfig,
    plan: Plan,
    seconds: float,
    log: Path,
    stop: Stop,
) -> dict[str, float]:
    """Return seconds a step of one run, by objective, when all processes have such a group."""
    times = defaultdict(list)

    def on_event(event: dict) -> None:
        if "pilot" in event:
            times[event["pilot"]].append(event["seconds"])

    pilot = {o: [dataclasses.asdict(c) for c in group] for o, group in groups.items()}
    job = {
        "pilot": pilot, "seconds": seconds, "data": run_data.where(config), "device": config.device,
        "threads": plan.threads,
    }  # fmt: skip
    torchrun(job, plan.processes, log, on_event, stop)
    # No memory for so many, no port to meet at: a strategy less.
    if any(len(times[o]) < plan.processes or min(times[o]) <= 0 for o in groups):
        return {}
    return {o: sum(t) / len(t) / plan.processes / len(groups[o]) for o, t in times.items()}
