"""Codes with labels of anybody's."""

import torch

from fvae import Philox, ops
from own import case

# --- the ops of the metrics -----------------------------------------------------------------------


def _votes_of(codes, sizes, backend=None):
    scale = codes.float().var(0)
    return ops.metric_votes(
        codes, sizes, votes=400, samples=20, scale=scale, rng=Philox(0), backend=backend,
        active=torch.ones_like(scale, dtype=torch.bool),
    )  # fmt: skip


def _labels(rows, sizes):
    generator = torch.Generator().manual_seed(0)
    return torch.stack([torch.randint(n, (rows,), generator=generator) for n in sizes], dim=1)


@case("a full grid of 3 x 4 x 5, given as labels to the ops", "the grid's numbers, bit for bit")
def _(folder):
    sizes = (3, 4, 5)
    labels = torch.cartesian_prod(*(torch.arange(n) for n in sizes))
    codes = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    grid, labelled = (
        (
            _votes_of(codes, s),
            *ops.pair_features(codes, s, points=50, pairs=20, rng=Philox(1)),
            ops.grouped_variance(codes, s),
        )
        for s in (sizes, ops.RowIndex.of(labels))
    )
    same = [torch.equal(a, b) for a, b in zip(grid, labelled, strict=True)]
    return f"equal: {same}", all(same)


@case("a full grid as labels, its rows shuffled", "the grid's accuracy, within 0.05")
def _(folder):
    sizes = (3, 4, 5)
    labels = torch.cartesian_prod(*(torch.arange(n) for n in sizes))
    generator = torch.Generator().manual_seed(0)
    codes = labels + 0.7 * torch.randn(60, 3, generator=generator)
    order = torch.randperm(60, generator=generator)
    votes = _votes_of(codes, sizes), _votes_of(codes[order], ops.RowIndex.of(labels[order]))
    grid, shuffled = (float(v.amax(1).sum() / v.sum()) for v in votes)
    return f"{grid:.3f} and {shuffled:.3f}", abs(grid - shuffled) < 0.05


@case("5,000 random combinations, some twice, most missing", "C++ has the reference's votes")
def _(folder):
    labels = _labels(5000, (10, 20, 30, 40))
    codes = labels + 0.01 * torch.randn(labels.shape, generator=torch.Generator().manual_seed(1))
    index = ops.RowIndex.of(labels)
    got = _votes_of(codes, index)
    accuracy = float(got.amax(1).sum() / got.sum())
    return f"accuracy {accuracy}", accuracy == 1 and torch.equal(
        got, _votes_of(codes, index, "reference")
    )


@case("40 factors, and one of 5,000 values", "the votes of the 40 go to their own codes")
def _(folder):
    many = torch.arange(10_000)[:, None] // 2
    labels = torch.cat([_labels(10_000, (2,) * 40), many], dim=1)
    votes = _votes_of(labels.float(), ops.RowIndex.of(labels))[:, :40]
    wrong = int(votes.sum() - votes.diagonal().sum())
    return f"{wrong} of {int(votes.sum())} votes elsewhere", wrong == 0


@case("codes in float16", "the votes of the same numbers in float32")
def _(folder):
    labels = _labels(500, (3, 4, 5))
    codes = torch.randn(500, 6, generator=torch.Generator().manual_seed(1)).half()
    index = ops.RowIndex.of(labels)
    moved = int((_votes_of(codes, index) - _votes_of(codes.float(), index)).abs().sum())
    return f"{moved} votes moved", moved == 0


@case("labels that leave the value 1 out", "an error that names it")
def _(folder):
    try:
        ops.RowIndex.of(torch.tensor([[0], [2], [2]]))
    except ValueError as error:
        return error, "value 1 of factor 0 does not occur" in str(error)
    return "no error", False
