"""InfoGAN and InfoWGAN-GP: generator, critic with a Q head, and their losses.

The generator makes an image from a code c, uniform in [-1, 1] in each dimension, optional
categorical codes and noise; Q(c|x), a Gaussian whose parameters share the critic's trunk, guesses
the code back. ``mi = E[log Q(c | G(c, noise))] + H(c)`` is a lower bound of the mutual information
of code and image (Chen et al. 2016, equation 4).

Who is trained on what, as in the authors' implementation of InfoGAN:

* critic, trunk and Q head minimise ``critic_loss - mi_weight * mi``;
* the generator minimises ``generator_loss - mi_weight * mi``.

The critic's loss is that of Wasserstein GAN with gradient penalty (Gulrajani et al. 2017) or of
the usual GAN (Goodfellow et al. 2014, non-saturating). Neither network has batch normalisation:
the penalty is a function of one image, and the encoder of the VAEs, whose shape the trunk takes so
that representations can be compared, has none.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fvae import philox
from fvae.config import TrainConfig
from fvae.nets import LEAKY_SLOPE, ConvTranspose2d, initialised
from fvae.philox import Philox, Stream

Terms = dict[str, Tensor]


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

    Four 4 x 4 convolutions of stride 2 and a fully connected layer, each with leaky ReLU of slope
    0.2; on top two linear heads: a score (a logit for InfoGAN), and the parameters of Q.

    Args:
        image_channels: C, 1 or 3.
        q_outputs: outputs of the Q head.
        conv_channels: channels of the four convolutions.
        hidden_units: units of the fully connected layer.
    """

    def __init__(
        self,
        image_channels: int,
        q_outputs: int,
        conv_channels: Sequence[int],
        hidden_units: int,
    ) -> None:
        super().__init__()
        c = [image_channels, *conv_channels]
        layers: list[nn.Module] = []
        for i in range(4):
            layers += [nn.Conv2d(c[i], c[i + 1], 4, 2, 1), nn.LeakyReLU(LEAKY_SLOPE, inplace=True)]
        layers += [nn.Flatten(), nn.Linear(c[4] * 4 * 4, hidden_units)]
        self.trunk = nn.Sequential(*layers, nn.LeakyReLU(LEAKY_SLOPE, inplace=True))
        self.score = nn.Linear(hidden_units, 1)
        self.q = nn.Linear(hidden_units, q_outputs)

    def penalised(self) -> list[nn.Module]:
        """Layers from image to score, in order."""
        return [*self.trunk, self.score]


