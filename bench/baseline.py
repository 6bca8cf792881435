"""The FactorVAE step as a user would write it from the paper: what ours is timed against.

fp32, contiguous, batch 64, two discriminator passes, ``retain_graph``, a ``randperm`` for each
latent, unfused Adam, 6 x 1000 discriminator. It uses nothing of fvae but plain images.
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
    """Shuffle each column of z by a permutation of its own."""
    return torch.stack([z[torch.randperm(len(z)), j] for j in range(z.shape[1])], dim=1)


class Textbook:
    """Both players' networks and optimizers, and one step of Algorithm 2."""

    def __init__(
        self,
        gamma: float = 35.0,
        units: int = 1000,
        noise: Callable[[Tensor], Tensor] = torch.randn_like,
        permute: Callable[[Tensor], Tensor] = permute_dims,
        device: str = "cpu",
    ) -> None:
        self.gamma, self.noise, self.permute = gamma, noise, permute
        nets = encoder(), decoder(), discriminator(units=units)
        self.encoder, self.decoder, self.disc = (net.to(device) for net in nets)
        self.vae_parameters = [*self.encoder.parameters(), *self.decoder.parameters()]
        self.vae_adam = torch.optim.Adam(self.vae_parameters, lr=1e-4, foreach=False)
        self.disc_adam = torch.optim.Adam(
            self.disc.parameters(), lr=1e-4, betas=(0.5, 0.9), foreach=False
        )

    def losses(self, x: Tensor, x_second: Tensor) -> dict[str, Tensor]:
        """Compute the losses and leave both players' gradients in ``.grad``."""
        batch = len(x)
        mu, logvar = self.encoder(x).chunk(2, dim=1)
        z = mu + torch.exp(0.5 * logvar) * self.noise(mu)
        recon = F.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="sum") / batch
        kl = -0.5 * (1 + logvar - mu.pow(2) - logvar.exp()).sum() / batch
        logits_z = self.disc(z)
        tc = (logits_z[:, 0] - logits_z[:, 1]).mean()
        self.vae_adam.zero_grad()
        (recon + kl + self.gamma * tc).backward(retain_graph=True)

        mu, logvar = self.encoder(x_second).chunk(2, dim=1)
        z_second = mu + torch.exp(0.5 * logvar) * self.noise(mu)
        z_perm = self.permute(z_second).detach()
        zeros = torch.zeros(batch, dtype=torch.long, device=x.device)
        loss_z = F.cross_entropy(self.disc(z.detach()), zeros)
        loss_perm = F.cross_entropy(self.disc(z_perm), zeros + 1)
        disc_loss = 0.5 * (loss_z + loss_perm)
        self.disc_adam.zero_grad()
        disc_loss.backward()
        return {"recon": recon, "kl": kl, "tc": tc, "disc_loss": disc_loss}

    def step(self, x: Tensor, x_second: Tensor) -> dict[str, Tensor]:
        """Train both players once."""
        losses = self.losses(x, x_second)
        self.vae_adam.step()
        self.disc_adam.step()
        return losses
