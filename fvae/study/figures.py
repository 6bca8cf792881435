"""The figures of a study's page: scores against reconstruction, TC over steps."""

import html
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fvae.registry import OBJECTIVES
from fvae.report.page import FAR, picture, plt, png_of
from fvae.training import log

#: Colours that colour-blind people tell apart, each with a marker of its own.
#: Source: Okabe & Ito 2008, without the yellow, and three of Tol's muted scheme.
_COLOURS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#882255",
    "#999933", "#332288",
)  # fmt: skip
_MARKERS = "os^DvPX*<>"

Rows = list[dict]


def by_setting(rows: Rows) -> dict[str, Rows]:
    """Return the rows of each setting, in their order."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["setting"]].append(row)
    return groups


def mean_std(rows: Rows, name: str) -> tuple[float, float] | None:
    """Mean and standard deviation (n - 1) over the seeds; None where a run has no such value."""
    values = [row[name] for row in rows]
    if "" in values:
        return None
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def level(axis: plt.Axes, score: tuple[float, float], colour: str, label: str) -> None:
    """Draw a score that belongs to no x: a line across, and a band of one standard deviation."""
    mean, std = score
    axis.axhline(mean, color=colour, linestyle=":", label=label)
    axis.axhspan(mean - std, mean + std, color=colour, alpha=0.08, linewidth=0)


def styles(groups: dict[str, Rows]) -> dict[str, tuple[str, str]]:
    """Return each objective's colour and marker."""
    objectives = dict.fromkeys(rows[0]["objective"] for rows in groups.values())
    n = len(_COLOURS)
    return {o: (_COLOURS[i % n], _MARKERS[i % n]) for i, o in enumerate(objectives)}


def _scatter(axis: plt.Axes, groups: dict[str, Rows], name: str, weights_shown: bool) -> None:
    """One point a setting, reconstruction error on x, ``name`` on y, joined within an objective."""
    for objective, (colour, marker) in styles(groups).items():
        points, label = [], objective
        for rows in groups.values():
            x, y = mean_std(rows, "recon"), mean_std(rows, name)
            if rows[0]["objective"] != objective or y is None:
                continue
            if x is None:  # a GAN reconstructs nothing
                level(axis, y, colour, label)
                continue
            points.append((float(rows[0]["weight"] or 0), x, y, rows[0]["weight"]))
        points.sort(key=lambda point: point[0])
        if not points:
            continue
        _, xs, ys, weights = zip(*points, strict=True)
        (x, dx), (y, dy) = (np.transpose(values) for values in (xs, ys))
        axis.plot(x, y, color=colour, label=label, marker=marker, markersize=5, linewidth=1)
        axis.errorbar(
            x, y, dy, dx, fmt="none", ecolor=colour, elinewidth=0.8, capsize=2, alpha=0.45
        )
        for weight, place in zip(weights, zip(x, y, strict=True), strict=True):
            if weights_shown:
                axis.annotate(
                    weight, place, xytext=(5, 5), textcoords="offset points", fontsize=9,
                    color=colour,
                )  # fmt: skip
    axis.set_xlabel("reconstruction error (nats an image)", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.margins(0.08)


def explained(groups: dict[str, Rows]) -> str:
    """Say what the points, bars and numbers of a figure of settings are."""
    weights = [
        f"{OBJECTIVES[name].weight} ({name})"
        for name in dict.fromkeys(rows[0]["objective"] for rows in groups.values())
        if OBJECTIVES[name].grid
    ]
    beside = f"; numbers beside the points are {html.escape(' and '.join(weights))}"
    return (
        f"<p>Mean and standard deviation over the seeds{beside if weights else ''}."
        " Reconstruction error is the mean over the last logged interval of training.</p>"
    )


def trade_off(groups: dict[str, Rows], name: str, title: str) -> str:
    """Draw a score against reconstruction error, as the paper does."""
    return explained(groups) + picture(png_of(trade_off_figure(groups, name, title)))


def trade_off_figure(groups: dict[str, Rows], name: str, title: str) -> plt.Figure:
    """Return the figure of :func:`trade_off`."""
    figure, axis = plt.subplots(figsize=(8.5, 5.2))
    _scatter(axis, groups, name, True)
    axis.set_ylabel(title, fontsize=9)
    axis.legend(fontsize=8, frameon=False)
    return figure


def small_multiples(groups: dict[str, Rows], names: Sequence[str]) -> str:
    """Draw each of several scores against reconstruction error, small."""
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    size = (3.6 * columns, 2.8 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, sharex=True)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    for i, name in enumerate(names):
        axis = axes.flat[i]
        _scatter(axis, groups, name, False)
        axis.set_title(name, fontsize=9)
        last = i + columns >= len(names)
        axis.tick_params(labelbottom=last)
        if not last:
            axis.set_xlabel("")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, frameon=False, ncols=5, loc="lower center",
                  bbox_to_anchor=(0.5, 1.0))  # fmt: skip
    figure.tight_layout()
    return picture(png_of(figure))


