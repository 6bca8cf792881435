"""``python -m torture --samples``: what people have met, tried for real; what is right, and found.

Each sample is a small function that does it and tells what it found, and whether that is right.
"""

import contextlib
import functools
import importlib
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from small import SMALL_OPTIONS, command, write_npz

from torture import Child, Outcome

#: Of the samples, in the table's order; the last takes a minute.
GROUPS = ("writers", "damage", "old scores", "files", "streams", "names", "elsewhere", "arguments",
          "costs")  # fmt: skip
#: Bytes that a refusal and a conversion may take, beyond what the parent has.
REFUSAL, CONVERSION = 300e6, 1.5e9
#: A step takes a millisecond.
FEW = [*SMALL_OPTIONS, "--precision", "fp32", "--checkpoint-every", 5, "--log-every", 4]

Found = tuple[object, bool]


@dataclass(frozen=True)
class Sample:
    """One thing that is done.

    Attributes:
        group: a name in GROUPS.
        about: what is done.
        must: what is right.
        run: takes a place; returns what was found, and whether that is right.
    """

    group: str
    about: str
    must: str
    run: Callable[["Place"], Found]


SAMPLES: list[Sample] = []


def sample(group: str, about: str, must: str) -> Callable:
    """Add the decorated function as a sample."""

    def add(run: Callable) -> Callable:
        SAMPLES.append(Sample(group, about, must, run))
        return run

    return add


@dataclass(frozen=True)
class Place:
    """What a sample has.

    Attributes:
        folder: its own, empty.
        shared: that of all, for what is made once.
    """

    folder: Path
    shared: Path

    @property
    def source(self) -> Path:
        """A dSprites of 32 images."""
        return _made_once(self.shared)[0]

    @property
    def train(self) -> list[object]:
        """The words for 12 steps on it; ``--out`` is to be given."""
        return ["train", "--data", self.source, "--steps", 12, *FEW]

    def run(self, name: str = "run") -> Path:
        """A run of 12 steps with scores and a page, and checkpoints of steps 10 and 12."""
        return shutil.copytree(_made_once(self.shared)[1], self.folder / name)


@functools.cache
def _made_once(shared: Path) -> tuple[Path, Path]:
    source, run = write_npz(shared / "dsprites.npz"), shared / "run"
    words = ["train", "--data", source, "--steps", 12, *FEW, "--out", run]
    # In this process, so that forks find all modules loaded.
    for given in (words, ["eval", run, "--protocol", "exhaustive"], ["traverse", run]):
        status, _, errors = command(*given)
        assert status == 0, errors
    return source, run


# --- processes -----------------------------------------------------------------------------------


def begin(*words: object, page: bool = False, first: Callable = int, **streams: Any) -> Child:
    """Let a fork run the ``fvae`` command.

    Args:
        *words: of the command line; bytes as the system would give them.
        page: whether training ends with a real page, which takes a second.
        first: called first in the fork.
        **streams: as of Child.
    """

    def work() -> int:
        from fvae import cli, report

        if not page and words[0] in ("train", "study"):
            report.write_report = lambda run, store: (run / "report.html").write_text("</html>")
        first()
        cli.main([os.fsdecode(w) if isinstance(w, bytes) else str(w) for w in words])
        return 0

    return Child(work, **streams)


def fvae(*words: object, limit: float = 240.0, **how: Any) -> Outcome:
    """Run the ``fvae`` command in a fork."""
    return begin(*words, **how).wait(limit=limit)


def until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    """Wait for something, not for ever."""
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "it never happened"
        time.sleep(0.01)


# --- what was found ------------------------------------------------------------------------------


def faults(got: Outcome) -> list[str]:
    """What no command may do. A busy machine is slow: of time, that of the processor counts."""
    found = [fault for fault in got.faults if not fault.endswith(" s")]
    return found + ([f"took {got.work:.0f} s of the processor"] if got.work > 60 else [])


