"""Seeing a run: curves, reconstructions, traversals and scores on one self-contained page."""

import html
import json
import math
from collections.abc import Sequence
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import torch
from torch import Tensor

from fvae import philox
from fvae.config import TrainConfig
from fvae.data import Store
from fvae.device import as_imported
from fvae.evaluate import encode, pixels
from fvae.files import write_atomically
from fvae.models.infogan import InfoGAN
from fvae.models.vae import VAE
from fvae.philox import Philox, Stream
from fvae.registry import METRICS
from fvae.report.page import FAR, drawable, page, picture, plt, png_of, table
from fvae.report.scores import is_of, read_scores
from fvae.report.terminal import ceiling, error
from fvae.training import checkpoint, run_data
from fvae.training import log as logs
from fvae.training.loop import HEADLINES

_FRAMES = 11
#: Latent dimensions that are drawn; a figure of hundreds takes minutes, and shows nothing.
_MOST = 32
_GIF_FRAMES = 24
_KL_SAMPLE = 2048

# Terms of the log that are drawn, where a run has them; so is any other, under its name.
_CURVES = {
    "recon": "reconstruction (nats an image)",
    "kl": "KL (nats an image)",
    "tc": "total correlation (nats)",
    "wasserstein": "Wasserstein estimate",
    "gradient_penalty": "gradient penalty",
    "disc_loss": "discriminator loss (nats)",
    "generator_loss": "generator loss",
    "mi": "mutual information (nats)",
    "dim_kl": "dimension-wise KL (nats)",
    "cov_off": "covariances, squared",
    "cov_diag": "(variances - 1), squared",
    "gap": "|KL - capacity| (nats)",
}
_NOT_DRAWN = ("seconds", "weight", "loss", "disc_accuracy", "critic_loss")


def sample_images(store: Store, count: int, seed: int) -> Tensor:
    """Return indices of images drawn with replacement, int64 ``[count]``."""
    rng = Philox(seed)
    return philox.integers(rng.seed, rng.step, Stream.SAMPLE.at(rng.lane), count, len(store))


def traverse(
    model: VAE | InfoGAN, code: Tensor, order: list[int], values: np.ndarray
) -> np.ndarray:
    """Decode copies of a code in which one dimension at a time takes given values.

    Args:
        model: encoder and decoder on the CPU.
        code: ``[d]``.
        order: latent dimensions, one row each.
        values: ``[n]``.

    Returns:
        pictures, float32 ``[len(order), n, H, W, 1 or 3]``, 0..1, as :func:`shown` makes them.
    """
    rows = code.repeat(len(order), len(values), 1)
    for i, dim in enumerate(order):
        rows[i, :, dim] = torch.as_tensor(values, dtype=rows.dtype)
    with torch.inference_mode():
        pictures = shown(model.pixels(model.decode(rows.flatten(0, 1))))
    return pictures.unflatten(0, rows.shape[:2]).numpy()


def shown(images: Tensor) -> Tensor:
    """Images ``[n, C, H, W]`` as gray or RGB pictures ``[n, H', W', 1 or 3]``.

    One channel is gray and three are RGB, as they are. Any other number of channels are gray
    tiles of one picture, in rows from the left: two side by side, four in a square.
    """
    n, channels, height, width = images.shape
    if channels in (1, 3):
        return images.permute(0, 2, 3, 1)
    columns = math.ceil(math.sqrt(channels))
    rows = math.ceil(channels / columns)
    tiles = images.new_zeros(n, rows * columns, height, width)
    tiles[:, :channels] = images
    tiles = tiles.view(n, rows, columns, height, width).transpose(2, 3)
    return tiles.reshape(n, rows * height, columns * width, 1)


def by_kl(kl: Tensor) -> list[int]:
    """Latent dimensions in order of falling KL (of a GAN, mutual information); the first 32."""
    return torch.argsort(kl, descending=True, stable=True)[:_MOST].tolist()


