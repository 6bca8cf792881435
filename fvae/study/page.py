"""The page of a study: scores against reconstruction, TC over steps, tables; and results.csv."""

import csv
import html
import io
from collections import defaultdict
from pathlib import Path

import numpy as np

from fvae.config import TrainConfig
from fvae.files import encoded, write_atomically
from fvae.registry import METRICS, OBJECTIVES
from fvae.report.page import page, picture, plt, png_of, table
from fvae.report.scores import scores_of
from fvae.report.terminal import ceiling
from fvae.study.grid import setting_of, weight_of
from fvae.study.work import Asked, asked_of, failure, is_finished, steps_done
from fvae.training import log

PAGE_NAME = "study.html"
RESULTS_NAME = "results.csv"

_LOSSES = ("recon", "kl", "tc")
_COLOURS = ("#2a6fbb", "#d9822b", "#3a9a5b", "#9a4fb0", "#b03a48")

Rows = list[dict]


def _columns() -> list[str]:
    """Return the columns of the results, a score for each metric among them."""
    return [
        "run", "setting", "objective", "weight", "seed", "steps", "status", *_LOSSES, *METRICS,
        "protocol", "message",
    ]  # fmt: skip


def write_page(out: Path, runs: dict[str, TrainConfig], kept: dict) -> Path:
    """Write ``study.html`` and ``results.csv``, unless they already show these results.

    Args:
        out: the study's folder.
        runs: the runs of its grid by name.
        kept: the contents of ``study.json``.

    Returns:
        the page's path.

    Raises:
        OSError: the folder cannot be written.
    """
    asked = asked_of(kept["settings"], kept["factors"])
    protocol = asked.protocol if asked else None
    rows = [_row(out / "runs" / name, config, asked) for name, config in runs.items()]
    text = io.StringIO()
    writer = csv.DictWriter(text, _columns(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path, results = out / PAGE_NAME, out / RESULTS_NAME
    content = encoded(text.getvalue())
    # The table is written last: where it is up to date, so is the page.
    if not _is_whole(path) or not results.exists() or results.read_bytes() != content:
        write_atomically(path, _page(out, rows, kept, protocol))
        write_atomically(results, content)
    return path


def _is_whole(page: Path) -> bool:
    return page.exists() and page.read_bytes().rstrip().endswith(b"</html>")


def _row(run: Path, config: TrainConfig, asked: Asked | None) -> dict:
    """Return what ``results.csv`` holds about a run; losses are of the last logged interval."""
    row = dict.fromkeys(_columns(), "") | {
        "run": run.name, "setting": setting_of(config), "objective": config.objective,
        "weight": weight_of(config), "seed": config.seed, "steps": steps_done(run),
    }  # fmt: skip
    message = failure(run)
    if message is not None:
        return row | {"status": "failed", "message": message}
    if not is_finished(run, config, asked):
        return row | {"status": "unfinished"}
    last = (log.read(run) or [{}])[-1]
    row |= {"status": "done"} | {n: last[n] for n in _LOSSES if n in last}
    if asked:
        scores = scores_of(run, asked.protocol) or {}
        row["protocol"] = asked.protocol
        for name in METRICS:
            value = scores.get(name, {}).get("score")
            row[name] = "" if value is None else value
    return row


def _page(out: Path, rows: Rows, kept: dict, protocol: str | None) -> str:
    settings = kept["settings"]
    done = [row for row in rows if row["status"] == "done"]
    groups = _by_setting(done)
    sections = []
    if protocol and any(_mean_std(rows, "factor_vae") for rows in groups.values()):
        sections.append(("Disentanglement against reconstruction", _trade_off(groups, protocol)))
    elif done:
        why = "has no ground-truth factors, so there are no disentanglement scores"
        if protocol:
            why = "has labels of which the FactorVAE metric cannot be taken"
        note = f"<p>This data set {why}; KL and TC stand in their place.</p>"
        sections.append(("KL and TC against reconstruction", note + _without_scores(groups)))
    curves = _tc_curves(out, groups)
    if curves:
        sections.append(("Total correlation over training", curves))
    if done:
        ceilings = _ceilings(out, done, protocol) if protocol else ""
        sections.append(("Settings compared", _setting_table(groups, protocol, ceilings)))
    failed = [row for row in rows if row["status"] == "failed"]
    if failed:
        note = "<p>These runs are left out of every mean above.</p>"
        sections.append(("Failed runs", note + table((r["run"], r["message"]) for r in failed)))
    sections.append(("Runs", _run_table(rows)))
    if kept["execution"]:
        sections.append(("How the runs were executed", _execution(kept["execution"])))
    sections.append(("Settings of the study", table((k, _plain(v)) for k, v in settings.items())))
    subtitle = f"{len(done)} of {len(rows)} runs finished on {settings['data']}"
    return page(out.resolve().name, subtitle, sections)


def _plain(value: object) -> object:
    return ", ".join(map(str, value)) if isinstance(value, list) else value


def _by_setting(rows: Rows) -> dict[str, Rows]:
    groups = defaultdict(list)
    for row in rows:
        groups[row["setting"]].append(row)
    return groups


def _mean_std(rows: Rows, name: str) -> tuple[float, float] | None:
    """Mean and standard deviation (n - 1) over the seeds; None where a run has no such value."""
    values = [row[name] for row in rows]
    if "" in values:
        return None
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _colours(groups: dict[str, Rows]) -> dict[str, str]:
    objectives = dict.fromkeys(rows[0]["objective"] for rows in groups.values())
    return {o: _COLOURS[i % len(_COLOURS)] for i, o in enumerate(objectives)}


# --- figures -------------------------------------------------------------------------------------


def _scatter(axis: plt.Axes, groups: dict[str, Rows], name: str) -> None:
    """One point a setting, reconstruction error on x, ``name`` on y, joined within an objective."""
    for objective, colour in _colours(groups).items():
        points, label = [], objective
        for rows in groups.values():
            x, y = _mean_std(rows, "recon"), _mean_std(rows, name)
            if rows[0]["objective"] != objective or y is None:
                continue
            if x is None:  # a GAN reconstructs nothing
                axis.axhline(y[0], color=colour, linestyle=":", label=label)
                continue
            points.append((float(rows[0]["weight"] or 0), x, y, rows[0]["weight"]))
        points.sort(key=lambda point: point[0])
        if not points:
            continue
        _, xs, ys, weights = zip(*points, strict=True)
        (x, dx), (y, dy) = (np.transpose(values) for values in (xs, ys))
        axis.plot(x, y, color=colour, label=label, marker="o", markersize=5, linewidth=1)
        axis.errorbar(
            x, y, dy, dx, fmt="none", ecolor=colour, elinewidth=0.8, capsize=2, alpha=0.45
        )
        for weight, place in zip(weights, zip(x, y, strict=True), strict=True):
            axis.annotate(
                weight, place, xytext=(5, 5), textcoords="offset points", fontsize=9, color=colour
            )
    axis.set_xlabel("reconstruction error (nats an image)", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.margins(0.08)


def _explained() -> str:
    weights = [f"{o.weight} ({name})" for name, o in OBJECTIVES.items() if o.grid]
    return (
        "<p>Mean and standard deviation over the seeds; numbers beside the points are"
        f" {html.escape(' and '.join(weights))}. Reconstruction error is the mean over the last"
        " logged interval of training.</p>"
    )


def _trade_off(groups: dict[str, Rows], protocol: str) -> str:
    figure, axis = plt.subplots(figsize=(8.5, 5.2))
    _scatter(axis, groups, "factor_vae")
    axis.set_ylabel(f"FactorVAE score ({protocol})", fontsize=9)
    axis.legend(fontsize=8, frameon=False)
    return _explained() + picture(png_of(figure))


def _without_scores(groups: dict[str, Rows]) -> str:
    names = [("kl", "KL (nats an image)"), ("tc", "total correlation (nats)")]
    shown = [(n, t) for n, t in names if any(_mean_std(rows, n) for rows in groups.values())]
    if not shown:
        return ""
    figure, axes = plt.subplots(1, len(shown), figsize=(5.4 * len(shown), 4), squeeze=False)
    for axis, (name, title) in zip(axes[0], shown, strict=True):
        _scatter(axis, groups, name)
        axis.set_ylabel(title, fontsize=9)
    axes[0, 0].legend(fontsize=8, frameon=False)
    figure.tight_layout()
    return _explained() + picture(png_of(figure))


def _tc_curves(out: Path, groups: dict[str, Rows]) -> str:
    """Draw TC by step: a line for each setting that logs it, with the range over the seeds."""
    shown = {s: rows for s, rows in groups.items() if all(row["tc"] != "" for row in rows)}
    if not shown:
        return ""
    figure, axis = plt.subplots(figsize=(7.2, 3.6))
    colours = plt.cm.viridis(np.linspace(0, 0.8, len(shown)))
    for (setting, rows), colour in zip(shown.items(), colours, strict=True):
        lines = [log.read(out / "runs" / row["run"]) for row in rows]
        logs = [{line["step"]: line["tc"] for line in some if "tc" in line} for some in lines]
        # --log-every may have changed between two calls: compare what all seeds have.
        steps = sorted(set.intersection(*map(set, logs)))
        tc = np.array([[by_step[step] for step in steps] for by_step in logs])
        axis.plot(steps, tc.mean(0), color=colour, label=setting, linewidth=1.2)
        axis.fill_between(steps, tc.min(0), tc.max(0), color=colour, alpha=0.2, linewidth=0)
    axis.axhline(0, color="gray", linewidth=0.8)
    axis.set_xlabel("step", fontsize=9)
    axis.set_ylabel("total correlation (nats)", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False, ncols=2)
    note = (
        "<p>The estimate that training logs: mean over the seeds, and their range. Objectives"
        " without one are not shown.</p>"
    )
    return note + picture(png_of(figure))


# --- tables --------------------------------------------------------------------------------------


def _html_table(head: list[str], rows: list[list[str]]) -> str:
    """Return a table whose cells are HTML."""
    lines = ["".join(f"<th>{cell}</th>" for cell in head)]
    lines += ["".join(f"<td>{cell}</td>" for cell in row) for row in rows]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _ceilings(out: Path, rows: Rows, protocol: str) -> str:
    """Say what a perfect code scores, where that is below 1 and the same for all runs."""
    scores = [scores_of(out / "runs" / row["run"], protocol) or {} for row in rows]
    found = {name: {ceiling(one, name) for one in scores} for name in METRICS}
    said = [f"{name} {one.pop()}" for name, one in found.items() if one != {""} and len(one) == 1]
    return f" A perfect code scores {', '.join(said)}." if said else ""


def _setting_table(groups: dict[str, Rows], protocol: str | None, ceilings: str) -> str:
    names = [n for n in (*_LOSSES, *(METRICS if protocol else ()))
             if any(_mean_std(rows, n) for rows in groups.values())]  # fmt: skip
    lines = []
    for setting, rows in groups.items():
        cells = [html.escape(setting).replace("-", "&#8209;"), str(len(rows))]
        for name in names:
            both, digits = _mean_std(rows, name), 3 if name in (*METRICS, "tc") else 2
            spread = f"&nbsp;&plusmn;&nbsp;{both[1]:.{digits}f}" if both and len(rows) > 1 else ""
            cells.append(f"{both[0]:.{digits}f}{spread}" if both else "&ndash;")
        lines.append(cells)
    scores = f"; scores are of the protocol {html.escape(protocol)}" if protocol else ""
    note = (
        "<p>Mean &plusmn; standard deviation over the seeds. recon, kl and tc are nats, means over"
        f" the last logged interval of training{scores}.{ceilings}</p>"
    )
    return note + _html_table(["setting", "runs", *names], lines)


def _run_table(rows: Rows) -> str:
    lines = []
    for row in rows:
        name = html.escape(row["run"])
        if row["status"] == "done":
            name = f'<a href="runs/{name}/report.html">{name}</a>'
        recon = f"{row['recon']:.2f}" if row["recon"] != "" else "&ndash;"
        score = f"{row['factor_vae']:.3f}" if row["factor_vae"] != "" else "&ndash;"
        lines.append([name, row["status"], f"{row['steps']:,}", recon, score])
    note = "<p>Each finished run has a page of its own: curves, votes, traversals.</p>"
    return note + _html_table(["run", "status", "steps", "recon", "factor_vae"], lines)


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
    return text + note + _html_table(["strategy", *map(html.escape, objectives)], lines)
