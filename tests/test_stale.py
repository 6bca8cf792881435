"""A score says of what: step and checkpoint; pages show those of the state at hand."""

import dataclasses
import json

import pytest
from small import SMALL, run, write_npz

from fvae import data, evaluate, report
from fvae.report.scores import read_scores
from fvae.training import checkpoint, loop


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """A small dSprites, with a cache of its own."""
    folder = tmp_path_factory.mktemp("few")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FVAE_CACHE", str(folder / "cache"))
        return data.load(write_npz(folder / "dsprites.npz", (2, 2, 3, 4, 4)))


@pytest.fixture(scope="module")
def scored(tmp_path_factory, few):
    folder = tmp_path_factory.mktemp("stale") / "a"
    run(SMALL, few, folder)
    evaluate.evaluate(folder, few, "kim2018")
    return folder


def test_scores_name_the_state_that_they_are_of(scored, few):
    state = checkpoint.state_of(scored)
    (scores,) = read_scores(scored)
    assert (scores["step"], scores["checkpoint"]) == (12, state.fingerprint)
    assert report.scores_of(scored, "kim2018") == scores
    assert report.scores_of(scored, "locatello2019") is None
    page = report.write_report(scored, few).read_text()
    assert "of step 12" not in page and "Votes of the FactorVAE metric" in page


def test_more_steps_make_scores_old(scored, few, tmp_path):
    loop.train(loop.settle(dataclasses.replace(SMALL, steps=14)), few, scored)
    assert report.scores_of(scored, "kim2018") is None
    page = report.write_report(scored, few).read_text()
    assert "<b>of step 12</b>; the run is at step 14" in page
    assert "Votes of the FactorVAE metric" not in page
    evaluate.evaluate(scored, few, "kim2018")
    page = report.write_report(scored, few).read_text()
    assert "of step 12" not in page and "Votes of the FactorVAE metric" in page


TORN = ["", "{", "5", "[]", "null", "[" * 5000, '{"protocol": "kim2018"}',
        '{"protocol": 5, "factor_vae": {"score": 1, "votes": [], "factor_names": []}}',
        '{"protocol": "x", "factor_vae": {"score": "1", "votes": [], "factor_names": []}}',
        '{"protocol": "x", "factor_vae": {"score": 1, "votes": [[1]], "factor_names": []}}',
        '{"protocol": "x", "factor_vae": {"score": 1, "votes": [], "factor_names": []}, "mig": 3}',
        "\udcff"]  # fmt: skip


@pytest.mark.parametrize("content", TORN, ids=range(len(TORN)))
def test_scores_that_are_torn_or_foreign_are_left_out(content, tmp_path, capsys):
    path = tmp_path / "eval-kim2018.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    assert read_scores(tmp_path) == []
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(path) in said and "fvae eval" in said


def test_old_scores_without_a_state_are_shown(tmp_path):
    votes = {"score": 0.5, "votes": [[1]], "factor_names": ["a"]}
    content = {"protocol": "kim2018", "factor_vae": votes}
    (tmp_path / "eval-kim2018.json").write_text(json.dumps(content))
    (scores,) = read_scores(tmp_path)
    assert scores["step"] is None and scores["checkpoint"] is None
