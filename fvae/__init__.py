"""FVAE: train, score and look at FactorVAE and its baselines, at hardware speed."""

import importlib

from fvae import ops
from fvae.philox import Philox

__all__ = ["Philox", "data", "load", "metrics", "ops"]
__version__ = "0.1.0"


def __getattr__(name: str):
    # scikit-learn, h5py and safetensors are imported when first used: an op in somebody's loop
    # should not wait for them.
    if name in ("data", "metrics"):
        return importlib.import_module(f"fvae.{name}")
    if name == "load":
        return importlib.import_module("fvae.training.checkpoint").load
    raise AttributeError(f"module 'fvae' has no attribute {name!r}")
