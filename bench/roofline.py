"""``python -m bench.roofline``: each op and each stage of a training step as a share of its bound.

The bound is measured on the machine in the same run: the time that a copy of the bytes takes which
an op or a stage must read and write at the least, or a matrix product of its operations where that
is longer. A copy is taken at several sizes, from what the caches hold to what they do not, and read
off between them, so that small data are compared with a copy that finds its data where they are.
Prints tables; ``--out`` keeps the record, and the figure of the same name as PNG.
"""

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from bench import bounds, op_times, stages
from bench.device_timing import eager_and_graph, in_turns, median
from bench.record import Record, keep, options
from bench.registry import Case, backend, cases
from bench.setup import Setup
from fvae.device import AUTOCAST, device_name, has_fast_bf16
from fvae.models.vae import sizes
from fvae.training.trainer import Trainer

#: Bytes of the copies, of each of source and target.
COPIES = tuple(1 << power for power in (12, 15, 18, 21, 24, 27, 29))
_SECONDS, _MOST_TURNS = 0.3, 200  # of one comparison on a CPU
_FLOAT = 4  # bytes


def turns_of(run: Callable[[], object]) -> int:
    """How often a CPU does something within about ``_SECONDS``, at least 5 times."""
    run()
    once = in_turns({"": run}, "cpu", turns=1)[""]["p50"] * 1e-6
    return min(max(5, int(_SECONDS / once)), _MOST_TURNS)


def copies(device: str, each: Sequence[int] = COPIES, turns: int = 20) -> dict[str, float]:
    """Bytes a second, read plus written, of copies of some sizes; by bytes read plus written."""
    return {str(2 * size): bounds.copy_bandwidth(device, size, turns) for size in each}


def copy_seconds(size: float, copied: dict[str, float]) -> float:
    """Seconds that a copy which reads and writes ``size`` bytes takes, between those measured.

    The rate is linear in the logarithm of the bytes, and constant beyond the ends.
    """
    points = sorted((math.log(int(key)), rate) for key, rate in copied.items())
    logarithms, rates = zip(*points, strict=True)
    return size / float(np.interp(math.log(max(size, 1)), logarithms, rates))


def bounded(row: dict, found: dict, precision: str) -> dict:
    """Return a row with ``bound_us``, ``bound_by`` and ``share``, the bound over the time."""
    by = {"bytes": copy_seconds(row["bytes"], found["copy"]) if row["bytes"] else 0.0}
    by["operations"] = row["flops"] / found["matmul"][precision]
    which = max(by, key=lambda name: by[name])
    bound = 1e6 * by[which]
    return row | {"bound_us": bound, "bound_by": which, "share": bound / row["us"]["p50"]}


def timed_op(case: Case, device: str) -> dict:
    """Check an op where it has more than its reference, time it, and return its row.

    Raises:
        ValueError: the results are not the reference's.
    """
    chosen = backend(case, device)
    if chosen != "reference":
        wrong = op_times.mismatch(case.op, case.run(None), case.run("reference"))
        if wrong:
            raise ValueError(f"not timed: {wrong}")

    def run() -> object:
        return case.run(None)

    if device == "cuda":
        times = eager_and_graph({"": run}, device)[""]
        us = times["eager"] if median(times["graph"]) is None else times["graph"]
    else:
        us = in_turns({"": run}, device, turns=turns_of(run))[""]
    row = {"op": case.op, "shape": case.shape, "backend": chosen}
    return row | {"bytes": case.bytes, "flops": case.flops, "us": us}


def operations(network: nn.Module, sides: Sequence[int]) -> int:
    """Operations of the products of one image or row forward: two for each weight and place.

    Args:
        network: convolutions, in the order of ``sides``, and linear layers.
        sides: of the images that a convolution makes, or a transposed one takes, pixels.
    """
    places = iter(side * side for side in sides)
    weights = [p for p in network.parameters() if p.dim() > 1]
    return sum(2 * p.numel() * (next(places) if p.dim() == 4 else 1) for p in weights)


