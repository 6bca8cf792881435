"""Encoders that are not trained, in half precision."""

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fvae.models.infogan import InfoGAN
from fvae.models.sequences import run
from fvae.models.vae import VAE

_M = TypeVar("_M")


class Half(nn.Module):
    """Layers that compute in a dtype of their own, between float32 inputs and outputs."""

    def __init__(self, layers: nn.Sequential, dtype: torch.dtype) -> None:
        super().__init__()
        self.layers, self.dtype = copy.deepcopy(layers).to(dtype), dtype

    def forward(self, x: Tensor) -> Tensor:
        """Return the layers' output, float32."""
        return run(self.layers, x.to(self.dtype)).float()


def encoder_in(model: _M, dtype: torch.dtype) -> _M:
    """A model that encodes as another does, with all products but the last layer's in a dtype.

    The last layer makes mu and logvar, whose rounding would show in the scores: it stays float32.
    All that does not encode is the other model's own; a model that is neither a VAE nor an InfoGAN
    is returned as it is.

    Args:
        model: in float32.
        dtype: bfloat16 or float16.
    """
    if isinstance(model, VAE):
        *trunk, head = model.encoder
        encoder = nn.Sequential(Half(nn.Sequential(*trunk), dtype), head)
        return _with(model, encoder=encoder)
    if isinstance(model, InfoGAN):
        return _with(model, critic=_with(model.critic, trunk=Half(model.critic.trunk, dtype)))
    return model


def _with(module: Any, **others: nn.Module) -> Any:
    """A module with others in the place of some of its own."""
    twin = copy.copy(module)
    twin._modules = module._modules | others
    return twin
