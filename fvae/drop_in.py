"""FVAE's pieces for a training loop, model and data set of your own.

* :func:`permute_dims`: a sample of the product of the marginals of q(z);
* :func:`tc_and_disc_loss`: both players' losses from any discriminator, for one backward pass;
* :func:`score`: a disentanglement metric of any encoder on any data set with known factors.

Importing this loads PyTorch and the ops; what the metrics need is loaded when one is called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fvae.errors import UserError
from fvae.models.vae import Discriminator
from fvae.ops import permute_dims
from fvae.ops.reference import kl_to_prior
from fvae.registry import METRICS
from fvae.training.two_players import two_players

if TYPE_CHECKING:
    from fvae import metrics

__all__ = ["permute_dims", "score", "tc_and_disc_loss"]


class _TwoLogits(nn.Module):
    """A discriminator whose one logit s is l0 - l1, seen as the two logits (s, 0)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, z: Tensor) -> Tensor:
        logits = self.inner(z)
        if logits.shape == (len(z), 2):
            return logits
        if logits.shape not in ((len(z),), (len(z), 1)):
            raise ValueError(
                f"discriminator: gave {list(logits.shape)} for codes {list(z.shape)}, expected"
                f" [{len(z)}, 2] logits, or [{len(z)}] or [{len(z)}, 1] for one logit"
            )
        ratio = logits.reshape(-1, 1)
        return torch.cat((ratio, torch.zeros_like(ratio)), dim=1)


