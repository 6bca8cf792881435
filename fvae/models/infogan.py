"""Networks of InfoGAN and InfoWGAN-GP: generator, and critic with a Q head.

The generator makes an image from a code c, uniform in [-1, 1] in each dimension, optional
categorical codes and noise; Q(c|x), a Gaussian whose parameters share the critic's trunk, guesses
the code back. Neither network has batch normalisation: the gradient penalty is a function of one
image, and the encoder of the VAEs, whose shape the trunk takes so that representations can be
compared, has none.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fvae import philox
from fvae.config import IMAGE_SIZE, TrainConfig
from fvae.models.vae import LEAKY_SLOPE, check_images, convolution, initialised, mirror, sizes
from fvae.philox import Philox, Stream


@dataclass(frozen=True)
class Codes:
    """What the generator makes an image from.

    Attributes:
        continuous: ``[B, d]`` float32, each uniform in [-1, 1).
        noise: ``[B, noise_dim]`` float32, uniform in [-1, 1).
        categories: ``[B, number of categorical codes]`` int64.
    """

    continuous: Tensor
    noise: Tensor
    categories: Tensor

    def split(self, batch_size: int) -> list["Codes"]:
        """Return batches of ``batch_size`` rows."""
        parts = (t.split(batch_size) for t in (self.continuous, self.noise, self.categories))
        return [Codes(*rows) for rows in zip(*parts, strict=True)]


class Critic(nn.Module):
    """Score and Q(c|x) of an image on one trunk, shaped like the VAE's encoder.

    Four convolutions of stride 2 and a fully connected layer, each with leaky ReLU of slope
    0.2; on top two linear heads: a score (a logit for InfoGAN), and the parameters of Q.

    Args:
        image_channels: C.
        q_outputs: outputs of the Q head.
        conv_channels: channels of the four convolutions.
        hidden_units: units of the fully connected layer.
        image_size: S, height and width of the images in pixels, at least 16.
        conv_kernels: sides of the four kernels, even numbers.
    """

    def __init__(
        self,
        image_channels: int,
        q_outputs: int,
        conv_channels: Sequence[int],
        hidden_units: int,
        image_size: int = IMAGE_SIZE,
        conv_kernels: Sequence[int] = TrainConfig.conv_kernels,
    ) -> None:
        super().__init__()
        c = [image_channels, *conv_channels]
        layers: list[nn.Module] = []
        for i in range(4):
            layers.append(convolution(c[i], c[i + 1], conv_kernels[i]))
            layers.append(nn.LeakyReLU(LEAKY_SLOPE, inplace=True))
        layers += [nn.Flatten(), nn.Linear(c[4] * sizes(image_size)[4] ** 2, hidden_units)]
        self.trunk = nn.Sequential(*layers, nn.LeakyReLU(LEAKY_SLOPE, inplace=True))
        self.score = nn.Linear(hidden_units, 1)
        self.q = nn.Linear(hidden_units, q_outputs)

    def penalised(self) -> list[nn.Module]:
        """Layers from image to score, in order."""
        return [*self.trunk, self.score]


class InfoGAN(nn.Module):
    """Generator, and critic with Q head; the representation of an image is the mean of Q(c|x).

    Args:
        image_channels: C.
        latent_dim: d, the continuous codes.
        noise_dim: noise variables of the generator.
        categorical_sizes: number of values of each categorical code.
        conv_channels: channels of the trunk's four convolutions; the generator mirrors them.
        hidden_units: units of the fully connected layer of both.
        image_size: S, height and width of the images in pixels, at least 16.
        conv_kernels: sides of the trunk's four kernels, even numbers; the generator's are 4.

    Source: Chen et al. 2016; shapes of Kim & Mnih 2018, appendix A.
    """

    #: Traversals go over the codes' prior, from -1 to 1.
    span = 1.0
    #: What :meth:`information` measures.
    information_name = "mutual information"

    def __init__(
        self,
        image_channels: int,
        latent_dim: int,
        noise_dim: int,
        categorical_sizes: Sequence[int],
        conv_channels: Sequence[int],
        hidden_units: int,
        image_size: int = IMAGE_SIZE,
        conv_kernels: Sequence[int] = TrainConfig.conv_kernels,
    ) -> None:
        super().__init__()
        self.latent_dim, self.noise_dim = latent_dim, noise_dim
        self.image_shape = (image_channels, image_size, image_size)
        self.categorical_sizes = tuple(categorical_sizes)
        c = [image_channels, *conv_channels]
        layers: list[nn.Module] = []
        for i in range(4, 0, -1):
            layers += [nn.ReLU(inplace=True), mirror(i, c, image_size)]
        last = sizes(image_size)[4]
        self.generator = nn.Sequential(
            nn.Linear(latent_dim + noise_dim + sum(self.categorical_sizes), hidden_units),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_units, c[4] * last * last),
            nn.Unflatten(1, (c[4], last, last)),
            *layers,
        )
        q_outputs = 2 * latent_dim + sum(self.categorical_sizes)
        self.critic = Critic(
            image_channels, q_outputs, conv_channels, hidden_units, image_size, conv_kernels
        )

    def draw(self, count: int, rng: Philox) -> Codes:
        """Draw codes and noise from their priors; row b takes the b-th run of words."""
        d, n = self.latent_dim, self.latent_dim + self.noise_dim
        width = n + len(self.categorical_sizes)
        word = philox.words(rng.seed, rng.step, Stream.CODES.at(rng.lane), count * width)
        word = word.view(count, width)
        uniform = 2 * philox.uniform(word[:, :n]) - 1
        categories = word[:, n:].clone()
        for column, size in zip(categories.unbind(1), self.categorical_sizes, strict=True):
            column.copy_(philox.bounded(column, size))
        return Codes(uniform[:, :d], uniform[:, d:], categories)

    def generate(self, codes: Codes) -> Tensor:
        """Pixel logits of each code's image, ``[B, C, S, S]``; the image is their sigmoid."""
        parts = [codes.continuous, codes.noise]
        for column, size in zip(codes.categories.unbind(1), self.categorical_sizes, strict=True):
            # A comparison, not one_hot, which would wait for the device to check the classes.
            parts.append((column[:, None] == torch.arange(size, device=column.device)).float())
        return self.generator(torch.cat(parts, 1))

    def images(self, codes: Codes) -> Tensor:
        """Images of codes, ``[B, C, S, S]`` float32, 0..1, channels last."""
        return self.pixels(self.generate(codes)).contiguous(memory_format=torch.channels_last)

    def pixels(self, decoded: Tensor) -> Tensor:
        """Pictures of pixel logits: their sigmoid."""
        return torch.sigmoid(decoded.float())

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of Q(c|x) of the continuous codes.

        Args:
            x: images in 0..1, ``[B, C, S, S]``.

        Returns:
            mu and logvar, each ``[B, d]`` float32.
        """
        check_images(x, self.image_shape)
        mu, logvar, _ = self.split_q(self.critic.q(self.critic.trunk(x)))
        return mu, logvar

    def split_q(self, q: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Mean, log variance and each categorical code's logits, from outputs of the Q head."""
        d = self.latent_dim
        mu, logvar, *logits = q.float().split((d, d, *self.categorical_sizes), dim=1)
        return mu, logvar, logits

    def decode(self, z: Tensor, categories: Tensor | None = None) -> Tensor:
        """Pixel logits of continuous codes with noise 0, the mean of its prior.

        Args:
            z: continuous codes, ``[B, d]``.
            categories: int64 ``[B, number of categorical codes]``; None is the first of each.

        Returns:
            logits, ``[B, C, S, S]``; the image is their sigmoid.
        """
        if categories is None:
            categories = z.new_zeros(len(z), len(self.categorical_sizes), dtype=torch.int64)
        return self.generate(Codes(z, z.new_zeros(len(z), self.noise_dim), categories))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the mean code and the likeliest categories, with mu and logvar.

        Noise is 0 and nothing is trained to reconstruct: the image shows what the codes hold.
        """
        mu, logvar, logits = self.split_q(self.critic.q(self.critic.trunk(x)))
        likeliest = [one.argmax(1) for one in logits]
        categories = torch.stack(likeliest, 1) if likeliest else None
        return self.decode(mu, categories), mu, logvar

    def information(self, mu: Tensor, logvar: Tensor) -> Tensor:
        """Estimate of the mutual information of image and each continuous code, under Q.

        ``log(var(mu) + mean(exp(logvar))) / 2 - mean(logvar) / 2``: the entropy of the codes of
        these images, taken as Gaussian, less the mean entropy of Q(c|x). 0 for a code that Q gives
        the same distribution whatever the image.

        Args:
            mu: means of Q(c|x), ``[N, d]``.
            logvar: log variances, ``[N, d]``.

        Returns:
            float64 ``[d]``, nats.
        """
        mu, logvar = mu.double(), logvar.double()
        marginal = mu.var(0, correction=0) + logvar.exp().mean(0)
        return (marginal.log() - logvar.mean(0)) / 2


def build(config: TrainConfig, image_channels: int) -> InfoGAN:
    """Make the networks of a configuration; the weights depend on its seed alone."""
    with initialised(config.seed):
        return InfoGAN(
            image_channels,
            config.latent_dim,
            config.noise_dim,
            config.categorical_sizes,
            config.conv_channels,
            config.hidden_units,
            config.image_size or IMAGE_SIZE,
            config.conv_kernels,
        )
