"""Which rows of the codes each metric reads: every draw of the metrics, through Philox.

A draw depends on the seed and the factor sizes alone, not on the codes, so the rows are known
before any image is encoded.
"""

from collections.abc import Iterable, Iterator, Sequence
from math import prod

import torch
from torch import Tensor

from fvae import philox
from fvae.metrics.checks import factor_sizes_of, seed_of
from fvae.metrics.protocols import (
    BETA_VAE,
    FACTOR_VAE,
    BetaVaeProtocol,
    FactorVaeProtocol,
    lookup,
)
from fvae.ops import reference
from fvae.philox import Philox, Stream
from fvae.registry import METRICS

# Lanes of Stream.VOTES and Stream.PAIRS.
TRAIN_LANE, EVAL_LANE = 0, 1
# Lanes of Stream.SAMPLE. MIG, SAP and DCI share theirs, so that fewer images need encoding.
SCALE_LANE, TRAIN_SAMPLE_LANE, TEST_SAMPLE_LANE = 0, 1, 2


def needed(
    factor_sizes: Sequence[int],
    metrics: str | Iterable[str] | None = None,
    protocol: str = "kim2018",
    seed: int = 0,
) -> Tensor:
    """The rows of codes that any of the metrics reads: a caller need encode no other image.

    Args:
        factor_sizes: K sizes, each at least 2, the last factor varying fastest.
        metrics: names in :data:`fvae.registry.METRICS`; None is all that the protocol has.
        protocol: of "factor_vae" and "beta_vae"; the others have one protocol.
        seed: the seed that the scores will be given.

    Returns:
        int64 ``[n]``, sorted, each row once. All N rows for "factor_vae" under "exhaustive".

    Raises:
        UserError: a metric or protocol does not exist, or a size or the seed is invalid.
    """
    sizes, seed = factor_sizes_of(factor_sizes), seed_of(seed)
    if metrics is None:
        metrics = [name for name, metric in METRICS.items() if protocol in metric.protocols]
    used = torch.zeros(prod(sizes), dtype=torch.bool)
    for name in [metrics] if isinstance(metrics, str) else metrics:
        for rows in METRICS[name].rows(sizes, protocol, seed):
            used[rows] = True
    return used.nonzero().flatten()


def uniform_rows(sizes: Sequence[int], count: int, rng: Philox) -> Tensor:
    """Rows drawn uniformly with replacement, int64 ``[count]``; row i takes word i."""
    return philox.integers(rng.seed, rng.step, Stream.SAMPLE.at(rng.lane), count, prod(sizes))


def scale_rows(sizes: Sequence[int], samples: int | None, rng: Philox) -> Tensor:
    """Rows of the global variance, int64: ``samples`` draws, or every row where there are fewer."""
    total = prod(sizes)
    if samples is None or total <= samples:
        return torch.arange(total, device=rng.seed.device)
    return uniform_rows(sizes, samples, rng.at_lane(SCALE_LANE))


def factor_vae_rows(sizes: Sequence[int], protocol: FactorVaeProtocol, rng: Philox) -> Tensor:
    """Every row that the FactorVAE metric reads, int64, unsorted and with repeats."""
    rows = [scale_rows(sizes, protocol.scale_samples, rng)]
    for votes, lane in ((protocol.votes, TRAIN_LANE), (protocol.eval_votes, EVAL_LANE)):
        if votes and protocol.samples:
            _, index = reference.vote_samples(
                sizes, votes, protocol.samples, protocol.balanced, rng.seed, rng.step, lane
            )
            rows.append(index.flatten())
    return torch.cat(rows)


def beta_vae_rows(sizes: Sequence[int], protocol: BetaVaeProtocol, rng: Philox) -> Tensor:
    """Every row that the beta-VAE metric reads, int64, unsorted and with repeats."""
    return torch.cat([rows.flatten() for rows in _beta_vae_chunks(sizes, protocol, rng)])


def _beta_vae_chunks(
    sizes: Sequence[int], protocol: BetaVaeProtocol, rng: Philox
) -> Iterator[Tensor]:
    for points, lane in ((protocol.points, TRAIN_LANE), (protocol.eval_points, EVAL_LANE)):
        for _, rows in reference.pair_chunks(
            sizes, points, protocol.pairs, protocol.balanced, rng.seed, rng.step, lane
        ):
            yield rows


# --- the rows of an entry in the registry: (sizes, protocol, seed) -> tensors of rows -------------


def factor_vae_chunks(sizes: Sequence[int], protocol: str, seed: int) -> Iterator[Tensor]:
    """Yield the rows that the FactorVAE metric reads."""
    yield factor_vae_rows(sizes, lookup(FACTOR_VAE, "factor_vae", protocol), Philox(seed))


def beta_vae_chunks(sizes: Sequence[int], protocol: str, seed: int) -> Iterator[Tensor]:
    """Yield the rows that the beta-VAE metric reads, some points at a time."""
    yield from _beta_vae_chunks(sizes, lookup(BETA_VAE, "beta_vae", protocol), Philox(seed))


def sample_rows(sizes: Sequence[int], train: int, test: int, seed: int) -> Iterator[Tensor]:
    """Yield the rows of the samples that train and test the metrics which learn from samples."""
    for lane, count in ((TRAIN_SAMPLE_LANE, train), (TEST_SAMPLE_LANE, test)):
        yield uniform_rows(sizes, count, Philox(seed).at_lane(lane))


def classes_of(rows: Tensor, sizes: Sequence[int]) -> Tensor:
    """Factor classes of rows: the mixed-radix digits, int64 ``[n, K]`` for rows ``[n]``."""
    strides = reference.strides(sizes)
    return torch.stack([rows // s % n for n, s in zip(sizes, strides, strict=True)], dim=-1)
