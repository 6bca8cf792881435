"""Small data sets, files and runs that several test files share, and the command in this process.

Nets of a few units on random images: a step takes a millisecond.
"""

import contextlib
import dataclasses
import gzip
import io
import itertools
import json
import multiprocessing
import os
import signal
import struct
import zlib
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import scipy.io
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from shared import assert_equal

from fvae import cli
from fvae.config import TrainConfig
from fvae.data import LayeredStore, Store, load
from fvae.errors import UserError
from fvae.training import checkpoint, loop
from fvae.training.stacked import StackedTrainer
from fvae.training.trainer import make_trainer

# --- configurations -------------------------------------------------------------------------------

NETS = {"conv_channels": (4, 4, 4, 4), "hidden_units": 8}
SMALL = TrainConfig(
    steps=12, batch_size=3, latent_dim=4, disc_units=8, disc_hidden_layers=2, device="cpu",
    precision="fp32", checkpoint_every=5, log_every=4, learning_rate=1e-3, **NETS,
)  # fmt: skip


def options(config, *names):
    """The command line that gives these fields of a configuration; without names, all of them."""
    words = []
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), field.name.replace("_", "-")
        if not field.init or value is None or (names and field.name not in names):
            continue
        if isinstance(value, bool):
            words += [f"--{name}" if value else f"--no-{name}"] * (value != field.default)
        else:
            words += ["--" + name, *map(str, value if isinstance(value, tuple) else (value,))]
    return words


SMALL_OPTIONS = options(
    SMALL, "batch_size", "latent_dim", "disc_units", "disc_hidden_layers", "conv_channels",
    "hidden_units", "device",
)  # fmt: skip


def trainer_of(config, store, models=1, one_convolution=True):
    """A trainer of the configuration; of several models, each has its own seed and gamma."""
    if models == 1:
        return make_trainer(config, store)
    configs = [dataclasses.replace(config, seed=m, gamma=m + 1.0) for m in range(models)]
    return StackedTrainer(configs, store, models if one_convolution else None)


# --- stores ---------------------------------------------------------------------------------------


def bits(images: int, generator=None) -> Store:
    data = torch.randint(0, 256, (images, 512), dtype=torch.uint8, generator=generator)
    return Store("bits", data, (1, 64, 64), True, (), ())


