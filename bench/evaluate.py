"""``python -m bench.evaluate``: score a run, beside the loop that encodes every sample afresh.

Ours is ``fvae eval --protocol locatello2019`` on dSprites from end to end: encode each image that
is read, once, then all metrics. The loop encodes the batches of 64 images of every vote of the
FactorVAE metric and of both sides of every pair of Higgins' metric, as the usual implementations
do, one after another; its classifiers and its other metrics are left out, in its favour. It is
timed on one in a hundred of its batches. Each side is a process of its own.

Prints one JSON line ``{"ratio": .., "ratio_fp32": .., ...}``: the loop's time over ours, whose
images are encoded in the precision that the processor is fast in, and over ours in fp32, as the
loop's are.
"""

import contextlib
import io
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

from bench.record import keep, options
from fvae import data
from fvae.cli import main as fvae
from fvae.config import TrainConfig
from fvae.metrics import BETA_VAE, FACTOR_VAE
from fvae.models.vae import VAE
from fvae.training import loop

PROTOCOL, BATCH, ONE_IN = "locatello2019", 64, 100


def loop_batches() -> int:
    """Batches of 64 images that the loop encodes for the two metrics."""
    votes, points = FACTOR_VAE[PROTOCOL], BETA_VAE[PROTOCOL]
    assert votes.samples == points.pairs == BATCH
    return votes.votes + votes.eval_votes + 2 * (points.points + points.eval_points)


def loop_seconds() -> float:
    """Seconds of the whole loop, from one in a hundred of its batches, after a warm-up."""
    packed, model = data.load("dsprites").data.numpy(), VAE().eval()
    # As users hold them: 3 GB, a byte a pixel.
    images = np.unpackbits(packed, axis=1, bitorder="little").reshape(-1, 64, 64)
    rng, count, warm_up = np.random.default_rng(0), loop_batches() // ONE_IN, 20
    with torch.no_grad():
        for i in range(warm_up + count):
            if i == warm_up:
                started = time.perf_counter()
            batch = images[rng.integers(len(images), size=BATCH)]
            mu, _ = model.encode(torch.from_numpy(batch).float().unsqueeze(1))
            mu.numpy()
    return (time.perf_counter() - started) * loop_batches() / count


def our_seconds(precision: str = "auto") -> float:
    """Seconds of ``fvae eval`` on a run of the default size, its images encoded in a precision."""
    with tempfile.TemporaryDirectory() as folder:
        run, store = Path(folder) / "run", data.load("dsprites")
        config = loop.create_run(TrainConfig(device="cpu", steps=1), run)
        loop.train(config, store, run)
        del store
        started = time.perf_counter()
        with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
            fvae(["eval", str(run), "--protocol", PROTOCOL, "--device", "cpu", "--json",
                  "--precision", precision])  # fmt: skip
        seconds = time.perf_counter() - started
        if not (run / f"eval-{PROTOCOL}.json").exists():
            raise SystemExit("bench.evaluate: fvae eval wrote no scores; not timed")
    return seconds


def _alone(side: Callable[..., float], *args: str) -> float:
    """Call a side in a process of its own."""
    # A pool's processes are daemons, in which scikit-learn uses one thread.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(side, *args).result()


def main() -> None:
    """Time each, print."""
    out = options("bench.evaluate", __doc__).parse_args().out
    seconds = {"loop": _alone(loop_seconds), "ours": _alone(our_seconds)}
    seconds["ours_fp32"] = _alone(our_seconds, "fp32")
    found = {
        "ratio": round(seconds["loop"] / seconds["ours"], 1),
        "ratio_fp32": round(seconds["loop"] / seconds["ours_fp32"], 1),
        "fp32_over_ours": round(seconds["ours_fp32"] / seconds["ours"], 2),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "loop_timed_on_one_in": ONE_IN,
    }
    keep(out, found)
    print(json.dumps(found | {"threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()
