"""Samples of signals, streams, full disks and names, most of them with real commands."""

import functools
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from small import SMALL_OPTIONS, log, step_of

from fvae.study.work import steps_done
from torture.disks import limited, small_disk
from torture.samples import FEW, Place, both, faults, fvae, refused, sample, until

_FVAE = [sys.executable, "-m", "fvae"]
_DELAYS = (0.05, 0.4, 1.0, 2.0, 4.0)
_NO_SPACE = "fvae: error: standard output: No space left on device"
_SMALL = [*map(str, SMALL_OPTIONS), "--precision", "fp32"]


def _started(words, **how):
    how = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | how
    # Whatever our own shell made of these signals, as in the background or under nohup.
    ours = lambda: [signal.signal(n, signal.SIG_DFL) for n in (signal.SIGINT, signal.SIGHUP)]  # noqa: E731
    return subprocess.Popen([*_FVAE, *map(str, words)], preexec_fn=ours, text=True, **how)


@functools.cache
def _lines(shared):
    """What lines of sh with real commands gave: (status, output, errors) by name; all at once."""
    place = Place(shared / "lines", shared)
    place.folder.mkdir()
    runs = {name: shlex.quote(str(place.run(name))) for name in ("pipe", "full", "bytes")}
    train = shlex.join([*map(str, place.train), "--log-every", "1", "--out", str(place.folder)])
    lines = {
        "pipe": "($fvae eval {pipe} --protocol exhaustive --json; echo $? >&2) | true",
        "help": "($fvae train --help; echo $? >&2) | head -n 1",
        "full": "$fvae eval {full} --protocol exhaustive --json > /dev/full",
        "errors full": f"$fvae {train}/errors-full 2> /dev/full",
        "errors closed": f"$fvae {train}/errors-closed 2>&-",
        "C": "LC_ALL=C $fvae eval {bytes} --protocol exhaustive --json",
    }
    started = {
        name: subprocess.Popen(
            ["sh", "-c", line.format(**runs)], env=os.environ | {"fvae": shlex.join(_FVAE)},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for name, line in lines.items()
    }  # fmt: skip
    ended = {name: process.communicate(timeout=300) for name, process in started.items()}
    return {name: (started[name].returncode, *texts) for name, texts in ended.items()}


# --- signals -------------------------------------------------------------------------------------


@functools.cache
def _interrupted(shared):
    run = _run_of(shared)
    found = []
    for delay in _DELAYS:
        process = _started(["eval", run])
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=120)[1]
        found.append((process.returncode, errors))
    return found


def _run_of(shared):
    return Place(shared, shared).run("of-streams")


@sample("streams", f"Ctrl-C {', '.join(map(str, _DELAYS))} s after the start of eval",
        "at most one line; no traceback, but where Python itself still starts")  # fmt: skip
def _(place):
    found = _interrupted(place.shared)
    right = all(
        status in (0, 128 + signal.SIGINT, -signal.SIGINT)
        and "Traceback" not in errors
        and errors.count("\n") <= 1
        or ("Traceback" in errors and f"{os.sep}fvae{os.sep}" not in errors)
        for status, errors in found
    )
    said = [errors.strip()[-300:] for _, errors in found if errors]
    return f"ended with {', '.join(str(status) for status, _ in found)} {said or ''}", right


for _number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):

    @sample("streams", f"{_number.name} in training", "a checkpoint of the step reached")
    def _(place, number=_number):
        run = place.folder / "run"
        words = [*place.train[:3], *_SMALL, "--steps", 10**6, "--log-every", 1, "--out", run]
        process = _started(words)
        until(lambda: (run / "log.jsonl").exists() and (run / "log.jsonl").stat().st_size > 500)
        process.send_signal(number)
        said = process.communicate(timeout=120)[1]
        right = process.returncode == 128 + number and "Traceback" not in said
        right = right and step_of(run) == log(run)[-1]["step"] > 0
        last = said.strip().splitlines()[-1]
        return f"checkpoint and log of step {step_of(run)}; {last}", right


