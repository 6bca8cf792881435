"""Numbers as people hold them: Python's, NumPy's scalars, tensors and arrays of no dimension."""

import numbers
import operator
from typing import Any


def integer(name: str, value: Any) -> int:
    """Return a whole number as Python's int, whatever holds it.

    Raises:
        TypeError: it is none: a bool, a float (2.0, too), a string, several numbers.
    """
    if type(value) is int:
        return value
    if not _is_bool(value) and not getattr(value, "ndim", 0):
        try:
            return operator.index(value)
        except (TypeError, RuntimeError):  # of a tensor that holds a float; under torch.func
            pass
    raise TypeError(f"{name}: got {_shown(value)}, expected an integer")


def real(name: str, value: Any) -> float | int:
    """Return a real number as Python's float (an int stays one), whatever holds it.

    Raises:
        TypeError: it is none: a bool, a string, a complex number, several numbers.
    """
    if type(value) in (float, int):
        return value
    single = isinstance(value, numbers.Real) or getattr(value, "shape", None) == ()
    if single and not _is_bool(value):
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError):
            pass
    raise TypeError(f"{name}: got {_shown(value)}, expected a number")


def boolean(name: str, value: Any) -> bool:
    """Return a truth value as Python's bool, whatever holds it.

    Raises:
        TypeError: it is none, such as 1 or "yes".
    """
    if _is_bool(value) and not getattr(value, "ndim", 0):
        return bool(value)
    raise TypeError(f"{name}: got {_shown(value)}, expected True or False")


def _shown(value: Any) -> str:
    """The value on one line: an array would take many."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool")
