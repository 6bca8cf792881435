"""What bench.gpu finds: bounds, stages, memory, metrics of many models, models in one step."""

import json
from types import SimpleNamespace

import pytest
import torch

from bench import (
    bounds,
    device_timing,
    gpu,
    gpu_parts,
    memory,
    metric_times,
    op_times,
    stages,
    step_rates,
)
from bench.arithmetic import precisions
from bench.device_timing import eager_and_graph, in_turns
from bench.record import Record
from bench.setup import Setup
from bench.step_rates import AUTOTUNED, COMPILE_MODES
from fvae import ops
from fvae.registry import METRICS
from fvae.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def gpu_clock(monkeypatch):
    """Stand in for a GPU's events: a clock that each call moves on; what was done, in order."""
    done, now = [], [0.0]

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = now[0]

        def elapsed_time(self, end):
            return end.at - self.at

    def call(name, milliseconds):
        def run():
            done.append(name)
            now[0] += milliseconds

        return run

    buffer = SimpleNamespace(zero_=call("clear", 5.0))
    monkeypatch.setattr(torch, "empty", lambda *size, **how: buffer)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: call("wait", 7.0)())
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(device_timing, "_MOST_TURNS", 10)
    return call, done


# --- timers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cold", "before"), [(True, "clear"), (False, "wait")])
def test_calls_take_turns_behind_something_long_that_is_not_counted(gpu_clock, cold, before):
    call, done = gpu_clock
    times = in_turns({"a": call("a", 0.002), "b": call("b", 0.5)}, "cuda", cold)
    assert done[:8] == [before, "a", before, "b"] * 2
    assert len(done) == 4 * 12
    assert times["a"]["p50"] == pytest.approx(2.0)
    assert times["b"]["p80"] == pytest.approx(500.0)


def test_the_first_turns_do_not_count(gpu_clock):
    call, done = gpu_clock
    slow, fast = call("x", 9.0), call("x", 1.0)
    times = in_turns({"x": lambda: (slow if done.count("x") < 3 else fast)()}, "cuda")
    assert times["x"]["p80"] == pytest.approx(1000.0)


def test_a_call_that_cannot_be_a_graph_says_why_and_is_timed_as_it_is(gpu_clock, monkeypatch):
    call, _ = gpu_clock

    def graph_of(run):
        if run is waits:
            raise RuntimeError("it waits\nfor the device")
        return SimpleNamespace(replay=call("replay", 0.001))

    waits = call("waits", 0.02)
    monkeypatch.setattr(device_timing, "graph_of", graph_of)
    found = eager_and_graph({"waits": waits, "other": call("other", 0.02)}, "cuda")
    assert found["waits"]["graph"] == "no graph: it waits"
    assert found["waits"]["eager"]["p50"] == pytest.approx(20.0)
    assert found["other"]["graph"]["p50"] == pytest.approx(1.0)
    assert eager_and_graph({"x": lambda: None}, "cpu")["x"]["graph"] is None


# --- bounds -------------------------------------------------------------------------------------


def test_products_are_rated_in_every_precision_by_what_they_multiply(monkeypatch):
    seen = []

    def microseconds(run, device, turns=None):
        seen.append((run().dtype, torch.backends.cuda.matmul.allow_tf32))
        return {"p50": 2.0}

    known = precisions("cuda")
    monkeypatch.setattr(bounds, "precisions", lambda device: known)
    monkeypatch.setattr(bounds, "microseconds", microseconds)
    rates = bounds.matmul_rates("cpu", 10)
    assert rates == pytest.approx(dict.fromkeys(known, 1e9))  # 2000 operations in 2 us
    by_name = dict(zip(known, seen, strict=True))
    assert by_name["fp32"] == (torch.float32, False)
    assert by_name["tf32"] == (torch.float32, True)
    assert by_name["bf16"][0] == torch.bfloat16
    lines = bounds.lines({"copy": 3e12, "matmul": {"bf16": 7.9e14}})
    assert lines == "copy: 3000 GB/s\nmatmul: bf16 790.0 TFLOP/s"
    assert bounds.lines({}) == ""


