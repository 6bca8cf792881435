"""A training step as a CUDA graph: a few eager steps, one capture, then replays."""

import functools
import gc
from collections.abc import Callable
from typing import Any

import torch

# Eager steps before the capture; they are steps of the run like any other.
WARM_UP = 3


class StepGraph:
    """Run a step eagerly a few times, then capture it and replay the capture.

    What the step reads and writes stays where it was at the capture, on the current device.
    """

    def __init__(self) -> None:
        self.warm_up_steps = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.result: Any = None

    @property
    def captured(self) -> bool:
        """Whether :meth:`replay` can be called."""
        return self.graph is not None

    def step(self, run: Callable[[], Any]) -> Any:
        """Do one step.

        Args:
            run: the step, the same at each call.

        Returns:
            what ``run`` returned; once captured, the tensors that each replay overwrites.
        """
        if not self.captured:
            if self.warm_up_steps < WARM_UP:
                self.warm_up_steps += 1
                return _on_side_stream(run)
            self._capture(run)
        return self.replay()

    def replay(self) -> Any:
        """Do the captured step once more."""
        assert self.graph is not None
        self.graph.replay()
        return self.result

    def _capture(self, run: Callable[[], Any]) -> None:
        # A graph that is destroyed while another is captured invalidates the capture: what is
        # garbage goes now, and nothing is collected on the way.
        gc.collect()
        collects = gc.isenabled()
        gc.disable()
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=_side_stream(torch.cuda.current_device())):
                self.result = run()
            self.graph = graph
        finally:
            if collects:
                gc.enable()


@functools.cache
def _side_stream(device: int) -> "torch.cuda.Stream":
    """One for all warm-up steps and captures: cuBLAS keeps 32 MiB for each stream it has seen."""
    return torch.cuda.Stream(device)


def _on_side_stream(run: Callable[[], Any]) -> Any:
    """Run on the stream of the capture, which demands it of what allocates and autotunes."""
    device = torch.cuda.current_device()
    stream = _side_stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        result = run()
    torch.cuda.current_stream(device).wait_stream(stream)
    return result
