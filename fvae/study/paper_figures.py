"""The figures of the paper's page that no other study's page has, and their files."""

from pathlib import Path

import numpy as np

from fvae.registry import OBJECTIVES
from fvae.report.page import plt, png_of
from fvae.report.run import votes_figure
from fvae.report.scores import scores_of
from fvae.study import figures
from fvae.study.figures import Rows, by_setting, mean_std

SCORE = "factor_vae"


def best_runs(rows: Rows) -> dict[str, dict]:
    """Return the row of each objective's finished run of greatest FactorVAE score, by objective."""
    best: dict[str, dict] = {}
    for row in rows:
        held = best.get(row["objective"])
        if row[SCORE] != "" and (held is None or row[SCORE] > held[SCORE]):
            best[row["objective"]] = row
    return best


def draw(out: Path, done: Rows, protocol: str) -> dict[str, bytes]:
    """Return the figures of finished runs as PNG files, by name; without a score there are none.

    Args:
        out: the study's folder.
        done: rows of its finished runs.
        protocol: of the scores.
    """
    groups, title = by_setting(done), f"FactorVAE score ({protocol})"
    drawn: dict[str, bytes] = {}
    if any(mean_std(rows, SCORE) for rows in groups.values()):
        drawn["trade-off"] = png_of(figures.trade_off_figure(groups, SCORE, title))
        drawn["weights"] = png_of(_weights(groups, title))
    if (curves := figures.tc_figure(out, groups)) is not None:
        drawn["tc"] = png_of(curves)
    for objective, row in best_runs(done).items():
        scores = scores_of(out / "runs" / row["run"], protocol)
        if scores and scores[SCORE].get("votes"):
            drawn[f"votes-{objective}"] = png_of(votes_figure(scores))
    return drawn


def _weights(groups: dict[str, Rows], title: str) -> plt.Figure:
    """Draw the score against the weight: a panel an objective, objectives without one across."""
    of = {rows[0]["objective"]: OBJECTIVES[rows[0]["objective"]].grid for rows in groups.values()}
    varied = [name for name, grid in of.items() if grid] or [""]
    size = (4.6 * len(varied), 3.8)
    figure, axes = plt.subplots(1, len(varied), figsize=size, squeeze=False, sharey=True)
    for name, axis in zip(varied, axes[0], strict=True):
        points = []
        for objective, (colour, marker) in figures.styles(groups).items():
            for rows in groups.values():
                score = mean_std(rows, SCORE)
                if rows[0]["objective"] != objective or score is None:
                    continue
                if not of[objective]:
                    figures.level(axis, score, colour, objective)
                elif objective == name:
                    weight = float(rows[0]["weight"])
                    points.append((weight, *score))
                    seeds = [row[SCORE] for row in rows]
                    axis.plot([weight] * len(seeds), seeds, ".", color=colour, alpha=0.5)
            if objective == name and points:
                x, y, spread = np.array(sorted(points)).T
                axis.errorbar(
                    x, y, spread, color=colour, marker=marker, markersize=5, linewidth=1.2,
                    elinewidth=0.8, capsize=3, label=objective,
                )  # fmt: skip
                axis.set_xscale("symlog" if min(x) <= 0 else "log")
                axis.set_xticks(x, [f"{weight:g}" for weight in x])
                axis.minorticks_off()
        if name:
            axis.set_xlabel(f"{OBJECTIVES[name].weight} ({name})", fontsize=9)
        else:
            axis.set_xticks([])
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(0.08)
        axis.legend(fontsize=8, frameon=False)
    axes[0, 0].set_ylabel(title, fontsize=9)
    figure.tight_layout()
    return figure
