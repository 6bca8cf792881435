"""The packed store: a whole data set as one uint8 matrix, and the images it stands for."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any, ClassVar

import numpy as np
import torch

from fvae import philox
from fvae.errors import UserError
from fvae.philox import Philox, Stream

Indices = int | Sequence[int] | np.ndarray | torch.Tensor

# Above this size in bytes, a checksum is of a sample of rows.
_HASHED_WHOLE = 1 << 29
_SAMPLE = 1 << 14

# Row b holds the bits of byte b, lowest first. Looking rows up is the fastest way to unpack.
_BITS = ((torch.arange(256)[:, None] >> torch.arange(8)) & 1).to(torch.uint8)


@dataclass(frozen=True, eq=False)
class Store:
    """A data set whose image i has the mixed-radix digits of i as its factor classes, or labels.

    In a full grid the last factor varies fastest, as in a row-major array indexed by the factors.
    A set that is no full grid, where combinations are missing or repeated, has ``labels`` instead.

    Attributes:
        name: what the set is called in logs and reports.
        data: uint8 ``[N, bytes]``. A binary set is bit-packed: pixel p of the flattened CHW image
            is bit ``p % 8`` of byte ``p // 8``. Any other set holds the flattened CHW bytes.
        image_shape: (C, H, W) in pixels.
        binary: whether ``data`` is bit-packed.
        factor_names: one name for each of K factors; empty when the set has no known factors.
        factor_sizes: how many values each factor takes; their product is N. Empty where the set is
            no full grid.
        labels: int64 or float64 ``[N, K]``, row i the labels of image i in the units of the file,
            finite; None for a full grid and for a set without factors. They stay on the CPU.

    Raises:
        UserError: data, shape and factors do not fit together.
    """

    #: Whether images are made by ``rows`` when asked for; ``data`` is then not one row an image.
    on_demand: ClassVar[bool] = False

    name: str
    data: torch.Tensor
    image_shape: tuple[int, int, int]
    binary: bool
    factor_names: tuple[str, ...] = ()
    factor_sizes: tuple[int, ...] = ()
    labels: torch.Tensor | None = None

    def __post_init__(self) -> None:
        """Check that the fields fit together."""
        pixels = prod(self.image_shape)
        width = -(-pixels // 8) if self.binary else pixels
        if self.data.dtype != torch.uint8 or self.data.shape[1:] != (width,):
            raise UserError(
                f"store {self.name}: data is {list(self.data.shape)} {self.data.dtype}, expected "
                f"[N, {width}] torch.uint8 for images {list(self.image_shape)}"
            )
        if self.labels is not None:
            self._check_labels(self.labels)
        elif len(self.factor_names) != len(self.factor_sizes):
            raise UserError(
                f"store {self.name}: {len(self.factor_names)} factor names for "
                f"{len(self.factor_sizes)} factor sizes; give one name for each"
            )
        if self.factor_sizes and prod(self.factor_sizes) != len(self):
            raise UserError(
                f"store {self.name}: {len(self)} images, but factor sizes "
                f"{list(self.factor_sizes)} need {prod(self.factor_sizes)}"
            )

    def _check_labels(self, labels: torch.Tensor) -> None:
        if self.factor_sizes:
            raise UserError(f"store {self.name}: has factor sizes and labels; give one of them")
        wanted = (len(self), len(self.factor_names))
        if labels.shape != wanted or labels.dtype not in (torch.int64, torch.float64):
            raise UserError(
                f"store {self.name}: labels are {list(labels.shape)} {labels.dtype}, expected"
                f" {list(wanted)} torch.int64 or torch.float64, a column for each factor name"
            )
        if labels.device.type != "cpu" or not bool(labels.isfinite().all()):
            raise UserError(f"store {self.name}: labels are not finite numbers on the CPU")

    def __len__(self) -> int:
        """The number of images N."""
        return self.data.shape[0]

    @property
    def nbytes(self) -> int:
        """The size of the packed data in bytes."""
        return self.data.nbytes

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What tells this set from another: shape, count, kind and a checksum of the images.

        Labels do not count: they may come later, or from another file. The SHA-256 is of all that
        is packed up to 512 MB; above, of the first and the last row and of 16,384 rows between,
        the same in every set of that size.

        Returns:
            name, image_shape, count, binary and checksum, as JSON has them.
        """
        rows, count = self.data, len(self.data)
        if rows.nbytes > _HASHED_WHOLE:
            rng = Philox(0, device=rows.device)
            stream = Stream.SAMPLE.at(rng.lane)
            drawn = philox.integers(rng.seed, rng.step, stream, _SAMPLE, count)
            rows = rows[torch.cat([drawn.new_tensor([0, count - 1]), drawn])]
        digest = hashlib.sha256(rows.contiguous().cpu().numpy().data)
        digest.update(self._made_of())
        return {
            "name": self.name,
            "image_shape": list(self.image_shape),
            "count": len(self),
            "binary": self.binary,
            "checksum": digest.hexdigest(),
        }

    def _made_of(self) -> bytes:
        """What the images depend on beside ``data``."""
        return b""

    def to(self, device: torch.device | str) -> "Store":
        """The same store with its data on a device; the labels stay on the CPU.

        Args:
            device: where to; the data is copied only if it is elsewhere.
        """
        return replace(self, data=self.data.to(device))

    def rows(self, indices: torch.Tensor) -> torch.Tensor:
        """The packed images at the given indices.

        Args:
            indices: int64 ``[...]`` in 0..N-1, unchecked, on the store's device.

        Returns:
            uint8 ``[..., bytes]``, laid out as in ``data``.
        """
        return self.data[indices]

    def images(self, indices: Indices) -> torch.Tensor:
        """The images at the given indices, unpacked.

        Args:
            indices: whole numbers in 0..N-1, ``[n]``: a sequence, an array or a tensor.

        Returns:
            uint8 ``[n, C, H, W]`` on the store's device: 0/1 for a binary set, else 0..255.

        Raises:
            IndexError: an index is out of range.
            UserError: the indices are not whole numbers.
        """
        rows = self.rows(self._checked(indices).to(self.data.device))
        if self.binary:
            bits = torch.nn.functional.embedding(rows.int(), _BITS.to(rows.device))
            rows = bits.flatten(1)[:, : prod(self.image_shape)]
        return rows.reshape(-1, *self.image_shape)

    def factors(self, indices: Indices) -> torch.Tensor:
        """The factors of the images at the given indices: the mixed-radix digits, or the labels.

        Args:
            indices: whole numbers in 0..N-1, ``[n]``.

        Returns:
            ``[n, K]`` on the indices' device: int64, entry k in 0..factor_sizes[k]-1, or rows of
            ``labels`` in their dtype.

        Raises:
            IndexError: an index is out of range.
            UserError: the set has no factors, or the indices are not whole numbers.
        """
        if self.labels is not None:
            indices = self._checked(indices)
            return self.labels[indices.cpu()].to(indices.device)
        self._need_factors()
        rest, digits = self._checked(indices), []
        for size in reversed(self.factor_sizes):
            digits.append(rest % size)
            rest = rest // size
        return torch.stack(digits[::-1], dim=1)

    def index(self, classes: Sequence[Sequence[int]] | np.ndarray | torch.Tensor) -> torch.Tensor:
        """The index of the image that has the given factor classes: the inverse of ``factors``.

        Args:
            classes: whole numbers ``[n, K]``, entry k in 0..factor_sizes[k]-1.

        Returns:
            int64 ``[n]``.

        Raises:
            IndexError: a class is out of range.
            UserError: the set is no full grid of factors, or classes has another shape or is not
                of whole numbers.
        """
        self._need_factors()
        classes = _whole_numbers(classes, "classes")
        if classes.dim() != 2 or classes.shape[1] != len(self.factor_sizes):
            raise UserError(
                f"classes: shape {list(classes.shape)}, expected [n, {len(self.factor_sizes)}], "
                f"one column for each of {', '.join(self.factor_names)}"
            )
        index = classes.new_zeros(len(classes))
        for name, size, column in zip(self.factor_names, self.factor_sizes, classes.T, strict=True):
            _check_range(column, size, f"class of {name}")
            index = index * size + column
        return index

    def _checked(self, indices: Indices) -> torch.Tensor:
        indices = _whole_numbers(indices, "indices").reshape(-1)
        _check_range(indices, len(self), "index")
        return indices

    def _need_factors(self) -> None:
        if self.labels is not None:
            raise UserError(
                f"data set {self.name} is no full grid: several images or none may have the same"
                " factors; look in its labels"
            )
        if not self.factor_sizes:
            raise UserError(
                f"data set {self.name} has no known factors; use dSprites or 3D Shapes for this"
            )


def _whole_numbers(values: object, name: str) -> torch.Tensor:
    values = torch.as_tensor(values)
    if values.numel() == 0:  # an empty list becomes a float tensor
        return values.long()
    if values.dtype.is_floating_point or values.dtype.is_complex or values.dtype == torch.bool:
        raise UserError(f"{name}: got {values.dtype}, expected whole numbers such as torch.int64")
    return values.long()


def _check_range(values: torch.Tensor, size: int, name: str) -> None:
    wrong = values[(values < 0) | (values >= size)]
    if len(wrong):
        raise IndexError(f"{name} {wrong[0].item()} is out of range 0..{size - 1}")
