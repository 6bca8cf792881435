"""What every Triton kernel compiles to, without a GPU and without the interpreter.

A minute and more of compiling, which proves the kernels' text as types do: a part of ``make lint``.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from shared import run_program

from fvae import ops

pytestmark = pytest.mark.compiles
NLLS = ("bernoulli_nll", "gaussian_nll")


def test_every_integer_may_need_64_bits():
    done = run_program(Path(__file__).parent / "wide_integers.py", TRITON_INTERPRET="0")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) > 80


@pytest.fixture(scope="module")
def compiled():
    """What kernels compile to, without the interpreter; and all variants, by name and dtype.

    For sm_90 every variant, but of an op in float16, which differs from bfloat16 by a conversion,
    the first; the first in bfloat16 for the others, whose instructions for it differ: all of them,
    which ``python -m fvae.kernels.report`` prints, take minutes.
    """
    code = (
        "import dataclasses, json\n"
        "from fvae.kernels import report\n"
        "variants = list(report.variants())\n"
        "first = {(v.op, v.dtype): v for v in reversed(variants)}\n"
        "jobs = [(v, 'sm_90') for v in variants"
        " if v.dtype != 'float16' or v is first[v.op, v.dtype]]\n"
        "jobs += [(v, target) for v in first.values() if v.dtype == 'bfloat16'"
        " for target in ('sm_80', 'sm_100')]\n"
        "rows = [dataclasses.asdict(row) for row in report.compile_all(jobs)]\n"
        "print(json.dumps([rows, [(v.name, v.dtype) for v in variants]]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"TRITON_INTERPRET": "0"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def test_every_kernel_compiles_for_every_target_without_a_spill(compiled, capsys):
    compiled, _ = compiled
    found = {(row["op"], row["dtype"], row["target"]) for row in compiled}
    for op in ops.BACKENDS["triton"]:
        for dtype in ("float32", "bfloat16", "float16"):
            assert (op, dtype, "sm_90") in found
        for target in ("sm_80", "sm_100"):
            assert (op, "bfloat16", target) in found
    with capsys.disabled():
        print("\nkernel, dtype, target: registers, shared memory, instructions")
        for row in compiled:
            name = f"{row['kernel']}, {row['dtype']}, {row['target']}"
            print(f"{name}: {row['registers']}, {row['shared']}, {row['instructions']}")
    for row in compiled:
        assert row["local"] == 0, row
        assert row["instructions"] > 20, row


def test_the_table_of_the_readme_is_what_the_report_prints(compiled):
    import triton

    from fvae.kernels import report

    compiled, variants = compiled
    text = (Path(report.__file__).parent / "README.md").read_text()
    begin, end = "<!-- begin: python -m fvae.kernels.report --markdown -->\n", "\n<!-- end -->"
    table = text.partition(begin)[2].partition(end)[0]
    version = re.match(r"Triton ([\d.]*\d), ", table)[1]
    if triton.__version__ != version:
        pytest.skip(f"the table is of Triton {version}, here is {triton.__version__}")
    title, _, head, _, *lines = table.splitlines()
    targets = title.split(", ")[1].rstrip(":").split(" / ")
    names = [cell.strip() for cell in head.split("|")[1:-1]]
    shown = {}  # a cell has a number for each target, or one for all
    for line in lines:
        kernel, dtype, *cells = (cell.strip() for cell in line.split("|")[1:-1])
        for i, target in enumerate(targets):
            each = [cell.split(" / ") for cell in cells]
            shown[kernel, dtype, target] = [int(c[i] if len(c) > 1 else c[0]) for c in each]
    for row in compiled:
        key = row["kernel"], row["dtype"], row["target"]
        assert shown[key] == [row[name] for name in names[2:]], key
    assert {key[:2] for key in shown} == set(map(tuple, variants))


def test_image_kernels_load_and_store_16_bytes_a_thread(compiled):
    compiled, _ = compiled
    images = [row for row in compiled if row["op"] in ("gather_batch", *NLLS)]
    images = [row for row in images if "gather_batch indices" not in row["kernel"]]
    # Rows that are no whole words are read byte by byte.
    images = [row for row in images if "bytewise" not in row["kernel"]]
    assert images
    for row in images:
        assert (row["load"], row["store"]) == (16, 16), row
