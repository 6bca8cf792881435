"""What a device can do at most: copy bytes, multiply matrices, start a kernel."""

from collections.abc import Sequence

import torch

from bench.arithmetic import arithmetic, precisions
from bench.device_timing import Times, eager_and_graph, median, microseconds
from fvae.device import AUTOCAST


def copy_bandwidth(device: str, size: int = 1 << 30, turns: int | None = None) -> float:
    """Bytes a second, read plus written, of a copy of ``size`` bytes on the device.

    ``turns`` are those of :func:`bench.device_timing.in_turns`.
    """
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / (1e-6 * microseconds(lambda: target.copy_(source), device, turns)["p50"])


def matmul_rates(
    device: str, size: int = 8192, names: Sequence[str] = (), turns: int | None = None
) -> dict[str, float]:
    """Operations a second, two for each product and sum, of square matrices, by precision.

    The numbers are random: zeros are multiplied faster. ``names`` are the precisions, all of
    :func:`bench.arithmetic.precisions` if none is given, ``turns`` as above.
    """
    return {name: _matmul_rate(device, size, name, turns) for name in names or precisions(device)}


def _matmul_rate(device: str, size: int, precision: str, turns: int | None) -> float:
    dtype = AUTOCAST.get(precision, torch.float32)
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    out = torch.empty_like(a)
    with arithmetic(precision):
        times = microseconds(lambda: torch.mm(a, b, out=out), device, turns)
    return 2 * size**3 / (1e-6 * times["p50"])


def smallest_call(device: str) -> dict[str, Times | str | None]:
    """Microseconds of a call that sets one number: what no row of an op can go below."""
    number = torch.zeros((), device=device)
    return eager_and_graph({"fill": lambda: number.fill_(1.0)}, device)["fill"]


def lines(found: dict) -> str:
    """Return lines of what was found of copy, matmul and smallest; none where nothing was."""
    said = []
    if found.get("copy"):
        said.append(f"copy: {found['copy'] / 1e9:.0f} GB/s")
    if found.get("matmul"):
        rates = (f"{name} {rate / 1e12:.1f}" for name, rate in found["matmul"].items())
        said.append(f"matmul: {', '.join(rates)} TFLOP/s")
    if found.get("smallest"):
        times = ((kind, median(found["smallest"][kind])) for kind in ("eager", "graph"))
        times = (f"{kind} {us:.1f} us" for kind, us in times if us is not None)
        said.append(f"a call that sets one number: {', '.join(times)}")
    return "\n".join(said)
