"""Packaging: without a compiler, without CUDA, without torch; what a distribution holds.

Environments are new ones that see this one's PyTorch, so that nothing is downloaded.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import textwrap
import venv
import zipfile
from functools import partial
from pathlib import Path

import pytest

pytestmark = pytest.mark.compiles  # builds of the package, which compile it again and again

ROOT = Path(__file__).parent.parent


def _wheel(source, folder, **environment):
    command = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-v"]
    result = subprocess.run(
        [*command, "--wheel-dir", str(folder), str(source)],
        capture_output=True, text=True, env=os.environ | environment,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel, result.stdout + result.stderr


@pytest.fixture
def source(tmp_path):
    """A copy of what is built, so that nothing is left in the working tree."""
    copy = tmp_path / "source"
    for name in ("fvae", "kernels", "csrc"):
        shutil.copytree(
            ROOT / name,
            copy / name,
            ignore=shutil.ignore_patterns("*.so", "*.not_built.txt", "__pycache__"),
        )
    for path in ROOT.glob("*.*"):
        if path.is_file():
            shutil.copy(path, copy / path.name)
    shutil.copy(ROOT / "LICENSE", copy)
    return copy


def _soon_compiled(source):
    """Leave of the extension what loads: what its ops compute is no subject here."""
    for path in (source / "csrc").glob("*.cpp"):
        if path.name != "module.cpp":
            path.write_text("")


def _doctor(wheel, folder, **environment):
    """Return the names in a wheel, and what ``fvae doctor`` says of it in a process of its own."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(folder)
    # An editable install of this very environment must not lend its extension.
    code = (
        "import sys; sys.meta_path = [f for f in sys.meta_path if 'ditable' not in repr(f)];"
        "import fvae.doctor as d, json; print(json.dumps(d.diagnose()))"
    )
    environment |= {"FVAE_CACHE": str(folder / "cache")}
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, check=True, cwd=folder, env=os.environ | environment,
    ).stdout  # fmt: skip
    return names, dict(json.loads(found))


class Fresh:
    """A new environment with the package installed, which sees this one's other packages."""

    def __init__(self, folder):
        self.folder, self.python = folder, folder / "bin/python"
        venv.create(folder, symlinks=True)
        (site,) = folder.glob("lib/python*/site-packages")
        # What lies in a folder that a .pth file names is seen, but its own .pth files are not run:
        # an editable install of the package does not lend its extension.
        outer = [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]
        (site / "outer.pth").write_text("\n".join(outer))
        self.environment = os.environ | {"FVAE_CACHE": str(folder / "cache")}

    def install(self, archive, **environment):
        command = [sys.executable, "-m", "pip", "--python", str(self.python), "install"]
        command += ["--no-build-isolation", "--no-deps", "--no-index", "--ignore-installed"]
        environment = self.environment | environment
        subprocess.run([*command, str(archive)], check=True, env=environment, capture_output=True)

    def run(self, code, **environment):
        """Run a program; return what it wrote to stdout and stderr."""
        return subprocess.run(
            [str(self.python), "-c", textwrap.dedent(code)], cwd=self.folder, check=True,
            env=self.environment | environment, text=True, capture_output=True,
        )  # fmt: skip

    def doctor(self, **environment):
        code = "import fvae.doctor as d, json; print(json.dumps(d.diagnose()))"
        return dict(json.loads(self.run(code, **environment).stdout))


@pytest.fixture
def fresh(tmp_path):
    return Fresh(tmp_path / "fresh")


@pytest.fixture
def no_compiler(fresh):
    path = f"{fresh.folder}/bin"
    return {"CC": "no-such-compiler", "CXX": "no-such-compiler", "PATH": path}


@pytest.fixture
def no_torch(tmp_path):
    """An environment in which torch cannot be imported, as in an isolated build."""
    folder = tmp_path / "broken" / "torch"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise OSError('libcudart.so: no such file')")
    return {"PYTHONPATH": str(folder.parent)}


def _sdist(source, folder):
    code = f"import setuptools.build_meta as b; b.build_sdist({str(folder)!r})"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=source, capture_output=True)
    (archive,) = folder.glob("*.tar.gz")
    return archive


