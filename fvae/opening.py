"""The data of a command: where its options or its run say that they are, and what they hold."""

from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from fvae import data
from fvae.config import TrainConfig
from fvae.data import Store
from fvae.errors import UserError
from fvae.training import run_data


def data_of(
    run: Path, source: str | None = None, factors: str | None = None, progress: bool = False
) -> Store:
    """The data of a run, from where its config.json or somebody says that they are.

    Args:
        run: a run folder.
        source: where they are now; None is where they were.
        factors: where their labels are now; None is where they were.
        progress: show a progress bar on stderr.

    Raises:
        UserError: the run or the data cannot be read.
    """
    place = run_data.where(TrainConfig.from_file(run / "config.json"))
    place |= {"source": source or place["source"], "factors": factors or place["factors"]}
    return load(place, run if source is None else None, progress)


def load(place: dict[str, Any], run: Path | None = None, progress: bool = False) -> Store:
    """The data at a place of :func:`fvae.training.run_data.where`.

    Raises:
        UserError: they cannot be read; if a run says where they are, how to say it anew.
    """
    try:
        return data.load(**place, progress=progress)
    except UserError as error:
        if run is None:
            raise
        raise UserError(f"{error}. If the data of {run} have moved, say where by --data") from None


def described(store: Store) -> Table:
    """A table of what a set holds: images, memory, factors, cache."""
    table = Table(title=escape(store.name), show_header=False)
    shape = " x ".join(map(str, store.image_shape))
    table.add_row("images", f"{len(store):,} of {shape}, {'binary' if store.binary else 'bytes'}")
    if store.note:
        table.add_row("note", escape(store.note))
    table.add_row("in memory", f"{store.nbytes / 1e6:.0f} MB")
    if store.labels is None:
        for name, size in zip(store.factor_names, store.factor_sizes, strict=True):
            table.add_row(f"factor {escape(name)}", f"{size} values")
    else:
        for name, column in zip(store.factor_names, store.labels.T, strict=True):
            low, high, values = column.min().item(), column.max().item(), len(column.unique())
            table.add_row(f"factor {escape(name)}", f"{values:,} values, {low:g} to {high:g}")
    known = "no full grid: combinations are missing or repeated"
    if not store.factor_names:
        known = "none: it trains without scores"
    elif store.labels is None:
        known = "a full grid"
    table.add_row("factors", known)
    table.add_row("cache folder", escape(str(data.cache_folder())))
    return table
