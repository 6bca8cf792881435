"""Samples of one writer, damage, old scores and arguments."""

import json
import os
import shutil
import signal
import subprocess
import sys

from safetensors.torch import load_file, save_file
from small import SMALL_OPTIONS, log, step_of

from fvae.config import TrainConfig
from fvae.training import checkpoint
from torture.samples import (
    FEW,
    begin,
    both,
    ended,
    faults,
    fvae,
    kept,
    line_of,
    refused,
    sample,
    until,
    untouched,
)

_TAKEN = "another process is training it"


def _whole(run, step=None):
    """The checkpoints of a run are whole, the newest of that step; its log has each line once."""
    config = TrainConfig.from_file(run / "config.json")
    for name in (checkpoint.NAME, checkpoint.PREVIOUS):
        if (run / name).exists():
            checkpoint.read(run, config, name)
    steps = [line["step"] for line in log(run)]
    # Stopped between two lines, it has done up to three steps more than it says.
    right = steps == sorted(set(steps)) and 0 <= step_of(run) - steps[-1] < config.log_every
    right = right and step in (None, step_of(run))
    return f"checkpoint of step {step_of(run)}, {len(steps)} lines of log", right


def _race(count, *words, **how):
    """Several commands that begin at one time."""
    gate, opener = os.pipe()
    children = [begin(*words, first=lambda: os.read(gate, 1), **how) for _ in range(count)]
    os.write(opener, b"x" * count)
    got = [child.wait(limit=240) for child in children]
    os.close(gate)
    os.close(opener)
    return sorted(got, key=lambda g: g.status)


# --- one writer ----------------------------------------------------------------------------------


@sample("writers", "train --resume of one run twice at once, 4 times", "one wins, one gets a line")
def _(place):
    run, found = place.run(), []
    for steps in (60, 120, 180, 240):
        won, lost = _race(2, "train", "--resume", run, "--steps", steps)
        found += [ended(won, 0), refused(lost, _TAKEN), _whole(run, steps)]
    return both(*found)[0][-120:], all(f[1] for f in found)


@sample("writers", "the same with two real commands; the winner gets SIGTERM",
        "one wins and saves what it did, the other ends with 2 and one line")  # fmt: skip
