"""Figures from files: the tables of the pages, what compares records, what draws the bounds."""

import json
import re

import pytest

from bench import compare, figures, roofline, rows, table
from bench.record import Record
from bench.setup import Setup
from fvae.training.trainer import Trainer

STEP = {
    "ratio_bf16": {"p20": 2.1, "p50": 2.25, "p80": 2.5},
    "ratio_fp32": None,
    "ms": {"textbook": {"p20": 80.0, "p50": 90.0, "p80": 99.0},
           "bf16": {"p20": 39.0, "p50": 40.0, "p80": 41.0}},
}  # fmt: skip


def record(numbers, **fields):
    return {
        "format": figures.FORMAT, "command": "python -m bench.x", "date": "2026-01-31",
        "commit": "0123abc", "device": {"kind": "cpu", "name": "A CPU", "threads": 2},
        "versions": {"torch": "2.13"}, "numbers": numbers,
    } | fields  # fmt: skip


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A repository of one page with one table, written; its check's complaints."""
    monkeypatch.setattr(table, "TABLES", {"step": table.Table("PAGE.md", ("step",), rows.step)})
    path = tmp_path / "bench/results/step.json"
    figures.write(path, record(STEP))
    (tmp_path / "PAGE.md").write_text("# A\n<!-- table: step -->\n<!-- end -->\nrest\n")

    def run(*argv):
        with pytest.raises(SystemExit) as stopped:
            table.main(argv, tmp_path)
        return stopped.value.code

    assert run("--check") == 1
    assert run() == 0
    assert run("--check") == 0
    return tmp_path, run


def complaint(tree, capsys, change, *argv):
    """The one line that the check says after ``change`` of the page's text."""
    root, run = tree
    page = root / "PAGE.md"
    page.write_text(change(page.read_text()))
    capsys.readouterr()
    assert run(*(argv or ("--check",))) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_page_has_what_the_record_says(tree):
    text = (tree[0] / "PAGE.md").read_text()
    assert "| `--precision bf16` | 2.25 (2.10 to 2.50) | 90.0 (80.0 to 99.0) | 40.0" in text
    assert "| `--precision fp32` | - |" in text
    assert "A CPU, 2 threads, torch 2.13, commit 0123abc, 2026-01-31." in text
    assert text.endswith("<!-- end -->\nrest\n")


def test_the_check_finds_a_changed_digit_and_says_what_mends_it(tree, capsys):
    line = complaint(tree, capsys, lambda text: text.replace("2.25", "2.35"))
    assert line.startswith("bench.table: PAGE.md: table step is not what bench/results/step.json")
    assert "2.35 (2.10" in line and line.endswith("run: python -m bench.table")
    root, run = tree
    assert run() == 0  # writing mends it
    assert "2.25" in (root / "PAGE.md").read_text()


def test_the_check_finds_an_unknown_a_missing_and_an_unfinished_table(tree, capsys):
    whole = (tree[0] / "PAGE.md").read_text()
    line = complaint(tree, capsys, lambda text: "nothing\n")
    assert "PAGE.md: no line <!-- table: step -->" in line
    other = "<!-- table: other -->\nmine\n<!-- end -->\n"
    line = complaint(tree, capsys, lambda _: whole + other)
    assert line.endswith("PAGE.md: table other: no such table of this page; there are step")
    # What is between markers that nobody knows is left as it is.
    assert tree[1]() == 1
    assert (tree[0] / "PAGE.md").read_text() == whole + other
    cut = whole.replace("<!-- end -->\n", "")
    capsys.readouterr()
    line = complaint(tree, capsys, lambda _: cut)
    assert line.endswith("PAGE.md: table step has no <!-- end --> behind it; write one")
    assert tree[1]() == 1
    assert (tree[0] / "PAGE.md").read_text() == cut
    line = complaint(tree, capsys, lambda _: whole + whole)
    assert "there twice" in line


