"""What the machine offers: device, precision, and the C allocator's manners."""

import ctypes
from collections.abc import Mapping
from pathlib import Path

import torch

from fvae.errors import UserError


def resolve_device(name: str) -> torch.device:
    """Return the device of a setting: "auto" is cuda if there is one, otherwise cpu.

    Raises:
        UserError: "cuda" is asked for where PyTorch sees no CUDA device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch sees no CUDA device here; use --device cpu")
    return torch.device(name)


def has_fast_bf16(device: torch.device) -> bool:
    """Return whether the device multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    features = cpu_features()
    return bool(features.get("avx512_bf16") or features.get("amx_bf16"))


def cpu_features() -> Mapping[str, object]:
    """Return what the processor has by name, such as "avx512_bf16", and "cpu_name"."""
    if hasattr(torch.cpu, "get_capabilities"):
        return torch.cpu.get_capabilities()
    # Older PyTorch: Linux lists the same names.
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    values = {name.strip(): value for name, _, value in (line.partition(":") for line in lines)}
    features: dict[str, object] = dict.fromkeys(values.get("flags", "").split(), True)
    return features | {"cpu_name": values.get("model name", "unknown").strip()}


def resolve_precision(name: str, device: torch.device) -> str:
    """Return "fp32" or "bf16"; "auto" is bf16 where the device has it in hardware."""
    if name != "auto":
        return name
    return "bf16" if has_fast_bf16(device) else "fp32"


def keep_freed_memory() -> None:
    """Tell glibc to keep freed blocks instead of returning them to the kernel.

    A training step on the CPU frees and takes again the same tens of megabytes. By default glibc
    gives them back and the kernel clears every page anew, which costs a quarter of the step.
    Process-wide, so programs call it, not imports. Does nothing under another C library.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    m_trim_threshold, m_mmap_threshold = -1, -3
    mallopt(m_mmap_threshold, 1 << 30)
    mallopt(m_trim_threshold, (1 << 31) - 1)
