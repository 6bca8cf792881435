"""The registry of the ops: schemas, backends, and the choice among them.

Each op is registered once as ``torch.ops.fvae.<name>`` with a schema and a fake; the reference
implementation serves every device, and a faster backend registers itself for the devices it serves.
"""

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from fvae.ops import reference

#: Registered op name -> schema.
SCHEMAS = {
    "gather_batch": "(Tensor data, int[] image_shape, bool packed, int batch_size, Tensor seed,"
    " Tensor step, int lane, ScalarType dtype) -> (Tensor, Tensor)",
    "reparameterize": "(Tensor mu, Tensor logvar, Tensor seed, Tensor step, int lane)"
    " -> (Tensor, Tensor)",
    "reparameterize_backward": "(Tensor grad_z, Tensor grad_kl, Tensor mu, Tensor logvar,"
    " Tensor seed, Tensor step, int lane) -> (Tensor, Tensor)",
    "permute_dims": "(Tensor z, Tensor seed, Tensor step, int lane) -> Tensor",
    "permute_dims_backward": "(Tensor grad, Tensor seed, Tensor step, int lane) -> Tensor",
    "logit_ratio": "(Tensor logits_z, Tensor logits_perm)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "bernoulli_nll": "(Tensor logits, Tensor target) -> (Tensor, Tensor)",
    "metric_votes": "(Tensor codes, int[] factor_sizes, int votes, int samples, bool balanced,"
    " Tensor scale, Tensor active, Tensor seed, Tensor step, int lane) -> Tensor",
    "pair_features": "(Tensor codes, int[] factor_sizes, int points, int pairs, bool balanced,"
    " Tensor seed, Tensor step, int lane) -> (Tensor, Tensor)",
    "grouped_variance": "(Tensor codes, int[] factor_sizes) -> Tensor",
}

#: The ops of the library: those of a training step in its order, then those of the metrics.
OPS = (
    "gather_batch",
    "reparameterize",
    "permute_dims",
    "logit_ratio",
    "bernoulli_nll",
    "metric_votes",
    "pair_features",
    "grouped_variance",
)
#: Those of the metrics, which the C++/CUDA extension has.
METRICS = OPS[-3:]


def _triton(name: str) -> Callable:
    """Return the Triton launcher of an op; the kernels are imported at its first call."""

    def run(*args):
        from fvae import kernels

        if any(isinstance(a, Tensor) and a.dtype == torch.float64 for a in args):
            raise TypeError(
                f"{name}: backend='triton' computes in float32, got float64; pass"
                " backend='reference'"
            )
        return kernels.IMPLEMENTATIONS[name](*args)

    return run


#: Backend name -> registered op name -> implementation.
BACKENDS: dict[str, dict[str, Callable]] = {
    "reference": {name: getattr(reference, name) for name in SCHEMAS}
}
if importlib.util.find_spec("triton"):
    BACKENDS["triton"] = {name: _triton(name) for name in SCHEMAS if name not in METRICS}

#: The library that owns the ops' schemas and fakes.
LIBRARY = torch.library.Library("fvae", "DEF")
for _name, _schema in SCHEMAS.items():
    # The outputs never alias an input and nothing is mutated: tagged so for the compiler.
    LIBRARY.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(_name, BACKENDS["reference"][_name], "CompositeExplicitAutograd")
for _name, _run in BACKENDS.get("triton", {}).items():
    LIBRARY.impl(_name, _run, "CUDA")


_DEVICE_OF = {"triton": "cuda", "cuda": "cuda", "cpp": "cpu"}


def _extension(name: str, backend: str) -> Callable:
    """Return an op of the C++/CUDA extension, which the dispatcher has under its device."""
    device = _DEVICE_OF[backend]

    def run(codes: Tensor, *args):
        if codes.device.type != device:
            raise ValueError(
                f"{name}: backend={backend!r} needs {device} tensors, got codes on {codes.device}"
            )
        return getattr(torch.ops.fvae, name)(codes, *args)

    return run


def _load(module: str) -> str | None:
    """Import a part of the extension, which registers its ops; return why it is absent, or None."""
    try:
        importlib.import_module(f"fvae.{module}")
    except ImportError as error:
        # Left by a build that failed: it knows more than "No module named".
        note = Path(__file__).parents[1] / f"{module}.not_built.txt"
        return note.read_text().strip() if note.exists() else str(error)
    return None


#: Why the C++ ops are not there; None where they are.
EXTENSION_ERROR: str | None = _load("_C")
#: Why the CUDA ops are not there; None where they are, and where PyTorch is not a CUDA build.
CUDA_EXTENSION_ERROR: str | None = _load("_C_cuda") if torch.version.cuda else None

if EXTENSION_ERROR is None:
    BACKENDS["cpp"] = {name: _extension(name, "cpp") for name in METRICS}
if torch.version.cuda and CUDA_EXTENSION_ERROR is None:
    BACKENDS["cuda"] = {name: _extension(name, "cuda") for name in METRICS}


def backend_of(op: str, device_type: str) -> str:
    """Return the name of the backend that ``backend=None`` picks for an op on a device type."""
    for name, implementations in BACKENDS.items():
        if name != "reference" and op in implementations and device_type == _DEVICE_OF[name]:
            return name
    return "reference"


def implementation(name: str, backend: str | None) -> Callable:
    """Return the raw op of a backend, or the dispatcher's op where backend is None."""
    if backend is None:
        return getattr(torch.ops.fvae, name)
    if backend not in BACKENDS or name not in BACKENDS[backend]:
        known = ", ".join(b for b, table in BACKENDS.items() if name in table)
        raise ValueError(f"backend: got {backend!r}, but {name} has {known}")
    return BACKENDS[backend][name]
