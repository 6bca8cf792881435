"""What a setting may hold: plain values, and things written as text."""

import math
import os
from types import UnionType
from typing import Any, NamedTuple, get_args, get_origin

from fvae.errors import UserError
from fvae.scalars import boolean, integer, real


class Correlation(NamedTuple):
    """Two factors that vary together; the smaller sigma, the closer."""

    first: str
    second: str
    sigma: float


def correlation_of(pair: str) -> Correlation:
    """Return what "first,second:sigma" says.

    Raises:
        UserError: it is written otherwise, the names are equal, or sigma is not above 0.
    """
    names, _, number = pair.rpartition(":")
    first, *second = (name.strip() for name in names.split(","))
    if not first or len(second) != 1 or not second[0]:
        raise UserError(
            f"--correlate {pair}: expected two factors and sigma, as in shape,scale:0.2"
        )
    try:
        sigma = float(number)
    except ValueError:
        sigma = math.nan
    if not sigma > 0:
        raise UserError(
            f"--correlate {pair}: sigma is {number!r}, expected a number above 0, as in {names}:0.2"
        )
    if first == second[0]:
        raise UserError(f"--correlate {pair}: names {first} twice, expected two factors")
    return Correlation(first, second[0], sigma)


def assignments_of(option: str, text: str) -> tuple[str, dict[str, str]]:
    """Return what "name:setting=value,setting=value" says: the name, and values by setting.

    Raises:
        UserError: it is written otherwise, or names a setting twice.
    """
    name, _, pairs = text.partition(":")
    values = dict(pair.partition("=")[::2] for pair in pairs.split(","))
    if not name or not all(values) or not all(values.values()) or pairs.count("=") != len(values):
        raise UserError(
            f"{option} {text}: expected an objective and settings, as in"
            " infowgan-gp:steps=1200,learning_rate=1e-4"
        )
    return name, values


def plain(option: str, kind: Any, value: Any) -> Any:
    """Return a setting as JSON holds it: NumPy's numbers and those in tensors as Python's."""
    of = get_args(kind)
    if isinstance(kind, UnionType):  # of one kind and None
        return None if value is None else plain(option, of[0], value)
    try:
        if get_origin(kind) is tuple:
            if isinstance(value, str) or not hasattr(value, "__iter__"):
                raise TypeError(f"{option}: got {value!r}, expected several values")
            return tuple(plain(option, of[0], one) for one in value)
        if kind in (bool, int, float):
            return {bool: boolean, int: integer, float: real}[kind](option, value)
        if kind is str and isinstance(value, os.PathLike):
            return os.fspath(value)
        if kind is str and not isinstance(value, str):
            raise TypeError(f"{option}: got {value!r}, expected a name")
    except TypeError as error:
        raise UserError(str(error)) from None
    return value
