"""Pythae's FactorVAE: a round of its own trainer's steps, with the paper's encoder and decoder."""

import tempfile
from collections.abc import Callable

import torch
from torch import Tensor, nn

from bench.baseline import decoder, encoder
from bench.step import STEPS_A_ROUND, float_images
from fvae import data

#: Hidden layers of its discriminator, which ours then has, too.
HIDDEN_LAYERS = 5
#: Images that its loader gives it at once; the model takes half of them for either batch.
BATCH = 128


def pythae_round() -> Callable[[], object]:
    """Make its model and trainer; return an epoch of ``STEPS_A_ROUND`` batches.

    It holds its images as float32 in memory, as its documentation shows.
    """
    from pythae.data.datasets import BaseDataset
    from pythae.models import FactorVAE, FactorVAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import AdversarialTrainer, AdversarialTrainerConfig

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.layers: nn.Module = encoder()

        def forward(self, x: Tensor) -> ModelOutput:
            mu, logvar = self.layers(x).chunk(2, dim=1)
            return ModelOutput(embedding=mu, log_covariance=logvar)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.layers: nn.Module = decoder()

        def forward(self, z: Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=self.layers(z).sigmoid())

    images = float_images(data.load("dsprites"))[: BATCH * STEPS_A_ROUND]
    settings = FactorVAEConfig(
        input_dim=(1, 64, 64), latent_dim=10, gamma=35.0, reconstruction_loss="bce"
    )
    trainer = AdversarialTrainer(
        model=FactorVAE(settings, Encoder(), Decoder()),
        train_dataset=BaseDataset(images, torch.zeros(len(images))),
        training_config=AdversarialTrainerConfig(
            output_dir=tempfile.mkdtemp(), num_epochs=1, per_device_train_batch_size=BATCH,
            no_cuda=True,
        ),
    )  # fmt: skip
    trainer.prepare_training()
    return lambda: trainer.train_step(1)
