"""A benchmark's parts, run one after another so that what one of them does loses nothing.

A part that raises, one for which no time is left, a device that stops answering: each is written
down, and the others go on. The JSON file is complete after every part.
"""

import argparse
import contextlib
import gc
import platform
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import triton

from bench import figures
from fvae import ops
from fvae.device import cpu_features, device_name
from fvae.study.made import commit

RESULTS = Path(__file__).parent / "results"
NO_TIME = "skipped: no time left"


@dataclass(frozen=True)
class Part:
    """One part of a benchmark.

    Attributes:
        name: what it is called in the file; ``--only`` takes it, or what stands before its "/".
        seconds: about how long it takes on a fast GPU; it is skipped where less is left.
        run: does the work and returns what JSON can hold.
    """

    name: str
    seconds: float
    run: Callable[[], object]


class Record:
    """What a run of a benchmark found, kept in a JSON file.

    Args:
        path: the file; None keeps nothing.
        device: "cuda" or "cpu".
        resume: go on with what the file holds.
    """

    def __init__(self, path: Path | None, device: str, resume: bool = False) -> None:
        self.path, self.device = path, device
        if resume and path is not None:
            self.data = figures.read(path)
        else:
            keys = ("parts", "numbers", "failures", "skipped")
            self.data = head(device) | {"state": state(device)} | {key: {} for key in keys}

    @property
    def results(self) -> dict:
        """What each part returned, by its name."""
        return self.data["numbers"]

    @property
    def failures(self) -> dict[str, str]:
        """The message of each part, or of a piece of one, that failed."""
        return self.data["failures"]

    @property
    def skipped(self) -> dict[str, str]:
        """Why a part was not run, by its name."""
        return self.data["skipped"]

    def write(self) -> None:
        """Write the file as it now is."""
        if self.path is not None:
            figures.write(self.path, self.data)

    @contextlib.contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """Record under ``name`` what is raised inside, and go on."""
        try:
            yield
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            self.failures[name] = f"{type(error).__name__}: {str(error)[:2000]}"

    def run(self, parts: Sequence[Part], deadline: float) -> list[Part]:
        """Run parts in their order.

        Args:
            parts: what to run.
            deadline: of ``time.monotonic``; a part that would end later is skipped.

        Returns:
            the parts that remain where the device is lost to this process; otherwise none.
        """
        for i, part in enumerate(parts):
            started = time.monotonic()
            if started + part.seconds > deadline:
                self.skipped[part.name] = NO_TIME
            else:
                print(f"-- {part.name}", file=sys.stderr, flush=True)
                with self.attempt(part.name):
                    self.results[part.name] = part.run()
                lost = not _answers(self.device)
                seconds = round(time.monotonic() - started, 1)
                self.data["parts"][part.name] = {"seconds": seconds} | _clocks(self.device)
                if lost:
                    self.failures.setdefault(part.name, "the device is lost to this process")
                    self.write()
                    return list(parts[i + 1 :])
            self.write()
        return []


def _answers(device: str) -> bool:
    """Free what a part left behind; return whether the device still works for this process."""
    gc.collect()
    if device == "cuda":
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except RuntimeError:
            return False
    return True


def head(device: str) -> dict:
    """Return what a record (:mod:`bench.figures`) says beside its numbers."""
    facts: dict[str, object] = {"kind": device, "name": device_name(device)}
    if device == "cuda":
        facts["capability"] = ".".join(map(str, torch.cuda.get_device_capability()))
    else:
        facts |= {"threads": torch.get_num_threads(), "features": _products()}
    return {
        "format": figures.FORMAT,
        "command": " ".join(["python", *sys.orig_argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "device": facts,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": triton.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "driver": _smi("driver_version").get("driver_version"),
        },
    }


def state(device: str) -> dict:
    """Return what else a GPU's record says: the backend of every op, and the clocks."""
    facts = {
        "extension_error": ops.EXTENSION_ERROR,
        "backends": {op: ops.backend_of(op, device) for op in ops.OPS},
    }
    if device == "cuda":
        facts["clocks"] = _smi("clocks.max.sm", "clocks.max.mem", "power.limit")
    return facts


def _products() -> list[str]:
    """What a processor multiplies with, of what it says that it has."""
    known = ("avx2", "avx512_f", "avx512_bf16", "amx_bf16")
    return [name for name in known if cpu_features().get(name)]


def options(module: str, about: str | None) -> argparse.ArgumentParser:
    """Return a program's parser, with ``--out``, which :func:`keep` takes.

    Args:
        module: its name after ``python -m``.
        about: its docstring, whose first line becomes the help.
    """
    about = (about or "").partition("\n")[0].partition("``: ")[2] or about
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=about)
    parser.add_argument(
        "--out", type=_replaceable, metavar="JSON", help="keep the numbers there, as a record"
    )
    return parser


