"""A part of ``make torture``: no hostile trial of any kind has a fault."""

import os
import subprocess
import sys
from pathlib import Path


def test_a_share_of_all_hostile_trials_has_no_fault(tmp_path):
    command = [sys.executable, "-m", "torture", "--share", "0.02"]
    path = os.pathsep.join(map(str, (Path(__file__).parent, Path(__file__).parent.parent)))
    environment = os.environ | {"PYTHONPATH": path, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    assert "0 faults" in done.stdout
