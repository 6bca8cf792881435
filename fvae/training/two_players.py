"""The discriminator's two uses in one backward pass.

Total correlation estimate and discriminator loss depend on the logits only through s = l0 - l1,
and for a fixed sample the signal that flows back through the network is linear in dL/ds, one
number a row. So one chain of deltas with unit upstream gradient serves both players:

* ``d tc / d z`` is the delta at the input, times 1/B, on the rows of z;
* the gradient of each weight is ``(c * delta)^T a``, with ``c = d disc_loss / d s`` of each row.

tc sends its gradient to z alone and disc_loss to the weights alone: adding both to one loss and
calling backward once trains both players, with no retained graph and no leak between them.

Nor need the weights' gradients be made by then: an optimizer that takes c, delta and a in their
place (``Discriminator.take``) makes a tile of one at a time, where it updates the weights.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fvae import ops
from fvae.device import autocast_dtype
from fvae.models.branches import Branches, beside, in_line
from fvae.models.layers import (
    gradient_of_x,
    is_one_kernel,
    linear_backward,
    linear_forward,
)
from fvae.models.vae import LEAKY_SLOPE, Discriminator
from fvae.ops.autograd import savable, transformed


class _SharedBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, z_perm, dtype, backend, branches, take, *parameters):
        ctx.branches, ctx.leaves = branches, parameters if branches else ()
        with beside(branches):
            weights = [w.to(dtype) for w in parameters[0::2]]
            biases = [b.to(dtype) for b in parameters[1::2]]
            activations = [torch.cat((z, z_perm), dim=-2).to(dtype)]
            for w, b in zip(weights[:-1], biases[:-1], strict=True):
                activations.append(linear_forward(activations[-1], w, b, LEAKY_SLOPE))
            logits = linear_forward(activations[-1], weights[-1], biases[-1], 1.0)
            run = ops.implementation("logit_ratio", backend)
            tc, disc_loss, accuracy, slope_z, slope_perm = run(*logits.chunk(2, dim=-2))
        ctx.save_for_backward(
            slope_z, slope_perm, z, savable(z_perm), *activations, *weights, *parameters
        )
        ctx.dtype, ctx.backend = dtype, backend
        each = zip(activations, weights, strict=True)
        ctx.take = take if take and all(is_one_kernel(*layer) for layer in each) else None
        ctx.mark_non_differentiable(accuracy)
        ctx.set_materialize_grads(False)  # accuracy's would be zeros, and a launch
        return tc, disc_loss, accuracy

    @staticmethod
    def backward(ctx, grad_tc, grad_loss, _):
        slope_z, slope_perm, z, z_perm, *saved = ctx.saved_tensors
        count = len(saved) // 4
        if grad_tc is None or grad_loss is None:  # one player alone
            grad_tc, grad_loss = (
                torch.zeros_like(slope_z[..., 0]) if grad is None else grad
                for grad in (grad_tc, grad_loss)
            )
        if torch.is_grad_enabled():
            run = _layers(ctx.dtype)
            again = _again(run, z, z_perm, saved[2 * count :], ctx.backend, grad_tc, grad_loss)
            return again[0], None, None, None, None, None, *again[1:]
        branches = ctx.branches
        owed = branches and ctx.take is None and branches.owes(*ctx.leaves)
        kept = (slope_z, slope_perm, z, *saved)
        with beside(branches):
            apart = branches.apart if owed else in_line
            grad_z, grads = _gradients(ctx, kept, grad_tc, grad_loss, apart)
        if branches:
            branches.meet()
        if owed:
            branches.owe(ctx.leaves, grads)
            grads = [None] * len(grads)
        return grad_z, None, None, None, None, None, *grads


def _gradients(
    ctx: Any, kept: tuple[Tensor, ...], grad_tc: Tensor, grad_loss: Tensor,
    apart: Callable[..., Any],
) -> tuple[Tensor | None, list[Any]]:  # fmt: skip
    """The gradients of z and of the parameters by one chain of deltas."""
    slope_z, slope_perm, z, *saved = kept
    count = len(saved) // 4
    activations, weights = saved[:count], saved[count : 2 * count]
    rows, dtype = slope_z.shape[-1], ctx.dtype
    slope = torch.cat((slope_z, slope_perm), dim=-1) * grad_loss.unsqueeze(-1)
    share = (grad_tc / rows)[..., None, None]
    unit: Tensor | None = None
    if dtype == torch.float16:
        # Deltas of one sink below half precision some layers down. These are as large as those
        # of the two usual passes, so that a loss scale lifts them, and lowers what overflows.
        unit = share.abs() + (grad_loss.abs() / (2 * rows))[..., None, None]
        unit = torch.where(unit > 0, unit, 1.0)
        slope, share = slope / unit.squeeze(-1), share / unit
        unit = unit.expand(*slope.shape, 1)
    # The last layer's delta of s = l0 - l1 is +1 for logit 0 and -1 for logit 1.
    delta = torch.arange(1, -3, -2, dtype=dtype, device=z.device)
    delta = delta.expand(*slope.shape, 2) if unit is None else delta * unit.to(dtype)
    outputs, slopes = [*activations[1:], delta], [LEAKY_SLOPE] * (count - 1) + [1.0]
    deltas: list[Tensor] = []
    grads: list[Tensor | None] = []
    for i in reversed(range(count)):
        # delta makes the one player's gradient and slope * delta the other's, at once.
        need_x = i > 0 or ctx.needs_input_grad[0]
        deltas.insert(0, delta)
        if ctx.take is None:
            delta, *of_weights = linear_backward(
                delta, outputs[i], activations[i], weights[i], slopes[i],
                saved[2 * count].dtype, need_x, slope, apart,
            )  # fmt: skip
            grads += reversed(of_weights)
        elif need_x:
            delta = gradient_of_x(delta, outputs[i], activations[i], weights[i], slopes[i])
    if ctx.take is not None:
        ctx.take(ops.LinearGradients(deltas, outputs, activations, slopes, slope))
        grads = [None] * (2 * count)
    grad_z = None
    if ctx.needs_input_grad[0]:
        grad_z = (delta[..., :rows, :] * share).to(z.dtype)
    return grad_z, grads[::-1]


#: From weights, such as a module's parameters, and codes to logits.
_Run = Callable[[Sequence[Tensor], Tensor], Tensor]


def _layers(dtype: torch.dtype) -> _Run:
    """Our discriminator's layers in a dtype, for one model or for M, as autograd follows them."""

    def run(parameters: Sequence[Tensor], z: Tensor) -> Tensor:
        y = z.to(dtype)
        for i, (weight, bias) in enumerate(zip(parameters[0::2], parameters[1::2], strict=True)):
            y = F.leaky_relu(y, LEAKY_SLOPE) if i else y
            y = y @ weight.to(dtype).mT + bias.to(dtype).unsqueeze(-2)
        return y

    return run


