"""InfoGAN and InfoWGAN-GP: losses, and the step: critic steps, then one of the generator.

``mi = E[log Q(c | G(c, noise))] + H(c)`` is a lower bound of the mutual information of code and
image (Chen et al. 2016, equation 4). Who is trained on what, as in the authors' implementation of
InfoGAN:

* critic, trunk and Q head minimise ``critic_loss - mi_weight * mi``;
* the generator minimises ``generator_loss - mi_weight * mi``.

The critic's loss is that of Wasserstein GAN with gradient penalty (Gulrajani et al. 2017) or of
the usual GAN (Goodfellow et al. 2014, non-saturating).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fvae import ops, philox
from fvae.config import GAN_BETAS
from fvae.device import autocast
from fvae.models import infogan
from fvae.models.infogan import Codes, InfoGAN
from fvae.models.vae import channels_last
from fvae.philox import Stream
from fvae.training.objectives import Terms
from fvae.training.trainer import Trainer


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
    mu, logvar, logits = model.split_q(q)
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
                    transposed.append(partial(_transposed_convolution, layer, shape[2:]))
                case _:
                    raise TypeError(f"layers: got {type(layer).__name__}, its slope is unknown")
    g = torch.ones_like(h)
    for apply in reversed(transposed):
        g = apply(g)
    return g


def _transposed_convolution(layer: nn.Conv2d, size: Sequence[int], g: Tensor) -> Tensor:
    # Of numbers: no network here names its padding.
    stride, padding = layer.stride, cast(tuple[int, ...], layer.padding)
    # What the convolution left out of the images at their ends, as half a stride of an odd side.
    left_out = [
        size[i] - ((g.shape[2 + i] - 1) * stride[i] - 2 * padding[i] + layer.kernel_size[i])
        for i in range(2)
    ]
    return F.conv_transpose2d(g, layer.weight, None, stride, padding, left_out)


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
        x: images of the data set, ``[B, C, S, S]``, 0..1.
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


class InfoGANTrainer(Trainer):
    """Networks, optimizer and random numbers of one run; ``step()`` trains both players.

    One step is ``critic_steps`` steps of critic, trunk and Q head (one for InfoGAN) and one of the
    generator, each on fresh images and codes.

    Args:
        config: the settings, with device and precision other than "auto".
        store: the data set; it is moved to the device.

    Raises:
        UserError: the images are not square, or smaller than 16 x 16.
    """

    def _build(self, channels: int) -> list[dict]:
        config = self.config
        self.wasserstein = config.objective == "infowgan-gp"
        self.critic_steps = config.critic_steps if self.wasserstein else 1
        model = infogan.build(config, channels)
        self.model = channels_last(model, self.device)
        betas = GAN_BETAS[config.objective]
        self.players = [list(model.critic.parameters()), list(model.generator.parameters())]
        rates = (config.disc_learning_rate, config.learning_rate)
        return [
            {"params": player, "lr": rate, "betas": betas}
            for player, rate in zip(self.players, rates, strict=True)
        ]

    def _modules(self) -> dict[str, torch.nn.Module]:
        return {"gan": self.model}

    def _step(self) -> Terms:
        """Train both players.

        Returns:
            detached terms on the device: of the last critic step those of
            :func:`critic_terms` but mi, of the generator's step those of
            :func:`generator_terms`.
        """
        # One draw of each kind serves the whole step: a generator step after every critic's.
        config, n, size = self.config, self.critic_steps, self.config.batch_size
        x = ops.gather_batch(self.store, n * size, self.rng, config.backend, table=self.table)
        x = x.contiguous(memory_format=torch.channels_last)
        *critic_codes, codes = self.model.draw((n + 1) * size, self.rng).split(size)
        mixtures = self._mixtures() if self.wasserstein else [None] * n
        weight = self.weight_at(self.rng.step)
        for real, its_codes, mixture in zip(x.split(size), critic_codes, mixtures, strict=True):
            critic = self._critic_step(real, its_codes, mixture, weight)
        with self._autocast():
            generator = generator_terms(self.model, codes, self.wasserstein)
        self._update_player(generator["generator_loss"] - weight * generator["mi"], player=1)
        self.rng.advance()
        return {name: term.detach() for name, term in (critic | generator).items()}

    def _mixtures(self) -> tuple[Tensor, ...]:
        rng, size = self.rng, self.config.batch_size
        stream = Stream.MIXTURE.at(rng.lane)
        word = philox.words(rng.seed, rng.step, stream, self.critic_steps * size)
        return philox.uniform(word).split(size)

    def _critic_step(
        self, x: Tensor, codes: Codes, mixture: Tensor | None, weight: float | Tensor
    ) -> Terms:
        with self._autocast():
            with torch.no_grad():
                fake = self.model.images(codes)
            terms = critic_terms(self.model, x, fake, codes, mixture, self.config.gradient_penalty)
        loss = terms["critic_loss" if self.wasserstein else "disc_loss"]
        self._update_player(loss - weight * terms["mi"], player=0)
        return terms

    def _update_player(self, loss: Tensor, player: int) -> None:
        """Step one player alone: the other's weights have no gradient, and Adam skips them."""
        self._backward(loss, self.players[player])
        self._update()

    def _autocast(self) -> torch.autocast:
        # A weight's cast made where gradients are off would be reused, without a gradient, by what
        # follows: so none is kept.
        return autocast(self.device, self.config.precision)
