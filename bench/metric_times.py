"""All metrics of many models' codes on the dSprites grid: the ops that take them at once, the rest.

Three ops take the codes ``[M, N, d]`` of M models together. A metric is a call for each model,
which does on the host what no op does; its time is that of as many models as a few seconds allow,
and what it says of all of them is that time a model, times their number.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from bench import votes
from bench.device_timing import microseconds, synchronize
from bench.op_times import codes_of, mismatch, refusal
from bench.setup import Setup
from fvae import Philox, ops
from fvae.metrics import Factors
from fvae.registry import METRICS

#: Metrics of boosted trees, which take most of a minute a model, on the host.
SLOW = ("dci_locatello2019", "downstream")

_SECONDS = 2.0  # after which a metric goes on to no further model
_TINY_SIZES = (3, 4, 25)


def sizes_of(setup: Setup) -> tuple[int, ...]:
    """Sizes of the factors."""
    return _TINY_SIZES if setup.tiny else votes.SIZES


def _codes(setup: Setup) -> Tensor:
    models = 2 if setup.tiny else votes.MODELS
    return codes_of(setup.device, models, sizes_of(setup))


def one_by_one(name: str, setup: Setup) -> dict:
    """Score model after model by one metric, as ``fvae eval --protocol locatello2019`` does.

    Returns:
        metric, the models scored, their seconds, and the seconds of all at that rate.
    """
    codes, metric = _codes(setup), METRICS[name]
    factors, protocol = Factors.grid(sizes_of(setup)), "locatello2019"
    options = {"logvar": torch.full_like(codes[0], -3.0)} if metric.posterior else {}
    synchronize(setup.device)
    started, seconds, done = time.perf_counter(), 0.0, 0
    while done < len(codes) and seconds < _SECONDS:
        metric.score(codes[done], factors, protocol, 0, None, **options)
        done += 1
        synchronize(setup.device)
        seconds = time.perf_counter() - started
    return {
        "metric": name,
        "models": done,
        "seconds": seconds,
        "of_models": len(codes),
        "seconds_of_all": seconds / done * len(codes),
    }


def together(setup: Setup) -> list[dict]:
    """Time the ops that take all models at once, after two models' results were the reference's.

    Raises:
        ValueError: they were not.
    """
    codes, rows = _codes(setup), []
    for op, run in _batched(setup).items():
        if refused := refusal(op, setup.device):
            rows.append({"metric": op, "refused": refused})
            continue
        wrong = mismatch(op, run(codes[:2], None), run(codes[:2], "reference"))
        if wrong:
            raise ValueError(f"not timed: {op}: {wrong}")
        times = microseconds(lambda run=run: run(codes, None), setup.device)
        seconds = 1e-6 * times["p50"]
        rows.append({"metric": f"op {op}", "models": len(codes), "seconds": seconds,
                     "of_models": len(codes), "seconds_of_all": seconds})  # fmt: skip
    return rows


def _batched(setup: Setup) -> dict[str, Callable[[Tensor, str | None], object]]:
    """Return calls of the ops by name, with the sizes of ``locatello2019``."""
    sizes, rng = sizes_of(setup), Philox(0, device=setup.device)
    count, points = (50, 20) if setup.tiny else (votes.VOTES, 15_000)

    def metric_votes(codes: Tensor, backend: str | None) -> Tensor:
        active = torch.ones(codes.shape[::2], dtype=torch.bool, device=codes.device)
        return ops.metric_votes(
            codes, sizes, votes=count, samples=votes.SAMPLES, scale=codes.var(1), active=active,
            rng=rng, backend=backend,
        )  # fmt: skip

    return {
        "metric_votes": metric_votes,
        "pair_features": lambda codes, backend: ops.pair_features(
            codes, sizes, points=points, pairs=64, rng=rng, backend=backend
        ),
        "grouped_variance": lambda codes, backend: ops.grouped_variance(
            codes, sizes, backend=backend
        ),
    }


def table(rows: list[dict]) -> str:
    """Return a line for each metric."""
    lines = [f"{'metric':<24}{'models timed':>13}{'seconds':>10}{'of all models':>15}"]
    for row in rows:
        if "refused" in row:
            lines.append(f"{row['metric']:<24}{row['refused']}")
            continue
        lines.append(
            f"{row['metric']:<24}{row['models']:>13}{row['seconds']:>10.4f}"
            f"{row['seconds_of_all']:>10.4f} ({row['of_models']})"
        )
    return "\n".join(lines)
