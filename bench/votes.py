"""Metric votes on a CPU: the op beside the NumPy loop that users run and vectorised PyTorch.

``python -m bench.votes`` prints one JSON line; a ratio is the other's time over the op's, medians
over rounds that take turns. 15,000 votes of 64 samples (both halves of protocol locatello2019) on
codes of the dSprites grid that are in memory, d = 10. ``ratio_labels`` is the op's own time on the
grid over its time where the same grid comes as labels, in order and with the rows shuffled
(``ratio_labels_shuffled``).
"""

import json
import sys
from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

from bench.device_timing import medians, milliseconds, over, seconds_in_turns
from bench.record import keep, options
from bench.registry import backend, why_not_compared
from fvae import Philox, ops

SIZES, DIMS, VOTES, SAMPLES = (3, 6, 40, 32, 32), 10, 15_000, 64
ROUNDS, MODELS = 5, 50


def numpy_loop(codes: np.ndarray, scale: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Votes [d, K], one vote at a time, as the field's implementations count them."""
    votes = np.zeros((DIMS, len(SIZES)), dtype=np.int64)
    for _ in range(VOTES):
        factor = rng.integers(len(SIZES))
        classes = rng.integers(0, SIZES, size=(SAMPLES, len(SIZES)))
        classes[:, factor] = classes[0, factor]
        rows = np.ravel_multi_index(classes.T, SIZES)
        local = np.var(codes[rows], axis=0, ddof=1)
        votes[np.argmin(local / scale), factor] += 1
    return votes


def vectorised(codes: Tensor, scale: Tensor, generator: torch.Generator) -> Tensor:
    """Votes [d, K], all at once in PyTorch."""
    factor = torch.randint(len(SIZES), (VOTES,), generator=generator)
    rows = torch.zeros(VOTES, SAMPLES, dtype=torch.int64)
    for k, size in enumerate(SIZES):
        classes = torch.randint(size, (VOTES, SAMPLES), generator=generator)
        rows = rows * size + torch.where((factor == k)[:, None], classes[:, :1], classes)
    winner = (codes[rows].var(1) / scale).argmin(1)
    cells = torch.bincount(winner * len(SIZES) + factor, minlength=DIMS * len(SIZES))
    return cells.view(DIMS, len(SIZES))


def _codes(models: int) -> Tensor:
    """Latents 0 to 4 follow a factor each under noise, the others are noise."""
    digits = np.stack(np.unravel_index(np.arange(prod(SIZES)), SIZES), axis=1)
    signal = torch.from_numpy(digits / np.array(SIZES)).float()
    codes = torch.randn(models, prod(SIZES), DIMS, generator=torch.Generator().manual_seed(0))
    codes[..., : len(SIZES)] *= 0.05
    codes[..., : len(SIZES)] += signal
    return codes


def _labelled(codes: Tensor) -> dict[str, tuple[Tensor, ops.RowIndex]]:
    """The grid's codes and their labels: in the grid's order, and shuffled."""
    classes = torch.stack(torch.unravel_index(torch.arange(prod(SIZES)), SIZES), dim=1)
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(0))
    return {
        "labels": (codes, ops.RowIndex.of(classes)),
        "labels_shuffled": (codes[order], ops.RowIndex.of(classes[order])),
    }


def _accuracy(votes: np.ndarray) -> float:
    return float(votes.max(1).sum() / votes.sum())


def main(argv: Sequence[str] | None = None) -> None:
    """Check, time, print."""
    out = options("bench.votes", __doc__).parse_args(argv).out
    if why := why_not_compared("metric_votes", "cpu"):
        print(f"bench.votes: {why}", file=sys.stderr)
        sys.exit(2)
    codes = _codes(1)[0]
    scale, active = codes.var(0), torch.ones(DIMS, dtype=torch.bool)
    rng, generator = Philox(0), torch.Generator().manual_seed(0)
    numpy_rng, array = np.random.default_rng(0), codes.numpy()

    def op(
        codes: Tensor,
        scale: Tensor,
        active: Tensor,
        name: str | None = None,
        sizes: Sequence[int] | ops.RowIndex = SIZES,
    ) -> Tensor:
        return ops.metric_votes(
            codes, sizes, votes=VOTES, samples=SAMPLES, scale=scale, active=active, rng=rng,
            backend=name,
        )  # fmt: skip

    ours = op(codes, scale, active)
    if not torch.equal(ours, op(codes, scale, active, "reference")):
        raise SystemExit("bench.votes: the op's votes are not the reference's; not timed")
    sides = {
        "ours": lambda: op(codes, scale, active),
        "numpy": lambda: numpy_loop(array, scale.numpy(), numpy_rng),
        "torch": lambda: vectorised(codes, scale, generator),
    }
    for name, run in sides.items():
        # Other random numbers, the same metric: 15,000 votes put the accuracies within 0.02.
        if abs(_accuracy(np.asarray(run())) - _accuracy(ours.numpy())) > 0.02:
            raise SystemExit(f"bench.votes: {name} does not compute the same metric; not timed")

    times = seconds_in_turns(sides, ROUNDS)
    labelled = {
        name: lambda c=c, index=index: op(c, scale, active, sizes=index)
        for name, (c, index) in _labelled(codes).items()
    }
    if not torch.equal(labelled["labels"](), ours):
        raise SystemExit("bench.votes: the grid as labels has other votes; not timed")
    of_labels = seconds_in_turns({"grid": sides["ours"], **labelled}, 5 * ROUNDS)
    many = _codes(MODELS)
    scales = many.var(1)
    actives = active.repeat(MODELS, 1)

    def one_by_one() -> list[Tensor]:
        return [op(many[m], scales[m], active) for m in range(MODELS)]

    together = op(many, scales, actives)
    if not torch.equal(together, torch.stack(one_by_one())):
        raise SystemExit("bench.votes: models together and alone have other votes; not timed")
    of_many = seconds_in_turns(
        {"together": lambda: op(many, scales, actives), "one_by_one": one_by_one}, ROUNDS
    )
    found = {
        "ratio_numpy": over(times["numpy"], times["ours"], 1),
        "ratio_torch": over(times["torch"], times["ours"], 1),
        "ratio_labels": over(of_labels["grid"], of_labels["labels"]),
        "ratio_labels_shuffled": over(of_labels["grid"], of_labels["labels_shuffled"]),
        "ms": milliseconds(times | of_labels),
        "models": MODELS,
        "ratio_models_one_by_one": over(of_many["one_by_one"], of_many["together"]),
        "ms_a_model": milliseconds({n: [t / MODELS for t in each] for n, each in of_many.items()}),
    }
    keep(out, found)
    rest = {
        "threads": torch.get_num_threads(),
        "backend": backend("metric_votes", "cpu"),
        "extension_error": ops.EXTENSION_ERROR,
    }
    print(json.dumps(medians(found) | rest))


if __name__ == "__main__":
    main()
