"""Build ``fvae._C`` where that is possible; where it is not, install without it.

Runs inside the package's build, as a file of its own: nothing of fvae is imported here.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools.command.build_ext import build_ext


def toolkit() -> str | None:
    """Folder of the CUDA toolkit that ``nvcc`` belongs to, or None.

    The nvcc on PATH may be a wrapper script elsewhere, so nvcc is asked where it lives.
    """
    if not shutil.which("nvcc"):
        return None
    asked = subprocess.run(
        ["nvcc", "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True
    )
    here = re.search(r"_HERE_=(\S+)", asked.stderr)
    return str(Path(here[1]).parent) if here else None


if not os.environ.get("CUDA_HOME") and (_found := toolkit()):
    os.environ["CUDA_HOME"] = _found  # torch reads it when its module is imported

try:
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension
except Exception as error:  # a broken torch raises anything
    torch, BuildExtension, _WHY_NOT = None, build_ext, f"torch cannot be imported ({error})"

# The oldest PyTorch whose stable ABI the extension uses: 2.11.
_TARGET = "-DTORCH_TARGET_VERSION=0x020b000000000000"
_CXX = ["-O3", "-g0", "-std=c++20", "-Wno-psabi", _TARGET]
# Also the newest architecture as PTX, for cards that come later.
_ARCHITECTURES = "8.0;9.0a;10.0+PTX"


class BuildExt(BuildExtension):
    """Compile the CPU ops, and the CUDA ops where PyTorch is a CUDA build and nvcc exists."""

    def finalize_options(self) -> None:
        """Swap the extension of pyproject.toml for one with PyTorch's flags."""
        if torch is None:
            _say(_WHY_NOT)
            self.distribution.ext_modules = []
        else:
            found = self.distribution.ext_modules or []
            # "torch" among the libraries: swapped already, for another command of this build.
            self.distribution.ext_modules = [
                e if "torch" in e.libraries else _with_torch(e.name, e.sources, e.depends)
                for e in found
            ]
        super().finalize_options()

    def run(self) -> None:
        """Build; what goes wrong is said, and the package is installed without the extension."""
        try:
            super().run()
        except Exception as error:
            _say(f"the compiler failed ({' '.join(str(error).split())[:300]})")
            self.extensions = []


def _with_torch(name: str, sources: list[str], depends: list[str]):
    flags = {"cxx": _CXX}
    if torch.version.cuda is None or toolkit() is None:
        kind = CppExtension
    else:
        kind, sources = CUDAExtension, [*sources, "csrc/device.cu"]
        flags["nvcc"] = ["-O3", "-std=c++20", _TARGET, "-DUSE_CUDA"]
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", _ARCHITECTURES)
    return kind(name, sources, depends=depends, py_limited_api=True, extra_compile_args=flags)


def _say(why: str) -> None:
    print(
        f"fvae: the C++ extension is not built: {why}; the reference serves instead",
        file=sys.stderr,
    )
