"""The page of the paper's study: its figures, and ours beside the published numbers."""

import html
from collections.abc import Callable
from pathlib import Path

from fvae import report
from fvae.data import Store
from fvae.files import write_atomically
from fvae.report.page import page, picture, table
from fvae.study import figures
from fvae.study.figures import Rows, by_setting, mean_std
from fvae.study.page import PAGE_NAME as STUDY_PAGE
from fvae.study.page import Results, plain
from fvae.study.paper_figures import SCORE, best_runs, draw
from fvae.study.presets import SCALES, SETS, paper_preset
from fvae.study.published import PUBLISHED, Published
from fvae.study.tables import SORTING, html_table, shown
from fvae.training import checkpoint

PAGE_NAME = "paper.html"
FIGURES = "figures"
_PRESETS = {paper_preset(s, scale): (s, scale) for s in SETS for scale in SCALES}
_DASH = "&ndash;"
_TITLES = {
    "factor_vae": "FactorVAE score", "beta_vae": "Higgins", "mig": "MIG", "sap": "SAP",
    "dci": "DCI", "recon": "reconstruction (nats)",
}  # fmt: skip


def is_paper(preset: str | None) -> bool:
    """Return whether a preset is one of the paper's."""
    return preset in _PRESETS


def write_page(out: Path, kept: dict, results: Results, store: Callable[[], Store]) -> Path:
    """Write ``paper.html`` and ``figures/*.png``, of what is there so far.

    Args:
        out: the study's folder.
        kept: the contents of ``study.json``, whose preset is one of the paper's.
        results: what the folder holds.
        store: returns the data set; called where a model is to be drawn that was not yet.

    Returns:
        the page's path.

    Raises:
        OSError: the folder cannot be written.
    """
    drawn = write_figures(out, results)
    for row in best_runs(results.done).values():
        run = out / "runs" / row["run"]
        if (run / checkpoint.NAME).exists() and not (run / "traversal.png").exists():
            write_atomically(run / "traversal.png", report.traversal_png(run, store()))
    path = out / PAGE_NAME
    write_atomically(path, _page(out, kept, results, drawn))
    return path


def write_figures(out: Path, results: Results) -> dict[str, bytes]:
    """Write ``figures/*.png`` into a study's folder, and return them by name."""
    drawn = draw(out, results.done, results.asked.protocol) if results.asked else {}
    folder = out / FIGURES
    folder.mkdir(exist_ok=True)
    for name, content in drawn.items():
        write_atomically(folder / f"{name}.png", content)
    return drawn


def _page(out: Path, kept: dict, results: Results, drawn: dict[str, bytes]) -> str:
    which, scale = _PRESETS[kept["preset"]]
    settings, done = kept["settings"], results.done
    groups = by_setting(done)
    sections = [("What this is", _about(scale, settings, results))]
    if "trade-off" in drawn:
        sections += [
            (
                "Reconstruction error against FactorVAE score",
                figures.explained(groups)
                + "<p>Further left and higher is better. A line across is an objective that"
                " reconstructs nothing.</p>" + picture(drawn["trade-off"]),
            ),
            (
                "Score against weight",
                "<p>Mean and standard deviation over the seeds; dots are the single runs.</p>"
                + picture(drawn["weights"]),
            ),
            ("Each objective at its best", _best_table(groups)),
        ]
    else:
        sections.append(("Figures", "<p>No run is finished and scored yet.</p>"))
    if "tc" in drawn:
        note = "<p>The discriminator's estimate: mean over the seeds, and their range.</p>"
        sections.append(("Total correlation over training", note + picture(drawn["tc"])))
    sections += _best_models(out, done, drawn)
    beside = _published_table(which, groups, settings)
    sections.append(("Ours beside the published numbers", beside))
    if missing := [row for row in results.rows if row["status"] != "done"]:
        sections.append(("Runs that are missing", _missing_table(missing)))
    made = [(name, value) for one in kept.get("made", []) for name, value in one.items()]
    sections.append(("Made with", table(made)))
    said = table((name, plain(value)) for name, value in settings.items())
    sections.append(("Settings", said + SORTING))
    subtitle = f"Kim & Mnih 2018, {which}, scale {scale}: {len(done)} of {len(results.rows)} runs"
    return page(out.resolve().name, subtitle + " finished", sections)


def _missing_table(rows: Rows) -> str:
    lines = [
        [html.escape(row["run"]), row["status"], f"{row['steps']:,}", html.escape(row["message"])]
        for row in rows
    ]
    note = "<p>These runs are in none of the figures and means above.</p>"
    return note + html_table(["run", "status", "steps", "message"], lines)