def needs(trainer: Trainer) -> dict[str, tuple[int, int]]:
    """Bytes and operations of each of :func:`bench.stages.stages_of`, at the least.

    A stage reads its input and its weights, and writes its output and the weights' gradients; what
    lies between layers may stay in a cache. A backward pass has twice the operations of the forward
    pass, less those for the gradient of images, which nobody needs.
    """
    config, vae, disc = trainer.config, trainer.vae, trainer.discriminator
    assert disc is not None
    batch, d, side = config.batch_size, config.latent_dim, config.image_size or 64
    inward = sizes(side)[1:]
    gpu, half = trainer.device.type == "cuda", AUTOCAST.get(config.precision)
    item = half.itemsize if half else _FLOAT
    pixels = side * side * vae.image_shape[0]
    image = pixels * (item if gpu else _FLOAT)
    packed = trainer.store.data[0].numel()
    count = {n: sum(p.numel() for p in net.parameters()) for n, net in (
        ("encoder", vae.encoder), ("decoder", vae.decoder), ("disc", disc))}  # fmt: skip
    encoder, decoder = operations(vae.encoder, inward), operations(vae.decoder, inward[::-1])
    first = 2 * vae.encoder[0].weight.numel() * inward[0] ** 2
    code = batch * d * _FLOAT
    total = sum(count.values())
    return {
        "images": (2 * batch * (packed + image), 0),
        "encoder": (
            2 * batch * image + 2 * item * count["encoder"] + 4 * code,
            batch * (4 * encoder - first),
        ),
        "codes": (10 * code, 0),
        "decoder, likelihood": (
            batch * (packed if gpu else image) + 2 * item * count["decoder"] + 2 * code,
            3 * batch * decoder,
        ),
        "discriminator": (
            2 * item * count["disc"] + 3 * code,
            3 * 2 * batch * operations(disc, ()),
        ),
        "adam": (total * (6 * _FLOAT + item + (item if half else 0)), 0),
    }  # fmt: skip


def timed_stages(setup: Setup, kept: Record, found: dict, turns: int) -> dict[str, dict]:
    """Stages of a step and the whole by precision, each a row as of :func:`bounded`.

    The whole step's bound is the sum of its stages', which come one after another.
    """
    rows = {}
    for precision in found["matmul"]:
        times = stages.timed(setup, kept, [precision], turns).get(precision)
        if times is None:
            continue
        least = needs(Trainer(setup.config(precision=precision), setup.on_device))
        each = {
            name: bounded({"bytes": size, "flops": flops, "us": times[name]}, found, precision)
            for name, (size, flops) in least.items()
        }
        bound = sum(row["bound_us"] for row in each.values())
        whole = times[stages.WHOLE]
        each[stages.WHOLE] = {
            "bytes": sum(row["bytes"] for row in each.values()),
            "flops": sum(row["flops"] for row in each.values()),
            "us": whole, "bound_us": bound, "bound_by": "stages", "share": bound / whole["p50"],
        }  # fmt: skip
        rows[precision] = each
    return rows


def measure(setup: Setup, kept: Record) -> dict:
    """Return bounds, ops and stages of a device; what failed is in ``kept.failures``."""
    device, tiny, gpu = setup.device, setup.tiny, setup.device == "cuda"
    names = ["fp32", *(["bf16"] if has_fast_bf16(torch.device(device)) else [])]
    side = 64 if tiny else 8192 if gpu else 2048
    found: dict = {"copy": copies(device, COPIES[:2] if tiny else COPIES, 1 if tiny else 20)}
    found["matmul"] = bounds.matmul_rates(device, side, names, 1 if tiny else 9)
    few = {"batches": (7,), "image_batches": (2,)} if tiny else {}
    found["ops"] = []
    for case in cases(device, **few):
        with kept.attempt(case.label):
            # The products of a layer's ops are made in the precision of their inputs.
            found["ops"].append(bounded(timed_op(case, device), found, "fp32"))
    found["stages"] = timed_stages(setup, kept, found, 1 if tiny else 15)
    return found


