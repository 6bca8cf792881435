"""What the machine offers: device, precision, and the C allocator's manners."""

import ctypes
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from fvae.errors import UserError

#: Arithmetic of the networks, see :func:`arithmetic`.
Precision = Literal["fp32", "tf32", "bf16", "fp16"]

#: What the networks' products are made in, for the precisions that autocast makes.
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(name: str) -> torch.device:
    """Return the device of a setting: "auto" is cuda if there is one, otherwise cpu.

    Raises:
        UserError: it is another name, or "cuda" where PyTorch sees no CUDA device.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {name}: expected auto, cpu or cuda")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch sees no CUDA device here; use --device cpu")
    return torch.device(name)


def has_fast_bf16(device: torch.device) -> bool:
    """Return whether the device multiplies bfloat16 matrices faster than float32 ones."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    features = cpu_features()
    # On an Intel whose tiles are switched off (Xeon, model 207) the instruction for pairs is
    # there, but does half of what float32's does in the same time: 77 for 154 GFLOP/s.
    pairs = features.get("avx512_bf16") and "Intel" not in str(features.get("cpu_name"))
    return bool(features.get("amx_bf16") or pairs)


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


def device_name(device: str) -> str:
    """Return what the device calls itself."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return str(cpu_features().get("cpu_name", platform.machine()))


def resolve_precision(name: Precision | Literal["auto"], device: torch.device) -> Precision:
    """Return a precision other than "auto", which is bf16 where the device is faster with it.

    Raises:
        UserError: "tf32" or "fp16" is asked for where the device has none.
    """
    if name == "auto":
        return "bf16" if has_fast_bf16(device) else "fp32"
    if name == "tf32" and not (device.type == "cuda" and has_fast_bf16(device)):
        raise UserError(
            "--precision tf32: needs a CUDA device from Ampere on; use --precision fp32 or bf16"
        )
    if name == "fp16" and device.type != "cuda":
        raise UserError("--precision fp16: needs a CUDA device; use --precision fp32 or bf16")
    return name


def autocast(device: torch.device, precision: str, cached: bool = False) -> torch.autocast:
    """Return the autocast that a precision stands for; disabled for those that need none."""
    dtype = AUTOCAST.get(precision)
    return torch.autocast(
        device.type, dtype or torch.bfloat16, enabled=dtype is not None, cache_enabled=cached
    )


def autocast_dtype(kind: str) -> torch.dtype | None:
    """Return what products are made in under the autocast in force; None where there is none.

    Args:
        kind: of device, "cpu" or "cuda".
    """
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


@contextmanager
def as_imported() -> Iterator[None]:
    """Within it, what a program may have set for all of PyTorch is as PyTorch starts with it.

    float32 and the CPU are the defaults of new tensors, gradients are on, inference mode and
    autocast are off, and float32 products on the CPU are IEEE float32; NumPy raises nothing that
    it would warn of. What was set comes back at the end. The number of threads, deterministic
    algorithms, anomaly detection and random numbers stay as they are set.
    """
    with ExitStack() as stack:
        dtype = torch.get_default_dtype()
        if dtype != torch.float32:
            stack.callback(torch.set_default_dtype, dtype)
            torch.set_default_dtype(torch.float32)
        # Where there is nothing to undo this is left alone: it would be asked at every call.
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"))
        stack.callback(_set_products(tf32=False))
        mkldnn: Any = torch.backends.mkldnn  # as cudnn below
        for backend in (mkldnn.matmul, mkldnn.conv):
            if (before := backend.fp32_precision) in ("bf16", "tf32"):
                stack.callback(setattr, backend, "fp32_precision", before)
                backend.fp32_precision = "ieee"
        yield


@contextmanager
def arithmetic(device: torch.device, precision: str = "fp32") -> Iterator[None]:
    """Within it, CUDA convolutions and matrix products of float32 tensors are what precision says.

    PyTorch's default is TF32 in convolutions and IEEE float32 in matrix products; here both are
    TF32 for "tf32", and both IEEE float32 otherwise. cuDNN picks deterministic algorithms, without
    trying them out, so that a run can be repeated bit for bit. The settings are the process's;
    what they were before comes back at the end. Does nothing where the device is a CPU.

    Args:
        device: where the work is done.
        precision: of :data:`Precision`.
    """
    if device.type != "cuda":
        yield
        return
    # The module puts an object in its place, of which the type checker does not know.
    cudnn: Any = torch.backends.cudnn
    tf32 = precision == "tf32"
    before = cudnn.deterministic, cudnn.benchmark, cudnn.conv.fp32_precision
    cudnn.deterministic, cudnn.benchmark = True, False
    cudnn.conv.fp32_precision = "tf32" if tf32 else "ieee"
    restore_products = _set_products(tf32)
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark, cudnn.conv.fp32_precision = before
        restore_products()


def _set_products(tf32: bool) -> Callable[[], None]:
    """Set the precision of float32 matrix products; return what puts it back.

    PyTorch keeps it twice, for ``torch.set_float32_matmul_precision`` and as ``fp32_precision``,
    and refuses to multiply where the two differ: so both are set by the former, and put back one
    by one.
    """
    try:
        if torch.backends.cuda.matmul.allow_tf32 == tf32:
            return lambda: None
    except RuntimeError:  # the two differ
        pass
    mkldnn: Any = torch.backends.mkldnn  # as cudnn above
    backends = torch.backends.cuda.matmul, mkldnn.matmul
    each = [backend.fp32_precision for backend in backends]
    try:
        legacy = torch.get_float32_matmul_precision()
    except RuntimeError:  # set by fp32_precision alone
        legacy = "highest"

    torch.set_float32_matmul_precision("high" if tf32 else "highest")

    def restore() -> None:
        torch.set_float32_matmul_precision(legacy)
        for backend, value in zip(backends, each, strict=True):
            backend.fp32_precision = value

    return restore


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
