"""The READMEs: what they name exists, what they show runs, what they print is printed."""

import contextlib
import csv
import importlib
import inspect
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import fvae
from bench import registry as bench_registry
from fvae import cli, ops
from fvae.ops import reference
from fvae.ops.registry import SCHEMAS
from fvae.registry import DATA, METRICS, OBJECTIVES

ROOT = Path(fvae.__file__).parents[1]
PAGES = [ROOT / "README.md"] + [
    ROOT / folder / "README.md"
    for folder in ("fvae", "fvae/data", "fvae/metrics", "kernels", "csrc", "bench", "bench/peers")
]
# Options of programs that are not ours.
FOREIGN = {"--nproc-per-node", "--no-build-isolation", "--no-deps"}
# Nets of a few weights and steps, whatever the page says.
TINY = (
    "--device cpu --precision fp32 --batch-size 4 --conv-channels 4 4 4 4 --hidden-units 8"
    " --latent-dim 3 --log-every 5"
)


def _text(page):
    return page.read_text()


def _blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", _text(page), re.MULTILINE | re.DOTALL)


def _help(*arguments):
    with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit):
        cli.main([*arguments, "--help"])
    return out.getvalue()


def _options(text):
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", _text(page)):
        path, _, anchor = target.partition("#")
        if target.startswith("http"):
            continue
        there = page.parent / path
        assert there.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.*)$", _text(there), re.MULTILINE)
            slugs = [re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads]
            assert anchor in slugs, target
    for path in re.findall(r"`((?:fvae|kernels|csrc|bench|tests)/[\w./-]*)`", _text(page)):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_dotted_names_can_be_imported(page):
    for name in set(re.findall(r"\bfvae(?:\.[A-Za-z]\w*)+", _text(page))):
        thing = importlib.import_module("fvae")
        for i, part in enumerate(name.split(".")[1:], start=2):
            if not hasattr(thing, part):
                importlib.import_module(".".join(name.split(".")[:i]))
            thing = getattr(thing, part)
    for name in re.findall(r"python -m ((?:fvae|bench)(?:\.\w+)*)", _text(page)):
        assert importlib.util.find_spec(name), name


