"""Build ``fvae._C`` and ``fvae._C_cuda`` where that is possible; where not, install without.

Runs inside the package's build, and as a program at the first use of what that could not build
(``fvae.ops.extension``). A file of its own: nothing of fvae is imported here.
"""

import copy
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from setuptools import Extension, setup
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
    from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension
except Exception as error:  # a broken torch raises anything
    torch, BuildExtension, _WHY_NOT = None, build_ext, f"torch cannot be imported ({error})"
else:
    # CUDA_HOME from the environment, from nvcc on PATH or from the usual folder.
    _NVCC = CUDA_HOME is not None and (Path(CUDA_HOME) / "bin/nvcc").exists()

# The oldest PyTorch whose stable ABI the extension uses: 2.11.
_TARGET = "-DTORCH_TARGET_VERSION=0x020b000000000000"
# Without errno a root can be one of a vector.
_CXX = ["-O3", "-g0", "-std=c++20", "-fno-math-errno", "-Wno-psabi", _TARGET]
# Also the newest architecture as PTX, for cards that come later.
_ARCHITECTURES = "8.0;9.0a;10.0+PTX"


class BuildExt(BuildExtension):
    """Compile the CPU ops and, where PyTorch is a CUDA build, the CUDA ops, each by itself.

    Where one cannot be built, the package is installed without it. The reason is printed, and kept
    in a file beside the module's place, where ``fvae doctor`` reads it.
    """

    def finalize_options(self) -> None:
        """Swap the extensions of pyproject.toml for those with PyTorch's flags."""
        if torch is not None:
            # "torch" among the libraries: swapped already, for another command of this build.
            self.distribution.ext_modules = [
                e if "torch" in e.libraries else _with_torch(e)
                for e in self.distribution.ext_modules or []
                if torch.version.cuda or not _is_cuda(e)
            ]
        super().finalize_options()

    def run(self) -> None:
        """Build; leave a note for each part that is not there, and none for one that is."""
        self.why_not: dict[str, str] = {}
        names = [e.name for e in self.extensions]
        super().run()
        for name in names:
            module = Path(self.get_ext_fullpath(name))
            note = module.with_name(name.rpartition(".")[2] + ".not_built.txt")
            if why := self.why_not.get(name):
                module.unlink(missing_ok=True)  # of an earlier build
                module.parent.mkdir(parents=True, exist_ok=True)
                note.write_text(why + "\n")
            else:
                note.unlink(missing_ok=True)

    def build_extensions(self) -> None:
        """Build one part after another, whether or not the one before could be built."""
        parts, compiler, folder = self.extensions, self.compiler, self.build_temp
        built = []
        for part in parts:
            # PyTorch patches the compiler for what it builds; both parts compile module.cpp.
            self.extensions, self.compiler = [part], copy.copy(compiler)
            self.build_temp = os.path.join(folder, part.name)
            if why := _obstacle(part) or self._compile():
                print(f"fvae: the C++ extension is not built: {part.name}: {why}", file=sys.stderr)
                self.why_not[part.name] = why
            else:
                built.append(part)
        self.extensions, self.compiler, self.build_temp = built, compiler, folder

    def _compile(self) -> str | None:
        """Build ``self.extensions``; return what went wrong, or None."""
        failure = None
        with tempfile.TemporaryFile("w+", errors="replace") as log:
            with _printing_to(log.fileno()):
                try:
                    super().build_extensions()
                except Exception as error:  # PyTorch's checks and each compiler have their own
                    failure = error
            log.seek(0)
            text = log.read()
        print(text, end="")
        if failure is None:
            return None
        # The compiler's first complaint, from the name of the file on, says more than PyTorch's
        # exception about it.
        said = re.search(r"[^/\n]*\b(?:error|nvcc fatal)\s*:.*", text)
        why = " ".join((said[0] if said else str(failure)).split())[:300]
        return f"the compiler failed ({why})"


@contextmanager
def _printing_to(file: int) -> Iterator[None]:
    """Send what this process and its children print to a file descriptor."""
    kept = [os.dup(1), os.dup(2)]
    try:
        _print_to(file, file)
        yield
    finally:
        _print_to(*kept)
        for descriptor in kept:
            os.close(descriptor)


def _print_to(out: int, err: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(out, 1)
    os.dup2(err, 2)


def _is_cuda(extension) -> bool:
    return any(source.endswith(".cu") for source in extension.sources)


def _obstacle(extension) -> str | None:
    """Return why an extension cannot even be tried, or None."""
    if torch is None:
        return _WHY_NOT
    if _is_cuda(extension) and not _NVCC:
        return f"PyTorch is built for CUDA {torch.version.cuda}, but there is no nvcc"
    return None


def _with_torch(extension):
    kind, flags = CppExtension, {"cxx": _CXX}
    if _is_cuda(extension):
        kind = CUDAExtension if _NVCC else CppExtension  # the latter is never compiled
        flags["nvcc"] = ["-O3", "-std=c++20", _TARGET, "-DUSE_CUDA"]
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", _ARCHITECTURES)
    return kind(
        extension.name, extension.sources, depends=extension.depends, py_limited_api=True,
        extra_compile_args=flags,
    )  # fmt: skip


def main(module: str, sources: str) -> None:
    """Build one module, from the sources in a folder, to fvae/ in the current folder.

    Leaves the module there or, where it cannot be built, a note that says why. The ops are
    registered when the file is loaded: it need not be a Python module, and is built without the
    headers of Python.
    """
    parts = {
        "_C": (
            *("host.cpp", "pairs.cpp", "adam.cpp", "ends.cpp", "convs.cpp", "winograd.cpp"),
            *("pixels.cpp", "words.cpp"),
        ),
        "_C_cuda": ("device.cu",),
    }
    names = parts[module]
    setup(
        name="fvae",
        ext_modules=[
            Extension(f"fvae.{module}", [str(Path(sources, n)) for n in names], py_limited_api=True)
        ],
        cmdclass={"build_ext": BuildExt},
        script_args=["build_ext", "--build-lib", ".", "--build-temp", "objects"],
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