def _two_passes(
    run: _Run, frozen: _Run, z: Tensor, z_perm: Tensor, parameters: Sequence[Tensor],
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The two players the usual way; ``frozen`` is the discriminator as tc goes through it."""
    toward_z = frozen([p.detach() for p in parameters], z)
    logits = run(parameters, torch.cat((z, z_perm), dim=-2).detach())
    logits_z, logits_perm = logits.chunk(2, dim=-2)
    tc, _, _ = ops.logit_ratio(toward_z, logits_perm.detach(), backend)
    _, disc_loss, accuracy = ops.logit_ratio(logits_z, logits_perm, backend)
    return tc, disc_loss, accuracy


def _again(
    run: _Run, z: Tensor, z_perm: Tensor, parameters: Sequence[Tensor], backend: str | None,
    grad_tc: Tensor, grad_loss: Tensor,
) -> list[Tensor | None]:  # fmt: skip
    """The gradients of z and the parameters, themselves differentiable: computed by autograd."""
    tc, disc_loss, _ = _two_passes(run, run, z, z_perm, parameters, backend)
    outputs = ((tc, grad_tc), (disc_loss, grad_loss))
    followed = [(out, grad) for out, grad in outputs if out.requires_grad]
    wanted = [t for t in (z, *parameters) if t.requires_grad]
    outs, upstream = zip(*followed, strict=True)
    found = torch.autograd.grad(outs, wanted, upstream, create_graph=True, allow_unused=True)
    each = iter(found)
    return [next(each) if t.requires_grad else None for t in (z, *parameters)]


def _module(discriminator: nn.Module) -> tuple[_Run, _Run, list[Tensor]]:
    """A module of anybody's: as it is, as tc goes through it, and its parameters.

    Its buffers (running statistics, vectors of a spectral norm) move in the first alone, so that
    they move once, and both begin where they were.
    """
    names = [name for name, _ in discriminator.named_parameters()]
    buffers = {name: b.detach().clone() for name, b in discriminator.named_buffers()}

    def frozen(parameters: Sequence[Tensor], z: Tensor) -> Tensor:
        state = dict(zip(names, parameters, strict=True)) | buffers
        return _two_logits(torch.func.functional_call(discriminator, state, (z,)), z)

    def run(parameters: Sequence[Tensor], z: Tensor) -> Tensor:
        return _two_logits(discriminator(z), z)

    return run, frozen, list(discriminator.parameters())


def _two_logits(logits: Tensor, z: Tensor) -> Tensor:
    """One logit s is l0 - l1, seen as the two logits (s, 0)."""
    if logits.shape == (len(z), 2):
        return logits
    if logits.shape not in ((len(z),), (len(z), 1)):
        raise ValueError(
            f"discriminator: gave {list(logits.shape)} for codes {list(z.shape)}, expected"
            f" [{len(z)}, 2] logits, or [{len(z)}] or [{len(z)}, 1] for one logit"
        )
    ratio = logits.reshape(-1, 1)
    return torch.cat((ratio, torch.zeros_like(ratio)), dim=1)


def two_players(
    discriminator: nn.Module, z: Tensor, z_perm: Tensor, backend: str | None = None,
    branches: Branches | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """tc, disc_loss and accuracy, where tc reaches z alone and disc_loss the weights alone.

    Args:
        discriminator: any module from codes ``[B, d]`` to logits ``[B, 2]`` (0 is "drawn from
            q(z)", 1 is "permuted"), or to one logit, ``[B]`` or ``[B, 1]``, of "drawn from q(z)".
            :class:`fvae.models.vae.Discriminator` takes one forward and one backward pass for both
            players; another module takes the usual two: z through frozen weights for tc, and z and
            z_perm as one batch for disc_loss. Its hooks run in both, its dropout draws in both, its
            buffers (running statistics) change in the second alone.
        z: codes of the batch, ``[B, d]``, float32, bfloat16 or float16; ``[M, B, d]`` where the
            discriminator is M of them, of :func:`fvae.models.stacked.stack`.
        z_perm: permuted codes, of z's shape; receives no gradient.
        backend: backend of :func:`fvae.ops.logit_ratio`.
        branches: of a step that has made z_perm beside itself; the result is then to go through
            :func:`fvae.models.branches.joined`.

    Returns:
        tc and disc_loss (nats) and accuracy (0 to 1), each a float32 scalar or ``[M]``.

    Raises:
        TypeError: discriminator is no module, so that its weights cannot be told from its inputs.
        ValueError: the shapes of z and z_perm differ, z has another number of dimensions, or the
            logits have another shape.

    Source: Kim & Mnih 2018, Algorithm 2.
    """
    if not isinstance(discriminator, nn.Module):
        raise TypeError(
            f"discriminator: got {type(discriminator).__name__}, expected a torch.nn.Module, from"
            " whose parameters tc is kept"
        )
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
        dtype = torch.promote_types(torch.float32, first.weight.dtype)
        # Autocast leaves float64 as it is.
        if dtype == torch.float32:
            dtype = autocast_dtype(z.device.type) or dtype
        parameters: list[Tensor] = list(ours.parameters())
        if not transformed():
            take = ours.take
            return _SharedBackward.apply(z, z_perm, dtype, backend, branches, take, *parameters)
        run = frozen = _layers(dtype)
    else:
        run, frozen, parameters = _module(discriminator)
    if branches:
        branches.meet()
    if z.dtype != z_perm.dtype:
        widest = torch.promote_types(z.dtype, z_perm.dtype)
        z, z_perm = z.to(widest), z_perm.to(widest)
    return _two_passes(run, frozen, z, z_perm, parameters, backend)
