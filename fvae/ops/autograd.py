"""The gradients of the training ops, for every way in which somebody may ask for them.

* A training loop's ``backward()`` takes the fast gradients: made in the forward pass, or by a
  kernel.
* A backward pass that is itself differentiated (``create_graph=True``: gradient penalties, second
  derivatives) computes the same gradients by the reference's formulas, which autograd follows.
* Under the transforms of ``torch.func`` (grad, vmap, jacrev) a second class of each op serves,
  whose backward pass takes the formulas and whose ``vmap`` lays the mapped dimension over the op's
  own dimension M. It is a class of its own because one with ``setup_context`` costs an eager call
  20 microseconds.
* Forward mode (``torch.func.jvp``, jacfwd, hessian, dual numbers) goes through the reference.

Each element that vmap maps over sees what a loop over the elements with the same rng would: with
one key all draw the same numbers, with a key each their own.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fvae.ops import reference
from fvae.ops.registry import implementation

_transformed: Callable[[], bool] = torch._C._are_functorch_transforms_active


def transformed() -> bool:
    """Return whether a transform of ``torch.func`` or forward mode is at work."""
    return _transformed() or forward_ad._current_level >= 0


def savable(x: Tensor) -> Tensor:
    """Return a tensor that backward may keep: of one made in inference mode, a copy."""
    # Not asked where torch.compile traces: it cannot ask, and meets none.
    return x.clone() if not torch.compiler.is_compiling() and x.is_inference() else x


# --- the dimension that vmap maps over ------------------------------------------------------------


def _mapped(size: int, dim: int | None, x: Tensor) -> Tensor:
    """The mapped dimension in front; where there is none, the tensor once for each element."""
    return x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)


def _one_by_one(run: Callable, size: int, in_dims: tuple, args: tuple) -> tuple[Any, Any]:
    """The op of each element, for arguments that one call cannot hold."""

    def of(i: int) -> Any:
        pairs = zip(args, in_dims, strict=True)
        return run(*(a if dim is None else a.select(dim, i) for a, dim in pairs))

    each = [of(i) for i in range(size)]
    if isinstance(each[0], Tensor):
        return torch.stack(each), 0
    return tuple(torch.stack(one) for one in zip(*each, strict=True)), (0,) * len(each[0])


def _with_keys(run: Callable, inputs: int, info: Any, in_dims: tuple, args: tuple) -> tuple:
    """Map an op of ``inputs`` tensors, then seed, step and the rest, over the dimension M.

    A key for all elements becomes one for each, which is the same: so each begins its draw anew.
    """
    size = info.batch_size
    seed_dim, step_dim = in_dims[inputs : inputs + 2]
    front = [_mapped(size, *pair) for pair in zip(in_dims[:inputs], args[:inputs], strict=True)]
    seed = _mapped(size, seed_dim, args[inputs])
    # One call knows one step, and one key for several models only where it is the only one.
    if step_dim is not None or (front[0].dim() == 4 and seed.dim() == 1):
        return _one_by_one(run, size, in_dims, args)
    given = front[0].shape[:-2]
    out = run(
        *(x.flatten(0, -3) for x in front), seed.reshape(-1).contiguous(), *args[inputs + 1 :]
    )
    if isinstance(out, Tensor):
        return out.unflatten(0, given), 0
    return tuple(t.unflatten(0, given) for t in out), (0,) * len(out)


# --- reparameterize -------------------------------------------------------------------------------


class _Reparameterize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, mu, logvar, seed, step, lane, backend):
        ctx.save_for_backward(mu, logvar, seed, step)
        ctx.lane, ctx.backend = lane, backend
        return implementation("reparameterize", backend)(mu, logvar, seed, step, lane)

    @staticmethod
    def backward(ctx, grad_z, grad_kl):
        saved, lane, backend = ctx.saved_tensors, ctx.lane, ctx.backend
        if torch.is_grad_enabled():
            grads = _reparameterize_gradients(grad_z, grad_kl, saved, lane, backend)
        else:
            run = implementation("reparameterize_backward", backend)
            grads = run(grad_z, grad_kl, *saved, lane)
        return *grads, None, None, None, None


class _ReparameterizeFunc(torch.autograd.Function):
    @staticmethod
    def forward(mu, logvar, seed, step, lane, backend):
        return implementation("reparameterize", backend)(mu, logvar, seed, step, lane)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.lane, ctx.backend = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, grad_z, grad_kl):
        args = (grad_z, grad_kl, ctx.saved_tensors, ctx.lane, ctx.backend)
        return *_reparameterize_gradients(*args), None, None, None, None

    @staticmethod
    def vmap(info, in_dims, *args):
        return _with_keys(reparameterize, 2, info, in_dims, args)


def _reparameterize_gradients(grad_z, grad_kl, saved, lane, backend):
    mu, logvar, seed, step = saved
    # The noise of the forward pass, as its backend makes it.
    zero = torch.zeros_like(reference.wide(mu.detach()))
    noise, _ = reparameterize(zero, zero, seed, step, lane, backend)
    return reference.reparameterize_gradients(grad_z, grad_kl, mu, logvar, noise)


def reparameterize(
    mu: Tensor, logvar: Tensor, seed: Tensor, step: Tensor, lane: int, backend: str | None
) -> tuple[Tensor, Tensor]:
    """z and kl of :func:`fvae.ops.reparameterize`, with their gradients."""
    args = (mu, logvar, seed, step, lane)
    if _transformed() or forward_ad._current_level >= 0:
        if forward_ad._current_level >= 0:
            return reference.reparameterize(*args)
        return _ReparameterizeFunc.apply(*args, backend)
    if torch.is_grad_enabled() and (mu.requires_grad or logvar.requires_grad):
        return _Reparameterize.apply(*args, backend)
    return implementation("reparameterize", backend)(*args)


# --- permute_dims ---------------------------------------------------------------------------------


class _PermuteDims(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, seed, step, lane, inverse, backend):
        ctx.save_for_backward(seed, step)
        ctx.rest = lane, not inverse, backend
        return _permutation(inverse, backend)(z, seed, step, lane)

    @staticmethod
    def backward(ctx, grad):
        # Linear: its gradient is the same op the other way round, differentiable as often.
        return permute_dims(grad, *ctx.saved_tensors, *ctx.rest), None, None, None, None, None


class _PermuteDimsFunc(torch.autograd.Function):
    @staticmethod
    def forward(z, seed, step, lane, inverse, backend):
        return _permutation(inverse, backend)(z, seed, step, lane)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, seed, step, lane, inverse, backend = inputs
        ctx.save_for_backward(seed, step)
        ctx.rest = lane, not inverse, backend

    backward = _PermuteDims.backward

    @staticmethod
    def vmap(info, in_dims, *args):
        return _with_keys(permute_dims, 1, info, in_dims, args)


def _permutation(inverse: bool, backend: str | None) -> Callable:
    return implementation("permute_dims_backward" if inverse else "permute_dims", backend)


def permute_dims(
    z: Tensor, seed: Tensor, step: Tensor, lane: int, inverse: bool, backend: str | None
) -> Tensor:
    """z_perm of :func:`fvae.ops.permute_dims`, or the inverse permutation, with its gradient."""
    if _transformed() or forward_ad._current_level >= 0:
        if forward_ad._current_level >= 0:
            run = reference.permute_dims_backward if inverse else reference.permute_dims
            return run(z, seed, step, lane)
        return _PermuteDimsFunc.apply(z, seed, step, lane, inverse, backend)
    if z.requires_grad and torch.is_grad_enabled():
        return _PermuteDims.apply(z, seed, step, lane, inverse, backend)
    return _permutation(inverse, backend)(z, seed, step, lane)


# --- logit_ratio ----------------------------------------------------------------------------------


class _LogitRatio(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits_z, logits_perm, backend):
        run = implementation("logit_ratio", backend)
        tc, disc_loss, accuracy, slope_z, slope_perm = run(logits_z, logits_perm)
        ctx.save_for_backward(slope_z, slope_perm, logits_z, logits_perm)
        ctx.mark_non_differentiable(accuracy)
        return tc, disc_loss, accuracy

    @staticmethod
    def backward(ctx, grad_tc, grad_loss, _):
        slope_z, slope_perm, logits_z, logits_perm = ctx.saved_tensors
        if torch.is_grad_enabled():
            *_, slope_z, slope_perm = reference.logit_ratio(logits_z, logits_perm)
        return *_logit_gradients(grad_tc, grad_loss, slope_z, slope_perm, logits_z.dtype), None


class _LogitRatioFunc(torch.autograd.Function):
    @staticmethod
    def forward(logits_z, logits_perm, backend):
        return implementation("logit_ratio", backend)(logits_z, logits_perm)[:3]

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:2])
        ctx.mark_non_differentiable(output[2])

    @staticmethod
    def backward(ctx, grad_tc, grad_loss, _):
        *_, slope_z, slope_perm = reference.logit_ratio(*ctx.saved_tensors)
        dtype = ctx.saved_tensors[0].dtype
        return *_logit_gradients(grad_tc, grad_loss, slope_z, slope_perm, dtype), None

    @staticmethod
    def vmap(info, in_dims, *args):
        z, perm = (_mapped(info.batch_size, *p) for p in zip(in_dims[:2], args[:2], strict=True))
        given = z.shape[:-2]
        out = logit_ratio(z.flatten(0, -3), perm.flatten(0, -3), args[2])
        return tuple(t.unflatten(0, given) for t in out), (0, 0, 0)


def _logit_gradients(grad_tc, grad_loss, slope_z, slope_perm, dtype):
    ratio_z = grad_loss.unsqueeze(-1) * slope_z + grad_tc.unsqueeze(-1) / slope_z.shape[-1]
    ratio_perm = grad_loss.unsqueeze(-1) * slope_perm
    return (torch.stack((s, -s), dim=-1).to(dtype) for s in (ratio_z, ratio_perm))


def logit_ratio(
    logits_z: Tensor, logits_perm: Tensor, backend: str | None
) -> tuple[Tensor, Tensor, Tensor]:
    """tc, disc_loss and accuracy of :func:`fvae.ops.logit_ratio`, with their gradients."""
    if _transformed() or forward_ad._current_level >= 0:
        if forward_ad._current_level >= 0:
            return reference.logit_ratio(logits_z, logits_perm)[:3]
        return _LogitRatioFunc.apply(logits_z, logits_perm, backend)
    if torch.is_grad_enabled() and (logits_z.requires_grad or logits_perm.requires_grad):
        return _LogitRatio.apply(logits_z, logits_perm, backend)
    return implementation("logit_ratio", backend)(logits_z, logits_perm)[:3]


# --- bernoulli_nll, gaussian_nll ------------------------------------------------------------------


class _PixelNLL(torch.autograd.Function):
    @staticmethod
    def forward(ctx, out, target, op, backend):
        nll, grad = implementation(op, backend)(out, target)
        ctx.save_for_backward(grad, out, savable(target))
        ctx.op = op
        return nll

    @staticmethod
    def backward(ctx, grad_nll):
        grad, out, target = ctx.saved_tensors
        if torch.is_grad_enabled():
            grad = reference.pixel_nll_gradient(ctx.op, out, target)
        return _times(grad, grad_nll, out.dtype), None, None, None


class _PixelNLLFunc(torch.autograd.Function):
    @staticmethod
    def forward(out, target, op, backend):
        return implementation(op, backend)(out, target)[0]

    @staticmethod
    def setup_context(ctx, inputs, output):
        out, target, ctx.op, _ = inputs
        ctx.save_for_backward(out, savable(target))

    @staticmethod
    def backward(ctx, grad_nll):
        out, target = ctx.saved_tensors
        grad = reference.pixel_nll_gradient(ctx.op, out, target)
        return _times(grad, grad_nll, out.dtype), None, None, None

    @staticmethod
    def vmap(info, in_dims, *args):
        out, target = (
            _mapped(info.batch_size, *pair) for pair in zip(in_dims[:2], args, strict=False)
        )
        given = out.shape[:-4]
        image = 1 if target.dim() < out.dim() else 3  # packed bits have one dimension an image
        target = target.flatten(0, -image - 2)
        return pixel_nll(args[2], out.flatten(0, -5), target, args[3]).unflatten(0, given), 0


def _times(grad: Tensor, grad_nll: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient of the network's output; that of float16 was kept in float32.

    Of 64 images a pixel's gradient is at most 1/64, and most are so small that half precision would
    lose them before a loss scale lifts them.
    """
    if grad_nll.dim():  # of each model
        grad_nll = grad_nll.view(*grad_nll.shape, 1, 1, 1, 1).to(grad.dtype)
    return (grad * grad_nll).to(dtype)