@functools.cache
def _orphans(shared):
    """Both studies at once: what a signal leaves of two workers each."""
    place = Place(shared, shared)
    started = {}
    for number in (signal.SIGKILL, signal.SIGHUP):
        out = shared / f"study-{number.name}"
        words = ["study", "--out", out, "--data", place.source, *_SMALL, "--steps", 10**6,
                 "--log-every", 1, "--objectives", "factor-vae", "--gammas", 1, 2, "--seeds", 1,
                 "--devices", 2, "--protocol", "exhaustive"]  # fmt: skip
        nowhere = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        started[number] = out, _started([*words, "--strategy", "processes"], **nowhere)
    found = {}
    for number, (out, process) in started.items():
        logs = lambda out=out: [p for p in out.glob("runs/*/log.jsonl") if p.stat().st_size > 500]  # noqa: E731
        until(lambda logs=logs: len(logs()) == 2, 240)
        process.send_signal(number)
        process.wait(120)
        until(lambda out=out: not _workers(out), 120)
        steps = [(steps_done(run), log(run)[-1]["step"]) for run in (out / "runs").iterdir()]
        found[number] = process.returncode, steps
    return found


def _workers(folder):
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except OSError:
            continue
        found += [path] * (b"fvae.study.work" in words and os.fsencode(folder) in words)
    return found


for _number in (signal.SIGKILL, signal.SIGHUP):

    @sample("streams", f"a study of two workers killed with {_number.name}",
            "both leave checkpoints of the step reached, and end")  # fmt: skip
    def _(place, number=_number):
        status, steps = _orphans(place.shared)[number]
        right = status == (-9 if number == signal.SIGKILL else 128 + number)
        right = right and len(steps) == 2 and all(a == b > 0 for a, b in steps)
        return f"ended with {status}; step of checkpoint and log: {steps}", right


# --- streams -------------------------------------------------------------------------------------


for _about, _name, _said in (
    ("fvae eval --json | true", "pipe", "141\n"),
    ("fvae train --help | head -n 1", "help", "141\n"),
):

    @sample("streams", _about, "ends quietly, with 141 (SIGPIPE)")
    def _(place, name=_name, said=_said):
        _, _, errors = _lines(place.shared)[name]
        return repr(errors), errors in (said, "0\n")  # a reader may be slower than the command


@sample("streams", "fvae eval --json > /dev/full (a real command)",
        "2 and one line, which does not advise to train")  # fmt: skip
def _(place):
    status, _, errors = _lines(place.shared)["full"]
    right = status == 2 and errors.startswith(_NO_SPACE) and errors.count("\n") == 1
    return errors.strip(), right and "--resume" not in errors


for _words in (["eval"], ["eval", "--json"], ["report"], ["traverse"], ["train"]):

    @sample("streams", f"{' '.join(_words)} with stdout on /dev/full",
            "2 and one line, which does not advise to train")  # fmt: skip
    def _(place, words=_words):
        name, *more = words
        run = place.folder / "other" if name == "train" else place.run()
        words = [*place.train, "--out", run] if name == "train" else [name, run, *more]
        words += ["--protocol", "exhaustive"] if name == "eval" else []
        with open("/dev/full", "wb") as out:
            got = refused(fvae(*words, out=out), _NO_SPACE, never=("--resume",))
        whole = step_of(run) == 12 and (run / "report.html").exists()
        return both(got, ("" if whole else "the run is not whole", whole))


for _name in ("eval", "report", "traverse", "resume"):

    @sample("streams", f"{_name} with a full disk",
            "2 and one line with advice of its own; the run is whole")  # fmt: skip
    def _(place, name=_name):
        with small_disk(place.folder / "disk") as (disk, mounted):
            run = place.run("disk/run")
            before = (run / "checkpoint.safetensors").read_bytes()
            words = {"eval": ["eval", run, "--protocol", "exhaustive"], "report": ["report", run],
                     "traverse": ["traverse", run],
                     "resume": ["train", "--resume", run, "--steps", 20]}[name]  # fmt: skip
            got = limited(words, 0, disk, mounted)
            advice = "fvae train --resume" if name == "resume" else "the same command again"
            whole = (run / "checkpoint.safetensors").read_bytes() == before
        never = () if name == "resume" else ("--resume",)
        said = "free some space" if mounted else ""
        return both(refused(got, said, advice, never=never), ("", whole))