def _replaceable(name: str) -> Path:
    """A path at which nothing is, or a record."""
    path = Path(name)
    if path.exists():
        try:
            figures.read(path)
        except figures.NoRecord as error:
            raise argparse.ArgumentTypeError(f"{error}; it is left as it is") from None
    return path


def keep(out: Path | None, numbers: dict, device: str = "cpu") -> None:
    """Write what a program found as a record; nothing where ``--out`` was not given."""
    if out:
        figures.write(out, head(device) | {"numbers": numbers})


def _clocks(device: str) -> dict[str, str]:
    return _smi("clocks.sm", "clocks.mem", "temperature.gpu") if device == "cuda" else {}


def _smi(*fields: str) -> dict[str, str]:
    """Ask nvidia-smi for fields of the GPU in use; nothing where it does not answer."""
    query = ("nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader")
    values = ""
    with contextlib.suppress(Exception):  # no GPU, or a part of one that has no such name
        values = _output(*query, f"--id=GPU-{torch.cuda.get_device_properties().uuid}")
    values = values or _output(*query)
    values = [value.strip() for value in values.splitlines()[0].split(",")] if values else []
    return dict(zip(fields, values, strict=True)) if len(values) == len(fields) else {}


def _output(*command: str) -> str:
    """Return what a program prints, "" where it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def file_of(out: Path, device: str) -> Path:
    """Return the file of ``--out``: itself, or in a folder the file of the device's name."""
    if out.suffix == ".json" and not out.is_dir():
        return out
    name = re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")
    return out / f"{name}.json"


def chosen(parts: Sequence[Part], names: Sequence[str]) -> list[Part]:
    """Return the parts of some names, or of what stands before their "/"; all where none is given.

    Raises:
        SystemExit: a name is no part's.
    """
    known = {part.name for part in parts} | {part.name.split("/")[0] for part in parts}
    for name in names:
        if name not in known:
            raise SystemExit(f"{name}: no such part; expected some of {', '.join(sorted(known))}")
    wanted = set(names) or known
    return [part for part in parts if wanted & {part.name, part.name.split("/")[0]}]


def program(
    module: str,
    about: str,
    parts_of: Callable[[str, Record], Sequence[Part]],
    show: Callable[[Record], None],
    out: Path | None,
    argv: Sequence[str] | None = None,
    seconds: float = 240.0,
) -> None:
    """Run a benchmark from the command line, and exit with 1 if a part failed.

    Args:
        module: its name after ``python -m``.
        about: its first line of help.
        parts_of: makes the parts for a device ("cuda", or tiny ones for "cpu") and a record.
        show: prints the tables.
        out: where the JSON goes unless ``--out`` says; None writes none.
        argv: arguments other than the program's own.
        seconds: how long it may take unless ``--seconds`` says.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=about)
    parser.add_argument("parts", nargs="*", metavar="PART", help="parts to run; all if none")
    parser.add_argument("--only", nargs="+", metavar="PART", default=[], help="the same")
    parser.add_argument("--out", type=Path, default=out, help="JSON file, or a folder for it")
    parser.add_argument(
        "--seconds", type=float, default=seconds, help="begin no part that ends later"
    )
    parser.add_argument(
        "--device",
        choices=("cuda", "cpu"),
        default="cuda",
        help="cpu tries the program at tiny sizes; its times mean nothing",
    )
    parser.add_argument("--resume", action="store_true", help="go on with what the file holds")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.exit(2, f"{module}: PyTorch sees no CUDA device; run it on a machine with a GPU\n")
    deadline = time.monotonic() + args.seconds
    path = file_of(args.out, args.device) if args.out else None
    try:
        if path and (args.resume or path.exists()):
            figures.read(path)
    except figures.NoRecord as error:
        parser.exit(2, f"{module}: {error}; it is left as it is\n")
    record = Record(path, args.device, args.resume)
    parts = chosen(parts_of(args.device, record), [*args.parts, *args.only])
    record.write()  # where it cannot be written, that is known before anything is measured
    left = record.run(parts, deadline)
    if left and path:
        # A kernel that reads past its memory takes the device from its process, not from others.
        rest = ["--only", *(part.name for part in left), "--out", str(path), "--resume"]
        rest += ["--device", args.device, "--seconds", str(deadline - time.monotonic())]
        sys.exit(subprocess.run([sys.executable, "-m", module, *rest]).returncode)
    for part in left:
        record.skipped[part.name] = "skipped: the device is lost"
    show(record)
    for name, message in (record.failures | record.skipped).items():
        print(f"{name}: {message}")
    if path:
        print(path)
    sys.exit(1 if record.failures else 0)
