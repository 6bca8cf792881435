"""The README's loop with somebody's own model, and the scores of any encoder on any data set."""

import math
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fvae import drop_in, evaluate, metrics, ops
from fvae.data import Store
from fvae.errors import UserError
from fvae.models.vae import VAE, Discriminator
from fvae.training.two_players import two_players

README = Path(__file__).parents[1] / "README.md"
SIZES = (3, 4, 5)
N = math.prod(SIZES)


class TheirVae(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Flatten(), nn.Linear(60, 16), nn.Tanh(), nn.Linear(16, 6))
        self.outer = nn.Linear(3, 60)
        self.seen = []

    def encode(self, x):
        self.seen.append(len(x))
        assert torch.is_grad_enabled() == self.training
        return self.inner(x).chunk(2, dim=1)

    def forward(self, x):
        mu, logvar = self.inner(x).chunk(2, dim=1)
        z = mu + torch.randn_like(mu) * (logvar / 2).exp()
        return self.outer(z), mu, logvar, z


def their_discriminator(logits):
    return nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, logits))


class TheirData(torch.utils.data.Dataset):
    """One-hot images of three factors; items are (image, label)."""

    def __init__(self):
        digits = np.stack(np.unravel_index(np.arange(N), SIZES), axis=1)
        hot = [F.one_hot(torch.as_tensor(d), 20) for d in digits.T]
        self.images = torch.cat(hot, dim=1).float()
        self.read = []

    def __len__(self):
        return N

    def __getitem__(self, index):
        self.read.append(index)
        return self.images[index], index


def readme_example():
    blocks = re.findall(r"(?:^    .*\n|^\n)+", README.read_text(), re.MULTILINE)
    (block,) = (b for b in blocks if "drop_in.score" in b)
    return textwrap.dedent(block)


@pytest.mark.parametrize("logits", [1, 2])
def test_the_example_in_the_readme(logits, capsys):
    dataset, vae, disc = TheirData(), TheirVae(), their_discriminator(logits)
    optimizer = torch.optim.Adam(
        [
            {"params": vae.parameters(), "lr": 1e-2},
            {"params": disc.parameters(), "lr": 1e-2, "betas": (0.5, 0.9)},
        ]
    )
    losses = []

    def negative_elbo(x, logits, mu, logvar):
        recon = F.binary_cross_entropy_with_logits(logits, x, reduction="sum") / len(x)
        losses.append(recon.item())
        return recon + (mu**2 + logvar.exp() - logvar - 1).sum(1).mean() / 2

    def batches():
        for _ in range(100):
            yield dataset.images[torch.randint(N, (2, 32))]
        vae.eval()  # the loop ends here

    before = [p.clone() for p in (*vae.parameters(), *disc.parameters())]
    own = {
        "torch": torch, "vae": vae, "disc": disc, "optimizer": optimizer, "gamma": 2.0,
        "batches": batches(), "dataset": dataset, "negative_elbo": negative_elbo,
    }  # fmt: skip
    exec(compile(readme_example(), str(README), "exec"), own)

    assert losses[-1] < 0.8 * losses[0]
    for p, q in zip(before, (*vae.parameters(), *disc.parameters()), strict=True):
        assert not torch.equal(p, q)
    assert sorted(dataset.read) == list(range(N))
    assert max(vae.seen) <= 128 and sum(vae.seen) == N
    with torch.no_grad():
        mu, logvar = vae.inner(dataset.images).chunk(2, dim=1)
    kl = (mu**2 + logvar.exp() - logvar - 1).mean(0) / 2
    want = metrics.factor_vae_score(mu, SIZES, kl=kl)
    assert torch.equal(own["result"].votes, want.votes)
    assert str(own["result"].score) in capsys.readouterr().out


def test_permute_dims_is_the_op():
    z = torch.randn(7, 3)
    torch.manual_seed(1)
    got = drop_in.permute_dims(z)
    torch.manual_seed(1)
    assert torch.equal(got, ops.permute_dims(z))


def test_one_logit_is_the_difference_of_two():
    two = their_discriminator(2)
    one = their_discriminator(1)
    with torch.no_grad():
        one[0].load_state_dict(two[0].state_dict())
        one[2].weight.copy_(two[2].weight[:1] - two[2].weight[1:])
        one[2].bias.copy_(two[2].bias[:1] - two[2].bias[1:])
    flat = nn.Sequential(one, nn.Flatten(0))
    z, z_perm = torch.randn(9, 3, requires_grad=True), torch.randn(9, 3)
    results = []
    for disc in (two, one, flat):
        terms = drop_in.tc_and_disc_loss(disc, z, z_perm)
        first = next(disc.parameters())
        results.append([*terms, *torch.autograd.grad(terms[0] + 2 * terms[1], (z, first))])
    for other in results[1:]:
        for got, want in zip(other, results[0], strict=True):
            torch.testing.assert_close(got, want)


def test_our_discriminator_keeps_its_shared_backward():
    disc, z, z_perm = Discriminator(3, 8, 2), torch.randn(2, 5, 3).requires_grad_(), None
    z, z_perm = z[0], z[1].detach()
    got, want = drop_in.tc_and_disc_loss(disc, z, z_perm), two_players(disc, z, z_perm)
    assert got[0].grad_fn.name() == want[0].grad_fn.name() == "_SharedBackwardBackward"
    assert torch.equal(torch.stack(got), torch.stack(want))


