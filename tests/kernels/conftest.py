import pytest
import torch

from fvae.kernels import counters


@pytest.fixture
def poisoned_outputs(monkeypatch):
    """An output that a kernel leaves unwritten must not look right by chance."""

    def poisoned(function):
        def make(*args, **kwargs):
            out = function(*args, **kwargs)
            return out.fill_(torch.nan if out.is_floating_point() else 77)

        return make

    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))


class _CountersOfAGPU(counters.Counters):
    def _zeros(self, count):
        return torch.zeros(count, dtype=torch.int32)


@pytest.fixture
def counters_of_a_gpu():
    """Make the counters of a GPU, in the memory of the CPU."""
    return lambda **options: _CountersOfAGPU(torch.device("cuda"), **options)
