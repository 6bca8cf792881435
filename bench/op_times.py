"""Ops on a GPU: each checked against the reference, then timed beside it."""

from collections.abc import Callable
from functools import cache
from math import prod

import torch
from torch import Tensor

from bench.device_timing import eager_and_graph, median, ratio
from bench.record import Record
from bench.registry import Case, cases, why_itself
from bench.setup import Setup
from bench.votes import DIMS
from fvae import Philox, ops

#: (relative, absolute) tolerance of what an op rounds, by dtype.
TOLERANCE = {torch.float32: (2e-5, 2e-5), torch.bfloat16: (2e-2, 2e-2), torch.float64: (1e-9, 1e-9)}

#: Ops that choose and move values without rounding any.
EXACT = ("permute_dims", "gather_batch")

# Share of the votes that may fall otherwise: two variances a rounding apart change places.
_VOTES_MOVED = 5e-3
_VOTES_MOVED_16_BITS = 2e-2  # the codes are coarse, so that ties are many


def mismatch(
    op: str, got: object, expected: object, dtype: torch.dtype | None = None
) -> str | None:
    """Say in what an op's results are not the reference's; None where they are.

    Integers, and what is only moved, are compared exactly, rounded numbers by their dtype's
    tolerance, votes by how many fell otherwise; ``dtype`` is that of the codes that voted.
    """
    share = _VOTES_MOVED_16_BITS if dtype and dtype.itemsize == 2 else _VOTES_MOVED
    pairs = list(zip(_tensors(got), _tensors(expected), strict=True))
    for i, (a, b) in enumerate(pairs):
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"result {i} is {list(a.shape)} {a.dtype}, expected {list(b.shape)} {b.dtype}"
        if op == "metric_votes":
            moved, votes = int((a - b).abs().sum()) // 2, int(b.sum())
            if int(a.sum()) != votes or moved > share * votes:
                return f"{moved} of {votes} votes fell otherwise"
        elif op in EXACT or not b.is_floating_point():
            if not torch.equal(a, b):
                return f"result {i} differs in {int((a != b).sum())} of {b.numel()} elements"
        else:
            relative, absolute = TOLERANCE[b.dtype]
            if not torch.allclose(a, b, rtol=relative, atol=absolute):
                return f"result {i} is off by {float((a - b).abs().max()):.1e}"
    return None


def _tensors(results: object) -> tuple[Tensor, ...]:
    return (results,) if isinstance(results, Tensor) else tuple(results)


def refusal(op: str, device: str) -> str | None:
    """Say why an op is not timed against the reference, or None where it is."""
    why = why_itself(op, device)
    return why and f"refused: {why}"


def measure(case: Case, device: str) -> dict:
    """Check one op at one shape, time it and its reference, return the row.

    Raises:
        ValueError: the results are not the reference's.
    """
    row = {
        "op": case.op,
        "shape": case.shape,
        "dtype": str(getattr(case, "dtype", torch.float32)).removeprefix("torch."),
        "bytes": case.bytes,
        "flops": case.flops,
        "backend": ops.backend_of(case.op, device),
    }
    refused = refusal(case.op, device)
    if refused:
        return row | {"refused": refused}
    wrong = mismatch(case.op, case.run(None), case.run("reference"))
    if wrong:
        raise ValueError(f"not timed: {wrong}")
    both = {"ours": lambda: case.run(None), "reference": lambda: case.run("reference")}
    times = eager_and_graph(both, device)
    return row | times["ours"] | {"reference": times["reference"]}


@cache
def _cases(device: str) -> list[Case]:
    if device == "cpu":
        return cases("cpu", batches=(7,), image_batches=(2,))
    return cases(device, batches=(64, 1024, 65536), image_batches=(64, 4096))


def rows(op: str, setup: Setup, record: Record) -> list[dict]:
    """Return an op's rows, one a shape; what fails is recorded by its shape."""
    found = []
    for case in _cases(setup.device):
        if case.op == op:
            with record.attempt(f"ops/{op} {case.shape}"):
                found.append(measure(case, setup.device))
    return found


