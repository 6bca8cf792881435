"""Training loops of anybody's."""

import dataclasses
import os
import subprocess
import sys

import numpy as np
import torch
from items import IMAGES, MAKES, SIZES, Items, encode
from settings import SETTINGS
from small import SMALL, bits, tensors, trainer_of
from textbook import LOSSES, RNG, TEXTBOOK, penalty, plain_step
from torch import nn
from torch.func import grad, hessian, jacfwd, vmap

from fvae import Philox, drop_in, ops
from fvae.config import TrainConfig
from fvae.device import resolve_precision
from fvae.errors import UserError
from fvae.models.vae import Discriminator
from fvae.training import loop
from own import case


def _pair(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return torch.randn((2, *shape), generator=generator).to(dtype).unbind()


def _furthest(got, want):
    """The largest difference between two lists of tensors, relative to the largest value."""
    pairs = zip(got, want, strict=True)
    return max(((a - b).abs().max() / b.abs().max().clamp(min=1e-9)).item() for a, b in pairs)


def _within(difference, most):
    return f"{difference:.1e} apart", difference <= most


def _our_step(discriminator, z, z_perm, step=drop_in.tc_and_disc_loss):
    z = z.detach().requires_grad_()
    tc, loss, _ = step(discriminator, z, z_perm)
    return torch.autograd.grad(tc + loss, [z, *discriminator.parameters()])


# --- float16 --------------------------------------------------------------------------------------


def _float16(run, inputs):
    """A sum of an op's results in half precision, and its gradients, beside float32's."""
    found = []
    for dtype in (torch.float32, torch.float16):
        leaves = [x.half().to(dtype).requires_grad_() for x in inputs]
        out = run(*leaves)
        found.append([out.detach(), *torch.autograd.grad(out, leaves)])
    return _within(_furthest([t.float() for t in found[1]], found[0]), 2e-3)


@case("reparameterize and permute_dims in float16", "float32's within 2e-3, gradients too")
def _(folder):
    def run(mu, logvar):
        z, kl = ops.reparameterize(mu, logvar, RNG)
        return z.float().square().sum() + kl.sum() + ops.permute_dims(z, RNG)[0].float().sum()

    return _float16(run, _pair(8, 3))


@case("logit_ratio in float16", "float32's within 2e-3, gradients too")
def _(folder):
    return _float16(lambda a, b: sum(ops.logit_ratio(a, b)[:2]), _pair(8, 2))


for _op in (ops.bernoulli_nll, ops.gaussian_nll):

    @case(f"{_op.__name__} in float16", "float32's within 2e-3, gradients too")
    def _(folder, op=_op):
        return _float16(lambda x: op(x, torch.ones(8, 1, 4, 4).bool()), _pair(8, 1, 4, 4)[:1])


@case("float16 by the Triton kernels", "the reference's within 2e-3")
def _(folder):
    logits, other = (x.half() for x in _pair(5, 2))
    got = ops.logit_ratio(logits, other, "triton")[:2]
    got += ops.reparameterize(logits, other, RNG, "triton")
    want = ops.logit_ratio(logits, other, "reference")[:2]
    want += ops.reparameterize(logits, other, RNG, "reference")
    return _within(_furthest(got, want), 2e-3)


@case("gather_batch in float16", "the images in float16, bit for bit")
def _(folder):
    store = bits(20)
    low = ops.gather_batch(store, 4, RNG, dtype=torch.float16)
    return low.dtype, torch.equal(low, ops.gather_batch(store, 4, RNG).half())


class _TwoPasses(Discriminator):
    """Ours, through PyTorch's own layers and backward pass."""


def _float16_error(discriminator):
    """How far gradients under autocast and GradScaler are from those of float32, relatively."""
    found, (z0, z_perm) = [], _pair(16, 3)
    for low in (True, False):
        z = z0.clone().requires_grad_()
        with torch.autocast("cpu", torch.float16, enabled=low):
            tc, loss, _ = drop_in.tc_and_disc_loss(discriminator, z, z_perm)
        discriminator.zero_grad()
        scaler = torch.amp.GradScaler("cpu", enabled=low, init_scale=4096.0)
        scaler.scale(tc + loss).backward()
        scaler.unscale_(torch.optim.SGD([z, *discriminator.parameters()], 0.0))
        found.append([z.grad, *(p.grad for p in discriminator.parameters())])
    return max(((a - b).norm() / (b.norm() + 1e-4)).item() for a, b in zip(*found, strict=True))


@case("autocast float16 and GradScaler, our discriminator", "as near float32 as PyTorch's layers")
def _(folder):
    torch.manual_seed(0)
    ours, theirs = Discriminator(3, 64, 4), _TwoPasses(3, 64, 4)
    theirs.load_state_dict(ours.state_dict())
    got, want = _float16_error(ours), _float16_error(theirs)
    return f"{got:.1%} off, theirs {want:.1%}", got < 1.25 * want + 1e-3


@case("autocast float16 and GradScaler, somebody's, of one logit", "float32's gradients within 2%")
def _(folder):
    torch.manual_seed(0)
    return _within(
        _float16_error(nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 1))), 0.02
    )


