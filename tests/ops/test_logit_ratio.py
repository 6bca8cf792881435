import pytest
import torch
import torch.nn.functional as F
from shared import assert_close
from torch.library import opcheck

from fvae import ops


def _textbook(logits_z, logits_perm):
    rows = len(logits_z)
    classes = torch.arange(2).repeat_interleave(rows)
    logits = torch.cat((logits_z, logits_perm))
    loss = F.cross_entropy(logits, classes)
    accuracy = (logits.argmax(-1) == classes).to(loss.dtype).mean()
    return (logits_z[:, 0] - logits_z[:, 1]).mean(), loss, accuracy


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 7, 65])
def test_equals_cross_entropy_with_class_0_for_z(rows, dtype):
    z, perm = torch.randn(rows, 2).to(dtype) * 3, torch.randn(rows, 2).to(dtype) * 3
    expected = _textbook(z.float(), perm.float())
    assert_close(ops.logit_ratio(z, perm), expected, torch.float32)


def test_sign_convention():
    sure = torch.tensor([[9.0, -9.0]]).expand(4, 2)
    tc, loss, accuracy = ops.logit_ratio(sure, -sure)
    assert tc == 18
    assert loss < 1e-7
    assert accuracy == 1
    assert ops.logit_ratio(-sure, sure)[0] == -18


def test_gradients_of_each_loss():
    z = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    perm = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: ops.logit_ratio(a, b)[:2], (z, perm))
    for i in range(2):
        got = torch.autograd.grad(ops.logit_ratio(z, perm)[i], (z, perm))
        want = torch.autograd.grad(_textbook(z, perm)[i], (z, perm), allow_unused=True)
        torch.testing.assert_close(got[0], want[0])
        torch.testing.assert_close(got[1], torch.zeros_like(perm) if want[1] is None else want[1])


def test_huge_logits_stay_finite():
    big = torch.tensor([[3e38, -3e38]])
    _, loss, _ = ops.logit_ratio(torch.tensor([[1e4, -1e4]]), torch.tensor([[1e4, -1e4]]))
    assert loss == 1e4
    assert ops.logit_ratio(big / 4, -big / 4)[1] == 0


def test_models():
    z, perm = torch.randn(3, 5, 2), torch.randn(3, 5, 2)
    together = ops.logit_ratio(z, perm)
    for m in range(3):
        for both, alone in zip(together, ops.logit_ratio(z[m], perm[m]), strict=True):
            torch.testing.assert_close(both[m], alone)


def test_opcheck():
    args = (torch.randn(2, 7).t(), torch.randn(7, 2))
    opcheck(torch.ops.fvae.logit_ratio.default, args)


def test_bad_input():
    with pytest.raises(ValueError, match="logits_z: got 3 logits a row"):
        ops.logit_ratio(torch.randn(4, 3), torch.randn(4, 3))
    with pytest.raises(ValueError, match="logits_perm"):
        ops.logit_ratio(torch.randn(4, 2), torch.randn(5, 2))
