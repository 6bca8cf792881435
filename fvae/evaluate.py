"""Score a run: encode what the protocol reads, once, and take every metric from the same codes."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fvae import metrics
from fvae.config import IMAGE_SIZE
from fvae.data import Store
from fvae.device import AUTOCAST, arithmetic, as_imported, has_fast_bf16
from fvae.errors import UserError
from fvae.files import from_json, write_atomically
from fvae.metrics.across import ACROSS
from fvae.metrics.checks import bins_of
from fvae.metrics.factors import Factors, Unsuited
from fvae.metrics.labels import Column, columns_of
from fvae.models.half import encoder_in
from fvae.models.infogan import InfoGAN
from fvae.models.vae import VAE
from fvae.ops import reference
from fvae.registry import METRICS, Metric
from fvae.training import checkpoint, run_data

# Images of 64 x 64 encoded at once, by device. The first layer's output then fits the second-level
# cache of two cores, or fills a GPU with 0.5 GB.
_CHUNK = {"cpu": 64, "cuda": 4096}


def pixels(store: Store, indices: torch.Tensor) -> torch.Tensor:
    """Images as the networks see them, float32 ``[n, C, H, W]``, 0..1."""
    return reference.unpack(store.rows(indices), store.image_shape, store.binary, torch.float32)


def images_at_once(device: torch.device, image_shape: Sequence[int]) -> int:
    """How many images a network takes at once where it is not trained."""
    larger = max(1, prod(image_shape[1:]) // IMAGE_SIZE**2)
    return max(1, _CHUNK[device.type] // larger)


def encoding_precision(name: str, device: torch.device) -> str:
    """Return what a device encodes in for "auto": bf16 on a processor faster with it, or fp32.

    Raises:
        UserError: it is none of auto, fp32 and bf16.
    """
    if name not in ("auto", "fp32", "bf16"):
        raise UserError(f"--precision {name}: expected auto, fp32 or bf16")
    if name == "auto":
        return "bf16" if device.type == "cpu" and has_fast_bf16(device) else "fp32"
    return name


def encoder_of(model: VAE | InfoGAN, precision: str) -> VAE | InfoGAN:
    """Return a model that encodes as another, in fp32 or bf16."""
    return model if precision == "fp32" else encoder_in(model, AUTOCAST[precision])


@as_imported()
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
    codes, logvars = posteriors(model, store, indices, on_progress)
    return codes, model.information(codes, logvars)


@as_imported()
def posteriors(
    model: VAE | InfoGAN,
    store: Store,
    indices: torch.Tensor,
    on_progress: Callable[[int], None] = lambda done: None,
    precision: str = "fp32",
) -> tuple[torch.Tensor, torch.Tensor]:
    """mu and logvar of some images, each float32 ``[n, d]`` on the CPU; otherwise as encode.

    With a precision of bf16 all products but those of the last layer are in bfloat16.
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
    chunk = images_at_once(device, shape)
    codes = torch.empty(len(indices), model.latent_dim, device=device)
    logvars = torch.empty_like(codes)
    model = encoder_of(model, precision)
    with torch.inference_mode(), arithmetic(device):
        for start in range(0, len(indices), chunk):
            rows = slice(start, start + chunk)
            x = pixels(store, indices[rows])
            codes[rows], logvars[rows] = model.encode(
                x.contiguous(memory_format=torch.channels_last)
            )
            on_progress(min(start + chunk, len(indices)))
    return codes.cpu(), logvars.cpu()


