"""The discriminator's two uses in one backward pass.

Total correlation estimate and discriminator loss depend on the logits only through s = l0 - l1,
and for a fixed sample the signal that flows back through the network is linear in dL/ds, one
number a row. So one chain of deltas with unit upstream gradient serves both players:

* ``d tc / d z`` is the delta at the input, times 1/B, on the rows of z;
* the gradient of each weight is ``(c * delta)^T a``, with ``c = d disc_loss / d s`` of each row.

tc sends its gradient to z alone and disc_loss to the weights alone: adding both to one loss and
calling backward once trains both players, with no retained graph and no leak between them.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fvae import ops
from fvae.models.vae import LEAKY_SLOPE, Discriminator

# oneDNN's float32 matrix product, which PyTorch keeps for its compiler; absent in some builds.
_ONEDNN_LINEAR = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x @ weight.T + bias, for one matrix or for each of M.

    In float32 on a CPU PyTorch multiplies with MKL, which on an AMD EPYC takes twice the time of
    oneDNN.
    """
    if x.dim() == 3:
        if x.device.type == "cpu" and x.dtype == torch.float32:
            biases: Iterable[Tensor | None] = [None] * len(x) if bias is None else bias
            return torch.stack([_linear(*one) for one in zip(x, weight, biases, strict=True)])
        y = weight.mT
        return x @ y if bias is None else torch.baddbmm(bias.unsqueeze(-2), x, y)
    if _ONEDNN_LINEAR and x.device.type == "cpu" and x.dtype == torch.float32:
        return _ONEDNN_LINEAR(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


class _SharedBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, z_perm, dtype, backend, *parameters):
        weights = [w.to(dtype) for w in parameters[0::2]]
        biases = [b.to(dtype) for b in parameters[1::2]]
        activations = [torch.cat((z, z_perm), dim=-2).to(dtype)]
        for w, b in zip(weights[:-1], biases[:-1], strict=True):
            y = _linear(activations[-1], w, b)
            activations.append(F.leaky_relu_(y, LEAKY_SLOPE))
        logits = _linear(activations[-1], weights[-1], biases[-1])
        run = ops.implementation("logit_ratio", backend)
        tc, disc_loss, accuracy, slope_z, slope_perm = run(*logits.chunk(2, dim=-2))
        ctx.save_for_backward(slope_z, slope_perm, *activations, *weights)
        ctx.z_dtype = z.dtype
        ctx.mark_non_differentiable(accuracy)
        return tc, disc_loss, accuracy

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_tc, grad_loss, _):
        slope_z, slope_perm, *saved = ctx.saved_tensors
        count = len(saved) // 2
        activations, weights = saved[:count], saved[count:]
        rows, dtype = slope_z.shape[-1], weights[0].dtype
        slope = torch.cat((slope_z, slope_perm), dim=-1) * grad_loss.unsqueeze(-1)
        slope = slope.to(dtype).unsqueeze(-1)
        grads: list[Tensor] = []

        # The last layer's delta of s = l0 - l1 is +1 for logit 0 and -1 for logit 1.
        one = torch.ones_like(slope)
        delta = torch.cat((one, -one), dim=-1)
        for i in reversed(range(count)):
            scaled = slope * delta
            grads += [
                scaled.sum(-2, dtype=torch.float32),
                _linear(scaled.mT, activations[i].mT).float(),
            ]
            if i == 0:
                break
            # Of a leaky ReLU the output has the sign of the input.
            delta = torch.ops.aten.leaky_relu_backward(
                _linear(delta, weights[i].mT), activations[i], LEAKY_SLOPE, True
            )
        grad_z = None
        if ctx.needs_input_grad[0]:
            grad_z = _linear(delta[..., :rows, :], weights[0].mT).to(ctx.z_dtype)
            grad_z *= (grad_tc / rows)[..., None, None]
        return grad_z, None, None, None, *reversed(grads)


def two_players(
    discriminator: nn.Module, z: Tensor, z_perm: Tensor, backend: str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """tc, disc_loss and accuracy, where tc reaches z alone and disc_loss the weights alone.

    Args:
        discriminator: any module from codes ``[B, d]`` to logits ``[B, 2]`` (0 is "drawn from
            q(z)", 1 is "permuted"). :class:`fvae.models.vae.Discriminator` takes one forward and
            one backward pass for both players; another module takes the usual two.
        z: codes of the batch, ``[B, d]`` float32 or bfloat16; ``[M, B, d]`` where the
            discriminator is M of them, of :func:`fvae.models.stacked.stack`.
        z_perm: permuted codes, of z's shape; receives no gradient.
        backend: backend of :func:`fvae.ops.logit_ratio`.

    Returns:
        tc and disc_loss (nats) and accuracy (0 to 1), each a float32 scalar or ``[M]``.

    Raises:
        ValueError: the shapes of z and z_perm differ, or z has another number of dimensions.

    Source: Kim & Mnih 2018, Algorithm 2.
    """
    ours = discriminator if type(discriminator) is Discriminator else None
    dims = 2
    if ours is not None:
        first: Any = ours.layers[0]  # a linear layer, of one model or of M
        dims = first.weight.dim()
    if z.dim() != dims:
        raise ValueError(f"z: got {list(z.shape)}, expected [B, d]; [M, B, d] for M stacked models")
    if z.shape != z_perm.shape:
        raise ValueError(f"z_perm: got {list(z_perm.shape)}, expected z's shape {list(z.shape)}")
    if ours is not None:
        dtype = torch.float32
        if torch.is_autocast_enabled(z.device.type):
            dtype = torch.get_autocast_dtype(z.device.type)
        return _SharedBackward.apply(z, z_perm, dtype, backend, *ours.parameters())
    frozen = {name: p.detach() for name, p in discriminator.named_parameters()}
    toward_z = torch.func.functional_call(discriminator, frozen, (z,))
    both = discriminator(torch.cat((z, z_perm)).detach())
    logits_z, logits_perm = both.chunk(2)
    tc, _, _ = ops.logit_ratio(toward_z, logits_perm.detach(), backend=backend)
    _, disc_loss, accuracy = ops.logit_ratio(logits_z, logits_perm, backend=backend)
    return tc, disc_loss, accuracy
