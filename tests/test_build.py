"""Packaging: without a compiler, without torch, and what a source distribution holds."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
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
            ROOT / name, copy / name, ignore=shutil.ignore_patterns("*.so", "__pycache__")
        )
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    return copy


def test_without_a_compiler_the_package_installs_and_the_reference_serves(source, tmp_path):
    wheel, output = _wheel(source, tmp_path / "wheels", CXX="no-such-compiler", CC="no-such")
    assert "fvae: the C++ extension is not built" in output
    names = zipfile.ZipFile(wheel).namelist()
    assert "fvae/ops.py" in names
    assert not any(name.endswith(".so") for name in names)
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    # An editable install of this very environment must not lend its extension.
    code = (
        "import sys; sys.meta_path = [f for f in sys.meta_path if 'ditable' not in repr(f)];"
        "import fvae.ops, fvae.doctor as d; r = dict(d.diagnose());"
        "print(r['extension fvae._C']); print(r['metric_votes'])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, check=True, cwd=tmp_path / "site",
    ).stdout.splitlines()  # fmt: skip
    assert found[0].startswith("not built")
    assert "cpu: reference" in found[1]


def test_without_torch_the_package_builds(source, tmp_path):
    broken = tmp_path / "broken" / "torch"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise OSError('libcudart.so: no such file')")
    _, output = _wheel(source, tmp_path / "wheels", PYTHONPATH=str(broken.parent))
    assert "not built: torch cannot be imported (libcudart.so: no such file)" in output


def test_source_distribution_holds_the_extension_and_the_kernels(source, tmp_path):
    code = f"import setuptools.build_meta as b; b.build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=source, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    names = {name.split("/", 1)[1] for name in tarfile.open(archive).getnames() if "/" in name}
    for folder in ("csrc", "kernels", "fvae"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".cpp", ".cu", ".cuh", ".h"):
                assert str(path.relative_to(ROOT)) in names
