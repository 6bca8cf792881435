"""What the networks' convolutions are: transposed ones, and the form of either kind."""

from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn


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


def halves_or_doubles(x: Tensor, weight: Tensor, form: Convolution) -> bool:
    """Whether a layer is a plain one of 4 x 4, stride 2 and padding 1, of images on a CPU."""
    usual = form.stride == (2, 2) and form.padding == (1, 1) and form.groups == 1
    usual = usual and weight.shape[2:] == (4, 4) and form.output_padding in (None, (0, 0))
    images = x.dim() == 4 and x.numel() > 0
    return usual and images and x.device.type == weight.device.type == "cpu"


def rows_of(images: Tensor) -> Tensor:
    """[B, C, H, W] as [B, H, W, C]; without a copy where they are channels last."""
    return images.permute(0, 2, 3, 1).contiguous()


def images_of(rows: Tensor) -> Tensor:
    """[B, H, W, C] as [B, C, H, W], channels last."""
    return rows.permute(0, 3, 1, 2)


def conv_transpose2d(x: Tensor, weight: Tensor, bias: Tensor, form: Convolution) -> Tensor:
    """A transposed convolution whose bias is added apart.

    oneDNN's bf16 gradient of a transposed convolution's bias costs more than all the rest of the
    layer's backward pass; as a separate addition it is a plain sum.
    """
    assert form.output_padding is not None
    y = F.conv_transpose2d(
        x, weight, None, form.stride, form.padding, form.output_padding, form.groups
    )
    return y.add_(bias.to(y.dtype)[:, None, None])


class ConvTranspose2d(nn.ConvTranspose2d):
    """The layer of :func:`conv_transpose2d`."""

    bias: Tensor  # always there

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # one output size
        """Return the layer's output, ``[B, out, 2H, 2W]``, or one row and column more."""
        return conv_transpose2d(x, self.weight, self.bias, Convolution.of(self, self.groups))
