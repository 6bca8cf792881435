"""DCI by boosted trees, ours against scikit-learn's: seconds, and how far the scores are apart.

    python -m bench.trees                # five sets of codes, 2,000 + 1,000 rows, 4 factors
    python -m bench.trees --full         # the study's size: 10,000 + 5,000 rows, 113 classes

Scikit-learn's seed decides among equally good splits, so its own scores differ from seed to seed:
the last column says by how much, as the greatest difference of D, C and I of two seeds.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.ensemble import GradientBoostingClassifier

from bench.record import keep, options
from fvae import ops
from fvae.metrics.dci import _one_sided

SIZES, SMALL = (3, 6, 40, 32, 32), (2, 3, 6, 10)


def codes_of(name: str, labels: np.ndarray, sizes: tuple[int, ...], dims: int) -> np.ndarray:
    """Codes of one kind, float64 ``[n, dims]``, for labels ``[n, K]`` of factors of some sizes."""
    rng = np.random.default_rng(1)
    noise = rng.standard_normal((len(labels), dims))
    scaled = (labels + 0.5) / np.array(sizes) - 0.5
    padded = np.concatenate((scaled, 0.05 * noise[:, len(sizes) :]), axis=1)
    if name == "random":
        return noise
    if name == "perfect":
        return padded
    if name == "rotated, noisy":
        return padded @ np.linalg.qr(rng.standard_normal((dims, dims)))[0] + 0.1 * noise
    if name == "mixture":  # as a trained model's: bent, some collapsed, one dimension for two
        mixed = np.tanh(2 * padded @ (np.eye(dims) + 0.3 * rng.standard_normal((dims, dims))))
        return mixed * np.where(np.arange(dims) < dims - 2, 1, 0.01) + 0.05 * noise
    ties = np.round(padded @ (np.eye(dims) + 0.2 * rng.standard_normal((dims, dims))) * 8)
    ties[:, -1] = 1.0
    return ties


def dci(train: np.ndarray, y: np.ndarray, test: np.ndarray, truth: np.ndarray,
        seed: int | None) -> np.ndarray:  # fmt: skip
    """D, C and I of ours (seed None) or of scikit-learn's with a seed."""
    x, unseen = torch.from_numpy(train), torch.from_numpy(test)
    labels = torch.from_numpy(y.T.copy()).double()
    if seed is None:
        importance, predicted = ops.boosted_trees(x, labels, [False] * len(labels), unseen)
    else:
        importance, predicted = sklearn_trees(train, y, test, seed)
    right = float((predicted.numpy().T == truth).mean())
    r = importance.numpy().T
    return np.array([_one_sided(r), _one_sided(r.T), right])


def sklearn_trees(
    train: np.ndarray, y: np.ndarray, test: np.ndarray, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Importance ``[K, d]`` and predictions ``[K, T]`` of scikit-learn's classifiers."""
    models = [
        GradientBoostingClassifier(random_state=seed).fit(train.astype(np.float32), column)
        for column in y.T
    ]
    importance = np.stack([m.feature_importances_ for m in models])
    predicted = np.stack([m.predict(test.astype(np.float32)) for m in models])
    return torch.from_numpy(importance), torch.from_numpy(predicted)


def timed(run: Callable[..., np.ndarray], *args: Any) -> tuple[np.ndarray, float, float]:
    """What it returns, and wall and processor seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    return run(*args), time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    """Print the table."""
    parser = options("bench.trees", __doc__)
    parser.add_argument("--full", action="store_true", help="the study's size, ours alone")
    args = parser.parse_args()
    full = args.full
    sizes, rows, tests, dims = (SIZES, 10_000, 5_000, 10) if full else (SMALL, 2_000, 1_000, 6)
    rng = np.random.default_rng(0)
    labels = np.stack([rng.integers(0, n, rows + tests) for n in sizes], axis=1)
    threads = torch.get_num_threads()
    print(f"{rows:,} + {tests:,} rows, d = {dims}, factors {sizes}, {threads} threads")
    found = {}
    for name in ("random", "perfect", "rotated, noisy", "mixture", "ties, a constant"):
        z = codes_of(name, labels, sizes, dims)
        parts = z[:rows], labels[:rows], z[rows:], labels[rows:]
        ours, wall, cpu = timed(dci, *parts, None)
        found[name] = {"seconds": wall, "processor_seconds": cpu}
        print(f"{name:17} D C I {ours.round(4)} {wall:.1f} s ({cpu:.1f} s of processor)", end="")
        if not full:
            theirs, _, theirs_cpu = timed(dci, *parts, 0)
            apart, seeds = (float(np.abs(each - theirs).max()) for each in (ours, dci(*parts, 1)))
            print(f", scikit-learn {theirs_cpu:.1f} s of processor, {theirs_cpu / cpu:.0f} x;"
                  f" apart {apart:.5f}, its seeds {seeds:.5f}", end="")  # fmt: skip
            found[name] |= {"sklearn_processor_seconds": theirs_cpu, "ratio": theirs_cpu / cpu}
            found[name] |= {"apart": apart, "sklearn_seeds_apart": seeds}
        print(flush=True)
    keep(args.out, {"rows": rows, "codes": found})


if __name__ == "__main__":
    main()
