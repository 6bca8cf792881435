"""The FactorVAE metric: which factor is fixed when a dimension varies least?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fvae import ops
from fvae.device import as_imported
from fvae.errors import UserError
from fvae.metrics.checks import codes_of, require_finite, seed_of
from fvae.metrics.factors import Labels, factors_of
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
        ceiling: the greatest score that votes of these factors and as many active dimensions can
            have: below 1 where there are fewer dimensions than factors, as each predicts one.
        eval_votes: the evaluation votes, as ``votes``; None where the protocol has none.
    """

    score: float
    votes: Tensor
    protocol: FactorVaeProtocol
    active: Tensor
    train_score: float
    eval_score: float | None = None
    note: str = ""
    ceiling: float = 1.0
    eval_votes: Tensor | None = None


@as_imported()
def factor_vae_score(
    codes: Tensor | np.ndarray,
    factor_sizes: Sequence[int] | None = None,
    protocol: str = "kim2018",
    seed: int = 0,
    *,
    factors: Labels | None = None,
    kl: Tensor | np.ndarray | Sequence[float] | None = None,
    backend: str | None = None,
) -> FactorVaeResult:
    """Score = share of votes (dimension j, factor k) with ``k = argmax_k' votes[j, k']``.

    A vote fixes factor k at one value, draws L images that have it, and goes to the active
    dimension j of least ``var_j(the L images) / var_j(the data set)``; ties to the lowest j. Each
    dimension then predicts the factor that it voted for most; ties to the lowest k. Of labels, the
    value is that of a row drawn at random, and the L images are drawn among the rows that have it.

    Under "exhaustive" nothing is drawn: each value of each factor makes one vote over all images
    that have it, and each factor has the same weight,
    ``score = sum_j max_k (votes[j, k] / n_k) / K``.

    Args:
        codes: means of the encoder, ``[N, d]``, floating point. Rows outside
            :func:`fvae.metrics.needed` are not read and may be NaN.
        factor_sizes: of a full grid, K sizes, each at least 2, whose product is N; row i of the
            codes then has the mixed-radix digits of i as factor classes, the last factor fastest.
        protocol: "kim2018", "locatello2019" or "exhaustive", a name in
            :data:`fvae.metrics.FACTOR_VAE`.
        seed: key of the draws; without effect under "exhaustive".
        factors: of any rows, in place of the sizes: labels ``[N, K]`` (or ``[N]``) of the codes'
            rows, or a :class:`fvae.metrics.Factors`, which says what is a class and what is
            real-valued.
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
            finite, the protocol does not exist, or a factor is real-valued or has a value that
            one row only has.

    Source: Kim & Mnih 2018, section 4; "locatello2019": Locatello et al. 2019, appendix.
    """
    given = factors_of(factor_sizes, factors, codes)
    sizes, codes = given.sizes, codes_of(codes, given)
    constants = lookup(FACTOR_VAE, "factor_vae", protocol)
    rng = Philox(seed_of(seed), device=codes.device)
    kl = None if kl is None else _kl_of(kl, codes.shape[1])
    groups = given.groups(codes.device)
    require_finite(codes, lambda: factor_vae_rows(given, constants, rng))

    sample = codes[scale_rows(given, constants.scale_samples, rng)].double().cpu()
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
            ceiling=0.0,
        )
    note = "one factor: every vote fixes it, so they tell nothing" if len(sizes) == 1 else ""

    # Standardised codes keep the float32 arithmetic of the votes exact for any unit and offset.
    wide = codes if codes.dtype == torch.float64 else codes.float()
    divisor = torch.where(active, std, 1.0)
    z = ((wide - mean.to(wide)) / divisor.to(wide)).float()

    samples = constants.samples
    if constants.votes is None or samples is None:
        votes = _exhaustive_votes(ops.grouped_variance(z, groups, backend).cpu(), sizes, active)
        shares = votes.double() / torch.tensor(sizes)
        score, ceiling = _accuracy(votes, shares), _ceiling(shares, active)
        return FactorVaeResult(score, votes, constants, active, score, None, note, ceiling)

    def votes_of(count: int, lane: int) -> Tensor:
        return ops.metric_votes(
            z,
            groups,
            votes=count,
            samples=samples,
            scale=torch.ones_like(z[0]),
            active=active.to(z.device),
            rng=rng.at_lane(lane),
            backend=backend,
            balanced=constants.balanced,
        ).cpu()

    votes = votes_of(constants.votes, TRAIN_LANE)
    train = _accuracy(votes, votes)
    if not constants.eval_votes:
        ceiling = _ceiling(votes, active)
        return FactorVaeResult(train, votes, constants, active, train, None, note, ceiling)
    others = votes_of(constants.eval_votes, EVAL_LANE)
    score, ceiling = _accuracy(votes, others), _ceiling(others, active)
    return FactorVaeResult(score, votes, constants, active, train, score, note, ceiling, others)


def _accuracy(train: Tensor, scored: Tensor) -> float:
    """Share of ``scored`` votes that the majority classifier of the ``train`` votes gets right."""
    # NumPy's argmax takes the first of equals, which PyTorch's does not promise.
    predicted = train.numpy().argmax(1)
    votes = scored.numpy()
    return float(votes[np.arange(len(votes)), predicted].sum() / votes.sum())


def _ceiling(scored: Tensor, active: Tensor) -> float:
    """Share of the votes that fix the commonest factors, as many as dimensions are active."""
    each = np.sort(scored.double().sum(0).numpy())[::-1]
    return float(each[: int(active.sum())].sum() / each.sum())


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
