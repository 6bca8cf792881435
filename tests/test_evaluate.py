"""Encoding for the scores: in chunks that suit the device, which is not waited for in between."""

import dataclasses
import json

import pytest
import torch
from rich.console import Console
from shared import HostTraffic
from small import SMALL

from fvae import evaluate
from fvae.data import Store
from fvae.errors import UserError
from fvae.models import ends, half, infogan
from fvae.models import vae as nets
from fvae.registry import METRICS, Metric
from fvae.report.scores import read_scores
from fvae.report.terminal import score_table
from fvae.training import loop


class _Recorder(HostTraffic):
    """Batch sizes of first convolutions, beside what the host reads."""

    def note(self, name, args, kwargs):
        super().note(name, args, kwargs)
        if name in ("conv2d", "convolution") and args[0].shape[1] == 1:
            self.found.append(args[0].shape[0])


def _encode(monkeypatch, images):
    """Results, what happened to the device, and what was said of the progress."""
    vae = nets.build(SMALL, 1)[0]
    data = torch.arange(50 * 512).remainder(251).byte().view(50, 512)
    store = Store("bits", data, (1, 64, 64), True)
    moved, to, cpu, done = [], Store.to, torch.Tensor.cpu, []
    recorder = _Recorder()

    def noted(tensor):
        recorder.found.append("to the host")
        return cpu(tensor)

    monkeypatch.setattr(Store, "to", lambda self, d: moved.append(str(d)) or to(self, d))
    monkeypatch.setattr(torch.Tensor, "cpu", noted)
    with recorder:
        result = evaluate.encode(vae, store, torch.arange(images) % 50, done.append)
    assert moved == ["cpu"]
    return result, recorder.found, done


def test_codes_leave_the_device_once_at_the_end(monkeypatch):
    monkeypatch.setattr(ends, "first", lambda *_: None)  # which a CPU alone has
    (codes, _), events, done = _encode(monkeypatch, 150)
    assert events == [64, 64, 22, "to the host", "to the host"]
    assert done == [64, 128, 150]
    assert codes.shape == (150, SMALL.latent_dim)
    # A GPU's chunks, here on the CPU.
    monkeypatch.setattr(evaluate, "_CHUNK", {"cpu": evaluate._CHUNK["cuda"]})
    (same, _), events, done = _encode(monkeypatch, 5000)
    assert events == [4096, 904, "to the host", "to the host"]
    assert done == [4096, 5000]
    torch.testing.assert_close(same[:150], codes)


@pytest.mark.parametrize("kind", [nets, infogan])
def test_bf16_codes_are_those_of_fp32_but_for_rounding(kind, store):
    model = nets.build(SMALL, 1)[0] if kind is nets else infogan.build(SMALL, 1)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    rows = torch.arange(len(store))
    mu, logvar = evaluate.posteriors(model, store, rows)
    for got, expected in zip(
        evaluate.posteriors(model, store, rows, precision="bf16"), (mu, logvar), strict=True
    ):
        # Rounding is noise: 0.4 % a number, a tenth of which is left of a sum.
        assert 0 < (got - expected).abs().max() < 0.02 * expected.abs().max()
        assert got.dtype == torch.float32
        assert not torch.equal(got, got.bfloat16().float())  # the last layer's are not rounded
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_a_model_of_others_encodes_as_it_does():
    theirs = torch.nn.Linear(2, 2)
    assert half.encoder_in(theirs, torch.bfloat16) is theirs


@pytest.mark.parametrize(("has", "auto"), [(True, "bf16"), (False, "fp32")])
def test_precision_of_encoding(monkeypatch, has, auto):
    monkeypatch.setattr(evaluate, "has_fast_bf16", lambda device: has)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert evaluate.encoding_precision("auto", cpu) == auto
    assert evaluate.encoding_precision("auto", cuda) == "fp32"
    assert evaluate.encoding_precision("fp32", cpu) == "fp32"
    with pytest.raises(UserError, match="--precision fp16: expected auto, fp32 or bf16"):
        evaluate.encoding_precision("fp16", cpu)


