"""Settings and fixtures of all tests; what is no fixture is in shared.py and small.py."""

import os
import signal

# A process a core: two of two threads each slow one another tenfold, and what forks has one. Before
# PyTorch starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

pytest.register_assert_rewrite("shared", "small")
if not torch.cuda.is_available():
    # Triton reads this when it is imported: the kernels then run in its interpreter.
    os.environ["TRITON_INTERPRET"] = "1"

# How long an example may take is no test's subject, and a busy machine is slow. `make torture`
# tries more of them (--hypothesis-profile).
settings.register_profile("few", deadline=None, max_examples=25)
settings.register_profile("many", deadline=None, max_examples=200)
settings.load_profile("few")


#: The files that take longest, which two processes start with: neither then waits for the other.
_LONG = (
    "test_kernels",
    "test_study",
    "test_paper",
    "test_torture",
    "test_fake_cuda",
    "test_stacked",
    "test_distributed",
    "test_cli",
    "test_examples",
    "test_loop",
)


def pytest_collection_modifyitems(items):
    """Long files first; within a file, and among the rest, the order stays."""

    def place(item):
        name = item.path.stem
        return _LONG.index(name) if name in _LONG else len(_LONG)

    items.sort(key=place)


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


@pytest.fixture
def store():
    """Forty random images of bits."""
    from small import bits

    return bits(40)


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """The folder of a cache that starts empty."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("FVAE_CACHE", str(folder))
    return folder


@pytest.fixture(scope="module")
def one_thread():
    """Tensors this small are done sooner than a second thread has joined in."""
    from shared import threads

    with threads(1):
        yield
