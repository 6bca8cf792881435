"""``python -m bench.first_light [PART...]``: the first minutes on a new GPU.

Parts: ``metrics`` (the metric ops against the reference over odd shapes), ``same`` (are two runs
the same bits), ``profile`` (a step's kernels and how long each is busy), ``stacked`` (several
models in a step), ``loop`` (what checkpoints and logs cost). A part that fails loses nothing;
``--out`` keeps all of it as JSON. The exit status is 1 if a check failed.
"""

import itertools
from collections.abc import Sequence
from functools import partial
from math import prod

import torch
from torch import Tensor

from bench import gpu_parts, op_times, record
from bench.arithmetic import arithmetic, precisions
from bench.record import Part, Record
from bench.setup import Setup
from fvae import Philox, ops
from fvae.training.trainer import Trainer

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_SAME_STEPS = 40
_SHOWN = 20  # of the mismatches


def metric_checks(setup: Setup) -> dict:
    """Compare the metric ops with the reference over odd shapes, dtypes and a large key.

    Returns:
        ``checks``, their number, or ``refused``, why there is nothing to compare.

    Raises:
        ValueError: an op's result is not the reference's.
    """
    refused = op_times.refusal("metric_votes", setup.device)
    if refused:
        return {"refused": refused}
    grids = [(3, 4, 5), (2, 3), (7,)] + ([] if setup.tiny else [(3, 6, 10, 8)])
    sources: dict[str, tuple[int, ...] | ops.RowIndex]
    sources = {f"sizes {sizes}": sizes for sizes in grids}
    for rows in (61,) if setup.tiny else (61, 9001):
        labels = torch.stack([torch.arange(rows) % n for n in (2, 7, 30)], dim=1)
        sources[f"labels of {rows} rows"] = ops.RowIndex.of(labels).to(setup.device)
    widths = (1, 10) if setup.tiny else (1, 2, 4, 10, 33, 36, 40)
    samples = (2, 7) if setup.tiny else (2, 7, 100, 301)
    generator = torch.Generator().manual_seed(0)
    checks, wrong = 0, []
    for (source, sizes), models, width, dtype in itertools.product(
        sources.items(), (1, 3), widths, _DTYPES
    ):
        rows = len(sizes) if isinstance(sizes, ops.RowIndex) else prod(sizes)
        codes = torch.randn(models, rows, width, generator=generator) + 3
        active = (torch.rand(models, width, generator=generator) < 0.8).to(setup.device)
        codes = codes.to(setup.device, dtype)
        for name, run in _metric_calls(codes, sizes, active, samples).items():
            checks += 1
            found = op_times.mismatch(name.split()[0], run(None), run("reference"), dtype)
            if found:
                shape = f"{source}, {models} models, width {width}, {dtype}"
                wrong.append(f"{name}, {shape}: {found}")
    if wrong:
        raise ValueError(f"{len(wrong)} of {checks} checks failed: {'; '.join(wrong[:_SHOWN])}")
    return {"checks": checks}


def _metric_calls(
    codes: Tensor, sizes: tuple[int, ...] | ops.RowIndex, active: Tensor, samples: tuple[int, ...]
) -> dict:
    """Return calls of the metric ops by a name that begins with the op's."""
    device = codes.device
    scale = codes.float().var(1)
    rng = Philox(2**63 + 5, step=2**33 + 1, device=device).at_lane(1)
    calls = {"grouped_variance": lambda b: ops.grouped_variance(codes, sizes, backend=b)}
    for count in samples:
        calls[f"metric_votes of {count}"] = lambda b, n=count: ops.metric_votes(
            codes, sizes, votes=203, samples=n, scale=scale, active=active, rng=rng, backend=b
        )
        calls[f"pair_features of {count}"] = lambda b, n=count: ops.pair_features(
            codes, sizes, points=57, pairs=n, rng=rng, backend=b
        )
    return calls


def _state_after(setup: Setup, precision: str, graph: bool) -> dict[str, Tensor]:
    """Return all that a run of a few steps leaves for the next."""
    trainer = Trainer(setup.config(precision=precision, graph=graph), setup.on_device)
    for _ in range(2 if setup.tiny else _SAME_STEPS):
        trainer.step()
    return {name: tensor.detach().clone() for name, tensor in trainer.state().items()}