def square(channels: int, side: int, binary: bool = False, images: int = 40) -> Store:
    """Images of any size, with two factors."""
    pixels = channels * side**2
    width = -(-pixels // 8) if binary else pixels
    data = torch.randint(0, 256, (images, width), dtype=torch.uint8)
    name = f"{channels} x {side} x {side}"
    return Store(name, data, (channels, side, side), binary, ("a", "b"), (2, images // 2))


def photographs(images: int) -> Store:
    data = torch.randint(0, 256, (images, 3 * 4096), dtype=torch.uint8)
    return Store("photographs", data, (3, 64, 64), False, (), ())


def layers(images: int) -> Store:
    """Images made on demand from two parts of five colours each."""
    data = torch.randint(0, 128, (images // 25 * 10, 4096), dtype=torch.uint8)
    sizes = (5, 5, images // 25)
    return LayeredStore("layers", data, (1, 64, 64), False, ("a", "b", "c"), sizes, parts=2)


# --- files laid out as the published ones ---------------------------------------------------------


class Trap:
    """Unpickling this ends the test."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle from a file was run",))


def classes_of(*sizes):
    """The latents_classes of a grid, where all images are of one colour."""
    return np.array([(0, *classes) for classes in itertools.product(*map(range, sizes))])


def binary_images(count):
    return np.random.default_rng(0).integers(0, 2, (count, 64, 64), dtype=np.uint8)


def coloured_images(count):
    return np.random.default_rng(1).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)


def write_npz(path, sizes=(2, 2, 2, 2, 2), **changes):
    """A small dSprites; None leaves a member out."""
    classes = classes_of(*sizes)
    arrays = {
        "metadata": np.array(Trap(), dtype=object),
        "imgs": binary_images(len(classes)),
        "latents_classes": classes,
        "latents_values": classes * 1.0,
    } | changes
    np.savez_compressed(path, **{k: v for k, v in arrays.items() if v is not None})
    return path


def write_h5(path, **arrays):
    with h5py.File(path, "w") as file:
        for key, array in arrays.items():
            file[key.replace("__", "/")] = array
    return path


def write_shapes3d(path, values=((0.0, 0.5),) * 6, **changes):
    """A small 3D Shapes, of the factors' values."""
    labels = np.array(list(itertools.product(*values)))
    return write_h5(path, **({"images": coloured_images(len(labels)), "labels": labels} | changes))


def png16(path, values):
    """Write a PNG of 16 bits a channel, which pillow cannot: uint16 [H, W, C], of 1 to 4."""
    height, width, channels = values.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = values.astype(">u2").reshape(height, -1).view(np.uint8)
    rows = np.pad(rows, ((0, 0), (1, 0)))  # each row begins with the filter's number

    def part(name, content):
        return (
            struct.pack(">I", len(content))
            + name
            + content
            + struct.pack(">I", zlib.crc32(name + content))
        )

    head = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    parts = (b"IHDR", head), (b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b"")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(part(*one) for one in parts))
    return path


def tiff(path, values, order="<", extra=None, planar=1, photometric=None):
    """Write an uncompressed TIFF of any numbers [H, W, C], in either byte order."""
    height, width, channels = values.shape
    bits, kind = 8 * values.dtype.itemsize, "uif".index(values.dtype.kind) + 1
    data = values.transpose(2, 0, 1) if planar == 2 else values
    data = data.astype(values.dtype.newbyteorder(order)).tobytes()
    strips = channels if planar == 2 else 1
    tags = {
        256: [width], 257: [height], 258: [bits] * channels, 259: [1],
        262: [photometric or (2 if channels > 2 else 1)],
        273: [8 + i * len(data) // strips for i in range(strips)], 277: [channels], 278: [height],
        279: [len(data) // strips] * strips, 284: [planar], 339: [kind] * channels,
    }  # fmt: skip
    tags |= {} if extra is None else {338: [extra]}
    lists, entries = b"", b""
    for tag, numbers in sorted(tags.items()):
        content = struct.pack(f"{order}{len(numbers)}I", *numbers)
        if len(numbers) > 1:
            content, lists = struct.pack(f"{order}I", 8 + len(data) + len(lists)), lists + content
        entries += struct.pack(f"{order}HHI", tag, 4, len(numbers)) + content
    head = (b"II" if order == "<" else b"MM") + struct.pack(
        f"{order}HI", 42, 8 + len(data) + len(lists)
    )
    end = struct.pack(f"{order}H", len(tags)) + entries + bytes(4)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + data + lists + end)
    return path


def write_mpi3d(path, count):
    """A small MPI3D: images alone."""
    np.savez_compressed(path, images=coloured_images(count))
    return path


def write_cars3d(folder, cars=2, **changes):
    """A small Cars3D; returns what each file holds."""
    folder.mkdir(parents=True)
    arrays = {}
    for i in range(cars):
        views = np.random.default_rng(i).integers(0, 256, (3, 24, 4), dtype=np.uint8)
        arrays[f"car_{i:03}_mesh.mat"] = {
            "im": np.broadcast_to(views, (128, 128, 3, 24, 4)),
            "mask": np.zeros((2, 2), np.uint8),
        } | changes
    for name, content in arrays.items():
        scipy.io.savemat(folder / name, content, do_compression=True)
    return [content["im"] for content in arrays.values()]


def write_matrix(path, array, magic=None):
    """A binary matrix as SmallNORB is published."""
    magics = {"uint8": 0x1E3D4C55, "int32": 0x1E3D4C54}
    lengths = [*array.shape, *[1] * (3 - array.ndim)]
    header = [magic or magics[str(array.dtype)], array.ndim, *lengths]
    content = np.array(header, "<i4").tobytes() + array.tobytes()
    (gzip.open if path.suffix == ".gz" else open)(path, "wb").write(content)


def write_smallnorb(folder, splits=("training", "testing"), count=6, end="", **changes):
    """A small SmallNORB; returns the matrices by kind, split after split."""
    folder.mkdir(exist_ok=True, parents=True)
    rng, made = np.random.default_rng(0), {"dat": [], "cat": [], "info": []}
    names = {"training": "5x46789x9x18x6x2x96x96", "testing": "5x01235x9x18x6x2x96x96"}
    for split in splits:
        info = [rng.integers(0, size, count) for size in (10, 9, 18, 6)]
        info[2] *= 2  # azimuths are 0, 2 .. 34
        arrays = {
            "dat": rng.integers(0, 256, (count, 2, 96, 96), dtype=np.uint8),
            "cat": rng.integers(0, 5, count).astype("<i4"),
            "info": np.stack(info, axis=1).astype("<i4"),
        } | changes
        for kind, array in arrays.items():
            made[kind].append(array)
            if array is not None:
                path = folder / f"smallnorb-{names[split]}-{split}-{kind}.mat{end}"
                write_matrix(path, array)
    return made


def refusal(source, load=load, **options):
    """The one-line message with which load refuses a source."""
    with pytest.raises(UserError) as caught:
        load(source, **options)
    message = str(caught.value)
    assert "\n" not in message and str(source) in message
    assert "weights_only" not in message
    return message


# --- runs -----------------------------------------------------------------------------------------


def run(config, store, folder, **callbacks):
    """Train into a new folder; return the last checkpoint."""
    loop.train(loop.create_run(config, folder), store, folder, **callbacks)
    return tensors(folder)


def tensors(folder):
    return load_file(folder / checkpoint.NAME)


def step_of(folder):
    """The step of a run's checkpoint."""
    with safe_open(folder / checkpoint.NAME, "pt") as file:
        return int(file.get_tensor("rng.step"))


def log(folder):
    """The lines of a run's log, without the time that they took."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def assert_same_run(a, b):
    """Two run folders hold the same weights and the same log."""
    assert_equal(tensors(a), tensors(b))
    assert log(a) == log(b)


class Killed(Exception):
    pass


def kill_at(last):
    """A callback that ends training as a kill would: without another checkpoint."""

    def kill(step):
        if step == last:
            raise Killed

    return kill


def signal_at(last, number=signal.SIGTERM):
    """A callback that sends this process a signal."""

    def send(step):
        if step == last:
            os.kill(os.getpid(), number)

    return send


def assert_a_killed_run_resumes_to_the_same(config, store, folder):
    """Killed after step 9, resumed from the checkpoint of step 5; return the final tensors."""
    whole, killed = folder / "a", folder / "b"
    run(config, store, whole)
    with pytest.raises(Killed):
        run(config, store, killed, on_step=kill_at(9))
    assert step_of(killed) == 5
    loop.train(TrainConfig.from_file(killed / "config.json"), store, killed)
    assert_same_run(whole, killed)
    return tensors(whole)


@contextlib.contextmanager
def made(trainer_class, keep=lambda trainer: trainer):
    """Yield a list of what `keep` gives of each trainer that is made inside."""
    found, make = [], trainer_class.__init__

    def remember(self, *args):
        make(self, *args)
        found.append(keep(self))

    trainer_class.__init__ = remember
    try:
        yield found
    finally:
        trainer_class.__init__ = make


@contextlib.contextmanager
def checkpoints_noted():
    """Yield their clock, which only we move (`now`), and what was saved: (run's name, step)."""
    clock, prepare = checkpoint.clock, checkpoint.prepare
    noted = SimpleNamespace(now=0.0, saved=[])

    def noting(run, tensors, *args):
        noted.saved.append((run.name, int(tensors["rng.step"])))
        prepare(run, tensors, *args)

    checkpoint.clock, checkpoint.prepare = lambda: noted.now, noting
    try:
        yield noted
    finally:
        checkpoint.clock, checkpoint.prepare = clock, prepare


# --- processes ------------------------------------------------------------------------------------


def command(*arguments):
    """Run the command in this process; return (exit status, standard output, standard error)."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        with pytest.raises(SystemExit) as stop:
            cli.main([str(a) for a in arguments])
    return stop.value.code, out.getvalue(), err.getvalue()


def refused(*arguments):
    """Run a command that is refused, in one line; return the line."""
    status, out, err = command(*arguments)
    assert (status, err.count("\n")) == (2, 1), err
    assert "Traceback" not in out + err
    return err


def two_at_once(work, *arguments):
    """Two forked processes do ``work(*arguments, barrier)``; neither may fail."""
    context = multiprocessing.get_context("fork" if os.name == "posix" else "spawn")
    barrier = context.Barrier(2)
    workers = [context.Process(target=work, args=(*arguments, barrier)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
