"""Scores as tables on a terminal."""

from rich.markup import escape
from rich.table import Table

from fvae.registry import METRICS


def ceiling(result: dict, name: str) -> str:
    """Return what a score can be at most, where that is below 1 in the digits shown."""
    value = result.get(name, {}).get("ceiling")
    return "" if value is None or value >= 0.9995 else f"{value:.3f}"


def error(result: dict, name: str) -> str:
    """Return a score's sampling error: "" where nothing is said of it, "-" where none is made."""
    if name not in (errors := result.get("errors", {})):
        return ""
    if errors[name] is None:
        return "-"
    return f"+- {errors[name]:.3f}" if errors[name] else "exact"


def score_table(result: dict) -> Table:
    """Return the scores and votes of a run, from the contents of its ``eval-*.json``."""
    table = Table(title=f"protocol {result['protocol']}, seed {result['seed']}")
    table.add_column("metric")
    table.add_column("score", justify="right")
    table.add_column("error")
    table.add_column("ceiling", justify="right")
    table.add_column("note")
    for name in [name for name in METRICS if name in result]:
        score, note = result[name]["score"], escape(result[name].get("note") or "")
        shown = "-" if score is None else f"{score:.3f}"
        table.add_row(name, shown, error(result, name), ceiling(result, name), note)
        if "exhaustive" in result[name]:
            beside, note = result[name]["exhaustive"], ""
            if beside is None:
                note = "encodes every image: fvae eval RUN --protocol exhaustive"
            shown, exact = ("-", "") if beside is None else (f"{beside:.3f}", "exact")
            table.add_row("  exhaustive", shown, exact, "", note)
    left_out = [f"{n} {why}" for n, why in result.get("factors_left_out", {}).items()]
    if left_out:
        table.caption = escape("left out: " + ", ".join(left_out))
    if not result.get("factor_vae", {}).get("votes"):
        return table
    votes = Table()
    votes.add_column("")
    for factor in result["factor_vae"]["factor_names"]:
        votes.add_column(escape(factor), justify="right")
    for dim, row in enumerate(result["factor_vae"]["votes"]):
        votes.add_row(f"z{dim}", *map(str, row))
    both = Table.grid()
    both.add_row(table)
    both.add_row("votes: rows are latents that varied least, columns the fixed factor")
    both.add_row(votes)
    return both
