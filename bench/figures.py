"""A record: what a benchmark measured, on what, with what and when, in one format of JSON.

    {"format": "fvae-bench 1", "command": "python -m bench.step --out ...", "date": "2026-01-31",
     "commit": "0123abc", "device": {"kind": "cpu", "name": .., "threads": 2},
     "versions": {"python": .., "torch": ..}, "numbers": {...}}

``numbers`` is what the program found: numbers by name, in objects and lists; ``{"p20", "p50",
"p80"}`` are percentiles. A program may add keys of its own beside. Nothing here needs PyTorch.
"""

import json
import os
from pathlib import Path

FORMAT = "fvae-bench 1"
#: What every record has, and of which type.
KEYS = {
    "format": str, "command": str, "date": str, "commit": str,
    "device": dict, "versions": dict, "numbers": dict,
}  # fmt: skip


class NoRecord(ValueError):
    """A file is none, or not whole; the message is one line that names it."""


def read(path: Path) -> dict:
    """Return a record.

    Raises:
        NoRecord: there is no such file, it is not JSON or of another format.
    """
    try:
        found = json.loads(path.read_text())
    except OSError as error:
        raise NoRecord(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise NoRecord(f"{path}: not JSON ({error})") from None
    form = found.get("format") if isinstance(found, dict) else None
    if form != FORMAT:
        raise NoRecord(f'{path}: not a record: format is {form!r}, expected "{FORMAT}"')
    for key, kind in KEYS.items():
        if not isinstance(found.get(key), kind):
            raise NoRecord(f"{path}: no {key}, or another thing than {kind.__name__}")
    return found


def write(path: Path, record: dict) -> None:
    """Write a record, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(record, indent=2, default=str) + "\n")
    os.replace(part, path)


def middle(value: object) -> float | None:
    """Return a number, or the median of percentiles; None of anything else."""
    if isinstance(value, dict):
        value = value.get("p50")
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def flat(numbers: object, name: str = "") -> dict[str, float]:
    """Return each number by its path in a record, such as "ops/permute_dims B=64/ours".

    Percentiles are one number, their median. An object in a list is called by its strings, and by
    its place where another is called so.
    """
    value = middle(numbers)
    if value is not None:
        return {name: value}
    each: dict[str, object] = {}
    if isinstance(numbers, dict):
        each = numbers
    elif isinstance(numbers, list):
        for place, item in enumerate(numbers):
            inside = item.values() if isinstance(item, dict) else ()
            label = " ".join(x for x in inside if isinstance(x, str)) or str(place)
            each[f"{label} #{place}" if label in each else label] = item
    found = {}
    for key, item in each.items():
        found |= flat(item, f"{name}/{key}" if name else str(key))
    return found
