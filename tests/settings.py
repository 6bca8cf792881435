"""What a program may have set for all of PyTorch before it calls this library."""

import contextlib
import os
import warnings

import numpy as np
import torch


@contextlib.contextmanager
def _set(switch, on, off):
    switch(on)
    try:
        yield
    finally:
        switch(off)


@contextlib.contextmanager
def _onednn_bf16():
    mkldnn = torch.backends.mkldnn
    before = mkldnn.matmul.fp32_precision, mkldnn.conv.fp32_precision
    mkldnn.matmul.fp32_precision = mkldnn.conv.fp32_precision = "bf16"
    try:
        yield
    finally:
        mkldnn.matmul.fp32_precision, mkldnn.conv.fp32_precision = before


@contextlib.contextmanager
def _warnings_are_errors():
    with _set(torch.set_warn_always, True, False), warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@contextlib.contextmanager
def _all_modes_of_autograd_off():
    with torch.inference_mode(), torch.no_grad():
        yield


@contextlib.contextmanager
def _elsewhere():
    before = os.getcwd()
    with _set(os.chdir, "/", before):
        yield


@contextlib.contextmanager
def _another_matmul_precision():
    with _set(torch.set_float32_matmul_precision, "medium", "highest"):
        yield


#: Name -> context in which it is set.
SETTINGS = {
    "default dtype float64": lambda: _set(torch.set_default_dtype, torch.float64, torch.float32),
    "default dtype bfloat16": lambda: _set(torch.set_default_dtype, torch.bfloat16, torch.float32),
    "default device": lambda: _set(torch.set_default_device, "meta", None),
    "inside a device context": lambda: torch.device("meta"),
    "gradients off": torch.no_grad,
    "inference mode": _all_modes_of_autograd_off,
    "deterministic algorithms": lambda: _set(torch.use_deterministic_algorithms, True, False),
    "warnings are errors, and always": _warnings_are_errors,
    "anomaly detection": lambda: torch.autograd.set_detect_anomaly(True),
    "autocast bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast float16": lambda: torch.autocast("cpu", torch.float16),
    "float32 products medium": _another_matmul_precision,
    "oneDNN in bfloat16": _onednn_bf16,
    "flush denormal": lambda: _set(torch.set_flush_denormal, True, False),
    "NumPy raises": lambda: np.errstate(all="raise"),
    "another folder": _elsewhere,
    "one thread": lambda: _set(torch.set_num_threads, 1, torch.get_num_threads()),
}


def state():
    """What is set now, as far as it can be asked for."""
    mkldnn = torch.backends.mkldnn
    try:
        products = torch.get_float32_matmul_precision()
    except RuntimeError:  # set in two ways
        products = "mixed"
    return (
        torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"),
        products, mkldnn.matmul.fp32_precision,
        mkldnn.conv.fp32_precision, np.geterr(), torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(), os.getcwd(),
    )  # fmt: skip
