"""What is committed of a paper study: its finished runs without checkpoints, results and figures.

    python -m bench.paper keep runs/paper-2d-shapes-cpu     # into bench/results/paper-cpu
    python -m bench.paper start runs/paper-2d-shapes-cpu    # back from there

``keep`` may be called while the study goes on, and again: it adds what has finished since, and
draws the study's page as it is by then. After ``start``, in a folder that is new or on another
machine, ``fvae paper --scale cpu`` trains the runs that are missing. ``--at`` names another place.
"""

import argparse
import sys
from pathlib import Path

from fvae.errors import UserError
from fvae.study.kept import carry

KEPT = Path(__file__).parent / "results" / "paper-cpu"


def main() -> None:
    """Copy, and say what was."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.paper", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("what", choices=("keep", "start"))
    parser.add_argument("study", type=Path, help="folder of the study")
    parser.add_argument("--at", type=Path, default=KEPT, help="folder of what is kept")
    asked = parser.parse_args()
    ends = (asked.study, asked.at) if asked.what == "keep" else (asked.at, asked.study)
    try:
        copied = carry(*ends)
    except UserError as error:
        print(f"bench.paper: error: {error}", file=sys.stderr)
        sys.exit(2)
    for name in copied:
        print(name)
    print(f"{len(copied)} runs to {ends[1]}", file=sys.stderr)


if __name__ == "__main__":
    main()
