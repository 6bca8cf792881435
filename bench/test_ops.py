"""Each op as the dispatcher serves it, checked against the reference before it is timed."""

import pytest
import torch

from bench.registry import cases


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.label)
def test_op(benchmark, case):
    got, expected = case.run(None), case.run("reference")
    torch.testing.assert_close(got, expected)
    benchmark.extra_info["bytes"] = case.bytes
    benchmark.extra_info["torch"] = torch.__version__
    benchmark(case.run, None)
