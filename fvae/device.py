"""What the machine offers: device and precision."""

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
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def resolve_precision(name: str, device: torch.device) -> str:
    """Return "fp32" or "bf16"; "auto" is bf16 where the device has it in hardware."""
    if name != "auto":
        return name
    return "bf16" if has_fast_bf16(device) else "fp32"
