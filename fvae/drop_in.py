"""FVAE's pieces for a training loop, model and data set of your own.

* :func:`permute_dims`: a sample of the product of the marginals of q(z);
* :func:`tc_and_disc_loss`: both players' losses from any discriminator, for one backward pass;
* :func:`score`: a disentanglement metric of any encoder on any data set with known factors.

Importing this loads PyTorch and the ops; what the metrics need is loaded when one is called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fvae.device import as_imported
from fvae.errors import UserError
from fvae.ops import permute_dims
from fvae.registry import METRICS
from fvae.scalars import integer
from fvae.training.two_players import two_players

if TYPE_CHECKING:
    from fvae import metrics

__all__ = ["permute_dims", "score", "tc_and_disc_loss"]


def tc_and_disc_loss(
    discriminator: nn.Module, z: Tensor, z_perm: Tensor, backend: str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """tc, disc_loss and accuracy, where tc reaches z alone and disc_loss the discriminator alone.

    ``(recon + kl + gamma * tc + disc_loss).backward()`` then trains both players: no
    ``retain_graph``, no detach to remember, no gradient from one player in the other.

    Args:
        discriminator: from codes ``[B, d]`` to logits: ``[B, 2]``, logit 0 "drawn from q(z)" and
            logit 1 "permuted"; or one logit, ``[B]`` or ``[B, 1]``, of "drawn from q(z)".
        z: codes of the batch, ``[B, d]``, float32, bfloat16 or float16.
        z_perm: permuted codes of a second batch (or of this one), ``[B, d]``; gets no gradient.
        backend: of :func:`fvae.ops.logit_ratio`; None picks.

    Returns:
        tc = mean(l0 - l1) (nats; can be negative), disc_loss (nats) and accuracy (0 to 1), each a
        float32 scalar.

    Raises:
        ValueError: the shapes of z and z_perm differ, or the logits have another shape.

    Source: Kim & Mnih 2018, Algorithm 2.
    """
    return two_players(discriminator, z, z_perm, backend)


def score(
    encode: Callable[[Tensor], Any],
    dataset: Any,
    factor_sizes: Sequence[int] | None = None,
    metric: str = "factor_vae",
    protocol: str = "kim2018",
    seed: int = 0,
    batch_size: int = 128,
    num_workers: int = 0,
    key: str | int | None = None,
    factors: Any = None,
) -> (
    metrics.FactorVaeResult
    | metrics.BetaVaeResult
    | metrics.MigResult
    | metrics.SapResult
    | metrics.DciResult
    | metrics.ModularityResult
    | metrics.ExplicitnessResult
    | metrics.IrsResult
    | metrics.MigSupResult
    | metrics.JemmigResult
    | metrics.InfomecResult
    | metrics.MccResult
    | metrics.GaussianTcResult
    | metrics.WassersteinResult
    | metrics.MutualInformationResult
):
    """The metric's score of the codes that ``encode`` gives images of a full grid, or with labels.

    Only the images that the protocol reads are encoded, each once, without gradients. The mode of
    your modules is left as it is: call ``model.eval()`` first.

    Args:
        encode: from images, a tensor ``[n, ...]`` of at most ``batch_size``, to codes ``[n, d]``,
            or to (mu, logvar) of that shape, of which mu is scored and the KL serves the
            protocol's pruning. Tensors on any device, or NumPy arrays; or a distribution of
            :mod:`torch.distributions`, whose mean is scored; or a dictionary or object with mu (or
            mean) and logvar (or log_var).
        dataset: images of a full grid, of which image i has the mixed-radix digits of i as its
            factor classes, the last factor fastest, or images with ``factors``. A
            :class:`fvae.data.Store` (images come as float32 in 0..1), an array or tensor
            ``[N, ...]`` (which come as they are), or a map-style data set of PyTorch or Hugging
            Face, or a list: items are images, tuples that begin with one, or dictionaries that hold
            one (:func:`fvae.items.image_of`). PIL images come as uint8 ``[C, H, W]``.
        factor_sizes: of a full grid, K sizes, each at least 2, whose product is N. Without it and
            without factors a store's own are taken; a metric that asks for no factors needs none.
        metric: a name in :data:`fvae.registry.METRICS`: "factor_vae", "beta_vae", "mig", "sap",
            "dci", "modularity" and so on.
        protocol: of "factor_vae" and "beta_vae"; the others have one protocol.
        seed: of the metric's random numbers.
        batch_size: images encoded at a time.
        num_workers: processes that read a map-style data set, as of PyTorch's ``DataLoader``.
        key: of the image in an item; None takes the first of :data:`fvae.items.IMAGE_KEYS`.
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
    from fvae import items, metrics

    try:
        seed, batch_size = integer("seed", seed), integer("batch_size", batch_size)
        num_workers = integer("num_workers", num_workers)
    except TypeError as error:
        raise UserError(str(error)) from None
    if METRICS[metric].posterior:
        raise UserError(
            f"metric: {metric} needs log variances beside the means; call"
            f" fvae.metrics.{metric}_score(mu, logvar)"
        )
    items.check(dataset)
    with as_imported():
        known = _factors(dataset, factor_sizes, factors, METRICS[metric].supervised)
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
    if num_workers < 0:
        raise UserError(f"num_workers: got {num_workers}, expected at least 0")
    codes: Tensor | None = None
    kl: Tensor | float | None = 0.0
    done = 0
    with torch.no_grad():
        for images in items.batches(dataset, rows, batch_size, num_workers, key):
            part = rows[done : done + len(images)]
            mu, kl_rows = items.codes(encode(images), part)
            if codes is None:
                # A metric that read a row which was not encoded would say so.
                shape = total, mu.shape[1]
                codes = torch.full(shape, torch.nan, dtype=mu.dtype, device="cpu")
            if mu.shape[1] != codes.shape[1]:
                raise UserError(
                    f"encode: gave {mu.shape[1]} dimensions, after {codes.shape[1]} for the"
                    " batches before"
                )
            codes[part] = mu
            kl = None if kl is None or kl_rows is None else kl + kl_rows.sum(0)
            done += len(images)
    mean_kl = None if kl is None else kl / len(rows)
    with as_imported():
        return METRICS[metric].score(codes, known, protocol, seed, mean_kl)


def _factors(
    dataset: Any, factor_sizes: Sequence[int] | None, factors: Any, asked: bool
) -> metrics.Factors:
    """The factors that were given, or else those of a store; none where none are asked for."""
    from fvae.data import Store
    from fvae.evaluate import factors_of
    from fvae.metrics import factors as given

    if factor_sizes is not None or factors is not None:
        return given.factors_of(factor_sizes, factors, dataset)
    if isinstance(dataset, Store) and dataset.factor_names:
        return factors_of(dataset)[0]
    if getattr(dataset, "factor_sizes", None):
        return given.Factors.grid(dataset.factor_sizes)
    if not asked:
        return given.Factors.unknown(len(dataset))
    raise UserError(
        "factor_sizes: the data set has none of its own; give one a factor, or labels as factors="
    )