def table(found: list[dict], copied: float | None, multiplied: float | None = None) -> str:
    """Return lines of times, and of the share of its time that a row's bound is.

    The bound is the time of a copy of the row's bytes, or of a matrix product of its operations
    where that is longer.

    Args:
        found: rows of :func:`rows`.
        copied: bytes a second of a copy; None leaves the share out.
        multiplied: operations a second of a float32 matrix product; None leaves them out.
    """
    lines = [f"{'op':<20}{'shape':<24}{'backend':<10}{'eager us':>9}{'graph us':>9}"
             f"{'ref. eager':>11}{'ref. graph':>11}{'of bound':>9}"]  # fmt: skip
    for row in found:
        start = f"{row['op']:<20}{row['shape']:<24}{row['backend']:<10}"
        if "refused" in row:
            lines.append(start + row["refused"])
            continue
        eager, graph = median(row["eager"]), median(row["graph"])
        theirs = (median(row["reference"][kind]) for kind in ("eager", "graph"))
        bound = bound_us(row, copied, multiplied)
        share = ratio(bound, graph or eager)
        numbers = "".join(
            f"{'-' if value is None else f'{value:.1f}':>{width}}"
            for value, width in zip((eager, graph, *theirs), (9, 9, 11, 11), strict=True)
        )
        lines.append(f"{start}{numbers}{'-' if share is None else f'{share:.0%}':>9}")
    return "\n".join(lines)


def bound_us(row: dict, copied: float | None, multiplied: float | None) -> float | None:
    """Return the least microseconds of a row's bytes and operations; None without bandwidth."""
    if copied is None:
        return None
    return 1e6 * max(row["bytes"] / copied, row["flops"] / multiplied if multiplied else 0.0)


@cache
def codes_of(device: str, models: int, sizes: tuple[int, ...]) -> Tensor:
    """Codes ``[M, N, 10]``: the first dimensions follow a factor each under noise."""
    generator = torch.Generator(device).manual_seed(0)
    codes = torch.randn(models, prod(sizes), DIMS, generator=generator, device=device)
    signal = torch.cartesian_prod(*(torch.arange(size, device=device) / size for size in sizes))
    codes[..., : len(sizes)] *= 0.05
    codes[..., : len(sizes)] += signal
    return codes


def votes(setup: Setup) -> list[dict]:
    """Time the votes of one model and of many beside vectorised PyTorch on the same device.

    Raises:
        ValueError: the votes are not the reference's, or vectorised PyTorch finds another metric.
    """
    from bench import votes as on_cpu

    refused = refusal("metric_votes", setup.device)
    if refused:
        return [{"refused": refused}]
    device, sizes = setup.device, (3, 4, 5) if setup.tiny else on_cpu.SIZES
    count = 50 if setup.tiny else on_cpu.VOTES
    most = 2 if setup.tiny else on_cpu.MODELS
    rng = Philox(0, device=device)
    generator = torch.Generator(device).manual_seed(0)
    found = []
    for models in (1, most):
        codes = codes_of(device, models, sizes)
        scale = codes.var(1)
        active = torch.ones(models, DIMS, dtype=torch.bool, device=device)

        def op(backend: str | None = None, c=codes, s=scale, a=active) -> Tensor:
            return ops.metric_votes(
                c, sizes, votes=count, samples=on_cpu.SAMPLES, scale=s, active=a, rng=rng,
                backend=backend,
            )  # fmt: skip

        wrong = mismatch("metric_votes", op(), op("reference"))
        if wrong:
            raise ValueError(f"not timed: {models} models: {wrong}")
        row = {"models": models, "votes": count, "samples": on_cpu.SAMPLES}
        row |= {"backend": ops.backend_of("metric_votes", device)}
        calls = {"ours": op}
        if models == 1 and sizes == on_cpu.SIZES:
            calls["vectorised"] = _vectorised(
                on_cpu.vectorised, op(), codes[0], scale[0], generator
            )
        times = eager_and_graph(calls, device)
        found.append(row | times.pop("ours") | times)
    return found


def _vectorised(
    run: Callable, votes: Tensor, codes: Tensor, scale: Tensor, generator: torch.Generator
) -> Callable[[], Tensor]:
    """Return a call of vectorised PyTorch, whose votes fell on dimensions and factors as ours do.

    Raises:
        ValueError: they did not.
    """

    def call() -> Tensor:
        with torch.device(codes.device):  # what it makes, it makes there
            return run(codes, scale, generator)

    theirs = call()
    # Other random numbers: counts differ by chance alone, here by six deviations at most.
    difference, total = (votes[0] - theirs).abs().double(), (votes[0] + theirs).double()
    if (difference > 6 * total.sqrt()).any():
        raise ValueError("not timed: vectorised PyTorch does not compute the same metric")
    return call


def votes_table(found: list[dict]) -> str:
    """Return lines of times a model."""
    lines = []
    for row in found:
        if "refused" in row:
            lines.append(row["refused"])
            continue
        theirs = median(row.get("vectorised", {}).get("eager"))
        lines.append(
            f"{row['models']} models, {row['votes']} votes: {median(row['eager']):.0f} us eager"
            + (f", vectorised PyTorch {theirs:.0f} us" if theirs else "")
        )
    return "\n".join(lines)
