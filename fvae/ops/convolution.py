"""Convolutions between the first and the last layer of an autoencoder: the raw steps.

They make gradients, and have none themselves: :mod:`fvae.models.tiles` differentiates with them.
"""

import torch
from torch import Tensor

from fvae.ops.checks import check_float
from fvae.ops.registry import BACKENDS, implementation

#: What the channels on both sides are multiples of.
_CHANNELS = 16


def conv4x4(
    x: Tensor, weight: Tensor, bias: Tensor, relu: bool = False, transposed: bool = False,
    backend: str | None = None,
) -> Tensor:  # fmt: skip
    """conv2d(x) + bias, or conv_transpose2d(x) + bias, or the ReLU of either.

    Kernel 4 x 4, stride 2, padding 1.

    Args:
        x: ``[B, 2 H, 2 W, C]``; of a transposed one ``[B, H, W, O]``. The extension computes in
            bfloat16 and float32, the reference in any dtype.
        weight: ``[O, 4, 4, C]`` of either kind, of x's dtype: PyTorch's, channels last.
        bias: ``[O]``; of a transposed one ``[C]``.
        relu: whether the output goes through a ReLU.
        transposed: which of the two.
        backend: None picks the faster; otherwise a name in :data:`BACKENDS`. The extension has it
            of C and O that are multiples of 16; in bfloat16 it is fast where
            :func:`has_matrix_units`, in float32 where there are vectors of 16 floats. There tiles
            of 2 x 2 small pixels take 9 products for 16 (Winograd 1980), so that what is not
            finite spreads over its tile.

    Returns:
        ``[B, H, W, O]``; of a transposed one ``[B, 2 H, 2 W, C]``. Of x's dtype; sums are made in
        float32.

    Raises:
        TypeError: x is not floating point.
        ValueError: a shape does not fit, or the backend does not exist.
        RuntimeError: the extension does not have such channels or such a dtype.
    """
    check_float("x", x, (4,), "[B, H, W, C]")
    _, height, width, channels = x.shape
    out = weight.shape[3 if transposed else 0 :][:1]
    wanted = (channels, 4, 4, *out) if transposed else (*out, 4, 4, channels)
    if weight.shape != wanted or bias.shape != out:
        expected = (
            f"[{channels}, 4, 4, C] and [C]" if transposed else f"[O, 4, 4, {channels}] and [O]"
        )
        raise ValueError(
            f"weight and bias: got {list(weight.shape)} and {list(bias.shape)}, expected {expected}"
        )
    if not transposed and (height % 2 or width % 2):
        raise ValueError(f"x: got images of {height} x {width}, expected even sides")
    x, weight, bias = (t.contiguous() for t in (x, weight, bias))
    # Until the extension is there its first use builds it, and what is compiled has it.
    picks = backend is None and x.device.type == "cpu" and not torch.compiler.is_compiling()
    if picks and "cpp" in BACKENDS and not conv4x4_pays(x.dtype, channels, *out):
        backend = "reference"
    return implementation("conv4x4", backend)(x, weight, bias, relu, transposed)


def conv4x4_pays(dtype: torch.dtype, *channels: int) -> bool:
    """Whether the extension has :func:`conv4x4` of such numbers and channels, and fast here."""
    if "cpp" not in BACKENDS or any(c % _CHANNELS or not c for c in channels):
        return False
    if dtype == torch.float32:
        return has_wide_vectors()
    return dtype == torch.bfloat16 and has_matrix_units()


def has_wide_vectors() -> bool:
    """Whether this processor has vectors of 16 floats (AVX-512)."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


def has_matrix_units() -> bool:
    """Whether this processor multiplies blocks of bfloat16 matrices at once (Intel's AMX)."""
    run = BACKENDS.get("cpp", {}).get("has_matrix_units")
    return bool(run and run(torch.empty(0)))
