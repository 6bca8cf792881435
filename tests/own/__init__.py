"""What people bring: one case an input, with the right value, for the table and the tests."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

KINDS = ("codes", "images", "data", "loops")


@dataclass(frozen=True)
class Case:
    """One input that somebody brings.

    Attributes:
        kind: a name in KINDS.
        given: what is brought.
        right: what is right, in words or as a value.
        run: takes an empty folder; returns what was got, in words or as a value, and whether that
            is right.
    """

    kind: str
    given: str
    right: str
    run: Callable[[Path], tuple[object, bool]]


CASES: list[Case] = []


def case(given: str, right: object) -> Callable:
    """Add the decorated function as a case; its module's name is the kind."""

    def add(run: Callable) -> Callable:
        CASES.append(Case(run.__module__.rpartition(".")[2], given, str(right), run))
        return run

    return add


def cases() -> list[Case]:
    """All cases, kind by kind."""
    for kind in KINDS:
        importlib.import_module(f"own.{kind}")
    return sorted(CASES, key=lambda c: KINDS.index(c.kind))
