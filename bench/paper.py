"""What is committed of a paper study: its finished runs without checkpoints, results and figures.

    python -m bench.paper keep runs/paper-2d-shapes-cpu     # into bench/results/paper-cpu
    python -m bench.paper start runs/paper-2d-shapes-cpu    # back from there

``keep`` may be called while the study goes on, and again: it adds what has finished since, and
draws the study's page as it is by then; ``record.json`` has the numbers of the pages' tables. After
``start``, in a folder that is new or on another machine, ``fvae paper --scale cpu`` trains the runs
that are missing. ``--at`` names another place.
"""

import argparse
import csv
import dataclasses
import sys
from pathlib import Path

from bench import figures
from bench.record import RESULTS, head
from fvae.errors import UserError
from fvae.study import study as studies
from fvae.study.figures import by_setting
from fvae.study.intervals import compare
from fvae.study.kept import carry
from fvae.study.page import RESULTS_NAME
from fvae.study.paper_figures import SCORE

KEPT = RESULTS / "paper-cpu"
RECORD = "record.json"


def record_of(study: Path) -> dict:
    """Return a study's scores as a record (:mod:`bench.figures`), of what made the study.

    ``numbers`` has ``steps`` and ``protocol``, how many ``runs`` there are to be, the finished ones
    by ``settings``, and how these compare by FactorVAE score.
    """
    kept = studies.read(study)
    made = kept.get("made", [])
    with (study / RESULTS_NAME).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    scored = [row for row in rows if row["status"] == "done" and row[SCORE]]
    settings = {
        name: {
            "objective": some[0]["objective"], "steps": int(some[0]["steps"]),
            "scores": [float(row[SCORE]) for row in some],
            "recon": [float(row["recon"]) for row in some if row["recon"]],
        }
        for name, some in by_setting(scored).items()
    }  # fmt: skip
    numbers = {
        "steps": kept["settings"]["steps"], "protocol": kept["settings"]["protocol"],
        "runs": len(rows), "settings": settings,
        "compared": [dataclasses.asdict(one) for one in compare(scored, SCORE)],
    }  # fmt: skip
    record = head("cpu") | {"numbers": numbers}
    if made:
        record["commit"] = ", ".join(one["commit"] for one in made)
        record["device"] = {"kind": "cpu", "name": ", ".join({one["device"]: 0 for one in made})}
        record["versions"] = made[-1]
    return record


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
    if asked.what == "keep":
        figures.write(ends[1] / RECORD, record_of(ends[1]))
    for name in copied:
        print(name)
    print(f"{len(copied)} runs to {ends[1]}", file=sys.stderr)


if __name__ == "__main__":
    main()
