"""Images of any size and kind."""

import contextlib
import dataclasses
import io
import os
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from shared import TESTS, packed
from small import SMALL, png16, run, square, tiff, write_npz

import fvae
from fvae import Philox, data, ops, report
from fvae.config import TrainConfig
from fvae.data import Store
from fvae.errors import UserError
from fvae.training import loop, stacked
from fvae.training.trainer import Trainer
from own import case

BACKENDS = ("reference", "triton")


def _message(call):
    """The line with which a call is refused."""
    try:
        call()
    except (UserError, ValueError) as error:
        return str(error)
    return "no error"


@contextlib.contextmanager
def _cache(folder):
    """A cache of its own, and what is said on stderr."""
    before, said = os.environ.get("FVAE_CACHE"), io.StringIO()
    os.environ["FVAE_CACHE"] = str(folder / "cache")
    try:
        with contextlib.redirect_stderr(said):
            yield said
    finally:
        os.environ.pop("FVAE_CACHE")
        os.environ.update({} if before is None else {"FVAE_CACHE": before})


def _trained(store, folder, **settings):
    """Trained for two steps, resumed for one more, and loaded."""
    run(dataclasses.replace(SMALL, steps=2, **settings), store, folder)
    kept = TrainConfig.from_file(folder / "config.json")
    loop.train(dataclasses.replace(kept, steps=3), store, folder)
    model = fvae.load(folder)
    pictures = model.pixels(model.decode(torch.zeros(2, 4)))
    return list(pictures.shape), bool(pictures.isfinite().all())


# --- sizes and channels ---------------------------------------------------------------------------


def _add_sizes():
    sides = (16, 17, 28, 31, 32, 50, 64, 96, 100, 128)
    for side, channels in zip(sides, (1, 2, 1, 3, 3, 4, 5, 1, 13, 3), strict=True):
        wanted = [2, channels, side, side]

        @case(f"images {side} x {side}, {channels} channels: train, resume, load", wanted)
        def _(folder, side=side, channels=channels, wanted=wanted):
            got, finite = _trained(square(channels, side, side % 4 == 0), folder)
            return got, finite and got == wanted


_add_sizes()


@case("infowgan-gp on 3 x 31 x 31", [2, 3, 31, 31])
def _(folder):
    got, finite = _trained(square(3, 31), folder, objective="infowgan-gp")
    return got, finite and got == [2, 3, 31, 31]


@case("two models in one step on 1 x 28 x 28", "each as it would be alone")
def _(folder):
    store = square(1, 28, binary=True)
    configs = [dataclasses.replace(SMALL, steps=3, seed=seed) for seed in (0, 1)]
    runs = [folder / str(c.seed) for c in configs]
    made = [loop.create_run(c, r) for c, r in zip(configs, runs, strict=True)]
    stacked.train(made, store, runs)
    run(configs[1], store, folder / "alone")
    together, alone = (fvae.load(f).state_dict() for f in (runs[1], folder / "alone"))
    worst = max(float((together[k] - alone[k]).abs().max()) for k in alone)
    return f"weights differ by {worst:.1e}", worst < 1e-6


@case("the report of a run on 4 x 20 x 20", "a page, channels as gray tiles")
def _(folder):
    store = dataclasses.replace(square(4, 20), factor_names=(), factor_sizes=())
    run(dataclasses.replace(SMALL, steps=1, latent_dim=1), store, folder)
    page = report.write_report(folder, store).read_text()
    shape = list(report.run.shown(torch.rand(2, 4, 20, 20)).shape)
    return f"{page.count('<img')} pictures, tiles {shape[1:]}", shape == [2, 40, 40, 1]


@case("images 15 x 15", "one line: at least 16 x 16")
def _(folder):
    got = _message(lambda: Trainer(SMALL, square(1, 15)))
    return got, "15 x 15, expected square ones of at least 16 x 16" in got


@case("images 28 x 32", "one line: square ones")
def _(folder):
    store = Store("oblong", torch.zeros(4, 28 * 32, dtype=torch.uint8), (1, 28, 32), False)
    got = _message(lambda: Trainer(SMALL, store))
    return got, "28 x 32, expected square ones" in got


@case("a run folder of version 0.1, without a size", [1, 64, 64])
def _(folder):
    got = list(fvae.load(TESTS / "data" / "run-0.1").image_shape)
    return got, got == [1, 64, 64]


