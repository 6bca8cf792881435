"""Scores as tables on a terminal."""

from rich.table import Table

from fvae.registry import METRICS


def score_table(result: dict) -> Table:
    """Return the scores and votes of a run, from the contents of its ``eval-*.json``."""
    table = Table(title=f"protocol {result['protocol']}, seed {result['seed']}")
    table.add_column("metric")
    table.add_column("score", justify="right")
    table.add_column("note")
    for name in METRICS:
        score = result[name]["score"]
        shown = "-" if score is None else f"{score:.3f}"
        table.add_row(name, shown, result[name].get("note") or "")
    votes = Table(title="votes: rows are latents that varied least, columns the fixed factor")
    votes.add_column("")
    for factor in result["factor_vae"]["factor_names"]:
        votes.add_column(factor, justify="right")
    for dim, row in enumerate(result["factor_vae"]["votes"]):
        votes.add_row(f"z{dim}", *map(str, row))
    both = Table.grid()
    both.add_row(table)
    both.add_row(votes)
    return both
