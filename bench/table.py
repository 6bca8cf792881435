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

from bench import figures, rows

ROOT = Path(__file__).parent.parent
#: A record under ``bench/results`` -> the program that writes it.
RECORDS = {
    name: f"bench.{name}"
    for name in ("launches", "step", "votes", "adam", "evaluate", "stacked", "trees")
} | {"roofline-cpu": "bench.roofline"}
#: Records that :data:`RECORDS` has not, with what mends them.
BY_HAND = {
    "peers": "bench/peers/README.md",
    "step-amx": "bench/README.md, on a processor with AMX",
    "time-to-score/fast": "python -m bench.time_to_score --help",
    "paper-cpu/record": "python -m bench.paper --help",
}

_BEGIN, _END = re.compile(r"<!-- table: ([\w-]+) -->"), "<!-- end -->"


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


_BENCH = "bench/README.md"
TABLES = {
    "time": Table("README.md", ("stacked",), rows.time),
    "figures": Table(
        "README.md", ("step-amx", "step", "votes", "evaluate", "stacked"), rows.figures
    ),
    "step": Table(_BENCH, ("step",), rows.step),
    "step-amx": Table(_BENCH, ("step-amx",), rows.step),
    "launches": Table(_BENCH, ("launches",), rows.launches),
    "votes": Table(_BENCH, ("votes",), rows.votes),
    "adam": Table(_BENCH, ("adam",), rows.adam),
    "evaluate": Table(_BENCH, ("evaluate",), rows.evaluate),
    "stacked": Table(_BENCH, ("stacked",), rows.stacked),
    "trees": Table(_BENCH, ("trees",), rows.trees),
    "bounds": Table(_BENCH, ("roofline-cpu",), rows.bounds),
    "stages": Table(_BENCH, ("roofline-cpu",), rows.stages),
    "ops": Table(_BENCH, ("roofline-cpu",), rows.ops),
    "peers": Table(_BENCH, ("peers",), rows.peers),
    "time-to-score": Table(_BENCH, ("time-to-score/fast",), rows.time_to_score),
    "claim": Table("README.md", ("paper-cpu/record",), rows.claim),
    "paper": Table(_BENCH, ("paper-cpu/record",), rows.paper),
}
#: Tables whose lines say themselves where they were measured.
_SAYS_SO = ("time", "figures", "claim")


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
        return lines if name in _SAYS_SO else [*lines, "", rows.source(*records)]
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
