"""linear_adam is linear_backward, in float32, and then fused_adam."""

import copy
import re

import pytest
import torch
from torch.library import opcheck

from fvae import ops

SETTINGS = torch.tensor([[1e-2, 0.9, 0.999], [3e-3, 0.5, 0.9]])
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def _given(rows=(7,), widths=(3, 5, 2), dtype=torch.float32, copies=torch.bfloat16, counts=()):
    """Arguments of the public op, by name; the last layer has no activation."""
    torch.manual_seed(0)
    *models, _ = rows
    xs = [torch.randn(*rows, width).to(dtype) for width in widths]
    params = []
    for k, n in zip(widths[:-1], widths[1:], strict=True):
        params += [torch.randn(*models, n, k), torch.randn(*models, n)]
    grads = [torch.randn(x.shape).to(dtype) for x in xs[1:]]
    slopes = [0.2] * (len(widths) - 2) + [1.0]
    return {
        "gradients": ops.LinearGradients(grads, xs[1:], xs[:-1], slopes, torch.rand(rows)),
        "params": params,
        "exp_avg": [torch.rand_like(p) for p in params],
        "exp_avg_sq": [torch.rand_like(p) for p in params],
        "steps": torch.randint(0, 9, (len(params), *counts)).float(),
        "settings": SETTINGS,
        "group": 1,
        "copies": [p.to(copies) for p in params] if copies else [],
    }


def _made(given):
    """The gradients that the op never makes."""
    of = given["gradients"]
    made = []
    for i, layer in enumerate(zip(of.grads, of.ys, of.xs, strict=True)):
        weight = given["params"][2 * i]
        rest = (torch.float32, False, of.factor)
        made += ops.linear_backward(*layer, weight, of.slopes[i], *rest, backend="reference")[1:]
    return made


STATE = ("params", "exp_avg", "exp_avg_sq", "copies")


@pytest.mark.parametrize("copies", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [(1,), (65,), (3, 7)])
def test_equals_the_two_ops(rows, dtype, copies):
    got = _given(rows, dtype=dtype, copies=copies)
    want = copy.deepcopy(got)
    for _ in range(2):
        ops.linear_adam(**got)
        lists = [want[name] for name in STATE]
        groups = [1] * len(lists[0])
        ops.fused_adam(
            lists[0], _made(want), *lists[1:3], want["steps"], SETTINGS, groups, lists[3],
            backend="reference",
        )  # fmt: skip
    assert torch.equal(got["steps"], want["steps"])
    for name in STATE:
        torch.testing.assert_close(got[name], want[name], rtol=0, atol=0)


def test_models_that_count_apart_are_each_alone():
    whole = _given((3, 7), counts=(3,))
    each = copy.deepcopy(whole)
    ops.linear_adam(**whole)
    for m in range(3):
        one = {name: [t[m] for t in each[name]] for name in STATE}
        lists = [[t[m] for t in field] for field in each["gradients"][:3]]
        unmade = ops.LinearGradients(*lists, each["gradients"].slopes, each["gradients"].factor[m])
        steps = each["steps"][:, m].clone()
        ops.linear_adam(unmade, **one, steps=steps, settings=SETTINGS, group=1)
        assert torch.equal(steps, whole["steps"][:, m])
        for name in STATE:
            torch.testing.assert_close(one[name], [t[m] for t in whole[name]])


def test_of_no_layers_nothing_changes():
    ops.linear_adam(ops.LinearGradients([], [], [], []), [], [], [], torch.zeros(0), SETTINGS)


def test_a_graph_that_kept_a_weight_notices():
    given = _given()
    weight = given["params"][0].requires_grad_()
    loss = (weight * weight).sum()
    ops.linear_adam(**given)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_opcheck():
    for rows, counts in (((7,), ()), ((3, 7), ()), ((3, 7), (3,))):
        given = _given(rows, counts=counts)
        *layers, factor = given["gradients"]
        lists = [given[name] for name in STATE]
        args = (given["steps"], SETTINGS, *layers, *lists, 1, 1e-8, factor)
        opcheck(torch.ops.fvae.linear_adam.default, args)
    opcheck(torch.ops.fvae.linear_adam.default, args[:-1])


def test_bad_input():
    given = _given()
    of, params = given["gradients"], given["params"]

    def refuse(error, message, **changes):
        with pytest.raises(error, match=re.escape(message)):
            ops.linear_adam(**given | changes)

    def unmade(**changes):
        return {"gradients": of._replace(**changes)}

    refuse(ValueError, "params: got 4 tensors, expected 2 for each of 1", **unmade(xs=of.xs[:1]))
    refuse(ValueError, "slopes: got 1 entries, expected 2", **unmade(slopes=[1.0]))
    refuse(ValueError, "grads[1]: got [7, 5]", **unmade(grads=[of.grads[0]] * 2))
    refuse(ValueError, "ys[0]: got [7, 5], torch.bfloat16", **unmade(ys=[of.ys[0].bfloat16()] * 2))
    refuse(ValueError, "factor: got [6]", **unmade(factor=torch.ones(6)))
    refuse(TypeError, "factor: got torch.int64", **unmade(factor=torch.ones(7).long()))
    refuse(ValueError, "params[2]: got [5, 3]", **unmade(xs=of.xs), params=params[:2] * 2,
           exp_avg=params[:2] * 2, exp_avg_sq=params[:2] * 2, copies=[])  # fmt: skip
    refuse(ValueError, "steps: got [3] on cpu, expected [4]", steps=torch.zeros(3))
    refuse(ValueError, "group: got 2, expected 0 to 1", group=2)
    refuse(ValueError, "exp_avg: got 2 tensors, expected 4", exp_avg=given["exp_avg"][:2])
    refuse(ValueError, "backend: got 'cpp'", backend="cpp")
