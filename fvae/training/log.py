"""A run's ``log.jsonl``: one line of means an interval, with its step and the seconds so far."""

from pathlib import Path
from typing import Any

import msgspec

from fvae.errors import UserError, warn
from fvae.files import from_json, write_atomically

NAME = "log.jsonl"


class _Line(msgspec.Struct):
    """What every line has, beside its terms."""

    step: int
    seconds: float


_Terms = dict[str, float | list[float] | None]


def read(run: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's log; what is no line of a log is left out, and said.

    Args:
        run: the run folder; without a log in it there are no lines.

    Raises:
        UserError: the log cannot be read.
    """
    return [line for line, _ in _lines(run / NAME)]


def cut(run: Path, step: int) -> float:
    """Drop the lines after a step, and what is no line; return the seconds that were needed.

    The steps after a checkpoint are about to be done again.

    Raises:
        UserError: the log cannot be read.
        OSError: it cannot be written.
    """
    path = run / NAME
    lines = [(line, text) for line, text in _lines(path) if line["step"] <= step]
    kept = "".join(text + "\n" for _, text in lines).encode()
    if path.exists() and path.read_bytes() != kept:
        write_atomically(path, kept)
    return float(lines[-1][0]["seconds"]) if lines else 0.0


def _lines(path: Path) -> list[tuple[dict[str, Any], str]]:
    try:
        texts = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); move it away") from None
    lines, damaged = [], []
    for number, text in enumerate(texts, 1):
        try:
            line = from_json(text)
            msgspec.convert(line, _Line)
            msgspec.convert(line, _Terms)
        except ValueError:
            # A kill cuts the last line short: that is no damage.
            if text and number < len(texts):
                damaged.append(number)
            continue
        lines.append((line, text))
    if damaged:
        more = f" and {len(damaged) - 1} more" if damaged[1:] else ""
        warn(f"{path}: line {damaged[0]}{more} is damaged and left out")
    return lines
