"""Two processes train as one: the same gradients, weights, log and way to end."""

import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small import (
    SMALL,
    SMALL_OPTIONS,
    bits,
    checkpoints_noted,
    log,
    made,
    signal_at,
    square,
    step_of,
    tensors,
)

from fvae import Philox, ops
from fvae.errors import UserError
from fvae.registry import OBJECTIVES
from fvae.training import checkpoint, loop
from fvae.training.distributed import World, join
from fvae.training.trainer import Trainer

CONFIG = dataclasses.replace(SMALL, batch_size=6)
SIZE = 2

SHARED = [name for name, objective in OBJECTIVES.items() if objective.distributes]
#: factor-vae once more, with Gaussian pixels of an odd side, correlated factors and a schedule.
ODD = "factor-vae of 2 x 17 x 17"


def _store(side=64):
    """The same images in each process."""
    if side != 64:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return square(2, side, binary=True)
    return bits(40, torch.Generator().manual_seed(1))


def _config(objective):
    return dataclasses.replace(CONFIG, objective=objective)


def _gradients_and_weights(objective, world):
    """Gradients of each of two steps, and everything a run keeps after six more."""
    if objective == ODD:
        config = dataclasses.replace(
            _config("factor-vae"), likelihood="gaussian", correlate=("a,b:0.2",),
            learning_rate_schedule="cosine", learning_rate_warmup_steps=3,
        )  # fmt: skip
        trainer = Trainer(config, _store(17), world)
    else:
        trainer = Trainer(_config(objective), _store(), world)
    out, clear = {}, trainer.optimizer.zero_grad
    trainer.optimizer.zero_grad = lambda set_to_none: None
    for step in range(2):
        trainer.step()
        for name, parameter in trainer._parameters().items():
            out[f"grad{step}.{name}"] = parameter.grad.clone().contiguous()
        clear(set_to_none=True)
    trainer.optimizer.zero_grad = clear
    for _ in range(6):
        trainer.step()
    return out | {f"after.{n}": t.detach().contiguous() for n, t in trainer.state().items()}


def _holds_the_trainer(world):
    """Whether what `World.parallel` returned keeps alive the trainer that has trained with it."""
    trainer = Trainer(CONFIG, _store(), world)
    trainer.step()
    run, alive = trainer._run, weakref.ref(trainer)
    del trainer
    assert callable(run)
    return alive() is not None


def _reductions(run, world, **changes):
    """Steps of checkpoints and number of messages of a run on whose clock 10 s pass a step."""
    messages, reduce = 0, torch.distributed.all_reduce

    def counted(*args):
        nonlocal messages
        messages += 1
        return reduce(*args)

    def tick(step):
        # Process 1 has another opinion, which does not count.
        noted.now += 1000.0 if world.rank else 10.0

    torch.distributed.all_reduce = counted
    try:
        with checkpoints_noted() as noted:
            config = dataclasses.replace(CONFIG, steps=50, log_every=1000, **changes)
            config = world.on_main(lambda: loop.create_run(config, run))
            loop.train(config, _store(), run, on_step=tick, world=world)
    finally:
        torch.distributed.all_reduce = reduce
    return {"saves": [step for _, step in noted.saved], "messages": messages}


