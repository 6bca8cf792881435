"""``python -m bench.time_to_score NAME``: minutes until a FactorVAE score of 0.70, 0.75, 0.80.

<claim>
Intel Xeon, 2 threads, torch 2.13.0+cpu,
commit 6330225cfdac, 2026-12-01; 5 seeds.
Mean of 0.70: not within 8.2 minutes (at most 0.6997, after 5.4).
Mean of 0.75: not within 8.2 minutes (at most 0.6997, after 5.4).
Mean of 0.80: not within 8.2 minutes (at most 0.6997, after 5.4).
Textbook step, 300000 steps: 10.0 hours.
</claim>

For each seed a model is trained with a recipe to each number of steps, and scored there by the
FactorVAE metric of protocol kim2018, which draws its images. A target is reached at the first
number of steps where the mean over seeds is at least that; its minutes are those of training alone,
the median over seeds, as the runs' logs have them: let nothing else run meanwhile. Beside it stands
what the textbook step (:mod:`bench.baseline`) takes at the paper's settings: its step time of
:mod:`bench.step`, measured before training, times the paper's steps.

    python -m bench.time_to_score fast                                     5 seeds, four scores each
    python -m bench.time_to_score slow --steps 5000 --seeds 3 --learning-rate 5e-4    other settings
    python -m bench.time_to_score fast --log "why"               adds the result to bench/LOG.md too
    python -m bench.time_to_score --claim           writes the lines above from the record of "fast"

Options that are not its own are those of ``fvae train``, and change the recipe's settings. Runs are
kept under ``--runs``; the same command again goes on with what is there. Where the rates fall until
the run's end, each number of steps has runs of its own; otherwise they are stations of one run.
"""

import argparse
import dataclasses
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench import figures
from bench.record import RESULTS, head
from fvae import data, evaluate
from fvae.commands import parse
from fvae.config import RECIPES, TrainConfig
from fvae.data import Store
from fvae.device import keep_freed_memory
from fvae.errors import UserError
from fvae.files import write_atomically
from fvae.training import checkpoint, log, loop, run_data

TARGETS = (0.70, 0.75, 0.80)
FOLDER = RESULTS / "time-to-score"
LOG = Path(__file__).parent / "LOG.md"
#: The record that the head of this file speaks of.
CLAIMED = "fast"
#: Reconstruction in nats below which a model of dSprites has left the mean image, of 570, behind.
LEFT_THE_MEAN = 200.0
#: Settings that say where and how often, not what.
_ASIDE = {"steps", "seed", "device", "image_size", "log_every", "checkpoint_every"}


def configs_of(recipe: str, options: Sequence[str], budgets: Sequence[int]) -> list[TrainConfig]:
    """Return the settings of a run for each number of steps, in ascending order, seed 0.

    Args:
        recipe: a name in :data:`fvae.config.RECIPES`.
        options: of ``fvae train``, which change it.
        budgets: numbers of steps.

    Raises:
        UserError: an option does not exist, or a value is wrong.
    """
    for name in ("--steps", "--seed", "--resume", "--out"):
        if any(word.partition("=")[0] == name for word in options):
            raise UserError(f"{name}: the program gives it to each run; leave it out")
    settings = parse(["train", "--recipe", recipe, "--device", "cpu", *options])
    names = [field.name for field in dataclasses.fields(TrainConfig)]
    config = loop.settle(TrainConfig(**{name: getattr(settings, name) for name in names}))
    return [dataclasses.replace(config, steps=steps) for steps in sorted(set(budgets))]


def station(config: TrainConfig, store: Store, run: Path) -> dict[str, Any]:
    """Train a run to ``config.steps`` unless it is there, and score it; keep both in its folder.

    Returns:
        ``step``, ``score``, ``seconds`` of training so far, ``recon`` and ``kl`` of the last line
        of the log, and ``left_the_mean``: the step of the first line whose reconstruction was below
        :data:`LEFT_THE_MEAN`, or None.

    Raises:
        UserError: the folder holds a run of other settings, or training failed.
        KeyboardInterrupt: a signal ended it; the run goes on from its checkpoint next time.
    """
    kept = run / f"station-{config.steps}.json"
    if (run / loop.CONFIG_NAME).exists():
        old = TrainConfig.from_file(run / loop.CONFIG_NAME)
        free = checkpoint.resumable(config.learning_rate_schedule)
        for name, value in dataclasses.asdict(config).items():
            if name not in (*free, "image_size") and getattr(old, name) != value:
                raise UserError(
                    f"{run}: was made with {name} = {getattr(old, name)}, now it is {value}; give"
                    " another NAME, or another --runs"
                )
    else:
        loop.create_run(config, run)
    if not kept.exists():
        write_atomically(run / loop.CONFIG_NAME, config.to_json())
        if loop.train(config, store, run):
            raise KeyboardInterrupt
        if not (state := checkpoint.state_of(run)) or state.step != config.steps:
            raise UserError(
                f"{run}: is past step {config.steps} and was not scored there; leave that number"
                " out of --steps, or give another NAME"
            )
        scores = evaluate.evaluate(run, store, "kim2018", names=["factor_vae"])
        lines = log.read(run)
        last = lines[-1]
        left = (line["step"] for line in lines if line.get("recon", 0.0) < LEFT_THE_MEAN)
        found = {"step": config.steps, "score": scores["factor_vae"]["score"]}
        found |= {name: last[name] for name in ("seconds", "recon", "kl") if name in last}
        kept.write_text(json.dumps(found | {"left_the_mean": next(left, None)}) + "\n")
    return json.loads(kept.read_text())


