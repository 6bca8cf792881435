"""Losses through each differentiable op, and the same in plain PyTorch."""

import torch
import torch.nn.functional as F

from fvae import Philox, ops

RNG = Philox(3)
_WEIGHT = torch.linspace(-1, 1, 6).view(3, 2)
_TARGET = torch.tensor([True, False, True]).expand(8, 3)[:, None, :, None]

#: Op -> a loss of two [8, 3] through it.
LOSSES = {
    "reparameterize": lambda m, v: sum((t**2).sum() for t in ops.reparameterize(m, v, RNG)),
    "permute_dims": lambda m, v: (ops.permute_dims(m * v, RNG)[0] ** 2).sum(),
    "logit_ratio": lambda m, v: (lambda t: t[0] ** 2 + t[1])(
        ops.logit_ratio(m @ _WEIGHT, v @ _WEIGHT)
    ),
    "bernoulli_nll": lambda m, v: ops.bernoulli_nll((m * v)[:, None, :, None], _TARGET),
    "gaussian_nll": lambda m, v: ops.gaussian_nll((m * v)[:, None, :, None], _TARGET),
}


def _textbook_reparameterize(m, v):
    noise, _ = ops.reparameterize(torch.zeros(m.shape), torch.zeros(m.shape), RNG)
    z = m + (v / 2).exp() * noise.to(m.dtype)
    return (z**2).sum() + (((m**2 + v.exp() - v - 1) / 2).mean(0) ** 2).sum()


def _textbook_permute(m, v):
    rows = ops.permute_dims(torch.arange(8.0)[:, None].expand(8, 3), RNG).long()
    return ((m * v).gather(0, rows)[0] ** 2).sum()


def _textbook_ratio(m, v):
    weight = _WEIGHT.to(m.dtype)
    s, t = ((x @ weight)[:, 0] - (x @ weight)[:, 1] for x in (m, v))
    return s.mean() ** 2 + (F.softplus(-s).mean() + F.softplus(t).mean()) / 2


#: Op -> the same loss without it.
TEXTBOOK = {
    "reparameterize": _textbook_reparameterize,
    "permute_dims": _textbook_permute,
    "logit_ratio": _textbook_ratio,
    "bernoulli_nll": lambda m, v: F.binary_cross_entropy_with_logits(
        m * v, _TARGET[:, 0, :, 0].to(m.dtype), reduction="sum"
    ) / 8,
    "gaussian_nll": lambda m, v: ((m * v - _TARGET[:, 0, :, 0].to(m.dtype)) ** 2).sum() / 16,
}  # fmt: skip


def penalty(loss, inputs):
    inputs = [x.clone().requires_grad_() for x in inputs]
    first = torch.autograd.grad(loss(*inputs), inputs, create_graph=True)
    return torch.autograd.grad(sum((g**2).sum() for g in first), inputs)


def plain_step(discriminator, z, z_perm):
    """The two players' loss as it stands in the paper; gradients of z and of the weights."""
    z = z.detach().requires_grad_()
    logits = discriminator(z)
    (grad_z,) = torch.autograd.grad((logits[:, 0] - logits[:, 1]).mean(), z)
    both = discriminator(torch.cat((z, z_perm)).detach())
    classes = torch.arange(2).repeat_interleave(len(z))
    weights = list(discriminator.parameters())
    return [grad_z, *torch.autograd.grad(F.cross_entropy(both, classes), weights)]
