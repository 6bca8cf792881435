"""The benchmark of minutes until a score, at tiny settings: its records, log and head."""

import dataclasses
import json
import re

import pytest
from small import SMALL, options, square

from bench import figures, time_to_score
from fvae.config import RECIPES, TrainConfig
from fvae.errors import UserError

#: Nets of a few units, whose rates do not warm up.
TINY = options(
    SMALL, "batch_size", "latent_dim", "disc_units", "disc_hidden_layers", "conv_channels",
    "hidden_units", "precision", "log_every", "learning_rate_warmup_steps",
)  # fmt: skip


def _station(step, score, seconds=60.0, recon=100.0, left=50):
    return {"step": step, "score": score, "seconds": seconds, "recon": recon, "kl": 1.0,
            "left_the_mean": left}  # fmt: skip


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """The program on a small set; it returns the record."""
    store = square(1, 64, binary=True)
    monkeypatch.setattr(time_to_score.data, "load", lambda **_: store)
    monkeypatch.setattr(time_to_score, "keep_freed_memory", lambda: None)

    def run(name, *words):
        folders = ["--out", tmp_path / "records", "--runs", tmp_path / "runs"]
        time_to_score.main([str(word) for word in (name, *folders, *words)])
        return figures.read(tmp_path / "records" / f"{name}.json")

    return run


def _files(folder):
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*.json")}


