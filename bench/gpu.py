"""``python -m bench.gpu``: on a machine with a GPU, check what is fast, then time it.

Parts, the most important first, and within ten minutes on an H100: what the device can do at most
(a copy, matrix products, the smallest call); steps a second of ours and of the textbook
(``bench/baseline.py``) at batch 64 and 256; each op beside its bound; votes; the step's kernels and
stages; several models in a step; memory; metrics of 50 models; the textbook under
``torch.compile``; scoring a run; the loop around the step.

Writes a JSON file, complete after every part; what fails is listed in it under ``failures``, what
there was no time for under ``skipped``. Nothing is timed that does not match its reference, and
nothing against itself.
"""

from collections.abc import Sequence
from functools import partial

from bench import bounds, gpu_parts, memory, metric_times, op_times, record, stages, step_rates
from bench.arithmetic import precisions
from bench.record import Part, Record
from bench.registry import is_fast
from bench.setup import Setup
from bench.stacked import SIZES
from fvae import ops
from fvae.registry import METRICS

#: How long the program takes at most, unless ``--seconds`` says; all parts fit.
SECONDS = 570.0

_LARGER_BATCH = 256


def parts_of(device: str, kept: Record) -> list[Part]:
    """Return the parts, in their order."""
    setup = Setup(device)

    def seconds(op: str) -> int:  # of one that a CPU alone has there is nothing to time
        return 4 if is_fast(op, "cuda") else 0

    larger = Setup(device, 3 if setup.tiny else _LARGER_BATCH)
    copied, side = (1 << 16, 64) if setup.tiny else (1 << 30, 8192)
    return [
        Part("copy", 2, partial(bounds.copy_bandwidth, device, copied)),
        Part("matmul", 3, partial(bounds.matmul_rates, device, side)),
        Part("smallest", 1, partial(bounds.smallest_call, device)),
        Part("steps", 50, partial(step_rates.eager_and_graph, setup, kept)),
        Part(f"steps/{_LARGER_BATCH}", 25, partial(step_rates.larger_batch, larger, kept)),
        *(
            Part(f"ops/{op}", seconds(op), partial(op_times.rows, op, setup, kept))
            for op in ops.OPS
        ),
        Part("votes", 8, partial(op_times.votes, setup)),
        Part("profile", 18, partial(gpu_parts.profiles, setup, kept)),
        Part("stages", 12, partial(stages.timed, setup, kept)),
        *(
            Part(f"stacked/{size}", 33, partial(gpu_parts.stacked, setup, kept, size))
            for size in SIZES
        ),
        Part("memory", 25, partial(memory.rows, setup, kept)),
        *_metrics(setup),
        *_compiled(setup, kept, ("bf16",), 40),
        *_autotuned(setup, kept),
        Part("eval", 25, partial(gpu_parts.scored, setup)),
        Part("loop", 15, partial(gpu_parts.loop, setup, kept)),
        *_compiled(setup, kept, ("tf32", "fp32"), 30),
    ]


def _metrics(setup: Setup) -> list[Part]:
    """The ops that take all models at once, then metric by metric."""
    quick = [name for name in METRICS if name not in metric_times.SLOW]
    return [
        Part("metrics", 6, partial(metric_times.together, setup)),
        *(Part(f"metrics/{name}", 3, partial(metric_times.one_by_one, name, setup))
          for name in quick),
    ]  # fmt: skip


def _compiled(setup: Setup, kept: Record, names: Sequence[str], seconds: float) -> list[Part]:
    """The textbook compiled in the modes that try nothing out."""
    modes = [mode for mode in step_rates.COMPILE_MODES if mode != step_rates.AUTOTUNED]
    return [
        Part(f"compiled/{p}", seconds, partial(step_rates.compiled, setup, p, kept, modes))
        for p in names
        if p in precisions(setup.device)
    ]


def _autotuned(setup: Setup, kept: Record) -> list[Part]:
    """The textbook under max-autotune, in the precision that a GPU trains in by default."""
    precision = "fp32" if setup.tiny else "bf16"
    run = partial(step_rates.compiled, setup, precision, kept, [step_rates.AUTOTUNED])
    return [Part(f"max-autotune/{precision}", 100, run)]


def show(kept: Record) -> None:
    """Print a table for each part that was run."""
    found, where = kept.results, kept.data
    versions = where["versions"]
    print(f"{where['device']['name']}, torch {versions['torch']}, triton {versions['triton']},"
          f" commit {where['commit']}")  # fmt: skip
    print(bounds.lines(found))
    op_rows = [row for op in ops.OPS for row in found.get(f"ops/{op}", [])]
    if op_rows:
        multiplied = found.get("matmul", {}).get("fp32")
        print(op_times.table(op_rows, found.get("copy"), multiplied))
    tables = {
        "steps": step_rates.table,
        "votes": op_times.votes_table,
        "stacked": gpu_parts.stacked_table,
        "loop": gpu_parts.loop_table,
        "profile": gpu_parts.profile_table,
        "stages": stages.table,
        "memory": memory.table,
        "compiled": step_rates.table,
        "max-autotune": step_rates.table,
    }
    for name, result in found.items():
        table = tables.get(name.split("/")[0])
        if table and result:
            print(f"-- {name}\n{table(result)}")
    metric_rows = [*found.get("metrics", [])]
    metric_rows += [row for name, row in found.items() if name.startswith("metrics/")]
    if metric_rows:
        print(f"-- metrics\n{metric_times.table(metric_rows)}")
    if found.get("eval"):
        line = (
            "-- eval: {protocol}, {images} images, {seconds:.1f} s, encoding {encoding_seconds:.1f}"
        )
        print(line.format(**found["eval"]))


def main(argv: Sequence[str] | None = None) -> None:
    """Check, time, print and write."""
    about = "Check and time ops, steps and scores on a GPU."
    record.program("bench.gpu", about, parts_of, show, record.RESULTS, argv, SECONDS)


if __name__ == "__main__":
    main()