def summary(stations: Sequence[Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """Return what a record's ``numbers`` say of the stations of each seed.

    Returns:
        ``budgets``: of each number of steps every seed's score, seconds and reconstruction, the
        scores' mean, standard deviation (of a sample) and number of at least 0.62, and the median
        minutes; and ``minutes_to``: those of the first budget whose mean reaches a target, or None.
    """
    budgets: list[dict[str, Any]] = []
    for each in zip(*stations, strict=True):
        scores = [one["score"] for one in each]
        budgets.append({
            "steps": each[0]["step"],
            "mean": round(statistics.mean(scores), 4),
            "sd": round(statistics.stdev(scores), 4) if len(scores) > 1 else None,
            "above_0.62": sum(score > 0.62 for score in scores),
            "minutes": round(statistics.median(one["seconds"] for one in each) / 60, 2),
            **{
                name: [one.get(name) for one in each]
                for name in ("score", "seconds", "recon", "kl", "left_the_mean")
            },
        })  # fmt: skip
    reached = {
        f"{target:.2f}": next((b["minutes"] for b in budgets if b["mean"] >= target), None)
        for target in TARGETS
    }
    return {"seeds": len(stations), "budgets": budgets, "minutes_to": reached}


def textbook(store: Store, rounds: int) -> dict[str, Any]:
    """Return the textbook's median seconds a step, and the hours that the paper's steps take."""
    from bench.step import measure

    step = statistics.median(measure(store, rounds)["textbook"])
    for process in multiprocessing.active_children():
        process.join()  # so that nothing works beside the training
    hours = step * TrainConfig.steps / 3600
    return {"textbook_s": round(step, 4), "paper_steps": TrainConfig.steps,
            "textbook_hours": round(hours, 1)}  # fmt: skip


def table(numbers: dict[str, Any]) -> list[str]:
    """Return a record's numbers as the lines of a Markdown table."""
    lines = ["| steps | minutes | mean | sd | seeds |", "|---|---|---|---|---|"]
    for one in numbers["budgets"]:
        scores = " ".join(f"{score:.2f}" for score in one["score"])
        sd = "-" if one["sd"] is None else f"{one['sd']:.3f}"
        lines.append(
            f"| {one['steps']} | {one['minutes']:.1f} | {one['mean']:.3f} | {sd} | {scores} |"
        )
    return lines


def claim(folder: Path = FOLDER) -> str:
    """Return what the head of this file says between its marks, of the record :data:`CLAIMED`."""
    path = folder / f"{CLAIMED}.json"
    if not path.exists():
        return f"No record yet: ``python -m bench.time_to_score {CLAIMED}``."
    record = figures.read(path)
    numbers, device = record["numbers"], record["device"]
    said = [f"{device['name']}, {device['threads']} threads, torch {record['versions']['torch']},"]
    said += [f"commit {record['commit']}, {record['date']}; {numbers['seeds']} seeds."]
    for target, minutes in numbers["minutes_to"].items():
        last, best = numbers["budgets"][-1], max(numbers["budgets"], key=lambda b: b["mean"])
        most = f"at most {best['mean']:.4f}, after {best['minutes']:.1f}"
        missed = f"not within {last['minutes']:.1f} minutes ({most})"
        at = next((b for b in numbers["budgets"] if b["mean"] >= float(target)), last)
        found = f"{minutes} minutes: {at['steps']} steps, mean {at['mean']:.3f}, sd {at['sd']}"
        said.append(f"Mean of {target}: {missed if minutes is None else found}.")
    if "textbook_hours" in numbers:
        said.append(
            f"Textbook step, {numbers['paper_steps']} steps: {numbers['textbook_hours']} hours."
        )
    return "\n".join(said)


def write_claim(source: Path = Path(__file__)) -> None:
    """Replace what stands between the marks at the head of this file."""
    text = source.read_text()
    before, _, rest = text.partition("<claim>\n")
    _, _, after = rest.partition("</claim>\n")
    source.write_text(f"{before}<claim>\n{claim()}\n</claim>\n{after}")


def write_log(record: dict[str, Any], why: str, path: Path = LOG) -> None:
    """Add a record to the log, under the reason why it was tried."""
    lines = [f"\n### {record['name']}: {why}\n", *table(record["numbers"]), ""]
    left = record["numbers"]["budgets"][0]["left_the_mean"]
    lines += [f"Reconstruction below {LEFT_THE_MEAN:.0f} by step {', '.join(map(str, left))}."]
    lines += [f"`{record['command']}`; {record['device']['name']}, {record['device']['threads']}"
              f" threads, commit {record['commit']}, {record['date']}."]  # fmt: skip
    with path.open("a") as file:
        file.write("\n".join(lines) + "\n")


def run(args: argparse.Namespace, options: Sequence[str]) -> dict[str, Any]:
    """Train and score what is not there yet; write the record after each seed; return it."""
    configs = configs_of(args.recipe, options, args.steps)
    path, runs = args.out / f"{args.name}.json", args.runs / args.name
    store = data.load(**run_data.where(configs[0]))
    keep_freed_memory()  # as `fvae train` does
    # What a run needs no second time.
    compared = runs / "textbook.json"
    if args.textbook and not compared.exists():
        runs.mkdir(parents=True, exist_ok=True)
        compared.write_text(json.dumps(textbook(store, args.textbook)))
    projected = json.loads(compared.read_text()) if compared.exists() else {}
    alone = configs[0].learning_rate_schedule == "constant"
    defaults = TrainConfig()
    changed = {
        name: value
        for name, value in dataclasses.asdict(configs[0]).items()
        if name not in _ASIDE and value != getattr(defaults, name)
    }
    stations: list[list[dict[str, Any]]] = []
    record: dict[str, Any] = {}
    for seed in range(args.seeds):
        stations.append([])
        for config in configs:
            folder = runs / (f"seed{seed}" if alone else f"seed{seed}-{config.steps}")
            config = dataclasses.replace(config, seed=seed)
            stations[-1].append(station(config, store, folder))
            print(time.strftime("%H:%M:%S"), folder.name, stations[-1][-1], file=sys.stderr)
        record = head("cpu") | {
            "name": args.name, "recipe": args.recipe, "settings": changed,
            "numbers": summary(stations) | projected,
        }  # fmt: skip
        record["output"] = table(record["numbers"])
        figures.write(path, record)
    return record


def main(argv: Sequence[str] | None = None) -> None:
    """Run, print the table and the minutes."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.time_to_score", description=__doc__.partition("\n")[0], usage=(
            "python -m bench.time_to_score NAME [options] [options of fvae train]"
        ), allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("name", nargs="?", help="of the record and of the runs' folder")
    parser.add_argument("--recipe", choices=RECIPES, default="fast")
    parser.add_argument("--seeds", type=_positive, default=5, help="how many: 0, 1, ...")
    parser.add_argument("--steps", type=_positive, nargs="+", default=[3000, 5000, 8000, 12000])
    parser.add_argument("--textbook", type=int, default=0, metavar="ROUNDS",
                        help="measure the textbook step, too, in so many rounds")  # fmt: skip
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the record")
    parser.add_argument("--runs", type=Path, default=Path("runs/time-to-score"))
    parser.add_argument("--log", metavar="WHY", help="add the result to bench/LOG.md")
    parser.add_argument("--claim", action="store_true", help="write this file's head, nothing else")
    args, options = parser.parse_known_args(argv)
    try:
        if args.claim:
            write_claim()
            return
        if not args.name or args.name.startswith("-"):
            raise UserError("NAME: got none, expected what the record is to be called")
        record = run(args, options)
    except (UserError, figures.NoRecord) as error:
        parser.exit(2, f"bench.time_to_score: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "bench.time_to_score: stopped; the same command goes on\n")
    print("\n".join(record["output"]))
    print(json.dumps(record["numbers"]["minutes_to"] | {"threads": torch.get_num_threads()}))
    if args.log:
        write_log(record, args.log)


def _positive(word: str) -> int:
    value = int(word)
    if value < 1:
        raise argparse.ArgumentTypeError(f"got {value}, expected 1 or more")
    return value


if __name__ == "__main__":
    main()
