"""beta-tcvae, dip-vae-i, dip-vae-ii and annealed-vae: terms that are no mean over the batch.

They are functions of the batch as a whole, such as the covariance of its codes. Where it is shared
by processes, :meth:`fvae.training.distributed.World.gather` brings its rows together. Shapes and
units are those of :mod:`fvae.training.objectives`.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from fvae import ops
from fvae.config import DIP_RATIOS
from fvae.philox import Philox
from fvae.training.distributed import World
from fvae.training.objectives import EncoderDecoder, Terms, elbo_terms

_ALONE = World()


def beta_tcvae(
    model: EncoderDecoder,
    x: Tensor,
    weight: Tensor | float,
    rng: Philox,
    backend: str | None = None,
    target: Tensor | None = None,
    draws: World = _ALONE,
    *,
    tc_sampling: Literal["weighted", "stratified"] = "weighted",
    dataset_size: int | None = None,
) -> Terms:
    """loss = recon + mi + beta * tc + dim_kl, the three parts of the KL as a batch estimates them.

    ``mi = E[log q(z|x) - log q(z)]``, ``tc = E[log q(z) - sum_k log q(z_k)]``,
    ``dim_kl = E[sum_k log q(z_k) - log p(z)]``. Their sum estimates the KL: beta = 1 is the vae.

    Args:
        model: encoder and decoder.
        x: images in 0..1, ``[B, C, S, S]``.
        weight: beta.
        rng: noise of the step.
        backend: backend of the ops.
        target: x in another form that :func:`fvae.ops.bernoulli_nll` takes; None is x itself.
        draws: the processes that share the batch.
        tc_sampling: weights of the batch in :func:`fvae.ops.pairwise_tc`. "weighted" differs from
            the batch's own mixture by constants, which no gradient sees: mi is log N above it, tc
            (d - 1) log N above, dim_kl d log N below.
        dataset_size: N, the images that the batch was drawn from; None takes the batch's mixture.

    Returns:
        loss, recon, kl (in closed form, not in the loss), kl_dims, mi, tc, dim_kl.

    Source: Chen et al. 2018, equations 2 and 4, appendix C.
    """
    code = model.encode(x)
    terms, z = elbo_terms(model, x, code, target, rng, backend, draws)
    z, mu, logvar = (draws.gather(part) for part in (z, *code))
    log_qz, log_prod_qz, log_qzx = ops.pairwise_tc(
        z, mu, logvar, dataset_size, tc_sampling, backend
    )
    log_pz = -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)
    mi, tc = (log_qzx - log_qz).mean(-1), (log_qz - log_prod_qz).mean(-1)
    dim_kl = (log_prod_qz - log_pz).mean(-1)
    loss = terms["recon"] + mi + weight * tc + dim_kl
    return {"loss": loss, **terms, "mi": mi, "tc": tc, "dim_kl": dim_kl}


def dip_vae_i(
    model: EncoderDecoder,
    x: Tensor,
    weight: Tensor | float,
    rng: Philox,
    backend: str | None = None,
    target: Tensor | None = None,
    draws: World = _ALONE,
    *,
    dip_ratio: float | None = None,
) -> Terms:
    """loss = recon + kl + lambda_od * cov_off + lambda_d * cov_diag, of C = Cov[mu].

    ``cov_off = sum_{i != j} C_ij^2``, ``cov_diag = sum_i (C_ii - 1)^2``; C is the batch's, its sums
    divided by B.

    Args:
        model: encoder and decoder.
        x: images in 0..1, ``[B, C, S, S]``.
        weight: lambda_od.
        rng: noise of the step.
        backend: backend of the ops.
        target: x in another form that :func:`fvae.ops.bernoulli_nll` takes; None is x itself.
        draws: the processes that share the batch.
        dip_ratio: lambda_d / lambda_od; None is that of :data:`fvae.config.DIP_RATIOS`.

    Returns:
        loss, recon, kl, kl_dims, cov_off, cov_diag.

    Source: Kumar et al. 2018, equation 6.
    """
    mu, logvar = model.encode(x)
    terms, _ = elbo_terms(model, x, (mu, logvar), target, rng, backend, draws)
    ratio = DIP_RATIOS["dip-vae-i"] if dip_ratio is None else dip_ratio
    return _dip_terms(terms, _covariance(draws.gather(mu)), weight, ratio)


def dip_vae_ii(
    model: EncoderDecoder,
    x: Tensor,
    weight: Tensor | float,
    rng: Philox,
    backend: str | None = None,
    target: Tensor | None = None,
    draws: World = _ALONE,
    *,
    dip_ratio: float | None = None,
) -> Terms:
    """As :func:`dip_vae_i`, of C = Cov[z] = Cov[mu] + E[diag(exp(logvar))].

    Source: Kumar et al. 2018, equation 7.
    """
    mu, logvar = model.encode(x)
    terms, _ = elbo_terms(model, x, (mu, logvar), target, rng, backend, draws)
    covariance = _covariance(draws.gather(mu))
    covariance = covariance + torch.diag_embed(draws.gather(logvar).exp().mean(-2))
    ratio = DIP_RATIOS["dip-vae-ii"] if dip_ratio is None else dip_ratio
    return _dip_terms(terms, covariance, weight, ratio)


def _covariance(mu: Tensor) -> Tensor:
    """[B, d] -> [d, d], in float32 even where matrix products are not."""
    mu = mu - mu.mean(-2, keepdim=True)
    return (mu.unsqueeze(-1) * mu.unsqueeze(-2)).mean(-3)


def _dip_terms(terms: Terms, covariance: Tensor, weight: Tensor | float, ratio: float) -> Terms:
    diagonal = covariance.diagonal(dim1=-2, dim2=-1)
    off = (covariance - torch.diag_embed(diagonal)).square().flatten(-2).sum(-1)
    diag = (diagonal - 1).square().sum(-1)
    loss = terms["recon"] + terms["kl"] + weight * (off + ratio * diag)
    return {"loss": loss, **terms, "cov_off": off, "cov_diag": diag}


def annealed_vae(
    model: EncoderDecoder,
    x: Tensor,
    weight: Tensor | float,
    rng: Philox,
    backend: str | None = None,
    target: Tensor | None = None,
    draws: World = _ALONE,
    *,
    capacity_weight: float = 1000.0,
) -> Terms:
    """loss = recon + gamma * gap, gap = |kl - C|, of the KL's mean over the batch.

    Args:
        model: encoder and decoder.
        x: images in 0..1, ``[B, C, S, S]``.
        weight: C in nats, which grows during training.
        rng: noise of the step.
        backend: backend of the ops.
        target: x in another form that :func:`fvae.ops.bernoulli_nll` takes; None is x itself.
        draws: the processes that share the batch.
        capacity_weight: gamma.

    Returns:
        loss, recon, kl, kl_dims, gap.

    Source: Burgess et al. 2018, equation 8.
    """
    terms, _ = elbo_terms(model, x, model.encode(x), target, rng, backend, draws)
    gap = (draws.gather(terms["kl"].unsqueeze(0)).mean(0) - weight).abs()
    return {"loss": terms["recon"] + capacity_weight * gap, **terms, "gap": gap}