def tc_and_disc_loss(
    discriminator: nn.Module, z: Tensor, z_perm: Tensor, backend: str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """tc, disc_loss and accuracy, where tc reaches z alone and disc_loss the discriminator alone.

    ``(recon + kl + gamma * tc + disc_loss).backward()`` then trains both players: no
    ``retain_graph``, no detach to remember, no gradient from one player in the other.

    Args:
        discriminator: from codes ``[B, d]`` to logits: ``[B, 2]``, logit 0 "drawn from q(z)" and
            logit 1 "permuted"; or one logit, ``[B]`` or ``[B, 1]``, of "drawn from q(z)".
        z: codes of the batch, ``[B, d]``, float32 or bfloat16.
        z_perm: permuted codes of a second batch (or of this one), ``[B, d]``; gets no gradient.
        backend: of :func:`fvae.ops.logit_ratio`; None picks.

    Returns:
        tc = mean(l0 - l1) (nats; can be negative), disc_loss (nats) and accuracy (0 to 1), each a
        float32 scalar.

    Raises:
        ValueError: the shapes of z and z_perm differ, or the logits have another shape.

    Source: Kim & Mnih 2018, Algorithm 2.
    """
    if type(discriminator) is not Discriminator:  # ours takes one pass where others take two
        discriminator = _TwoLogits(discriminator)
    return two_players(discriminator, z, z_perm, backend)


def score(
    encode: Callable[[Tensor], Any],
    dataset: Any,
    factor_sizes: Sequence[int] | None = None,
    metric: str = "factor_vae",
    protocol: str = "kim2018",
    seed: int = 0,
    batch_size: int = 128,
    factors: Any = None,
) -> (
    metrics.FactorVaeResult
    | metrics.BetaVaeResult
    | metrics.MigResult
    | metrics.SapResult
    | metrics.DciResult
):
    """The metric's score of the codes that ``encode`` gives images of a full grid, or with labels.

    Only the images that the protocol reads are encoded, each once, without gradients. The mode of
    your modules is left as it is: call ``model.eval()`` first.

    Args:
        encode: from images, a tensor ``[n, ...]`` of at most ``batch_size``, to codes ``[n, d]``,
            or to (mu, logvar) of that shape, of which mu is scored and the KL serves the
            protocol's pruning. Tensors on any device, or NumPy arrays.
        dataset: images of a full grid, of which image i has the mixed-radix digits of i as its
            factor classes, the last factor fastest, or images with ``factors``. A
            :class:`fvae.data.Store` (images come as float32 in 0..1), an array or tensor
            ``[N, ...]``, or a map-style data set of PyTorch whose items are images, or begin with
            them (both come as they are).
        factor_sizes: of a full grid, K sizes, each at least 2, whose product is N. Without it and
            without factors a store's own are taken.
        metric: a name in :data:`fvae.registry.METRICS`: "factor_vae", "beta_vae", "mig", "sap",
            "dci".
        protocol: of "factor_vae" and "beta_vae"; the others have one protocol.
        seed: of the metric's random numbers.
        batch_size: images encoded at a time.
        factors: of any images, in place of the sizes: labels ``[N, K]``, as every metric takes
            them (:meth:`fvae.metrics.Factors.of`).

    Returns:
        the result of :func:`fvae.metrics.factor_vae_score` or its sister: ``.score``, and the
        constants that it means something with, in ``.protocol``.

    Raises:
        UserError: the data set has another length than the factors say, ``encode`` gives another
            shape or a code that is not finite, a label is invalid, or a metric, protocol or size
            does not exist.
    """
    from fvae import metrics

    known = _factors(dataset, factor_sizes, factors)
    rows = metrics.needed(known, metric, protocol, seed)
    total = known.rows
    if len(dataset) != total:
        why = f"the product of factor_sizes {list(known.sizes)}"
        raise UserError(
            f"dataset: has {len(dataset)} images, expected {total},"
            f" {'one for each row of factors' if known.columns else why}"
        )
    if batch_size < 1:
        raise UserError(f"batch_size: got {batch_size}, expected at least 1")
    codes: Tensor | None = None
    kl: Tensor | float | None = 0.0
    done = 0
    with torch.no_grad():
        for images in _batches(dataset, rows, batch_size):
            part = rows[done : done + len(images)]
            mu, kl_rows = _codes(encode(images), part)
            if codes is None:
                # A metric that read a row which was not encoded would say so.
                codes = torch.full((total, mu.shape[1]), torch.nan, dtype=mu.dtype)
            if mu.shape[1] != codes.shape[1]:
                raise UserError(
                    f"encode: gave {mu.shape[1]} dimensions, after {codes.shape[1]} for the"
                    " batches before"
                )
            codes[part] = mu
            kl = None if kl is None or kl_rows is None else kl + kl_rows.sum(0)
            done += len(images)
    mean_kl = None if kl is None else kl / len(rows)
    return METRICS[metric].score(codes, known, protocol, seed, mean_kl)


def _factors(dataset: Any, factor_sizes: Sequence[int] | None, factors: Any) -> metrics.Factors:
    """The factors that were given, or else those of a store."""
    from fvae.data import Store
    from fvae.evaluate import factors_of
    from fvae.metrics import factors as given

    if factor_sizes is not None or factors is not None:
        return given.factors_of(factor_sizes, factors, dataset)
    if isinstance(dataset, Store) and dataset.factor_names:
        return factors_of(dataset)[0]
    if getattr(dataset, "factor_sizes", None):
        return given.Factors.grid(dataset.factor_sizes)
    raise UserError(
        "factor_sizes: the data set has none of its own; give one a factor, or labels as factors="
    )


def _batches(dataset: Any, rows: Tensor, batch_size: int) -> Iterator[Tensor]:
    """The images of the rows, in order, in batches."""
    from fvae.data import Store

    if isinstance(dataset, Store):
        from fvae.evaluate import pixels

        yield from (pixels(dataset, part) for part in rows.split(batch_size))
    elif hasattr(dataset, "shape"):  # an array, a tensor, or an array in a file
        for part in rows.split(batch_size):
            at = part.to(dataset.device) if isinstance(dataset, Tensor) else part.numpy()
            yield torch.as_tensor(dataset[at])
    else:
        subset = torch.utils.data.Subset(dataset, rows.tolist())
        # A generator of its own: without one the loader would draw from PyTorch's.
        generator = torch.Generator()
        for batch in torch.utils.data.DataLoader(subset, batch_size, generator=generator):
            yield batch[0] if isinstance(batch, list | tuple) else batch


def _codes(given: Any, rows: Tensor) -> tuple[Tensor, Tensor | None]:
    """Codes on the CPU, checked, and the KL of each to the prior where logvar was given."""
    several = isinstance(given, list | tuple)
    if several and len(given) != 2:
        raise UserError(f"encode: gave {len(given)} things, expected codes, or (mu, logvar)")
    tensors = [torch.as_tensor(t).detach().cpu() for t in (given if several else (given,))]
    for t in tensors:
        if t.dim() != 2 or t.shape != (len(rows), tensors[0].shape[1]):
            raise UserError(
                f"encode: gave {' and '.join(str(list(t.shape)) for t in tensors)} for"
                f" {len(rows)} images, expected [{len(rows)}, d]"
            )
        if not t.is_floating_point():
            raise UserError(f"encode: gave {t.dtype}, expected floating point")
        bad = rows[~t.isfinite().all(1)]
        if len(bad):
            raise UserError(f"encode: gave a code that is not finite for image {int(bad[0])}")
    mu = tensors[0]
    return mu, kl_to_prior(mu.double(), tensors[1].double()) if several else None
