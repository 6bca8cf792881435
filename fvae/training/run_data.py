"""Which data a run was trained on: their fingerprint, kept in the run folder and compared."""

import json
from pathlib import Path
from typing import Any

from fvae.config import TrainConfig
from fvae.data import Store
from fvae.errors import UserError, warn
from fvae.files import from_json, write_atomically
from fvae.training import checkpoint
from fvae.training.distributed import World

NAME = "data.json"

_COMPARED = ("image_shape", "count", "binary", "checksum")


def where(config: TrainConfig) -> dict[str, Any]:
    """What :func:`fvae.data.load` takes for the data of a run."""
    names = ("images", "factors", "image_size")
    return {"source": config.data} | {name: getattr(config, name) for name in names}


def check(run: Path, store: Store, quietly: bool = False) -> None:
    """Check that a set is the one that a run was trained on.

    A run folder of version 0.1 does not tell: then a line on stderr says so.

    Args:
        run: the run folder.
        store: the set.
        quietly: leave that line to somebody else.

    Raises:
        UserError: it is another set.
    """
    kept = _read(run)
    if kept is None and not quietly:
        warn(f"{run}: holds no {NAME}, so that it may be of other data than {store.name}")
    if kept is not None:
        compare(f"{run}", kept, store)


def keep(run: Path, store: Store, world: World | None = None) -> None:
    """Keep a set's fingerprint in the folder of a run that begins; in one that goes on, check it.

    Args:
        run: the run folder.
        store: the set, as each process has loaded it.
        world: the processes that train the run.

    Raises:
        UserError: it is another set than that of the run, in one of the processes.
        OSError: the folder cannot be written.
    """
    world = world or World()

    def kept_or_written() -> dict[str, Any]:
        kept = _read(run)
        if kept is None:
            if (run / checkpoint.NAME).exists():
                check(run, store)
            kept = store.fingerprint
            write_atomically(run / NAME, json.dumps(kept, indent=2) + "\n")
        return kept

    kept = world.on_main(kept_or_written)
    world.each(lambda: compare(f"{run}", kept, store))


def compare(owner: str, kept: dict[str, Any], store: Store) -> None:
    """Compare a fingerprint with that of a set.

    Args:
        owner: a run or study folder, for the message.
        kept: its fingerprint.
        store: the set.

    Raises:
        UserError: they are not the same.
    """
    found = store.fingerprint
    if any(kept.get(name) != found[name] for name in _COMPARED):
        raise UserError(
            f"{owner}: was trained on {_told(kept)}, and this is {_told(found)}; give the data that"
            " it was trained on by --data"
        )


def _told(fingerprint: dict[str, Any]) -> str:
    shape = " x ".join(map(str, fingerprint.get("image_shape", ())))
    kind = "bits" if fingerprint.get("binary") else "bytes"
    checksum = str(fingerprint.get("checksum"))[:12]
    images = f"{fingerprint.get('count'):,} images of {shape} {kind}"
    return f"{fingerprint.get('name')} ({images}, checksum {checksum})"


def _read(run: Path) -> dict[str, Any] | None:
    path = run / NAME
    try:
        kept = from_json(path.read_text())
        if not isinstance(kept["count"], int):
            raise ValueError("count is no whole number")
        return kept
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: not a readable fingerprint ({error}); delete it to go on unchecked"
        ) from None