def line_of(got: Outcome) -> str:
    """The line that counts: the error, else a warning, else the last one."""
    lines = [line for line in (got.out + got.err).splitlines() if line.strip()]
    for kind in ("fvae: error: ", "fvae: warning: "):
        lines = [line for line in lines if line.startswith(kind)] or lines
    return (lines or [f"nothing, and ended with {got.status}"])[-1]


def ended(got: Outcome, status: int, *said: str, never: tuple[str, ...] = ()) -> Found:
    """Whether a command ended so, and said all of that and none of this."""
    wrong, text = faults(got), got.out + got.err
    wrong += [f"ended with {got.status}"] * (got.status != status)
    wrong += [f"does not say {words!r}" for words in said if words not in text]
    wrong += [f"says {words!r}" for words in never if words in text]
    return "; ".join([*wrong, line_of(got)]), not wrong


def refused(got: Outcome, *said: str, memory: float = REFUSAL, **how: Any) -> Found:
    """Whether it was refused, in one line that says all of that, with little memory."""
    line, right = ended(got, 2, *said, **how)
    if got.memory > memory:
        return f"took {got.memory / 1e6:.0f} MB; {line}", False
    return line, right


def both(*found: Found) -> Found:
    """Several findings as one."""
    return "; ".join(str(f[0]) for f in found if f[0]), all(f[1] for f in found)


def kept(folder: Path) -> dict[str, bytes]:
    """All that is in a folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def untouched(folder: Path, before: dict[str, bytes]) -> Found:
    """Whether a folder holds what it did."""
    now = kept(folder)
    changed = sorted(n for n in before.keys() | now.keys() if before.get(n) != now.get(n))
    return f"changed {', '.join(changed)}" if changed else "", not changed


# --- all of them ---------------------------------------------------------------------------------


@contextlib.contextmanager
def _own_cache(folder: Path) -> Iterator[None]:
    before = os.environ.get("FVAE_CACHE")
    os.environ["FVAE_CACHE"] = str(folder)
    try:
        yield
    finally:
        os.environ.pop("FVAE_CACHE")
        if before is not None:
            os.environ["FVAE_CACHE"] = before


def samples(groups: list[str]) -> tuple[Table, int]:
    """Try all samples of some groups; return the table, and how many are wrong."""
    for module in ("runs", "streams", "files", "costs"):
        importlib.import_module(f"torture.sample_{module}")
    importlib.import_module("fvae.study.study")  # once, for all forks
    if set(groups) - set(GROUPS):
        sys.exit(f"--samples: got {' '.join(groups)}, expected some of {', '.join(GROUPS)}")
    table = Table("sample", "must", "got", "", show_lines=True)
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="samples-") as name:
        shared = Path(name)
        with _own_cache(shared / "cache"):
            for one in sorted(SAMPLES, key=lambda s: GROUPS.index(s.group)):
                if groups and one.group not in groups:
                    continue
                began = time.monotonic()
                folder = Path(tempfile.mkdtemp(dir=shared))
                try:
                    got, right = one.run(Place(folder, shared))
                except Exception as error:
                    traceback.print_exc()
                    got, right = repr(error), False
                shutil.rmtree(folder, ignore_errors=True)
                wrong += not right
                print(f"{time.monotonic() - began:6.1f} s  {'' if right else 'WRONG '}{one.about}",
                      file=sys.stderr)  # fmt: skip
                text = str(got).replace(f"{folder}/", "").replace(f"{shared}/", "")
                short = text if len(text) < 240 else f"{text[:120]} ... {text[-115:]}"
                verdict = "right" if right else "WRONG"
                table.add_row(f"{one.group}: {one.about}", one.must, short, verdict)
    return table, wrong


def show(groups: list[str]) -> int:
    """Try some groups and print the table; return how many samples are wrong."""
    started = time.monotonic()
    table, wrong = samples(groups)
    Console(width=None if sys.stdout.isatty() else 170, markup=False).print(table)
    print(f"{table.row_count} samples, {wrong} wrong, {time.monotonic() - started:.0f} s")
    return wrong
