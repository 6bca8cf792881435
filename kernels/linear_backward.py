"""linear_backward: the gradients of a linear layer with its activation in one launch."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fvae.kernels import tiles
from fvae.kernels.launch import interpreted, jit, launch, only_planned, strides_3d


@triton.jit
def _delta(grad_ptr, y_ptr, slope, r, n, rows, outputs, g_b, g_n, y_b, y_n, ACT: tl.constexpr):
    """Gradient of the product at rows r and outputs n, float32."""
    inside = (r < rows) & (n < outputs)
    delta = tl.load(grad_ptr + r * g_b + n * g_n, mask=inside, other=0.0).to(tl.float32)
    if ACT:
        y = tl.load(y_ptr + r * y_b + n * y_n, mask=inside, other=0.0).to(tl.float32)
        delta = tl.where(y <= 0, slope * delta, delta)
    return delta


@triton.jit
def _dot(a, b, total, type_ptr, PRECISION: tl.constexpr, WIDE: tl.constexpr):
    """total + a b, of numbers rounded to the layer's type."""
    if not WIDE:
        a, b = a.to(type_ptr.dtype.element_ty), b.to(type_ptr.dtype.element_ty)
    return tl.dot(a, b, total, input_precision=PRECISION)


@triton.jit
def weight_gradient(
    grad_ptr, y_ptr, x_ptr, factor_ptr, slope, n, k, rows, outputs, inputs,
    g_b, g_n, y_b, y_n, x_b, x_k, f_b,
    ACT: tl.constexpr, STEP: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """(factor delta)^T x at outputs n and inputs k; factor delta at n, whose sum is the bias's."""
    step = tl.arange(0, STEP).to(tl.int64)
    total = tl.zeros([n.shape[0], k.shape[1]], tl.float32)
    bias = tl.zeros([n.shape[0], STEP], tl.float32)
    at = 0  # `while`: as in counters.py
    while at < rows:
        r = at + step[None, :]
        delta = _delta(grad_ptr, y_ptr, slope, r, n, rows, outputs, g_b, g_n, y_b, y_n, ACT)
        if factor_ptr is not None:
            delta *= tl.load(factor_ptr + r * f_b, mask=r < rows, other=0.0)
        bias += delta
        r = at + step[:, None]
        inside = (r < rows) & (k < inputs)
        x = tl.load(x_ptr + r * x_b + k * x_k, mask=inside, other=0.0).to(tl.float32)
        total = _dot(delta, x, total, x_ptr, PRECISION, WIDE)
        at += STEP
    return total, bias


@jit()
def linear_backward_kernel(
    grad_ptr,  # [M, B, N]
    y_ptr,  # [M, B, N]
    x_ptr,  # [M, B, K]
    weight_ptr,  # [M, N, K]
    factor_ptr,  # [M, B], or None
    grad_x_ptr,  # [M, B, K] contiguous, or None
    grad_weight_ptr,  # [M, N, K] contiguous, or None
    grad_bias_ptr,  # [M, N] contiguous, or None
    slope,
    rows,  # B
    outputs,  # N
    inputs,  # K
    of_x,  # programs along axis 0 that make grad_x; the others make grad_weight
    g_m, g_b, g_n,
    y_m, y_b, y_n,
    x_m, x_b, x_k,
    w_m, w_n, w_k,
    f_m, f_b,
    ACT: tl.constexpr,  # there is an activation
    TILE: tl.constexpr,  # rows and columns of a tile
    STEP: tl.constexpr,  # products of an element in one go
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,  # multiply in float32 whatever the type
):  # fmt: skip
    """grad_x = delta W; grad_W = (factor delta)^T x; grad_b = its sum over the rows."""
    program, m = tl.program_id(0), tl.program_id(1).to(tl.int64)
    columns = tl.cdiv(inputs, TILE)
    grad_ptr += m * g_m
    y_ptr += m * y_m
    x_ptr += m * x_m
    weight_ptr += m * w_m
    one, step = tl.arange(0, TILE).to(tl.int64), tl.arange(0, STEP).to(tl.int64)
    if program < of_x:
        if grad_x_ptr is not None:
            r = (program // columns).to(tl.int64) * TILE + one[:, None]
            k = (program % columns).to(tl.int64) * TILE + one[None, :]
            total = tl.zeros([TILE, TILE], tl.float32)
            at = 0  # `while`: as in counters.py
            while at < outputs:
                n = at + step[None, :]
                delta = _delta(
                    grad_ptr, y_ptr, slope, r, n, rows, outputs, g_b, g_n, y_b, y_n, ACT
                )  # fmt: skip
                n = at + step[:, None]
                inside = (n < outputs) & (k < inputs)
                w = tl.load(weight_ptr + n * w_n + k * w_k, mask=inside, other=0.0).to(tl.float32)
                total = _dot(delta, w, total, weight_ptr, PRECISION, WIDE)
                at += STEP
            to_x_ptr = grad_x_ptr + (m * rows + r) * inputs + k
            inside = (r < rows) & (k < inputs)
            tl.store(to_x_ptr, total.to(grad_x_ptr.dtype.element_ty), mask=inside)
    elif grad_weight_ptr is not None:
        tile = program - of_x
        n = (tile // columns).to(tl.int64) * TILE + one[:, None]
        k = (tile % columns).to(tl.int64) * TILE + one[None, :]
        of_m_ptr = None if factor_ptr is None else factor_ptr + m * f_m
        total, bias = weight_gradient(
            grad_ptr, y_ptr, x_ptr, of_m_ptr, slope, n, k, rows, outputs, inputs,
            g_b, g_n, y_b, y_n, x_b, x_k, f_b, ACT, STEP, PRECISION, WIDE,
        )  # fmt: skip
        out_ptr = grad_weight_ptr + (m * outputs + n) * inputs + k
        inside = (n < outputs) & (k < inputs)
        tl.store(out_ptr, total.to(grad_weight_ptr.dtype.element_ty), mask=inside)
        if tile % columns == 0:
            unit = (tile // columns).to(tl.int64) * TILE + one
            units_ptr = grad_bias_ptr + m * outputs + unit
            sums = tl.sum(bias, axis=1)
            tl.store(units_ptr, sums.to(grad_bias_ptr.dtype.element_ty), mask=unit < outputs)


def precision(x: Tensor) -> str:
    """How float32 numbers are multiplied: as PyTorch multiplies them."""
    if x.dtype != torch.float32 or only_planned():
        return "ieee"
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"


def linear_backward(
    grad: Tensor, y: Tensor, x: Tensor, weight: Tensor, slope: float, dtype: torch.dtype,
    need_x: bool, factor: Tensor | None = None, need_weight: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Triton backend of ``fvae::linear_backward``."""
    models, rows, inputs = (1,) * (3 - x.dim()) + x.shape
    outputs = weight.shape[-2]

    def empty(shape: torch.Size, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=x.device)

    grad_x = empty(x.shape, x.dtype) if need_x else None
    grad_weight = empty(weight.shape, dtype) if need_weight else None
    grad_bias = empty(weight.shape[:-1], dtype) if need_weight else None
    tile = tiles.LINEAR_TILE
    columns = triton.cdiv(inputs, tile)
    of_x = triton.cdiv(rows, tile) * columns if need_x else 0
    of_weight = triton.cdiv(outputs, tile) * columns if need_weight else 0
    factor_strides = (0, 0) if factor is None else (0,) * (2 - factor.dim()) + factor.stride()
    launch(
        linear_backward_kernel,
        (of_x + of_weight, models),
        (
            grad, y, x, weight, factor, grad_x, grad_weight, grad_bias, float(slope), rows,
            outputs, inputs, of_x, *strides_3d(grad), *strides_3d(y), *strides_3d(x),
            *strides_3d(weight), *factor_strides,
        ),
        ACT=slope != 1,
        TILE=tile,
        STEP=tiles.LINEAR_STEP,
        PRECISION=precision(x),
        # The interpreter multiplies bfloat16 wrongly.
        WIDE=interpreted() or x.dtype == torch.float32,
        num_warps=tiles.WARPS,
    )  # fmt: skip
    found = [grad_x, grad_weight, grad_bias]
    types = [x.dtype, dtype, dtype]
    a, b, c = (
        x.new_empty(0, dtype=kind) if grad is None else grad
        for grad, kind in zip(found, types, strict=True)
    )
    return a, b, c
