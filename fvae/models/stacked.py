"""The networks of :mod:`fvae.models.vae` for M models of equal shape at once.

A stacked network has the layers and parameter names of one model, and each parameter leads with
M. Fully connected layers are batched matrix products; convolutions run in groups of channels, a
group a model: k models share one convolution, whose input is ``[B, k C, H, W]``.
"""

import copy
from collections.abc import Sequence
from typing import TypeVar, overload

import torch
from torch import Tensor, nn

from fvae.models.convolution import Convolution, ConvTranspose2d
from fvae.models.layers import convolve, linear
from fvae.models.sequences import with_slopes
from fvae.models.vae import VAE

_M = TypeVar("_M", bound=nn.Module)


def stack(models: Sequence[_M]) -> _M:
    """Return a module like each of the models, whose parameters are theirs, stacked ``[M, ...]``.

    Args:
        models: modules of equal shape. Convolutions' weights become channels_last.

    Returns:
        the module. Its own forward no longer fits: :class:`StackedVAE` runs the layers of a
        :class:`fvae.models.vae.VAE`, :func:`fvae.training.two_players.two_players` takes a stacked
        :class:`fvae.models.vae.Discriminator`.
    """
    stacked = copy.deepcopy(models[0])
    parts = [dict(model.named_modules()) for model in models]
    for path, module in stacked.named_modules():
        for name, _ in list(module.named_parameters(recurse=False)):
            values = torch.stack([getattr(part[path], name).detach() for part in parts])
            if values.dim() == 5:
                # Channels last. Not contiguous(), which leaves the strides of one input channel as
                # they are; the layer's output would then be row-major, and copied by the next.
                last = values.movedim(2, -1).clone(memory_format=torch.contiguous_format)
                values = last.movedim(-1, 2)
            setattr(module, name, nn.Parameter(values))
    return stacked


class StackedVAE(nn.Module):
    """Encoders and decoders of M models; to the objectives a VAE with one more dimension.

    Args:
        models: VAEs of equal shape.
        group: k, the models that share one convolution; a divisor of M.

    Raises:
        ValueError: group does not divide M.
    """

    def __init__(self, models: Sequence[VAE], group: int = 1) -> None:
        super().__init__()
        if len(models) % group:
            raise ValueError(f"group: got {group}, expected a divisor of {len(models)} models")
        whole = stack(models)
        self.encoder, self.decoder, self.group = whole.encoder, whole.decoder, group
        self.nll, self.pixels = whole.nll, whole.pixels

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of q(z|x).

        Args:
            x: images in 0..1, ``[M, B, C, S, S]``.

        Returns:
            mu and logvar, each ``[M, B, d]`` float32.
        """
        mu, logvar = self._run(self.encoder, self._split(x), x.shape[0]).float().chunk(2, dim=-1)
        return mu, logvar

    def decode(self, z: Tensor) -> Tensor:
        """Pixel logits of p(x|z), or the pixels' means.

        Args:
            z: codes, ``[M, B, d]``.

        Returns:
            ``[M, B, C, S, S]``.
        """
        return self._join(self._run(self.decoder, z, z.shape[0]))

    def _split(self, x: Tensor) -> list[Tensor]:
        """[M, B, C, H, W] -> M / k images [B, k C, H, W], channels_last."""
        parts = (part.transpose(0, 1).flatten(1, 2) for part in x.split(self.group))
        return [part.contiguous(memory_format=torch.channels_last) for part in parts]

    def _join(self, parts: list[Tensor]) -> Tensor:
        """The inverse of :meth:`_split`."""
        return torch.cat([part.unflatten(1, (self.group, -1)).transpose(0, 1) for part in parts])

    @overload
    def _run(self, layers: nn.Sequential, x: list[Tensor], count: int) -> Tensor: ...

    @overload
    def _run(self, layers: nn.Sequential, x: Tensor, count: int) -> list[Tensor]: ...

    def _run(
        self, layers: nn.Sequential, x: Tensor | list[Tensor], count: int
    ) -> Tensor | list[Tensor]:
        """Run the layers of one model for all; x is a list where it stands for images."""
        for layer, slope in with_slopes(layers):
            if isinstance(x, list):
                if isinstance(layer, nn.Flatten):
                    x = self._join(x).flatten(2)
                else:
                    assert isinstance(layer, (nn.Conv2d, ConvTranspose2d))
                    x = self._convolve(layer, x, count, slope)
            elif isinstance(layer, nn.Linear):
                x = self._linear(layer, x, slope)
            else:
                assert isinstance(layer, nn.Unflatten)
                x = self._split(x.unflatten(-1, layer.unflattened_size))
        return x

    def _linear(self, layer: nn.Linear, x: Tensor, slope: float) -> Tensor:
        if self.group > 1:
            return linear(x, layer.weight, layer.bias, slope)
        # Model by model, as its convolutions: the sums of a model alone, bit for bit.
        each = zip(x, layer.weight, layer.bias, strict=True)
        return torch.stack([linear(*one, slope) for one in each])

    def _convolve(
        self, layer: nn.Conv2d | ConvTranspose2d, parts: list[Tensor], count: int, slope: float
    ) -> list[Tensor]:
        assert layer.bias is not None
        weights: Sequence[Tensor]
        biases: Sequence[Tensor]
        if self.group == 1:  # a view of fewer dimensions would lose the strides of one channel
            weights, biases = layer.weight.unbind(), layer.bias.unbind()
        else:
            weights = layer.weight.flatten(0, 1).chunk(count // self.group)
            biases = layer.bias.flatten().chunk(count // self.group)
        form = Convolution.of(layer, self.group)
        each = zip(parts, weights, biases, strict=True)
        return [convolve(*one, form, slope) for one in each]
