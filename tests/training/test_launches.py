"""How many kernels a GPU's step starts: counted without a GPU, see bench/launches.py."""

import json
import re
import subprocess
import sys

import pytest
import torch
from shared import ROOT, needs_compiler

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
    assert len(counted) == 4
    for name, launches in counted.items():
        assert 30 < launches <= most[name.split()[0]], counted


def test_the_page_has_these_counts(counted):
    text = (ROOT / "bench/README.md").read_text()
    for objective in ("factor-vae", "vae"):
        (line,) = re.findall(rf"^\| `{objective}` \|.*", text, re.MULTILINE)
        cells = [cell.strip() for cell in line.split("|")[2:4]]
        assert cells == [str(counted[f"{objective} {p}"]) for p in ("bf16", "fp32")]
