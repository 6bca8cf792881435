"""What the GPU programs promise wherever they run: they are fair, and a failure loses nothing."""

import contextlib
import json
import subprocess
import sys
import time

import pytest
import torch

from bench import figures, first_light, gpu, op_times, record, step_rates
from bench.arithmetic import TF32, arithmetic, current, precisions
from bench.baseline import (
    ADAM,
    Textbook,
    permute_dims,
    permute_dims_by_sorting,
    permute_dims_on_device,
)
from bench.device_timing import interleaved, median, ratio, spread
from bench.record import Part, Record, chosen, file_of
from bench.registry import Case
from bench.setup import Setup
from bench.step_rates import Variant, differences, measure
from fvae import ops
from fvae.study.made import commit


def boom():
    raise RuntimeError("boom")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def parts(monkeypatch):
    """Replace bench.gpu's parts."""

    def replace(*parts):
        monkeypatch.setattr(gpu, "parts_of", lambda device, kept: list(parts))
        monkeypatch.setattr(gpu, "show", lambda kept: None)

    return replace


def run(program, *argv):
    """Run a program's main on the CPU; return its exit status."""
    with pytest.raises(SystemExit) as stopped:
        program.record.program(
            "bench.gpu", "", program.parts_of, program.show, None, ["--device", "cpu", *argv]
        )
    return stopped.value.code


# --- parts ------------------------------------------------------------------------------------


def test_a_part_that_raises_loses_nothing(parts, tmp_path):
    path = tmp_path / "new" / "a.json"
    seen = []

    def look():
        seen.append(json.loads(path.read_text()))
        return 3

    def stop():
        raise SystemExit("not timed")

    parts(
        Part("first", 0, lambda: 1), Part("second", 0, boom), Part("third", 0, stop),
        Part("last", 0, look),
    )  # fmt: skip
    assert run(gpu, "--out", str(path)) == 1
    kept = json.loads(path.read_text())
    assert kept["numbers"] == {"first": 1, "last": 3}
    failures = {"second": "RuntimeError: boom", "third": "SystemExit: not timed"}
    assert kept["failures"] == failures
    assert seen[0]["numbers"] == {"first": 1}  # written after every part
    assert seen[0]["failures"] == failures
    assert set(kept["parts"]) == {"first", "second", "third", "last"}
    assert figures.read(path)["device"]["kind"] == "cpu"
    assert {"torch", "triton", "cuda", "driver", "python"} < kept["versions"].keys()
    rows = kept["state"]
    assert rows["backends"] == {op: ops.backend_of(op, "cpu") for op in ops.OPS}
    assert rows["extension_error"] == ops.EXTENSION_ERROR


def test_what_is_no_record_is_neither_resumed_nor_overwritten(parts, tmp_path, capsys):
    parts(Part("first", 0, boom))
    path = tmp_path / "a.json"
    path.write_text('{"results": {}}')
    for more in ([], ["--resume"]):
        assert run(gpu, "--out", str(path), *more) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"bench.gpu: {path}: not a record")
    assert path.read_text() == '{"results": {}}'
    assert run(gpu, "--out", str(tmp_path / "b.json"), "--resume") == 2


def test_nothing_failed_is_status_0(parts, tmp_path):
    parts(Part("first", 0, lambda: 1))
    assert run(gpu, "--out", str(tmp_path)) == 0
    assert json.loads(file_of(tmp_path, "cpu").read_text())["failures"] == {}


def test_a_part_that_no_longer_fits_is_skipped_and_a_shorter_one_is_not(parts, tmp_path):
    parts(Part("long", 1000, boom), Part("short", 1, lambda: 1))
    assert run(gpu, "--out", str(tmp_path / "a.json"), "--seconds", "100") == 0
    kept = json.loads((tmp_path / "a.json").read_text())
    assert kept["skipped"] == {"long": "skipped: no time left"}
    assert kept["numbers"] == {"short": 1}


def test_only_picks_parts_by_name_or_by_what_stands_before_the_slash(capsys):
    parts = [Part(name, 0, boom) for name in ("copy", "ops/a", "ops/b", "votes")]
    assert [p.name for p in chosen(parts, ["ops", "votes"])] == ["ops/a", "ops/b", "votes"]
    assert [p.name for p in chosen(parts, ["ops/b"])] == ["ops/b"]
    assert chosen(parts, []) == parts
    with pytest.raises(SystemExit, match="nothing: no such part; expected some of copy, ops"):
        chosen(parts, ["nothing"])