def test_imports_that_are_shown_work():
    shown = [
        s for page in PAGES for s in re.findall(r"^ +((?:from|import) .*)$", _text(page), re.M)
    ]
    assert len(shown) > 5
    exec("\n".join(shown), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_options_exist(page):
    texts = [_help(name) for name in ("train", "eval", "study", "paper")]
    texts += [
        inspect.getsource(importlib.import_module(f"bench.{name}")) for name in ("record", "table")
    ]
    texts += [(ROOT / "kernels/report.py").read_text()]
    known = set.union(*map(_options, texts)) | FOREIGN
    assert _options(_text(page)) <= known


def test_every_option_of_a_training_command_is_one_of_train():
    known = _options(_help("train"))
    for page in PAGES:
        for line in re.findall(r"fvae train .*", _text(page)):
            assert _options(re.split(r"[`#]", line)[0]) <= known, line


def test_lengths():
    assert len(_text(PAGES[0]).splitlines()) <= 160
    for folder in ("fvae", "kernels", "csrc"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".cpp", ".cu", ".h", ".cuh"):
                assert len(path.read_text().splitlines()) <= 400, path


def test_the_plan_is_the_contract():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = contracts["contracts"][0]["layers"]
    page = _text(ROOT / "fvae/README.md")
    assert "".join(f"    {layer}\n" for layer in layers) in page
    rooms = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    named = {room for layer in layers for room in layer.split(" | ")}
    assert rooms == named - {"__main__", "_build"}


def test_every_op_is_where_the_steps_say():
    pages = _text(ROOT / "kernels/README.md") + _text(ROOT / "csrc/README.md")
    cases = {case.op for case in bench_registry.cases(batches=(7,), image_batches=(2,))}
    assert set(ops.OPS) == cases
    for op in ops.OPS:
        assert op in SCHEMAS
        assert callable(getattr(reference, op))
        assert callable(getattr(ops, op))
        assert f"| `{op}` |" in pages


def test_the_ceilings_are_what_the_page_says():
    page = ROOT / "fvae/metrics/README.md"
    (code,), (printed,) = _blocks(page, "python"), _blocks(page, "text")
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(code, {})
    assert out.getvalue() == printed
    assert "its MIG is 0.896" in _text(PAGES[0])
    assert "MIG 0.896" in printed


# --- adding an objective, a metric, a data set, as fvae/README.md shows --------------------------


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    """The page's modules in a folder of their own, and its commands."""
    page = ROOT / "fvae/README.md"
    shown = r"`(\w+)\.py`:\n\n```python\n(.*?)^```$"
    found = re.findall(shown, _text(page), re.MULTILINE | re.DOTALL)
    for name, code in found:
        (tmp_path / f"{name}.py").write_text(code)
    (commands,) = _blocks(page, "sh")
    export, *lines = commands.splitlines()
    program, *settings = shlex.split(export)
    assert program == "export"
    settings = dict(setting.split("=") for setting in settings)
    assert settings == {"FVAE_PLUGINS": ",".join(n for n, _ in found), "PYTHONPATH": "."}
    before = [list(registry) for registry in (OBJECTIVES, METRICS, DATA)]
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("FVAE_PLUGINS", settings["FVAE_PLUGINS"])
    yield lines
    for registry, names in zip((OBJECTIVES, METRICS, DATA), before, strict=True):
        for name in set(registry) - set(names):
            registry.remove(name)
    for name, _ in found:
        sys.modules.pop(name, None)


def _run(line, capsys):
    program, *arguments = shlex.split(line)
    assert program == "fvae"
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 0, line
    return capsys.readouterr().out


def test_an_objective_a_metric_and_a_data_set_from_outside(plugins, capsys):
    train, evaluate, report, study = plugins
    for command in ("train", "study"):
        text = re.sub(r"[\s│]+", " ", _help(command))
        assert "squared-kl" in text
        assert "bars: a bright column and a bright row" in text
    assert "reconstruction + beta KL^2" in re.sub(r"[\s│]+", " ", _help("train"))
    assert "share of active dimensions" in re.sub(r"[\s│]+", " ", _help("eval"))

    _run(f"{train} {TINY}", capsys)
    line = json.loads(Path("runs/mine/log.jsonl").read_text().splitlines()[-1])
    assert line["weight"] == 0.5
    assert line["loss"] == pytest.approx(line["recon"] + 0.5 * line["kl"] ** 2, rel=1e-2)
    assert re.search(r"│ active +│ +\d\.\d{3} │", _run(evaluate, capsys))
    scores = json.loads(Path("runs/mine/eval-kim2018.json").read_text())
    assert len(scores["active"]["std"]) == 3
    _run(report, capsys)
    page = Path("runs/mine/report.html").read_text()
    assert re.search(r"<th[^>]*>active</th>", page)
    assert "squared-kl on bars" in page

    _run(f"{study} {TINY} --strategy one-by-one", capsys)
    rows = list(csv.DictReader(Path("runs/ours/results.csv").open()))
    assert list(rows[0])[-3:] == ["active", "protocol", "message"]
    names = ["vae-seed0", "squared-kl-beta0.5-seed0", "squared-kl-beta1-seed0"]
    assert [row["run"] for row in rows] == names
    assert {row["status"] for row in rows} == {"done"}
    assert all(0 <= float(row["active"]) <= 1 for row in rows)
    page = Path("runs/ours/study.html").read_text()
    assert re.search(r"<th[^>]*>(<button[^>]*>)?active<", page)


def test_other_processes_know_what_is_from_outside(plugins, tmp_path):
    command = [sys.executable, "-m", "fvae", "data", "bars"]
    environment = os.environ | {"PYTHONPATH": "."}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "factor column" in done.stdout
    environment["FVAE_PLUGINS"] = "no_such_module"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "FVAE_PLUGINS: cannot import no_such_module" in done.stderr


def test_a_run_whose_terms_are_the_loss_alone_has_a_report(tmp_path):
    from fvae.report.run import _curves_figure

    assert len(_curves_figure([{"step": 1, "seconds": 0.1, "loss": 2.0}]).axes) == 1
    titles = [a.get_title() for a in _curves_figure([{"step": 1, "recon": 2.0, "own": 1.0}]).axes]
    assert titles == ["reconstruction (nats an image)", "own"]