class InfoGAN(nn.Module):
    """Generator, and critic with Q head; the representation of an image is the mean of Q(c|x).

    Args:
        image_channels: C, 1 or 3.
        latent_dim: d, the continuous codes.
        noise_dim: noise variables of the generator.
        categorical_sizes: number of values of each categorical code.
        conv_channels: channels of the trunk's four convolutions; the generator mirrors them.
        hidden_units: units of the fully connected layer of both.

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
    ) -> None:
        super().__init__()
        self.latent_dim, self.noise_dim = latent_dim, noise_dim
        self.categorical_sizes = tuple(categorical_sizes)
        c = [image_channels, *conv_channels]
        layers: list[nn.Module] = []
        for i in range(4, 0, -1):
            layers += [nn.ReLU(inplace=True), ConvTranspose2d(c[i], c[i - 1], 4, 2, 1)]
        self.generator = nn.Sequential(
            nn.Linear(latent_dim + noise_dim + sum(self.categorical_sizes), hidden_units),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_units, c[4] * 4 * 4),
            nn.Unflatten(1, (c[4], 4, 4)),
            *layers,
        )
        q_outputs = 2 * latent_dim + sum(self.categorical_sizes)
        self.critic = Critic(image_channels, q_outputs, conv_channels, hidden_units)

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
        """Pixel logits of each code's image, ``[B, C, 64, 64]``; the image is their sigmoid."""
        parts = [codes.continuous, codes.noise]
        for column, size in zip(codes.categories.unbind(1), self.categorical_sizes, strict=True):
            # A comparison, not one_hot, which would wait for the device to check the classes.
            parts.append((column[:, None] == torch.arange(size, device=column.device)).float())
        return self.generator(torch.cat(parts, 1))

    def images(self, codes: Codes) -> Tensor:
        """Images of codes, ``[B, C, 64, 64]`` float32, 0..1, channels last."""
        pixels = torch.sigmoid(self.generate(codes).float())
        return pixels.contiguous(memory_format=torch.channels_last)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of Q(c|x) of the continuous codes.

        Args:
            x: images in 0..1, ``[B, C, 64, 64]``.

        Returns:
            mu and logvar, each ``[B, d]`` float32.
        """
        mu, logvar, _ = self._split(self.critic.q(self.critic.trunk(x)))
        return mu, logvar

    def _split(self, q: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        d = self.latent_dim
        mu, logvar, *logits = q.float().split((d, d, *self.categorical_sizes), dim=1)
        return mu, logvar, logits

    def decode(self, z: Tensor, categories: Tensor | None = None) -> Tensor:
        """Pixel logits of continuous codes with noise 0, the mean of its prior.

        Args:
            z: continuous codes, ``[B, d]``.
            categories: int64 ``[B, number of categorical codes]``; None is the first of each.

        Returns:
            logits, ``[B, C, 64, 64]``; the image is their sigmoid.
        """
        if categories is None:
            categories = z.new_zeros(len(z), len(self.categorical_sizes), dtype=torch.int64)
        return self.generate(Codes(z, z.new_zeros(len(z), self.noise_dim), categories))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the mean code and the likeliest categories, with mu and logvar.

        Noise is 0 and nothing is trained to reconstruct: the image shows what the codes hold.
        """
        mu, logvar, logits = self._split(self.critic.q(self.critic.trunk(x)))
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
        )


# --- losses -------------------------------------------------------------------------------------


def mutual_information(model: InfoGAN, q: Tensor, codes: Codes) -> Tensor:
    """mi = mean over the batch of log Q(c|x) + H(c), summed over the codes.

    A continuous code adds ``log 2 - (log 2 pi + logvar + (c - mu)^2 / exp(logvar)) / 2``, a
    categorical one of K values ``log K - cross_entropy``.

    Args:
        model: for the meaning of q's columns.
        q: outputs of the Q head on the codes' images, ``[B, 2 d + sum of categorical sizes]``.
        codes: what the images were made from.

    Returns:
        ``[]`` float32, nats; a lower bound in expectation, and negative where Q is wrong.

    Source: Chen et al. 2016, equation 5.
    """
    mu, logvar, logits = model._split(q)
    error = (codes.continuous - mu).square() * torch.exp(-logvar)
    log_q = -0.5 * (math.log(2 * math.pi) + logvar + error).sum(1).mean()
    mi = log_q + model.latent_dim * math.log(2)
    for one, category in zip(logits, codes.categories.unbind(1), strict=True):
        mi = mi + math.log(one.shape[1]) - F.cross_entropy(one, category)
    return mi


def input_gradient(layers: Iterable[nn.Module], x: Tensor) -> Tensor:
    """d score / d x for each image, itself differentiable once in the weights.

    The layers are piecewise linear, so the gradient is the transposed layers applied in reverse,
    with each leaky ReLU's slope at x as a constant. Autograd through this gives what a double
    backward gives, without its passes for the slopes' derivatives, which are zero.

    Args:
        layers: nn.Conv2d, nn.Linear, nn.LeakyReLU and nn.Flatten in order, ending in one score.
        x: ``[B, ...]``.

    Returns:
        the gradient, of x's shape.

    Raises:
        TypeError: a layer is of another kind.
    """
    transposed: list[Callable[[Tensor], Tensor]] = []
    with torch.no_grad():
        h = x
        for layer in layers:
            shape, h = h.shape, layer(h)
            match layer:
                case nn.LeakyReLU():
                    # Its result has its input's sign, and is all that is left of it in place.
                    one = h.new_ones(())
                    slope = torch.where(h > 0, one, one * layer.negative_slope)
                    transposed.append(partial(torch.mul, slope))
                case nn.Linear():
                    transposed.append(partial(torch.matmul, other=layer.weight))
                case nn.Flatten():
                    transposed.append(partial(torch.reshape, shape=shape))
                case nn.Conv2d():
                    transposed.append(partial(_transposed_convolution, layer))
                case _:
                    raise TypeError(f"layers: got {type(layer).__name__}, its slope is unknown")
    g = torch.ones_like(h)
    for apply in reversed(transposed):
        g = apply(g)
    return g