def test_three_logits_are_refused():
    with pytest.raises(ValueError, match=r"discriminator: gave \[4, 3\] for codes \[4, 3\]"):
        drop_in.tc_and_disc_loss(their_discriminator(3), torch.randn(4, 3), torch.randn(4, 3))


# --- score ----------------------------------------------------------------------------------

MIX = torch.randn(60, 4, generator=torch.Generator().manual_seed(5))


def _encode(images):
    return images.float() @ MIX


def test_every_kind_of_data_set_gives_the_same_score(tmp_path):
    images = TheirData().images
    with h5py.File(tmp_path / "images.h5", "w") as file:
        kinds = [images, images.numpy(), TheirData(), file.create_dataset("x", data=images.numpy())]
        scores = [drop_in.score(_encode, kind, SIZES, batch_size=7) for kind in kinds]
    want = metrics.factor_vae_score(_encode(images), SIZES)
    for got in scores:
        assert torch.equal(got.votes, want.votes)
    as_numpy = drop_in.score(lambda x: _encode(x).numpy().astype("f8"), images, SIZES)
    assert torch.equal(as_numpy.votes, want.votes)


@pytest.mark.parametrize("metric", [n for n, m in metrics.METRICS.items() if not m.posterior])
def test_every_metric(metric):
    images = TheirData().images
    state = torch.get_rng_state()
    got = drop_in.score(_encode, TheirData(), SIZES, metric=metric, seed=3).score
    assert torch.equal(torch.get_rng_state(), state)
    factors = metrics.Factors.grid(SIZES)
    want = metrics.METRICS[metric].score(_encode(images), factors, "kim2018", 3, None)
    assert got == want.score


class _Linear(nn.Module):
    latent_dim, information = 4, VAE.information

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 8)
        self.seen = 0

    def encode(self, x):
        self.seen += len(x)
        return self.layer(x.flatten(1)).chunk(2, dim=1)


def test_a_store_is_scored_as_fvae_eval_scores_it():
    sizes = (50, 50, 60)
    bits = torch.randint(0, 256, (math.prod(sizes), 2), dtype=torch.uint8)
    store = Store("bits", bits, (1, 4, 4), True, ("a", "b", "c"), sizes)
    model = _Linear()
    rows = metrics.needed(sizes, "factor_vae")
    codes, kl = evaluate.encode(model, store, rows)
    every = torch.full((len(store), 4), torch.nan)
    every[rows] = codes
    want = metrics.factor_vae_score(every, sizes, kl=kl)
    model.seen = 0
    got = drop_in.score(model.encode, store)
    assert model.seen == len(rows) < len(store)
    assert 0 < want.active.sum() < 4  # the KL decides
    assert torch.equal(got.active, want.active)
    assert torch.equal(got.votes, want.votes)


def _nan(images):
    return torch.where(images[:, :1] > 0, torch.nan, _encode(images))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"factor_sizes": (3, 4)}, r"dataset: has 60 images, expected 12, the product .*\[3, 4\]"),
        ({"factor_sizes": None}, "factor_sizes: the data set has none of its own"),
        ({"factor_sizes": (60, 1)}, "each of at least 2"),
        ({"metric": "fid"}, "'fid', expected one of factor_vae"),
        ({"protocol": "mine"}, "protocol: got 'mine', but factor_vae has kim2018"),
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"encode": lambda x: x[:3]}, r"encode: gave \[3, 60\] for 60 images, expected \[60, d\]"),
        ({"encode": lambda x: x[:, 0]}, r"encode: gave \[60\] for 60 images"),
        ({"encode": lambda x: (x, x[:, :2])}, r"encode: gave \[60, 60\] and \[60, 2\]"),
        ({"encode": lambda x: (x, x, x)}, "encode: gave 3 things"),
        ({"encode": lambda x: x.long()}, "encode: gave torch.int64, expected floating point"),
        ({"encode": _nan}, "encode: gave a code that is not finite for image 0"),
        (
            {"encode": lambda x: torch.rand(len(x), len(x)), "batch_size": 40},
            "encode: gave 20 dimensions, after 40",
        ),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    arguments = {"encode": _encode, "dataset": TheirData(), "factor_sizes": SIZES} | change
    with pytest.raises(UserError, match=message):
        drop_in.score(**arguments)


def test_a_store_without_factors_needs_sizes():
    store = Store("bits", torch.zeros(N, 512, dtype=torch.uint8), (1, 64, 64), True)
    with pytest.raises(UserError, match="factor_sizes"):
        drop_in.score(lambda x: x.flatten(1)[:, :2], store)
    result = drop_in.score(lambda x: x.flatten(1)[:, :2], store, SIZES)
    assert (result.score, result.note) == (0.0, "no active dimension")


def test_the_import_is_light():
    code = """
        import sys, torch
        before = set(sys.modules)
        from fvae import drop_in
        assert not {"sklearn", "scipy", "h5py", "matplotlib", "rich", "triton"} & (
            {m.partition(".")[0] for m in set(sys.modules) - before})
        assert all(getattr(drop_in, name).__doc__ for name in drop_in.__all__)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)