def test_stations_of_one_run_are_kept_and_more_may_come(ran, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(time_to_score, "LOG", tmp_path / "LOG.md")
    record = ran("tiny", "--seeds", 2, "--steps", 3, 2, *TINY)
    assert [b["steps"] for b in record["numbers"]["budgets"]] == [2, 3]
    assert {p.name for p in (tmp_path / "runs/tiny").iterdir()} == {"seed0", "seed1"}
    assert record["recipe"] == "fast" and record["settings"]["learning_rate"] == 1e-3
    for budget in record["numbers"]["budgets"]:
        assert len(budget["score"]) == len(budget["seconds"]) == 2
        assert all(0 <= score <= 1 for score in budget["score"])
    before = _files(tmp_path / "runs")
    capsys.readouterr()
    again = ran("tiny", "--seeds", 2, "--steps", 2, 3, *TINY)
    assert again["numbers"] == record["numbers"]
    assert _files(tmp_path / "runs") == before
    assert again["output"] == capsys.readouterr().out.splitlines()[:-1]
    more = ran("tiny", "--seeds", 1, "--steps", 2, 3, 4, *TINY)
    scores = [b["score"] for b in more["numbers"]["budgets"]]
    assert scores[:2] == [b["score"][:1] for b in record["numbers"]["budgets"]]
    assert len(scores) == 3
    with pytest.raises(SystemExit) as stop:  # what was passed by
        ran("tiny", "--seeds", 1, "--steps", 1, *TINY)
    assert stop.value.code == 2
    assert re.search(r"seed0: is past step 1 .*\n$", capsys.readouterr().err)


def test_rates_that_fall_have_a_run_for_each_number_of_steps(ran, tmp_path):
    ran("falls", "--seeds", 1, "--steps", 2, 3, "--learning-rate-schedule", "cosine", *TINY)
    made = {p.name for p in (tmp_path / "runs/falls").iterdir()}
    assert made == {"seed0-2", "seed0-3"}
    for steps in (2, 3):
        config = TrainConfig.from_file(tmp_path / f"runs/falls/seed0-{steps}/config.json")
        assert config.steps == steps


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["x", "--gamma", "much"], "--gamma"),
        (["x", "--seed", "3"], "--seed: the program gives it"),
        (["x", "--resume=a"], "--resume: the program gives it"),
        (["x", "--no-such"], "--no-such"),
        (["--seeds", "2"], "NAME: got none"),
        (["x", "--steps", "0"], "got 0, expected 1 or more"),
        (["x", "--recipe", "mine"], "mine"),
    ],
)
def test_what_is_refused(words, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        time_to_score.main([*words, "--out", str(tmp_path), "--runs", str(tmp_path)])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error.splitlines()[-1]
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_a_run_of_other_settings_is_left_alone(ran, tmp_path, capsys):
    ran("tiny", "--seeds", 1, "--steps", 2, *TINY)
    before = _files(tmp_path)
    with pytest.raises(SystemExit):
        ran("tiny", "--seeds", 1, "--steps", 2, *TINY, "--gamma", 3)
    assert "seed0: was made with gamma = 35.0, now it is 3.0" in capsys.readouterr().err
    assert _files(tmp_path) == before


def test_a_target_is_reached_where_the_mean_is():
    seeds = [
        [_station(100, 0.5, 60.0), _station(200, 0.72, 120.0), _station(300, 0.8, 180.0)],
        [_station(100, 0.9, 61.0, left=None), _station(200, 0.76, 130.0), _station(300, 0.69)],
        [_station(100, 0.4, 90.0), _station(200, 0.71, 600.0), _station(300, 0.8, 190.0)],
    ]
    numbers = time_to_score.summary(seeds)
    assert numbers["minutes_to"] == {"0.70": 2.17, "0.75": 3.0, "0.80": None}
    assert [b["mean"] for b in numbers["budgets"]] == [0.6, 0.73, 0.7633]
    assert [b["above_0.62"] for b in numbers["budgets"]] == [1, 3, 3]
    assert numbers["budgets"][0]["sd"] == 0.2646
    assert numbers["budgets"][0]["left_the_mean"] == [50, None, 50]
    assert time_to_score.table(numbers)[-1] == "| 300 | 3.0 | 0.763 | 0.064 | 0.80 0.69 0.80 |"
    one = time_to_score.summary(seeds[:1])
    assert one["budgets"][0]["sd"] is None and "| - |" in time_to_score.table(one)[2]


def _record(numbers):
    return {
        "format": figures.FORMAT, "command": "python -m x", "date": "2026-01-31", "commit": "abc",
        "device": {"name": "Some CPU", "threads": 2}, "versions": {"torch": "2.13"},
        "numbers": numbers, "name": "fast",
    }  # fmt: skip


def test_the_head_is_that_of_the_record_and_the_log_has_its_rows(tmp_path):
    seeds = [[_station(100, s), _station(200, s + 0.1, 300.0)] for s in (0.6, 0.64)]
    numbers = time_to_score.summary(seeds) | {"textbook_hours": 16.5, "paper_steps": 300_000}
    figures.write(tmp_path / "fast.json", _record(numbers))
    said = time_to_score.claim(tmp_path)
    assert "Some CPU, 2 threads" in said and "2 seeds" in said
    assert "Mean of 0.70: 5.0 minutes: 200 steps, mean 0.720, sd 0.0283." in said
    assert "Mean of 0.75: not within 5.0 minutes (at most 0.7200, after 5.0)." in said
    assert "300000 steps: 16.5 hours." in said
    time_to_score.write_log(_record(numbers), "a larger rate", tmp_path / "LOG.md")
    text = (tmp_path / "LOG.md").read_text()
    assert "### fast: a larger rate" in text and time_to_score.table(numbers)[-1] in text
    assert "below 200 by step 50, 50" in text and "commit abc" in text


def test_the_head_of_the_program_says_what_its_record_says(tmp_path, monkeypatch):
    said = time_to_score.__doc__.split("<claim>\n")[1].split("\n</claim>")[0]
    assert said == time_to_score.claim()
    source = tmp_path / "head.py"
    source.write_text('"""One.\n\n<claim>\nold\n</claim>\n\nrest\n"""\nx = "<claim>"\n')
    time_to_score.write_claim(source)
    assert (
        source.read_text() == f'"""One.\n\n<claim>\n{said}\n</claim>\n\nrest\n"""\nx = "<claim>"\n'
    )


def test_the_program_says_which_recipes_there_are():
    configs = time_to_score.configs_of("paper", ["--device", "cpu"], (7, 5, 7))
    assert [c.steps for c in configs] == [5, 7]
    defaults = dataclasses.asdict(TrainConfig())
    settled = {"steps", "device", "precision"}
    assert all(getattr(configs[0], n) == v for n, v in defaults.items() if n not in settled)
    fast = time_to_score.configs_of("fast", [], (5,))[0]
    assert json.loads(fast.to_json())["disc_units"] == RECIPES["fast"]["disc_units"]
    with pytest.raises(UserError, match="--steps: the program gives"):
        time_to_score.configs_of("fast", ["--steps", "3"], (5,))