def _transposed_convolution(layer: nn.Conv2d, g: Tensor) -> Tensor:
    return F.conv_transpose2d(g, layer.weight, None, layer.stride, layer.padding)


def gradient_penalty(
    layers: Iterable[nn.Module], x: Tensor, fake: Tensor, mixture: Tensor
) -> Tensor:
    """Mean over the batch of (||d score / d x_hat||_2 - 1)^2, x_hat = u x + (1 - u) fake.

    Args:
        layers: of the critic, as :func:`input_gradient` takes them.
        x: images of the data set, ``[B, ...]``.
        fake: generated images, of x's shape.
        mixture: u, ``[B]``, uniform in [0, 1).

    Returns:
        ``[]`` float32.

    Source: Gulrajani et al. 2017, Algorithm 1.
    """
    mixed = torch.lerp(fake, x, mixture.view(-1, *[1] * (x.dim() - 1)))
    gradient = input_gradient(layers, mixed).flatten(1).float()
    # vector_norm's gradient at 0 is 0, where that of a written-out square root is not a number.
    return (torch.linalg.vector_norm(gradient, dim=1) - 1).square().mean()


def critic_terms(
    model: InfoGAN,
    x: Tensor,
    fake: Tensor,
    codes: Codes,
    mixture: Tensor | None = None,
    penalty_weight: float = 0.0,
) -> Terms:
    """Losses of critic, trunk and Q head on one batch: InfoWGAN-GP's with ``mixture``.

    ``critic_loss = -wasserstein + penalty_weight * gradient_penalty``, where ``wasserstein = mean
    D(x) - mean D(fake)``. Without it ``disc_loss = mean softplus(-D(x)) + mean softplus(D(fake))``.

    Args:
        model: the networks.
        x: images of the data set, ``[B, C, 64, 64]``, 0..1.
        fake: images generated from codes, of x's shape, without a gradient.
        codes: what fake was made from.
        mixture: ``[B]``, uniform in [0, 1), for InfoWGAN-GP; None for InfoGAN.
        penalty_weight: of the gradient penalty.

    Returns:
        critic_loss, wasserstein and gradient_penalty, or disc_loss (nats) and disc_accuracy (0 to
        1); and mi (nats), which the caller subtracts from the loss with its weight.
    """
    features = model.critic.trunk(torch.cat((x, fake)))
    real_score, fake_score = model.critic.score(features).float().view(2, -1)
    mi = mutual_information(model, model.critic.q(features[len(x) :]), codes)
    if mixture is None:
        loss = F.softplus(-real_score).mean() + F.softplus(fake_score).mean()
        right = (real_score > 0).float().mean() + (fake_score < 0).float().mean()
        return {"disc_loss": loss, "disc_accuracy": right / 2, "mi": mi}
    wasserstein = real_score.mean() - fake_score.mean()
    penalty = gradient_penalty(model.critic.penalised(), x, fake, mixture)
    loss = penalty_weight * penalty - wasserstein
    return {"critic_loss": loss, "wasserstein": wasserstein, "gradient_penalty": penalty, "mi": mi}


def generator_terms(model: InfoGAN, codes: Codes, wasserstein: bool) -> Terms:
    """Loss of the generator on a batch of codes, and the mutual information bound.

    ``generator_loss = -mean D(fake)`` of Wasserstein GAN, or ``mean softplus(-D(fake))``.

    Args:
        model: the networks.
        codes: of the batch.
        wasserstein: which of the two.

    Returns:
        generator_loss and mi (nats).
    """
    features = model.critic.trunk(model.images(codes))
    score = model.critic.score(features).float()
    loss = -score.mean() if wasserstein else F.softplus(-score).mean()
    return {
        "generator_loss": loss,
        "mi": mutual_information(model, model.critic.q(features), codes),
    }
