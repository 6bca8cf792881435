"""Encoder, decoder and discriminator of Kim & Mnih 2018, for square images of any size."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from fvae.config import IMAGE_SIZE, TrainConfig
from fvae.device import as_imported
from fvae.models.convolution import ConvTranspose2d
from fvae.models.sequences import layer_of, run
from fvae.ops.adam import LinearGradients
from fvae.ops.reference import kl_to_prior
from fvae.ops.training import pixel_nll

#: Slope of the discriminator's leaky ReLU for negative input.
LEAKY_SLOPE = 0.2

_M = TypeVar("_M", bound=nn.Module)


def sizes(side: int) -> list[int]:
    """Sides in pixels of an image and of what each convolution makes of it: 28, 14, 7, 3, 1."""
    return [side >> i for i in range(5)]


def mirror(i: int, channels: Sequence[int], side: int) -> ConvTranspose2d:
    """The transposed convolution that undoes the i-th convolution, i = 1 to 4.

    Args:
        i: which one; the first takes the image.
        channels: of the image and of the four convolutions.
        side: of the image, pixels.
    """
    # An odd side was rounded down: it gets its last row and column back.
    return ConvTranspose2d(channels[i], channels[i - 1], 4, 2, 1, sizes(side)[i - 1] % 2)


def convolution(inputs: int, outputs: int, kernel: int) -> nn.Conv2d:
    """A convolution that halves the side, rounding down; its kernel's side is an even number."""
    return nn.Conv2d(inputs, outputs, kernel, 2, kernel // 2 - 1)


def check_images(x: Tensor, image_shape: tuple[int, int, int]) -> None:
    """Check that images are of the shape that a network was made for.

    Raises:
        ValueError: they are not; networks of other sizes may have the same layers.
    """
    if x.shape[-3:] != image_shape:
        c, h, w = image_shape
        raise ValueError(f"x: got images {list(x.shape)}, expected [B, {c}, {h}, {w}]")


class VAE(nn.Module):
    """Encoder q(z|x) and decoder p(x|z), whose pixels are Bernoulli or Gaussian of variance 1.

    Four convolutions of stride 2 and a fully connected layer with ReLU, then 2 d outputs; the
    decoder mirrors them with 4 x 4 kernels.

    Args:
        image_channels: C.
        latent_dim: d.
        conv_channels: channels of the four convolutions.
        hidden_units: units of the fully connected layer.
        image_size: S, height and width of the images in pixels, at least 16.
        likelihood: "bernoulli" or "gaussian".
        conv_kernels: sides of the encoder's four kernels, even numbers.

    Source: Kim & Mnih 2018, appendix A.
    """

    #: Traversals go from -2 to +2 standard deviations of the prior.
    span = 2.0
    #: What :meth:`information` measures.
    information_name = "KL"

    def __init__(
        self,
        image_channels: int = 1,
        latent_dim: int = 10,
        conv_channels: Sequence[int] = (32, 32, 64, 64),
        hidden_units: int = 128,
        image_size: int = IMAGE_SIZE,
        likelihood: str = TrainConfig.likelihood,
        conv_kernels: Sequence[int] = TrainConfig.conv_kernels,
    ) -> None:
        super().__init__()
        self.latent_dim, self.likelihood = latent_dim, likelihood
        self.image_shape = (image_channels, image_size, image_size)
        c = [image_channels, *conv_channels]
        encoder: list[nn.Module] = []
        decoder: list[nn.Module] = []
        for i in range(4):
            encoder += [convolution(c[i], c[i + 1], conv_kernels[i]), nn.ReLU(inplace=True)]
            decoder += [nn.ReLU(inplace=True), mirror(4 - i, c, image_size)]
        last = sizes(image_size)[4]
        flat = c[4] * last * last
        self.encoder = nn.Sequential(
            *encoder,
            nn.Flatten(),
            nn.Linear(flat, hidden_units),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_units, 2 * latent_dim),
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent_dim, hidden_units),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_units, flat),
            nn.Unflatten(1, (c[4], last, last)),
            *decoder,
        )

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of q(z|x).

        Args:
            x: images in 0..1, ``[B, C, S, S]``.

        Returns:
            mu and logvar, each ``[B, d]`` float32.
        """
        check_images(x, self.image_shape)
        mu, logvar = run(self.encoder, x).float().chunk(2, dim=1)
        return mu, logvar

    def decode(self, z: Tensor) -> Tensor:
        """Pixel logits of p(x|z), or the pixels' means where they are Gaussian.

        Args:
            z: codes, ``[B, d]``.

        Returns:
            ``[B, C, S, S]``; :meth:`pixels` makes pictures of them.
        """
        return run(self.decoder, z)

    def pixels(self, decoded: Tensor) -> Tensor:
        """Pictures of what :meth:`decode` gave: its sigmoid, or Gaussian means cut to 0..1."""
        decoded = decoded.float()
        return decoded.clamp(0, 1) if self.likelihood == "gaussian" else torch.sigmoid(decoded)

    def nll(self, decoded: Tensor, target: Tensor, backend: str | None = None) -> Tensor:
        """-log p(x|z) of what :meth:`decode` gave.

        Args:
            decoded: ``[B, C, S, S]``.
            target: x in any form that :func:`fvae.ops.bernoulli_nll` takes.
            backend: of :func:`fvae.ops.bernoulli_nll` or :func:`fvae.ops.gaussian_nll`.

        Returns:
            ``[]`` float32, nats an image, mean over the batch. NaN, not an error, where Bernoulli's
            x is outside 0..1: nothing waits for the device.
        """
        return pixel_nll(f"{self.likelihood}_nll", decoded, target, backend)

    def information(self, mu: Tensor, logvar: Tensor) -> Tensor:
        """Mean KL of q(z_j|x) to the prior, nats: ``[N, d]`` twice -> float64 ``[d]``."""
        return kl_to_prior(mu, logvar).double().mean(0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the mean code decodes to, with mu and logvar."""
        mu, logvar = self.encode(x)
        return self.decode(mu), mu, logvar


