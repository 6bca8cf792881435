"""Whether settings of a study differ by more than their seeds do: intervals over the seeds.

That of a mean is Student's t, that of a difference Welch's: a study has 3 to 10 seeds, and of so
few numbers a bootstrap makes far too short ones (3 numbers have at most 10 different means).
"""

import csv
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from fvae.metrics.across import ACROSS
from fvae.registry import METRICS
from fvae.study.figures import Rows, by_setting
from fvae.study.tables import html_table

LEVEL = 0.95
WITHIN, BEYOND = "within the spread of seeds", "beyond the spread of seeds"
UNKNOWN = "one seed tells no spread"


@dataclass(frozen=True)
class Compared:
    """A setting beside the one of greatest mean, by one score.

    Attributes:
        setting: its name.
        seeds: n, the number of its runs.
        mean: over the seeds.
        interval: low and high end of the mean's 95 % interval; None of one seed.
        less: the greatest mean less this one, 0 of the best itself.
        less_interval: its 95 % interval; None of the best itself and where either has one seed.
        verdict: "best", or whether that interval leaves out 0.
    """

    setting: str
    seeds: int
    mean: float
    interval: tuple[float, float] | None
    less: float
    less_interval: tuple[float, float] | None
    verdict: str


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Mean -+ t s / sqrt(n), t Student's 0.975 quantile of n - 1 degrees; None of one value."""
    from scipy.stats import t

    n = len(values)
    if n < 2:
        return None
    half = t.ppf((1 + LEVEL) / 2, n - 1) * np.std(values, ddof=1) / np.sqrt(n)
    return float(np.mean(values) - half), float(np.mean(values) + half)


def difference_interval(a: Sequence[float], b: Sequence[float]) -> tuple[float, float] | None:
    """Welch's interval of mean(a) - mean(b); None where either has one value.

    Source: Welch 1947, "The generalization of Student's problem when several different population
    variances are involved".
    """
    from scipy.stats import ttest_ind

    if min(len(a), len(b)) < 2:
        return None
    if np.ptp(a) == np.ptp(b) == 0:
        return (float(np.mean(a) - np.mean(b)),) * 2
    found = ttest_ind(a, b, equal_var=False).confidence_interval(LEVEL)
    return float(found.low), float(found.high)


def compare(rows: Rows, score: str) -> list[Compared]:
    """Compare settings by a score of which more is better, the best first.

    The best is chosen by the same seeds that it is then compared over, and no interval is widened
    for it or for the number of settings.

    Args:
        rows: of runs, as ``results.csv`` has them; what is not finished or has no score counts not.
        score: a column.
    """
    groups = {
        setting: [float(row[score]) for row in some]
        for setting, some in by_setting([row for row in rows if row["status"] == "done"]).items()
        if all(row[score] != "" for row in some)
    }
    ranked = sorted(groups.items(), key=lambda one: -np.mean(one[1]))
    if not ranked:
        return []
    best = ranked[0][1]
    found = []
    for i, (setting, values) in enumerate(ranked):
        less = difference_interval(best, values) if i else None
        verdict = "best" if not i else UNKNOWN
        if less:
            verdict = WITHIN if less[0] <= 0 <= less[1] else BEYOND
        mean = float(np.mean(values))
        found.append(
            Compared(setting, len(values), mean, mean_interval(values),
                     float(np.mean(best)) - mean, less, verdict)
        )  # fmt: skip
    return found


def comparable(names: Sequence[str]) -> list[str]:
    """Return the scores of which more is better: those of factors, and those that compare runs."""
    return [n for n in names if n in ACROSS or (n in METRICS and METRICS[n].supervised)]


def of_results(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Compare the settings in a ``results.csv`` by each score, for ``study.json``."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        rows, names = list(reader), reader.fieldnames or ()
    every = {name: compare(rows, name) for name in comparable(names)}
    found = {name: each for name, each in every.items() if each}
    return msgspec.json.decode(msgspec.json.encode(found))  # as the file will hold it


def section(rows: Rows, scores: Sequence[str]) -> str:
    """Return the comparison by each score as HTML, "" where there are not two settings."""
    lines = []
    for name in comparable(scores):
        found = compare(rows, name)
        for one in found if len(found) > 1 else ():
            setting = html.escape(one.setting).replace("-", "&#8209;")
            lines.append([html.escape(name), setting, str(one.seeds), *_cells(one)])
    if not lines:
        return ""
    note = (
        "<p>For each score the setting of greatest mean, and the others against it. Intervals are"
        " of 95 %: of a mean over seeds Student's t, of the best mean less this one Welch's. A"
        f" difference whose interval holds 0 is <b>{WITHIN}</b>. The best is chosen by the same"
        " seeds, and intervals are not widened for it or for the number of settings.</p>"
    )
    return note + html_table(
        ["score", "setting", "seeds", "mean", "interval", "best less this", "interval", ""],
        lines, "sortable",
    )  # fmt: skip


def _cells(one: Compared) -> list[str]:
    """Mean, interval, difference, its interval, verdict."""
    ends = [f"{e[0]:.3f} to {e[1]:.3f}" if e else "" for e in (one.interval, one.less_interval)]
    less = f"{one.less:.3f}" if one.verdict != "best" else ""
    return [f"{one.mean:.3f}", ends[0], less, ends[1], one.verdict]


def terminal_table(compared: dict[str, list[dict[str, Any]]]) -> Any:
    """Return the comparison by the first score as a table of rich; None where there is none."""
    from rich.markup import escape
    from rich.table import Table

    several = {name: each for name, each in compared.items() if len(each) > 1}
    if not several:
        return None
    name, each = next(iter(several.items()))
    table = Table(
        title=f"{name} over seeds, with intervals of 95 %", box=None, title_justify="left"
    )
    for head in ("setting", "mean", "interval", "best less this"):
        table.add_column(head, no_wrap=True)
    table.add_column()
    for one in each:
        mean, interval, _, less, verdict = _cells(Compared(**one))
        table.add_row(escape(one["setting"]), mean, interval, less, verdict)
    return table
