"""csrc against PyTorch's headers: the oldest that the package supports, and those installed.

TORCH_TARGET_VERSION hides the functions that came after 2.11, but not every macro and header: one
of a later PyTorch goes unnoticed where that PyTorch is installed. Hence the list below. To compile
against other headers too, which takes no GPU and no installation, name their folders, with ``:``
between them:

    FVAE_TORCH_HEADERS=/path/to/torch/include python -m pytest tests/test_abi.py
"""

import os
import re
import subprocess
import sysconfig
from pathlib import Path

import pytest
import torch
from shared import COMPILER, ROOT, needs_compiler, needs_nvcc

CSRC = ROOT / "csrc"

# What csrc uses of PyTorch. Each stands in the headers of 2.11: look there before adding one.
IN_2_11 = {
    "<torch/csrc/stable/accelerator.h>",
    "<torch/csrc/stable/library.h>",
    "<torch/csrc/stable/ops.h>",
    "<torch/csrc/stable/tensor.h>",
    "<torch/headeronly/core/ScalarType.h>",
    "<torch/headeronly/util/Exception.h>",
    "STABLE_TORCH_LIBRARY_IMPL",
    "STD_TORCH_CHECK",
    "TORCH_BOX",
    "TORCH_ERROR_CODE_CHECK",
    "aoti_torch_get_current_cuda_stream",
    "torch::headeronly::ScalarType",
    "torch::stable::Tensor",
    "torch::stable::accelerator::DeviceGuard",
    "torch::stable::contiguous",
    "torch::stable::copy_",
    "torch::stable::empty_like",
    "torch::stable::get_num_threads",
    "torch::stable::new_empty",
    "torch::stable::new_zeros",
    "torch::stable::parallel_for",
    "torch::stable::to",
}
# Those that the build itself defines.
DEFINED = {"TORCH_EXTENSION_NAME", "TORCH_TARGET_VERSION"}
NAME = re.compile(
    r"<torch/[^>]+>|\b[A-Z0-9_]*TORCH_[A-Z0-9_]+\b|\b(?:aoti_)?torch_\w+|\b(?:torch|c10|at)(?:::\w+)+"
)

OTHERS = [Path(p) for p in os.environ.get("FVAE_TORCH_HEADERS", "").split(os.pathsep) if p]
NONE = pytest.param(
    None, marks=pytest.mark.skip(reason="FVAE_TORCH_HEADERS names no other PyTorch's headers")
)
each_headers = pytest.mark.parametrize(
    "headers", [Path(torch.__file__).parent / "include", *(OTHERS or [NONE])], ids=str
)


def test_csrc_uses_only_what_pytorch_2_11_has():
    comment = re.compile(r"//.*")
    used = {
        name
        for path in CSRC.iterdir()
        if path.suffix != ".md"
        for name in NAME.findall(comment.sub("", path.read_text()))
    }
    assert used - DEFINED == IN_2_11


@each_headers
def test_the_headers_have_what_csrc_uses(headers):
    stable = [headers / "torch/csrc/stable", headers / "torch/headeronly"]
    stable += [headers / "torch/csrc/inductor/aoti_torch/c"]
    text = "\n".join(p.read_text() for folder in stable for p in folder.rglob("*.h"))
    words = set(re.findall(r"\w+", text))
    for name in IN_2_11:
        if name[0] == "<":
            assert (headers / name[1:-1]).exists(), name
        else:
            assert name.split("::")[-1] in words, name


FLAGS = ["-std=c++20", "-DTORCH_TARGET_VERSION=0x020b000000000000"]


@each_headers
@needs_compiler
@pytest.mark.compiles
def test_the_cpu_ops_compile(headers):
    flags = [*FLAGS, "-fsyntax-only", "-DFVAE_ONE_TARGET", "-DTORCH_EXTENSION_NAME=_C"]
    flags += ["-isystem", str(headers), "-isystem", sysconfig.get_path("include")]
    for source in sorted(CSRC.glob("*.cpp")):
        subprocess.run([COMPILER, *flags, str(source)], check=True)


@each_headers
@needs_nvcc
@pytest.mark.compiles
def test_the_cuda_ops_compile(headers, tmp_path):
    # To PTX and no further: the kernels' machine code is csrc/test_csrc.py's subject.
    flags = [*FLAGS, "-DUSE_CUDA", "-isystem", str(headers), "-arch=compute_80", "-c"]
    output = str(tmp_path / "device.o")
    subprocess.run(["nvcc", *flags, str(CSRC / "device.cu"), "-o", output], check=True)