def pixel_nll(op: str, out: Tensor, target: Tensor, backend: str | None) -> Tensor:
    """nll of :func:`fvae.ops.bernoulli_nll` or its sister, by name, with its gradient."""
    # A target with a gradient (another network's images) is rare: autograd's own way serves it.
    if forward_ad._current_level >= 0 or (target.requires_grad and torch.is_grad_enabled()):
        return reference.pixel_nll(op, out, target)
    if _transformed():
        return _PixelNLLFunc.apply(out, target, op, backend)
    if out.requires_grad and torch.is_grad_enabled():
        return _PixelNLL.apply(out, target, op, backend)
    return implementation(op, backend)(out, target)[0]


# --- pairwise_tc ----------------------------------------------------------------------------------


class _PairwiseTC(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, mu, logvar, weights, backend):
        *found, log_qzj = implementation("pairwise_tc", backend)(z, mu, logvar, *weights)
        ctx.save_for_backward(z, mu, logvar, found[0], log_qzj)
        ctx.weights, ctx.backend = weights, backend
        return tuple(found)

    @staticmethod
    def backward(ctx, *grads):
        if torch.is_grad_enabled():
            return *_pairwise_gradients(grads, ctx.saved_tensors[:3], ctx.weights), None, None
        run = implementation("pairwise_tc_backward", ctx.backend)
        return *run(*grads, *ctx.saved_tensors, *ctx.weights), None, None


