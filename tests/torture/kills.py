"""SIGKILL at any moment: nothing is lost, nothing is torn, and the end is the same bit for bit."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from small import SMALL_OPTIONS, log, write_npz

from fvae import data
from fvae.config import TrainConfig
from fvae.errors import UserError
from fvae.training import checkpoint
from fvae.training import log as logs
from torture import Tally, command

_STEPS = 240
_OFTEN = [*SMALL_OPTIONS, "--precision", "fp32", "--checkpoint-every", 7, "--log-every", 5]


def kills(folder: Path, count: int, seed: int = 0) -> list[Tally]:
    """Kill runs, stacked runs, studies and conversions, ``count`` times in all."""
    rng = random.Random(seed)
    source = write_npz(folder / "dsprites.npz")
    data.load(source)  # converted once, so that training is what is killed
    share = count // 5
    return [
        _training(folder / "train", source, 2 * share, rng),
        _study(folder / "study", source, "one-by-one", share, rng),
        _study(folder / "stacked", source, "stacked", share, rng),
        _conversion(folder / "pictures", count - 4 * share, rng),
    ]


def _whole(run: Path, least: int) -> tuple[int, list[str]]:
    """The step of a run's checkpoint, and what is torn or lost in its folder."""
    faults = []
    try:
        config = TrainConfig.from_file(run / "config.json")
    except UserError as error:
        return 0, [] if not (run / "config.json").exists() else [f"torn: {error}"]
    step = 0
    for name in (checkpoint.NAME, checkpoint.PREVIOUS):
        if (run / name).exists():
            try:
                tensors = checkpoint.read(run, config, name)
                step = max(step, int(tensors["rng.step"]))
            except UserError as error:
                faults.append(f"torn: {error}")
    if step < least:
        faults.append(f"lost: step {step} after step {least}")
    steps = [line["step"] for line in logs.read(run)]
    if steps != sorted(set(steps)):
        faults.append("torn: log.jsonl")
    return step, faults


def _same(a: Path, b: Path) -> list[str]:
    first, second = (load_file(run / checkpoint.NAME) for run in (a, b))
    if first.keys() != second.keys() or any(not torch.equal(first[k], second[k]) for k in first):
        return ["the end is another checkpoint"]
    return [] if log(a) == log(b) else ["the end is another log"]


def _until_the_end(
    tally: Tally,
    count: int,
    rng: random.Random,
    fresh: Callable[[], Path],
    again: Callable[[Path, float | None], None],
    whole: Callable[[Path], list[str]],
    lasts: float,
) -> None:
    """Kill and go on, and kill again; from time to time let one come to its end."""
    lives, place = 0, Path()
    for trial in range(count):
        if lives == 0:
            place = fresh()
        again(place, rng.uniform(0.0, 1.1) * lasts)
        tally.add(f"kill {trial}", whole(place))
        lives += 1
        if lives == 12 or trial == count - 1:
            again(place, None)
            tally.faults += [f"after {lives} kills: {fault}" for fault in whole(place)]
            shutil.rmtree(place, ignore_errors=True)
            lives = 0


def _training(folder: Path, source: Path, count: int, rng: random.Random) -> Tally:
    tally, number, steps = Tally("kills: train and resume"), iter(range(10**6)), {}
    words = ["--data", source, "--steps", _STEPS, *_OFTEN]
    straight = folder / "straight"
    lasted = command("train", "--out", straight, *words)
    tally.faults += lasted.faults

    def fresh() -> Path:
        run = folder / str(next(number))
        steps[run] = 0
        return run

    def again(run: Path, kill_after: float | None) -> None:
        there = (run / "config.json").exists()
        start = ["--resume", run] if there else ["--out", run, *words]
        got = command("train", *start, kill_after=kill_after)
        if kill_after is None:
            tally.faults += got.faults + _same(straight, run)

    def whole(run: Path) -> list[str]:
        steps[run], faults = _whole(run, steps[run])
        return faults

    _until_the_end(tally, count, rng, fresh, again, whole, lasted.seconds)
    return tally


def _study(folder: Path, source: Path, strategy: str, count: int, rng: random.Random) -> Tally:
    tally, number = Tally(f"kills: study, {strategy}"), iter(range(10**6))
    steps: dict[Path, int] = {}
    words = ["--data", source, "--steps", 60, *_OFTEN, "--objectives", "factor-vae", "--gammas", 1,
             2, "--seeds", 1, "--protocol", "exhaustive", "--strategy", strategy]  # fmt: skip
    straight = folder / "straight"
    lasted = command("study", "--out", straight, *words)
    tally.faults += lasted.faults

    def again(out: Path, kill_after: float | None) -> None:
        got = command("study", "--out", out, *words, kill_after=kill_after)
        if kill_after is None:
            tally.faults += got.faults
            if (straight / "results.csv").read_bytes() != (out / "results.csv").read_bytes():
                tally.faults.append("the end is another table")
            for run in (straight / "runs").iterdir():
                tally.faults += _same(run, out / "runs" / run.name)

    def whole(out: Path) -> list[str]:
        faults = []
        for run in (out / "runs").glob("*"):
            steps[run], torn = _whole(run, steps.get(run, 0))
            faults += torn
        return faults

    fresh = lambda: folder / str(next(number))  # noqa: E731
    _until_the_end(tally, count, rng, fresh, again, whole, lasted.seconds)
    return tally


def _conversion(folder: Path, count: int, rng: random.Random) -> Tally:
    tally, number = Tally("kills: conversion of pictures"), iter(range(10**6))
    pictures = np.random.default_rng(0).integers(0, 256, (300, 80, 70, 3), dtype=np.uint8)

    def fresh() -> Path:
        place = folder / str(next(number))
        place.mkdir(parents=True)
        for i, picture in enumerate(pictures):
            Image.fromarray(picture).save(place / f"{i:04}.png")
        return place

    first = fresh()
    lasted = command("data", first)
    expected = data.load(first).data.clone()

    def again(place: Path, kill_after: float | None) -> None:
        got = command("data", place, kill_after=kill_after)
        if kill_after is None:
            tally.faults += got.faults
            if not torch.equal(data.load(place).data, expected):
                tally.faults.append("the end is another data set")

    def whole(place: Path) -> list[str]:
        left = [p.name for p in data.cache_folder().iterdir() if p.suffix not in (".safetensors",
                ".partial")]  # fmt: skip
        return [f"left behind: {name}" for name in left]

    _until_the_end(tally, count, rng, fresh, again, whole, lasted.seconds)
    return tally
