"""``make torture``: every hostile trial, and one table; ends with 1 where one has a fault."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from torture import Tally
from torture.samples import show
from torture.trials import trials


def table_of(tallies: list[Tally]) -> Table:
    """A row for each kind of trial."""
    table = Table("trial", "times", "refused", "faults")
    for tally in tallies:
        table.add_row(tally.kind, *map(str, (tally.trials, tally.refused, len(tally.faults))))
    return table


def main() -> int:
    """Do what the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="of the trials; 1 is all")
    parser.add_argument("--samples", nargs="*", metavar="GROUP", help="the samples, alone")
    options = parser.parse_args()
    if options.samples is not None:
        return min(1, show(options.samples))
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        tallies = trials(Path(folder), options.share)
    Console(markup=False).print(table_of(tallies))
    faults = [f"{t.kind}: {fault}" for t in tallies for fault in t.faults]
    for fault in faults[:40]:
        print(fault)
    count = sum(t.trials for t in tallies)
    print(f"{count:,} trials, {len(faults)} faults, {time.monotonic() - started:.0f} s")
    return min(1, len(faults))


if __name__ == "__main__":
    sys.exit(main())