@case("a model of 28 x 28 is given 31 x 31, which its layers take", "one line: expected 28 x 28")
def _(folder):
    model = fvae.models.vae.VAE(image_size=28)
    got = _message(lambda: model.encode(torch.rand(2, 1, 31, 31)))
    return got, "expected [B, 1, 28, 28]" in got


@case("a folder of pictures with --image-size 28", "3 x 28 x 28, beside those of 64 x 64")
def _(folder):
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    (folder / "p").mkdir()
    Image.fromarray(pixels).save(folder / "p" / "x.png")
    with _cache(folder):
        small, usual = data.load(folder / "p", image_size=28), data.load(folder / "p")
    same = np.array_equal(small.images([0])[0].permute(1, 2, 0), pixels)
    got = f"{list(small.image_shape)} beside {list(usual.image_shape)}"
    return got, same and got == "[3, 28, 28] beside [3, 64, 64]"


@case("a published dSprites with --image-size 28", "one line: only folders are resized")
def _(folder):
    path = write_npz(folder / "d.npz")
    with _cache(folder):
        got = _message(lambda: data.load(path, image_size=28))
    return got, "images are 64 x 64, and --image-size" in got


# --- packed rows ----------------------------------------------------------------------------------


def _gathered(data, shape, binary):
    """The same draw from both backends: whether it is the reference's, bit for bit."""
    store = SimpleNamespace(data=data, image_shape=shape, binary=binary)
    x, y = (ops.gather_batch(store, 5, Philox(1), backend=name) for name in BACKENDS)
    return bool(torch.equal(x, y)) and list(x.shape) == [5, *shape]


