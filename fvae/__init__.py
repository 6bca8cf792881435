"""FVAE: train, score and look at FactorVAE and its baselines, at hardware speed."""

import importlib
from typing import TYPE_CHECKING, Any

from fvae import ops
from fvae.philox import Philox

if TYPE_CHECKING:
    from fvae import data, metrics
    from fvae.training.checkpoint import load

__all__ = ["Philox", "data", "load", "metrics", "ops"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # scikit-learn, h5py and safetensors are imported when first used: an op in somebody's loop
    # should not wait for them.
    if name in ("data", "metrics"):
        return importlib.import_module(f"fvae.{name}")
    if name == "load":
        return importlib.import_module("fvae.training.checkpoint").load
    raise AttributeError(f"module 'fvae' has no attribute {name!r}")