def _about(scale: str, settings: dict, results: Results) -> str:
    said = {
        "smoke": "A few steps of small nets: this shows that every part works, and <b>nothing about"
        " the objectives</b>.",
        "cpu": "A scale for two cores: fewer steps, a larger learning rate and a smaller"
        " discriminator than the paper's.",
        "full": "The paper's steps, seeds and networks.",
    }[scale]
    left = len(results.rows) - len(results.done)
    failed = sum(row["status"] == "failed" for row in results.rows)
    if left:
        said += f" <b>{left} of {len(results.rows)} runs are missing</b>, {failed} of them failed."
    own = "; ".join(settings["own"])
    own = f" ({html.escape(own)})" if own else ""
    return (
        f"<p>{said} FactorVAE's claim is a higher score at the same reconstruction error than"
        f" beta-VAE, and InfoWGAN-GP below both. {settings['steps']:,} steps{own}, scores of the"
        f" protocol {html.escape(settings['protocol'])}. Tables of all scores and runs are in"
        f' <a href="{STUDY_PAGE}">{STUDY_PAGE}</a>, the figures in <code>{FIGURES}/</code>.</p>'
    )


def _text(name: str, rows: Rows) -> str:
    both = mean_std(rows, name)
    if both is None:
        return _DASH
    spread = f" &plusmn; {shown(name, both[1])}" if len(rows) > 1 else ""
    return shown(name, both[0]) + spread


def _best_table(groups: dict[str, Rows]) -> str:
    """Return a row an objective: its setting of greatest mean score."""
    lines = [
        [html.escape(objective), rows[0]["weight"] or _DASH, str(len(rows)),
         _text("recon", rows), _text(SCORE, rows)]
        for objective, rows in _best_settings(groups).items()
    ]  # fmt: skip
    head = ["objective", "weight", "runs", _TITLES["recon"], _TITLES[SCORE]]
    note = (
        "<p>The setting of greatest mean score, chosen and shown on the same runs. Mean &plusmn;"
        " standard deviation over the seeds. A GAN has no reconstruction.</p>"
    )
    return note + html_table(head, lines)


def _best_settings(groups: dict[str, Rows]) -> dict[str, Rows]:
    best: dict[str, tuple[float, Rows]] = {}
    for rows in groups.values():
        score, objective = mean_std(rows, SCORE), rows[0]["objective"]
        if score and (objective not in best or score[0] > best[objective][0]):
            best[objective] = score[0], rows
    return {objective: rows for objective, (_, rows) in best.items()}


def _best_models(out: Path, done: Rows, drawn: dict[str, bytes]) -> list[tuple[str, str]]:
    sections = []
    for objective, row in best_runs(done).items():
        said = f"<p>{html.escape(row['run'])}, score {row[SCORE]:.3f}"
        path = out / "runs" / row["run"] / "traversal.png"
        if path.exists():
            moved = "<p>Each row moves one latent dimension, by falling KL or information.</p>"
            moved += picture(path.read_bytes())
        else:
            moved = "<p>Its checkpoint is gone, so that it cannot be drawn.</p>"
        if f"votes-{objective}" in drawn:
            moved += "<h3>Votes</h3>" + picture(drawn[f"votes-{objective}"])
        sections.append((f"The best model of {html.escape(objective)}", f"{said}.</p>{moved}"))
    return sections


def _published_table(which: str, groups: dict[str, Rows], settings: dict) -> str:
    best = _best_settings(groups)
    taken = {n for rows in groups.values() for row in rows for n in row if row[n] != ""}
    names = [n for n in _TITLES if n in taken or n == SCORE]
    lines = []
    for one in sorted(PUBLISHED[which], key=lambda one: list(_TITLES).index(one.metric)):
        if one.metric in names:
            weight = _DASH if one.weight is None else f"{one.weight:g}"
            model, source = html.escape(one.model or one.objective), html.escape(one.source)
            wrapped = f'<span style="white-space: normal">{source}</span>'
            value = html.escape(one.value)
            lines.append(
                [_TITLES[one.metric], model, weight, value, *_ours(one, groups, best), wrapped]
            )
    note = (
        f"<p>Ours are means &plusmn; standard deviations over the seeds after {settings['steps']:,}"
        " steps, of the setting with the published weight; where that is not known, of our best"
        " one, which is named. A dash stands where our grid has no such setting, or it is not"
        " finished. Published numbers are of other code, mostly other metric code, and of the"
        " paper's number of steps or about as many.</p>"
    )
    head = ["metric", "model", "weight", "published", "ours", "our setting, runs", "source"]
    return note + html_table(head, lines, "sortable")


def _ours(one: Published, groups: dict[str, Rows], best: dict[str, Rows]) -> tuple[str, str]:
    """Return our score and the setting that it is of."""
    rows = best.get(one.objective)
    if one.weight is not None:
        rows = next(
            (rows for rows in groups.values() if rows[0]["objective"] == one.objective
             and float(rows[0]["weight"] or "nan") == one.weight), None,
        )  # fmt: skip
    if rows is None:
        return _DASH, _DASH
    return _text(one.metric, rows), f"{html.escape(rows[0]['setting'])}, {len(rows)}"