@as_imported()
def traversal_png(run: Path, store: Store) -> bytes:
    """Return the PNG file of a run's traversals: a row for each latent dimension, by falling KL.

    Raises:
        UserError: the run cannot be read, or is of other data.
    """
    model = checkpoint.load(run)
    run_data.check(run, store)
    code, kl = _start_code(model, store, TrainConfig.from_file(run / "config.json").seed)
    return png_of(_traversal_figure(model, code, kl))


@as_imported()
def write_traversals(run: Path, store: Store, out: Path | None = None) -> tuple[Path, Path]:
    """Write ``traversal.png`` and ``traversal.gif`` of a run: a row or tile for each latent.

    Args:
        run: a run folder.
        store: its data set.
        out: folder for the two files; None is the run folder.

    Returns:
        the two paths.

    Raises:
        UserError: the run cannot be read, or is of other data.
        OSError: the folder cannot be written.
    """
    model = checkpoint.load(run)
    run_data.check(run, store)
    seed = TrainConfig.from_file(run / "config.json").seed
    out = run if out is None else out
    out.mkdir(parents=True, exist_ok=True)
    code, kl = _start_code(model, store, seed)
    png, gif = out / "traversal.png", out / "traversal.gif"
    write_atomically(png, png_of(_traversal_figure(model, code, kl)))
    write_atomically(gif, _traversal_gif(model, store, kl, seed))
    return png, gif


def _start_code(model: VAE | InfoGAN, store: Store, seed: int) -> tuple[Tensor, Tensor]:
    codes, kl = encode(model, store, sample_images(store, _KL_SAMPLE, seed))
    return codes[0], kl


def _tiles(pictures: np.ndarray, rows: list[str], columns: Sequence[str] = ()) -> plt.Figure:
    """Draw ``[n, m, H, W, 1 or 3]`` as a table of pictures that names its rows and columns.

    Of one image: axes for each picture take most of a page's time.
    """
    n, m, height, width, channels = pictures.shape
    gap = max(1, round(0.04 * width))
    edges = [(0, 0), (0, 0), (0, gap), (0, gap), (0, 0)]
    tiles = np.pad(pictures, edges, constant_values=1.0).swapaxes(1, 2)
    tiles = tiles.reshape(n * (height + gap), m * (width + gap), channels)[:-gap, :-gap]
    figure, axis = plt.subplots(figsize=(m * 0.65, n * 0.65 * height / width))
    figure.subplots_adjust(0, 0, 1, 1)
    gray = channels == 1
    axis.imshow(
        tiles[..., 0] if gray else tiles, cmap="gray" if gray else None, vmin=0, vmax=1,
        aspect="auto",
    )  # fmt: skip
    centre = lambda count, side: [i * (side + gap) + (side - 1) / 2 for i in range(count)]  # noqa: E731
    axis.set_yticks(centre(n, height), rows, fontsize=9)
    axis.set_xticks(centre(len(columns), width), columns, fontsize=8)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return figure


def _traversal_figure(model: VAE | InfoGAN, code: Tensor, kl: Tensor) -> plt.Figure:
    order, values = by_kl(kl), np.linspace(-model.span, model.span, _FRAMES)
    images = traverse(model, code, order, values)
    names = [f"z{dim}   {kl[dim]:.2f} nats" for dim in order]
    return _tiles(images, names, [f"{value:+.1f}" for value in values])


def _traversal_gif(model: VAE | InfoGAN, store: Store, kl: Tensor, seed: int) -> bytes:
    """Animate: a row for each of four images, a column for each latent by falling KL."""
    codes, _ = encode(model, store, sample_images(store, 4, seed))
    swing = model.span * np.sin(np.linspace(0, 2 * np.pi, _GIF_FRAMES, endpoint=False))
    tiles = np.stack([traverse(model, code, by_kl(kl), swing) for code in codes])
    tiles = np.pad(tiles, [(0, 0)] * 3 + [(1, 1), (1, 1), (0, 0)], constant_values=0.25)
    frames = tiles.transpose(2, 0, 3, 1, 4, 5)  # frame, image, height, latent, width, channel
    n, rows, height, columns, width, channels = frames.shape
    frames = (frames.reshape(n, rows * height, columns * width, channels) * 255).astype(np.uint8)
    if channels == 1:
        frames = frames[..., 0]
    return imageio.imwrite("<bytes>", frames, extension=".gif", duration=70, loop=0)


