"""Scores of a study's runs beside those of their setting, taken once and kept in a file."""

import dataclasses
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import msgspec
import numpy as np
import torch
from torch import Tensor

from fvae import philox
from fvae.config import TrainConfig
from fvae.data import Store
from fvae.device import arithmetic, as_imported
from fvae.errors import warn
from fvae.evaluate import encoder_of, encoding_precision, images_at_once, posteriors
from fvae.files import from_json, write_atomically
from fvae.metrics import across
from fvae.metrics.across import ACROSS, Codes
from fvae.metrics.constants import CENTRALITY, UDR
from fvae.models.infogan import InfoGAN
from fvae.models.vae import VAE
from fvae.philox import Philox, Stream
from fvae.report.run import sample_images
from fvae.study.grid import setting_of
from fvae.study.work import failure, steps_done
from fvae.training import checkpoint

NAME = "across-seeds.json"
#: Of every random number here.
_SEED = 0

#: Scores of a run by name.
Scores = dict[str, dict[str, float]]


class _Setting(msgspec.Struct):
    """What is kept of a setting: which states of its runs were scored, how, and the scores."""

    runs: dict[str, str]
    constants: dict[str, dict[str, float]]
    scores: Scores


def read(out: Path, runs: dict[str, TrainConfig], names: Sequence[str]) -> Scores:
    """Return the scores that the study's folder holds of its runs as they are now.

    Args:
        out: the study's folder.
        runs: the runs of its grid by name.
        names: of scores, as in :data:`fvae.metrics.across.ACROSS`.
    """
    kept, found = _read(out) if names else {}, Scores()
    for setting, states in _settings(out, runs).items() if names else ():
        if _covers(kept.get(setting), states, names):
            found |= kept[setting].scores
    return found


def missing(out: Path, runs: dict[str, TrainConfig], names: Sequence[str]) -> bool:
    """Return whether :func:`update` has something to do."""
    return bool(names) and bool(_missing(out, runs, names, _read(out)))


def update(
    out: Path,
    runs: dict[str, TrainConfig],
    names: Sequence[str],
    store: Store,
    device: str,
) -> None:
    """Score the settings that changed, and keep the file after each.

    Args:
        out: the study's folder.
        runs: the runs of its grid by name.
        names: of scores, as in :data:`fvae.metrics.across.ACROSS`.
        store: the data set.
        device: where to encode.

    Raises:
        UserError: a run cannot be read.
        OSError: the folder cannot be written.
    """
    kept = _read(out)
    for setting, states in _missing(out, runs, names, kept).items():
        found = _scores([out / "runs" / name for name in states], names, store, device)
        before = kept.get(setting)
        if before and before.runs == states and before.constants == across.CONSTANTS:
            found = {name: before.scores[name] | found[name] for name in found}
        kept[setting] = _Setting(states, across.CONSTANTS, found)
        content = {name: msgspec.to_builtins(one) for name, one in kept.items()}
        write_atomically(out / NAME, json.dumps(content, indent=2) + "\n")


def _read(out: Path) -> dict[str, _Setting]:
    """Return what is kept, nothing where it cannot be read."""
    path = out / NAME
    try:
        content = from_json(path.read_text(encoding="utf-8"))
        kept = msgspec.convert(content, dict[str, _Setting])
        for one in kept.values():
            values = [v for scores in one.scores.values() for v in scores.values()]
            if one.runs.keys() != one.scores.keys() or not np.isfinite(values).all():
                raise ValueError("its scores do not fit its runs")
        return kept
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        warn(f"{path}: not scores that can be read ({error}); made again")
        return {}


def _settings(out: Path, runs: dict[str, TrainConfig]) -> dict[str, dict[str, str]]:
    """Settings of two or more finished runs, with the fingerprint of each run's state."""
    groups: dict[str, dict[str, str]] = defaultdict(dict)
    for name, config in runs.items():
        run = out / "runs" / name
        there = (run / checkpoint.NAME).exists()  # or it was kept without
        if there and failure(run) is None and steps_done(run) >= config.steps:
            state = checkpoint.state_of(run)
            assert state is not None  # or no step was done
            groups[setting_of(config)][name] = state.fingerprint
    return {setting: states for setting, states in groups.items() if len(states) > 1}


