"""Which launches compile: none of a graphed training step, and none that the report does not show.

Steps run on the CPU as a GPU's would, with every launch taken down instead of started; Triton's
own function says which compiled kernel each needs.
"""

import itertools

import pytest
import torch
from shared import DEVICE, assert_close, triton_and_reference
from small import NETS, bits, layers, photographs, square, trainer_of

from fvae import kernels, ops
from fvae.config import TrainConfig
from fvae.kernels import counters, report, tiles
from fvae.kernels.launch import planned
from fvae.philox import Philox

OBJECTIVES, PRECISIONS = ("vae", "beta-vae", "factor-vae"), ("fp32", "bf16")


@pytest.fixture
def gpu(monkeypatch, counters_of_a_gpu):
    """A function that sets the current stream; None while a graph is recorded."""
    autocast, empty, stream = torch.autocast, torch.empty, [0]

    def on_cpu(device_type, *args, **kwargs):
        return autocast("cpu", *args, **kwargs)

    def zeros(*args, **kwargs):  # nothing is written: an index, at least, should be one
        return empty(*args, **kwargs).zero_()

    monkeypatch.setattr(torch, "autocast", on_cpu)
    monkeypatch.setattr(torch, "empty", zeros)
    mine = {torch.device("cpu"): counters_of_a_gpu()}
    monkeypatch.setattr(counters, "_COUNTERS", mine)
    monkeypatch.setattr(counters, "current_stream", lambda device: stream[0])
    return lambda number: stream.__setitem__(0, number)


def _trainer(objective, precision, store, models, batch_size=64, **settings):
    config = TrainConfig(
        objective=objective, device="cpu", precision=precision, backend="triton",
        batch_size=batch_size, disc_units=8, disc_hidden_layers=1, **NETS, **settings,
    )  # fmt: skip
    trainer = trainer_of(config, store, models)
    trainer.device = torch.device("cuda")
    trainer._update = trainer.optimizer.zero_grad  # PyTorch's own kernels: none of ours
    return trainer


def _keys(trainer):
    """What the launches of one step compile to."""
    with planned() as launches:
        trainer._step()
    return [report.key_of(launch) for launch in launches]


def _every_other(order):
    return order[::2] + order[1::2]


@pytest.mark.parametrize("arrange", [list, lambda order: order[::-1], _every_other])
def test_no_launch_compiles_after_the_warm_up(gpu, monkeypatch, arrange):
    # A batch of four is then split as thousands of rows are: every sum has its counters.
    monkeypatch.setattr(tiles, "LOGIT_ROWS", 2)
    monkeypatch.setattr(tiles, "KL_ELEMENTS", 32)
    store, compiled, streams = photographs(20), set(), itertools.count(1)
    # The other objectives' launches are a part of factor-vae's: one order shows them.
    objectives = OBJECTIVES if arrange is list else ("factor-vae",)
    for settings in arrange(list(itertools.product(PRECISIONS, (3, 1, 2), objectives))):
        precision, models, objective = settings
        trainer = _trainer(objective, precision, store, models, batch_size=4)
        for _ in range(3):
            gpu(next(streams))
            compiled.update(_keys(trainer))
        gpu(None)
        recorded = _keys(trainer)
        assert len(recorded) == (7 if objective == "factor-vae" else 4)
        assert set(recorded) <= compiled, settings


@pytest.mark.parametrize("store", [square(1, 17, True), square(3, 31), square(1, 28, True)])
def test_no_launch_compiles_after_the_warm_up_for_rows_of_any_length(gpu, store):
    for models, likelihood in itertools.product((1, 3), ("bernoulli", "gaussian")):
        trainer = _trainer("factor-vae", "bf16", store, models, 4, likelihood=likelihood)
        compiled = set()
        for stream in (1, 2, 3):
            gpu(stream)
            compiled.update(_keys(trainer))
        gpu(None)
        recorded = _keys(trainer)
        assert len(recorded) == 7
        assert set(recorded) <= compiled


@pytest.mark.parametrize("store", [bits, layers, photographs])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_report_shows_every_kernel_of_a_step(gpu, precision, store):
    shown = {report.key_of(variant.launch) for variant in report.variants()}
    assert len(shown) == len(list(report.variants()))
    for objective, models in itertools.product(OBJECTIVES, (1, 3)):
        assert set(_keys(_trainer(objective, precision, store(50), models))) <= shown
    gaussian = _trainer("vae", precision, store(50), 1, likelihood="gaussian")
    assert set(_keys(gaussian)) <= shown
    if store is layers:
        assert set(_keys(_trainer("vae", precision, store(50), 1, correlate=("a,b:1",)))) <= shown


