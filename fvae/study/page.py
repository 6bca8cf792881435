"""The page of a study: scores against reconstruction and each other, tables; and results.csv."""

import csv
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fvae.config import TrainConfig
from fvae.files import encoded, write_atomically
from fvae.registry import METRICS
from fvae.report.page import page, table
from fvae.report.scores import scores_of
from fvae.study import across, figures, intervals, tables
from fvae.study.figures import Rows, by_setting, mean_std
from fvae.study.grid import setting_of, weight_of
from fvae.study.tables import LOSSES, html_table
from fvae.study.work import Asked, across_of, asked_of, failure, is_finished, steps_done
from fvae.training import log

PAGE_NAME = "study.html"
RESULTS_NAME = "results.csv"


def _columns(scores: Sequence[str]) -> list[str]:
    """Return the columns of the results, a score for each name among them."""
    return [
        "run", "setting", "objective", "weight", "seed", "steps", "status", *LOSSES, *scores,
        "protocol", "message",
    ]  # fmt: skip


class Results(NamedTuple):
    """What a study has so far: a row of values for each run, and the names of its scores."""

    rows: Rows
    scores: list[str]
    asked: Asked | None

    @property
    def done(self) -> Rows:
        """The rows of finished runs."""
        return [row for row in self.rows if row["status"] == "done"]

    def csv(self) -> bytes:
        """Return the contents of ``results.csv``."""
        text = io.StringIO()
        writer = csv.DictWriter(text, _columns(self.scores), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return encoded(text.getvalue())


def results_of(out: Path, runs: dict[str, TrainConfig], kept: dict) -> Results:
    """Read what a study's folder holds.

    Args:
        out: the study's folder.
        runs: the runs of its grid by name.
        kept: the contents of ``study.json``.
    """
    asked = asked_of(kept["settings"], kept["factors"])
    compared = across_of(kept["settings"])
    named = (asked.names if asked else None) or ()
    scores = [n for n, metric in METRICS.items() if metric.usual or n in named] + compared
    beside = across.read(out, runs, compared)
    rows = [
        _row(out / "runs" / name, config, asked, scores, beside.get(name, {}))
        for name, config in runs.items()
    ]
    return Results(rows, scores, asked)


def write_page(out: Path, kept: dict, results: Results) -> Path:
    """Write ``study.html`` and ``results.csv``, unless they already show these results.

    Args:
        out: the study's folder.
        kept: the contents of ``study.json``.
        results: of :func:`results_of`.

    Returns:
        the page's path.

    Raises:
        OSError: the folder cannot be written.
    """
    path, csv_path, content = out / PAGE_NAME, out / RESULTS_NAME, results.csv()
    # The table is written last: where it is up to date, so is the page.
    if not _is_whole(path) or not csv_path.exists() or csv_path.read_bytes() != content:
        write_atomically(path, _page(out, kept, results))
        write_atomically(csv_path, content)
    return path


def _is_whole(page: Path) -> bool:
    return page.exists() and page.read_bytes().rstrip().endswith(b"</html>")


def _row(
    run: Path, config: TrainConfig, asked: Asked | None, names: Sequence[str], beside: dict
) -> dict:
    """Return what ``results.csv`` holds about a run; losses are of the last logged interval."""
    row = dict.fromkeys(_columns(names), "") | {
        "run": run.name, "setting": setting_of(config), "objective": config.objective,
        "weight": weight_of(config), "seed": config.seed, "steps": steps_done(run),
    }  # fmt: skip
    message = failure(run)
    if message is not None:
        return row | {"status": "failed", "message": message}
    if not is_finished(run, config, asked):
        return row | {"status": "unfinished"}
    last = (log.read(run) or [{}])[-1]
    row |= {"status": "done"} | {n: last[n] for n in LOSSES if n in last}
    row |= {name: score for name, score in beside.items() if name in names}
    if asked:
        scores = scores_of(run, asked.protocol) or {}
        row["protocol"] = asked.protocol
        for name in names:
            value = scores.get(name, {}).get("score")
            if value is not None:
                row[name] = value
    return row


def _page(out: Path, kept: dict, results: Results) -> str:
    rows, scores, asked = results
    settings, protocol = kept["settings"], asked.protocol if asked else None
    done = results.done
    groups = by_setting(done)
    scores = [n for n in scores if any(row[n] != "" for row in done)]
    drawn = [n for n in scores if any(mean_std(rows, n) for rows in groups.values())]
    sections = []
    if "factor_vae" in drawn:
        figure = figures.trade_off(groups, "factor_vae", f"FactorVAE score ({protocol})")
        sections.append(("Disentanglement against reconstruction", figure))
    elif done:
        note = f"<p>{_why_none(kept, asked)}; KL and TC stand in its place.</p>"
        title = "KL and TC against reconstruction"
        sections.append((title, note + figures.without_scores(groups)))
    if [n for n in drawn if n != "factor_vae"]:
        title = "Every score against reconstruction"
        sections.append((title, figures.small_multiples(groups, drawn)))
    if curves := figures.tc_curves(out, groups):
        sections.append(("Total correlation over training", curves))
    if done:
        said = tables.ceilings(out, done, protocol) if protocol else ""
        # The table leaves out scores that no setting has; its note speaks of them.
        named = [*scores, *(n for n in across_of(settings) if n not in scores)]
        compared = tables.setting_table(groups, named, protocol, said)
        sections.append(("Settings compared", compared))
    if differ := intervals.section(rows, scores):
        sections.append(("Do they differ?", differ))
    if best := tables.best_table(groups, scores):
        sections.append(("Best without labels", best))
    if matrix := tables.correlation_table(done, scores):
        sections.append(("Scores against each other", matrix))
    failed = [row for row in rows if row["status"] == "failed"]
    if failed:
        note = "<p>These runs are left out of every mean above.</p>"
        sections.append(("Failed runs", note + table((r["run"], r["message"]) for r in failed)))
    sections.append(("Runs", tables.run_table(out, rows, scores)))
    if kept["execution"]:
        sections.append(("How the runs were executed", _execution(kept["execution"])))
    listed = table((k, plain(v)) for k, v in settings.items())
    sections.append(("Settings of the study", listed + tables.SORTING))
    subtitle = f"{len(done)} of {len(rows)} runs finished on {settings['data']}"
    return page(out.resolve().name, subtitle, sections)


def _why_none(kept: dict, asked: Asked | None) -> str:
    """Say why there is no FactorVAE score."""
    if not kept["factors"]:
        return "This data set has no ground-truth factors, so there is no disentanglement score"
    if asked is None or (asked.names is not None and "factor_vae" not in asked.names):
        return "The FactorVAE score was not asked for"
    return "This data set has labels of which the FactorVAE metric cannot be taken"


def plain(value: object) -> object:
    """Return a setting as a table shows it."""
    return ", ".join(map(str, value)) if isinstance(value, list) else value


def _execution(execution: dict) -> str:
    text = (
        f"<p>{execution['strategy']}, {execution['processes']} process(es) of"
        f" {execution['threads']} thread(s): {html.escape(execution['reason'])}</p>"
    )
    measured = execution["step_seconds"]
    if not measured:
        return text
    objectives = list(dict.fromkeys(o for times in measured.values() for o in times))
    lines = [
        [name, *(f"{1000 * times[o]:.2f}" if o in times else "&ndash;" for o in objectives)]
        for name, times in measured.items()
    ]
    note = "<p>Milliseconds for one step of one run, measured before the training:</p>"
    return text + note + html_table(["strategy", *map(html.escape, objectives)], lines)
