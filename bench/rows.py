"""What each table of the pages shows of its records: their numbers as lines of Markdown.

Each takes the records (:mod:`bench.figures`) that ``bench.table.TABLES`` names, in that order, and
returns lines; a record that lacks a number raises KeyError or the like.
"""

from collections.abc import Sequence
from statistics import mean, stdev

from bench.figures import middle

STEPS = 300_000  # of the paper's run


def rows(head: Sequence[str], *body: Sequence[object]) -> list[str]:
    """Return the lines of a Markdown table."""
    return [_row(head), "|" + "---|" * len(head), *map(_row, body)]


def _row(cells: Sequence[object]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def spread(value: dict | None, digits: int = 2) -> str:
    """Return a median with its 20th and 80th percentile, "-" where nothing was measured."""
    if value is None:
        return "-"
    p20, p50, p80 = (f"{value[p]:.{digits}f}" for p in ("p20", "p50", "p80"))
    return f"{p50} ({p20} to {p80})"


def source(*records: dict) -> str:
    """Return the line that says where and when records were made."""
    said = []
    for record in records:
        line = f"{_machine(record)}, torch {record['versions']['torch']}"
        line += f", commit {record['commit']}, {record['date']}"
        if line not in said:
            said.append(line)
    return "; ".join(said) + "."


def step(record: dict) -> list[str]:
    """The textbook step beside ours, by precision."""
    found = record["numbers"]
    return rows(
        ("", "textbook's time over ours", "textbook, ms", "ours, ms"),
        *(
            (
                f"`--precision {p}`", spread(found[f"ratio_{p}"]),
                spread(found["ms"]["textbook"], 1), spread(found["ms"].get(p), 1),
            )
            for p in ("bf16", "fp32")
        ),
    )  # fmt: skip


def launches(record: dict) -> list[str]:
    """Kernels and megabytes of a step on a GPU."""
    found, each = record["numbers"], ("bf16", "fp32")

    def updates(name: str) -> str:
        moved = found["by_operation"][name]
        return f"{sum(moved[op]['MB'] for op in moved if op.endswith('_adam')):.1f}"

    body = []
    for name in ("factor-vae", "vae"):
        cells = [found[f"{name} {p}"] for p in each] + [found[f"{name} {p} MB"] for p in each]
        body.append((f"`{name}`", *cells, *(updates(f"{name} {p}") for p in each)))
    units = ("", ", MB", ", MB of updates")
    return rows(("objective", *(p + unit for unit in units for p in each)), *body)


def votes(record: dict) -> list[str]:
    """Others' time over that of the votes' op."""
    found = record["numbers"]
    return rows(
        ("", "time over that of `metric_votes`"),
        ("NumPy loop, one vote after another", spread(found["ratio_numpy"], 1)),
        ("vectorised PyTorch", spread(found["ratio_torch"], 1)),
        (f"{found['models']} models one by one, over all together",
         spread(found["ratio_models_one_by_one"])),
        ("the op itself on a full grid, over the same grid as labels (`ratio_labels`)",
         spread(found["ratio_labels"])),
        ("likewise, rows shuffled (`ratio_labels_shuffled`)",
         spread(found["ratio_labels_shuffled"])),
    )  # fmt: skip


def adam(record: dict) -> list[str]:
    """PyTorch's Adam over ours."""
    found = record["numbers"]
    kinds = {
        "bfloat16": "gradients to fp32, PyTorch's fused Adam, weights to bf16",
        "float32": "PyTorch's fused Adam alone, all in fp32",
    }
    return rows(
        ("", "time over that of `fused_adam`", "`fused_adam`, ms"),
        *(
            (words, spread(found[kind]["ratio"]), spread(found[kind]["ms"]["fused_adam"], 1))
            for kind, words in kinds.items()
        ),
    )


def evaluate(record: dict) -> list[str]:
    """Scoring a run beside a loop that encodes afresh."""
    found, seconds = record["numbers"], record["numbers"]["seconds"]
    timed = f"encoding afresh in fp32, timed on one in {found['loop_timed_on_one_in']} batches"
    return rows(
        ("", "time over ours", "seconds"),
        (timed, found["ratio"], seconds["loop"]),
        ("`fvae eval --precision fp32`", found["fp32_over_ours"], seconds["ours_fp32"]),
        ("`fvae eval`", 1, seconds["ours"]),
    )


_SIZES = {"default": "default size", "small": "64-unit discriminator, 16 channels"}
_WAYS = ("stacked_8", "process_a_core", "stacked_4_a_core")


def stacked(record: dict) -> list[str]:
    """Several models at once, over one after another."""
    body = []
    for size, words in _SIZES.items():
        for precision in ("bf16", "fp32"):
            found = record["numbers"].get(f"{size}_{precision}")
            if found:
                over = (f"{found[way] / found['one_after_another']:.2f}" for way in _WAYS)
                body.append((f"{words}, {precision}", found["one_after_another"], *over))
    head = ("", "steps a second one after another", "8 stacked", "one process a core",
            "4 stacked on each core")  # fmt: skip
    return rows(head, *body)


def trees(record: dict) -> list[str]:
    """Boosted trees beside scikit-learn's."""
    keys = ("apart", "sklearn_seeds_apart")
    return rows(
        ("codes", "scikit-learn's time over ours", "scores apart", "scikit-learn's own, two seeds"),
        *(
            (name, f"{row['ratio']:.0f}", *(f"{row[key]:.5f}" for key in keys))
            for name, row in record["numbers"]["codes"].items()
        ),
    )


def _rate(per_second: float) -> str:
    return f"{per_second / 1e9:.3g}"


def bounds(record: dict) -> list[str]:
    """What the machine can do at most."""
    found = record["numbers"]
    copied = found["copy"]
    body = [(f"copy of {int(size) / 2e6:.3g} MB", f"{_rate(copied[size])} GB/s") for size in copied]
    body += [(f"products in {p}", f"{_rate(r)} GFLOP/s") for p, r in found["matmul"].items()]
    return rows(("what the machine can do", ""), *body)


def stages(record: dict) -> list[str]:
    """Stages of a step and their shares of the bound."""
    found = record["numbers"]["stages"]
    names = list(next(iter(found.values())))
    body = []
    for name in names:
        each = [found[p][name] for p in found]
        times = (f"{middle(row['us']) / 1e3:.1f}" for row in each)
        body.append((name, *times, *(_share(row) for row in each), each[0]["bound_by"]))
    head = ("stage", *(f"{p}, ms" for p in found), *(f"{p}, of bound" for p in found), "bound by")
    return rows(head, *body)


def _share(row: dict) -> str:
    return f"{row['share']:.0%}" if row["share"] >= 0.005 else "< 1%"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def ops(record: dict) -> list[str]:
    """Ops and their shares of the bound."""
    body = [
        (
            f"`{row['op']}`", row["shape"], row["backend"], _number(middle(row["us"])),
            _number(row["bound_us"]), row["bound_by"], _share(row),
        )
        for row in record["numbers"]["ops"]
    ]  # fmt: skip
    return rows(("op", "shape", "backend", "us", "bound, us", "bound by", "of bound"), *body)


def peers(record: dict) -> list[str]:
    """Packages that people use beside ours."""
    body = [
        (row["what"], row["peer"], _number(row["theirs"]), _number(row["ours"]), row["unit"],
         spread(row["ratio"]) if isinstance(row["ratio"], dict) else row["ratio"])
        for row in record["numbers"]["rows"]
    ]  # fmt: skip
    return rows(("", "peer", "theirs", "ours", "unit", "theirs over ours"), *body)


def time_to_score(record: dict) -> list[str]:
    """Scores of each number of steps, one a seed."""
    found = record["numbers"]
    return rows(
        ("steps", "minutes a model", "mean FactorVAE score", "standard deviation", "above 0.62",
         "seeds"),
        *(
            (
                f"{one['steps']:,}", f"{one['minutes']:.1f}", f"{one['mean']:.4f}",
                _or_dash(one["sd"], 3), f"{one['above_0.62']} of {found['seeds']}",
                " ".join(f"{score:.2f}" for score in one["score"]),
            )
            for one in found["budgets"]
        ),
    )  # fmt: skip


def paper(record: dict) -> list[str]:
    """Each setting of the paper's comparison, the best first."""
    found = record["numbers"]
    return rows(
        ("setting", "steps", "seeds", "FactorVAE score", "reconstruction, nats", "beside the best"),
        *(
            (
                f"`{each['setting']}`", f"{one['steps']:,}", len(one["scores"]),
                _mean(one["scores"], 3), _mean(one["recon"], 1), each["verdict"],
            )
            for each in found["compared"]
            for one in [found["settings"][each["setting"]]]
        ),
    )  # fmt: skip


def claim(record: dict) -> list[str]:
    """Each objective at its setting of greatest mean score, beside the best; a paragraph."""
    found, said = record["numbers"], {}
    for each in found["compared"]:  # the best first
        one = found["settings"][each["setting"]]
        at = f" at {_mean(one['recon'], 0)} nats of reconstruction error" if one["recon"] else ""
        fewer = f" after {one['steps']:,} steps" if one["steps"] != found["steps"] else ""
        beside = f" ({each['verdict']})" if said else ""
        score = f"`{each['setting']}` {_mean(one['scores'])}{at}{fewer}{beside}"
        said.setdefault(one["objective"], score)
    done = sum(len(one["scores"]) for one in found["settings"].values())
    return [
        f"FactorVAE score ({found['protocol']}) of each objective at its best weight, mean ±"
        f" standard deviation over seeds: {'; '.join(said.values())}.",
        f"{done} of {found['runs']} runs, of {found['steps']:,} steps where nothing else is said;"
        f" the paper's have {STEPS:,} (`fvae paper --scale full`).",
    ]


def _mean(values: Sequence[float], digits: int = 2) -> str:
    """Return the mean and, of more than one, the standard deviation; "-" of none."""
    if not values:
        return "-"
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


def _or_dash(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def time(record: dict) -> list[str]:
    """How long the paper's run takes; a paragraph."""
    found = record["numbers"]
    rates = {
        p: found[f"default_{p}"]["one_after_another"]
        for p in ("bf16", "fp32")
        if f"default_{p}" in found
    }
    each = (f"{rate} steps a second in {p}" for p, rate in rates.items())
    hours = (f"{STEPS / rate / 3600:.1f}" for rate in rates.values())
    return [
        f"**How long does a run take?** The default step runs at {' and '.join(each)}"
        f" ({_machine(record)}):",
        f"{' and '.join(hours)} hours for the paper's {STEPS:,} steps."
        " Fewer `--steps` and a smaller `--disc-units` cost less.",
    ]


def _machine(record: dict) -> str:
    device = record["device"]
    threads = device.get("threads")
    return device["name"] + (f", {threads} thread{'s' * (threads > 1)}" if threads else "")


def figures(amx: dict, step: dict, votes: dict, evaluate: dict, stacked: dict) -> list[str]:
    """The main page's table."""
    ratios = amx["numbers"]["ratio_bf16"], step["numbers"]["ratio_fp32"]
    counted = votes["numbers"]
    machines = dict.fromkeys(map(_machine, (amx, step, votes, evaluate, stacked)))
    p = "bf16" if "default_bf16" in stacked["numbers"] else "fp32"
    sizes = (_over_alone(stacked, f"{size}_{p}") for size in ("default", "small"))
    return rows(
        ("beside", f"its time over ours ({'; '.join(machines)})", "command"),
        ("the textbook step in bf16, with AMX; in fp32", "; ".join(map(spread, ratios)),
         "`python -m bench.step`"),
        ("votes of the FactorVAE metric in NumPy, one by one; in vectorised PyTorch",
         "; ".join(spread(counted[f"ratio_{side}"], 0) for side in ("numpy", "torch")),
         "`python -m bench.votes`"),
        ("scoring that encodes each sample afresh", evaluate["numbers"]["ratio"],
         "`python -m bench.evaluate`"),
        (f"8 models one after another, {p}; 8 small ones", "; ".join(sizes),
         "`python -m bench.stacked`"),
    )  # fmt: skip


def _over_alone(stacked: dict, name: str) -> str:
    """Return the rate of 8 stacked models over that of one after another, or "-"."""
    found = stacked["numbers"].get(name)
    return f"{found['stacked_8'] / found['one_after_another']:.2f}" if found else "-"
