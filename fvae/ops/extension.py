"""The C++/CUDA extension: loaded where it was built, and built at first use where it was not.

An isolated build of the package has no PyTorch and so no extension. The sources travel with the
package, and the first call of an op that the extension has builds them, once for a PyTorch, a
compiler and a GPU, into a folder of the user's cache; later processes load what is there.
``FVAE_BUILD=0`` keeps the first use from building.
"""

import hashlib
import importlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from fvae.files import cache_folder, write_atomically

#: Why a part is not there, as long as nothing says that it cannot be built.
NOT_YET = "not built yet: the first use builds it"

_PACKAGE = Path(__file__).parents[1]
_BUILDER = _PACKAGE / "_build.py"
_UNFINISHED = ".building-"


class Part:
    """One module of the extension: the ops of one type of device."""

    def __init__(self, module: str, language: str, seconds: int, on_load: Callable[[], None]):
        """Name a module, what it is written in, about how long it builds, whom to tell it is in."""
        self.module, self.language, self.seconds = module, language, seconds
        self._on_load = on_load
        #: Whether the dispatcher has the ops.
        self.loaded = False
        self._not_installed: str | None = None
        self._looked = self._warned = False
        self._error: str | None = NOT_YET
        self._lock = threading.RLock()

    def load_installed(self) -> bool:
        """Load the part if it was built when the package was installed; return whether it was."""
        try:
            importlib.import_module(f"fvae.{self.module}")
        except ImportError as error:
            # Left by an installation that could not build it: it knows more.
            self._not_installed = _read(_PACKAGE / f"{self.module}.not_built.txt") or str(error)
            return False
        self._looked, self._error, self.loaded = True, None, True
        self._on_load()
        return True

    def error(self) -> str | None:
        """Return why the part is not loaded, or None; load it if the cache has it."""
        with self._lock:
            if not self._looked:
                self._looked, self._error = True, self._look()
            return self._error

    def build(self) -> str | None:
        """Build and load the part unless something speaks against it; return as :meth:`error`.

        Says on stderr that it builds and, once a process, why the slow reference serves.
        """
        with self._lock:
            if self.error() == NOT_YET:
                self._error = self._build()
            if self._error and not self._warned and not _switched_off():
                self._warned = True
                print(
                    f"fvae: warning: the slow reference serves, without the {self.language}"
                    f" extension: {self._error}",
                    file=sys.stderr,
                )
            return self._error

    def _look(self) -> str | None:
        """Load the part from the cache; return why it is not there, or None. Builds nothing."""
        if not _sources().is_dir():
            return f"{self._not_installed}; {_sources()} is not there to build it from"
        folder = self._folder()
        if os.path.exists(self._file(folder)):
            return self._load(folder)
        if _switched_off():
            return f"{self._not_installed}; FVAE_BUILD=0 keeps the first use from building it"
        return self._missing_tool() or self._earlier_failure(folder) or NOT_YET

    def _build(self) -> str | None:
        """Build the part, or wait for the process that does; return what went wrong, or None."""
        folder = self._folder()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _only_process(folder.parent):
                if not self._file(folder).exists() and not self._note(folder).exists():
                    self._compile(folder)
        except OSError as error:
            return f"cannot build in {folder.parent} ({error}); FVAE_CACHE names another folder"
        except ImportError:
            return "this system has no file locks"
        return self._earlier_failure(folder) or self._load(folder)

    def _compile(self, folder: Path) -> None:
        """Compile into a folder: the part, whole or not at all, or a note of what went wrong."""
        print(
            f"fvae: building the {self.language} extension, once, about {self.seconds} s ...",
            file=sys.stderr,
        )
        for left in folder.parent.glob(_UNFINISHED + "*"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=_UNFINISHED) as temporary:
            # A process of its own: setuptools and PyTorch's build change the one they run in.
            # -P: the builder's folder holds modules whose names are not meant for everybody.
            ran = subprocess.run(
                [sys.executable, "-P", str(_BUILDER), self.module, str(_sources())],
                cwd=temporary, env=self._environment(), stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace",
            )  # fmt: skip
            built = Path(temporary, "fvae")
            if self._file(built).exists():
                write_atomically(self._file(folder), self._file(built).read_bytes())
            else:
                said = ran.stderr.strip().rpartition("\n")[2] or f"exit status {ran.returncode}"
                write_atomically(self._note(folder), _read(self._note(built)) or said)

    def _load(self, folder: Path) -> str | None:
        """Register a built part's ops; return what went wrong, or None."""
        try:
            torch.ops.load_library(str(self._file(folder)))
        except OSError as error:
            return f"{error}; to build it again, delete {folder}"
        self.loaded = True
        self._on_load()
        return None

    def _earlier_failure(self, folder: Path) -> str | None:
        note = self._note(folder)
        why = _read(note)
        return why and f"{why}; to try again, delete {note}"

    def _file(self, folder: Path) -> Path:
        return folder / f"{self.module}.abi3.so"

    def _note(self, folder: Path) -> Path:
        return folder / f"{self.module}.not_built.txt"

    def _environment(self) -> dict[str, str]:
        """Return the builder's environment."""
        # ninja is found by PATH alone, and a virtual environment need not be activated.
        path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
        return os.environ | {"PATH": path} | self._architectures()

    def _architectures(self) -> dict[str, str]:
        """Return the GPUs to build for, as PyTorch takes them: those of this machine, if any."""
        if self.language != "CUDA" or "TORCH_CUDA_ARCH_LIST" in os.environ:
            return {}
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        found = {torch.cuda.get_device_capability(i) for i in range(count)}
        names = ";".join(f"{major}.{minor}" for major, minor in sorted(found))
        return {"TORCH_CUDA_ARCH_LIST": names} if names else {}

    def _tools(self) -> dict[str, str | None]:
        """Return each compiler's command, and the program that it runs or None."""
        command = os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++"
        tools = {command: shutil.which(shlex.split(command)[0])}
        if self.language == "CUDA":
            home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
            tools["nvcc"] = shutil.which("nvcc") or shutil.which(home / "bin/nvcc")
        return tools

    def _missing_tool(self) -> str | None:
        for command, program in self._tools().items():
            if program is None:
                return f"there is no compiler: {command} is not found"
        return None

    def _folder(self) -> Path:
        """Return the folder of what is built from these sources by these tools for this PyTorch."""
        names = ["CC", "CXX", "CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS"]
        if self.language == "CUDA":
            names += ["CUDA_HOME", "NVCC_APPEND_FLAGS", "TORCH_CUDA_ARCH_LIST"]
        facts = [torch.__version__, platform.machine()]
        for command, program in self._tools().items():
            changed = Path(program).stat().st_mtime_ns if program else None
            facts.append(f"{command} {program and os.path.realpath(program)} {changed}")
        facts += [f"{name}={os.environ.get(name)}" for name in names]
        facts += self._architectures().values()
        digest = hashlib.sha256("\n".join(facts).encode())
        for path in (_BUILDER, *sorted(_sources().glob("*.[ch]*"))):
            digest.update(path.read_bytes())
        return _cache() / f"torch-{torch.__version__}-{digest.hexdigest()[:16]}"


def _cache() -> Path:
    """The folder of what the first use builds, beside the cached data sets."""
    return cache_folder() / "extension"


def _switched_off() -> bool:
    return os.environ.get("FVAE_BUILD") == "0"


def _sources() -> Path:
    """Return the folder of the sources: in the installed package, or in the working tree."""
    installed = _PACKAGE / "csrc"
    return installed if installed.is_dir() else _PACKAGE.parent / "csrc"


def _read(note: Path) -> str | None:
    """Return what a note says, or None where there is none."""
    try:
        return note.read_text().strip()
    except OSError:
        return None


@contextmanager
def _only_process(folder: Path) -> Iterator[None]:
    """Wait until no other process is in here for a folder. Raises OSError.

    The system lets go of the lock of a process that is killed.
    """
    import fcntl  # not on every system, and needed only where something is built

    with open(folder / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(
                "fvae: waiting for the process that builds the C++ extension ...", file=sys.stderr
            )
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