class Discriminator(nn.Module):
    """MLP from a code to two logits: 0 is "drawn from q(z)", 1 is "permuted".

    Args:
        latent_dim: d.
        units: units of each hidden layer, leaky ReLU of slope 0.2.
        hidden_layers: number of hidden layers.

    Attributes:
        take: what is given the gradients of the weights, unmade, in place of autograd, where
            :func:`fvae.training.two_players.two_players` can leave them so; None, as at first:
            nobody, and autograd has them.

    Source: Kim & Mnih 2018, appendix A.
    """

    take: Callable[[LinearGradients], None] | None

    def __init__(self, latent_dim: int = 10, units: int = 1000, hidden_layers: int = 6) -> None:
        super().__init__()
        self.take = None
        widths = [latent_dim] + [units] * hidden_layers + [2]
        self.layers = nn.ModuleList(
            nn.Linear(i, o) for i, o in zip(widths[:-1], widths[1:], strict=True)
        )

    def forward(self, z: Tensor) -> Tensor:
        """Return the logits, ``[B, 2]``, of codes ``[B, d]``."""
        for layer in self.layers[:-1]:
            z = layer_of(layer, z, LEAKY_SLOPE)
        return layer_of(self.layers[-1], z)


def channels_last(network: _M, device: torch.device | str) -> _M:
    """Move a network to a device, its convolutions' weights channels last; return it."""
    # PyTorch's declaration of Module.to leaves memory_format out.
    return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


@contextmanager
def initialised(seed: int) -> Iterator[None]:
    """Within it, new modules' weights are on the CPU and depend on the seed alone.

    The caller's random numbers go on as if nothing had been drawn, on every device:
    ``torch.manual_seed`` would seed the GPUs' generators, too.
    """
    with as_imported(), torch.random.fork_rng(devices=[]), torch.device("cpu"):
        # Any integer is a seed; of those that PyTorch refuses, the remainder modulo 2**64.
        fits = -(1 << 63) <= seed < 1 << 64
        torch.default_generator.manual_seed(seed if fits else seed % (1 << 64))
        yield


#: VAE, and discriminator where the objective has one.
Networks: TypeAlias = tuple[VAE, Discriminator | None]


def build(config: TrainConfig, image_channels: int, discriminator: bool = False) -> Networks:
    """Make the networks of a configuration; the weights depend on its seed alone."""
    with initialised(config.seed):
        vae = VAE(
            image_channels,
            config.latent_dim,
            config.conv_channels,
            config.hidden_units,
            config.image_size or IMAGE_SIZE,
            config.likelihood,
            config.conv_kernels,
        )
        if not discriminator:
            return vae, None
        return vae, Discriminator(config.latent_dim, config.disc_units, config.disc_hidden_layers)
