"""Hostile trials in processes of their own: killed, out of disk, on damaged files, on any words."""

import contextlib
import io
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process that forks has one thread

#: What any trial may take: seconds of processor time where it is refused and where it does what it
#: was asked (a study trains, scores and draws), and bytes beyond what the parent has.
SECONDS, WORK, MEMORY = 10.0, 60.0, 1.5e9


@dataclass(frozen=True)
class Outcome:
    """How a process ended.

    Attributes:
        status: exit status, or minus the signal's number.
        out: what it said on standard output.
        err: what it said on standard error.
        seconds: how long it took.
        memory: bytes at its peak, beyond what the parent had when it started.
        work: seconds of processor time.
    """

    status: int
    out: str
    err: str
    seconds: float
    memory: float
    work: float = 0.0

    @property
    def faults(self) -> list[str]:
        """What no command may do, whatever it is given."""
        found = []
        if "Traceback" in self.err or "Traceback" in self.out:
            found.append("traceback")
        if self.status not in (0, 2):
            found.append(f"ended with {self.status}")
        errors = [line for line in self.err.splitlines() if line.startswith("fvae: error: ")]
        if self.status == 2 and len(errors) != 1:
            found.append("no error of one line")
        if self.work > (
            WORK if self.status == 0 else SECONDS
        ):  # a machine that others use is slow, and a hung process killed
            found.append(f"took {self.work:.0f} s")
        if self.memory > MEMORY:
            found.append(f"took {self.memory / 1e9:.1f} GB")
        return found


@dataclass
class Tally:
    """The trials of one kind: a row of the table."""

    kind: str
    trials: int = 0
    refused: int = 0
    faults: list[str] = field(default_factory=list)

    def add(self, what: str, faults: Sequence[str], refused: bool = False) -> None:
        """Count a trial; ``what`` tells it from the others should it have faults."""
        self.trials += 1
        self.refused += refused
        self.faults += [f"{what}: {fault}" for fault in faults]


class Child:
    """A fork of this process, which has all modules loaded and one thread.

    Args:
        work: returns the exit status, or raises SystemExit.
        streams: standard output and error, where they are not to be kept: open files.
    """

    def __init__(self, work: Callable[[], int], **streams: Any) -> None:
        self._files = [streams.get(name) or tempfile.TemporaryFile() for name in ("out", "err")]
        sys.stdout.flush()
        sys.stderr.flush()
        self._before, self._own = _resident(), _own()
        self._started = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            _be_child(work, *(file.fileno() for file in self._files))
        with contextlib.suppress(OSError):
            os.setpgid(self.pid, self.pid)  # both of us do: whoever comes first

    def send(self, number: int) -> None:
        """Send it a signal; to one that has ended, nothing."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self, kill_after: float | None = None, limit: float = 4 * SECONDS) -> Outcome:
        """Wait for its end, and kill what it started; the arguments are those of in_child."""
        ends = self._started + (limit if kill_after is None else kill_after)
        killed, most = False, 0.0
        while True:
            most = max(most, _own(self.pid))
            done, status, usage = os.wait4(self.pid, os.WNOHANG)
            if done:
                break
            if time.monotonic() >= ends and not killed:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.pid, signal.SIGKILL)
                killed = True
            time.sleep(0.0005)
        seconds = time.monotonic() - self._started
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # what it started goes with it
        texts = []
        for file in self._files:
            with file:
                kept = file.seekable() and file.readable() and not file.seek(0)
                texts.append(file.read().decode(errors="backslashreplace") if kept else "")
        # A fork has not mapped the libraries' pages that its parent has: what is its own counts.
        memory = max(0.0, usage.ru_maxrss * 1024.0 - self._before, most - self._own)
        work = usage.ru_utime + usage.ru_stime
        return Outcome(os.waitstatus_to_exitcode(status), *texts, seconds, memory, work)


def in_child(
    work: Callable[[], int], kill_after: float | None = None, limit: float = 4 * SECONDS
) -> Outcome:
    """Run something in a fork of this process.

    Args:
        work: returns the exit status, or raises SystemExit.
        kill_after: seconds after which it gets a SIGKILL; None is never.
        limit: seconds after which it is taken for hung.
    """
    return Child(work).wait(kill_after, limit)


def command(*words: object, **how: float) -> Outcome:
    """Run the ``fvae`` command in a fork."""

    def work() -> int:
        from fvae import cli

        cli.main([os.fsdecode(w) if isinstance(w, bytes) else str(w) for w in words])
        return 0

    return in_child(work, **how)


def _be_child(work: Callable[[], int], out: int, err: int) -> None:
    status = 70
    try:
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for target, source in enumerate((nothing, out, err)):
            os.dup2(source, target)
        sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), write_through=True)
        sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), write_through=True)
        from fvae import streams

        streams.guard()
        try:
            status = work()
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        sys.stdout.flush()
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def _own(pid: int | str = "self") -> float:
    """Bytes of a process that no file holds; 0 of one that has ended."""
    try:
        with open(f"/proc/{pid}/statm") as file:
            _, resident, shared = map(int, file.read().split()[:3])
    except OSError:
        return 0.0
    return (resident - shared) * float(resource.getpagesize())


def _resident() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * float(resource.getpagesize())