def test_an_op_stands_beside_the_longer_of_its_bounds():
    row = {"op": "x", "shape": "", "backend": "triton", "bytes": 3000, "flops": 8000}
    assert op_times.bound_us(row, 1e9, 1e10) == pytest.approx(3.0)
    assert op_times.bound_us(row, 1e9, 1e9) == pytest.approx(8.0)
    assert op_times.bound_us(row, 1e9, None) == pytest.approx(3.0)
    assert op_times.bound_us(row, None, 1e9) is None
    times = {"eager": {"p50": 90.0}, "graph": {"p50": 16.0}}
    assert "50%" in op_times.table([row | times | {"reference": times}], 1e9, 1e9)


# --- steps ----------------------------------------------------------------------------------------


def test_a_larger_batch_is_stepped_with_and_counted_in_images(monkeypatch):
    monkeypatch.setattr(step_rates, "_CHECKED_STEPS", 1)
    setup = Setup("cpu", batch_size=3)
    assert setup.store is Setup("cpu").store
    rows = step_rates.larger_batch(setup, Record(None, "cpu"))
    assert {"ours graph", "textbook as written"} < {row["kind"] for row in rows}
    for row in rows:
        assert row["batch_size"] == 3
        assert row["images_per_second"] == pytest.approx(3 * row["steps_per_second"]["p50"])


def test_stages_do_what_a_step_does():
    trainer = Trainer(Setup("cpu").config(precision="fp32"), Setup("cpu").on_device)
    trainer.step()
    weights = [p.detach().clone() for p in trainer.optimizer.params]
    calls = stages.stages_of(trainer)
    count = len(weights)
    first, _ = calls["images"]()
    assert len(first) == 2 * trainer.config.batch_size
    assert not torch.equal(first, calls["images"]()[0])  # each draws images of its own
    # A gradient for every weight, of z from decoder and discriminator, of mu and logvar.
    made = {name: len(calls[name]()) for name in calls if name not in ("images", "adam")}
    assert made["encoder"] + made["decoder, likelihood"] + made["discriminator"] == count + 2
    assert made["codes"] == 2
    for leaf in trainer.optimizer.leaves:
        leaf.grad.fill_(1.0)
    calls["adam"]()
    moved = [bool((p != w).any()) for p, w in zip(trainer.optimizer.params, weights, strict=True)]
    assert all(moved)


def test_stages_stand_beside_the_whole_step():
    kept = Record(None, "cpu")
    found = stages.timed(Setup("cpu"), kept)
    assert kept.failures == {}
    lines = stages.table(found).splitlines()
    assert len(lines) == 1 + 6
    assert "a step" in lines[0]
    assert any("discriminator" in line for line in lines)


def test_models_stacked_are_timed_where_their_losses_are_those_of_each_alone(monkeypatch):
    kept = Record(None, "cpu")
    rows = gpu_parts.stacked(Setup("cpu"), kept)
    assert [(row["models"], row["models_in_a_convolution"]) for row in rows] == [
        (1, 1), (2, 2), (2, 1),
    ]  # fmt: skip
    assert kept.failures == {}
    monkeypatch.setattr(gpu_parts, "differences", lambda *_: ["kl is 1, expected 2"])
    rows = gpu_parts.stacked(Setup("cpu"), kept)
    assert [row["models"] for row in rows] == [1]
    assert all("not timed" in message for message in kept.failures.values())
    assert len(kept.failures) == 2


def test_on_a_gpu_8_and_32_models_of_either_size_are_stacked(monkeypatch):
    built = []
    monkeypatch.setattr(Setup, "on_device", None)
    monkeypatch.setattr(gpu_parts, "_stack", lambda configs, setup, group: built.append(
        (len(configs), group, configs[0].disc_units, configs[0].precision)
    ))  # fmt: skip
    monkeypatch.setattr(gpu_parts, "Trainer", lambda config, store: SimpleNamespace(step=None))
    monkeypatch.setattr(gpu_parts, "interleaved", lambda *_: {})
    for size in ("default", "small"):
        gpu_parts.stacked(Setup("cuda"), Record(None, "cpu"), size)
    assert set(built) == {
        (models, group, units, precision)
        for models in (8, 32)
        for group in (models, 1)
        for units in (1000, 64)
        for precision in ("bf16", "fp32")
    }


