"""What both GPU programs look into: several models in a step, the loop around it, its kernels."""

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from bench.arithmetic import arithmetic, current, precisions
from bench.device_timing import Call, interleaved, median, ratio, seconds_of, synchronize
from bench.record import Record
from bench.setup import Setup
from bench.stacked import SIZES
from bench.step_rates import TEXTBOOKS, batches_of, differences, textbook
from fvae import evaluate
from fvae.config import TrainConfig
from fvae.training.loop import create_run, settle, train
from fvae.training.stacked import StackedTrainer
from fvae.training.trainer import Trainer, make_trainer

_PROFILED_STEPS = 10
_KERNELS = 40  # of a profile's rows


def profiled(setup: Setup, precision: str, make: Callable[[], Call] | None = None) -> dict:
    """Count a step's kernels, and the time that each keeps the device busy.

    Args:
        setup: device, data and sizes.
        precision: of the step.
        make: builds it; None is our default run's, a graph on a GPU.

    Returns:
        kernels and busy_us, of one step, steps_per_second, busy_share (the device's busy time over
        the step's), and by_kernel: name, count and us in a step, the longest first.
    """
    gpu = setup.device == "cuda"
    with arithmetic(precision):
        own = setup.config(precision=precision)
        step = make() if make else Trainer(own, setup.on_device).step
        seconds_of(step, setup.warm_up, setup.device)
        count = 1 if setup.tiny else 200
        rate = count / seconds_of(step, count, setup.device)
        activity = ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU
        steps = 1 if setup.tiny else _PROFILED_STEPS
        with profile(activities=[activity]) as found:
            for _ in range(steps):
                step()
            synchronize(setup.device)
    rows = [
        {
            "name": event.key[:200],
            "count": event.count / steps,
            "us": (event.self_device_time_total if gpu else event.self_cpu_time_total) / steps,
        }
        for event in found.key_averages()
    ]
    rows = sorted((row for row in rows if row["us"] > 0), key=lambda row: -row["us"])
    busy = sum(row["us"] for row in rows)
    return {
        "steps_per_second": rate,
        "kernels": sum(row["count"] for row in rows),
        "busy_us": busy,
        "busy_share": busy * 1e-6 * rate,
        "by_kernel": rows[:_KERNELS],
    }


def profiles(setup: Setup, record: Record) -> dict[str, dict]:
    """Profile our step in each precision, and two of the textbook's, which are no graphs."""
    found = {}
    for precision in precisions(setup.device):
        with record.attempt(f"profile/{precision}"):
            found[precision] = profiled(setup, precision)
    precision = "fp32" if setup.tiny else "bf16"
    for kind in ("textbook as written", "textbook fused"):
        name = f"{kind} {precision}"
        with record.attempt(f"profile/{name}"):
            draw = batches_of(setup, on_device=kind != "textbook as written")
            make = partial(textbook, setup, draw, precision, **TEXTBOOKS[kind])
            found[name] = profiled(setup, precision, make)
    return found


def profile_table(found: dict[str, dict], kernels: int = 12) -> str:
    """Return lines that say where a step's time goes."""
    lines = []
    for precision, row in found.items():
        lines.append(
            f"{precision}: {row['steps_per_second']:.0f} steps/s, {row['kernels']:.0f} kernels a"
            f" step, busy {row['busy_us']:.0f} us of it ({row['busy_share']:.0%})"
        )
        lines += [
            f"{kernel['us']:>10.1f} us {kernel['count']:>6.1f} x  {kernel['name'][:100]}"
            for kernel in row["by_kernel"][:kernels]
        ]
    return "\n".join(lines)


def _stack(configs: list[TrainConfig], setup: Setup, group: int) -> Callable[[], object]:
    """Return the step of several models, after their first losses were those of each alone."""
    together = StackedTrainer(configs, setup.on_device, group)
    terms = together.step()
    for m in {0, len(configs) - 1}:
        expected = Trainer(configs[m], setup.on_device).step()
        got = {name: t[m] for name, t in terms.items()}
        wrong = differences(got, expected, configs[0].precision)
        if wrong:
            raise ValueError(f"not timed, not the losses of model {m} alone: {wrong}")
    return together.step


