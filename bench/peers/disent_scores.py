"""disent's FactorVAE metric and MIG, on codes in memory and with an encoder."""

import importlib.util
import sys
import types
from typing import Any

from bench.votes import SIZES


def dataset(rows: Any, shape: tuple[int, int, int]) -> Any:
    """Return disent's data set of ``rows``, one for each image of the dSprites grid.

    Args:
        rows: what it gives for an image by its number.
        shape: height, width and channels that it believes them to have.
    """
    _without_torchvision()
    from disent.dataset import DisentDataset
    from disent.dataset.data import GroundTruthData

    class Rows(GroundTruthData):
        factor_names = ("shape", "scale", "orientation", "posX", "posY")
        factor_sizes = SIZES
        img_shape = shape

        def _get_observation(self, idx: int) -> Any:
            return rows(idx)

    return DisentDataset(Rows())


def scores() -> dict[str, Any]:
    """Return its metrics by name."""
    _without_torchvision()
    from disent.metrics import metric_factor_vae, metric_mig

    return {"factor_vae": metric_factor_vae, "mig": metric_mig}


def _without_torchvision() -> None:
    """Stand in for torchvision where it is not there: disent's data sets name it, and no metric."""
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision"):
        return

    import torchmetrics  # noqa: F401 - which looks for torchvision itself, and goes without

    class Anything(types.ModuleType):
        __path__: list[str] = []

        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (), {})

    for name in ("", ".datasets", ".models", ".transforms", ".transforms.functional"):
        module = Anything("torchvision" + name)
        module.__spec__ = importlib.util.spec_from_loader(module.__name__, None)
        sys.modules[module.__name__] = module
        parent, _, last = module.__name__.rpartition(".")
        if parent:
            setattr(sys.modules[parent], last, module)
