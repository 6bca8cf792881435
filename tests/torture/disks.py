"""A full disk at each write: one line, and what was there is whole."""

import contextlib
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from small import SMALL_OPTIONS, write_npz

from fvae import cli, data
from fvae.config import TrainConfig
from fvae.training import checkpoint
from torture import Outcome, Tally, in_child

_OFTEN = [*SMALL_OPTIONS, "--precision", "fp32", "--checkpoint-every", 5, "--log-every", 4]


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[tuple[Path, bool]]:
    """A disk of 2 MB where that can be mounted, else a plain folder; and whether it is one."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "fvae-torture", str(folder)]
    mounted = os.geteuid() == 0 and not subprocess.run(mount, capture_output=True).returncode
    try:
        yield folder, mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], capture_output=True)


def limited(words: list[object], bytes_left: int, disk: Path, mounted: bool) -> Outcome:
    """Run the command with so much space: the disk filled up to it, or files limited to it."""

    def work() -> int:
        if not mounted:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_left, bytes_left))
        cli.main([str(w) for w in words])
        return 0

    ballast = disk / "ballast"
    if mounted:
        ballast.unlink(missing_ok=True)
        free = shutil.disk_usage(disk).free - bytes_left
        with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
            file.write(bytes(max(0, free)))
    try:
        return in_child(work)
    finally:
        ballast.unlink(missing_ok=True)


def full_disks(folder: Path, sizes: int = 7) -> list[Tally]:
    """Every command that writes, with so many amounts of space, from none on."""
    tally = Tally("full disk at each write")
    source = write_npz(folder / "dsprites.npz")
    data.load(source)
    with small_disk(folder / "disk") as (disk, mounted):
        run = disk / "run"
        made = ["train", "--out", run, "--data", source, "--steps", 12, *_OFTEN]
        first = in_child(lambda: cli.main([str(w) for w in made]) or 0)
        tally.faults += first.faults
        size = (run / checkpoint.NAME).stat().st_size
        commands = {
            "train": ["train", "--out", disk / "other", "--data", source, "--steps", 12, *_OFTEN],
            "resume": ["train", "--resume", run, "--steps", 30],
            "eval": ["eval", run, "--protocol", "exhaustive"],
            "report": ["report", run],
            "traverse": ["traverse", run],
            "study": ["study", "--out", disk / "study", "--data", source, "--steps", 12, *_OFTEN,
                      "--objectives", "vae", "--seeds", 1, "--protocol", "exhaustive"],
        }  # fmt: skip
        for name, words in commands.items():
            amounts = (size // 2, 300, 0, size + 3000, 5000, int(2.5 * size), 40_000)
            for space in amounts[:sizes]:
                got = limited(words, space, disk, mounted)
                faults = got.faults + _whole(run)
                if got.status == 2 and "space" not in got.err and "large" not in got.err:
                    faults.append(f"said {got.err[-200:]!r}")
                if got.status == 2 and name != "train" and "train --resume" in got.err.replace(
                    "fvae train --resume` goes", ""
                ) and name not in ("resume", "study"):  # fmt: skip
                    faults.append("advises to train")
                tally.add(f"{name} with {space} bytes", faults, got.status == 2)
                for made_here in (disk / "other", disk / "study"):
                    shutil.rmtree(made_here, ignore_errors=True)
    return [tally]


def _whole(run: Path) -> list[str]:
    try:
        checkpoint.read(run, TrainConfig.from_file(run / "config.json"))
    except ValueError as error:
        return [f"torn: {error}"]
    left = [p.name for p in run.iterdir() if ".next" in p.name or p.name.startswith("..")]
    return [f"left behind: {name}" for name in left]