def test_memory_of_every_kind_of_step_or_none_on_a_cpu(monkeypatch):
    kept = Record(None, "cpu")
    rows = memory.rows(Setup("cpu"), kept)
    assert kept.failures == {}
    assert {row["bytes"] for row in rows} == {None}
    kinds = {row["kind"] for row in rows}
    assert {"ours graph", "ours eager", "textbook as written", "2 stacked, small"} < kinds
    used = iter([100, 350])
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: next(used))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: next(used))
    assert memory.peak(lambda: lambda: None, "cuda") == 250
    assert "2.5 MB" in memory.table([rows[0] | {"bytes": 2_500_000}])


# --- metrics ------------------------------------------------------------------------------------


def test_a_metric_goes_on_to_further_models_until_its_time_is_over(monkeypatch):
    row = metric_times.one_by_one("mig", Setup("cpu"))
    assert (row["models"], row["of_models"]) == (2, 2)
    assert row["seconds_of_all"] == pytest.approx(row["seconds"])
    monkeypatch.setattr(metric_times, "_SECONDS", 0.0)
    monkeypatch.setattr(metric_times.time, "perf_counter", iter([1.0, 4.0]).__next__)
    monkeypatch.setattr(metric_times, "_codes", lambda setup: torch.randn(9, 300, 3))
    monkeypatch.setattr(metric_times, "_SECONDS", 2.0)
    row = metric_times.one_by_one("gaussian_tc", Setup("cpu"))
    assert (row["models"], row["seconds"], row["seconds_of_all"]) == (1, 3.0, 27.0)
    assert "27.0" in metric_times.table([row])


def test_ops_of_all_models_are_refused_or_checked_before_they_are_timed(monkeypatch):
    monkeypatch.setattr(ops, "backend_of", lambda op, device: "reference")
    rows = metric_times.together(Setup("cpu"))
    assert all("refused" in row for row in rows)
    assert "refused" in metric_times.table(rows)
    monkeypatch.setattr(ops, "backend_of", lambda op, device: "fast")
    rows = metric_times.together(Setup("cpu"))
    assert [row["metric"] for row in rows] == [
        "op metric_votes", "op pair_features", "op grouped_variance",
    ]  # fmt: skip
    monkeypatch.setattr(metric_times, "mismatch", lambda *_: "off by 1")
    with pytest.raises(ValueError, match="not timed: metric_votes: off by 1"):
        metric_times.together(Setup("cpu"))


# --- the whole --------------------------------------------------------------------------------


def test_all_parts_fit_into_ten_minutes_and_leave_nothing_out():
    parts = gpu.parts_of("cuda", Record(None, "cpu"))
    assert sum(part.seconds for part in parts) <= gpu.SECONDS < 600
    names = [part.name for part in parts]
    assert len(set(names)) == len(names)
    assert {f"ops/{op}" for op in ops.OPS} < set(names)
    assert {f"metrics/{name}" for name in METRICS} - set(names) == {
        f"metrics/{name}" for name in metric_times.SLOW
    }
    for name in ("matmul", "steps/256", "stacked/small", "stages", "memory", "max-autotune/bf16"):
        assert name in names
    assert AUTOTUNED in COMPILE_MODES


def test_the_new_parts_run_at_tiny_sizes_and_are_printed(tmp_path, capsys):
    path = tmp_path / "a.json"
    only = ["matmul", "smallest", "profile", "metrics/mig"]
    argv = ["--device", "cpu", "--out", str(path), "--only", *only]
    with pytest.raises(SystemExit) as stopped:
        gpu.main(argv)
    assert stopped.value.code == 0
    kept = json.loads(path.read_text())
    assert set(kept["numbers"]) == set(only)
    assert {"fp32", "textbook as written fp32", "textbook fused fp32"} == set(
        kept["numbers"]["profile"]
    )
    printed = capsys.readouterr().out
    for words in ("TFLOP/s", "a call that sets", "kernels a step", "mig"):
        assert words in printed