# Calls each op of the metrics several times and prints what serves.
USE = """
    import torch, fvae
    from fvae import ops
    codes, rng = torch.randn(60, 3), fvae.Philox(0)

    def all_three(codes, **backend):
        scale, active = codes.var(0), torch.ones(3, dtype=torch.bool)
        kind = dict(samples=5, scale=scale, active=active, rng=rng, **backend)
        return (
            ops.grouped_variance(codes, [3, 4, 5], **backend),
            ops.metric_votes(codes, [3, 4, 5], votes=20, **kind),
            *ops.pair_features(codes, [3, 4, 5], points=4, pairs=3, rng=rng, **backend),
        )

    reference = all_three(codes, backend="reference")
    assert ops.EXTENSION_ERROR is not None and "cpp" not in ops.BACKENDS
    compiled = torch.compile(all_three, fullgraph=True, backend="aot_eager")
    for run in (FIRST, all_three, FIRST):
        for got, expected in zip(run(codes), reference):
            torch.testing.assert_close(got, expected)
    print(ops.backend_of("metric_votes", "cpu"), ops.EXTENSION_ERROR, sep="|")
"""


def test_without_a_compiler_the_package_installs_and_says_once_why_it_is_slow(
    source, tmp_path, fresh, no_compiler
):
    wheel, output = _wheel(source, tmp_path / "wheels", CXX="no-such-compiler", CC="no-such")
    assert "fvae: the C++ extension is not built: fvae._C: the compiler failed" in output
    fresh.install(wheel)
    assert not list(fresh.folder.rglob("fvae/*.so"))
    why = "there is no compiler: no-such-compiler is not found"
    ran = fresh.run(USE.replace("FIRST", "all_three"), **no_compiler)
    assert ran.stdout == f"reference|{why}\n"
    assert ran.stderr == (
        f"fvae: warning: the slow reference serves, without the C++ extension: {why}\n"
    )
    found = fresh.doctor(**no_compiler)
    # A CUDA build of PyTorch has a word on the CUDA part after this.
    assert found["extension fvae._C"].startswith(f"cpu part not built: {why}; ")
    assert found["extension fvae._C"].endswith("the reference serves")
    assert found["metric_votes"] == "cpu: reference"


def test_a_source_distribution_built_without_torch_says_what_its_first_use_will_do(
    source, tmp_path, fresh, no_torch
):
    fresh.install(_sdist(source, tmp_path), **no_torch)
    found = fresh.doctor()
    assert found["extension fvae._C"].startswith("cpu part not built yet: the first use builds it")
    assert found["metric_votes"] == "cpu: not built yet: the first use builds it"
    assert "the first use" not in found["permute_dims"]
    found = fresh.doctor(FVAE_BUILD="0")
    assert found["extension fvae._C"].startswith(
        "cpu part not built: torch cannot be imported (libcudart.so: no such file); FVAE_BUILD=0"
        " keeps the first use from building it; "
    )
    assert not (fresh.folder / "cache").exists()


def test_the_first_use_says_what_the_compiler_complains_of(source, tmp_path, fresh, no_torch):
    _soon_compiled(source)
    (source / "csrc/host.cpp").write_text("#error a mistake\n")
    fresh.install(_sdist(source, tmp_path), **no_torch)
    ran = fresh.run(USE.replace("FIRST", "all_three"))
    building, warning = ran.stderr.splitlines()
    assert building.startswith("fvae: building the C++ extension")
    assert "the compiler failed (host.cpp:1:2: error: #error a mistake); to try again" in warning
    assert "a mistake" in fresh.doctor()["extension fvae._C"]


@pytest.mark.slow
@pytest.mark.parametrize("first", ["all_three", "compiled"])
def test_the_first_use_builds_what_the_installation_could_not(
    source, tmp_path, fresh, no_torch, first
):
    fresh.install(_sdist(source, tmp_path), **no_torch)
    ran = fresh.run(USE.replace("FIRST", first))
    assert ran.stdout == "cpp|None\n"
    assert ran.stderr == "fvae: building the C++ extension, once, about 30 s ...\n"
    found = fresh.doctor()
    assert found["extension fvae._C"].split("; ")[0] == "cpu"
    assert found["metric_votes"] == "cpu: cpp"


