"""What the networks' convolutions are: transposed ones, and the form of either kind."""

from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn


class ConvTranspose2d(nn.ConvTranspose2d):
    """Transposed convolution whose bias is added apart.

    oneDNN's bf16 gradient of a transposed convolution's bias costs more than all the rest of the
    layer's backward pass; as a separate addition it is a plain sum.
    """

    bias: Tensor  # always there
    padding: tuple[int, ...]  # never by name
    output_padding: tuple[int, ...]

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # one output size
        """Return the layer's output, ``[B, out, 2H, 2W]``, or one row and column more."""
        y = F.conv_transpose2d(
            x, self.weight, None, self.stride, self.padding, self.output_padding, self.groups
        )
        return y.add_(self.bias.to(y.dtype)[:, None, None])


class Convolution(NamedTuple):
    """What a convolution is beside its weights."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    output_padding: tuple[int, ...] | None  # None: not a transposed one
    groups: int = 1

    @classmethod
    def of(cls, layer: nn.Module, groups: int = 1) -> "Convolution":
        """Return the form of a layer."""
        one: Any = layer
        transposed = isinstance(layer, nn.ConvTranspose2d)
        return cls(one.stride, one.padding, one.output_padding if transposed else None, groups)