@dataclasses.dataclass(frozen=True)
class _Result:
    score: float


@pytest.fixture
def spread():
    """A metric that needs no factors and looks at the log variances."""

    def score(codes, factors, protocol, seed, kl, logvar):
        rows = slice(0, factors.rows, 2)
        assert codes[rows].isfinite().all()
        return _Result(float(logvar[rows].exp().mean()))

    def rows(factors, protocol, seed):
        yield torch.arange(0, factors.rows, 2)

    extras = {"usual": False, "supervised": False, "posterior": True}
    METRICS.add(Metric("spread", "mean variance of q(z|x)", score, rows, **extras))
    yield
    METRICS.remove("spread")


def _run(folder, factors):
    data = torch.arange(40 * 512).remainder(251).byte().view(40, 512)
    sizes = {"factor_names": ("a", "b"), "factor_sizes": (5, 8)} if factors else {}
    store = Store("bits", data, (1, 64, 64), True, **sizes)
    config = loop.settle(dataclasses.replace(SMALL, steps=2))
    run = folder / "run"
    loop.create_run(config, run)
    loop.train(config, store, run)
    return run, store


def test_metrics_are_chosen_by_name_and_kept_beside_each_other(tmp_path, spread):
    run, store = _run(tmp_path, factors=True)
    usual = evaluate.evaluate(run, store)
    assert "spread" not in usual and set(usual) >= {n for n, m in METRICS.items() if m.usual}
    mig = evaluate.evaluate(run, store, names=["mig"])
    assert mig["mig"] == usual["mig"] and mig["factor_vae"] == usual["factor_vae"]
    both = evaluate.evaluate(run, store, names=["spread"])
    assert both["spread"]["score"] > 0 and both["images_encoded"] == 20
    assert json.loads((run / "eval-kim2018.json").read_text()) == both
    # Of another seed they are others, and of another precision.
    assert "mig" not in evaluate.evaluate(run, store, seed=1, names=["spread"])
    (run / "eval-kim2018.json").write_text(json.dumps(both))
    other = "fp32" if both["precision"] == "bf16" else "bf16"
    found = evaluate.evaluate(run, store, names=["spread"], precision=other)
    assert "mig" not in found and found["precision"] == other
    # What says none is of a version that had but one.
    assert found.pop("precision") and both.pop("precision")
    (run / "eval-kim2018.json").write_text(json.dumps(both))
    found = evaluate.evaluate(run, store, names=["spread"], precision="fp32")
    assert found["mig"] == both["mig"]
    assert set(evaluate.chosen(["all"], "kim2018", store)) == set(METRICS)


def test_metrics_that_need_no_factors(tmp_path, spread):
    run, store = _run(tmp_path, factors=False)
    assert evaluate.evaluate(run, store, names=["spread"])["spread"]["score"] > 0
    free = {n for n, m in METRICS.items() if not m.supervised}
    assert set(evaluate.chosen(["all"], "kim2018", store)) == free
    for names in (None, ["spread", "mig"]):
        with pytest.raises(UserError, match="no ground-truth factors.*--metrics takes.*spread"):
            evaluate.evaluate(run, store, names=names)


@pytest.mark.parametrize(
    ("names", "protocol", "message"),
    [
        (["nonsense"], "kim2018", "--metrics: got 'nonsense', expected one of factor_vae"),
        (["mig"], "exhaustive", "--metrics mig: draws random numbers; use kim2018 or"),
        ([], "kim2018", "--metrics: got none"),
        (None, "nonsense", "--protocol: got 'nonsense'"),
    ],
)
def test_metrics_that_there_are_not(names, protocol, message):
    with pytest.raises(UserError, match=message):
        evaluate.chosen(names, protocol)


