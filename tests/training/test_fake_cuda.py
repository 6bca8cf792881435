"""What a GPU's step would do, without a GPU: see fake_cuda.py."""

from pathlib import Path

import pytest
import torch
from shared import fake_cuda_lines, needs_compiler

pytestmark = [
    pytest.mark.skipif(
        torch.cuda.is_available(), reason="there is a GPU: test_graph.py tries the real thing"
    ),
    needs_compiler,
]


@pytest.fixture(scope="module")
def lines():
    return fake_cuda_lines(Path(__file__).parent / "fake_cuda.py")


@pytest.fixture(scope="module")
def steps(lines):
    return [line for line in lines if "terms" in line]


def test_no_step_touches_the_host(steps):
    # Nine objectives, four precisions and the reference in one; seven of the objectives stacked,
    # too. Four kinds of store, two likelihoods, two halves, two backends. Three settings, stacked
    # or not.
    assert len(steps) == (9 + 7) * (4 + 1) + 4 * 2 * 2 * 2 + 3 * 2
    for step in steps:
        assert step["host"] == [], step
        assert step["operations"] > 30, step


def test_the_probe_sees_what_comes_from_the_host(lines):
    assert {"_to_copy"} <= set(lines[-1]["probe"])


def test_terms_are_float32_on_the_device(steps):
    for step in steps:
        for name, (device, dtype, shape) in step["terms"].items():
            assert (device, dtype) == ("cuda", "torch.float32"), (step, name)
            assert step["models"] == 1 or shape[0] == step["models"], (step, name)


def test_half_products_where_they_are_asked_for(steps):
    for step in steps:
        for precision, products in step["half_products"].items():
            assert (products > 5) == (step["precision"] == precision), step


def test_a_loss_scale_in_float16_alone(steps):
    for step in steps:
        assert ("loss_scale.factor" in step["state"]) == (step["precision"] == "fp16"), step


def test_both_batches_pass_the_encoder_together(steps):
    found = [s for s in steps if s.get("objective") == "factor-vae"]
    assert found
    for step in found:
        models = [step["models"]] * (step["models"] > 1)
        images = 4 if step.get("shuffle") == "same" else 8
        assert step["encoded"] == [[*models, images, 1, 64, 64]]
