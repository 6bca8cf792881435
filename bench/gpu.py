"""``python -m bench.gpu``: on a machine with a GPU, check what is fast, then time it.

Parts, the most important first, and within four minutes on an H100: steps a second of ours and of
the textbook (``bench/baseline.py``), each op, the metric's votes, several models in a step,
scoring a run, the loop around the step, the step's kernels, the textbook under ``torch.compile``.

Writes a JSON file, complete after every part; what fails is listed in it under ``failures``, what
there was no time for under ``skipped``. Nothing is timed that does not match its reference, and
nothing against itself.
"""

from collections.abc import Sequence
from functools import partial

from bench import gpu_parts, op_times, record, step_rates
from bench.arithmetic import precisions
from bench.device_timing import copy_bandwidth
from bench.record import Part, Record
from bench.setup import Setup
from fvae import ops


def parts_of(device: str, kept: Record) -> list[Part]:
    """Return the parts, in their order."""
    setup = Setup(device)
    size = 1 << 16 if setup.tiny else 1 << 30
    compiled = {
        p: Part(f"compiled/{p}", 45, partial(step_rates.compiled, setup, p, kept))
        for p in precisions(device)
    }
    # The precision that a GPU trains in by default; the others last.
    first = compiled.pop("bf16", None)
    return [
        Part("copy", 2, partial(copy_bandwidth, device, size)),
        Part("steps", 50, partial(step_rates.eager_and_graph, setup, kept)),
        *(Part(f"ops/{op}", 6, partial(op_times.rows, op, setup, kept)) for op in ops.OPS),
        Part("votes", 8, partial(op_times.votes, setup)),
        *([first] if first else []),
        Part("stacked", 25, partial(gpu_parts.stacked, setup, kept)),
        Part("eval", 25, partial(gpu_parts.scored, setup)),
        Part("loop", 15, partial(gpu_parts.loop, setup, kept)),
        Part("profile", 15, partial(gpu_parts.profiles, setup, kept)),
        *compiled.values(),
    ]


def show(kept: Record) -> None:
    """Print a table for each part that was run."""
    found, where = kept.results, kept.data["environment"]
    print(f"{where['device']}, torch {where['torch']}, triton {where['triton']},"
          f" commit {where['commit']}")  # fmt: skip
    copied = found.get("copy")
    if copied:
        print(f"copy: {copied / 1e9:.0f} GB/s")
    op_rows = [row for op in ops.OPS for row in found.get(f"ops/{op}", [])]
    tables = {
        "steps": step_rates.table,
        "votes": op_times.votes_table,
        "stacked": gpu_parts.stacked_table,
        "loop": gpu_parts.loop_table,
        "profile": gpu_parts.profile_table,
    } | {name: step_rates.table for name in found if name.startswith("compiled/")}
    if op_rows:
        print(op_times.table(op_rows, copied))
    for name, table in tables.items():
        if found.get(name):
            print(f"-- {name}\n{table(found[name])}")
    if found.get("eval"):
        line = (
            "-- eval: {protocol}, {images} images, {seconds:.1f} s, encoding {encoding_seconds:.1f}"
        )
        print(line.format(**found["eval"]))


def main(argv: Sequence[str] | None = None) -> None:
    """Check, time, print and write."""
    about = "Check and time ops, steps and scores on a GPU."
    record.program("bench.gpu", about, parts_of, show, record.RESULTS, argv)


if __name__ == "__main__":
    main()
