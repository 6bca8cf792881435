"""A log with anything in it."""

import json

import pytest

from fvae.training import log

GOOD = [{"step": s, "seconds": s / 10, "recon": 1.0, "kl_dims": [0.5], "weight": None}
        for s in (5, 10, 12)]  # fmt: skip
BAD = ["5", "null", "[]", "{}", "garbage", '{"step": 7}', '{"seconds": 1}', "[" * 5000,
       '{"step": true, "seconds": 1}', '{"step": 7, "seconds": "1"}', '{"step": 1.5, "seconds": 1}',
       '{"step": 7, "seconds": 1, "recon": "x"}', '{"step": 7, "seconds": 1, "recon": {}}',
       '\x00', '"\udcff"', '{"step": 5, "seconds": 0.1, "re']  # fmt: skip


def write(folder, *lines):
    text = "".join(line + "\n" for line in lines)
    (folder / log.NAME).write_bytes(text.encode(errors="surrogateescape"))


@pytest.mark.parametrize("bad", BAD, ids=range(len(BAD)))
def test_what_is_no_line_is_left_out_and_said(bad, tmp_path, capsys):
    first, *rest = map(json.dumps, GOOD)
    write(tmp_path, first, bad, *rest)
    assert log.read(tmp_path) == GOOD
    said = capsys.readouterr().err
    assert "line 2 is damaged" in said and said.count("\n") == 1
    assert log.cut(tmp_path, 10) == 1.0
    capsys.readouterr()
    assert log.read(tmp_path) == GOOD[:2] and not capsys.readouterr().err


def test_a_line_that_a_kill_cut_short_is_no_damage(tmp_path, capsys):
    write(tmp_path, *map(json.dumps, GOOD))
    with (tmp_path / log.NAME).open("a") as file:
        file.write('{"step": 15, "sec')
    assert log.read(tmp_path) == GOOD and not capsys.readouterr().err


def test_several_damaged_lines_are_one_warning(tmp_path, capsys):
    write(tmp_path, "a", "b", json.dumps(GOOD[0]), "c")
    assert log.read(tmp_path) == GOOD[:1]
    assert "line 1 and 2 more is damaged" in capsys.readouterr().err


def test_no_log_has_no_lines(tmp_path):
    assert log.read(tmp_path) == [] and log.cut(tmp_path, 5) == 0.0
    assert not (tmp_path / log.NAME).exists()