def _reconstruction_figure(model: VAE | InfoGAN, store: Store, seed: int) -> plt.Figure:
    x = pixels(store, sample_images(store, 12, seed + 1))
    with torch.inference_mode():
        y = model.pixels(model(x)[0])
    return _tiles(torch.stack([shown(x), shown(y)]).numpy(), ["data", "model"])


def _curves_figure(log: list[dict]) -> plt.Figure:
    terms = [n for n, v in log[-1].items() if isinstance(v, float) and n not in _NOT_DRAWN]
    titles = _CURVES | {name: name for name in terms if name not in _CURVES}
    panels = [(name, title) for name, title in titles.items() if name in log[-1]]
    panels = panels or [("loss", "loss")]
    steps = [line["step"] for line in log]
    marker = "o" if len(log) == 1 else None  # a line of one point shows nothing
    size = (3.4 * len(panels), 2.6)
    figure, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False)
    for axis, (name, title) in zip(axes[0], panels, strict=True):
        values = [line.get(name, np.nan) for line in log]
        axis.plot(steps, values, color="#2a6fbb", linewidth=1.2, marker=marker, markersize=4)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        if name == "recon" and max(values) > 4 * min(values) > 0:
            axis.set_yscale("log")
        if name in ("tc", "mi") and min(values) < FAR:
            axis.axhline(0, color="gray", linewidth=0.8)
    figure.tight_layout()
    return figure


def votes_figure(scores: dict) -> plt.Figure:
    """Draw the votes of the FactorVAE metric in the contents of an ``eval-*.json`` as a matrix."""
    votes = np.array(scores["factor_vae"]["votes"])
    dims = np.sort(np.argsort(-votes.sum(1), kind="stable")[:_MOST])
    votes = votes[dims]
    names = [drawable(name) for name in scores["factor_vae"]["factor_names"]]
    figure, axis = plt.subplots(figsize=(1.1 * votes.shape[1] + 1.5, 0.36 * votes.shape[0] + 1))
    axis.imshow(votes, cmap="Blues", aspect="auto")
    for (j, k), count in np.ndenumerate(votes):
        dark = count > 0.6 * max(votes.max(), 1)
        axis.text(
            k, j, count, ha="center", va="center", fontsize=8, color="white" if dark else "black"
        )
    axis.set_xticks(range(len(names)), names, fontsize=8)
    axis.set_yticks(range(len(votes)), [f"z{j}" for j in dims], fontsize=8)
    axis.set_xlabel("fixed factor", fontsize=8)
    axis.set_ylabel("dimension that varied least", fontsize=8)
    return figure


