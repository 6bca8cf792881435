"""The FactorVAE step as a user would write it from the paper: what ours is timed against.

As it is usually written: fp32, contiguous, batch 64, two discriminator passes, ``retain_graph``, a
``randperm`` on the host for each latent, Adam one tensor at a time, 6 x 1000 discriminator. And
as somebody would write it who knows PyTorch: random numbers drawn on the device, foreach or fused
Adam, bf16 autocast, ``torch.compile``. It uses nothing of fvae but plain images.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def encoder(latent_dim: int = 10) -> nn.Sequential:
    """Return the encoder of Kim & Mnih 2018, [B, 1, 64, 64] -> [B, 2 d]."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 4, 2, 1), nn.ReLU(),
        nn.Conv2d(32, 32, 4, 2, 1), nn.ReLU(),
        nn.Conv2d(32, 64, 4, 2, 1), nn.ReLU(),
        nn.Conv2d(64, 64, 4, 2, 1), nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1024, 128), nn.ReLU(),
        nn.Linear(128, 2 * latent_dim),
    )  # fmt: skip


def decoder(latent_dim: int = 10) -> nn.Sequential:
    """Return the decoder, [B, d] -> logits [B, 1, 64, 64]."""
    return nn.Sequential(
        nn.Linear(latent_dim, 128), nn.ReLU(),
        nn.Linear(128, 1024),
        nn.Unflatten(1, (64, 4, 4)), nn.ReLU(),
        nn.ConvTranspose2d(64, 64, 4, 2, 1), nn.ReLU(),
        nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.ReLU(),
        nn.ConvTranspose2d(32, 32, 4, 2, 1), nn.ReLU(),
        nn.ConvTranspose2d(32, 1, 4, 2, 1),
    )  # fmt: skip


def discriminator(latent_dim: int = 10, units: int = 1000, hidden_layers: int = 6) -> nn.Sequential:
    """Return the discriminator, [B, d] -> logits [B, 2]; logit 0 is q(z)."""
    layers: list[nn.Module] = []
    width = latent_dim
    for _ in range(hidden_layers):
        layers += [nn.Linear(width, units), nn.LeakyReLU(0.2)]
        width = units
    return nn.Sequential(*layers, nn.Linear(width, 2))


def permute_dims(z: Tensor) -> Tensor:
    """Shuffle each column of z by a permutation of its own, drawn on the host."""
    return torch.stack([z[torch.randperm(len(z)), j] for j in range(z.shape[1])], dim=1)


def permute_dims_on_device(z: Tensor) -> Tensor:
    """Shuffle each column of z by a permutation that is drawn where z is: no copy, no sync."""
    orders = (torch.randperm(len(z), device=z.device) for _ in range(z.shape[1]))
    return torch.stack([z[order, j] for j, order in enumerate(orders)], dim=1)


def permute_dims_by_sorting(z: Tensor) -> Tensor:
    """Shuffle all columns of z at once, by the order of uniform random keys."""
    return z.gather(0, torch.rand(z.shape, device=z.device).argsort(0))


#: Ways to run Adam, as PyTorch names them: one tensor after another, or many in one launch.
ADAM = {"single": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}


class Textbook:
    """Both players' networks and optimizers, and one step of Algorithm 2.

    Args:
        gamma: weight of the total correlation.
        units: of each hidden layer of the discriminator.
        noise: draws standard normal noise of a tensor's shape.
        permute: shuffles the columns of codes.
        device: where the networks are.
        adam: a name in :data:`ADAM`.
        bf16: run the forward passes under bf16 autocast.
        retain_graph: keep the first backward's graph, as many implementations do for no use.
        compile_mode: a mode of ``torch.compile`` for both loss functions; None compiles nothing.
    """

    def __init__(
        self,
        gamma: float = 35.0,
        units: int = 1000,
        noise: Callable[[Tensor], Tensor] = torch.randn_like,
        permute: Callable[[Tensor], Tensor] = permute_dims,
        device: str = "cpu",
        adam: str = "single",
        bf16: bool = False,
        retain_graph: bool = True,
        compile_mode: str | None = None,
    ) -> None:
        self.gamma, self.noise, self.permute = gamma, noise, permute
        self.bf16, self.retain_graph, self.compiled = bf16, retain_graph, compile_mode is not None
        nets = encoder(), decoder(), discriminator(units=units)
        self.encoder, self.decoder, self.disc = (net.to(device) for net in nets)
        self.vae_parameters = [*self.encoder.parameters(), *self.decoder.parameters()]
        self.vae_adam = torch.optim.Adam(self.vae_parameters, lr=1e-4, **ADAM[adam])
        self.disc_adam = torch.optim.Adam(
            self.disc.parameters(), lr=1e-4, betas=(0.5, 0.9), **ADAM[adam]
        )
        if compile_mode is not None:
            self.vae_losses = torch.compile(self.vae_losses, mode=compile_mode)
            self.disc_loss = torch.compile(self.disc_loss, mode=compile_mode)

    def vae_losses(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return recon, kl, tc and the codes z of a batch."""
        # ``float`` does nothing in fp32; under autocast it keeps the losses out of bf16.
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            mu, logvar = self.encoder(x).float().chunk(2, dim=1)
            z = mu + torch.exp(0.5 * logvar) * self.noise(mu)
            recon = F.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="sum") / len(x)
            kl = -0.5 * (1 + logvar - mu.pow(2) - logvar.exp()).sum() / len(x)
            logits_z = self.disc(z).float()
            tc = (logits_z[:, 0] - logits_z[:, 1]).mean()
        return recon, kl, tc, z

    def disc_loss(self, z: Tensor, x_second: Tensor) -> Tensor:
        """Return the discriminator's loss: codes of one batch against the permuted of another."""
        with torch.autocast(z.device.type, torch.bfloat16, enabled=self.bf16):
            mu, logvar = self.encoder(x_second).float().chunk(2, dim=1)
            z_second = mu + torch.exp(0.5 * logvar) * self.noise(mu)
            z_perm = self.permute(z_second).detach()
            zeros = torch.zeros(len(z), dtype=torch.long, device=z.device)
            loss_z = F.cross_entropy(self.disc(z.detach()), zeros)
            loss_perm = F.cross_entropy(self.disc(z_perm), zeros + 1)
            return 0.5 * (loss_z + loss_perm)

    def losses(self, x: Tensor, x_second: Tensor) -> dict[str, Tensor]:
        """Compute the losses and leave both players' gradients in ``.grad``."""
        recon, kl, tc, z = self.vae_losses(x)
        self.vae_adam.zero_grad()
        (recon + kl + self.gamma * tc).backward(retain_graph=self.retain_graph)
        disc_loss = self.disc_loss(z.detach(), x_second)
        self.disc_adam.zero_grad()
        disc_loss.backward()
        return {"recon": recon, "kl": kl, "tc": tc, "disc_loss": disc_loss}

    def step(self, x: Tensor, x_second: Tensor) -> dict[str, Tensor]:
        """Train both players once."""
        if self.compiled:
            # Under mode "reduce-overhead" the last step's results, gradients too, are overwritten.
            self.vae_adam.zero_grad()
            self.disc_adam.zero_grad()
            torch.compiler.cudagraph_mark_step_begin()
        losses = self.losses(x, x_second)
        self.vae_adam.step()
        self.disc_adam.step()
        return losses