@case("a gradient of 1.6e-8 in float16, loss scale 65536", "1.0e-03, not 0")
def _(folder):
    mean = torch.full((64, 1, 2, 2), 1e-6, dtype=torch.float16, requires_grad=True)
    (ops.gaussian_nll(mean, torch.zeros(64, 1, 2, 2)) * 65536).backward()
    value = mean.grad[0, 0, 0, 0].item()
    return f"{value:.1e}", abs(value - mean[0, 0, 0, 0].item() * 1024) < 1e-6


@case("--precision fp16 without CUDA", "one line that says what it needs")
def _(folder):
    try:
        return resolve_precision("fp16", torch.device("cpu")), False
    except UserError as error:
        return error, "needs a CUDA device" in str(error)


@case("a float16 run whose gradients overflow", "no update, and half the loss scale")
def _(folder):
    trainer = trainer_of(dataclasses.replace(SMALL, precision="fp16"), bits(20))
    trainer.scale.factor.fill_(2.0**40)
    before = [p.clone() for p in trainer._parameters().values()]
    trainer.step()
    same = all(map(torch.equal, before, trainer._parameters().values()))
    return f"factor 2^{int(trainer.scale.factor.log2())}", same and trainer.scale.factor == 2.0**39


@case("a float16 run resumed from its checkpoint", "the uninterrupted run, bit for bit")
def _(folder):
    config, store = dataclasses.replace(SMALL, precision="fp16"), bits(20)
    whole, first, resumed = (trainer_of(config, store) for _ in range(3))
    for trainer, steps in ((whole, 6), (first, 3)):
        for _ in range(steps):
            trainer.step()
    resumed.restore({name: t.clone() for name, t in first.state().items()}, folder)
    for _ in range(3):
        resumed.step()
    got, want = resumed.state(), whole.state()
    return f"{len(got)} tensors", all(torch.equal(got[name], want[name]) for name in want)


# --- torch.func -----------------------------------------------------------------------------------

for _name in LOSSES:

    @case(f"torch.func: per-sample gradients of {_name}", "the textbook's in a loop")
    def _(folder, name=_name):
        mu, logvar = _pair(4, 8, 3)
        got = vmap(grad(LOSSES[name], argnums=(0, 1)))(mu, logvar)
        pairs = zip(mu, logvar, strict=True)
        want = [grad(TEXTBOOK[name], argnums=(0, 1))(*one) for one in pairs]
        return _within(_furthest(got, map(torch.stack, zip(*want, strict=True))), 1e-5)

    @case(f"a gradient penalty through {_name}", "the textbook's second derivatives")
    def _(folder, name=_name):
        inputs = _pair(8, 3)
        got, want = penalty(LOSSES[name], inputs), penalty(TEXTBOOK[name], inputs)
        return _within(_furthest(got, want), 1e-5)


@case("torch.func: jacfwd and a hessian of reparameterize", "the textbook's")
def _(folder):
    mu, logvar = _pair(8, 3)
    ours, textbook = LOSSES["reparameterize"], TEXTBOOK["reparameterize"]
    got = [jacfwd(ours)(mu, logvar), hessian(ours)(mu, logvar)]
    want = [jacfwd(textbook)(mu, logvar), hessian(textbook)(mu, logvar)]
    return _within(_furthest(got, want), 1e-5)


