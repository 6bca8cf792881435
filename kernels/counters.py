"""Sums over the programs of a launch, added in a fixed order by the last program to finish.

Each program stores its partial sums and then counts itself in a counter of its model. The one that
finds all others counted adds the partial sums in the programs' order, so that the total has the
same bits at every run, and sets the counter back to zero for the next launch.
"""

import threading

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def is_last(counter_ptr, programs):
    """Count this program as finished; return whether all ``programs`` are, and clear the count."""
    # One thread counts: the stores of all others come before.
    tl.debug_barrier()
    # The release of these stores, and the acquire of all others' for the last program.
    done = tl.atomic_add(counter_ptr, 1, sem="acq_rel", scope="gpu")
    last = done == programs - 1
    if last:
        tl.store(counter_ptr, 0)
    return last


@triton.jit
def add_partials(partial_ptr, programs, columns, PARTS: tl.constexpr, WIDTH: tl.constexpr):
    """Return [WIDTH], the sums over the programs of partial sums [programs, columns]."""
    part = tl.arange(0, PARTS)[:, None]
    column = tl.arange(0, WIDTH)[None, :]
    total = tl.zeros([PARTS, WIDTH], tl.float32)
    first = 0  # `while`: the interpreter of Triton 3.6 takes no run-time range under NumPy 2.4
    while first < programs:
        # Past the first-level cache, which other processors' stores do not reach.
        total += tl.load(
            partial_ptr + (first + part) * columns + column,
            mask=(first + part < programs) & (column < columns),
            other=0.0,
            cache_modifier=".cg",
        )
        first += PARTS
    return tl.sum(total, axis=0)


class Counters:
    """The counters of one device: zero between launches, as the last program leaves them.

    Two launches that may run at once need counters of their own: each stream has its, and each
    launch that a CUDA graph records has its for good. So nothing is cleared at a launch, and
    nothing is allocated while a graph is recorded, if a launch came before.

    Args:
        device: where the counters live.
        size: how many there are for graphs; beyond, each launch of a graph clears its own.
    """

    def __init__(self, device: torch.device, size: int = 1 << 14) -> None:
        self.device, self.size = device, size
        self.of_stream: dict[int, Tensor] = {}
        self.of_graphs: Tensor | None = None
        self.used = 0
        self.lock = threading.Lock()  # PyTorch runs backward passes in threads of its own

    def take(self, models: int) -> Tensor:
        """Return int32 zeros ``[models]`` that no other running launch uses."""
        if self.device.type != "cuda":  # the interpreter runs one launch after another
            return self._zeros(models)
        stream = current_stream(self.device)
        with self.lock:
            return self._of_graph(models) if stream is None else self._of_stream(stream, models)

    def _of_stream(self, stream: int, models: int) -> Tensor:
        # Cleared by the stream itself: another would have to be waited for. Those of graphs are
        # waited for where a capture begins, as torch.cuda.graph does for all that is running.
        if self.of_graphs is None:
            self.of_graphs = self._zeros(self.size)
        known = self.of_stream.get(stream)
        if known is None or len(known) < models:
            known = self.of_stream[stream] = self._zeros(triton.next_power_of_2(models))
        return known[:models]

    def _of_graph(self, models: int) -> Tensor:
        # A first tensor made here would be this graph's, and cleared by each of its replays.
        if self.of_graphs is None or self.used + models > self.size:
            return self._zeros(models)
        self.used += models
        return self.of_graphs[self.used - models : self.used]

    def _zeros(self, count: int) -> Tensor:
        return torch.zeros(count, dtype=torch.int32, device=self.device)


def current_stream(device: torch.device) -> int | None:
    """Return the number of a GPU's current stream; None while a CUDA graph records it."""
    with torch.cuda.device(device):
        if torch.cuda.is_current_stream_capturing():
            return None
    return torch.cuda.current_stream(device).cuda_stream


_COUNTERS: dict[torch.device, Counters] = {}


def counters(device: torch.device, models: int) -> Tensor:
    """Return int32 zeros ``[models]`` on the device that no other running launch uses."""
    if device not in _COUNTERS:
        _COUNTERS[device] = Counters(device)
    return _COUNTERS[device].take(models)
