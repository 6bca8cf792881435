"""JSON nested deeper than Python goes, in each file of a run: refused or left out, in a line."""

import shutil
import struct

import pytest
from small import SMALL_OPTIONS, command, write_npz

from fvae.files import from_json

DEEP = b"[" * 100_000
_CUT = b"]" * 100_000


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nested")
    data = write_npz(folder / "set.npz")
    words = ("--data", data, *SMALL_OPTIONS, "--steps", "2", "--out", folder / "run")
    assert command("train", *words)[0] == 0
    assert command("eval", folder / "run", "--protocol", "exhaustive", "--device", "cpu")[0] == 0
    return folder / "run"


def test_it_is_a_value_error():
    for text in (DEEP, DEEP + _CUT, '{"a":' * 100_000):
        with pytest.raises(ValueError):
            from_json(text)


def _checkpoint(was):
    header = b'{"__metadata__":{"config":' + DEEP + _CUT + b"}}"
    return struct.pack("<Q", len(header)) + header


@pytest.mark.parametrize(
    ("name", "content", "statuses"),
    [
        ("config.json", DEEP, (2, 2)),
        ("data.json", DEEP + _CUT, None),
        ("eval-exhaustive.json", DEEP + _CUT, (0, 0)),
        ("log.jsonl", DEEP + _CUT + b"\n", (0, 0)),
        ("checkpoint.safetensors", _checkpoint, (2, 0)),  # goes on from the one before
    ],
)
def test_no_file_of_a_run_ends_in_a_traceback(run, tmp_path, name, content, statuses):
    there = shutil.copytree(run, tmp_path / "run")
    path = there / name
    path.write_bytes(content(path.read_bytes()) if callable(content) else content)
    found = [command("report", there), command("train", "--resume", there, "--steps", "3")]
    for status, _, said in found:
        assert status in (0, 2) and "Traceback" not in said
    if statuses:
        assert tuple(status for status, _, _ in found) == statuses
