"""The extension's first use: built once, whole or not at all, and said once where it cannot be.

The builder is a stand-in that counts its runs; tests/test_build.py has the real one.
"""

import os
import signal
import subprocess
import sys
import threading

import pytest
import torch

from fvae.ops import extension, registry

BUILDER = """
import os, sys, time
from pathlib import Path
with open({count!r}, "a") as file:
    file.write("ran\\n")
Path("fvae").mkdir()
if os.environ.get("FAIL"):
    Path("fvae", sys.argv[1] + ".not_built.txt").write_text("the compiler failed (x.cpp:1)\\n")
    sys.exit(1)
Path("fvae", sys.argv[1] + ".abi3.so").write_bytes(b"ELF")
"""


class World:
    """A cache folder, a builder that counts its runs, and the files that were loaded."""

    def __init__(self, folder):
        self.count, self.cache, self.loaded = folder / "count", folder / "cache", []
        self.builder = folder / "builder.py"
        self.builder.write_text(BUILDER.format(count=str(self.count)))

    def part(self):
        """A part as a new process has it."""
        return extension.Part("_C", "C++", 30, lambda: None)

    @property
    def runs(self):
        return len(self.count.read_text().split()) if self.count.exists() else 0

    @property
    def files(self):
        return sorted(p.name for p in self.cache.rglob("*") if p.is_file())


@pytest.fixture
def world(tmp_path, monkeypatch):
    world = World(tmp_path)
    monkeypatch.setenv("FVAE_CACHE", str(world.cache))
    monkeypatch.setenv("CXX", sys.executable)  # a program that is there
    monkeypatch.setattr(extension, "_BUILDER", world.builder)
    monkeypatch.setattr(torch.ops, "load_library", world.loaded.append)
    return world


def test_the_first_use_builds_and_later_processes_load(world, capsys):
    part = world.part()
    assert part.error() == extension.NOT_YET
    assert world.runs == 0 and not world.cache.exists()
    assert part.build() is None and part.loaded
    assert part.build() is None
    assert world.runs == 1 and len(world.loaded) == 1
    assert capsys.readouterr().err == ("fvae: building the C++ extension, once, about 30 s ...\n")
    later = world.part()
    assert later.error() is None and later.loaded and world.runs == 1
    assert world.loaded[0] == world.loaded[1]
    assert world.files == ["_C.abi3.so", "lock"]
    assert capsys.readouterr().err == ""


def test_a_failure_is_said_once_and_not_tried_again_until_its_note_is_deleted(
    world, capsys, monkeypatch
):
    monkeypatch.setenv("FAIL", "1")
    part = world.part()
    for _ in range(3):
        why = part.build()
    (note,) = world.cache.rglob("_C.not_built.txt")
    assert why == part.error() == f"the compiler failed (x.cpp:1); to try again, delete {note}"
    building, warning = capsys.readouterr().err.splitlines()
    assert building.startswith("fvae: building")
    assert warning.startswith("fvae: warning: the slow reference serves, without")
    assert warning.endswith(why) and not part.loaded

    later = world.part()
    assert later.error() == later.build() == later.build() == why and world.runs == 1
    assert capsys.readouterr().err == warning + "\n"

    note.unlink()
    monkeypatch.delenv("FAIL")
    assert world.part().build() is None and world.runs == 2


def test_a_builder_that_breaks_leaves_its_last_line(world):
    world.builder.write_text("raise SystemExit('first\\nno module setuptools')")
    assert world.part().build().startswith("no module setuptools; to try again, delete ")


