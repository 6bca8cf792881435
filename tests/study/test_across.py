"""Scores of a study's runs beside those of their setting; and the page that shows them."""

import csv
import dataclasses
import html
import json
import os
import re
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from small import SMALL, bits, command, options, refused, write_npz

from fvae import data, evaluate, report
from fvae.config import StudyConfig, TrainConfig
from fvae.errors import UserError
from fvae.metrics.across import ACROSS, Codes
from fvae.metrics.constants import CENTRALITY, UDR, CentralityProtocol
from fvae.models.infogan import InfoGAN
from fvae.report import run as report_run
from fvae.study import across, study, tables
from fvae.study.grid import OF_A_RUN, expand
from fvae.study.work import across_of, asked_of

_COMMON = {
    f.name: getattr(SMALL, f.name)
    for f in dataclasses.fields(TrainConfig)
    if f.name not in OF_A_RUN
}
NAMES = ("udr", "udr_lasso", "model_centrality")


@pytest.fixture(scope="module", autouse=True)
def _own_cache(one_thread, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FVAE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def small(tmp_path_factory, monkeypatch):
    """Two settings of two seeds, of a set without factors; reports and scores take no time."""
    monkeypatch.setattr(across, "UDR", dataclasses.replace(UDR, images=64))
    monkeypatch.setattr(across, "CENTRALITY", CentralityProtocol(votes=8, samples=4))
    monkeypatch.setattr(report, "write_report", lambda run, _: (run / "report.html").touch())
    images = bits(40, torch.Generator().manual_seed(0))
    monkeypatch.setattr(data, "load", lambda *_, **__: images)
    return StudyConfig(
        **_COMMON, betas=(4.0,), seeds=2, objectives=("beta-vae", "vae"), protocol="exhaustive",
        metrics=NAMES,
    )  # fmt: skip


def _results(folder):
    with (folder / "results.csv").open() as file:
        return {row["run"]: row for row in csv.DictReader(file)}


def _kept(folder):
    return json.loads((folder / across.NAME).read_text())


def test_a_set_without_factors_has_scores_of_its_seeds(small, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "a"
    assert study.study(small, folder) == 0
    kept, rows = _kept(folder), _results(folder)
    assert kept.keys() == {"beta-vae-beta4", "vae"}
    for name, row in rows.items():
        assert row["status"] == "done" and row["mig"] == ""
        for score in NAMES:
            assert float(row[score]) == kept[row["setting"]]["scores"][name][score]
            assert 0 <= float(row[score]) <= 1
    head = list(rows["vae-seed0"])
    assert head[head.index("tc") + 1 :] == [
        "factor_vae", "beta_vae", "mig", "sap", "dci", *NAMES, "protocol", "message",
    ]  # fmt: skip
    page = (folder / "study.html").read_text()
    for title in ("Every score against reconstruction", "Best without labels", "Runs"):
        assert f"<h2>{title}</h2>" in page
    assert "no ground-truth factors" in page and "eval-" not in page

    before = (folder / across.NAME).stat().st_mtime_ns, (folder / "study.html").read_bytes()
    monkeypatch.setattr(data, "load", lambda *_, **__: pytest.fail("data was loaded"))
    assert study.study(small, folder) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert before == ((folder / across.NAME).stat().st_mtime_ns,
                      (folder / "study.html").read_bytes())  # fmt: skip


@pytest.mark.slow
def test_only_what_changed_is_scored_again(small, tmp_path, monkeypatch):
    folder, scored = tmp_path / "a", []
    real = across._scores

    def scores(runs, *arguments):
        scored.append([run.name for run in runs])
        return real(runs, *arguments)

    monkeypatch.setattr(across, "_scores", scores)
    few = dataclasses.replace(small, metrics=("udr",))
    assert study.study(few, folder) == 0
    assert len(scored) == 2
    first = _kept(folder)
    assert study.study(dataclasses.replace(few, betas=(4.0, 8.0)), folder) == 0
    assert scored[2:] == [["beta-vae-beta8-seed0", "beta-vae-beta8-seed1"]]
    assert study.study(dataclasses.replace(few, betas=(4.0, 8.0), seeds=3), folder) == 0
    assert [len(names) for names in scored[3:]] == [3, 3, 3]
    # Another score of the same runs leaves what there is.
    more = dataclasses.replace(few, betas=(4.0, 8.0), seeds=3, metrics=NAMES)
    before = _kept(folder)
    assert study.study(more, folder) == 0
    after = _kept(folder)
    for setting, one in before.items():
        for run, scores in one["scores"].items():
            assert after[setting]["scores"][run] | scores == after[setting]["scores"][run]
            assert after[setting]["scores"][run].keys() == set(NAMES)
    fresh = tmp_path / "b"
    assert study.study(few, fresh) == 0
    assert _kept(fresh) == first


def test_what_is_torn_or_foreign_is_made_again_and_said(small, tmp_path, capsys):
    folder = tmp_path / "a"
    assert study.study(small, folder) == 0
    good = (folder / across.NAME).read_bytes()
    setting = json.loads(good)["vae"]
    run = setting["scores"]["vae-seed0"]
    for content in [
        b"", b"{", b"5", b"[" * 5000, b"\xff", b'{"vae": 5}',
        json.dumps({"vae": setting | {"scores": {}}}).encode(),
        json.dumps({"vae": setting | {"scores": {"vae-seed0": run | {"udr": "1"},
                                                 "vae-seed1": run}}}).encode(),
        json.dumps({"vae": setting | {"scores": {"vae-seed0": run | {"udr": float("nan")},
                                                 "vae-seed1": run}}}).encode(),
    ]:  # fmt: skip
        (folder / across.NAME).write_bytes(content)
        capsys.readouterr()
        assert study.study(small, folder) == 0, content
        said = capsys.readouterr().err
        assert f"{folder / across.NAME}: not scores that can be read" in said
        assert (folder / across.NAME).read_bytes() == good
    # Other constants are another score: no remark, and taken again.
    changed = json.loads(good)
    changed["vae"]["constants"]["udr"]["images"] = 7
    (folder / across.NAME).write_text(json.dumps(changed))
    capsys.readouterr()
    assert study.study(small, folder) == 0
    assert "not scores" not in capsys.readouterr().err
    assert _kept(folder) == json.loads(good)


def test_one_seed_has_no_score_and_a_note(small, tmp_path):
    assert study.study(dataclasses.replace(small, seeds=1), tmp_path / "a") == 0
    rows = _results(tmp_path / "a")
    assert {row[name] for row in rows.values() for name in NAMES} == {""}
    page = (tmp_path / "a" / "study.html").read_text()
    assert "compare the runs of a setting, so a setting of one finished run has none" in page
    assert not (tmp_path / "a" / across.NAME).exists()


def test_a_signal_ends_it_and_the_same_command_goes_on(small, tmp_path, monkeypatch, capsys):
    real = across._scores

    def interrupted(runs, *arguments):
        if runs[0].name == "vae-seed0":
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        return real(runs, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(across, "_scores", interrupted)
        assert study.study(small, tmp_path / "a") == 128 + signal.SIGTERM
    assert "give the same command again" in capsys.readouterr().err
    assert _kept(tmp_path / "a").keys() == {"beta-vae-beta4"}
    assert study.study(small, tmp_path / "a") == 0
    assert _kept(tmp_path / "a").keys() == {"beta-vae-beta4", "vae"}


def test_who_reads_the_generators_codes_finds_what_was_fixed():
    """Codes that the generator's own encoder reads back are found without a fault."""

    class Exact(torch.nn.Module):
        latent_dim = 4

        def __init__(self, order, seen):
            super().__init__()
            self.order, self.seen = order, seen
            self.unit = torch.nn.Parameter(torch.ones(()))

        def decode(self, z):
            self.seen.append(z)
            return z[:, :, None, None]

        def pixels(self, decoded):
            return decoded

        def encode(self, x):
            return x[:, self.order, 0, 0], x[:, :, 0, 0]

    seen = []
    models = [Exact([0, 1, 2, 3], seen), Exact([2, 0, 3, 1], seen)]
    codes = [Codes.of(torch.randn(9, 4), np.array([1, 1, 1, 0.0])),
             Codes.of(torch.randn(9, 4), np.array([1, 1, 0.0, 1])[[0, 1, 2, 3]])]  # fmt: skip
    found = across._agreements(models, codes, chunk=64)
    # Model 1 sees dimensions 2, 0, 1 of model 0's informative 0, 1, 2; model 0 those of 0, 1 of 3.
    assert found[1, 0] == 1
    assert found[0, 1] < 1
    z = seen[0] if len(seen) == 1 else torch.cat(seen[: len(seen) // 2])
    z = z.view(CENTRALITY.votes, CENTRALITY.samples, 4)
    fixed = np.resize([0, 1, 2], CENTRALITY.votes)
    assert ((z.std(1) == 0).numpy().argmax(1) == fixed).all()
    assert ((z.std(1) == 0).sum(1) == 1).all()
    assert z.flatten(0, 1)[:, 3].std().item() == pytest.approx(1, abs=0.06)


def test_a_gan_fixes_a_continuous_code_and_draws_the_rest_anew():
    """Each vote: one continuous code is the same in all of its images, all else differs."""
    torch.manual_seed(0)
    gan = InfoGAN(1, 3, 2, (4,), conv_channels=(2, 2, 2, 2), hidden_units=4)
    given, real = [], gan.images
    gan.images = lambda codes: given.append(codes) or real(codes)
    fixed = np.array([2, 0, 1])
    images = torch.cat(list(across._generated(gan, fixed, chunk=5)))
    assert images.shape == (3 * CENTRALITY.samples, 1, 64, 64)
    assert 0 <= images.min() and images.max() <= 1
    z = torch.cat([codes.continuous for codes in given]).view(3, CENTRALITY.samples, 3)
    assert ((z.std(1) == 0).numpy() == (fixed[:, None] == np.arange(3))).all()
    for part in ("noise", "categories"):
        drawn = torch.cat([getattr(codes, part) for codes in given])
        assert len(drawn) == len(images) and len(drawn.unique(dim=0)) > 1


def test_eval_refuses_them_in_one_line_and_a_study_what_there_is_not(tmp_path):
    for name in ACROSS:
        with pytest.raises(UserError, match=f"--metrics {name}: .* use `fvae study") as error:
            evaluate.chosen(["mig", name], "kim2018")
        assert "\n" not in str(error.value)
    words = options(StudyConfig(**_COMMON))
    for given, said in [(["udr", "nonsense"], "got 'nonsense'"), ([], "--metrics")]:
        message = refused("study", *words, "--out", tmp_path / "a", "--metrics", *given)
        assert said in message and "\n" not in message.strip()
    assert not (tmp_path / "a").exists()


def test_what_a_study_asks_of_each_run_and_of_all():
    settings = {"metrics": ["mig", "udr"], "protocol": "kim2018"}
    assert asked_of(settings, ["a"]) == ("kim2018", ["mig"]) and across_of(settings) == ["udr"]
    settings["metrics"] = ["udr"]
    assert asked_of(settings, ["a"]) is None
    settings["metrics"] = ["all"]
    assert across_of(settings) == list(ACROSS)
    settings["metrics"] = None
    assert across_of(settings) == [] and asked_of(settings, []) is None
    assert asked_of(settings, ["a"]) == ("kim2018", None)


# --- the page -------------------------------------------------------------------------------------


def test_with_labels_the_page_compares_every_score(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "write_report", lambda run, _: (run / "report.html").touch())
    config = StudyConfig(
        **(_COMMON | {"data": str(write_npz(tmp_path / "d.npz"))}), betas=(2.0, 4.0), seeds=2,
        gammas=(5.0,), objectives=("factor-vae", "beta-vae"), metrics=("mig", "sap", "udr"),
    )  # fmt: skip
    assert command("study", *options(config), "--out", tmp_path / "s")[0] == 0
    page = (tmp_path / "s" / "study.html").read_text()
    assert "The FactorVAE score was not asked for" in page
    rows = list(_results(tmp_path / "s").values())
    assert len(rows) == 6 and all(row["mig"] and row["udr"] for row in rows)
    section = page[page.index("<h2>Scores against each other") :]
    table = section[: section.index("</table>")]
    names = re.findall(r'<th scope="col">(.*?)</th>', table)
    assert names == ["", "mig", "sap", "udr", "recon", "kl"]  # of TC there are two values
    cells = re.findall(r"<td[^>]*>(.*?)</td>", table)
    for i, a in enumerate(names[1:]):
        for j, b in enumerate(names[1:]):
            x, y = ([float(row[n]) for row in rows] for n in (a, b))
            shown = html.unescape(cells[5 * i + j]).replace("−", "-")
            if len(set(x)) == 1 or len(set(y)) == 1:
                assert shown == "–"
            else:
                assert float(shown) == pytest.approx(spearmanr(x, y).statistic, abs=0.0051)
    runs = page[page.index("<h2>Runs</h2>") :]
    for name in ("recon", "kl", "tc", "mig", "sap", "udr"):
        assert f'<th scope="col">{name}</th>' in runs
    assert f"{float(rows[0]['mig']):.3f}" in runs


def _row(**values):
    return {name: values.get(name, "") for name in ("mig", "udr", "recon", "kl", "tc")}


def test_a_correlation_is_of_the_runs_that_have_both():
    rows = [_row(mig=m, recon=r) for m, r in [(0.1, 9), (0.2, 7), (0.3, 8), (0.4, "")]]
    assert tables.correlation(rows, "mig", "recon") == (pytest.approx(-0.5), 3)
    assert tables.correlation(rows, "mig", "mig") == (pytest.approx(1), 4)
    assert tables.correlation(rows[2:], "mig", "recon") == (None, 1)
    assert tables.correlation([_row(mig=1, recon=r) for r in range(5)], "mig", "recon") == (None, 5)
    assert tables.correlation([], "mig", "recon") == (None, 0)
    table = tables.correlation_table(rows, ["mig"])
    assert ">&minus;0.50<small> (3)</small><" in table and "over 4 finished runs" in table
    assert tables.correlation_table(rows[:2], ["mig"]) == ""


def test_the_best_setting_is_that_of_the_greatest_mean():
    means = {"a": (0.2, 0.1), "b": (0.5, 0.2), "c": (0.3, 0.3)}
    groups = {s: [_row(udr=u, mig=m)] for s, (u, m) in means.items()}
    table = tables.best_table(groups, ["mig", "udr"])
    assert "<td>udr</td><td>b</td><td>0.500</td><td>0.50 (3)</td>" in table
    assert tables.best_table(groups, ["mig"]) == ""


def test_a_runs_scores_are_a_row_a_metric_and_a_column_a_file():
    state = SimpleNamespace(step=9, fingerprint="new")
    one = {"protocol": "kim2018", "step": 9, "checkpoint": "new",
           "mig": {"score": 0.25, "ceiling": 0.9, "note": "<rare>"}}  # fmt: skip
    other = {"protocol": "exhaustive", "step": 5, "checkpoint": "old", "factor_vae": {"score": 1.0}}
    table = report_run._score_table([one, other], state)
    rows = re.findall(r"<tr>(.*?)</tr>", table)
    assert len(rows) == 3
    assert rows[0].endswith("exhaustive<br><b>of step 5</b>; the run is at step 9</th>")
    assert rows[1] == '<th scope="row">factor_vae</th><td>&ndash;</td><td>1.000</td>'
    assert "<td>0.250&nbsp;/&nbsp;0.900<br><small>&lt;rare&gt;</small></td>" in rows[2]


def test_the_grid_may_have_ten_objectives_of_different_looks():
    from fvae.study import figures

    groups = {str(i): [{"objective": str(i)}] for i in range(10)}
    styles = figures.styles(groups).values()
    assert len(set(styles)) == len({c for c, _ in styles}) == len({m for _, m in styles}) == 10


def test_finished_settings_alone_are_scored(small, tmp_path):
    assert study.study(dataclasses.replace(small, betas=(1e300,)), tmp_path / "a") == 1
    assert _kept(tmp_path / "a").keys() == {"vae"}
    more = dataclasses.replace(small, steps=99)
    assert across._settings(tmp_path / "a", expand(more)) == {}
