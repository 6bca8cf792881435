"""A store that holds layers of images rather than images."""

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch

from fvae.data.store import Store
from fvae.errors import UserError


@dataclass(frozen=True, eq=False)
class LayeredStore(Store):
    """A data set whose images are sums of layers, added up when they are asked for.

    The first ``parts`` factors colour one part of the image each; the others are its geometry. With
    classes c_1 .. c_parts of the first, and g the row-major number of the others' classes,

        image = sum over p of data[g, p, c_p].

    Attributes:
        data: uint8 ``[G * parts * colours, C * H * W]``, row-major in geometry, part and colour; no
            sum exceeds 255.
        parts: how many of the leading factors are colours; they have equally many classes.
    """

    on_demand: ClassVar[bool] = True
    parts: int = 3

    def __post_init__(self) -> None:
        """Check that the fields fit together."""
        super().__post_init__()
        colours, geometry = self.factor_sizes[: self.parts], self.factor_sizes[self.parts :]
        needed = prod(geometry) * self.parts * max(colours, default=0)
        if len(set(colours)) != 1 or len(self.data) != needed:
            raise UserError(
                f"store {self.name}: {len(self.data)} layers of {self.parts} parts, but factor "
                f"sizes {list(self.factor_sizes)} need {needed}"
            )

    def __len__(self) -> int:
        """The number of images N."""
        return prod(self.factor_sizes)

    def rows(self, indices: torch.Tensor) -> torch.Tensor:
        """The images at the given indices as flattened CHW bytes.

        Args:
            indices: int64 ``[..., n]`` in 0..N-1, unchecked, on the store's device.

        Returns:
            uint8 ``[..., n, C * H * W]``. On a GPU nothing waits for the host.
        """
        colours = self.factor_sizes[0]
        geometries = prod(self.factor_sizes[self.parts :])
        rest, geometry = indices // geometries, indices % geometries
        total = None
        for part in reversed(range(self.parts)):
            layer = (geometry * self.parts + part) * colours + rest % colours
            rest = rest // colours
            pixels = self.data.index_select(0, layer.reshape(-1))
            total = pixels if total is None else total.add_(pixels)
        assert total is not None  # there is a part at least, or no factor sizes would fit
        return total.view(*indices.shape, -1)

    def _made_of(self) -> bytes:
        return f"{self.factor_sizes} {self.parts}".encode()
