"""The ops of the metrics, over codes of a full grid of factors or of labelled rows."""

import operator
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from fvae.ops.checks import check_float
from fvae.ops.index import RowIndex
from fvae.ops.registry import implementation
from fvae.philox import Philox


def _check_rows(
    codes: Tensor, factor_sizes: Sequence[int] | RowIndex
) -> tuple[list[int], Tensor | None, Tensor | None]:
    """Return sizes, offsets and rows, checked against codes ``[N, d]`` or ``[M, N, d]``."""
    check_float("codes", codes, (2, 3), "[N, d] or [M, N, d]")
    if isinstance(factor_sizes, RowIndex):
        index, sizes = factor_sizes, list(factor_sizes.sizes)
    else:
        index, sizes = None, _whole_numbers(factor_sizes)
    if not sizes or min(sizes) < 2:
        raise ValueError(f"factor_sizes: got {sizes}, expected at least one, each at least 2")
    if index is not None:
        if codes.shape[-2] != len(index):
            raise ValueError(f"codes: got {codes.shape[-2]} rows, but {len(index)} are labelled")
        if codes.device != index.device:
            raise ValueError(
                f"factor_sizes: the index is on {index.device}, but the codes are on"
                f" {codes.device}; move it with .to({str(codes.device)!r})"
            )
        return sizes, index.offsets, index.rows
    if prod(sizes) > 1 << 31:
        raise ValueError(f"factor_sizes: the product of {sizes} is above 2**31")
    if codes.shape[-2] != prod(sizes):
        raise ValueError(
            f"codes: got {codes.shape[-2]} rows, expected {prod(sizes)}, the product of {sizes}"
        )
    return sizes, None, None


def _whole_numbers(factor_sizes: Sequence[int]) -> list[int]:
    try:
        return [operator.index(n) for n in factor_sizes]
    except TypeError:
        raise ValueError(
            "factor_sizes: expected whole numbers, how many values each factor has; where they are"
            " labels, pass ops.RowIndex.of(labels)"
        ) from None


def _check_draws(
    rng: Philox | None, codes: Tensor, count_name: str, count: int, groups: int
) -> Philox:
    """Return the generator, checked; ``groups`` counter indices are drawn for each of a count."""
    if not 1 <= count <= (1 << 32) // groups:
        raise ValueError(f"{count_name}: got {count}, expected 1 to {(1 << 32) // groups}")
    if rng is None:
        rng = Philox.from_torch(codes.device)
    if rng.seed.dim():
        raise ValueError("rng: has several keys, expected one; all models see the same draws")
    if rng.seed.device != codes.device:
        raise ValueError(f"rng: is on {rng.seed.device}, but the codes are on {codes.device}")
    return rng


