"""Score a run: encode what the protocol reads, once, and take every metric from the same codes."""

import dataclasses
import json
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fvae import metrics
from fvae.config import IMAGE_SIZE
from fvae.data import Store
from fvae.device import arithmetic
from fvae.errors import UserError
from fvae.files import write_atomically
from fvae.models.infogan import InfoGAN
from fvae.models.vae import VAE
from fvae.ops import reference
from fvae.registry import METRICS
from fvae.training import checkpoint

# Images of 64 x 64 encoded at once, by device. The first layer's output then fits the second-level
# cache of two cores, or fills a GPU with 0.5 GB.
_CHUNK = {"cpu": 64, "cuda": 4096}


def pixels(store: Store, indices: torch.Tensor) -> torch.Tensor:
    """Images as the networks see them, float32 ``[n, C, H, W]``, 0..1."""
    return reference.unpack(store.rows(indices), store.image_shape, store.binary, torch.float32)


def encode(
    model: VAE | InfoGAN,
    store: Store,
    indices: torch.Tensor,
    on_progress: Callable[[int], None] = lambda done: None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean codes of some images, and the information that each latent dimension has of them.

    The packed store goes to the model's device whole, as in training, and the codes stay there
    until all are done: a GPU is not waited for in between. The arithmetic is IEEE float32 on every
    device, whatever the model was trained in.

    Args:
        model: the trained model; its device is where the work is done.
        store: the data set.
        indices: int64 ``[n]``.
        on_progress: called with the number of images done, or on a GPU handed over.

    Returns:
        mu, float32 ``[n, d]`` on the CPU, and information, float64 ``[d]``, nats: the mean KL to
        the prior, or, of a model that trains with none,
        :meth:`fvae.models.infogan.InfoGAN.information`.

    Raises:
        UserError: the images are of another shape than those that the model was trained on.
    """
    shape = tuple(store.image_shape)
    expected = getattr(model, "image_shape", shape)  # somebody's own model need not have it
    if shape != expected:
        raise UserError(
            f"{store.name}: images are {list(shape)}, but the model was trained on"
            f" {list(expected)}; give it the data that it was trained on"
        )
    device = next(model.parameters()).device
    store, indices = store.to(device), indices.to(device)
    larger = max(1, prod(shape[1:]) // IMAGE_SIZE**2)
    chunk = max(1, _CHUNK[device.type] // larger)
    codes = torch.empty(len(indices), model.latent_dim, device=device)
    logvars = torch.empty_like(codes)
    with torch.inference_mode(), arithmetic(device):
        for start in range(0, len(indices), chunk):
            rows = slice(start, start + chunk)
            x = pixels(store, indices[rows])
            codes[rows], logvars[rows] = model.encode(
                x.contiguous(memory_format=torch.channels_last)
            )
            on_progress(min(start + chunk, len(indices)))
    codes, logvars = codes.cpu(), logvars.cpu()
    return codes, model.information(codes, logvars)


def evaluate(
    run: Path,
    store: Store,
    protocol: str = "kim2018",
    seed: int = 0,
    device: torch.device | str = "cpu",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Score a run under a protocol, and keep the result as ``eval-<protocol>.json`` in its folder.

    Args:
        run: a run folder.
        store: the data set it was trained on, with factors.
        protocol: a name in ``fvae.metrics.PROTOCOLS``.
        seed: of every random number of the metrics.
        device: where to encode.
        on_progress: called with images encoded and their total.

    Returns:
        the contents of the file: scores, votes, protocol constants, seed, images encoded and the
        mean KL of each dimension. A GAN has an estimate of its mutual information instead, and a
        protocol that drops dimensions by their KL then drops constant ones alone.

    Raises:
        UserError: the set has no factors, the protocol does not exist, or the run cannot be read.
    """
    if not store.factor_sizes:
        raise UserError(
            f"{store.name}: has no ground-truth factors, so there is no disentanglement score;"
            " `fvae report` shows reconstruction, TC and traversals"
        )
    if protocol not in metrics.PROTOCOLS:
        raise UserError(
            f"--protocol: got {protocol!r}, expected one of {', '.join(metrics.PROTOCOLS)}"
        )
    model = checkpoint.load(run, device)
    sizes = store.factor_sizes
    needed = metrics.needed(sizes, protocol=protocol, seed=seed)
    part, information = encode(model, store, needed, lambda done: on_progress(done, len(needed)))
    # NaN where nothing was encoded: a metric that read such a row would say so.
    codes = torch.full((len(store), model.latent_dim), torch.nan)
    codes[needed] = part

    result: dict[str, Any] = {"protocol": protocol, "seed": seed, "images_encoded": len(needed)}
    # The threshold below which a protocol drops a dimension is one of the KL to the prior.
    kl = information if model.information_name == "KL" else None
    result["mutual_information_dims" if kl is None else "kl_dims"] = information.tolist()
    for name, metric in METRICS.items():
        # `exhaustive` reads every image and draws nothing; the sampled metrics have no such form.
        if protocol in metric.protocols:
            result[name] = _plain(metric.score(codes, sizes, protocol, seed, kl))
        else:
            note = f"draws random numbers; use {' or '.join(metric.protocols)}"
            result[name] = {"score": None, "note": note}
    votes = result["factor_vae"]
    votes["factor_names"] = list(store.factor_names)
    if kl is None and votes["protocol"]["prune"] == "kl" and not votes["note"]:
        votes["note"] = "the model has no KL: only constant dimensions are dropped"
    write_atomically(run / f"eval-{protocol}.json", json.dumps(result, indent=2) + "\n")
    return result


def _plain(value: Any) -> Any:
    """Turn a result into what JSON can hold."""
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return value
