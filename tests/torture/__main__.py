"""``make torture``: every hostile trial, and one table; ends with 1 where one has a fault."""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process that forks has one thread

import torch
from rich.console import Console
from rich.table import Table

from torture import Tally
from torture.samples import show


def trials(folder: Path, share: float = 1.0) -> list[Tally]:
    """Do a share of all trials, in an empty folder."""
    from fvae import report
    from torture.disks import full_disks
    from torture.files import run_files
    from torture.kills import kills
    from torture.readers import readers
    from torture.words import words

    def times(count: int) -> int:
        return max(2, round(count * share))

    for name in ("kills", "disks", "files", "readers", "words"):
        (folder / name).mkdir()
    real, found = report.write_report, []
    # A report takes a second, and is one write like any other; the command line makes it.
    report.write_report = lambda run, store: (run / "report.html").write_text("</html>")
    try:
        found += kills(folder / "kills", times(300))
    finally:
        report.write_report = real
    found += full_disks(folder / "disks", times(7))
    found += run_files(folder / "files", times(500))
    found += readers(folder / "readers", times(2000))
    return [*found, words(folder / "words", times(300))]


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
    torch.set_num_threads(1)
    if options.samples is not None:
        return min(1, show(options.samples))
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FVAE_CACHE"] = folder + "/cache"
        tallies = trials(Path(folder), options.share)
    Console(markup=False).print(table_of(tallies))
    faults = [f"{t.kind}: {fault}" for t in tallies for fault in t.faults]
    for fault in faults[:40]:
        print(fault)
    count = sum(t.trials for t in tallies)
    print(f"{count:,} trials, {len(faults)} faults, {time.monotonic() - started:.0f} s")
    wrong = show([]) if options.share >= 1 else 0
    return min(1, len(faults) + wrong)


if __name__ == "__main__":
    sys.exit(main())