@case("torch.func: vmap over models, a key each", "each model's own draw, bit for bit")
def _(folder):
    z = torch.arange(24.0).view(3, 8).unsqueeze(-1)
    got = vmap(lambda z, seed: ops.permute_dims(z, Philox(seed)))(z, torch.tensor([5, 6, 7]))
    alone = [ops.permute_dims(z[m], Philox(5 + m)) for m in range(3)]
    return tuple(got.shape), torch.equal(got, torch.stack(alone))


@case("torch.func: vmap without rng", "an error, or one draw, or many, as randomness= says")
def _(folder):
    z = torch.arange(16.0).view(1, 16, 1).expand(2, 16, 1)
    same, many = (vmap(ops.permute_dims, randomness=kind)(z) for kind in ("same", "different"))
    try:
        vmap(ops.permute_dims)(z)
        error = "none"
    except RuntimeError:
        error = "an error"
    fine = torch.equal(*same) and not torch.equal(*many)
    return f"{error}, one draw, many" if fine else "wrong", fine and error == "an error"


@case("a gradient penalty through both players' one backward pass", "that of two passes")
def _(folder):
    torch.manual_seed(0)
    ours, theirs, (z, z_perm) = Discriminator(3, 8, 2), _TwoPasses(3, 8, 2), _pair(8, 3)
    theirs.load_state_dict(ours.state_dict())
    found = []
    for discriminator in (ours, theirs):
        leaf = z.clone().requires_grad_()
        tc, loss, _ = drop_in.tc_and_disc_loss(discriminator, leaf, z_perm)
        inputs = (leaf, *discriminator.parameters())
        first = torch.autograd.grad(tc * loss, inputs, create_graph=True)
        found.append(torch.autograd.grad(sum((g**2).sum() for g in first), inputs))
    return _within(_furthest(*found), 1e-5)


# --- any discriminator ----------------------------------------------------------------------------

for _kind, _middle in {
    "nn.Sequential": [nn.ReLU],
    "batch norm": [lambda: nn.BatchNorm1d(8, track_running_stats=False), nn.ReLU],
    "layer norm and GELU": [lambda: nn.LayerNorm(8), nn.GELU],
    "our Discriminator": None,
}.items():

    @case(f"torch.compile(fullgraph=True), {_kind}", "the eager step")
    def _(folder, middle=_middle):
        torch._dynamo.reset()
        torch.manual_seed(0)
        discriminator: nn.Module = Discriminator(3, 8, 2)
        if middle is not None:
            discriminator = nn.Sequential(nn.Linear(3, 8), *(m() for m in middle), nn.Linear(8, 2))
        z, z_perm = _pair(8, 3)
        step = torch.compile(drop_in.tc_and_disc_loss, fullgraph=True, backend="aot_eager")
        got = _our_step(discriminator, z, z_perm, step)
        return _within(_furthest(got, _our_step(discriminator, z, z_perm)), 1e-5)


@case("somebody's nn.Sequential discriminator", "the paper's gradients, no leak")
def _(folder):
    torch.manual_seed(0)
    discriminator, (z, z_perm) = (
        nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)),
        (_pair(8, 3)),
    )
    got = _our_step(discriminator, z, z_perm)
    return _within(_furthest(got, plain_step(discriminator, z, z_perm)), 1e-5)


@case("a function for a discriminator", "an error: its weights cannot be kept from tc")
def _(folder):
    layer, z = nn.Linear(3, 2), torch.zeros(4, 3)
    try:
        return drop_in.tc_and_disc_loss(lambda z: layer(z), z, z), False
    except TypeError as error:
        return error, "torch.nn.Module" in str(error)


@case("running statistics of a discriminator's batch norm", "moved once a step")
def _(folder):
    norm = nn.BatchNorm1d(3)
    drop_in.tc_and_disc_loss(nn.Sequential(norm, nn.Linear(3, 2)), *_pair(8, 3))
    return f"{norm.num_batches_tracked} time", norm.num_batches_tracked == 1


# --- scores of any data set -----------------------------------------------------------------------

