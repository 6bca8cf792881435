"""What several test files share."""

import os
import signal

import pytest
import torch
from hypothesis import settings

if not torch.cuda.is_available():
    # Triton reads this when it is imported: the kernels then run in its interpreter.
    os.environ["TRITON_INTERPRET"] = "1"

# How long an example may take is no test's subject, and a busy machine is slow.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

# One table of tolerances by dtype, (rtol, atol), for every op against its reference.
TOLERANCE = {
    torch.float64: (1e-12, 1e-12),
    torch.float32: (1e-5, 1e-6),
    torch.bfloat16: (2e-2, 2e-2),
}

# Odd shapes: one row, one column, sizes that are no power of two.
SHAPES = [(1, 1), (1, 10), (7, 1), (7, 10), (65, 17), (64, 10)]


@pytest.fixture(autouse=True, scope="session")
def _signals_of_a_foreground_job():
    """A shell lets its background jobs, and all that they start, ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def dsprites():
    """The rendered grid; made once on this machine, then read from the cache."""
    from fvae import data

    return data.load("dsprites")