@as_imported()
def evaluate(
    run: Path,
    store: Store,
    protocol: str = "kim2018",
    seed: int = 0,
    device: torch.device | str = "cpu",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    bins: int | None = None,
    names: Sequence[str] | None = None,
    precision: str = "auto",
) -> dict[str, Any]:
    """Score a run under a protocol, and keep the result as ``eval-<protocol>.json`` in its folder.

    What the file holds of other metrics stays, if it is of the same state, seed and precision.

    Args:
        run: a run folder.
        store: the data set it was trained on, with factors: a full grid, or labels. Without, the
            metrics that need none can be asked for.
        protocol: a name in ``fvae.metrics.PROTOCOLS``.
        seed: of every random number of the metrics.
        device: where to encode.
        on_progress: called with images encoded and their total.
        bins: of the mutual information gap, where it is not the protocol's 20; the protocol is
            then called "kim2018, 50 bins", and the file ``eval-kim2018-bins50.json``.
        names: metrics to take, "all" for every one of the protocol; None is the usual ones.
        precision: what to encode in, fp32 (IEEE float32) or bf16; auto is bf16 on a processor that
            has it.

    Returns:
        the contents of the file: scores, votes, protocol constants, seed, step and checkpoint that
        were scored, images encoded, in which precision, and the mean KL of each dimension. Under
        ``errors`` stands the standard error that each score owes to its random draws, 0 where it
        reads every image, None where none is made. Beside a FactorVAE score of a full grid stands
        ``exhaustive``, the score of that protocol, which draws nothing: where it is known of this
        state, or at most a tenth more images need encoding for it; else None. A GAN
        has an estimate of its mutual information instead, and a protocol that drops dimensions by
        their KL then drops constant ones alone. A metric that cannot be taken of the set's labels
        has no score, and a note that says why.

    Raises:
        UserError: the set has no factors or is another than the run's, the protocol or a metric
            does not exist, no metric can be taken of the labels, or the run cannot be read.
    """
    precision = encoding_precision(precision, torch.device(device))
    taken = chosen(names, protocol, store)
    options = _options(bins, taken.values())
    factors, left_out = Factors.unknown(len(store)), dict[str, str]()
    if any(metric.supervised for metric in taken.values()):
        factors, left_out = factors_of(store)
    model, state = checkpoint.load_state(run, device)
    run_data.check(run, store)
    needed, refused = rows_of(factors, protocol, seed, taken)
    # NaN where nothing was encoded: a metric that read such a row would say so.
    codes, logvars = torch.full((2, len(store), model.latent_dim), torch.nan)
    parts = posteriors(model, store, needed, lambda done: on_progress(done, len(needed)), precision)
    codes[needed], logvars[needed] = parts
    information = model.information(*parts)
    # The threshold below which a protocol drops a dimension is one of the KL to the prior.
    kl = information if model.information_name == "KL" else None

    called = protocol + "".join(f", {value} {name}" for name, value in options.items())
    result: dict[str, Any] = {"protocol": called, "seed": seed}
    result |= {"step": state.step, "checkpoint": state.fingerprint}
    result |= {"images_encoded": len(needed), "precision": precision}
    result |= options
    if factors.columns:
        kinds = [{"name": c.name, "values": None if c.real else len(c.values)}
                 for c in factors.columns]  # fmt: skip
        result |= {"factors": kinds, "factors_left_out": left_out}
    result["mutual_information_dims" if kl is None else "kl_dims"] = information.tolist()
    path = run / f"eval-{protocol}{''.join(f'-{k}{v}' for k, v in options.items())}.json"
    before = _kept(path, result)
    if kl is None:
        refused |= {n: "the model has no q(z|x)" for n, one in taken.items() if one.posterior}
    errors: dict[str, float | None] = {}
    for name, metric in METRICS.items():
        if name in before and name not in taken:
            result[name] = before[name]
            if name in before["errors"]:
                errors[name] = before["errors"][name]
        elif name in taken:
            own = {option: options[option] for option in metric.options if option in options}
            own |= {"logvar": logvars} if metric.posterior else {}
            try:
                if name not in refused:
                    of_rows = partial(metric.score, protocol=protocol, seed=seed, kl=kl, **own)
                    found = of_rows(codes, factors)
                    result[name] = _plain(found)
                    errors[name] = metric.error and metric.error(
                        found, of_rows, codes, factors, seed, needed
                    )
                    continue
            except Unsuited as error:
                refused[name] = str(error)
            result[name] = {"score": None, "note": refused[name]}
        elif names is None and metric.usual:
            result[name] = {"score": None, "note": _sampled(metric)}
    _need_one(taken, refused)
    if "factor_vae" in taken:
        votes = result["factor_vae"]
        votes |= {"votes": votes.get("votes", []), "factor_names": list(factors.names)}
        if kl is None and votes.get("protocol", {}).get("prune") == "kl" and not votes["note"]:
            votes["note"] = "the model has no KL: only constant dimensions are dropped"
        if votes["score"] is not None and not factors.columns and protocol != "exhaustive":
            rest = torch.from_numpy(np.setdiff1d(np.arange(len(store)), needed.numpy()))
            known = _kept(run / "eval-exhaustive.json", result, ("checkpoint", "precision"))
            votes["exhaustive"] = known.get("factor_vae", {}).get("score")
            if votes["exhaustive"] is None and 10 * len(rest) <= len(needed):
                more = posteriors(model, store, rest, precision=precision)
                codes[rest], logvars[rest] = more
                kl = None if kl is None else model.information(codes, logvars)
                score = METRICS["factor_vae"].score
                votes["exhaustive"] = score(codes, factors, "exhaustive", seed, kl).score
    result["errors"] = errors
    write_atomically(path, json.dumps(result, indent=2) + "\n")
    return result