@as_imported()
def write_report(run: Path, store: Store) -> Path:
    """Write ``report.html``: one page with every picture inside it, readable without a network.

    Args:
        run: a run folder.
        store: its data set.

    Returns:
        the page's path.

    Raises:
        UserError: the run cannot be read, or is of other data.
        OSError: the folder cannot be written.
    """
    config = TrainConfig.from_file(run / "config.json")
    log, scores = logs.read(run), read_scores(run)
    model, state = checkpoint.load_state(run)
    run_data.check(run, store)
    code, kl = _start_code(model, store, config.seed)
    sections = []
    if log:
        sections.append(("Losses", _summary(log[-1]) + picture(png_of(_curves_figure(log)))))
    if scores:
        sections.append(("Scores", _score_table(scores, state)))
        for s in scores:
            if s.get("factor_vae", {}).get("votes") and is_of(s, state):
                title = f"Votes of the FactorVAE metric, {s['protocol']}"
                sections.append((title, picture(png_of(votes_figure(s)))))
    else:
        command = html.escape(f"fvae eval {run}")
        note = f"<p>Not scored yet: run <code>{command}</code>, then make this page again.</p>"
        if not store.factor_names:
            note = "<p>This data set has no ground-truth factors, so there are no scores.</p>"
        sections.append(("Scores", note))
    low, high = f"&minus;{model.span:g}", f"+{model.span:g}"
    gan = isinstance(model, InfoGAN)
    sections += [
        (
            "Reconstructions",
            (_GAN_NOTE if gan else "")
            + picture(png_of(_reconstruction_figure(model, store, config.seed))),
        ),
        (
            f"Latent traversals, by falling {model.information_name}",
            f"<p>Each row moves one latent dimension from {low} to {high} and keeps the others at"
            f" the code of one image.{_first(kl)}</p>"
            + picture(png_of(_traversal_figure(model, code, kl))),
        ),
        (
            "The same in motion",
            f"<p>A column for each latent, by falling {model.information_name}; a row for each of"
            " four images.</p>" + picture(_traversal_gif(model, store, kl, config.seed), "gif"),
        ),
        ("Configuration", table(json.loads(config.to_json()).items())),
    ]
    name = run.resolve().name
    subtitle = f"{config.objective} on {store.name}, seed {config.seed}"
    path = run / "report.html"
    write_atomically(path, page(name, subtitle, sections))
    return path


def _first(kl: Tensor) -> str:
    return f" Shown are the first {_MOST} of {len(kl)} dimensions." if len(kl) > _MOST else ""


def _summary(line: dict) -> str:
    parts = [f"step {line['step']:,}", f"{line['seconds']:.0f} s"]
    parts += [f"{n} {line[n]:.3g}" for n in HEADLINES if n in line]
    return "<p>Last logged interval: " + ", ".join(parts) + ".</p>"


def _score_table(scores: list[dict], state: checkpoint.State) -> str:
    """One row a metric, one column an ``eval-*.json``; what a score says of itself is below it."""
    names = [n for n in METRICS if any(n in s for s in scores)]
    head = "<th></th>"
    for s in scores:
        old = ""
        if not is_of(s, state):
            old = f"<br><b>of step {s['step']:,}</b>; the run is at step {state.step:,}"
        head += f'<th scope="col">{html.escape(s["protocol"])}{old}</th>'
    rows = ""
    for n in names:
        cells = "".join(f"<td>{_score(s, n)}</td>" for s in scores)
        rows += f'<tr><th scope="row">{html.escape(n)}</th>{cells}</tr>'
    caption = (
        "<p>Scores of different protocols are not comparable. After &plusmn; stands the standard"
        " error that a score owes to its random draws, not to the seed of training; after a slash"
        " the ceiling, where it is below 1: what a perfect code scores.</p>"
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{caption}"


def _score(scores: dict, name: str) -> str:
    value, most = scores.get(name, {}).get("score"), ceiling(scores, name)
    text = "&ndash;" if value is None else f"{value:.3f}"
    if (said := error(scores, name)).startswith("+-"):
        text += said.replace("+-", "&nbsp;&plusmn;").replace(" ", "&nbsp;")
    if most and value is not None:
        text += f"&nbsp;/&nbsp;{most}"
    note = scores.get(name, {}).get("note")
    if (beside := scores.get(name, {}).get("exhaustive")) is not None:
        text += f"<br><small>exhaustive: {beside:.3f}</small>"
    return f"{text}<br><small>{html.escape(note)}</small>" if note else text


_GAN_NOTE = """<p>The generator at the mean of Q(c|x) and noise 0: nothing trains it to reconstruct,
so this shows what the codes hold. Traversals have noise 0 and the first value of each categorical
code, too.</p>"""
