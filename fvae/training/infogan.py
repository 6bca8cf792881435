"""The training step of InfoGAN and InfoWGAN-GP: critic steps, then one of the generator."""

import torch
from torch import Tensor

from fvae import infogan, objectives, ops, philox
from fvae.config import GAN_BETAS
from fvae.infogan import Codes
from fvae.philox import Stream
from fvae.train import Trainer


class InfoGANTrainer(Trainer):
    """Networks, optimizer and random numbers of one run; ``step()`` trains both players.

    One step is ``critic_steps`` steps of critic, trunk and Q head (one for InfoGAN) and one of the
    generator, each on fresh images and codes.

    Args:
        config: the settings, with device and precision other than "auto".
        store: the data set; it is moved to the device.

    Raises:
        UserError: the images are not 64 x 64 with 1 or 3 channels.
    """

    def _build(self, channels: int) -> list[dict]:
        config = self.config
        self.wasserstein = config.objective == "infowgan-gp"
        self.critic_steps = config.critic_steps if self.wasserstein else 1
        model = infogan.build(config, channels)
        self.model = model.to(self.device, memory_format=torch.channels_last)
        betas = GAN_BETAS[config.objective]
        self.players = [list(model.critic.parameters()), list(model.generator.parameters())]
        rates = (config.disc_learning_rate, config.learning_rate)
        return [
            {"params": player, "lr": rate, "betas": betas}
            for player, rate in zip(self.players, rates, strict=True)
        ]

    def _modules(self) -> dict[str, torch.nn.Module]:
        return {"gan": self.model}

    def _step(self) -> objectives.Terms:
        """Train both players.

        Returns:
            detached terms on the device: of the last critic step those of
            :func:`fvae.infogan.critic_terms` but mi, of the generator's step those of
            :func:`fvae.infogan.generator_terms`.
        """
        # One draw of each kind serves the whole step: a generator step after every critic's.
        config, n, size = self.config, self.critic_steps, self.config.batch_size
        x = ops.gather_batch(self.store, n * size, self.rng, config.backend)
        x = x.contiguous(memory_format=torch.channels_last)
        *critic_codes, codes = self.model.draw((n + 1) * size, self.rng).split(size)
        mixtures = self._mixtures() if self.wasserstein else [None] * n
        weight = self.weight_at(self.rng.step)
        for real, its_codes, mixture in zip(x.split(size), critic_codes, mixtures, strict=True):
            critic = self._critic_step(real, its_codes, mixture, weight)
        with self._autocast():
            generator = infogan.generator_terms(self.model, codes, self.wasserstein)
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
    ) -> objectives.Terms:
        with self._autocast():
            with torch.no_grad():
                fake = self.model.images(codes)
            terms = infogan.critic_terms(
                self.model, x, fake, codes, mixture, self.config.gradient_penalty
            )
        loss = terms["critic_loss" if self.wasserstein else "disc_loss"]
        self._update_player(loss - weight * terms["mi"], player=0)
        return terms

    def _update_player(self, loss: Tensor, player: int) -> None:
        """Step one player alone: the other's weights have no gradient, and Adam skips them."""
        loss.backward(inputs=self.players[player])
        self._update()

    def _autocast(self) -> torch.autocast:
        # A weight's cast made where gradients are off would be reused, without a gradient, by what
        # follows: so none is kept.
        low = self.config.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=low, cache_enabled=False)
