"""Packaging: without a compiler, without CUDA, without torch; what a distribution holds."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from functools import partial
from pathlib import Path

import pytest

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
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    return copy


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
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, check=True, cwd=folder, env=os.environ | environment,
    ).stdout  # fmt: skip
    return names, dict(json.loads(found))


def test_without_a_compiler_the_package_installs_and_the_reference_serves(source, tmp_path):
    wheel, output = _wheel(source, tmp_path / "wheels", CXX="no-such-compiler", CC="no-such")
    assert "fvae: the C++ extension is not built: fvae._C: the compiler failed" in output
    names, found = _doctor(wheel, tmp_path / "site")
    assert "fvae/ops.py" in names
    assert not any(name.endswith(".so") for name in names)
    # The reason outlives the build.
    assert found["extension fvae._C"].startswith("not built (the compiler failed (")
    assert found["metric_votes"].startswith("cpu: reference")


@pytest.fixture
def cuda_torch(source, tmp_path):
    """An environment whose torch says that it is a CUDA build, and a source soon compiled."""
    (source / "csrc/host.cpp").write_text("")
    folder = tmp_path / "cuda"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import torch; torch.version.cuda = '13.0'; torch.cuda._is_compiled = lambda: True;"
        "torch.cuda.is_available = lambda: False"
    )
    return {"PYTHONPATH": str(folder)}


def test_without_nvcc_the_cpu_ops_are_built(source, tmp_path, cuda_torch):
    wheel, _ = _wheel(source, tmp_path / "wheels", CUDA_HOME="/nonexistent", **cuda_torch)
    names, found = _doctor(wheel, tmp_path / "site", **cuda_torch)
    assert "fvae/_C.abi3.so" in names and "fvae/_C_cuda.abi3.so" not in names
    assert found["extension fvae._C"] == (
        "cpu; cuda part not built: PyTorch is built for CUDA 13.0, but there is no nvcc"
    )


@pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc on PATH")
def test_where_nvcc_fails_the_cpu_ops_are_built(source, tmp_path, cuda_torch):
    (source / "csrc/device.cu").write_text("#error a mistake of CUDA only\n")
    wheel, output = _wheel(source, tmp_path / "wheels", **cuda_torch)
    assert "not built: fvae._C_cuda: the compiler failed" in output
    names, found = _doctor(wheel, tmp_path / "site", **cuda_torch)
    assert "fvae/_C.abi3.so" in names and "fvae/_C_cuda.abi3.so" not in names
    said = found["extension fvae._C"]
    assert said.startswith("cpu; cuda part not built: the compiler failed (")
    # Which of PyTorch's checks and the compiler complains depends on nvcc's version.
    assert "a mistake of CUDA only" in said or "CUDA version" in said


def test_a_part_that_fails_leaves_nothing_of_an_earlier_build(source, tmp_path):
    (source / "csrc/host.cpp").write_text("")
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


def test_without_torch_the_package_builds(source, tmp_path):
    broken = tmp_path / "broken" / "torch"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise OSError('libcudart.so: no such file')")
    _, output = _wheel(source, tmp_path / "wheels", PYTHONPATH=str(broken.parent))
    assert "torch cannot be imported (libcudart.so: no such file)" in output


def test_source_distribution_holds_the_extension_and_the_kernels(source, tmp_path):
    code = f"import setuptools.build_meta as b; b.build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=source, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    names = {name.split("/", 1)[1] for name in tarfile.open(archive).getnames() if "/" in name}
    for folder in ("csrc", "kernels", "fvae"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".cpp", ".cu", ".cuh", ".h"):
                assert str(path.relative_to(ROOT)) in names
