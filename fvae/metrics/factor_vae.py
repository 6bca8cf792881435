"""The FactorVAE metric: which factor is fixed when a dimension varies least?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fvae import ops
from fvae.device import as_imported
from fvae.errors import UserError
from fvae.metrics.checks import codes_of, factor_sizes_of, require_finite, seed_of
from fvae.metrics.protocols import FACTOR_VAE, FactorVaeProtocol, lookup
from fvae.metrics.sampling import EVAL_LANE, TRAIN_LANE, factor_vae_rows, scale_rows
from fvae.philox import Philox


@dataclass(frozen=True, eq=False)
class FactorVaeResult:
    """A FactorVAE score and what it came from.

    Attributes:
        score: accuracy of the majority-vote classifier, 0 to 1: ``eval_score`` where the protocol
            has evaluation votes (locatello2019), else ``train_score``. Chance is about 1 / K.
        votes: int64 ``[d, K]`` on the CPU: how often dimension j varied least while factor k was
            fixed, over the votes that trained the classifier.
        protocol: the constants; its ``name`` says which.
        active: bool ``[d]`` on the CPU: the dimensions that could win a vote.
        train_score: accuracy on the votes that trained the classifier.
        eval_score: accuracy on the evaluation votes; None where the protocol has none.
        note: empty, or what a reader of the score should know.
    """

    score: float
    votes: Tensor
    protocol: FactorVaeProtocol
    active: Tensor
    train_score: float
    eval_score: float | None = None
    note: str = ""


@as_imported()
def factor_vae_score(
    codes: Tensor | np.ndarray,
    factor_sizes: Sequence[int],
    protocol: str = "kim2018",
    seed: int = 0,
    *,
    kl: Tensor | np.ndarray | Sequence[float] | None = None,
    backend: str | None = None,
) -> FactorVaeResult:
    """Score = share of votes (dimension j, factor k) with ``k = argmax_k' votes[j, k']``.

    A vote fixes factor k at one value, draws L images that have it, and goes to the active
    dimension j of least ``var_j(the L images) / var_j(the data set)``; ties to the lowest j. Each
    dimension then predicts the factor that it voted for most; ties to the lowest k.

    Under "exhaustive" nothing is drawn: each value of each factor makes one vote over all images
    that have it, and each factor has the same weight,
    ``score = sum_j max_k (votes[j, k] / n_k) / K``.

    Args:
        codes: means of the encoder, ``[N, d]``, floating point; row i is the code of the image
            whose factor classes are the mixed-radix digits of i, the last factor fastest. Rows
            outside :func:`fvae.metrics.needed` are not read and may be NaN.
        factor_sizes: K sizes, each at least 2, whose product is N.
        protocol: "kim2018", "locatello2019" or "exhaustive", a name in
            :data:`fvae.metrics.FACTOR_VAE`.
        seed: key of the draws; without effect under "exhaustive".
        kl: mean KL of q(z_j | x) to the prior, ``[d]``, in nats. With it, "kim2018" and
            "exhaustive" drop dimensions below 0.1 nats (a constant of ours: the paper gives
            none); without it they drop only constant ones. "locatello2019" drops by standard
            deviation (below 0.05) and does not read kl.
        backend: of :func:`fvae.ops.metric_votes` and :func:`fvae.ops.grouped_variance`; None
            picks.

    Returns:
        A :class:`FactorVaeResult`. Without an active dimension the score is 0 and the note says
        so.

    Raises:
        UserError: an argument has the wrong shape, dtype or value, a code that is read is not
            finite, or the protocol does not exist.

    Source: Kim & Mnih 2018, section 4; "locatello2019": Locatello et al. 2019, appendix.
    """
    sizes = factor_sizes_of(factor_sizes)
    codes = codes_of(codes, sizes)
    constants = lookup(FACTOR_VAE, "factor_vae", protocol)
    rng = Philox(seed_of(seed), device=codes.device)
    kl = None if kl is None else _kl_of(kl, codes.shape[1])
    require_finite(codes, lambda: factor_vae_rows(sizes, constants, rng))

    sample = codes[scale_rows(sizes, constants.scale_samples, rng)].double().cpu()
    mean, std = sample.mean(0), sample.var(0, correction=constants.scale_ddof).sqrt()
    # Rounding gives a constant column a variance just above 0: compare its ends instead.
    active = sample.amax(0) > sample.amin(0)
    if constants.prune == "std":
        active &= std >= constants.prune_threshold
    elif kl is not None:
        active &= kl >= constants.prune_threshold
    if not active.any():
        votes = torch.zeros(codes.shape[1], len(sizes), dtype=torch.int64)
        return FactorVaeResult(
            score=0.0,
            votes=votes,
            protocol=constants,
            active=active,
            train_score=0.0,
            eval_score=0.0 if constants.eval_votes else None,
            note="no active dimension",
        )

    # Standardised codes keep the float32 arithmetic of the votes exact for any unit and offset.
    wide = codes if codes.dtype == torch.float64 else codes.float()
    divisor = torch.where(active, std, 1.0)
    z = ((wide - mean.to(wide)) / divisor.to(wide)).float()

    samples = constants.samples
    if constants.votes is None or samples is None:
        votes = _exhaustive_votes(ops.grouped_variance(z, sizes, backend).cpu(), sizes, active)
        score = _accuracy(votes, votes.double() / torch.tensor(sizes))
        return FactorVaeResult(score, votes, constants, active, train_score=score)

    def votes_of(count: int, lane: int) -> Tensor:
        return ops.metric_votes(
            z,
            sizes,
            votes=count,
            samples=samples,
            scale=torch.ones_like(z[0]),
            active=active.to(z.device),
            rng=rng.at_lane(lane),
            backend=backend,
            balanced=constants.balanced,
        ).cpu()

    votes = votes_of(constants.votes, TRAIN_LANE)
    train_score = _accuracy(votes, votes)
    if not constants.eval_votes:
        return FactorVaeResult(train_score, votes, constants, active, train_score)
    eval_score = _accuracy(votes, votes_of(constants.eval_votes, EVAL_LANE))
    return FactorVaeResult(eval_score, votes, constants, active, train_score, eval_score)


def _accuracy(train: Tensor, scored: Tensor) -> float:
    """Share of ``scored`` votes that the majority classifier of the ``train`` votes gets right."""
    # NumPy's argmax takes the first of equals, which PyTorch's does not promise.
    predicted = train.numpy().argmax(1)
    votes = scored.numpy()
    return float(votes[np.arange(len(votes)), predicted].sum() / votes.sum())


def _exhaustive_votes(variance: Tensor, sizes: Sequence[int], active: Tensor) -> Tensor:
    """One vote for each value of each factor, from variances [sum of sizes, d]: int64 [d, K]."""
    factor = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    # NumPy's argmin takes the first of equals, which PyTorch's does not promise.
    winner = torch.from_numpy(torch.where(active, variance, torch.inf).numpy().argmin(1))
    votes = torch.zeros(len(active), len(sizes), dtype=torch.int64)
    return votes.index_put_((winner, factor), torch.tensor(1), accumulate=True)


def _kl_of(kl: Tensor | np.ndarray | Sequence[float], dims: int) -> Tensor:
    try:
        kl = torch.as_tensor(kl, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError):
        raise UserError(f"kl: got {kl!r}, expected {dims} numbers") from None
    if kl.shape != (dims,) or not torch.isfinite(kl).all():
        raise UserError(
            f"kl: got {kl.tolist()}, expected {dims} finite numbers, one for each dimension"
        )
    return kl