for _name, _about in (("full", "on /dev/full"), ("closed", "closed (2>&-)")):

    @sample("streams", f"train with stderr {_about}", "ends with 0, its log and page are whole")
    def _(place, name=_name):
        status, out, _ = _lines(place.shared)[f"errors {name}"]
        run = place.shared / "lines" / f"errors-{name}"
        right = status == 0 and out == f"{run}/report.html\n" and len(log(run)) == 12
        return f"ended with {status}, {len(log(run))} lines of log, stdout: {out.strip()}", right


# --- names ---------------------------------------------------------------------------------------

_NAMES = (b"a[/b]", b"[red]x", b"n\xff\xe9", b"<b>&\"'")
#: Of a locale: the environment of the interpreter that forks, so that all its commands are in it.
_LOCALES = {
    "UTF-8": {"LC_ALL": "C.UTF-8"},
    "LC_ALL=C": {"LC_ALL": "C"},
    "LC_ALL=C in ASCII": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


def all_commands(base: str, source: str) -> list[list[str]]:
    """Every command at every name below a folder; what is wrong of each name."""
    found = []
    for name in _NAMES:
        place = os.path.join(os.fsencode(base), name)
        os.makedirs(place)
        run = os.path.join(place, name.split(b"/")[-1])
        data = os.path.join(place, b"d\xff" + name.replace(b"/", b"") + b".npz")
        os.link(source, data)
        commands = [
            ("train", "--data", data, "--steps", 12, *FEW, "--out", run),
            ("eval", run, "--protocol", "exhaustive"),
            ("eval", run, "--protocol", "exhaustive", "--json"),
            ("report", run),
            ("traverse", run),
            ("train", "--resume", run, "--steps", 14),
            ("data", data),
            ("study", "--out", place + b"s", "--data", data, "--steps", 2, *FEW, "--objectives",
             "vae", "--seeds", 1, "--protocol", "exhaustive"),
        ]  # fmt: skip
        wrong, shown = [], ""
        for words in commands:
            got = fvae(*words)
            faulty = faults(got) + ["damaged"] * ("damaged" in got.err)
            faulty += [got.err[-200:]] * (got.status != 0)
            wrong += [f"{words[0]}: {fault}" for fault in faulty]
            if words[0] == "report" and got.status == 0:
                shown = got.out.strip()
                page = Path(os.fsdecode(run), "report.html").read_bytes()
                wrong += ["not escaped"] * (b"<b>&" in page or b"</html>" not in page)
            if "--json" in words and not wrong:
                json.loads(got.out)
        found.append([shown, *wrong])
    return found


@functools.cache
def _in_locale(shared, locale):
    base = shared / f"names-{len(locale)}"
    base.mkdir()
    source = Place(shared, shared).source
    program = (
        "import sys, json, torch; torch.set_num_threads(1)\n"
        "import fvae.evaluate, fvae.study.study\n"
        "from torture.sample_streams import all_commands\n"
        "print(json.dumps(all_commands(*sys.argv[1:])))"
    )
    path = os.pathsep.join(p or "." for p in sys.path)
    done = subprocess.run(
        [sys.executable, "-c", program, base, source], capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": path} | _LOCALES[locale],
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return dict(zip(_NAMES, json.loads(done.stdout), strict=True)), base


for _locale in _LOCALES:
    for _name in _NAMES:

        @sample("names", f"a run folder {str(_name)[1:]}, data beside it; {_locale}",
                "train, eval, eval --json, report, traverse, resume, data and study work;"
                " pages escape it")  # fmt: skip
        def _(place, name=_name, locale=_locale):
            found, base = _in_locale(place.shared, locale)
            shown, *wrong = found[name]
            return "; ".join(wrong) or f"all done; report says {shown}", not wrong


@sample("names", "LC_ALL=C fvae eval --json, a real command", "the scores, and nothing else")
def _(place):
    status, out, errors = _lines(place.shared)["C"]
    right = status == 0 and json.loads(out)["step"] == 12 and not errors
    return f"ended with {status}, {len(out)} characters of JSON", right
