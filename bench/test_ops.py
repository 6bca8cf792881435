"""Each op as the dispatcher serves it, checked against the reference before it is timed.

An op that has only the reference on this device is timed, without a word of comparison.
"""

import pytest
import torch

from bench import registry


@pytest.mark.parametrize("case", registry.cases(), ids=lambda case: case.label)
def test_op(benchmark, case):
    backend = registry.backend(case, "cpu")
    if backend == "reference" and registry.is_fast(case.op, "cpu"):
        pytest.fail(registry.why_not_compared(case, "cpu"), pytrace=False)
    if backend != "reference":
        torch.testing.assert_close(case.run(None), case.run("reference"))
    benchmark.extra_info["backend"] = backend
    benchmark.extra_info["bytes"] = case.bytes
    benchmark.extra_info["torch"] = torch.__version__
    benchmark(case.run, None)