def test_a_record_that_is_torn_missing_or_lacks_a_number_is_named_and_the_page_kept(tree, capsys):
    root, run = tree
    path, page = root / "bench/results/step.json", (root / "PAGE.md").read_text()
    mended = "run: python -m bench.table --measure step"
    whole = path.read_text()
    for text, words in (
        (whole[: len(whole) // 2], "bench/results/step.json: not JSON"),
        ("{}", "not a record: format is None"),
        (json.dumps(record({"ms": {}})), "has not what it shows (KeyError: 'ratio_bf16')"),
        (json.dumps(record(STEP) | {"device": 3}), "no device"),
    ):
        path.write_text(text)
        for argv in (["--check"], []):
            capsys.readouterr()
            assert run(*argv) == 1
            (line,) = capsys.readouterr().err.splitlines()
            assert words in line and line.endswith(mended)
            assert str(root) not in line
        assert (root / "PAGE.md").read_text() == page
    path.unlink()
    assert "No such file" in complaint(tree, capsys, lambda text: text)


def test_measuring_runs_the_programs_and_goes_on_where_one_fails(tree, capsys, monkeypatch):
    root, run = tree
    commands = []

    def start(command, cwd):
        commands.append(command[1:])
        return type("Done", (), {"returncode": int("bench.b" in command)})

    monkeypatch.setattr(table.subprocess, "run", start)
    monkeypatch.setattr(table, "RECORDS", {"a": "bench.a", "b": "bench.b", "c": "bench.c"})
    assert run("--measure") == 1
    assert [c[1] for c in commands] == ["bench.a", "bench.b", "bench.c"]
    assert commands[0] == ["-m", "bench.a", "--out", "bench/results/a.json"]
    assert "bench/results/b.json: python -m bench.b ended with 1" in capsys.readouterr().err
    assert run("--measure", "c") == 0
    assert run("--measure", "d") == 2


def test_the_pages_say_what_their_records_say():
    for page in {t.page for t in table.TABLES.values()}:
        assert table.written(page, (table.ROOT / page).read_text())[1] == []


def test_no_figure_is_typed():
    unit = r"(?:ms|us|GB/s|MB/s|TFLOP/s|GFLOP/s|steps a second|images a second|times as fast|%)"
    for page in {t.page for t in table.TABLES.values()} | {"csrc/README.md", "kernels/README.md"}:
        text = re.sub(r"<!-- table.*?<!-- end -->", "", (table.ROOT / page).read_text(), flags=re.S)
        assert re.findall(rf"\d (?:{unit})(?!\w).*", text.replace("pass 100 %", "")) == []


# --- records ------------------------------------------------------------------------------------


def test_two_records_are_compared_by_name(tmp_path, capsys):
    a = record(
        {
            "ms": {"p20": 1, "p50": 2.0, "p80": 3},
            "old": 1,
            "ok": True,
            "ops": [{"op": "x", "shape": "B=1", "us": 4}, {"op": "x", "shape": "B=1", "us": 8}],
        }
    )
    b = record({"ms": {"p20": 1, "p50": 3.0, "p80": 3}, "new": 5, "ops": [
        {"op": "x", "shape": "B=1", "us": 2}]}, commit="later")  # fmt: skip
    paths = [tmp_path / name for name in ("a.json", "b.json")]
    for path, each in zip(paths, (a, b), strict=True):
        figures.write(path, each)
    compare.main([str(path) for path in paths])
    out = capsys.readouterr().out
    assert re.search(r"^ms +2 +3 +1\.500$", out, re.M)
    assert re.search(r"^ops/x B=1/us +4 +2 +0\.500$", out, re.M)
    assert "only in A: old, ops/x B=1 #1/us\nonly in B: new\n" in out
    assert "commit later" in out


@pytest.mark.parametrize("text", ["{", "[]", '{"format": "other"}', None])
def test_files_of_other_formats_are_refused_in_one_line(text, tmp_path, capsys):
    good, bad = tmp_path / "a.json", tmp_path / "b.json"
    figures.write(good, record({}))
    if text is not None:
        bad.write_text(text)
    with pytest.raises(SystemExit) as stopped:
        compare.main([str(good), str(bad)])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"bench.compare: {bad}: ")


def test_what_is_no_record_is_not_overwritten(tmp_path, capsys):
    from bench.record import options

    mine = tmp_path / "mine.json"
    mine.write_text('{"mine": 1}')
    with pytest.raises(SystemExit) as stopped:
        options("bench.step", "doc").parse_args(["--out", str(mine)])
    assert stopped.value.code == 2
    assert "it is left as it is" in capsys.readouterr().err
    figures.write(mine, record({}))
    assert options("bench.step", "doc").parse_args(["--out", str(mine)]).out == mine


# --- bounds -------------------------------------------------------------------------------------


def test_a_copys_time_is_read_off_between_the_sizes_measured():
    copied = {"1000": 10.0, "100000": 30.0}
    assert roofline.copy_seconds(10, copied) == pytest.approx(1.0)
    assert roofline.copy_seconds(10_000, copied) == pytest.approx(10_000 / 20)
    assert roofline.copy_seconds(1e6, copied) == pytest.approx(1e6 / 30)


def test_the_bound_is_the_longer_of_bytes_and_products():
    found = {"copy": {"1000": 1e9}, "matmul": {"fp32": 1e9}}
    row = {"bytes": 2000, "flops": 8000, "us": {"p50": 16.0}}
    assert roofline.bounded(row, found, "fp32")["bound_by"] == "operations"
    assert roofline.bounded(row, found, "fp32")["share"] == pytest.approx(0.5)
    assert roofline.bounded(row | {"flops": 0}, found, "fp32")["bound_us"] == pytest.approx(2.0)


def test_operations_of_a_step_are_those_that_pytorch_counts(dsprites):
    from torch.utils.flop_counter import FlopCounterMode

    from bench.baseline import Textbook
    from fvae.config import TrainConfig

    first, second = (dsprites.images([0, 1]).float() for _ in range(2))
    textbook = Textbook(units=16)
    with FlopCounterMode(display=False) as counter:
        textbook.losses(first, second)
    config = TrainConfig(device="cpu", precision="fp32", batch_size=2, disc_units=16)
    trainer = Trainer(config, dsprites)
    least = roofline.needs(trainer)
    # The textbook takes the discriminator there and back for three batches, ours for two, and
    # it wants no gradient of codes for two of its three.
    disc = least["discriminator"][1]
    rest = sum(flops for _, flops in least.values()) - disc
    of_codes = 2 * 2 * config.batch_size * config.latent_dim * config.disc_units
    assert counter.get_total_flops() - rest == 3 * disc // 2 - of_codes


def test_the_roofline_runs_at_tiny_sizes(tmp_path, capsys):
    kept = Record(None, "cpu")
    found = roofline.measure(Setup("cpu"), kept)
    assert kept.failures == {}
    assert {"copy", "matmul", "ops", "stages"} == found.keys()
    for each in found["stages"].values():
        assert list(each)[-1] == "whole step"
        assert all(row["share"] > 0 for row in each.values())
    printed = roofline.table(found)
    assert "whole step (fp32)" in printed and "metric_votes" in printed
    path = tmp_path / "new" / "a.png"
    roofline.draw(found, "a device", path)
    assert path.read_bytes().startswith(b"\x89PNG")
    for render in (rows.bounds, rows.stages, rows.ops):
        assert len(render(record(json.loads(json.dumps(found))))) > 3
