"""What a study was made with: versions, processor and commit."""

import contextlib
import platform
import subprocess
from importlib import metadata
from pathlib import Path

from fvae.device import device_name


def made_with(device: str) -> dict[str, str]:
    """Return versions, device and commit, by name.

    Args:
        device: that of the runs, "cpu" or "cuda".
    """
    versions = {"commit": commit(), "python": platform.python_version()}
    for package in ("fvae", "torch", "triton", "numpy", "scikit-learn"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions | {"device": device_name(device)}


def commit(folder: Path = Path(__file__).parent) -> str:
    """Return the commit of this code, marked if it was changed since; "unknown" without git.

    Records of benchmarks and pages are no code: those that were just written do not mark the next.

    Args:
        folder: where the code is.
    """
    # Never a tag's name: what is recorded is to be found in any clone.
    found = _git("describe", "--always", "--exclude=*", "--abbrev=12", folder=folder)
    # Installed below somebody else's checkout it would be theirs.
    if not found or not _git("ls-files", Path(__file__).name, folder=folder):
        return "unknown"
    code = (":/", ":(top,exclude)bench/results", ":(top,exclude,glob)**/*.md")
    changed = _git("status", "--porcelain", "--untracked-files=no", *code, folder=folder)
    return found + ("-dirty" if changed else "")


def _git(*words: str, folder: Path) -> str:
    """Return what git prints, "" where it is not there or fails."""
    command = ("git", *words)
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