def _kept(
    path: Path,
    result: dict[str, Any],
    keys: Sequence[str] = ("checkpoint", "seed", "protocol", "precision"),
) -> dict[str, Any]:
    """Scores that a file holds of what a result is of; none where it cannot be read."""
    try:
        before = {"precision": "fp32", "errors": {}} | from_json(path.read_text(encoding="utf-8"))
        same = all(before[key] == result[key] for key in keys)
        before["errors"] = dict(before["errors"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {name: before[name] for name in (*METRICS, "errors") if name in before} if same else {}


def chosen(
    names: Sequence[str] | None, protocol: str, store: Store | None = None
) -> dict[str, Metric]:
    """Return the metrics that somebody asks for.

    Args:
        names: of metrics; "all" is every one that the protocol has, None the usual ones.
        protocol: a name in ``fvae.metrics.PROTOCOLS``.
        store: the data set; of one without factors, "all" is what needs none.

    Raises:
        UserError: the protocol or a metric does not exist, the protocol has no such metric, or it
            needs factors and the set has none.
    """
    if protocol not in metrics.PROTOCOLS:
        raise UserError(
            f"--protocol: got {protocol!r}, expected one of {', '.join(metrics.PROTOCOLS)}"
        )
    known = {name: metric for name, metric in METRICS.items() if protocol in metric.protocols}
    labelled = store is None or bool(store.factor_names)
    if names is None:
        found = {name: metric for name, metric in known.items() if metric.usual}
    elif "all" in names:
        found = {n: metric for n, metric in known.items() if labelled or not metric.supervised}
    else:
        for name in names:
            if name in ACROSS:
                raise UserError(
                    f"--metrics {name}: compares runs that differ in their seed; use `fvae study"
                    f" --metrics {name}`"
                )
            if name not in known:
                raise UserError(f"--metrics {name}: {_sampled(METRICS[name])}")
        found = {name: metric for name, metric in known.items() if name in names}
    if not found:
        raise UserError("--metrics: got none, expected one or more, or all")
    if store is not None and not labelled and any(m.supervised for m in found.values()):
        free = ", ".join(name for name, metric in known.items() if not metric.supervised)
        raise UserError(
            f"{store.name}: has no ground-truth factors, so there is no disentanglement score;"
            " `fvae report` shows reconstruction, TC and traversals"
            + (f", and --metrics takes {free}" if free else "")
        )
    return found


def _sampled(metric: Metric) -> str:
    # `exhaustive` reads every image and draws nothing; the sampled metrics have no such form.
    return f"draws random numbers; use {' or '.join(metric.protocols)}"


def factors_of(store: Store) -> tuple[Factors, dict[str, str]]:
    """Return the factors of a data set, and names and reasons of labels that are none.

    Raises:
        UserError: no factor is left.
    """
    if store.labels is None:
        return Factors.grid(store.factor_sizes, store.factor_names), {}
    kept: list[Column] = []
    left_out = {}
    for name, labels in zip(store.factor_names, store.labels.T, strict=True):
        if bool((labels == labels[0]).all()):
            left_out[name] = "has one value"
            continue
        (column,) = columns_of(labels, [name])
        if column.names_rows:
            left_out[name] = "has a value for each image or so"
        else:
            kept.append(column)
    if not kept:
        why = "; ".join(f"{name} {reason}" for name, reason in left_out.items())
        raise UserError(f"{store.name}: no label is a factor that can be scored: {why}")
    names = tuple(column.name for column in kept)
    return Factors(tuple(len(c.values) for c in kept), tuple(kept), names), left_out


def rows_of(
    factors: Factors, protocol: str, seed: int = 0, names: Iterable[str] | None = None
) -> tuple[torch.Tensor, dict[str, str]]:
    """Return the rows that metrics, or the usual ones, read, and why some cannot be taken.

    Raises:
        UserError: none can be taken of such labels.
    """
    taken = list(chosen(None, protocol) if names is None else names)
    refused: dict[str, str] = {}
    used = torch.zeros(factors.rows, dtype=torch.bool)
    for name in taken:
        try:
            used[metrics.needed(factors, name, protocol, seed)] = True
        except Unsuited as error:
            refused[name] = str(error)
    _need_one(taken, refused)
    return used.nonzero().flatten(), refused


def _options(bins: int | None, taken: Iterable[Metric]) -> dict[str, Any]:
    """Return the options that differ from the protocol's constants."""
    if bins is None or bins_of(bins) == metrics.MIG.bins:
        return {}
    if not any("bins" in metric.options for metric in taken):
        raise UserError(f"--bins {bins}: this protocol has no metric that takes bins; leave it out")
    return {"bins": bins_of(bins)}


def _need_one(taken: Iterable[str], refused: dict[str, str]) -> None:
    """Raise the first reason where no metric is left."""
    if refused and set(taken) <= set(refused):
        raise UserError(next(iter(refused.values())))


def _plain(value: Any) -> Any:
    """Turn a result into what JSON can hold."""
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return value
