"""``python -m bench.gpu``: on a machine with a GPU, check every op, time it, time the step.

Prints a table with achieved bandwidth over the device's measured copy bandwidth, and writes one
JSON file under bench/results/. Nothing is timed that does not match its reference.
"""

import dataclasses
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import triton

from bench.baseline import Textbook
from bench.registry import Case, cases
from fvae import data, reference
from fvae.config import TrainConfig
from fvae.train import Trainer

_RESULTS = Path(__file__).parent / "results"
_STEPS = 200


@dataclasses.dataclass(frozen=True)
class Result:
    """One op at one shape.

    Attributes:
        op: name.
        shape: as in the registry.
        p20: 20th percentile of the time, microseconds; p50 and p80 likewise.
        p50: median.
        p80: 80th percentile.
        reference: median of the reference backend, microseconds.
        bytes: bytes that must move.
        bandwidth: share of the copy bandwidth that bytes / p50 is.
    """

    op: str
    shape: str
    p20: float
    p50: float
    p80: float
    reference: float
    bytes: int
    bandwidth: float


def microseconds(run: Callable[[], object]) -> list[float]:
    """20th, 50th and 80th percentile of a call's device time; the cache is cleared between."""
    times = triton.testing.do_bench(run, warmup=20, rep=80, quantiles=[0.2, 0.5, 0.8])
    return [1e3 * t for t in times]


def copy_bandwidth() -> float:
    """Measured bandwidth of a device-to-device copy of 1 GiB, read plus written, bytes a second."""
    source = torch.randint(0, 255, (1 << 30,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    _, median, _ = microseconds(lambda: target.copy_(source))
    return 2 * source.numel() / (median * 1e-6)


def measure(case: Case, bandwidth: float) -> Result:
    """Check one op against the reference, then time both."""
    got, expected = case.run(None), case.run("reference")
    torch.testing.assert_close(got, expected, rtol=2e-5, atol=2e-5)
    p20, p50, p80 = microseconds(lambda: case.run(None))
    reference_time = microseconds(lambda: case.run("reference"))[1]
    share = case.bytes / (p50 * 1e-6) / bandwidth
    return Result(case.op, case.shape, p20, p50, p80, reference_time, case.bytes, share)


def _rate(step: Callable[[], object]) -> float:
    """Steps a second, a synchronised median of five rounds."""
    for _ in range(10):
        step()
    rates = []
    for _ in range(5):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(_STEPS):
            step()
        torch.cuda.synchronize()
        rates.append(_STEPS / (time.perf_counter() - start))
    return statistics.median(rates)


def steps_a_second(store: data.Store) -> dict[str, float]:
    """Training steps a second at batch 64: textbook, ours eager, ours graphed; fp32 and bf16."""
    images = reference.unpack(store.data[:8192], store.image_shape, store.binary, torch.float32)
    images = images.cuda()
    textbook = Textbook(device="cuda")

    def textbook_step() -> None:
        first, second = (images[torch.randint(len(images), (64,))] for _ in range(2))
        textbook.step(first, second)

    found = {"textbook eager fp32": _rate(textbook_step)}
    on_device = store.to("cuda")
    for precision in ("fp32", "bf16"):
        for graph in (False, True):
            config = TrainConfig(device="cuda", precision=precision, graph=graph)
            name = f"ours {'graph' if graph else 'eager'} {precision}"
            found[name] = _rate(Trainer(config, on_device).step)
    return found


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=_RESULTS.parent)
    return done.stdout.strip() or "unknown"


def main() -> None:
    """Check, time, print and write."""
    if not torch.cuda.is_available():
        print("bench.gpu: PyTorch sees no CUDA device; run it on a machine with a GPU",
              file=sys.stderr)  # fmt: skip
        sys.exit(2)
    bandwidth = copy_bandwidth()
    rows = [
        measure(case, bandwidth)
        for case in cases("cuda", batches=(64, 1024, 65536), image_batches=(64, 4096))
    ]
    rates = steps_a_second(data.load("dsprites"))
    name = torch.cuda.get_device_name()
    print(f"{name}, copy {bandwidth / 1e9:.0f} GB/s, torch {torch.__version__},"
          f" triton {triton.__version__}")  # fmt: skip
    print(f"{'op':<16}{'shape':<16}{'p50 us':>10}{'reference':>11}{'GB/s':>8}{'of copy':>9}")
    for r in rows:
        speed = r.bytes / r.p50 / 1e3
        print(f"{r.op:<16}{r.shape:<16}{r.p50:>10.1f}{r.reference:>11.1f}{speed:>8.0f}"
              f"{r.bandwidth:>9.0%}")  # fmt: skip
    for label, rate in rates.items():
        print(f"{label:<24}{rate:>8.0f} steps/s{rate / rates['textbook eager fp32']:>8.1f}x")
    result = {
        "device": name,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "commit": _commit(),
        "copy_bytes_per_second": bandwidth,
        "ops": [dataclasses.asdict(row) for row in rows],
        "steps_per_second": rates,
    }
    path = _RESULTS / f"{name.replace(' ', '-').lower()}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(path)


if __name__ == "__main__":
    main()
