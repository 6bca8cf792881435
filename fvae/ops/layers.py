"""What is left of a layer when its product is done, and its backward pass: the raw steps.

They make gradients, and have none themselves: :mod:`fvae.models.layers` differentiates with them.
"""

import torch
from torch import Tensor

from fvae.ops.checks import FLOATS, check_float
from fvae.ops.registry import implementation

#: Products of one matrix multiplication up to which a layer's backward pass is one kernel on a GPU:
#: beyond, the libraries' own products are worth their launches.
FEW_PRODUCTS = 1 << 28


def few_products(x: Tensor, weight: Tensor) -> bool:
    """Whether :func:`linear_backward` is to be one kernel, for inputs x and a weight."""
    return x.numel() * weight.shape[-2] <= FEW_PRODUCTS


def _check_matrix(name: str, x: Tensor, shape: tuple[int, ...], what: str) -> None:
    if x.shape != shape:
        raise ValueError(f"{name}: got {list(x.shape)}, expected {list(shape)}, {what}")


def _check_dtype(dtype: torch.dtype) -> None:
    if dtype not in FLOATS:
        raise TypeError(f"dtype: got {dtype}, expected float32, bfloat16 or float16")


def activation_backward(
    grad: Tensor,
    y: Tensor,
    slope: float,
    dtype: torch.dtype = torch.float32,
    factor: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """delta = grad, but slope * grad where y <= 0; factor * delta; and its sum over each channel.

    The backward pass of ``y = act(product + bias)`` with a ReLU or leaky ReLU: delta is the
    product's gradient, the sum the bias's. The sum is made in float32, in the same order at every
    run and for any number of threads.

    Args:
        grad: gradient of y, of y's shape.
        y: activations, ``[B, C, H, W]``, ``[rows, C]`` or ``[M, rows, C]``; float32, bfloat16 or
            float16.
        slope: of the activation for negative input: 0 for ReLU; 1 for none, where only the sum is
            made.
        dtype: of the sum, the bias's.
        factor: of each row, ``[rows]`` or ``[M, rows]``, float32: the sum is then that of factor *
            delta. Not for images.
        backend: None picks; otherwise a name in :data:`BACKENDS`.

    Returns:
        delta and factor * delta, of y's shape and dtype, images channels_last, each an empty tensor
        where slope is 1 or there is no factor; and the sum, ``[C]`` or ``[M, C]``.

    Raises:
        TypeError: y is not floating point, or dtype is not.
        ValueError: a shape does not fit, or the backend does not exist.
    """
    check_float("y", y, (2, 3, 4), "[B, C, H, W], [rows, C] or [M, rows, C]")
    _check_matrix("grad", grad, y.shape, "y's shape")
    _check_dtype(dtype)
    if factor is not None:
        if y.dim() == 4:
            raise ValueError("factor: got one for images, expected None")
        _check_matrix("factor", factor, y.shape[:-1], "one for each row of y")
    return implementation("activation_backward", backend)(grad, y, slope, dtype, factor)


def bias_activation(
    y: Tensor, bias: Tensor | None, slope: float, backend: str | None = None
) -> None:
    """y = act(y + bias), in place: what is left of a layer when its product is done.

    Args:
        y: ``[B, C, H, W]``, ``[rows, C]`` or ``[M, rows, C]``; float32, bfloat16 or float16.
        bias: ``[C]`` or ``[M, C]``; None adds nothing.
        slope: of the activation for negative input: 0 for ReLU, 1 for none.
        backend: None picks; otherwise a name in :data:`BACKENDS`.

    Raises:
        TypeError: y is not floating point.
        ValueError: a shape does not fit, or the backend does not exist.
    """
    check_float("y", y, (2, 3, 4), "[B, C, H, W], [rows, C] or [M, rows, C]")
    if bias is not None:
        channels = y.shape[1:2] if y.dim() == 4 else (*y.shape[:-2], y.shape[-1])
        _check_matrix("bias", bias, channels, "one for each channel of y")
    with torch.no_grad():
        implementation("bias_activation", backend)(y, bias, slope)
    if not torch.compiler.is_compiling():
        torch.autograd.graph.increment_version(y)


def linear_backward(
    grad: Tensor,
    y: Tensor,
    x: Tensor,
    weight: Tensor,
    slope: float,
    dtype: torch.dtype = torch.float32,
    need_x: bool = True,
    factor: Tensor | None = None,
    need_weight: bool = True,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias of ``y = act(x weight^T + bias)``, in one kernel on a GPU.

    With delta as in :func:`activation_backward`, ``grad_x = delta weight``, ``grad_weight =
    (factor delta)^T x`` and ``grad_bias = sum of the rows of factor delta``.

    Args:
        grad: gradient of y, ``[rows, out]`` or ``[M, rows, out]``.
        y: the layer's output; not looked at where slope is 1.
        x: its input, ``[rows, in]`` or ``[M, rows, in]``; float32, bfloat16 or float16.
        weight: ``[out, in]`` or ``[M, out, in]``.
        slope: of the activation for negative input: 0 for ReLU, 1 for none.
        dtype: of the gradients of weight and bias.
        need_x: whether to make grad_x.
        factor: of each row, ``[rows]`` or ``[M, rows]``, float32; None is 1.
        need_weight: whether to make grad_weight and grad_bias.
        backend: None picks; otherwise a name in :data:`BACKENDS`.

    Returns:
        grad_x, of x's shape and dtype; grad_weight; grad_bias; each empty where it is not needed.

    Raises:
        TypeError: x is not floating point, or dtype is not.
        ValueError: a shape does not fit, nothing is needed, or the backend does not exist.
    """
    check_float("x", x, (2, 3), "[rows, in] or [M, rows, in]")
    _check_matrix("weight", weight, (*x.shape[:-2], *weight.shape[-2:-1], x.shape[-1]),
                  "one column for each of x")  # fmt: skip
    shape = (*x.shape[:-1], weight.shape[-2])
    _check_matrix("grad", grad, shape, "the layer's output")
    _check_matrix("y", y, shape, "the layer's output")
    _check_dtype(dtype)
    if factor is not None:
        _check_matrix("factor", factor, x.shape[:-1], "one for each row of x")
    if not (need_x or need_weight):
        raise ValueError("need_weight: got False, as need_x, expected one of them True")
    run = implementation("linear_backward", backend)
    return run(grad, y, x, weight, slope, dtype, need_x, factor, need_weight)
