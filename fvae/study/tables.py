"""The tables of a study's page: settings, runs, and every score against every other."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fvae.metrics.across import ACROSS
from fvae.registry import METRICS
from fvae.report.scores import scores_of
from fvae.report.terminal import ceiling
from fvae.study.figures import Rows, mean_std

LOSSES = ("recon", "kl", "tc")
_NONE = "&ndash;"


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """Return a table whose cells are HTML; of the kind "sortable", a click on a heading sorts."""
    names = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    lines = ("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<table class="{kind}"><thead><tr>{names}</tr></thead><tbody>'
        + "".join(lines)
        + "</tbody></table>"
    )


def shown(name: str, value: float) -> str:
    """Return a score or loss with as many digits as its unit is worth."""
    return f"{value:.2f}" if name in ("recon", "kl") else f"{value:.3f}"


def ceilings(out: Path, rows: Rows, protocol: str) -> str:
    """Say what a perfect code scores, where that is below 1 and the same for all runs."""
    scores = [scores_of(out / "runs" / row["run"], protocol) or {} for row in rows]
    found = {name: {ceiling(one, name) for one in scores} for name in METRICS}
    said = [f"{name} {one.pop()}" for name, one in found.items() if one != {""} and len(one) == 1]
    return f" A perfect code scores {', '.join(said)}." if said else ""


def setting_table(
    groups: dict[str, Rows], scores: Sequence[str], protocol: str | None, said: str
) -> str:
    """Return mean and standard deviation of each setting.

    Args:
        groups: rows of finished runs by setting.
        scores: names of the scores.
        protocol: of the scores that a run has alone; None where there are none.
        said: about ceilings, HTML.
    """
    names = [n for n in (*LOSSES, *scores) if any(mean_std(rows, n) for rows in groups.values())]
    lines = []
    for setting, rows in groups.items():
        cells = [html.escape(setting).replace("-", "&#8209;"), str(len(rows))]
        for name in names:
            both = mean_std(rows, name)
            spread = f"&nbsp;&plusmn;&nbsp;{shown(name, both[1])}" if both else ""
            cells.append(
                f"{shown(name, both[0])}{spread if len(rows) > 1 else ''}" if both else _NONE
            )
        lines.append(cells)
    of_protocol = f"; scores are of the protocol {html.escape(protocol)}" if protocol else ""
    note = (
        "<p>Mean &plusmn; standard deviation over the seeds. recon, kl and tc are nats, means over"
        f" the last logged interval of training{of_protocol}.{said}{_about_across(scores)}</p>"
    )
    return note + html_table(["setting", "runs", *names], lines, "sortable")


def _about_across(scores: Sequence[str]) -> str:
    named = [name for name in scores if name in ACROSS]
    if not named:
        return ""
    return (
        f" {', '.join(named)} compare the runs of a setting, so a setting of one finished run has"
        " none."
    )


def run_table(out: Path, rows: Rows, scores: Sequence[str]) -> str:
    """Return the losses and scores of each run."""
    names = [n for n in (*LOSSES, *scores) if any(row[n] != "" for row in rows)]
    lines = []
    for row in rows:
        name = html.escape(row["run"])
        if row["status"] == "done" and (out / "runs" / row["run"] / "report.html").exists():
            name = f'<a href="runs/{name}/report.html">{name}</a>'
        values = [shown(n, row[n]) if row[n] != "" else _NONE for n in names]
        lines.append([name, row["status"], f"{row['steps']:,}", *values])
    note = "<p>Each finished run has a page of its own: curves, votes, traversals.</p>"
    return note + html_table(["run", "status", "steps", *names], lines, "sortable")


# --- every score against every other -------------------------------------------------------------


class Correlation(NamedTuple):
    """A rank correlation, None where it is undefined, and of how many values."""

    value: float | None
    n: int


def correlation(rows: Rows, a: str, b: str) -> Correlation:
    """Spearman's rank correlation of two columns, over the rows that have both.

    It is undefined for fewer than three rows, and where one of the two is constant.
    """
    from scipy.stats import spearmanr

    pairs = np.array([(row[a], row[b]) for row in rows if row[a] != "" and row[b] != ""], float)
    if len(pairs) < 3 or (pairs == pairs[0]).all(0).any():
        return Correlation(None, len(pairs))
    return Correlation(float(spearmanr(pairs).statistic), len(pairs))


def correlation_table(rows: Rows, scores: Sequence[str]) -> str:
    """Return rank correlations of scores and losses over finished runs; "" where there is none."""
    names = [n for n in (*scores, *LOSSES) if sum(row[n] != "" for row in rows) > 2]
    found = {(a, b): correlation(rows, a, b) for a in names for b in names}
    if not any(c.value is not None for (a, b), c in found.items() if a != b):
        return ""
    most = max(c.n for c in found.values())
    lines = []
    for a in names:
        cells = [f'<th scope="row">{html.escape(a)}</th>']
        for b in names:
            value, n = found[a, b]
            text = _NONE if value is None else f"{value:.2f}".replace("-", "&minus;")
            few = f"<small> ({n})</small>" if n != most else ""
            cells.append(f'<td{_shade(value)} title="{a} and {b}: {n} runs">{text}{few}</td>')
        lines.append("<tr>" + "".join(cells) + "</tr>")
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in ("", *names))
    note = (
        f"<p>Spearman's rank correlation over {most} finished runs, of all settings together; in"
        " brackets the number of runs where it is another. A dash stands where a score is constant."
        " recon, kl and tc are losses: where less is better, a good score is correlated"
        " negatively.</p>"
    )
    return (
        note
        + f'<table class="matrix"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody>'
        + "</table>"
    )


def _shade(value: float | None) -> str:
    """Blue for agreement, orange for the opposite, as strong as it is."""
    if value is None:
        return ""
    colour = "0,114,178" if value > 0 else "213,94,0"
    return f' style="background:rgba({colour},{0.6 * abs(value):.2f})"'


def best_table(groups: dict[str, Rows], scores: Sequence[str]) -> str:
    """Return which setting is best by the scores that need no labels; "" where there is none.

    Beside it stands how far these scores rank the settings as the supervised ones do.
    """
    means = [
        {n: "" if (both := mean_std(rows, n)) is None else both[0] for n in scores}
        for rows in groups.values()
    ]
    judges = [n for n in scores if n in ACROSS and any(row[n] != "" for row in means)]
    if not judges:
        return ""
    labelled = [n for n in scores if n in METRICS and METRICS[n].supervised
                and any(row[n] != "" for row in means)]  # fmt: skip
    lines = []
    for judge in judges:
        pairs = zip(means, groups, strict=True)
        scored = [(float(row[judge]), s) for row, s in pairs if row[judge] != ""]
        value, setting = max(scored, key=lambda one: one[0])
        cells = [judge, html.escape(setting), shown(judge, value)]
        for name in labelled:
            rank, n = correlation(means, judge, name)
            cells.append(_NONE if rank is None else f"{rank:.2f} ({n})".replace("-", "&minus;"))
        lines.append(cells)
    beside = (
        " Under each supervised score: the rank correlation of the settings' means with it, and of"
        " how many settings; undefined below three."
    )
    note = (
        "<p>The setting of greatest mean by each score that compares its seeds and needs no labels."
        f"{beside if labelled else ''}</p>"
    )
    return note + html_table(["score", "best setting", "mean", *labelled], lines)


#: Sorts a table by the column whose heading is pressed; without it the tables stay as they are.
SORTING = """<style>
.sortable th button { font: inherit; font-weight: bold; background: none; border: 0; padding: 0;
  cursor: pointer; color: inherit; white-space: nowrap; text-align: left; }
.sortable th button::after { content: " \\2195"; color: #aaa; }
.sortable th[aria-sort=ascending] button::after { content: " \\2191"; color: #222; }
.sortable th[aria-sort=descending] button::after { content: " \\2193"; color: #222; }
.sortable td, .matrix td { white-space: nowrap; }
.matrix { font-size: 13px; } .matrix th, .matrix td { padding: .2rem .4rem; }
.matrix td { text-align: right; }
</style><script>
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const key = (row, column) => {
    const text = row.cells[column].textContent.trim();
    const number = text.replace(/,/g, "").match(/^[+-]?\\d+(\\.\\d+)?(e[+-]?\\d+)?(?=$|\\s)/i);
    return text === "\\u2013" ? null : number ? Number(number[0]) : text;
  };
  const order = (a, b) => typeof a === "number" && typeof b === "number" ? a - b
    : String(a).localeCompare(String(b), "en", { numeric: true });
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = [...body.rows].map(row => [key(row, column), row]);
      rows.sort(([a], [b]) => a === null || b === null ? (a === null) - (b === null)
        : up ? order(a, b) : order(b, a));
      body.append(...rows.map(([, row]) => row));
    });
  });
}
</script>"""
