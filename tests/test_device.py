"""Precisions, and the process-wide settings behind them."""

import pytest
import torch

from fvae import device
from fvae.config import TrainConfig
from fvae.device import arithmetic, resolve_precision
from fvae.errors import UserError
from fvae.models import infogan
from fvae.models import vae as nets

CUDA = torch.device("cuda")


def _settings():
    cudnn = torch.backends.cudnn
    try:
        legacy = torch.get_float32_matmul_precision()
    except RuntimeError:
        legacy = "mixed"
    return (
        cudnn.deterministic, cudnn.benchmark, cudnn.conv.fp32_precision, legacy,
        torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision,
    )  # fmt: skip


@pytest.fixture
def _restored():
    before = _settings()
    yield
    torch.set_float32_matmul_precision(before[3])
    torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision = before[
        4:
    ]
    assert _settings() == before


# What the rest of the program may have set before.
PROGRAMS = {
    "nothing": lambda: None,
    "legacy high": lambda: torch.set_float32_matmul_precision("high"),
    "legacy highest": lambda: torch.set_float32_matmul_precision("highest"),
    "new tf32": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "new ieee": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "ieee"),
}


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_both_kinds_of_layer_get_the_arithmetic_and_the_program_keeps_its_own(
    precision, program, _restored
):
    PROGRAMS[program]()
    before = _settings()
    for _ in range(2):
        with arithmetic(CUDA, precision):
            deterministic, benchmark, conv, _, products, _ = _settings()
            assert (deterministic, benchmark) == (True, False)
            assert (conv == "tf32") == (products == "tf32") == (precision == "tf32")
            # PyTorch asks for both of its records before it multiplies, and they must agree.
            assert torch.backends.cuda.matmul.allow_tf32 == (precision == "tf32")
        assert _settings() == before
    with pytest.raises(KeyError), arithmetic(CUDA, precision):
        raise KeyError
    assert _settings() == before


def test_on_a_cpu_nothing_is_set():
    before = _settings()
    with arithmetic(torch.device("cpu"), "bf16"):
        assert _settings() == before


def test_tf32_needs_a_gpu_that_has_it(monkeypatch):
    with pytest.raises(UserError, match="--precision tf32: needs a CUDA device from Ampere on"):
        resolve_precision("tf32", torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(UserError, match="--precision tf32"):
        resolve_precision("tf32", CUDA)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert resolve_precision("tf32", CUDA) == "tf32"
    assert resolve_precision("auto", CUDA) == "bf16"


@pytest.mark.parametrize(
    ("features", "precision"),
    [
        ({"cpu_name": "Intel Xeon", "amx_bf16": True, "avx512_bf16": True}, "bf16"),
        ({"cpu_name": "AMD EPYC 9J14", "avx512_bf16": True}, "bf16"),
        # As many virtual machines have it: the tiles are hidden, and pairs alone are slower.
        ({"cpu_name": "Intel Xeon", "amx_bf16": False, "avx512_bf16": True}, "fp32"),
        ({"cpu_name": "Intel(R) Xeon(R) Processor", "avx512_bf16": True}, "fp32"),
        ({"cpu_name": "unknown"}, "fp32"),
    ],
)
def test_auto_takes_bf16_where_a_processor_is_faster_with_it(features, precision, monkeypatch):
    monkeypatch.setattr(device, "cpu_features", lambda: features)
    assert resolve_precision("auto", torch.device("cpu")) == precision


@pytest.mark.parametrize("build", [nets.build, infogan.build])
def test_networks_are_made_without_touching_the_program_s_random_numbers(build, monkeypatch):
    """On any device: no generator but the CPU's is seeded, and that one is put back."""
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: seeded.append(seed))
    monkeypatch.setattr(torch.cuda, "manual_seed", lambda seed: seeded.append(seed))
    torch.manual_seed(3)
    seeded.clear()
    expected = torch.rand(4)
    torch.manual_seed(3)
    seeded.clear()
    build(TrainConfig(seed=8, disc_units=8), 1)
    assert seeded == []
    assert torch.equal(torch.rand(4), expected)


def test_networks_are_the_same_under_another_default_device():
    config = TrainConfig(seed=8, disc_units=8)
    expected = nets.build(config, 1)[0].encoder[0].weight
    with torch.device("meta"):
        found = nets.build(config, 1)[0].encoder[0].weight
    assert torch.equal(found, expected)
