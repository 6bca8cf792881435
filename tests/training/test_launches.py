"""What a GPU's step starts and moves: counted without a GPU, see bench/launches.py."""

import json
import subprocess
import sys

import pytest
import torch
from shared import ROOT, needs_compiler

from bench import figures, launches

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
    needs_compiler,
]


@pytest.fixture(scope="module")
def counted():
    command = [sys.executable, "-m", "bench.launches"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_a_default_step_starts_few_kernels(counted):
    most = {"factor-vae": 100, "vae": 60}
    each = {name: n for name, n in counted.items() if not name.endswith("MB")}
    assert len(each) == 4 and len(counted) == 8
    for name, n in each.items():
        assert 30 < n <= most[name.split()[0]], counted


def test_bytes_are_those_of_memory_once_and_of_changes_twice():
    x = torch.zeros(4, 6)
    found = []
    for run in (
        lambda: x + x, lambda: x[:2] + x[:2], lambda: x[:2] + x[2:], lambda: x.add_(1.0),
        lambda: x[:1].expand(4, 6) + x, lambda: x.view(24), lambda: torch.zeros(3),
    ):  # fmt: skip
        with launches.Launches() as traffic:
            run()
        found.append(traffic.bytes.total())
    assert found == [2 * 96, 2 * 48, 96 + 48, 2 * 96, 2 * 96, 0, 12]


def test_the_record_has_these_counts(counted):
    numbers = figures.read(ROOT / "bench/results/launches.json")["numbers"]
    mended = "run: python -m bench.table --measure launches"
    assert {name: numbers[name] for name in counted} == counted, mended