def stacked(setup: Setup, record: Record, size: str = "default") -> list[dict]:
    """Steps a second of several models in one step, over one model's alone.

    Args:
        setup: device, data and sizes.
        record: where what fails is noted.
        size: a name in ``bench.stacked.SIZES``; tiny sizes stay what they are.
    """
    known = precisions(setup.device)
    rows = []
    for precision in [p for p in ("bf16", "fp32") if p in known]:
        rows += _stacked(setup, record, size, precision)
    return rows


def _stacked(setup: Setup, record: Record, size: str, precision: str) -> list[dict]:
    """Time numbers of models and ways to group them, in one precision."""
    kinds = {"alone": (1, 1)}
    for models in (2,) if setup.tiny else (8, 32):
        kinds |= {f"{models} in groups of {g}": (models, g) for g in (models, 1)}
    fields = {"precision": precision} | ({} if setup.tiny else SIZES[size])
    steps: dict[str, Callable[[], object]] = {}

    def attempt(name: str):
        return record.attempt(f"stacked/{size} {precision} {name}")

    with arithmetic(precision):
        for name, (models, group) in kinds.items():
            configs = [setup.config(seed=seed, **fields) for seed in range(models)]
            with attempt(name):
                if name == "alone":
                    steps[name] = Trainer(configs[0], setup.on_device).step
                else:
                    steps[name] = _stack(configs, setup, group)
        rates = interleaved(
            steps, setup.device, min(3, setup.rounds), setup.round_seconds, attempt, setup.warm_up
        )
        used = current()
    alone = median(rates.get("alone"))
    return [
        {
            "size": size,
            "precision": precision,
            "arithmetic": used,
            "models": models,
            "models_in_a_convolution": group,
            "steps_per_second": rates[name],
            "models_over_alone": ratio(models * median(rates[name]), alone),
        }
        for name, (models, group) in kinds.items()
        if name in rates
    ]


def stacked_table(rows: list[dict]) -> str:
    """Return lines of rates, and what they are over one model's."""
    return "\n".join(
        f"{row['precision']:<6}{row['models']:>3} models, {row['models_in_a_convolution']:>2} in a"
        f" convolution: {median(row['steps_per_second']):>7.0f} steps/s,"
        f" {row['models_over_alone']} x alone"
        for row in rows
    )


def loop(setup: Setup, record: Record) -> dict[str, float]:
    """Steps a second of the whole loop, with checkpoints and without, and of its bare step.

    The loop logs as it does by default. Beside them, steps a second of the GAN objectives.
    """
    rates: dict[str, float] = {}
    steps = 2 if setup.tiny else 3000

    def run(every: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            config = setup.config(steps=steps, checkpoint_every=every)
            config = create_run(config, Path(folder) / "run")
            started = time.perf_counter()
            train(config, setup.on_device, Path(folder) / "run")
            return steps / (time.perf_counter() - started)

    with record.attempt("loop/bare step"):
        step = Trainer(settle(setup.config()), setup.on_device).step
        seconds_of(step, setup.warm_up, setup.device)
        rates["bare step"] = steps / seconds_of(step, steps, setup.device)
    for name, every in (("no checkpoints", 1 << 40), ("a checkpoint each 1000 steps", 1000)):
        with record.attempt(f"loop/{name}"):
            rates[name] = run(every)
    for objective in ("infogan", "infowgan-gp"):
        with record.attempt(f"loop/{objective}"):
            config = settle(setup.config(objective=objective))
            step = make_trainer(config, setup.on_device).step
            count = 1 if setup.tiny else 30
            seconds_of(step, setup.warm_up // 2, setup.device)
            rates[objective] = count / seconds_of(step, count, setup.device)
    return rates


def loop_table(rates: dict[str, float]) -> str:
    """Return lines of rates."""
    return "\n".join(f"{name:<30}{rate:>9.1f} steps/s" for name, rate in rates.items())


def scored(setup: Setup) -> dict[str, float | str]:
    """Seconds that scoring a run takes once, and those of them until all images are encoded."""
    protocol = "exhaustive" if setup.tiny else "kim2018"
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        config = create_run(setup.config(steps=1), run)
        train(config, setup.on_device, run)
        encoded: list[float] = []

        def on_progress(done: int, total: int) -> None:
            if done == total:
                encoded.append(time.perf_counter())

        started = time.perf_counter()
        result = evaluate.evaluate(
            run, setup.store, protocol, device=setup.device, on_progress=on_progress
        )
        ended = time.perf_counter()
    return {
        "protocol": protocol,
        "images": result["images_encoded"],
        "seconds": ended - started,
        "encoding_seconds": encoded[-1] - started,
    }
