"""The densities of all pairs of a batch, in plain PyTorch, and the weights of their sums."""

from collections.abc import Iterator
from math import inf, log, pi

import torch
from torch import Tensor

from fvae.scalars import integer


def pair_weights(batch: int, dataset_size: int | None, sampling: str) -> tuple[float, float, float]:
    """log w_ij where j = i, where j = i + 1, and elsewhere."""
    if sampling not in ("weighted", "stratified"):
        raise ValueError(f"sampling: got {sampling!r}, expected 'weighted' or 'stratified'")
    if dataset_size is None:
        return (-log(batch),) * 3
    total, others = integer("dataset_size", dataset_size), batch - 1
    least = max(1, others if sampling == "stratified" else 1)
    if total < least:
        raise ValueError(
            f"dataset_size: got {total}, expected at least {least} for batches of {batch}"
        )
    if sampling == "weighted":
        return (-log(total * batch),) * 3
    if not others:
        return -log(total), 0.0, 0.0
    following = log((total - others) / (total * others)) if total > others else -inf
    return -log(total), following, -log(others)


# Log densities that are at hand at a time.
_TERMS_AT_ONCE = 1 << 22


def _scores(z: Tensor, mu: Tensor, std: Tensor) -> Tensor:
    """Standard scores, cut where their square would overflow: no share of such a pair is left."""
    return ((z - mu) * std).clamp(-1e18, 1e18)


def _pairs(
    z: Tensor, mu: Tensor, logvar: Tensor, log_self: float, log_next: float, log_other: float
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Rows of z, their log q(z_ik|x_jk) and standard scores ``[.., n, B, d]``, log weights."""
    size, dims = z.shape[-2:]
    std = torch.exp(-0.5 * logvar).unsqueeze(-3)
    constant = (-0.5 * (log(2 * pi) + logvar)).unsqueeze(-3)
    step = max(1, _TERMS_AT_ONCE // (z.shape[:-2].numel() * size * dims))
    for start in range(0, size, step):
        rows = slice(start, min(start + step, size))
        t = _scores(z[..., rows, :].unsqueeze(-2), mu.unsqueeze(-3), std)
        i = torch.arange(rows.start, rows.stop, device=z.device).unsqueeze(-1)
        j = torch.arange(size, device=z.device)
        weights = t.new_full((), log_other).where(j != (i + 1) % size, log_next)
        yield rows, constant - 0.5 * t * t, t, weights.where(j != i, log_self)


def pairwise_tc(
    z: Tensor, mu: Tensor, logvar: Tensor, log_self: float, log_next: float, log_other: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """log q(z), log prod_j q(z_j), log q(z|x) ``[.., B]`` and log q(z_j) ``[.., B, d]``."""
    z, mu, logvar = wide(z), wide(mu), wide(logvar)
    joint, each = [], []
    for _, logs, _, weights in _pairs(z, mu, logvar, log_self, log_next, log_other):
        joint.append(torch.logsumexp(logs.sum(-1) + weights, dim=-1))
        each.append(torch.logsumexp(logs + weights.unsqueeze(-1), dim=-2))
    log_qz, log_qzj = torch.cat(joint, -1), torch.cat(each, -2)
    own = _scores(z, mu, torch.exp(-0.5 * logvar))
    log_qzx = -0.5 * (log(2 * pi) + logvar + own * own).sum(-1)
    return log_qz, log_qzj.sum(-1), log_qzx, log_qzj


def pairwise_tc_backward(
    grad_qz: Tensor,
    grad_prod: Tensor,
    grad_qzx: Tensor,
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    log_qz: Tensor,
    log_qzj: Tensor,
    log_self: float,
    log_next: float,
    log_other: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of z, mu and logvar, through the share of each pair in each sum."""
    dtype = z.dtype
    z, mu, logvar = wide(z), wide(mu), wide(logvar)
    std = torch.exp(-0.5 * logvar)
    own = _scores(z, mu, std)
    straight = grad_qzx.unsqueeze(-1)
    grad_z, grad_mu = -straight * own * std, straight * own * std
    grad_logvar = 0.5 * straight * (own * own - 1)
    parts = []
    for rows, logs, t, weights in _pairs(z, mu, logvar, log_self, log_next, log_other):
        joint = torch.exp(logs.sum(-1) + weights - log_qz[..., rows].unsqueeze(-1))
        each = torch.exp(logs + weights.unsqueeze(-1) - log_qzj[..., rows, :].unsqueeze(-2))
        share = grad_prod[..., rows, None, None] * each
        share = share + (grad_qz[..., rows].unsqueeze(-1) * joint).unsqueeze(-1)
        slope = share * t * std.unsqueeze(-3)
        parts.append(slope.sum(-2))
        grad_mu = grad_mu + slope.sum(-3)
        grad_logvar = grad_logvar + 0.5 * (share * (t * t - 1)).sum(-3)
    grad_z = grad_z - torch.cat(parts, -2)
    return grad_z.to(dtype), grad_mu.to(dtype), grad_logvar.to(dtype)


def wide(x: Tensor) -> Tensor:
    """Return x in the dtype that sums are made in: float32, or float64 where x is float64."""
    return x if x.dtype == torch.float64 else x.float()
