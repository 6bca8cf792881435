"""Which rows of the codes each metric reads: every draw of the metrics, through Philox.

A draw depends on the seed and the factors alone, not on the codes, so the rows are known before any
image is encoded. The functions take :class:`fvae.metrics.factors.Factors`, or the sizes of a grid.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fvae import philox
from fvae.metrics.checks import seed_of
from fvae.metrics.factors import Factors, Labels, Unsuited, factors_of
from fvae.metrics.protocols import (
    BETA_VAE,
    FACTOR_VAE,
    BetaVaeProtocol,
    FactorVaeProtocol,
    lookup,
)
from fvae.ops import RowIndex, reference
from fvae.philox import Philox, Stream
from fvae.registry import METRICS

# Lanes of Stream.VOTES and Stream.PAIRS.
TRAIN_LANE, EVAL_LANE = 0, 1
# Lanes of Stream.SAMPLE. The metrics that learn from samples share theirs, so that fewer images
# need encoding.
SCALE_LANE, TRAIN_SAMPLE_LANE, TEST_SAMPLE_LANE = 0, 1, 2


def needed(
    factor_sizes: Sequence[int] | None = None,
    metrics: str | Iterable[str] | None = None,
    protocol: str = "kim2018",
    seed: int = 0,
    *,
    factors: Labels | None = None,
) -> Tensor:
    """The rows of codes that any of the metrics reads: a caller need encode no other image.

    Args:
        factor_sizes: K sizes, each at least 2, the last factor varying fastest.
        metrics: names in :data:`fvae.registry.METRICS`; None is the usual ones of the protocol.
        protocol: of "factor_vae" and "beta_vae"; the others have one protocol.
        seed: the seed that the scores will be given.
        factors: labels ``[N, K]``, in place of the sizes of a full grid.

    Returns:
        int64 ``[n]``, sorted, each row once. All N rows for "factor_vae" under "exhaustive".

    Raises:
        UserError: a metric or protocol does not exist, a size, label or the seed is invalid, or a
            metric cannot be taken of such labels.
    """
    given, seed = factors_of(factor_sizes, factors), seed_of(seed)
    if metrics is None:
        metrics = [n for n, one in METRICS.items() if one.usual and protocol in one.protocols]
    used = torch.zeros(given.rows, dtype=torch.bool)
    for name in [metrics] if isinstance(metrics, str) else metrics:
        for rows in METRICS[name].rows(given, protocol, seed):
            used[rows] = True
    return used.nonzero().flatten()


def _as_factors(factors: Factors | Sequence[int]) -> Factors:
    return factors if isinstance(factors, Factors) else Factors.grid(factors)


def uniform_rows(factors: Factors | Sequence[int], count: int, rng: Philox) -> Tensor:
    """Rows drawn uniformly with replacement, int64 ``[count]``; row i takes word i."""
    total = _as_factors(factors).rows
    return philox.integers(rng.seed, rng.step, Stream.SAMPLE.at(rng.lane), count, total)


def scale_rows(factors: Factors | Sequence[int], samples: int | None, rng: Philox) -> Tensor:
    """Rows of the global variance, int64: ``samples`` draws, or every row where there are fewer."""
    return _some_rows(factors, samples, rng.at_lane(SCALE_LANE))


def _some_rows(factors: Factors | Sequence[int], count: int | None, rng: Philox) -> Tensor:
    """``count`` draws, or every row where there are no more or no count is given."""
    total = _as_factors(factors).rows
    if count is None or total <= count:
        return torch.arange(total, device=rng.seed.device)
    return uniform_rows(factors, count, rng)


def factor_vae_rows(
    factors: Factors | Sequence[int], protocol: FactorVaeProtocol, rng: Philox
) -> Tensor:
    """Every row that the FactorVAE metric reads, int64, unsorted and with repeats."""
    rows = [scale_rows(factors, protocol.scale_samples, rng)]
    sizes, *index = _shared(factors, rng)
    for votes, lane in ((protocol.votes, TRAIN_LANE), (protocol.eval_votes, EVAL_LANE)):
        if votes and protocol.samples:
            _, drawn = reference.vote_samples(
                sizes, votes, protocol.samples, protocol.balanced, rng.seed, rng.step, lane, *index
            )
            rows.append(drawn.flatten())
    return torch.cat(rows)


def beta_vae_rows(
    factors: Factors | Sequence[int], protocol: BetaVaeProtocol, rng: Philox
) -> Tensor:
    """Every row that the beta-VAE metric reads, int64, unsorted and with repeats."""
    return torch.cat([rows.flatten() for rows in _beta_vae_chunks(factors, protocol, rng)])


def _beta_vae_chunks(
    factors: Factors | Sequence[int], protocol: BetaVaeProtocol, rng: Philox
) -> Iterator[Tensor]:
    sizes, *index = _shared(factors, rng)
    for points, lane in ((protocol.points, TRAIN_LANE), (protocol.eval_points, EVAL_LANE)):
        for _, rows in reference.pair_chunks(
            sizes, points, protocol.pairs, protocol.balanced, rng.seed, rng.step, lane, *index
        ):
            yield rows


def _shared(factors: Factors | Sequence[int], rng: Philox) -> tuple[Any, ...]:
    """Sizes, offsets and rows of the values that rows share, as the reference takes them."""
    groups = _as_factors(factors).groups(rng.seed.device)
    if isinstance(groups, RowIndex):
        return groups.sizes, groups.offsets, groups.rows
    return groups, None, None


def shuffled(total: int, rng: Philox) -> Tensor:
    """The numbers of all rows in random order, int64: they are sorted by word i of row i."""
    word = philox.words(rng.seed, rng.step, Stream.SAMPLE.at(rng.lane), total)
    return word.argsort(stable=True)


def samples_of(
    factors: Factors | Sequence[int], train: int, test: int, rng: Philox
) -> tuple[Tensor, Tensor]:
    """Rows that train a metric and rows that test it, int64; none where ``test`` is 0.

    Of a full grid each row is drawn uniformly with replacement. Of labels no row is taken twice,
    so that none both trains and tests: two parts of one random order, at most two thirds of the
    rows to train where others must test.

    Raises:
        Unsuited: there is nothing to learn of a factor: hardly any row shares its value, or all
            that train do.
    """
    factors = _as_factors(factors)
    if not factors.columns:
        lanes = (TRAIN_SAMPLE_LANE, train), (TEST_SAMPLE_LANE, test)
        first, second = (uniform_rows(factors, n, rng.at_lane(lane)) for lane, n in lanes)
        return first, second
    order = shuffled(factors.rows, rng.at_lane(TRAIN_SAMPLE_LANE))
    first = order[: min(train, -(-2 * len(order) // 3)) if test else train]
    _check_learnable(factors, first.cpu().numpy())
    return first, order[len(first) : len(first) + test]


def unlabelled_rows(factors: Factors | Sequence[int], count: int, rng: Philox) -> Tensor:
    """Rows of a score that asks for no factors, int64: every row, or ``count`` draws of more.

    They depend on the number of rows alone, so that the score is the same whatever is known of
    them; of a full grid they are those that the other metrics learn from.
    """
    return _some_rows(factors, count, rng.at_lane(TRAIN_SAMPLE_LANE))


def _check_learnable(factors: Factors, train: np.ndarray) -> None:
    for k, column in enumerate(factors.columns):
        if column.names_rows:
            raise Unsuited(
                f"factors: {factors.name(k)} has {column.distinct:,} values in {factors.rows:,}"
                " rows, too few rows a value to learn from; leave it out, or make it real-valued:"
                f" fvae.metrics.Factors.of(labels, real=[{k}])"
            )
        drawn = column.data[train]
        if (drawn == drawn[0]).all():
            raise Unsuited(
                f"factors: {factors.name(k)} has one value in all {len(drawn):,} rows that were"
                " drawn to learn from; leave it out, or give more rows"
            )


# --- the rows of an entry in the registry: (factors, protocol, seed) -> tensors of rows -----------


def factor_vae_chunks(factors: Factors, protocol: str, seed: int) -> Iterator[Tensor]:
    """Yield the rows that the FactorVAE metric reads."""
    yield factor_vae_rows(factors, lookup(FACTOR_VAE, "factor_vae", protocol), Philox(seed))


def beta_vae_chunks(factors: Factors, protocol: str, seed: int) -> Iterator[Tensor]:
    """Yield the rows that the beta-VAE metric reads, some points at a time."""
    yield from _beta_vae_chunks(factors, lookup(BETA_VAE, "beta_vae", protocol), Philox(seed))


def sample_rows(
    factors: Factors | Sequence[int], train: int, test: int, seed: int
) -> Iterator[Tensor]:
    """Yield the rows of the samples that train and test the metrics which learn from samples."""
    yield from samples_of(factors, train, test, Philox(seed))


def code_rows(factors: Factors | Sequence[int], count: int, seed: int) -> Iterator[Tensor]:
    """Yield the rows of a score that asks for no factors."""
    yield unlabelled_rows(factors, count, Philox(seed))
