"""``python -m bench.peers``: packages that people use beside ours, on the same data in one run.

In an environment that has them (README.md beside this file says how it is made). Prints a line for
each comparison; ``--out`` keeps them. Their step takes turns with ours, each in a process of its
own; scores of the same codes must agree before they are timed.
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import torch

from bench.device_timing import medians, over, spread
from bench.peers import disent_scores
from bench.peers.pythae_step import HIDDEN_LAYERS, pythae_round
from bench.record import keep, options
from bench.step import STEPS_A_ROUND, cpu_precisions, in_processes, our_round
from bench.votes import SIZES, _codes
from fvae import data, drop_in, metrics
from fvae.models.vae import VAE

ROUNDS = 5
VOTES = (10_000, 5_000)  # of locatello2019, to train and to evaluate
ONE_IN = 100  # of its votes, where each image is encoded

# Both draw their own votes: accuracies of 5,000 are within 0.04 by chance alone, but for less than
# one run in a million.
_APART = 0.04


def step_rows() -> list[dict]:
    """Compare training steps of batch 64 at pythae's size of the discriminator, in milliseconds."""
    sides: dict[str, Callable] = {"pythae": pythae_round}
    for precision in cpu_precisions():
        sides[precision] = partial(our_round, precision, disc_hidden_layers=HIDDEN_LAYERS)
    seconds = in_processes(sides, ROUNDS)
    ms = {name: 1e3 / STEPS_A_ROUND * spread(each)["p50"] for name, each in seconds.items()}
    return [
        {
            "what": f"training step, its fp32, our {precision}", "peer": f"pythae {of('pythae')}",
            "theirs": ms["pythae"], "ours": ms[precision], "unit": "ms",
            "ratio": over(seconds["pythae"], seconds[precision]),
        }
        for precision in cpu_precisions()
    ]  # fmt: skip


def score_rows() -> list[dict]:
    """Compare the FactorVAE metric and MIG, of codes in memory and with an encoder, in seconds."""
    theirs, codes = disent_scores.scores(), _codes(1)[0]
    array = codes.numpy()
    of_codes = disent_scores.dataset(lambda i: array[i], (1, 1, array.shape[1]))
    pairs = {
        "FactorVAE metric of codes, 15,000 votes": (
            lambda: theirs["factor_vae"](of_codes, np.asarray, num_train=VOTES[0],
                                         num_eval=VOTES[1])["factor_vae.eval_accuracy"],
            lambda: metrics.factor_vae_score(codes, SIZES, "locatello2019").eval_score,
        ),
        "MIG of codes, 10,000 points": (
            lambda: theirs["mig"](of_codes, np.asarray)["mig.discrete_score"],
            lambda: metrics.mig_score(codes, SIZES).score,
        ),
    }  # fmt: skip
    rows = []
    for what, sides in pairs.items():
        (a, slow), (b, fast) = map(timed, sides)
        if abs(a - b) > _APART:
            raise SystemExit(f"not timed: {what}: disent says {a:.3f}, ours {b:.3f}")
        rows.append(_row(what, slow, fast))
    return [*rows, _encoded(theirs["factor_vae"])]


def _encoded(metric: Callable) -> dict:
    """The FactorVAE metric of an untrained encoder; theirs is timed on one in 100 of its votes."""
    store, model = data.load("dsprites"), VAE().eval()
    packed = store.data.numpy()

    def image(i: int) -> np.ndarray:
        return np.unpackbits(packed[i], bitorder="little").reshape(64, 64)

    def encode(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model.encode(torch.as_tensor(images).float().unsqueeze(1))[0].numpy()

    few = {"num_train": VOTES[0] // ONE_IN, "num_eval": VOTES[1] // ONE_IN}
    dataset = disent_scores.dataset(image, (64, 64, 1))
    _, slow = timed(lambda: metric(dataset, encode, num_variance_estimate=100, **few))
    _, fast = timed(lambda: drop_in.score(model.encode, store, protocol="locatello2019"))
    what = f"FactorVAE metric with the encoder, timed on one in {ONE_IN} of its votes"
    return _row(what, slow * ONE_IN, fast)


def _row(what: str, slow: float, fast: float) -> dict:
    peer = f"disent {of('disent')}"
    row = {"what": what, "peer": peer, "theirs": slow, "ours": fast, "unit": "s"}
    return row | {"ratio": float(f"{slow / fast:.3g}")}


def timed(run: Callable[[], object]) -> tuple[object, float]:
    """Return what a call returns, and its seconds."""
    started = time.perf_counter()
    found = run()
    return found, time.perf_counter() - started


def of(package: str) -> str:
    """Return the version of an installed package.

    Raises:
        SystemExit: it is not installed.
    """
    try:
        return version(package)
    except PackageNotFoundError:
        line = f"bench.peers: {package} is not installed; see bench/peers/README.md"
        print(line, file=sys.stderr)
        raise SystemExit(2) from None


def main() -> None:
    """Compare, print, keep."""
    out = options("bench.peers", __doc__).parse_args().out
    of("pythae"), of("disent")
    rows = [*step_rows(), *score_rows()]
    for row in rows:
        print("{what} ({peer}): {theirs:.3g} {unit}, ours {ours:.3g}, {ratio} x".format(
            **medians(row)))  # fmt: skip
    keep(out, {"rows": rows})


if __name__ == "__main__":
    main()