def _(place):
    run = place.run()
    words = [sys.executable, "-m", "fvae", "train", "--resume", run, "--steps", "1000000"]
    both_of = [subprocess.Popen(words, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    until(lambda: any(p.poll() is not None for p in both_of))
    loser, winner = sorted(both_of, key=lambda p: p.poll() is None)
    until(lambda: step_of(run) > 12)
    winner.terminate()
    said = [process.communicate(timeout=120)[1] for process in (loser, winner)]
    fine = (loser.returncode, winner.returncode) == (2, 128 + signal.SIGTERM)
    fine = fine and said[0].count("\n") == 1 and _TAKEN in said[0]
    return both((said[0].strip(), fine and "Traceback" not in said[1]), _whole(run))


@sample("writers", "train --resume of a run that a study is training", "refused in one line")
def _(place):
    out = place.folder / "study"
    words = ["--data", place.source, *FEW, "--steps", 100_000, "--objectives", "vae", "--seeds", 1]
    study = begin("study", "--out", out, *words, "--strategy", "one-by-one")
    run = out / "runs" / "vae-seed0"
    until(lambda: (run / "log.jsonl").exists() and (run / "log.jsonl").stat().st_size > 0)
    got = fvae("train", "--resume", run, "--steps", 200_000)
    study.send(signal.SIGTERM)
    end = study.wait(limit=120)
    stopped = end.status == 128 + signal.SIGTERM and "Traceback" not in end.err
    return both(refused(got, _TAKEN), (f"study ended with {end.status}", stopped), _whole(run))


@sample("writers", "train --out X twice at once, 6 times", "exactly one makes it, one gets a line")
def _(place):
    found = []
    for i in range(6):
        run = place.folder / str(i)
        won, lost = _race(2, *place.train, "--out", run)
        found += [ended(won, 0), refused(lost, str(run)), _whole(run, 12)]
    return both(*found[-2:])[0], all(f[1] for f in found)


for _words in (["eval", "--protocol", "exhaustive"], ["report"], ["traverse"]):

    @sample("writers", f"{_words[0]} again and again while a run is being trained",
            "works, of a whole state each time")  # fmt: skip
    def _(place, words=_words):
        run, steps, found = place.run(), [], []
        trainer = begin("train", "--resume", run, "--steps", 10**6, "--checkpoint-every", 1)
        until(lambda: step_of(run) > 12)
        for _ in range(6 if words[0] == "eval" else 2):
            found.append(ended(fvae(words[0], run, *words[1:]), 0))
            if words[0] == "eval":
                steps.append(json.loads((run / "eval-exhaustive.json").read_text())["step"])
        trainer.send(signal.SIGTERM)
        end = trainer.wait(limit=120)
        stopped = end.status == 128 + signal.SIGTERM and steps == sorted(set(steps))
        told = (
            f"steps scored: {steps}" if steps else f"{len(found)} times, the last: {found[-1][0]}"
        )
        return both((told, stopped and all(f[1] for f in found)), _whole(run))


# --- damage --------------------------------------------------------------------------------------


def _flip(path, at=-100):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


for _name in ("eval", "report", "traverse"):

    @sample("damage", f"one bit of a weight flipped, then {_name}", "noticed and named in one line")
    def _(place, name=_name):
        run = place.run()
        _flip(run / checkpoint.NAME)
        before = kept(run)
        got = fvae(name, run)
        return both(refused(got, checkpoint.NAME, "checksum is wrong"), untouched(run, before))


@sample("damage", "one bit of a weight flipped, then train --resume",
        "named; goes on from step 10, to the end that is right")  # fmt: skip
def _(place):
    run, straight = place.run(), place.run("straight")
    _flip(run / checkpoint.NAME)
    got = fvae("train", "--resume", run, "--steps", 20)
    fvae("train", "--resume", straight, "--steps", 20)
    same = (run / checkpoint.NAME).read_bytes() == (straight / checkpoint.NAME).read_bytes()
    line = ended(got, 0, "checksum is wrong", "of step 10")
    return both(line, ("the same end bit for bit" if same else "another end", same), _whole(run))


@sample("damage", "a bit flipped in both checkpoints, then train --resume",
        "refused, nothing overwritten")  # fmt: skip
def _(place):
    run = place.run()
    for name in (checkpoint.NAME, checkpoint.PREVIOUS):
        _flip(run / name)
    before = kept(run)
    got = fvae("train", "--resume", run)
    return both(refused(got, "checksum is wrong"), untouched(run, before))


@sample("damage", "eval of an old checkpoint without a checksum", "scores it, with a remark")
def _(place):
    run = place.run()
    path = run / checkpoint.NAME
    metadata = {"format": "1", "config": (run / "config.json").read_text()}
    save_file(load_file(path), path, metadata)
    return ended(fvae("eval", run, "--protocol", "exhaustive"), 0, "without a checksum")


# --- old scores ----------------------------------------------------------------------------------


@sample("old scores", "eval, report, train --resume --steps 20, report",
        "the page marks the scores 'of step 12', without their votes")  # fmt: skip
def _(place):
    run = place.run()
    got = [fvae("report", run)]
    fresh = (run / "report.html").read_text()
    got += [fvae("train", "--resume", run, "--steps", 20, page=True)]
    pages = [(run / "report.html").read_text()]
    got += [fvae("report", run)]
    pages += [(run / "report.html").read_text()]
    right = "of step 12" not in fresh and "Votes of the" in fresh
    right = right and all("of step 12" in p and "Votes of the" not in p for p in pages)
    told = "<b>of step 12</b>; the run is at step 20"
    return f"{told if told in pages[1] else 'no mark'}", right and not any(map(faults, got))


@sample("old scores", "eval after more steps, and report", "the scores of step 20, without a mark")
def _(place):
    run = place.run()
    fvae("train", "--resume", run, "--steps", 20)
    got = [fvae("eval", run, "--protocol", "exhaustive"), fvae("report", run)]
    scores = json.loads((run / "eval-exhaustive.json").read_text())
    state = checkpoint.state_of(run)
    right = (scores["step"], scores["checkpoint"]) == (20, state.fingerprint)
    right = right and "of step" not in (run / "report.html").read_text()
    told = f"eval-exhaustive.json: step {scores['step']}, checkpoint {scores['checkpoint'][:12]}..."
    return told, right and not any(map(faults, got))


@sample("old scores", "a study of 12 steps; the same with 20; a run of it trained on by hand",
        "results.csv and eval-*.json are of the steps done, each time")  # fmt: skip
def _(place):
    out = place.folder / "study"
    words = ["study", "--out", out, "--data", place.source, *FEW, "--objectives", "vae", "--seeds",
             1, "--protocol", "exhaustive", "--strategy", "one-by-one"]  # fmt: skip
    run, steps, right = out / "runs" / "vae-seed0", [], True
    for want in (12, 20, 26):
        if want < 26:
            got = fvae(*words, "--steps", want)
        else:
            fvae("train", "--resume", run, "--steps", 26)
            got = fvae(*words, "--steps", 20)
        scores, state = json.loads((run / "eval-exhaustive.json").read_text()), step_of(run)
        right = right and not faults(got) and scores["step"] == state == want
        right = right and scores["checkpoint"] == checkpoint.state_of(run).fingerprint
        head, row = (out / "results.csv").read_text().splitlines()[:2]
        steps.append(dict(zip(head.split(","), row.split(","), strict=False)))
    told = [f"{row['steps']} steps: {row['factor_vae']} {row['status']}" for row in steps]
    return ", ".join(told), right and [row["steps"] for row in steps] == ["12", "20", "26"]


# --- arguments -----------------------------------------------------------------------------------


@sample("arguments", "eval --device tpu", "one line that names what there is")
def _(place):
    run = place.run()
    before = kept(run)
    got = fvae("eval", run, "--device", "tpu")
    return both(refused(got, "--device tpu", "cpu"), untouched(run, before))


@sample("arguments", "eval --seed 99999999999999999999999", "one line that says what is expected")
def _(place):
    run = place.run()
    before = kept(run)
    return both(refused(fvae("eval", run, "--seed", "9" * 23), "64 bits"), untouched(run, before))


@sample("arguments", "train --seed 99999999999999999999999, and --resume",
        "trains: a seed counts modulo 2**64")  # fmt: skip
def _(place):
    run = place.folder / "run"
    got = fvae(*place.train, "--out", run, "--seed", "9" * 23)
    more = fvae("train", "--resume", run, "--steps", 20)
    return both((line_of(got), not faults(got) and not got.status), ended(more, 0), _whole(run, 20))


@sample("arguments", "train --batch-size 1000000000", "one line that says what fits; no folder")
def _(place):
    out = place.folder / "run"
    got = fvae(*place.train, "--out", out, "--batch-size", 10**9)
    return both(refused(got, "--batch-size 1000000000", "images fit"), ("", not out.exists()))


@sample("arguments", "train --latent-dim 500, then report",
        "within 60 s; the page says what it leaves out")  # fmt: skip
def _(place):
    run = place.folder / "run"
    options = ["--latent-dim", 500, "--steps", 2]
    made = fvae("train", "--data", place.source, "--out", run, *SMALL_OPTIONS, *options)
    got = fvae("report", run)
    said = "the first 32 of 500 dimensions"
    right = not faults(made) and got.status == 0 and not faults(got)
    right = right and said in (run / "report.html").read_text()
    return f"{said}; {got.work:.0f} s of the processor", right


@sample("arguments", "train --out into a folder of somebody's", "refused, nothing overwritten")
def _(place):
    mine = place.folder / "mine"
    mine.mkdir()
    shutil.copy(place.source, mine / "notes.txt")
    before = kept(mine)
    return both(refused(fvae(*place.train, "--out", mine), "not empty"), untouched(mine, before))
