"""Closed, full and lost streams, Ctrl-C at any time, and the loss of the terminal."""

import dataclasses
import json
import os
import pty
import signal
import subprocess
import sys
import time

import pytest
from small import SMALL, SMALL_OPTIONS, log, run, step_of, write_shapes3d
from torture.samples import begin, until

from fvae import data

FVAE = [sys.executable, "-m", "fvae"]


def started(*words, **streams):
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE,
               "text": True} | streams  # fmt: skip
    return subprocess.Popen([*FVAE, *map(str, words)], **streams)


def shell(line):
    """Run a line of sh in which $fvae is the command; return (status, stdout, stderr)."""
    done = subprocess.run(
        ["sh", "-c", line], env=os.environ | {"fvae": f"{sys.executable} -m fvae"},
        capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on 64 images with factors."""
    folder = tmp_path_factory.mktemp("streams")
    path = write_shapes3d(folder / "small.h5")
    run(dataclasses.replace(SMALL, data=str(path)), data.load(path), folder / "a")
    return folder / "a"


def train(folder, steps, *more):
    return ["train", "--out", folder, "--steps", steps, *SMALL_OPTIONS, *more]


@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        ("($fvae train --help; echo $? >&2) | true", 0, "141\n"),
        ("$fvae eval {}/nowhere 2>&- ", 2, ""),
    ],
)
def test_output_that_cannot_be_written(line, status, said, trained):
    got, _, err = shell(line.format(trained))
    assert (got, err) == (status, said)


def test_scores_that_cannot_be_written(trained):
    with open("/dev/full", "wb") as full:
        got = begin("eval", trained, "--json", out=full).wait(limit=240)
    assert got.status == 2 and got.err.count("\n") == 1
    assert got.err.startswith("fvae: error: standard output: No space left")
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as broken:
        got = begin("eval", trained, "--json", out=broken).wait(limit=240)
    assert (got.status, got.err) == (141, "")
    with open("/dev/full", "wb") as full:
        got = begin("eval", trained, err=full).wait(limit=240)
    assert got.status == 0 and "factor_vae" in got.out


@pytest.mark.parametrize("streams", ["2> /dev/full", ">&- 2>&- <&-"])
def test_training_does_without_its_streams(streams, tmp_path):
    words = " ".join(map(str, train(tmp_path / "a", 12, "--log-every", 2)))
    status, out, err = shell(f"$fvae {words} {streams}")
    assert (status, err) == (0, "")
    assert out in ("", f"{tmp_path}/a/report.html\n")
    assert [line["step"] for line in log(tmp_path / "a")] == [2, 4, 6, 8, 10, 12]
    assert (tmp_path / "a" / "report.html").read_text().rstrip().endswith("</html>")


# Earlier is Python's own start, before any line of ours: the test below is about the first.
@pytest.mark.parametrize("delay", [0.3, 0.8, 1.6])
def test_ctrl_c_while_it_starts_is_quiet(delay, trained):
    process = started("eval", trained)
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode in (0, 130, -signal.SIGINT)
    assert "Traceback" not in err and err.count("\n") <= 1


def test_ctrl_c_before_the_first_import_is_quiet():
    program = (
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'fvae.streams':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from fvae.__main__ import main\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


@pytest.mark.parametrize("ignored", [False, True])
def test_the_loss_of_the_terminal(ignored, tmp_path):
    folder, steps = tmp_path / "a", 300 if ignored else 100_000
    leader, terminal = pty.openpty()
    action = signal.SIG_IGN if ignored else signal.SIG_DFL
    out, err = (open(os.dup(terminal), "wb", buffering=0) for _ in range(2))
    os.close(terminal)
    process = begin(
        *train(folder, steps, "--log-every", 5), page=True, out=out, err=err,
        first=lambda: (signal.signal(signal.SIGHUP, action), os.close(leader)),
    )  # fmt: skip
    until(lambda: (folder / "log.jsonl").exists() and log(folder))
    os.close(leader)
    process.send(signal.SIGHUP)  # as the kernel does, where it is the session's leader
    assert process.wait(limit=240).status == (0 if ignored else 128 + signal.SIGHUP)
    assert step_of(folder) >= log(folder)[-1]["step"] > 0
    assert (step_of(folder) == steps) == ignored
    if ignored:
        json.loads((folder / "config.json").read_text())
        assert (folder / "report.html").exists()