def test_a_key_tells_what_triton_compiles_anew():
    """The probe of the tests above: it sees alignment where a kernel asks for it."""
    logits = torch.zeros(2, 4, 1, 8, 8)
    keys = []
    for part in (logits[0], logits[1], logits.flatten()[1:257].view(4, 1, 8, 8)):
        with planned() as launches:
            kernels.IMPLEMENTATIONS["bernoulli_nll"](part, part)
        keys.append(report.key_of(*launches))
    assert keys[0] == keys[1] != keys[2]


# The last lane below 32 signed bits and the first above, and the last of all.
@pytest.mark.parametrize("lane", [0, 1, 16, (1 << 23) - 1, 1 << 23, (1 << 24) - 1])
def test_every_lane_draws_what_the_reference_draws(lane):
    rng = Philox([3, 2**63 + 5], step=2**32 - 1, device=DEVICE).at_lane(lane)
    key = (rng.seed, rng.step, rng.lane)
    x = torch.randn(2, 5, 3, device=DEVICE)
    kl = torch.randn(2, 3, device=DEVICE)
    store = torch.randint(0, 256, (9, 4), dtype=torch.uint8, device=DEVICE)
    table = ops.alias_table(torch.rand(9, device=DEVICE) ** 4)
    for name, *args in (
        ("permute_dims", x, *key),
        ("permute_dims_backward", x, *key),
        ("reparameterize", x, x, *key),
        ("reparameterize_backward", x, kl, x, x, *key),
        ("gather_batch", store, [4, 1, 1], False, 3, *key, torch.float32),
        ("gather_batch", store, [4, 1, 1], False, 3, *key, torch.float32, table),
    ):
        assert_close(*triton_and_reference(name, *args), torch.float32)


def test_sizes_that_do_not_fit_are_refused():
    rng = Philox(0, device="meta")
    key = (rng.seed, rng.step, 0)

    def run(name, *args):
        with planned() as launches:
            kernels.IMPLEMENTATIONS[name](*args)
        return launches

    def zeros(*shape, dtype=torch.float32):
        return torch.zeros(shape, dtype=dtype, device="meta")

    x = zeros(1 << 28, 8)
    with pytest.raises(ValueError, match="mu: got 2147483648 elements that share a key"):
        run("reparameterize", x, x, *key)
    with pytest.raises(ValueError, match="mu: got 2147483648 elements that share a key"):
        run("reparameterize_backward", x, zeros(8), x, x, *key)
    with pytest.raises(ValueError, match="z: got 2147483648 rows"):
        run("permute_dims", zeros(1 << 31, 1), *key)
    with pytest.raises(ValueError, match="z: got 8589934592 draws"):
        run("permute_dims", zeros(1 << 30, 32), *key)
    with pytest.raises(ValueError, match="grid of"):
        run("permute_dims", zeros(65536, 4, 1), *key)
    for data in (zeros(3 << 30, 4, dtype=torch.uint8), zeros(2, 1 << 31, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="store.data: got"):
            run("gather_batch", data, [4, 1, 1], False, 2, *key, torch.float32)
    # What is left may be large.
    assert run("reparameterize", x[1:], x[1:], *key)
    assert run("permute_dims", zeros(65535, 4, 1), *key)
    assert run("gather_batch", zeros(1 << 31, 4, dtype=torch.uint8), [4, 1, 1], False, 2, *key,
               torch.float32)  # fmt: skip
    logits = zeros(1 << 20, 1, 64, 64)
    assert run("bernoulli_nll", logits, logits)
    assert run("logit_ratio", zeros(1 << 32, 2), zeros(1 << 32, 2))


def test_elements_far_apart():
    """Strides whose products need more than 32 bits; the memory between is never touched."""
    rng, far = Philox(0, device=DEVICE), 1 << 29
    key = (rng.seed, rng.step, 0)
    x = torch.empty(4 * far + 8, dtype=torch.bfloat16, device=DEVICE).as_strided((5, 2), (far, 1))
    x.normal_()
    for name, *args in (
        ("reparameterize", x, x, *key),
        ("reparameterize_backward", x, torch.randn(2, device=DEVICE), x, x, *key),
        ("permute_dims", x, *key),
        ("logit_ratio", x, x.flip(0)),
    ):
        assert_close(*triton_and_reference(name, *args), args[0].dtype)
