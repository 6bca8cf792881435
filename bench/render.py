"""Images drawn in a second, of both rendered data sets: ``python -m bench.render``."""

import json
import statistics
import time
from collections.abc import Callable

import numpy as np

from fvae.data import dsprites, render_dsprites, render_shapes3d, shapes3d_scene

IMAGES = 4096
ROUNDS = 7


def images_per_second(draw: Callable[[np.ndarray], np.ndarray], sizes: tuple[int, ...]) -> float:
    """The median over rounds, for classes drawn uniformly from the grid.

    Args:
        draw: makes the images of classes ``[n, K]``.
        sizes: how many values each of the K factors takes.
    """
    classes = np.random.default_rng(0).integers(0, sizes, (IMAGES, len(sizes)))
    draw(classes)  # the first call may prepare what later ones use
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        draw(classes)
        seconds.append(time.perf_counter() - start)
    return IMAGES / statistics.median(seconds)


def main() -> None:
    """Measure and print the JSON line."""
    sets = {
        "shapes3d": (render_shapes3d, shapes3d_scene.SIZES),
        "dsprites": (render_dsprites, dsprites.SIZES),
    }
    print(json.dumps({f"{k}_images_per_s": round(images_per_second(*v)) for k, v in sets.items()}))


if __name__ == "__main__":
    main()
