"""The CUDA-graph step: what needs a GPU is skipped, saying so, elsewhere."""

import contextlib
import dataclasses
import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from shared import DEVICE, HostTraffic
from small import NETS, bits, layers, square, trainer_of

from fvae.config import TrainConfig
from fvae.models import ends
from fvae.training.graph import WARM_UP, StepGraph, _side_stream
from fvae.training.trainer import Trainer

needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no GPU: the graphed step is not tried"
)


SMALL = TrainConfig(
    device=DEVICE, precision="fp32", batch_size=2, latent_dim=2, disc_units=8, warmup_steps=5,
    critic_steps=2, graph=False, **NETS,
)  # fmt: skip
GANS = ("infogan", "infowgan-gp")
STEPS = [(objective, m) for objective in ("vae", "beta-vae", "factor-vae") for m in (1, 2)]
STEPS += [(objective, 2) for objective in ("beta-tcvae", "dip-vae-ii", "annealed-vae")]
STEPS += [(objective, 1) for objective in GANS]


def odd(images):
    """Images whose rows are no whole words, and 289 of their 296 bits."""
    return square(1, 17, binary=True, images=images)


@pytest.mark.parametrize(("objective", "models"), STEPS)
@pytest.mark.parametrize("store", [bits, layers, odd])
@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_a_step_never_waits_for_the_host(objective, backend, store, models, monkeypatch):
    # Through the interpreter on the CPU, a GPU's step: the same Python, the same launches.
    monkeypatch.setattr(ends, "first", lambda *_: None)  # which a CPU alone has
    config = dataclasses.replace(
        SMALL, objective=objective, backend=backend, learning_rate_warmup_steps=5,
        categorical_sizes=(3, 2) if objective in GANS else (),
    )  # fmt: skip
    trainer = trainer_of(config, store(50), models)
    trainer.step()
    with HostTraffic() as traffic:
        trainer.step()
    assert traffic.found == []


def test_the_probe_sees_host_traffic():
    with HostTraffic() as traffic:
        torch.ones(2).sum().item()
        torch.tensor([1.0, 2.0])
    assert traffic.found == ["_local_scalar_dense", "lift_fresh"]


@pytest.mark.parametrize(("objective", "models"), STEPS)
def test_a_trainer_goes_when_its_last_user_does(objective, models):
    """Not when the collector comes by, perhaps in the middle of the next one's capture."""
    gc.collect()
    gc.disable()
    try:
        trainer = trainer_of(dataclasses.replace(SMALL, objective=objective), bits(50), models)
        trainer.step()
        gone = weakref.ref(trainer)
        weight = weakref.ref(next(iter(trainer._parameters().values())))
        del trainer
        assert gone() is None
        assert weight() is None
    finally:
        gc.enable()


@pytest.fixture
def fake_cuda(monkeypatch):
    """As much of torch.cuda as a StepGraph uses; returns what happened, in order."""
    happened = []

    class Stream:
        def __init__(self, device):
            happened.append("stream")

        def wait_stream(self, other):
            pass

    class Graph:
        def replay(self):
            happened.append("replay")

    @contextlib.contextmanager
    def graph(graph, stream):
        happened.append(("capture", stream, gc.isenabled()))
        yield

    @contextlib.contextmanager
    def stream_context(stream):
        happened.append(("on", stream))
        yield

    main = SimpleNamespace(wait_stream=lambda other: None)
    for name, value in {
        "Stream": Stream, "CUDAGraph": Graph, "graph": graph, "stream": stream_context,
        "current_stream": lambda device: main, "current_device": lambda: 0,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    _side_stream.cache_clear()
    yield happened
    _side_stream.cache_clear()


def test_warm_up_and_capture_share_one_stream_and_nothing_is_collected_inside(fake_cuda):
    calls = []
    for _ in range(2):  # a second trainer takes the same stream
        graph, number = StepGraph(), len(calls)
        results = [graph.step(lambda: calls.append(1) or len(calls)) for _ in range(WARM_UP + 3)]
        captured = number + WARM_UP + 1
        assert results == [*range(number + 1, number + WARM_UP + 1), captured, captured, captured]
        assert graph.captured
    assert fake_cuda.count("stream") == 1
    streams = {event[1] for event in fake_cuda if isinstance(event, tuple)}
    assert len(streams) == 1
    captures = [event for event in fake_cuda if event[0] == "capture"]
    assert [collects for _, _, collects in captures] == [False, False]
    assert fake_cuda.count("replay") == 2 * 3
    assert gc.isenabled()


def test_garbage_goes_before_a_capture(fake_cuda):
    class Old:
        pass

    old = Old()
    old.self = old  # a cycle, as somebody else's trainer may be
    gone = weakref.ref(old)
    del old
    graph, seen = StepGraph(), []
    for _ in range(WARM_UP):
        graph.step(lambda: None)
    graph.step(lambda: seen.append(gone()))
    assert seen == [None]


def test_a_capture_that_fails_leaves_the_collector_on(fake_cuda):
    graph = StepGraph()
    for _ in range(WARM_UP):
        graph.step(lambda: None)
    with pytest.raises(RuntimeError, match="no"):
        graph.step(lambda: (_ for _ in ()).throw(RuntimeError("no")))
    assert gc.isenabled()
    assert not graph.captured


@needs_gpu
@pytest.mark.parametrize(
    ("objective", "models"), [(o, m) for o in ("beta-vae", "factor-vae") for m in (1, 3)]
    + [(o, 1) for o in GANS],
)  # fmt: skip
@pytest.mark.parametrize("store", [bits, layers])
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("backend", [None, "reference"])
def test_graph_equals_eager(objective, precision, store, models, backend):
    store = store(500)
    config = TrainConfig(
        objective=objective, device="cuda", precision=precision, disc_units=64, warmup_steps=20,
        backend=backend, critic_steps=2, steps=12, learning_rate_schedule="cosine",
    )  # fmt: skip
    graphed = trainer_of(config, store, models)
    eager = trainer_of(dataclasses.replace(config, graph=False), store, models)
    for _ in range(12):
        a, b = graphed.step(), eager.step()
        for name in b:
            assert torch.equal(a[name], b[name]), name
    assert graphed.graph.captured
    assert int(graphed.rng.step) == graphed.step_count == 12
    for name, value in eager.state().items():
        assert torch.equal(graphed.state()[name], value), name


@needs_gpu
def test_a_replay_draws_anew():
    config = TrainConfig(device="cuda", disc_units=64, learning_rate=1e-12, precision="fp32")
    trainer = Trainer(config, bits(500))
    losses = {float(trainer.step()["recon"]) for _ in range(10)}
    assert len(losses) == 10