def _covers(kept: _Setting | None, states: dict[str, str], names: Sequence[str]) -> bool:
    return (
        kept is not None
        and kept.runs == states
        and kept.constants == across.CONSTANTS
        and all(set(names) <= scores.keys() for scores in kept.scores.values())
    )


def _missing(
    out: Path, runs: dict[str, TrainConfig], names: Sequence[str], kept: dict[str, _Setting]
) -> dict[str, dict[str, str]]:
    settings = _settings(out, runs)
    return {s: states for s, states in settings.items() if not _covers(kept.get(s), states, names)}


@as_imported()
def _scores(runs: list[Path], names: Sequence[str], store: Store, device: str) -> Scores:
    """Scores of the runs of a setting."""
    models = [checkpoint.load(run, device) for run in runs]
    images = sample_images(store, UDR.images, _SEED)
    place = next(models[0].parameters()).device
    chunk = images_at_once(place, store.image_shape)
    precision, codes = encoding_precision("auto", place), []
    for model in models:
        mu, logvar = posteriors(model, store, images, precision=precision)
        codes.append(Codes.of(mu, model.information(mu, logvar)))
    found: Scores = {run.name: {} for run in runs}
    for name in names:
        of_codes = ACROSS[name].of_codes
        scores = (
            of_codes(codes)
            if of_codes
            else across.centralities(_agreements(models, codes, chunk, precision))
        )
        for run, score in zip(runs, scores, strict=True):
            found[run.name][name] = score
    return found


def _agreements(
    models: Sequence[VAE | InfoGAN], codes: Sequence[Codes], chunk: int, precision: str = "fp32"
) -> np.ndarray:
    """A_ij: how well model i finds the dimension that was fixed when model j generated images.

    Args:
        models: on one device.
        codes: of each model, on images of the data set: these tell which dimensions inform.
        chunk: images made and encoded at once.
        precision: what they are encoded in.
    """
    encoders = [encoder_of(model, precision) for model in models]
    agreements = np.zeros((len(models), len(models)))
    for j, generator in enumerate(models):
        dims = np.flatnonzero(codes[j].informative())
        if not len(dims):
            continue
        fixed = np.resize(dims, CENTRALITY.votes)
        of_each: list[list[Tensor]] = [[] for _ in models]
        with torch.inference_mode(), arithmetic(next(generator.parameters()).device):
            for images in _generated(generator, fixed, chunk):
                for i, (encoder, parts) in enumerate(zip(encoders, of_each, strict=True)):
                    if i != j:
                        parts.append(encoder.encode(images)[0].cpu())
        for i, parts in enumerate(of_each):
            if i != j:
                z = Codes.of(torch.cat(parts), codes[i].information)
                agreements[i, j] = across.agreement(z, fixed)
    return agreements


def _generated(model: VAE | InfoGAN, fixed: np.ndarray, chunk: int) -> Iterator[Tensor]:
    """Yield batches of a model's images: codes of its prior, one dimension fixed in each vote."""
    device = next(model.parameters()).device
    count = len(fixed) * CENTRALITY.samples
    rng = Philox(_SEED)
    gan = model.draw(count, rng) if isinstance(model, InfoGAN) else None
    if gan:
        z = gan.continuous
    else:
        words = philox.words(rng.seed, rng.step, Stream.CODES.at(rng.lane), count * model.latent_dim
                             + count * model.latent_dim % 2)  # fmt: skip
        z = philox.normal(words)[: count * model.latent_dim].view(count, model.latent_dim)
    votes = z.clone().view(len(fixed), CENTRALITY.samples, -1)
    of_vote = torch.arange(len(fixed))
    dims = torch.from_numpy(fixed)
    votes[of_vote, :, dims] = votes[of_vote, 0, dims][:, None]
    z = votes.flatten(0, 1)
    if gan:
        for part in dataclasses.replace(gan, continuous=z).split(chunk):
            on = dataclasses.replace(
                part, continuous=part.continuous.to(device), noise=part.noise.to(device),
                categories=part.categories.to(device),
            )  # fmt: skip
            yield cast(InfoGAN, model).images(on)
        return
    for part in z.split(chunk):
        pixels = model.pixels(model.decode(part.to(device)))
        yield pixels.contiguous(memory_format=torch.channels_last)