for _make in MAKES:

    @case(f"drop_in.score, items are {_make}", "1.0, with and without workers")
    def _(folder, make=_make):
        function, key = MAKES[make]
        found = [
            drop_in.score(encode, Items(function), SIZES, key=key, num_workers=workers).score
            for workers in (0, 1)
        ]
        return found, found == [1.0, 1.0]


@case("drop_in.score, encoder gives a torch.distributions.Normal", "1.0")
def _(folder):
    def normal(x):
        return torch.distributions.Normal(encode(x), 0.1)

    found = drop_in.score(normal, IMAGES, SIZES).score
    return found, found == 1.0


for _setting in ("default dtype float64", "default device"):

    @case(f"drop_in.score, {_setting}", "1.0, with and without workers")
    def _(folder, setting=_setting):
        function, _ = MAKES["(PIL image, label)"]
        with SETTINGS[setting]():
            found = [
                drop_in.score(encode, Items(function), SIZES, num_workers=workers).score
                for workers in (0, 1)
            ]
        return found, found == [1.0, 1.0]


@case("drop_in.score, a DataLoader", "one line that says what to pass")
def _(folder):
    try:
        return drop_in.score(encode, torch.utils.data.DataLoader(IMAGES), SIZES), False
    except UserError as error:
        return error, "loader.dataset" in str(error)


# --- numbers --------------------------------------------------------------------------------------


@case("Philox(np.int64(3)), Philox(torch.tensor(3))", "Philox(3)")
def _(folder):
    found = [Philox(three).seed.item() for three in (np.int64(3), torch.tensor(3), np.array(3))]
    return found, found == [3, 3, 3]


@case("Philox(2.5), Philox(True)", "an error each")
def _(folder):
    errors = []
    for bad in (2.5, True):
        try:
            Philox(bad)
        except TypeError as error:
            errors.append(str(error))
    return "; ".join(errors), len(errors) == 2


@case("TrainConfig(gamma=np.float32(10), steps=np.int64(5))", "10.0 and 5, also as JSON")
def _(folder):
    config = TrainConfig(gamma=np.float32(10), steps=np.int64(5))
    fine = '"gamma": 10.0' in config.to_json() and '"steps": 5,' in config.to_json()
    return (config.gamma, config.steps), fine and type(config.gamma) is float


@case('TrainConfig(steps=2.5), TrainConfig(steps="5")', "a line each that names the setting")
def _(folder):
    errors = []
    for bad in (2.5, "5"):
        try:
            TrainConfig(steps=bad)
        except UserError as error:
            errors.append(str(error))
    return "; ".join(errors), len(errors) == 2 and all("--steps: got" in e for e in errors)


# --- what a program has set -----------------------------------------------------------------------

for _setting in SETTINGS:
    # Another number of threads divides the sums otherwise.
    _bound = 1e-5 if _setting == "one thread" else 0.0
    _right = "the same weights, to rounding" if _bound else "the same weights, bit for bit"

    @case(f"training under: {_setting}", _right)
    def _(folder, setting=_setting, bound=_bound):
        config, store = dataclasses.replace(SMALL, steps=2), bits(20)
        for name in ("plain", "set"):
            with SETTINGS[setting]() if name == "set" else torch.enable_grad():
                loop.train(loop.create_run(config, folder / name), store, folder / name)
        got, want = tensors(folder / "set"), tensors(folder / "plain")
        pairs = [(got[name].double(), want[name].double()) for name in want if want[name].numel()]
        apart = max((a - b).abs().max() for a, b in pairs)
        return f"{len(got)} tensors, at most {apart:.0e} apart", bool(apart <= bound)


@case("a fork after the import", "the child's ops work on two threads")
def _(folder):
    code = (
        "import os, torch, fvae.drop_in; from fvae import Philox, metrics, ops\n"
        "def work():\n"
        "    codes = torch.zeros(6000, 4); codes[:, 0] += 1\n"
        "    ops.permute_dims(codes, Philox(0)); metrics.factor_vae_score(codes, (30, 20, 10))\n"
        "torch.set_num_threads(2); child = os.fork()\n"
        "if not child: work(); os._exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0; work()\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=os.environ | {"OMP_NUM_THREADS": "2"}, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    return done.stderr.strip()[-200:] or "both ended with 0", done.returncode == 0