def test_a_wheel_brings_its_extension_for_every_python_and_builds_nothing(
    source, tmp_path, fresh, no_compiler
):
    _soon_compiled(source)
    wheel, _ = _wheel(source, tmp_path / "wheels", CUDA_HOME="/nonexistent")
    assert "-cp311-abi3-" in wheel.name
    fresh.install(wheel)
    package = next(fresh.folder.glob("lib/python*/site-packages/fvae"))
    assert (package / "py.typed").exists()
    assert (package / "csrc/device.cu").read_bytes() == (ROOT / "csrc/device.cu").read_bytes()
    found = fresh.doctor(**no_compiler)
    assert found["extension fvae._C"].split("; ")[0] == "cpu"
    assert found["metric_votes"] == "cpu: cpp"
    assert not (fresh.folder / "cache").exists()


@pytest.fixture
def cuda_torch(source, tmp_path):
    """An environment whose torch says that it is a CUDA build, and a source soon compiled."""
    _soon_compiled(source)
    folder = tmp_path / "cuda"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import torch; torch.version.cuda = '13.0'; torch.cuda._is_compiled = lambda: True;"
        "torch.cuda.is_available = lambda: False"
    )
    return {"PYTHONPATH": str(folder)}


def test_without_nvcc_the_cpu_ops_are_built(source, tmp_path, cuda_torch):
    wheel, _ = _wheel(source, tmp_path / "wheels", CUDA_HOME="/nonexistent", **cuda_torch)
    names, found = _doctor(wheel, tmp_path / "site", FVAE_BUILD="0", **cuda_torch)
    assert "fvae/_C.abi3.so" in names and "fvae/_C_cuda.abi3.so" not in names
    assert found["extension fvae._C"].startswith(
        "cpu; cuda part not built: PyTorch is built for CUDA 13.0, but there is no nvcc; FVAE_BUILD"
    )


@pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc on PATH")
def test_where_nvcc_fails_the_cpu_ops_are_built(source, tmp_path, cuda_torch):
    (source / "csrc/device.cu").write_text("#error a mistake of CUDA only\n")
    wheel, output = _wheel(source, tmp_path / "wheels", **cuda_torch)
    assert "not built: fvae._C_cuda: the compiler failed" in output
    names, found = _doctor(wheel, tmp_path / "site", FVAE_BUILD="0", **cuda_torch)
    assert "fvae/_C.abi3.so" in names and "fvae/_C_cuda.abi3.so" not in names
    said = found["extension fvae._C"]
    assert said.startswith("cpu; cuda part not built: the compiler failed (")
    # Which of PyTorch's checks and the compiler complains depends on nvcc's version.
    assert "a mistake of CUDA only" in said or "CUDA version" in said


def test_a_part_that_fails_leaves_nothing_of_an_earlier_build(source, tmp_path):
    _soon_compiled(source)
    build = [sys.executable, "-c", "from setuptools import setup; setup()", "build_ext"]
    environment = os.environ | {"CUDA_HOME": "/nonexistent"}  # the CPU part will do
    run = partial(
        subprocess.run, [*build, "--inplace"], cwd=source, capture_output=True, env=environment
    )
    module, note = source / "fvae/_C.abi3.so", source / "fvae/_C.not_built.txt"
    run(check=True)
    assert module.exists() and not note.exists()
    (source / "csrc/host.cpp").write_text("#error a mistake\n")
    run(check=True)
    assert not module.exists() and "a mistake" in note.read_text()
    (source / "csrc/host.cpp").write_text("")
    run(check=True)
    assert module.exists() and not note.exists()


def test_without_torch_the_package_builds(source, tmp_path, no_torch):
    _, output = _wheel(source, tmp_path / "wheels", **no_torch)
    assert "torch cannot be imported (libcudart.so: no such file)" in output


def test_source_distribution_holds_the_extension_and_the_kernels(source, tmp_path):
    archive = _sdist(source, tmp_path)
    names = {name.split("/", 1)[1] for name in tarfile.open(archive).getnames() if "/" in name}
    assert {"LICENSE", "CHANGELOG.md", "CITATION.cff", "fvae/py.typed"} < names
    for folder in ("csrc", "kernels", "fvae"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".cpp", ".cu", ".cuh", ".h"):
                assert str(path.relative_to(ROOT)) in names