def table(found: dict) -> str:
    """Return the lines that are printed."""
    lines = ["copy: " + ", ".join(f"{int(size) / 1e6:.3g} MB {rate / 1e9:.1f}"
                                  for size, rate in found["copy"].items()) + " GB/s"]  # fmt: skip
    rates = (f"{name} {rate / 1e9:.0f}" for name, rate in found["matmul"].items())
    lines.append(f"matmul: {', '.join(rates)} GFLOP/s")
    for name, row in named_rows(found):
        lines.append(f"{name:<60}{row['us']['p50']:>11.1f} us, bound {row['bound_us']:>10.1f}"
                     f" ({row['bound_by']}) {row['share']:>6.0%}")  # fmt: skip
    return "\n".join(lines)


def named_rows(found: dict) -> list[tuple[str, dict]]:
    """Stages, the whole step first, then ops, each with its name."""
    rows = []
    for precision, each in found["stages"].items():
        whole = each[stages.WHOLE]
        rows += [(f"{name} ({precision})", row) for name, row in each.items() if row is not whole]
        rows.append((f"{stages.WHOLE} ({precision})", whole))
    return rows + [(f"{row['op']} {row['shape']}", row) for row in found["ops"]]


def draw(found: dict, title: str, path: Path) -> None:
    """Write the figure: stages under the device's roofs, and everything's share of its bound."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = named_rows(found)[::-1]
    height = 0.19 * len(rows) + 1.5
    figure, (roof, bars) = plt.subplots(
        1, 2, figsize=(13, max(5, height)), width_ratios=(1, 1), layout="constrained"
    )
    slowest = found["copy"][max(found["copy"], key=int)]
    colours = dict(zip(found["matmul"], ("C0", "C1"), strict=False))
    for up, (precision, rate) in enumerate(found["matmul"].items()):
        ridge = rate / slowest  # operations a byte from which products are the bound
        y = [slowest / 1e9, rate / 1e9, rate / 1e9]
        label = f"{precision}: {rate / 1e9:.0f} GFLOP/s"
        roof.plot([1, ridge, 1e4], y, colours[precision], label=label)
        for name, row in found["stages"].get(precision, {}).items():
            if row["flops"]:
                at = row["flops"] / row["bytes"], row["flops"] / row["us"]["p50"] / 1e3
                roof.plot(*at, "o", color=colours[precision])
                roof.annotate(
                    name, at, xytext=(0, 7 if up else -11), textcoords="offset points",
                    fontsize=8, ha="center", color=colours[precision],
                )  # fmt: skip
    roof.set(xscale="log", yscale="log", ylabel="GFLOP/s")
    roof.set_xlabel("operations for each byte that must be moved")
    roof.set_title(f"{title}\ncopy from memory: {slowest / 1e9:.1f} GB/s", fontsize=10)
    roof.legend(loc="lower right")
    roof.grid(alpha=0.3)
    hues = {"bytes": "C2", "operations": "C3", "stages": "C7"}
    bars.barh(range(len(rows)), [100 * row["share"] for _, row in rows],
              color=[hues[row["bound_by"]] for _, row in rows])  # fmt: skip
    bars.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=8)
    bars.axvline(100, color="black", linewidth=0.8)
    bars.set(xlabel="bound over time, %", ylim=(-0.7, len(rows) - 0.3))
    words = "green: of a copy of the bytes; red: of products; grey: of its stages"
    bars.set_title(f"share of the bound\n{words}", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, keep; exit with 1 if something did not match its reference."""
    parser = options("bench.roofline", __doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.exit(2, "bench.roofline: PyTorch sees no CUDA device; use --device cpu\n")
    kept = Record(None, args.device)
    found = measure(Setup(args.device, measured=True), kept)
    print(table(found))
    for name, message in kept.failures.items():
        print(f"{name}: {message}", file=sys.stderr)
    if kept.failures:
        sys.exit(1)
    keep(args.out, found, args.device)
    if args.out:
        draw(found, device_name(args.device), args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
