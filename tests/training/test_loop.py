import dataclasses
import os
import signal

import pytest
import torch
from shared import assert_equal, full_disk
from small import (
    SMALL,
    Killed,
    assert_a_killed_run_resumes_to_the_same,
    assert_same_run,
    checkpoints_noted,
    command,
    kill_at,
    log,
    made,
    options,
    photographs,
    run,
    signal_at,
    step_of,
    tensors,
)
from torture.samples import begin, until

import fvae
from fvae.config import TrainConfig
from fvae.data import Store
from fvae.errors import UserError
from fvae.training import checkpoint, loop
from fvae.training.trainer import Trainer


@pytest.mark.parametrize("objective", ["vae", "beta-vae", "factor-vae"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_run_is_the_uninterrupted_one(objective, precision, store, tmp_path):
    config = dataclasses.replace(SMALL, objective=objective, precision=precision, warmup_steps=8)
    assert_a_killed_run_resumes_to_the_same(config, store, tmp_path)


def test_a_checkpoint_a_minute_and_at_the_end(store, tmp_path):
    with checkpoints_noted() as noted:

        def tick(step):
            noted.now += 13.0

        config = dataclasses.replace(SMALL, checkpoint_every=None)
        run(config, store, tmp_path / "a", on_step=tick)
        assert noted.saved == [("a", step) for step in (0, 5, 10, 12)]
        assert TrainConfig.from_file(tmp_path / "a/config.json").checkpoint_every is None

        def kill(step):
            tick(step)
            kill_at(9)(step)

        with pytest.raises(Killed):
            run(config, store, tmp_path / "b", on_step=kill)
        assert step_of(tmp_path / "b") == 5
        # What an older configuration says still counts; where the saves are changes no tensor.
        fixed = dataclasses.replace(config, checkpoint_every=4)
        noted.saved.clear()
        loop.train(fixed, store, tmp_path / "b", on_step=tick)
        assert noted.saved == [("b", 8), ("b", 12)]
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_killed_process_resumes_to_the_same_tensors(tmp_path, dsprites):
    config = dataclasses.replace(SMALL, steps=250, checkpoint_every=40, log_every=100)
    run(config, dsprites, tmp_path / "a")
    process = begin("train", *options(config), "--out", tmp_path / "b")
    path = tmp_path / "b" / checkpoint.NAME
    until(lambda: path.exists() and step_of(path.parent) >= 80)
    process.send(signal.SIGKILL)
    assert process.wait().status == -signal.SIGKILL
    assert 80 <= step_of(path.parent) < 250
    assert command("train", "--resume", tmp_path / "b")[0] == 0
    assert_equal(tensors(tmp_path / "a"), tensors(tmp_path / "b"))
    assert (tmp_path / "b" / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_the_step_with_a_checkpoint(number, store, tmp_path):
    config = loop.create_run(SMALL, tmp_path / "a")
    # Whatever the shell made of SIGINT for this process.
    before = signal.signal(number, signal.default_int_handler)
    try:
        stop = signal_at(7, number)
        assert loop.train(config, store, tmp_path / "a", on_step=stop) == number
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)
    assert step_of(tmp_path / "a") == 7
    loop.train(config, store, tmp_path / "a")
    run(SMALL, store, tmp_path / "b")
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_an_ignored_signal_stays_ignored(store, tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        config = loop.create_run(SMALL, tmp_path / "a")
        kill = lambda step: os.kill(os.getpid(), signal.SIGINT)  # noqa: E731
        assert loop.train(config, store, tmp_path / "a", on_step=kill) == 0
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_raising_steps_continues(store, tmp_path):
    short = run(SMALL, store, tmp_path / "a")
    longer = dataclasses.replace(SMALL, steps=20)
    loop.train(longer, store, tmp_path / "a")
    extended = tensors(tmp_path / "a")
    assert int(short["rng.step"]) == 12
    assert_equal(extended, run(longer, store, tmp_path / "b"))


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(store, tmp_path):
    def poison(step):
        if step == 8:
            # Far beyond what an optimizer step can repair.
            weights[0].data.fill_(float("nan"))

    config = dataclasses.replace(SMALL, log_every=100)
    with made(Trainer, lambda trainer: next(trainer.vae.parameters())) as weights:
        with pytest.raises(UserError, match="not finite by step 10.*last good checkpoint is kept"):
            run(config, store, tmp_path / "a", on_step=poison)
    kept = tensors(tmp_path / "a")
    assert int(kept["rng.step"]) == 5
    assert all(t.isfinite().all() for t in kept.values())


def test_a_full_disk_leaves_the_old_checkpoint(store, tmp_path, monkeypatch):
    def kill(step):
        if step == 8:
            monkeypatch.setattr(os, "fsync", full_disk)

    with pytest.raises(OSError, match="No space"):
        run(SMALL, store, tmp_path / "a", on_step=kill)
    assert step_of(tmp_path / "a") == 5
    names = {p.name for p in (tmp_path / "a").iterdir()}
    assert names == {"config.json", "data.json", "log.jsonl", checkpoint.NAME, checkpoint.PREVIOUS}


def test_log_holds_means_and_kl_by_dimension(store, tmp_path):
    seen = []
    run(SMALL, store, tmp_path / "a", on_log=seen.append)
    lines = log(tmp_path / "a")
    assert [line["step"] for line in lines] == [4, 8, 12]
    assert len(seen) == 3
    for line in lines:
        assert sum(line["kl_dims"]) == pytest.approx(line["kl"], rel=1e-4)
        total = line["recon"] + line["kl"] + 35 * line["tc"] + line["disc_loss"]
        assert line["loss"] == pytest.approx(total, rel=1e-4)


def test_training_lowers_the_loss(dsprites, tmp_path):
    config = dataclasses.replace(SMALL, steps=60, batch_size=16, log_every=20, learning_rate=5e-3)
    run(config, dsprites, tmp_path / "a")
    lines = log(tmp_path / "a")
    assert lines[-1]["recon"] < 0.6 * lines[0]["recon"]


def test_load_gives_the_trained_model(store, tmp_path):
    trained = run(SMALL, store, tmp_path / "a")
    model = fvae.load(tmp_path / "a")
    assert torch.equal(model.encoder[0].weight, trained["vae.encoder.0.weight"])
    mu, logvar = model.encode(torch.rand(2, 1, 64, 64))
    assert mu.shape == logvar.shape == (2, 4)
    assert model.decode(mu).shape == (2, 1, 64, 64)
    assert not model.training


def test_initial_weights_depend_on_the_seed_alone(store):
    torch.manual_seed(5)
    first = Trainer(SMALL, store).state()
    torch.manual_seed(6)
    assert_equal(first, Trainer(SMALL, store).state())
    other = Trainer(dataclasses.replace(SMALL, seed=1), store).state()
    assert not torch.equal(first["vae.encoder.0.weight"], other["vae.encoder.0.weight"])


def test_colour_images_train(tmp_path):
    run(SMALL, photographs(10), tmp_path / "a")
    assert fvae.load(tmp_path / "a").encode(torch.rand(2, 3, 64, 64))[0].shape == (2, 4)


def test_images_of_another_size_are_refused():
    data = torch.zeros(3, 4 * 4 // 8, dtype=torch.uint8)
    with pytest.raises(UserError, match="images are 4 x 4, expected square ones of at least 16"):
        Trainer(SMALL, Store("tiny", data, (1, 4, 4), True, (), ()))


def test_a_damaged_or_foreign_checkpoint_is_refused(store, tmp_path):
    run(SMALL, store, tmp_path / "a")
    path = tmp_path / "a" / checkpoint.NAME
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cut short or damaged"):
        fvae.load(tmp_path / "a")
    path.write_bytes(whole)
    config = tmp_path / "a" / "config.json"
    config.write_text(config.read_text().replace('"latent_dim": 4', '"latent_dim": 5'))
    with pytest.raises(UserError, match="was made with latent_dim = 4"):
        fvae.load(tmp_path / "a")
    path.unlink()
    with pytest.raises(UserError, match="no such file"):
        fvae.load(tmp_path / "a")


@pytest.mark.slow
def test_bf16_tracks_fp32(dsprites, tmp_path):
    recon = {}
    for precision in ("fp32", "bf16"):
        config = TrainConfig(steps=500, device="cpu", precision=precision)
        run(config, dsprites, tmp_path / precision)
        recon[precision] = log(tmp_path / precision)[-1]["recon"]
    print(recon)
    assert recon["bf16"] == pytest.approx(recon["fp32"], rel=0.03)
