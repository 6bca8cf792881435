"""Factor classes that somebody asks a drawing for."""

from collections.abc import Sequence

import numpy as np

from fvae.errors import UserError


def checked_classes(classes: object, names: Sequence[str], sizes: Sequence[int]) -> np.ndarray:
    """The classes as int64 ``[n, K]``.

    Args:
        classes: whole numbers ``[n, K]``, column k in 0..sizes[k]-1.
        names: of the K factors, for the error's text.
        sizes: how many values each factor takes.

    Raises:
        UserError: classes has another shape, is not of whole numbers or is out of range.
    """
    classes = np.asarray(classes)
    if classes.ndim != 2 or classes.shape[1] != len(sizes):
        raise UserError(
            f"classes: shape {list(classes.shape)}, expected [n, {len(sizes)}], "
            f"one column for each of {', '.join(names)}"
        )
    if classes.dtype.kind not in "iu" and len(classes):
        raise UserError(f"classes: got {classes.dtype}, expected whole numbers such as int64")
    for name, size, column in zip(names, sizes, classes.T, strict=True):
        wrong = column[(column < 0) | (column >= size)]
        if len(wrong):
            raise UserError(f"classes: {name} {wrong[0]} is out of range 0..{size - 1}")
    return classes.astype(np.int64)
