"""What this machine has, and which backend each op will use."""

import importlib.util
import platform
import shutil

import torch

from fvae import data, ops
from fvae.device import device_name, has_fast_bf16
from fvae.ops.extension import NOT_YET
from fvae.ops.registry import EXTENSION, extension_error


def diagnose() -> list[tuple[str, str]]:
    """Return (thing, finding) pairs: versions, devices, compilers, the data cache, the ops."""
    cpu = torch.device("cpu")
    name = device_name("cpu")
    bf16 = "trains in bf16" if has_fast_bf16(cpu) else "no fast bf16: trains in fp32"
    rows = [
        ("python", platform.python_version()),
        ("torch", torch.__version__),
        ("triton", _triton()),
        ("cpu", f"{name}, {torch.get_num_threads()} threads, {bf16}"),
        ("cuda", _cuda()),
        ("c++ compiler", _first("c++", "g++", "clang++")),
        ("nvcc", _first("nvcc")),
        ("extension fvae._C", _extension()),
        ("data cache", str(data.cache_folder())),
    ]
    entries = data.cache_entries()
    rows += [(f"  {e.name}", f"{e.size / 1e6:.0f} MB") for e in entries]
    if not entries:
        rows.append(("", "empty: the first use of dsprites renders it"))
    for op in ops.OPS:
        used = [f"{d}: {_backend(op, d)}" for d in _device_types()]
        rows.append((op, ", ".join(used)))
    return rows


def _extension() -> str:
    """Return the parts that are there, then for each other one why it is not."""
    parts = {"cpu": ops.EXTENSION_ERROR}
    if torch.version.cuda is not None:
        parts["cuda"] = ops.CUDA_EXTENSION_ERROR
    there = [name for name, why in parts.items() if why is None]
    absent = [f"{name} part {_absence(why)}" for name, why in parts.items() if why is not None]
    return "; ".join([" and ".join(there)] * bool(there) + absent)


def _absence(why: str) -> str:
    return why if why == NOT_YET else f"not built: {why}; the reference serves"


def _backend(op: str, device_type: str) -> str:
    """Return which backend serves an op, or that its first use builds it."""
    if op in EXTENSION.get(device_type, ()) and extension_error(device_type) == NOT_YET:
        return NOT_YET
    return ops.backend_of(op, device_type)


def _device_types() -> list[str]:
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def _triton() -> str:
    if importlib.util.find_spec("triton") is None:
        return "not installed"
    import triton

    return triton.__version__


def _cuda() -> str:
    if torch.version.cuda is None:
        return "none: this torch is a CPU build"
    if not torch.cuda.is_available():
        return f"torch is built for CUDA {torch.version.cuda}, but no device is visible"
    half = (
        "bf16 and tf32" if has_fast_bf16(torch.device("cuda")) else "no bf16, but --precision fp16"
    )
    return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, {half}"


def _first(*names: str) -> str:
    return next((path for path in map(shutil.which, names) if path), "not found")