def same_bits(setup: Setup, kept: Record) -> list[dict]:
    """Train twice kernel after kernel and twice as a graph; compare what is left bit by bit.

    Rows are made with PyTorch's default algorithms and with deterministic ones. Only of the
    latter is sameness demanded: a pair of them that differs is a failure.
    """
    rows = []
    for deterministic, precision in itertools.product((False, True), precisions(setup.device)):
        with kept.attempt(f"same/{precision}, {_algorithms(deterministic)}"):
            rows += (found := _pairs(setup, precision, deterministic))
            wrong = [row for row in found if deterministic and row["tensors"]]
            if wrong:
                raise ValueError(same_table(wrong))
    return rows


def _algorithms(deterministic: bool) -> str:
    return "deterministic" if deterministic else "default"


def _pairs(setup: Setup, precision: str, deterministic: bool) -> list[dict]:
    """Compare runs of one precision, two by two."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = deterministic
    try:
        with arithmetic(precision):
            runs = {
                name: _state_after(setup, precision, name.startswith("graph"))
                for name in ("eager", "eager again", "graph", "graph again")
            }
    finally:
        torch.backends.cudnn.deterministic = before
    pairs = (("eager", "eager again"), ("graph", "graph again"), ("eager", "graph"))
    return [
        {"deterministic": deterministic, "precision": precision, "runs": f"{a}, {b}"}
        | _difference(runs[a], runs[b])
        for a, b in pairs
    ]


def _difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> dict:
    """Count the tensors that are not the same bits; name the one that is furthest off."""
    off = {
        name: float((value.double() - b[name].double()).abs().max())
        for name, value in a.items()
        if not torch.equal(value, b[name])
    }
    most = max(off, key=off.get, default=None)
    return {"tensors": len(off), "most": most, "by": off.get(most, 0.0)}


def same_table(rows: list[dict]) -> str:
    """Return a line for each pair of runs."""
    return "\n".join(
        f"{row['precision']:<6}{_algorithms(row['deterministic']):<15}"
        f"{row['runs']:<22}"
        + (f"{row['tensors']} tensors differ, {row['most']} by {row['by']:.1e}"
           if row["tensors"] else "the same bits")
        for row in rows
    )  # fmt: skip


def parts_of(device: str, kept: Record) -> list[Part]:
    """Return the parts, in their order."""
    setup = Setup(device)
    return [
        Part("metrics", 30, partial(metric_checks, setup)),
        Part("same", 40, partial(same_bits, setup, kept)),
        Part("profile", 20, partial(gpu_parts.profiles, setup, kept)),
        Part("stacked", 35, partial(gpu_parts.stacked, setup, kept)),
        Part("loop", 20, partial(gpu_parts.loop, setup, kept)),
    ]


def show(kept: Record) -> None:
    """Print what was found, then a line for each part."""
    print(f"{'commit':<18}{kept.data['commit']}")
    for part in ("device", "versions", "state"):
        for name, value in kept.data[part].items():
            print(f"{name:<18}{value}")
    tables = {
        "metrics": lambda found: found.get("refused") or f"{found['checks']} checks hold",
        "same": same_table,
        "profile": partial(gpu_parts.profile_table, kernels=40),
        "stacked": gpu_parts.stacked_table,
        "loop": gpu_parts.loop_table,
    }
    found = kept.results
    for name, table in tables.items():
        if found.get(name):
            print(f"-- {name}\n{table(found[name])}")
    print("-- summary")
    for name, part in kept.data["parts"].items():
        failed = [key for key in kept.failures if key.split("/")[0] == name]
        result = found.get(name)
        refused = isinstance(result, dict) and "refused" in result
        verdict = f"FAILED {len(failed)}" if failed else "refused" if refused else "ok"
        print(f"{name:<12}{verdict:<10}{part['seconds']:>8.1f} s")


def main(argv: Sequence[str] | None = None) -> None:
    """Look, print, and exit with 1 if a check failed."""
    record.program("bench.first_light", "The first minutes on a GPU.", parts_of, show, None, argv)


if __name__ == "__main__":
    main()