def without_scores(groups: dict[str, Rows]) -> str:
    """Draw KL and TC against reconstruction error, where there is no score."""
    names = [("kl", "KL (nats an image)"), ("tc", "total correlation (nats)")]
    shown = [(n, t) for n, t in names if any(mean_std(rows, n) for rows in groups.values())]
    if not shown:
        return ""
    figure, axes = plt.subplots(1, len(shown), figsize=(5.4 * len(shown), 4), squeeze=False)
    for axis, (name, title) in zip(axes[0], shown, strict=True):
        _scatter(axis, groups, name, True)
        axis.set_ylabel(title, fontsize=9)
    axes[0, 0].legend(fontsize=8, frameon=False)
    figure.tight_layout()
    return explained(groups) + picture(png_of(figure))


def tc_curves(out: Path, groups: dict[str, Rows]) -> str:
    """Draw TC by step: a line for each setting that logs it, with the range over the seeds."""
    figure = tc_figure(out, groups)
    if figure is None:
        return ""
    note = (
        "<p>The estimate that training logs: mean over the seeds, and their range. Objectives"
        " without one are not shown."
    )
    if any(row["objective"] == "beta-tcvae" for rows in groups.values() for row in rows):
        note += (
            " That of beta-tcvae is a batch's: with weighted sampling it is (d - 1) log N above the"
            " batch's own mixture, of d dimensions and N images."
        )
    return f"{note}</p>" + picture(png_of(figure))


def tc_figure(out: Path, groups: dict[str, Rows]) -> plt.Figure | None:
    """Return the figure of :func:`tc_curves`, None where no setting logs a TC."""
    shown = {s: rows for s, rows in groups.items() if all(row["tc"] != "" for row in rows)}
    if not shown:
        return None
    objectives = dict.fromkeys(rows[0]["objective"] for rows in shown.values())
    # One panel each: a discriminator and a batch estimate on scales of their own.
    size = (7.2, 3.6 * len(objectives))
    figure, axes = plt.subplots(len(objectives), 1, figsize=size, squeeze=False)
    for objective, axis in zip(objectives, axes[:, 0], strict=True):
        _draw_tc(axis, out, {s: r for s, r in shown.items() if r[0]["objective"] == objective})
        if len(objectives) > 1:
            axis.set_title(objective, fontsize=9)
    figure.tight_layout()
    return figure


def _draw_tc(axis: plt.Axes, out: Path, groups: dict[str, Rows]) -> None:
    colours = plt.cm.viridis(np.linspace(0, 0.8, len(groups)))
    for (setting, rows), colour in zip(groups.items(), colours, strict=True):
        lines = [log.read(out / "runs" / row["run"]) for row in rows]
        logs = [{line["step"]: line["tc"] for line in some if "tc" in line} for some in lines]
        # --log-every may have changed between two calls: compare what all seeds have.
        steps = sorted(set.intersection(*map(set, logs)))
        tc = np.array([[by_step[step] for step in steps] for by_step in logs])
        marker = "o" if len(steps) == 1 else None  # a line of one point shows nothing
        axis.plot(steps, tc.mean(0), color=colour, label=setting, linewidth=1.2, marker=marker)
        axis.fill_between(steps, tc.min(0), tc.max(0), color=colour, alpha=0.2, linewidth=0)
    if axis.get_ylim()[0] < FAR:
        axis.axhline(0, color="gray", linewidth=0.8)
    axis.set_xlabel("step", fontsize=9)
    axis.set_ylabel("total correlation (nats)", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False, ncols=2)
