"""``python -m bench.table``: write every table of figures into the pages, from ``bench/results``.

A page has a table between two lines, ``<!-- table: NAME -->`` and ``<!-- end -->``; what stands
between is made of the records (:mod:`bench.figures`) that :data:`TABLES` names, and never typed.

    python -m bench.table               writes the tables
    python -m bench.table --check       writes nothing; exits with 1 and says what differs
    python -m bench.table --measure     first runs every program of RECORDS, one after another
    python -m bench.table --measure step votes      or some of them

What needs another environment is measured by hand: ``bench/peers/README.md``.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import figures
from bench.figures import middle

ROOT = Path(__file__).parent.parent
#: A record under ``bench/results`` -> the program that writes it.
RECORDS = {
    name: f"bench.{name}"
    for name in ("launches", "step", "votes", "adam", "evaluate", "stacked", "trees")
} | {"roofline-cpu": "bench.roofline"}
#: Records that :data:`RECORDS` has not, with what mends them.
BY_HAND = {"peers": "bench/peers/README.md"}

_BEGIN, _END = re.compile(r"<!-- table: ([\w-]+) -->"), "<!-- end -->"
STEPS = 300_000  # of the paper's run


@dataclass(frozen=True)
class Table:
    """One table of a page.

    Attributes:
        page: where it stands.
        records: names of the files under ``bench/results``.
        render: makes the lines of the records, in that order.
    """

    page: str
    records: tuple[str, ...]
    render: Callable[..., list[str]]


def rows(head: Sequence[str], *body: Sequence[object]) -> list[str]:
    """Return the lines of a Markdown table."""
    return [_row(head), "|" + "---|" * len(head), *map(_row, body)]


def _row(cells: Sequence[object]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def spread(value: dict | None, digits: int = 2) -> str:
    """Return a median with its 20th and 80th percentile, "-" where nothing was measured."""
    if value is None:
        return "-"
    p20, p50, p80 = (f"{value[p]:.{digits}f}" for p in ("p20", "p50", "p80"))
    return f"{p50} ({p20} to {p80})"


def source(*records: dict) -> str:
    """Return the line that says where and when records were made."""
    said = []
    for record in records:
        line = f"{_machine(record)}, torch {record['versions']['torch']}"
        line += f", commit {record['commit']}, {record['date']}"
        if line not in said:
            said.append(line)
    return "; ".join(said) + "."


def _step(record: dict) -> list[str]:
    found = record["numbers"]
    return rows(
        ("", "textbook's time over ours", "textbook, ms", "ours, ms"),
        *(
            (
                f"`--precision {p}`", spread(found[f"ratio_{p}"]),
                spread(found["ms"]["textbook"], 1), spread(found["ms"].get(p), 1),
            )
            for p in ("bf16", "fp32")
        ),
    )  # fmt: skip


def _launches(record: dict) -> list[str]:
    found, each = record["numbers"], ("bf16", "fp32")

    def updates(name: str) -> str:
        moved = found["by_operation"][name]
        return f"{sum(moved[op]['MB'] for op in moved if op.endswith('_adam')):.1f}"

    body = []
    for name in ("factor-vae", "vae"):
        cells = [found[f"{name} {p}"] for p in each] + [found[f"{name} {p} MB"] for p in each]
        body.append((f"`{name}`", *cells, *(updates(f"{name} {p}") for p in each)))
    units = ("", ", MB", ", MB of updates")
    return rows(("objective", *(p + unit for unit in units for p in each)), *body)


def _votes(record: dict) -> list[str]:
    found = record["numbers"]
    return rows(
        ("", "time over that of `metric_votes`"),
        ("NumPy loop, one vote after another", spread(found["ratio_numpy"], 1)),
        ("vectorised PyTorch", spread(found["ratio_torch"], 1)),
        (f"{found['models']} models one by one, over all together",
         spread(found["ratio_models_one_by_one"])),
        ("the op itself on a full grid, over the same grid as labels (`ratio_labels`)",
         spread(found["ratio_labels"])),
        ("likewise, rows shuffled (`ratio_labels_shuffled`)",
         spread(found["ratio_labels_shuffled"])),
    )  # fmt: skip


def _adam(record: dict) -> list[str]:
    found = record["numbers"]
    kinds = {
        "bfloat16": "gradients to fp32, PyTorch's fused Adam, weights to bf16",
        "float32": "PyTorch's fused Adam alone, all in fp32",
    }
    return rows(
        ("", "time over that of `fused_adam`", "`fused_adam`, ms"),
        *(
            (words, spread(found[kind]["ratio"]), spread(found[kind]["ms"]["fused_adam"], 1))
            for kind, words in kinds.items()
        ),
    )


def _evaluate(record: dict) -> list[str]:
    found, seconds = record["numbers"], record["numbers"]["seconds"]
    timed = f"encoding afresh in fp32, timed on one in {found['loop_timed_on_one_in']} batches"
    return rows(
        ("", "time over ours", "seconds"),
        (timed, found["ratio"], seconds["loop"]),
        ("`fvae eval --precision fp32`", found["fp32_over_ours"], seconds["ours_fp32"]),
        ("`fvae eval`", 1, seconds["ours"]),
    )


_SIZES = {"default": "default size", "small": "64-unit discriminator, 16 channels"}
_WAYS = ("stacked_8", "process_a_core", "stacked_4_a_core")


def _stacked(record: dict) -> list[str]:
    body = []
    for size, words in _SIZES.items():
        for precision in ("bf16", "fp32"):
            found = record["numbers"].get(f"{size}_{precision}")
            if found:
                over = (f"{found[way] / found['one_after_another']:.2f}" for way in _WAYS)
                body.append((f"{words}, {precision}", found["one_after_another"], *over))
    head = ("", "steps a second one after another", "8 stacked", "one process a core",
            "4 stacked on each core")  # fmt: skip
    return rows(head, *body)


def _trees(record: dict) -> list[str]:
    keys = ("apart", "sklearn_seeds_apart")
    return rows(
        ("codes", "scikit-learn's time over ours", "scores apart", "scikit-learn's own, two seeds"),
        *(
            (name, f"{row['ratio']:.0f}", *(f"{row[key]:.5f}" for key in keys))
            for name, row in record["numbers"]["codes"].items()
        ),
    )


def _rate(per_second: float) -> str:
    return f"{per_second / 1e9:.3g}"


def _bounds(record: dict) -> list[str]:
    found = record["numbers"]
    copied = found["copy"]
    body = [(f"copy of {int(size) / 2e6:.3g} MB", f"{_rate(copied[size])} GB/s") for size in copied]
    body += [(f"products in {p}", f"{_rate(r)} GFLOP/s") for p, r in found["matmul"].items()]
    return rows(("what the machine can do", ""), *body)


def _stages(record: dict) -> list[str]:
    found = record["numbers"]["stages"]
    names = list(next(iter(found.values())))
    body = []
    for name in names:
        each = [found[p][name] for p in found]
        times = (f"{middle(row['us']) / 1e3:.1f}" for row in each)
        body.append((name, *times, *(_share(row) for row in each), each[0]["bound_by"]))
    head = ("stage", *(f"{p}, ms" for p in found), *(f"{p}, of bound" for p in found), "bound by")
    return rows(head, *body)


def _share(row: dict) -> str:
    return f"{row['share']:.0%}" if row["share"] >= 0.005 else "< 1%"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _ops(record: dict) -> list[str]:
    body = [
        (
            f"`{row['op']}`", row["shape"], row["backend"], _number(middle(row["us"])),
            _number(row["bound_us"]), row["bound_by"], _share(row),
        )
        for row in record["numbers"]["ops"]
    ]  # fmt: skip
    return rows(("op", "shape", "backend", "us", "bound, us", "bound by", "of bound"), *body)


def _peers(record: dict) -> list[str]:
    body = [
        (row["what"], row["peer"], _number(row["theirs"]), _number(row["ours"]), row["unit"],
         spread(row["ratio"]) if isinstance(row["ratio"], dict) else row["ratio"])
        for row in record["numbers"]["rows"]
    ]  # fmt: skip
    return rows(("", "peer", "theirs", "ours", "unit", "theirs over ours"), *body)


def _time(record: dict) -> list[str]:
    found = record["numbers"]
    rates = {
        p: found[f"default_{p}"]["one_after_another"]
        for p in ("bf16", "fp32")
        if f"default_{p}" in found
    }
    each = (f"{rate} steps a second in {p}" for p, rate in rates.items())
    hours = (f"{STEPS / rate / 3600:.1f}" for rate in rates.values())
    return [
        f"**How long does a run take?** The default step runs at {' and '.join(each)}"
        f" ({_machine(record)}):",
        f"{' and '.join(hours)} hours for the paper's {STEPS:,} steps."
        " Fewer `--steps` and a smaller `--disc-units` cost less.",
    ]


def _machine(record: dict) -> str:
    device = record["device"]
    threads = device.get("threads")
    return device["name"] + (f", {threads} thread{'s' * (threads > 1)}" if threads else "")


def _figures(step: dict, votes: dict, evaluate: dict, stacked: dict) -> list[str]:
    ratios, counted = step["numbers"], votes["numbers"]
    machines = dict.fromkeys(map(_machine, (step, votes, evaluate, stacked)))
    sizes = (_over_alone(stacked, f"{size}_bf16") for size in ("default", "small"))
    return rows(
        ("beside", f"its time over ours ({'; '.join(machines)})", "command"),
        ("the textbook step in bf16; in fp32",
         "; ".join(spread(ratios[f"ratio_{p}"]) for p in ("bf16", "fp32")),
         "`python -m bench.step`"),
        ("votes of the FactorVAE metric in NumPy, one by one; in vectorised PyTorch",
         "; ".join(spread(counted[f"ratio_{side}"], 0) for side in ("numpy", "torch")),
         "`python -m bench.votes`"),
        ("scoring that encodes each sample afresh", evaluate["numbers"]["ratio"],
         "`python -m bench.evaluate`"),
        ("8 models one after another, bf16; 8 small ones", "; ".join(sizes),
         "`python -m bench.stacked`"),
    )  # fmt: skip


def _over_alone(stacked: dict, name: str) -> str:
    """Return the rate of 8 stacked models over that of one after another, or "-"."""
    found = stacked["numbers"].get(name)
    return f"{found['stacked_8'] / found['one_after_another']:.2f}" if found else "-"


_BENCH = "bench/README.md"
TABLES = {
    "time": Table("README.md", ("stacked",), _time),
    "figures": Table("README.md", ("step", "votes", "evaluate", "stacked"), _figures),
    "step": Table(_BENCH, ("step",), _step),
    "launches": Table(_BENCH, ("launches",), _launches),
    "votes": Table(_BENCH, ("votes",), _votes),
    "adam": Table(_BENCH, ("adam",), _adam),
    "evaluate": Table(_BENCH, ("evaluate",), _evaluate),
    "stacked": Table(_BENCH, ("stacked",), _stacked),
    "trees": Table(_BENCH, ("trees",), _trees),
    "bounds": Table(_BENCH, ("roofline-cpu",), _bounds),
    "stages": Table(_BENCH, ("roofline-cpu",), _stages),
    "ops": Table(_BENCH, ("roofline-cpu",), _ops),
    "peers": Table(_BENCH, ("peers",), _peers),
}
#: Tables whose lines say themselves where they were measured.
_SAYS_SO = ("time", "figures")


class Wrong(ValueError):
    """A page or a record is not as it must be; the message is one line, with what mends it."""


def mends(record: str) -> str:
    """Return what makes a record anew."""
    if record in BY_HAND:
        return f"see {BY_HAND[record]}"
    return f"run: python -m bench.table --measure {record}"


def lines_of(name: str, root: Path = ROOT) -> list[str]:
    """Return a table's lines, made of its records.

    Raises:
        Wrong: a record is missing, torn or lacks what the table shows.
    """
    table, records = TABLES[name], []
    for record in table.records:
        try:
            records.append(figures.read(root / "bench/results" / f"{record}.json"))
        except figures.NoRecord as error:
            line = str(error).replace(f"{root}/", "")
            raise Wrong(f"table {name}: {line}; {mends(record)}") from None
    try:
        lines = table.render(*records)
        return lines if name in _SAYS_SO else [*lines, "", source(*records)]
    except (KeyError, TypeError, ValueError, ZeroDivisionError, StopIteration) as error:
        files = ", ".join(f"bench/results/{record}.json" for record in table.records)
        why = f"{type(error).__name__}: {error}"
        raise Wrong(f"table {name}: {files} has not what it shows ({why}); "
                    f"{mends(table.records[0])}") from None  # fmt: skip


def written(page: str, text: str, root: Path = ROOT) -> tuple[str, list[str]]:
    """Return a page with its tables made anew, and what is wrong with the page as it is.

    Args:
        page: its path under ``root``.
        text: what it says now.
        root: the repository.
    """
    wrong, out, met = [], [], []
    lines = iter(text.split("\n"))
    for line in lines:
        out.append(line)
        begins = _BEGIN.fullmatch(line)
        if not begins:
            continue
        name, old = begins[1], []
        for inside in lines:
            if inside == _END or _BEGIN.fullmatch(inside):
                break
            old.append(inside)
        else:
            inside = ""
        where = f"{page}: table {name}"
        new, stop = old, [inside] if inside else []
        if inside != _END:
            wrong.append(f"{where} has no {_END} behind it; write one")
            out += [*old, *stop]
            break
        if TABLES.get(name, Table("", (), list)).page != page:
            known = ", ".join(n for n, table in TABLES.items() if table.page == page)
            wrong.append(f"{where}: no such table of this page; there are {known}")
        elif name in met:
            wrong.append(f"{where} is there twice; take one away")
        else:
            try:
                new = lines_of(name, root)
            except Wrong as error:
                wrong.append(f"{page}: {error}")
        if new != old:
            files = " ".join(f"bench/results/{r}.json" for r in TABLES[name].records)
            i = next((i for i, (a, b) in enumerate(zip(new, old, strict=False)) if a != b),
                     min(len(new), len(old)))  # fmt: skip
            said = old[i] if i < len(old) else "nothing"
            wrong.append(
                f"{where} is not what {files} says, at: {said}; run: python -m bench.table"
            )
        met.append(name)
        out += [*new, *stop]
    out += lines
    if not any("has no" in line for line in wrong):
        missing = [n for n, table in TABLES.items() if table.page == page and n not in met]
        wrong += [f"{page}: no line <!-- table: {n} -->; write it and {_END}" for n in missing]
    return "\n".join(out), wrong


def measure(names: Sequence[str], root: Path = ROOT) -> list[str]:
    """Run programs one after another; return a line for each that failed."""
    failed = []
    for name in names:
        out = f"bench/results/{name}.json"
        command = ["-m", RECORDS[name], "--out", out]
        print(f"-- python {' '.join(command)}", file=sys.stderr, flush=True)
        status = subprocess.run([sys.executable, *command], cwd=root).returncode
        if status:
            failed.append(f"{out}: python -m {RECORDS[name]} ended with {status}")
    return failed


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> None:
    """Measure, check or write; exit with 1 if anything is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.table", description="Write every table of figures into the pages."
    )
    parser.add_argument("--check", action="store_true", help="write nothing, say what differs")
    parser.add_argument(
        "--measure", nargs="*", metavar="RECORD", choices=[*RECORDS, []],
        help=f"first run the programs that make some of: {', '.join(RECORDS)}; all if none",
    )  # fmt: skip
    args = parser.parse_args(argv)
    wrong = []
    if args.measure is not None:
        wrong += measure(args.measure or list(RECORDS), root)
    for page in dict.fromkeys(table.page for table in TABLES.values()):
        try:
            text = (root / page).read_text()
        except OSError as error:
            wrong.append(f"{page}: {error.strerror}")
            continue
        new, found = written(page, text, root)
        if args.check:
            wrong += found
        else:
            # What writing mends is no longer wrong.
            wrong += written(page, new, root)[1]
            if new != text:
                (root / page).write_text(new)
    for line in wrong:
        print(f"bench.table: {line}", file=sys.stderr)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