def metric_votes(
    codes: Tensor,
    factor_sizes: Sequence[int] | RowIndex,
    *,
    votes: int,
    samples: int,
    scale: Tensor,
    active: Tensor,
    rng: Philox | None,
    backend: str | None = None,
    balanced: bool = False,
) -> Tensor:
    """votes[j, k] = number of votes with fixed factor k in which dimension j varied least.

    Each vote fixes one factor at one value, draws L images that have it, and goes to
    ``argmin over active j of var_j / scale_j`` (ties to the lowest j). Of a full grid the image
    with factor classes c is row ``sum of c_k * s_k``, s_k the product of the sizes after k, and
    values are drawn alike. Of labelled rows a value is drawn as often as it occurs: it is the value
    of a drawn row.

    Args:
        codes: ``[N, d]``, or ``[M, N, d]`` for M models, which all see the same draws; float32,
            float64, bfloat16 or float16, computed in float32. N is the product of the factor sizes,
            or the index's length.
        factor_sizes: K sizes, each at least 2; or, where the rows are no full grid in order, a
            :class:`RowIndex` of their labels on the codes' device.
        votes: number of votes, at least 1.
        samples: L, images a vote, at least 2.
        scale: global variance of each dimension, ``[d]`` or ``[M, d]``; where it is 0 the
            dimension never wins.
        active: bool, ``[d]`` or ``[M, d]``; where False the dimension never wins.
        rng: a Philox with one key; None draws a key from PyTorch's global generator.
        backend: None picks; otherwise a name in :data:`BACKENDS`.
        balanced: vote v fixes factor v % K (protocol kim2018) instead of a random one
            (locatello2019).

    Returns:
        int64 ``[d, K]`` or ``[M, d, K]``; all zero for a model without an active dimension. A
        dimension whose variance is not finite (a code is NaN) wins over none but its like.

    Raises:
        TypeError: codes are not floating point, or active is not bool.
        ValueError: N is not the product of the sizes or the index's length, a size is below 2,
            votes < 1, samples < 2, or scale, active, rng or the index has another shape or device.

    Source: Kim & Mnih 2018, section 4; constants of the protocols in ``fvae.metrics.protocols``.
    """
    sizes, offsets, rows = _check_rows(codes, factor_sizes)
    if samples < 2:
        raise ValueError(f"samples: got {samples}, expected at least 2")
    rng = _check_draws(rng, codes, "votes", votes, 1 + (samples + 3) // 4)
    each = (*codes.shape[:-2], codes.shape[-1])
    for name, value in (("scale", scale), ("active", active)):
        if value.shape != each or value.device != codes.device:
            raise ValueError(
                f"{name}: got shape {list(value.shape)} on {value.device}, expected {list(each)}"
                f" on {codes.device}"
            )
    if active.dtype != torch.bool:
        raise TypeError(f"active: got {active.dtype}, expected torch.bool")
    stacked = codes if codes.dim() == 3 else codes[None]
    run = implementation("metric_votes", backend)
    result = run(
        stacked, sizes, votes, samples, balanced, scale.float().view(stacked.shape[0], -1),
        active.view(stacked.shape[0], -1), rng.seed, rng.step, rng.lane, offsets, rows,
    )  # fmt: skip
    return result if codes.dim() == 3 else result[0]


def pair_features(
    codes: Tensor,
    factor_sizes: Sequence[int] | RowIndex,
    *,
    points: int,
    pairs: int,
    rng: Philox | None,
    backend: str | None = None,
    balanced: bool = False,
) -> tuple[Tensor, Tensor]:
    """features[p, j] = mean over the L pairs of point p of |z1_j - z2_j|; factors[p], the label.

    Each point fixes one factor. Each of its pairs draws a value of that factor, which both images
    share, and both images among those that have it. A linear classifier from features to factors is
    Higgins' metric.

    Args:
        codes: ``[N, d]``, or ``[M, N, d]`` for M models, which all see the same draws; float32,
            float64, bfloat16 or float16. N is the product of the factor sizes, the last varying
            fastest, or the index's length.
        factor_sizes: K sizes, each at least 2; or a :class:`RowIndex`, as in :func:`metric_votes`.
        points: P, at least 1.
        pairs: L, pairs a point, at least 1.
        rng: a Philox with one key; None draws a key from PyTorch's global generator.
        backend: None picks; otherwise a name in :data:`BACKENDS`.
        balanced: point p fixes factor p % K (protocol kim2018) instead of a random one
            (locatello2019).

    Returns:
        features, float32 ``[P, d]`` or ``[M, P, d]``, in the unit of the codes, and factors, int64
        ``[P]``, 0 to K - 1.

    Raises:
        TypeError: codes are not floating point.
        ValueError: N is not the product of the sizes or the index's length, a size is below 2, the
            index is on another device, points < 1 or pairs < 1.

    Source: Higgins et al. 2017, section 3.
    """
    sizes, offsets, rows = _check_rows(codes, factor_sizes)
    if pairs < 1:
        raise ValueError(f"pairs: got {pairs}, expected at least 1")
    rng = _check_draws(rng, codes, "points", points, 1 + pairs)
    stacked = codes if codes.dim() == 3 else codes[None]
    run = implementation("pair_features", backend)
    features, factors = run(
        stacked, sizes, points, pairs, balanced, rng.seed, rng.step, rng.lane, offsets, rows
    )
    return features if codes.dim() == 3 else features[0], factors


def grouped_variance(
    codes: Tensor, factor_sizes: Sequence[int] | RowIndex, backend: str | None = None
) -> Tensor:
    """variance[g, j] = population variance of z_j over all images of group g.

    A group is the images that have one value of one factor; the groups are ordered by factor,
    then by value. Protocol exhaustive of the FactorVAE metric takes one vote from each.

    Args:
        codes: ``[N, d]``, or ``[M, N, d]`` for M models; float32, float64, bfloat16 or float16. N
            is the product of the factor sizes, the last varying fastest, or the index's length.
        factor_sizes: K sizes, each at least 2; or a :class:`RowIndex`, as in :func:`metric_votes`.
        backend: None picks; otherwise a name in :data:`BACKENDS`.

    Returns:
        float32 ``[G, d]`` or ``[M, G, d]``, G the sum of the sizes, in the square of the codes'
        unit; summed in float64, and exactly 0 where all codes of a group are the same.

    Raises:
        TypeError: codes are not floating point.
        ValueError: N is not the product of the sizes or the index's length, a size is below 2, or
            the index is on another device.
    """
    sizes, offsets, rows = _check_rows(codes, factor_sizes)
    stacked = codes if codes.dim() == 3 else codes[None]
    result = implementation("grouped_variance", backend)(stacked, sizes, offsets, rows)
    return result if codes.dim() == 3 else result[0]
