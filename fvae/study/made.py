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


def commit() -> str:
    """Return the commit of this code, marked if it was changed since; "unknown" without git."""
    # Never a tag's name: what is recorded is to be found in any clone.
    command = ("git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12")
    folder = Path(__file__).parent
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    # Installed below somebody else's checkout it would be theirs.
    return done.stdout.strip() if done.returncode == 0 and _tracked(folder) else "unknown"


def _tracked(folder: Path) -> bool:
    command = ("git", "ls-files", "--error-unmatch", Path(__file__).name)
    return subprocess.run(command, capture_output=True, cwd=folder).returncode == 0
