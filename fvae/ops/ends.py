"""The first and the last convolution of an autoencoder of images: the raw steps.

Few channels on one side of a convolution leave a library's kernels little to do at a time. They
make gradients, and have none themselves: :mod:`fvae.models.ends` differentiates with them.
"""

from torch import Tensor

from fvae.ops.checks import check_float
from fvae.ops.registry import implementation


def packed_bits(x: Tensor, backend: str | None = None) -> Tensor | None:
    """Images of zeros and ones as bits; None where a pixel is neither.

    Args:
        x: ``[B, 1, S, S]``, S S a multiple of 8; float32, bfloat16 or float16.
        backend: None picks; otherwise a name in :data:`BACKENDS`.

    Returns:
        uint8 ``[B S S / 8]``, the first pixel in a byte's highest bit.

    Raises:
        TypeError: x is not floating point.
        ValueError: a shape does not fit, or the backend does not exist.
    """
    check_float("x", x, (4,), "[B, 1, S, S]")
    if x.numel() % 8:
        raise ValueError(f"x: got {x.numel()} pixels, expected a multiple of 8")
    bits, all_bits = implementation("packed_bits", backend)(x)
    return bits if bool(all_bits) else None


def conv_from_bits(
    bits: Tensor, side: int, weight: Tensor, bias: Tensor, backend: str | None = None
) -> Tensor:
    """ReLU(conv2d(x) + bias) of images of bits; kernel 4 x 4, stride 2, padding 1.

    Under a kernel are two bytes, for each of which a table has the sum of the weights: two numbers
    are added for each output.

    Args:
        bits: uint8, the images' rows one after another, ``[B S S / 8]``.
        side: S, a multiple of 8.
        weight: ``[C, 1, 4, 4]``; float32, bfloat16 or float16.
        bias: ``[C]``.
        backend: None picks; otherwise a name in :data:`BACKENDS`.

    Returns:
        ``[B, S / 2, S / 2, C]``, of weight's dtype; sums are made in float32.

    Raises:
        TypeError: weight is not floating point.
        ValueError: a shape does not fit, or the backend does not exist.
    """
    check_float("weight", weight, (4,), "[C, 1, 4, 4]")
    if weight.shape[1:] != (1, 4, 4) or bias.shape != weight.shape[:1]:
        raise ValueError(
            f"weight and bias: got {list(weight.shape)} and {list(bias.shape)}, expected"
            " [C, 1, 4, 4] and [C]"
        )
    if side < 8 or side % 8 or bits.numel() % (side * side // 8):
        raise ValueError(
            f"bits: got {bits.numel()} bytes for images of {side} x {side}, expected"
            " side * side / 8 of each image, the side a multiple of 8"
        )
    return implementation("conv_from_bits", backend)(bits, side, weight, bias)


def conv_to_pixels(
    x: Tensor, weight: Tensor, bias: Tensor, relu: bool = False, backend: str | None = None
) -> Tensor:
    """conv_transpose2d(x) + bias, or that of ReLU(x); kernel 4 x 4, stride 2, padding 1.

    Args:
        x: ``[B, H, W, C]``; float32, bfloat16 or float16.
        weight: ``[C, O, 4, 4]``, of x's dtype.
        bias: ``[O]``.
        relu: whether x goes through a ReLU first.
        backend: None picks; otherwise a name in :data:`BACKENDS`.

    Returns:
        ``[B, 2 H, 2 W, O]``, of x's dtype; sums are made in float32.

    Raises:
        TypeError: x is not floating point.
        ValueError: a shape does not fit, or the backend does not exist.
    """
    check_float("x", x, (4,), "[B, H, W, C]")
    colours = weight.shape[1:2]
    if weight.shape != (x.shape[-1], *colours, 4, 4) or bias.shape != colours:
        raise ValueError(
            f"weight and bias: got {list(weight.shape)} and {list(bias.shape)}, expected"
            f" [{x.shape[-1]}, O, 4, 4] and [O]"
        )
    return implementation("conv_to_pixels", backend)(x, weight, bias, relu)