class _PairwiseTCFunc(torch.autograd.Function):
    @staticmethod
    def forward(z, mu, logvar, weights, backend):
        return tuple(implementation("pairwise_tc", backend)(z, mu, logvar, *weights)[:3])

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.weights, _ = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, *grads):
        return *_pairwise_gradients(grads, ctx.saved_tensors, ctx.weights), None, None

    @staticmethod
    def vmap(info, in_dims, *args):
        z, mu, logvar = (
            _mapped(info.batch_size, *p) for p in zip(in_dims[:3], args[:3], strict=True)
        )
        given = z.shape[:-2]
        each = z.flatten(0, -3), mu.flatten(0, -3), logvar.flatten(0, -3)
        out = pairwise_tc(*each, args[3], args[4])
        return tuple(t.unflatten(0, given) for t in out), (0, 0, 0)


def _pairwise_gradients(grads, batch, weights):
    forward: Callable[..., Any] = reference.pairwise_tc
    backward: Callable[..., Any] = reference.pairwise_tc_backward
    log_qz, _, _, log_qzj = forward(*batch, *weights)
    return backward(*grads, *batch, log_qz, log_qzj, *weights)


def pairwise_tc(
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    weights: tuple[float, float, float],
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """log q(z), log prod_j q(z_j) and log q(z|x) of :func:`fvae.ops.pairwise_tc`."""
    if _transformed() or forward_ad._current_level >= 0:
        if forward_ad._current_level >= 0:
            return reference.pairwise_tc(z, mu, logvar, *weights)[:3]
        return _PairwiseTCFunc.apply(z, mu, logvar, weights, backend)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (z, mu, logvar)):
        return _PairwiseTC.apply(z, mu, logvar, weights, backend)
    return implementation("pairwise_tc", backend)(z, mu, logvar, *weights)[:3]