def test_scores_have_errors_and_exhaustive_beside(tmp_path, spread):
    run, store = _run(tmp_path, factors=True)
    result = evaluate.evaluate(run, store, names=["factor_vae", "mig", "sap", "spread"])
    path, errors = run / "eval-kim2018.json", result["errors"]
    assert list(errors) == ["factor_vae", "mig", "sap", "spread"]
    assert errors["sap"] is errors["spread"] is None and errors["mig"] > 0
    # Nearly all images were encoded, so the score that draws nothing is the very one.
    exact = evaluate.evaluate(run, store, "exhaustive")
    assert result["factor_vae"]["exhaustive"] == exact["factor_vae"]["score"]
    assert exact["errors"] == {"factor_vae": 0.0} and "exhaustive" not in exact["factor_vae"]
    # What stays of the file keeps its error; the file of an older version has none.
    other = evaluate.evaluate(run, store, names=["modularity"])["errors"]
    assert other | errors == other and other["modularity"] is not None
    old = json.loads(path.read_text())
    del old["errors"], old["factor_vae"]["exhaustive"], old["factor_vae"]["eval_votes"]
    path.write_text(json.dumps(old))
    assert read_scores(run)[-1]["mig"] == result["mig"]
    shown = _table(old)
    assert "error" in shown and "+-" not in shown and "exhaustive" not in shown
    assert list(evaluate.evaluate(run, store, names=["mig"])["errors"]) == ["mig"]


def _table(result):
    console = Console(width=200)
    with console.capture() as captured:
        console.print(score_table(result))
    return captured.get()


def test_a_table_says_what_is_an_error_what_is_exact_and_what_has_none():
    scores = {"factor_vae": {"score": 0.7123, "exhaustive": 0.7}, "mig": {"score": 0.2},
              "sap": {"score": 0.1}}  # fmt: skip
    result = {"protocol": "kim2018", "seed": 0, **scores}
    result["errors"] = {"factor_vae": 0.0084, "mig": 0.0, "sap": None}
    cells = [[c.strip() for c in line.split("│")[1:4]] for line in _table(result).splitlines()]
    cells = [row for row in cells if row]
    assert cells == [["factor_vae", "0.712", "+- 0.008"], ["exhaustive", "0.700", "exact"],
                     ["mig", "0.200", "exact"], ["sap", "0.100", "-"]]  # fmt: skip
    scores["factor_vae"]["exhaustive"] = None
    assert "fvae eval RUN --protocol exhaustive" in _table(result)


def test_exhaustive_beside_is_that_of_its_file_where_it_would_take_long(tmp_path, monkeypatch):
    run, store = _run(tmp_path, factors=True)
    rows = {"factor_vae": torch.arange(0, 40, 2), "exhaustive": torch.arange(40)}
    sizes = []
    real = evaluate.posteriors
    monkeypatch.setattr(
        evaluate,
        "posteriors",
        lambda m, s, i, *a, **k: sizes.append(len(i)) or real(m, s, i, *a, **k),
    )
    metric = dataclasses.replace(
        METRICS["factor_vae"],
        score=lambda codes, factors, protocol, seed, kl: _Votes(
            0.5 + codes.isfinite().all().item()
        ),
        rows=lambda factors, protocol, seed: [rows.get(protocol, rows["factor_vae"])],
        error=None,
    )
    monkeypatch.setitem(METRICS._entries, "factor_vae", metric)

    def beside():
        return evaluate.evaluate(run, store, names=["factor_vae"])["factor_vae"]["exhaustive"]

    assert beside() is None and sizes == [20]
    assert evaluate.evaluate(run, store, "exhaustive", seed=5)["factor_vae"]["score"] == 1.5
    assert beside() == 1.5 and sizes == [20, 40, 20]
    (run / "eval-exhaustive.json").unlink()
    rows["factor_vae"] = torch.arange(38)
    assert beside() == 1.5 and sizes == [20, 40, 20, 38, 2]


@dataclasses.dataclass(frozen=True)
class _Votes(_Result):
    note: str = ""
