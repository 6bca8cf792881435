"""``python -m bench.compare A.json B.json``: what two records have in common, as ratios B over A.

Two commits or two machines: any files of one format (:mod:`bench.figures`). Prints a line for each
number that both have, then the names that one alone has. Whether more is better is the number's
own affair: times and rates stand side by side.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import figures


def compared(a: dict, b: dict) -> tuple[list[tuple[str, float, float]], list[str], list[str]]:
    """Numbers that two records share, by name, and the names that only one or the other has."""
    left, right = (figures.flat(record["numbers"]) for record in (a, b))
    shared = [(name, left[name], right[name]) for name in left if name in right]
    return shared, [n for n in left if n not in right], [n for n in right if n not in left]


def main(argv: Sequence[str] | None = None) -> None:
    """Print the ratios; exit with 2 where a file is none of ours."""
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description="B over A.")
    parser.add_argument("files", nargs=2, type=Path, metavar="JSON", help="two records")
    paths = parser.parse_args(argv).files
    try:
        a, b = map(figures.read, paths)
    except figures.NoRecord as error:
        print(f"bench.compare: {error}", file=sys.stderr)
        sys.exit(2)
    for letter, record in (("A", a), ("B", b)):
        versions = ", ".join(f"{k} {v}" for k, v in record["versions"].items() if v)
        print(f"{letter}: {record['command']}; commit {record['commit']}, {record['date']},"
              f" {record['device'].get('name')}, {versions}")  # fmt: skip
    shared, *alone = compared(a, b)
    width = max((len(name) for name, _, _ in shared), default=4)
    print(f"{'':<{width}}{'A':>14}{'B':>14}{'B / A':>9}")
    for name, left, right in shared:
        over = f"{right / left:.3f}" if left else "-"
        print(f"{name:<{width}}{left:>14.6g}{right:>14.6g}{over:>9}")
    for letter, names in zip("AB", alone, strict=True):
        if names:
            print(f"only in {letter}: {', '.join(names)}")


if __name__ == "__main__":
    main()
