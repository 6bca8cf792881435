"""vae, beta-vae and factor-vae: functions from a batch to named loss terms.

Every term is a scalar of nats an image, but for ``kl_dims`` ``[d]`` and ``disc_accuracy`` (0 to
1); ``loss`` is what to differentiate. The networks run under the caller's autocast; the losses
are float32. With the networks of :mod:`fvae.models.stacked`, images and terms lead with M.
"""

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fvae import ops
from fvae.config import TrainConfig
from fvae.errors import UserError
from fvae.models.branches import beside, current, joined
from fvae.philox import Philox
from fvae.registry import OBJECTIVES
from fvae.training.two_players import two_players

Terms = dict[str, Tensor]
#: mu and logvar of a batch.
Code = tuple[Tensor, Tensor]


class EncoderDecoder(Protocol):
    """A VAE, as an objective sees it."""

    def encode(self, x: Tensor) -> Code:
        """Return mu and logvar of q(z|x)."""

    def decode(self, z: Tensor) -> Tensor:
        """Return the parameters of p(x|z), such as pixel logits."""

    def nll(self, decoded: Tensor, target: Tensor, backend: str | None) -> Tensor:
        """Return -log p(x|z), nats an image."""


class Draws(Protocol):
    """Whose random ops an objective calls."""

    def reparameterize(
        self, mu: Tensor, logvar: Tensor, rng: Philox, backend: str | None
    ) -> tuple[Tensor, Tensor]:
        """See :func:`fvae.ops.reparameterize`."""

    def reparameterize_both(
        self, mu: Tensor, logvar: Tensor, rng: Philox, backend: str | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See :func:`fvae.ops.reparameterize_both`."""

    def permute_dims(self, z: Tensor, rng: Philox, backend: str | None) -> Tensor:
        """See :func:`fvae.ops.permute_dims`."""


def elbo_terms(
    model: EncoderDecoder,
    x: Tensor,
    code: Code,
    target: Tensor | None,
    rng: Philox,
    backend: str | None,
    draws: Draws,
) -> tuple[Terms, Tensor]:
    """recon, kl and kl_dims of a batch of codes, and z."""
    z, kl_dims = draws.reparameterize(*code, rng, backend)
    return _elbo(model, x, z, kl_dims, target, backend), z


def _elbo(
    model: EncoderDecoder, x: Tensor, z: Tensor, kl_dims: Tensor, target: Tensor | None,
    backend: str | None,
) -> Terms:  # fmt: skip
    recon = model.nll(model.decode(z), x if target is None else target, backend)
    return {"recon": recon, "kl": kl_dims.sum(-1), "kl_dims": kl_dims}


def beta_vae(
    model: EncoderDecoder,
    x: Tensor,
    weight: Tensor | float,
    rng: Philox,
    backend: str | None = None,
    target: Tensor | None = None,
    draws: Draws = ops,
) -> Terms:
    """loss = recon + beta * kl; the vae is beta = 1.

    Args:
        model: encoder and decoder.
        x: images in 0..1, ``[B, C, S, S]``.
        weight: beta.
        rng: noise of the step.
        backend: backend of the ops.
        target: x in another form that :func:`fvae.ops.bernoulli_nll` takes, such as packed bits;
            None is x itself.
        draws: whose reparameterize and permute_dims to call: :mod:`fvae.ops`, or a
            :class:`fvae.training.distributed.World` where the batch is this process's part of one.

    Returns:
        loss, recon, kl, kl_dims.

    Source: Higgins et al. 2017, equation 4.
    """
    terms, _ = elbo_terms(model, x, model.encode(x), target, rng, backend, draws)
    return {"loss": _plus(terms["recon"], terms["kl"], weight), **terms}


def factor_vae(
    model: EncoderDecoder,
    discriminator: nn.Module,
    x: Tensor,
    x_second: Tensor,
    weight: Tensor | float,
    rng: Philox,
    backend: str | None = None,
    target: Tensor | None = None,
    draws: Draws = ops,
    *,
    kl_start: float = 1.0,
    kl_steps: int = 0,
) -> Terms:
    """loss = recon + b * kl + gamma * tc + disc_loss, for both players at once; b ends as 1.

    ``loss.backward()`` gives encoder and decoder the gradient of recon + b kl + gamma tc, and the
    discriminator that of disc_loss.

    Args:
        model: encoder and decoder.
        discriminator: from codes to two logits; 0 is "drawn from q(z)", 1 is "permuted".
        x: images in 0..1, ``[B, C, S, S]``, whose codes are class 0.
        x_second: a second batch; its codes, permuted, are class 1. Given x itself, these are the
            very codes of x.
        weight: gamma.
        rng: noise and permutations of the step.
        backend: backend of the ops.
        target: x in another form that :func:`fvae.ops.bernoulli_nll` takes, such as packed bits;
            None is x itself.
        draws: whose reparameterize and permute_dims to call: :mod:`fvae.ops`, or a
            :class:`fvae.training.distributed.World` where the batch is this process's part of one.
        kl_start: b of step 0, from which it goes linearly to 1.
        kl_steps: steps after which b is 1; 0 for b = 1 from the first step.

    Returns:
        loss, recon, kl, kl_dims, tc, disc_loss, disc_accuracy.

    Source: Kim & Mnih 2018, Algorithm 2, whose b is 1.
    """
    z, other, kl_dims = _both_codes(model, x, x_second, rng, backend, draws)
    # The players before the decoder, so that on the way back theirs comes after: what is started
    # last is waited for first.
    branches = current()
    with beside(branches), torch.no_grad():
        z_perm = draws.permute_dims(other, rng, backend)
    tc, disc_loss, accuracy = two_players(discriminator, z, z_perm, backend, branches)
    terms = _elbo(model, x, z, kl_dims, target, backend)
    tc, disc_loss = joined(branches, tc, disc_loss)
    b = 1.0 if kl_start == 1 else kl_start + weight_at(1 - kl_start, kl_steps)(rng.step)
    loss = _plus(_plus(terms["recon"], terms["kl"], b), tc, weight) + disc_loss
    return {"loss": loss, **terms, "tc": tc, "disc_loss": disc_loss, "disc_accuracy": accuracy}


def _both_codes(
    model: EncoderDecoder, x: Tensor, x_second: Tensor, rng: Philox, backend: str | None,
    draws: Draws,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """z of both batches, one where the second is the first, and kl_dims; z alone has a gradient.

    On a GPU in one pass: a step of a usual batch waits for launches, not for arithmetic, and the
    zeros that then flow back through the second batch cost less than launching every layer twice.
    """
    if x_second is not x and x.device.type == "cuda":
        mu, logvar = model.encode(_together(x, x_second))
        return draws.reparameterize_both(mu, logvar, rng, backend)
    z, kl_dims = draws.reparameterize(*model.encode(x), rng, backend)
    if x_second is x:
        return z, z, kl_dims
    with torch.no_grad():
        second = model.encode(x_second)
        return z, draws.reparameterize(*second, rng.at_lane(1), backend)[0], kl_dims


def _together(x: Tensor, x_second: Tensor) -> Tensor:
    """Both batches; without a copy where they were one, of which these are the halves."""
    whole = x._base
    if whole is not None and whole is x_second._base and not torch.compiler.is_compiling():
        size = [*x.shape[:-4], 2 * x.shape[-4], *x.shape[-3:]]
        halves = x.stride() == x_second.stride() and x.dim() == 4
        if halves and x_second.storage_offset() == x.storage_offset() + len(x) * x.stride(0):
            return whole.as_strided(size, x.stride(), x.storage_offset())
    return torch.cat((x, x_second), dim=-4)


def _plus(loss: Tensor, term: Tensor, weight: Tensor | float) -> Tensor:
    """loss + weight * term, in one operation."""
    if isinstance(weight, Tensor):
        return torch.addcmul(loss, weight.to(term.dtype), term)
    if abs(weight) > torch.finfo(term.dtype).max:  # which PyTorch refuses to round
        weight = math.copysign(math.inf, weight)
    return torch.add(loss, term, alpha=weight)


def drawn(config: TrainConfig) -> int:
    """Return how many batches a step draws."""
    return 1 if config.shuffle == "same" else OBJECTIVES[config.objective].batches


def constants(config: TrainConfig, images: int) -> dict[str, Any]:
    """Return the keyword arguments of the objective's terms.

    Args:
        config: the run's settings.
        images: N of the data set.

    Raises:
        UserError: the batch cannot stand for the data set as the settings ask for.
    """
    objective, others = OBJECTIVES[config.objective], config.batch_size - 1
    if "tc_sampling" in objective.settings and config.tc_sampling == "stratified":
        if not 1 <= others <= images:
            raise UserError(
                f"--tc-sampling stratified: --batch-size {config.batch_size} and {images} images,"
                f" expected a batch of 2 to {images + 1}; or take weighted"
            )
    kept = {name: getattr(config, name) for name in objective.settings}
    return kept | ({"dataset_size": images} if objective.counts else {})


def weight_of(config: TrainConfig) -> tuple[float, int]:
    """Return the weight of the objective's varied term, and the steps over which it grows."""
    objective = OBJECTIVES[config.objective]
    if objective.weight is None:
        return 1.0, 0
    return getattr(config, objective.weight), getattr(config, objective.warmup)


def weight_at(value: float, warmup_steps: int) -> Callable[[int | Tensor], float | Tensor]:
    """Return step -> weight, linear from 0 at step 0 to ``value`` at ``warmup_steps``.

    The step is a number, or a tensor on the device (the weight then is one, without a sync).
    """

    def weight(step: int | Tensor) -> float | Tensor:
        if not warmup_steps:
            return value
        done = step / warmup_steps
        return value * (done.clamp(max=1.0) if isinstance(done, Tensor) else min(1.0, done))

    return weight