def test_another_process_goes_on_where_the_device_is_lost(parts, tmp_path, monkeypatch):
    parts(Part("first", 0, boom), Part("second", 0, lambda: 1), Part("third", 0, lambda: 1))
    monkeypatch.setattr(record, "_answers", lambda device: False)
    commands = []

    def start(command, **options):
        commands.append(command)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(record.subprocess, "run", start)
    path = tmp_path / "a.json"
    assert run(gpu, "--out", str(path)) == 1
    command = next(c for c in commands if c[0] == sys.executable)
    assert command[1:6] == ["-m", "bench.gpu", "--only", "second", "third"]
    assert "--resume" in command
    kept = Record(path, "cpu", resume=True)
    assert kept.failures == {"first": "RuntimeError: boom"}
    # Its part answered, but what it had launched broke the device.
    assert kept.run([Part("quiet", 0, lambda: 1)], time.monotonic() + 9) == []
    assert "lost" in kept.failures["quiet"]


def test_without_a_gpu_the_programs_say_so(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    for program in (gpu, first_light):
        with pytest.raises(SystemExit) as stopped:
            program.main([])
        assert stopped.value.code == 2
        assert "no CUDA device" in capsys.readouterr().err


def test_the_commit_is_unknown_outside_a_clone_and_without_git(tmp_path, monkeypatch):
    assert commit(tmp_path) == "unknown"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit() == "unknown"
    assert record._smi("driver_version") == {}


def test_out_is_a_file_or_a_folder(tmp_path):
    assert file_of(tmp_path / "a.json", "cpu") == tmp_path / "a.json"
    inside = file_of(tmp_path, "cpu")
    assert inside.parent == tmp_path
    assert inside.suffix == ".json"
    assert inside.name == inside.name.lower()


# --- ops --------------------------------------------------------------------------------------


def test_integers_and_moved_values_match_exactly_and_rounded_ones_by_dtype():
    big = torch.tensor([700_000])
    one, near = torch.ones(3), torch.ones(3) + 1e-5
    assert op_times.mismatch("x", big, big) is None
    assert "1 of 1 elements" in op_times.mismatch("x", big, big + 1)
    assert op_times.mismatch("x", one, near) is None
    assert "differs" in op_times.mismatch("permute_dims", one, near)
    assert "off by" in op_times.mismatch("x", one, one + 1e-3)
    assert op_times.mismatch("x", one.bfloat16(), (one + 1e-2).bfloat16()) is None
    assert "expected [3]" in op_times.mismatch("x", torch.ones(2), one)
    assert "off by" in op_times.mismatch("x", one * torch.nan, one)
    assert op_times.mismatch("x", (one, big), (one, big)) is None


def test_few_votes_may_fall_otherwise_and_none_may_be_missing():
    votes = torch.tensor([[500, 0], [0, 500]])
    moved = torch.tensor([[499, 0], [1, 500]])
    assert op_times.mismatch("metric_votes", moved, votes) is None
    assert "votes" in op_times.mismatch("metric_votes", moved - torch.eye(2).long(), votes)
    many = torch.tensor([[400, 0], [100, 500]])
    assert "100 of 1000 votes" in op_times.mismatch("metric_votes", many, votes)


def test_the_reference_is_not_timed_against_itself(monkeypatch):
    monkeypatch.setattr(ops, "backend_of", lambda op, device: "reference")
    monkeypatch.setattr(ops, "EXTENSION_ERROR", "no such file")
    row = op_times.measure(Case("metric_votes", "V=1", lambda backend: boom(), 1), "cpu")
    assert row["refused"].startswith("refused: the reference would be timed against itself")
    assert "no such file" in row["refused"]
    assert row["backend"] == "reference"
    assert "eager" not in row
    assert first_light.metric_checks(Setup("cpu")) == {"refused": row["refused"]}
    assert op_times.votes(Setup("cpu")) == [{"refused": row["refused"]}]
    assert "refused" in op_times.table([row], None)


def test_an_op_that_does_not_match_is_not_timed(monkeypatch):
    monkeypatch.setattr(ops, "backend_of", lambda op, device: "fast")
    cases = [
        Case("logit_ratio", "wrong", lambda backend: torch.ones(2) * (backend is None), 8),
        Case("logit_ratio", "raises", lambda backend: boom(), 8),
        Case("logit_ratio", "right", lambda backend: torch.ones(2), 8),
        Case("permute_dims", "other", lambda backend: boom(), 8),
    ]
    monkeypatch.setattr(op_times, "_cases", lambda device: cases)
    kept = Record(None, "cpu")
    rows = op_times.rows("logit_ratio", Setup("cpu"), kept)
    assert [row["shape"] for row in rows] == ["right"]
    assert rows[0]["dtype"] == "float32"
    assert rows[0]["eager"].keys() == {"p20", "p50", "p80"}
    assert set(kept.failures) == {"ops/logit_ratio wrong", "ops/logit_ratio raises"}
    assert "not timed" in kept.failures["ops/logit_ratio wrong"]
    assert "right" in op_times.table(rows, 1e9)


# --- arithmetic and steps -----------------------------------------------------------------------


def test_arithmetic_is_set_recorded_and_put_back():
    before = current()
    expected = {
        "fp32": {"matmul": "ieee", "convolution": "ieee"},
        "tf32": {"matmul": "tf32", "convolution": "tf32"},
        "default": {"matmul": "ieee", "convolution": "tf32"},
    }
    for name, state in expected.items():
        with contextlib.suppress(KeyError), arithmetic(name):
            assert current() == state
            # What torch.compile reads raises where the older and the newer state disagree.
            assert torch.backends.cuda.matmul.allow_tf32 == TF32[name][0]
            assert torch.get_float32_matmul_precision()
            raise KeyError
        assert current() == before
    assert set(precisions("cuda")) <= set(TF32)
    assert "fp32" in precisions("cpu")


@pytest.mark.parametrize("permute", [permute_dims, permute_dims_on_device, permute_dims_by_sorting])
def test_a_textbook_permutation_moves_the_values_of_each_column(permute):
    z = torch.arange(300.0).view(100, 3)
    moved = permute(z)
    assert torch.equal(moved.sort(0).values, z)
    order = moved.argsort(0)
    assert not torch.equal(order[:, 0], order[:, 1])


def _losses(**options):
    torch.manual_seed(3)
    book = Textbook(units=8, noise=torch.zeros_like, permute=lambda z: z.roll(1, 0), **options)
    x = torch.rand(4, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    for _ in range(2):
        losses = book.step(*x.chunk(2))
    return {name: loss.detach() for name, loss in losses.items()}


@pytest.mark.parametrize(
    "options", [{"adam": name, "retain_graph": False} for name in ADAM] + [{"bf16": True}]
)
def test_every_form_of_the_textbook_computes_the_same_losses(options):
    precision = "bf16" if "bf16" in options else "fp32"
    assert differences(_losses(**options), _losses(), precision) == []


def test_a_compiled_textbook_is_compiled_in_its_mode_and_checked(monkeypatch):
    modes = []

    def fake(function, mode):
        modes.append(mode)
        return function

    monkeypatch.setattr(torch, "compile", fake)
    setup = Setup("cpu")
    step = step_rates.textbook(setup, step_rates.batches_of(setup, True), "fp32", "reduce-overhead")
    step()
    assert modes == ["reduce-overhead"] * 2
    monkeypatch.setattr(Textbook, "step", lambda self, *x: {"kl": torch.rand(()) * 100})
    with pytest.raises(ValueError, match="not timed, compiling changed the losses"):
        step_rates.textbook(setup, step_rates.batches_of(setup, True), "fp32", "default")


def test_ours_walks_beside_the_textbook_before_it_is_timed(monkeypatch):
    monkeypatch.setattr(step_rates, "_CHECKED_STEPS", 2)
    step_rates.ours(Setup("cpu"), "fp32", graph=False)()
    real = Textbook.losses
    monkeypatch.setattr(
        Textbook, "losses", lambda self, *x: real(self, *x) | {"kl": torch.tensor(1.0)}
    )
    with pytest.raises(ValueError, match="not the textbook's losses at step 0: .*kl"):
        step_rates.ours(Setup("cpu"), "fp32", graph=False)


def test_every_textbook_stands_beside_ours_in_every_arithmetic(monkeypatch):
    built = []
    monkeypatch.setattr(step_rates, "precisions", lambda device: ["fp32", "bf16"])
    monkeypatch.setattr(step_rates, "measure", lambda setup, variants, attempt: variants)
    monkeypatch.setattr(step_rates, "batches_of", lambda setup, on_device: None)
    built = {v.name for v in step_rates.eager_and_graph(Setup("cuda"), Record(None, "cpu"))}
    assert {"ours graph fp32", "ours eager bf16"} < built
    for precision in ("fp32", "tf32", "bf16"):
        for kind in step_rates.TEXTBOOKS:
            assert f"{kind} {precision}" in built
    assert "textbook as written default" in built
    modes = {v.kind for v in step_rates.compiled(Setup("cuda"), "bf16", Record(None, "cpu"))}
    assert {"textbook compiled default", "textbook compiled reduce-overhead"} < modes


def test_a_variant_that_fails_leaves_the_others_their_rates():
    calls = []

    def late():
        calls.append(1)
        if len(calls) > 2:
            boom()

    kept = Record(None, "cpu")
    variants = [
        Variant("ours graph", "fp32", lambda: lambda: None, {"adam": "fused"}),
        Variant("cannot be built", "fp32", boom),
        Variant("fails in a round", "fp32", lambda: late),
    ]
    rows = measure(Setup("cpu"), variants, kept.attempt)
    assert [row["kind"] for row in rows] == ["ours graph"]
    assert rows[0]["arithmetic"] == {"matmul": "ieee", "convolution": "ieee", "autocast": None}
    assert rows[0]["adam"] == "fused"
    assert set(kept.failures) == {"cannot be built fp32", "fails in a round fp32"}
    assert "1.00" in step_rates.table(rows)


def test_rounds_take_turns():
    order = []
    steps = {name: lambda name=name: order.append(name) for name in "ab"}
    nothing = lambda name: contextlib.nullcontext()  # noqa: E731
    rates = interleaved(steps, "cpu", rounds=3, round_seconds=0.0, attempt=nothing, warm_up=1)
    assert "".join(order) == "aabb" + "ab" * 3
    assert list(rates) == ["a", "b"]


def test_percentiles_and_ratios():
    assert spread([3.0]) == {"p20": 3.0, "p50": 3.0, "p80": 3.0}
    assert spread([5.0, 1.0, 2.0, 4.0, 3.0, 6.0]) == {"p20": 2.0, "p50": 3.0, "p80": 5.0}
    assert median("no graph: it waits") is None
    assert ratio(None, 1.0) is None
    assert ratio(1.0, 3.0) == 0.333


# --- whole programs at tiny sizes -----------------------------------------------------------------


def test_the_gpu_benchmark_runs_at_tiny_sizes(tmp_path, monkeypatch, capsys):
    codes = torch.randn(60, 3)
    case = Case(
        "grouped_variance", "N=60",
        lambda backend: ops.grouped_variance(codes, (3, 4, 5), backend=backend), 720,
    )  # fmt: skip
    monkeypatch.setattr(op_times, "_cases", lambda device: [case])
    monkeypatch.setattr(ops, "backend_of", lambda op, device: "fast")
    only = ["--only", "copy", "ops", "votes", "eval", "--out", str(tmp_path)]
    assert run(gpu, *only) == 0, capsys.readouterr()
    kept = json.loads(file_of(tmp_path, "cpu").read_text())
    (row,) = kept["numbers"]["ops/grouped_variance"]
    assert (row["shape"], row["bytes"], row["backend"]) == ("N=60", 720, "fast")
    assert kept["numbers"]["eval"]["images"] == 500
    printed = capsys.readouterr().out
    assert "grouped_variance" in printed
    assert "exhaustive" in printed


def test_first_light_runs_at_tiny_sizes(tmp_path, capsys):
    path = tmp_path / "a.json"
    assert run(first_light, "same", "profile", "loop", "--out", str(path)) == 0
    results = json.loads(path.read_text())["numbers"]
    assert {row["tensors"] for row in results["same"]} == {0}
    assert results["profile"]["fp32"]["kernels"] > 0
    assert results["loop"].keys() >= {"bare step", "no checkpoints", "infogan"}
    assert "summary" in capsys.readouterr().out


def test_first_light_fails_where_an_op_is_not_its_reference(tmp_path, monkeypatch):
    monkeypatch.setattr(first_light, "_DTYPES", (torch.float32,))
    monkeypatch.setattr(ops, "backend_of", lambda op, device: "fast")
    assert first_light.metric_checks(Setup("cpu"))["checks"] == 4 * 2 * 2 * 5
    monkeypatch.setattr(
        ops, "pair_features", lambda *_, backend, **__: torch.ones(1) * (not backend)
    )
    path = tmp_path / "a.json"
    assert run(first_light, "metrics", "--out", str(path)) == 1
    assert "pair_features" in json.loads(path.read_text())["failures"]["metrics"]


def test_first_light_fails_where_deterministic_runs_differ(monkeypatch):
    states = iter(torch.arange(100.0))
    monkeypatch.setattr(first_light, "_state_after", lambda *_: {"w": next(states)})
    kept = Record(None, "cpu")
    rows = first_light.same_bits(Setup("cpu"), kept)
    assert len(rows) == 6
    assert set(kept.failures) == {"same/fp32, deterministic"}
    assert "w by" in first_light.same_table(rows)