def _add_packed():
    for shape, binary in (((1, 28, 28), True), ((1, 5, 5), True), ((3, 5, 5), False)):
        pixels = int(np.prod(shape))
        width = -(-pixels // 8) if binary else pixels
        what = f"{' x '.join(map(str, shape))} {'bits' if binary else 'bytes'}, {width} bytes a row"

        @case(f"gather_batch of {what}", "both backends alike, wherever the rows lie")
        def _(folder, shape=shape, binary=binary, width=width):
            memory = torch.randint(0, 256, (9 * (width + 5),), dtype=torch.uint8)
            whole = memory[: 9 * width].view(9, width)
            moved = memory[3 : 3 + 9 * width].view(9, width)
            parted = memory.view(9, width + 5)[:, 2:-3]
            got = [_gathered(rows, shape, binary) for rows in (whole, moved, parted)]
            return got, all(got)

    for shape in ((1, 28, 28), (1, 5, 5), (3, 7, 7)):

        @case(f"packed bits of {' x '.join(map(str, shape))} as a target", "the loss of the bits")
        def _(folder, shape=shape):
            bits, out = torch.rand(3, *shape) > 0.5, torch.randn(3, *shape)
            rows = packed(bits)
            rows[:, -1] |= 0xFF << 8 - -int(np.prod(shape)) % 8 & 0xFF  # what is left over
            worst = 0.0
            for op in (ops.bernoulli_nll, ops.gaussian_nll):
                right = float(op(out.double(), bits))
                found = [abs(float(op(out, rows, b)) / right - 1) for b in BACKENDS]
                worst = max(worst, *found)
            return f"relative error {worst:.1e}", worst < 1e-6


_add_packed()


# --- likelihoods ----------------------------------------------------------------------------------


@case("--likelihood gaussian on 1 x 28 x 28", [2, 1, 28, 28])
def _(folder):
    got, finite = _trained(square(1, 28, binary=True), folder, likelihood="gaussian")
    kept = fvae.load(folder).likelihood == "gaussian"
    return got, finite and kept and got == [2, 1, 28, 28]


@case("gaussian_nll of m = 2 against bytes of 255, 3 x 4 x 4 pixels", 24.0)
def _(folder):
    mean, target = torch.full((2, 3, 4, 4), 2.0), torch.full((2, 3, 4, 4), 255, dtype=torch.uint8)
    got = [float(ops.gaussian_nll(mean, target, name)) for name in BACKENDS]
    return got, all(abs(value - 24) < 1e-4 for value in got)


@case("--likelihood gaussian with infogan", "one line")
def _(folder):
    got = _message(lambda: TrainConfig(objective="infogan", likelihood="gaussian"))
    return got, "infogan reconstructs nothing" in got


@case("bernoulli_nll of images in 0..255 as float", "one line with the range")
def _(folder):
    got = _message(lambda: ops.bernoulli_nll(torch.zeros(1, 1, 2, 2), 255 * torch.ones(1, 1, 2, 2)))
    return got, "got values from 255 to 255, expected floating point in 0..1" in got


@case("bernoulli_nll of a target with a NaN", "one line")
def _(folder):
    target = torch.full((1, 1, 2, 2), torch.nan)
    got = _message(lambda: ops.bernoulli_nll(torch.zeros(1, 1, 2, 2), target))
    return got, "expected floating point in 0..1" in got


@case("the same where nothing can be raised: as a GPU's kernel computes it", "nan")
def _(folder):
    logits, wrong = torch.zeros(2, 1, 1, 2, 2), torch.zeros(2, 1, 1, 2, 2)
    wrong[1] = 1.5
    got = ops.BACKENDS["triton"]["bernoulli_nll"](logits, wrong)[0].tolist()
    return got, got[0] > 0 and got[1] != got[1]


# --- 16 bits --------------------------------------------------------------------------------------


def _deep(channels, bits=12):
    values = np.random.default_rng(1).integers(0, 2**bits, (16, 16, channels), dtype=np.uint16)
    values[0, 0] = 2**bits - 1
    return values


def _converted(folder):
    with _cache(folder) as said:
        store = data.load(folder / "p", image_size=16)
    return store.images(range(len(store))).permute(0, 2, 3, 1).numpy(), said.getvalue(), store.note


def _add_deep():
    for channels, bits, write in (
        (1, 10, png16), (1, 12, png16), (1, 14, tiff), (3, 12, png16), (3, 12, tiff),
    ):  # fmt: skip
        kind = (
            f"{'gray' if channels == 1 else 'colour'} {write.__name__.removesuffix('16').upper()}"
        )
        top = 2**bits - 1

        @case(f"{bits} bits in a 16-bit {kind}", f"scaled by {top}, which is said")
        def _(folder, channels=channels, bits=bits, write=write, top=top):
            values = _deep(channels, bits)
            write(folder / "p" / ("x.png" if write is png16 else "x.tif"), values)
            pixels, said, note = _converted(folder)
            right = np.array_equal(pixels[0], values.astype(int) * 255 // top)
            return note, right and note in said and f"scaled by {top}" in note


_add_deep()


@case("a dark picture among others of 12 bits", "one scale for the set")
def _(folder):
    values = _deep(1)
    png16(folder / "p" / "0.png", values // 16)
    png16(folder / "p" / "1.png", values)
    pixels, _, _ = _converted(folder)
    got = [int(one.max()) for one in pixels]
    return got, got == [15, 255]


def _add_unreadable():
    for what, values, why in (
        ("floating-point numbers", np.ones((16, 16, 1), np.float32), "floating-point numbers"),
        ("numbers below 0", np.full((16, 16, 1), -5, np.int16), "from -5 to -5, not in 16 bits"),
        ("32 bits", np.full((16, 16, 1), 70000, np.uint32), "from 70000 to 70000, not in 16 bits"),
    ):

        @case(f"a TIFF of {what}", "named and left out")
        def _(folder, values=values, why=why):
            tiff(folder / "p" / "x.tif", values)
            png16(folder / "p" / "y.png", _deep(1, 16))
            pixels, said, _ = _converted(folder)
            return said.strip().splitlines()[0], len(pixels) == 1 and why in said


_add_unreadable()


@case("pictures of 1 bit, palette, CMYK, gray with opacity", "their colours, on white")
def _(folder):
    (folder / "p").mkdir()
    Image.new("1", (16, 16), 1).save(folder / "p" / "0.png")
    red = Image.new("RGB", (16, 16), (255, 0, 0))
    red.quantize(4).save(folder / "p" / "1.png")
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(folder / "p" / "2.tif")
    Image.new("LA", (16, 16), (0, 0)).save(folder / "p" / "3.png")
    pixels, _, _ = _converted(folder)
    got = [tuple(map(int, one[0, 0])) for one in pixels]
    white, red_ = (255, 255, 255), (255, 0, 0)
    return got, got == [white, red_, red_, white]
