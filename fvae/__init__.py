"""FVAE: train, score and look at FactorVAE and its baselines, at hardware speed."""

import importlib

TYPE_CHECKING = False  # that of `typing`, whose import takes a while in which Ctrl-C is not quiet
if TYPE_CHECKING:
    from typing import Any

    from fvae import data, metrics, ops
    from fvae.philox import Philox
    from fvae.training.checkpoint import load

__all__ = ["Philox", "data", "load", "metrics", "ops"]
__version__ = "0.1.0"


def __getattr__(name: str) -> "Any":
    # Imported when first used: an op in somebody's loop should not wait for scikit-learn, h5py and
    # safetensors, nor the command's first line for PyTorch.
    if name in ("data", "metrics", "ops"):
        return importlib.import_module(f"fvae.{name}")
    if name == "load":
        return importlib.import_module("fvae.training.checkpoint").load
    if name == "Philox":
        from fvae.philox import Philox

        globals()[name] = Philox  # the next look finds it at once
        return Philox
    raise AttributeError(f"module 'fvae' has no attribute {name!r}")