@pytest.mark.parametrize(
    "name, value", [("CXX", "no-such-compiler -pthread"), ("FVAE_CACHE", "/dev/null/cache")]
)
def test_what_speaks_against_building_is_said_once(world, capsys, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    part = world.part()
    why = [part.build(), part.build()]
    assert why[0] == why[1] and value in why[0] and world.runs == 0
    assert capsys.readouterr().err.count("fvae: ") == 1
    assert not world.cache.exists()


def test_it_is_switched_off_by_the_environment(world, capsys, monkeypatch):
    monkeypatch.setenv("FVAE_BUILD", "0")
    part = world.part()
    assert "FVAE_BUILD=0" in part.build() and not part.loaded
    assert capsys.readouterr().err == "" and world.runs == 0
    # What is built already serves.
    monkeypatch.delenv("FVAE_BUILD")
    assert world.part().build() is None
    monkeypatch.setenv("FVAE_BUILD", "0")
    assert world.part().error() is None


def test_without_sources_it_says_so(world, monkeypatch, tmp_path):
    monkeypatch.setattr(extension, "_PACKAGE", tmp_path / "fvae")
    assert "csrc is not there to build it from" in world.part().build()


def test_another_compiler_pytorch_or_source_is_another_build(world, monkeypatch, tmp_path):
    for path in ("csrc", "fvae"):
        (tmp_path / path).mkdir()
    (tmp_path / "csrc/host.cpp").write_text("")
    monkeypatch.setattr(extension, "_PACKAGE", tmp_path / "fvae")
    folders = [world.part()._folder()]
    assert world.part()._folder() == folders[0]
    (tmp_path / "csrc/host.cpp").write_text("// new")
    folders.append(world.part()._folder())
    monkeypatch.setenv("CXX", "/bin/sh")
    folders.append(world.part()._folder())
    monkeypatch.setenv("CXXFLAGS", "-O0")
    folders.append(world.part()._folder())
    monkeypatch.setattr(torch, "__version__", "2.99")
    folders.append(world.part()._folder())
    assert len(set(folders)) == len(folders)


def test_two_that_begin_together_build_once(world, capsys):
    world.builder.write_text("import time; time.sleep(0.5)\n" + world.builder.read_text())
    parts = [world.part() for _ in range(3)]
    threads = [threading.Thread(target=part.build) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(part.loaded for part in parts) and world.runs == 1
    said = capsys.readouterr().err
    assert said.count("fvae: building") == 1 and said.count("fvae: waiting") == 2


def test_a_killed_builder_blocks_nobody_and_its_half_is_not_taken(world):
    """The process is killed while it holds the lock and its compiler has written a half."""
    world.builder.write_text(
        "import os, signal; from pathlib import Path; Path('fvae').mkdir();"
        "Path('fvae/_C.abi3.so').write_bytes(b'half'); os.kill(os.getppid(), signal.SIGKILL)"
    )
    code = (
        "from pathlib import Path; from fvae.ops import extension;"
        f"extension._BUILDER = Path({str(world.builder)!r});"
        "extension.Part('_C', 'C++', 30, print).build()"
    )
    killed = subprocess.run([sys.executable, "-c", code], env=os.environ)
    assert killed.returncode == -signal.SIGKILL
    assert [p.name for p in world.cache.rglob("*.so")] == ["_C.abi3.so"]
    assert world.part().error() == extension.NOT_YET

    world.builder.write_text(BUILDER.format(count=str(world.count)))
    assert world.part().build() is None and world.runs == 1
    (built,) = world.cache.rglob("*.so")
    assert built.read_bytes() == b"ELF"


def test_a_gpu_build_is_for_the_gpus_that_are_there(monkeypatch):
    part = extension.Part("_C_cuda", "CUDA", 60, lambda: None)
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    default = part._folder()
    assert "TORCH_CUDA_ARCH_LIST" not in part._environment()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: [(9, 0), (8, 0), (9, 0)][i])
    assert part._environment()["TORCH_CUDA_ARCH_LIST"] == "8.0;9.0"
    assert part._folder() != default
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "10.0")
    assert part._environment()["TORCH_CUDA_ARCH_LIST"] == "10.0"


class Fake:
    """A part that builds, or does not, and counts."""

    def __init__(self, why):
        self.why, self.loaded, self.builds = why, False, 0

    def error(self):
        return None if self.loaded else self.why or extension.NOT_YET

    def build(self):
        self.builds += not self.loaded
        self.loaded = self.why is None
        return self.why


@pytest.mark.parametrize("why", [None, "no compiler"])
def test_the_first_call_builds_and_hands_over(monkeypatch, why):
    fake = Fake(why)
    monkeypatch.setitem(registry._PARTS, "cpu", fake)
    first = registry._until_built("grouped_variance")
    codes = torch.randn(1, 6, 2)
    expected = registry.BACKENDS["reference"]["grouped_variance"](codes, [2, 3])
    for _ in range(2):
        torch.testing.assert_close(first(codes, [2, 3]), expected)
    assert fake.builds == (1 if why is None else 2)


def test_a_backend_that_cannot_be_built_says_why(monkeypatch):
    monkeypatch.setitem(registry._PARTS, "cpu", Fake("no compiler"))
    monkeypatch.delitem(registry.BACKENDS, "cpp", raising=False)
    with pytest.raises(ValueError, match=r"metric_votes has reference.* \(no compiler\)"):
        registry.implementation("metric_votes", "cpp")
    assert registry.backend_of("metric_votes", "cpu") == "reference"