def _caught(run):
    try:
        run()
    except (UserError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def _poison(run, world):
    """Spoil a weight of process 1 alone, between two checkpoints."""

    def spoil(step):
        if step == 8 and world.rank == 1:
            next(trainers[0].vae.parameters()).data.fill_(float("nan"))

    with made(Trainer) as trainers:
        config = world.on_main(lambda: loop.create_run(CONFIG, run))
        config = dataclasses.replace(config, log_every=100)
        loop.train(config, _store(), run, on_step=spoil, world=world)


def _fill_the_disk(run, world):
    """Writing fails in process 0, which alone writes."""
    config = world.on_main(lambda: loop.create_run(CONFIG, run))
    save = checkpoint.save

    def full(*_):
        raise OSError(28, "No space left on device", "here")

    def fill(step):
        checkpoint.save = full if world.main else save

    try:
        loop.train(config, _store(), run, on_step=fill, world=world)
    finally:
        checkpoint.save = save


def _process(rank, port, folder):
    """One of the two; what it finds goes to files named by its rank."""
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "test", "RANK": str(rank), "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(SIZE), "LOCAL_WORLD_SIZE": str(SIZE),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    said = {}
    with join(CONFIG) as world:
        for objective in (*SHARED, ODD):
            tensors = _gradients_and_weights(objective, world)
            save_file(tensors, folder / f"{objective}.{rank}")

        said["minutes"] = _reductions(folder / "minutes", world, checkpoint_every=None)
        said["never"] = _reductions(folder / "never", world, checkpoint_every=1000)
        said["held"] = _holds_the_trainer(world)

        # Process 1 alone gets the signal; then a single process goes on.
        run = folder / "stopped-by-two"
        config = world.on_main(lambda: loop.create_run(CONFIG, run))
        on_step = signal_at(9) if rank == 1 else lambda step: None
        lines = []
        said["stop"] = loop.train(config, _store(), run, lines.append, on_step, world)
        said["lines"] = len(lines)

        # The run that a single process began.
        run = folder / "stopped-by-one"
        loop.train(loop.TrainConfig.from_file(run / "config.json"), _store(), run, world=world)

        said["nan"] = _caught(lambda: _poison(folder / "nan", world))
        said["full"] = _caught(lambda: _fill_the_disk(folder / "full", world))

        def only_process_1():
            if rank == 1:
                raise UserError("no data on this machine")

        said["each"] = _caught(lambda: world.each(only_process_1))
        said["first"] = world.on_node_first(
            lambda: ((folder / "cache").exists(), (folder / "cache").touch())[0]
        )
    (folder / f"said.{rank}").write_text(json.dumps(said))
    os._exit(0)  # as the command does: gloo's threads and a closing interpreter do not get along


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The folder in which two processes have left what they found."""
    folder = tmp_path_factory.mktemp("pair")
    run = folder / "stopped-by-one"
    config = loop.create_run(CONFIG, run)
    assert loop.train(config, _store(), run, on_step=signal_at(7)) == signal.SIGTERM
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_process, (port, folder), nprocs=SIZE)
    return folder


def _said(pair):
    return [json.loads((pair / f"said.{rank}").read_text()) for rank in range(SIZE)]


def _close(got, want, tolerance=1e-5):
    got, want = got.double(), want.double()
    assert (got - want).norm() <= tolerance * want.norm()


@pytest.mark.parametrize("objective", [*SHARED, ODD])
def test_two_processes_give_the_gradients_of_one(pair, objective):
    one = _gradients_and_weights(objective, World())
    both = [load_file(pair / f"{objective}.{rank}") for rank in range(SIZE)]
    assert both[0].keys() == both[1].keys() == one.keys()
    gradients = [name for name in one if name.startswith("grad0.")]
    assert any("discriminator" in name for name in gradients) == ("factor" in objective)
    for name in gradients:
        assert one[name].norm() > 0, name
        _close(both[0][name], one[name])
    for name in one:
        assert torch.equal(both[0][name], both[1][name]), name
        if name.startswith(("grad", "after.vae", "after.disc")):
            _close(both[0][name], one[name], 1e-3)


def test_a_trainer_is_gone_with_its_last_reference(pair):
    assert not _holds_the_trainer(World())
    assert [said["held"] for said in _said(pair)] == [False, False]


@pytest.mark.parametrize("begun_by", ["one", "two"])
def test_a_run_goes_on_with_another_number_of_processes(pair, begun_by, tmp_path):
    run = pair / f"stopped-by-{begun_by}"
    if begun_by == "two":
        with safe_open(run / checkpoint.NAME, "pt") as file:
            assert int(file.get_tensor("rng.step")) == 10
            # Two steps since the log's last line, as means over the global batch.
            assert int(file.get_tensor("log.count")) == 2
        loop.train(loop.TrainConfig.from_file(run / "config.json"), _store(), run)
    whole = loop.create_run(CONFIG, tmp_path / "whole")
    loop.train(whole, _store(), tmp_path / "whole")
    lines = log(run)
    assert [line["step"] for line in lines] == [4, 8, 12]
    for got, want in zip(lines, log(tmp_path / "whole"), strict=True):
        assert got.keys() == want.keys()
        for name in want:
            assert got[name] == pytest.approx(want[name], rel=1e-3, abs=1e-5), name
    want, got = tensors(tmp_path / "whole"), tensors(run)
    assert got.keys() == want.keys()
    for name in want:
        if name.startswith(("vae", "discriminator")):
            _close(got[name], want[name], 1e-3)


def test_a_signal_to_one_process_stops_both(pair):
    said = _said(pair)
    assert [s["stop"] for s in said] == [signal.SIGTERM] * 2
    assert [s["lines"] for s in said] == [2, 0]  # process 0 alone logs


def test_processes_agree_every_sixteenth_step_and_save_together(pair):
    main, other = _said(pair)
    # By the main process's clock; the last save is that of the end, the first that of the start.
    assert main["minutes"]["saves"] == [0, 16, 32, 48, 50]
    assert main["never"]["saves"] == [0, 50]
    assert other["minutes"]["saves"] == other["never"]["saves"] == []
    # After steps 16, 32, 48 and 50; and one for the log's means, at the end.
    assert main["never"]["messages"] == other["never"]["messages"] == 4 + 1
    # A checkpoint takes the means along.
    assert main["minutes"]["messages"] == other["minutes"]["messages"] == 4 + 1 + 3


def test_both_end_with_the_same_error(pair):
    for said in _said(pair):
        assert re.search("UserError.*not finite by step 10.*last good checkpoint", said["nan"])
        assert "No space left on device: 'here'" in said["full"]
        assert said["each"] == "UserError: no data on this machine"
    for run in ("nan", "full"):
        kept = tensors(pair / run)
        assert int(kept["rng.step"]) == (5 if run == "nan" else 0)
        assert all(t.isfinite().all() for t in kept.values())


def test_data_is_prepared_once_a_machine(pair):
    assert [said["first"] for said in _said(pair)] == [False, True]


@given(size=st.integers(1, 4), rows=st.integers(1, 5), dims=st.integers(1, 5))
def test_shards_draw_the_noise_of_the_global_batch(size, rows, dims):
    mu, logvar = torch.randn(2, size * rows, dims).double().requires_grad_()
    rng = Philox(3, step=2).at_lane(1)
    z, kl = ops.reparameterize(mu, logvar, rng)
    weight = torch.randn_like(z)
    want = torch.autograd.grad((weight * z).sum() + kl.sum(), (mu, logvar))
    shards, terms = [], 0.0
    for rank in range(size):
        world = World(rank, size)
        z_own, kl_own = world.reparameterize(world.rows(mu, 1), world.rows(logvar, 1), rng)
        shards.append(z_own)
        terms = terms + (world.rows(weight, 1) * z_own).sum() + kl_own.sum() / size
    torch.testing.assert_close(torch.cat(shards), z, rtol=0, atol=0)
    got = torch.autograd.grad(terms, (mu, logvar))
    torch.testing.assert_close(got, want)


def test_rows_take_the_same_part_of_each_batch():
    x = torch.arange(12)
    assert World(0, 2).rows(x, 2).tolist() == [0, 1, 2, 6, 7, 8]
    assert World(1, 2).rows(x, 2).tolist() == [3, 4, 5, 9, 10, 11]
    assert World(2, 3).rows(x, 1).tolist() == [8, 9, 10, 11]


def _under_torchrun(monkeypatch, size):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setenv("WORLD_SIZE", str(size))


def test_what_does_not_fit_is_refused(monkeypatch):
    _under_torchrun(monkeypatch, 4)
    with pytest.raises(UserError, match=r"--batch-size 6: .* 4 processes; take a multiple of 4"):
        join(CONFIG).__enter__()
    other = dataclasses.replace(CONFIG, objective="infogan")
    with pytest.raises(UserError, match="--objective infogan: trains in one process"):
        join(other).__enter__()


def test_the_runs_device_decides_about_gpus(monkeypatch):
    _under_torchrun(monkeypatch, 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    done = []
    monkeypatch.setattr(torch.cuda, "set_device", done.append)
    monkeypatch.setattr(torch.distributed, "init_process_group", done.append)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    # Kept: a context that is dropped ends.
    cpu = join(dataclasses.replace(CONFIG, device="cpu"))
    assert cpu.__enter__().rank == 1
    assert done == ["gloo"]
    with pytest.raises(UserError, match="--nproc-per-node 2: this machine has 1 CUDA devices"):
        join(dataclasses.replace(CONFIG, device="cuda")).__enter__()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    cuda = join(dataclasses.replace(CONFIG, device="cuda"))
    cuda.__enter__()
    assert done == ["gloo", 1, "cpu:gloo,cuda:nccl"]


def test_one_process_of_torchrun_is_an_ordinary_run(monkeypatch):
    _under_torchrun(monkeypatch, 1)
    with join(CONFIG) as world:
        assert (world.rank, world.size, world.main) == (0, 1, True)
        assert not torch.distributed.is_initialized()


def _torchrun(*options):
    return [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "-m", "fvae", "train", *SMALL_OPTIONS, *map(str, options),
    ]  # fmt: skip


def test_torchrun_stops_on_sigterm_with_a_checkpoint(tmp_path):
    run = tmp_path / "a"
    command = _torchrun("--batch-size", 4, "--steps", 10**6, "--log-every", 5, "--out", run)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    log = run / "log.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (log.exists() and log.stat().st_size):
        time.sleep(0.02)
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    assert said.count(f"stopped; continue with: fvae train --resume {run}") == 1
    assert "fvae: error" not in said
    last = json.loads(Path(log).read_text().splitlines()[-1])["step"]
    assert last <= step_of(run) < last + 5


def test_torchrun_says_an_error_once(tmp_path):
    done = subprocess.run(
        _torchrun("--batch-size", 3, "--out", tmp_path / "a"), capture_output=True, text=True
    )
    assert done.returncode != 0
    assert done.stderr.count("fvae: error: --batch-size 3") == 1
    assert not (tmp_path / "a").exists()
