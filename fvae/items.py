"""Images out of anybody's data set, and codes out of anybody's encoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset

from fvae.data import Store
from fvae.errors import UserError
from fvae.evaluate import pixels
from fvae.ops.reference import kl_to_prior

#: What the image of an item that is a dictionary is called, in the order in which it is looked for:
#: by PyTorch's and Hugging Face's data sets, their image processors, and disent.
IMAGE_KEYS = ("image", "img", "images", "pixel_values", "x", "x_targ", "input", "data")

_MU, _LOGVAR = ("mu", "mean"), ("logvar", "log_var")


def check(dataset: Any) -> None:
    """Check that images of a data set can be asked for by their number.

    Raises:
        UserError: they cannot.
    """
    if isinstance(dataset, DataLoader):
        raise UserError(
            "dataset: got a DataLoader, whose order is its own; pass its data set, loader.dataset,"
            " and num_workers="
        )
    if isinstance(dataset, Store):
        return
    known = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    if isinstance(dataset, IterableDataset | Mapping) or not known:
        raise UserError(
            f"dataset: got {type(dataset).__name__}, expected one that has a length and gives"
            " image i as dataset[i]"
        )


def batches(
    dataset: Any, rows: Tensor, batch_size: int, num_workers: int, key: str | int | None
) -> Iterator[Tensor]:
    """The images of the rows, in order, in batches: tensors ``[n, ...]``.

    Args:
        dataset: a :class:`fvae.data.Store`, an array or tensor ``[N, ...]``, or a map-style data
            set, whose items :func:`image_of` reads.
        rows: int64 ``[n]``, on the CPU.
        batch_size: images of a batch.
        num_workers: processes that read a map-style data set.
        key: of :func:`image_of`.
    """
    if isinstance(dataset, Store):
        yield from (pixels(dataset, part) for part in rows.split(batch_size))
    elif isinstance(dataset, Tensor):
        yield from (dataset[part.to(dataset.device)] for part in rows.split(batch_size))
    elif hasattr(dataset, "shape") and hasattr(dataset, "dtype"):  # an array, also one in a file
        for part in rows.split(batch_size):
            yield _tensor(np.asarray(dataset[part.numpy()]))
    else:
        # A generator of its own: without one the loader would draw from PyTorch's. Its seed is a
        # tensor on the default device, which need not hold numbers.
        with torch.device("cpu"):
            loader = iter(
                DataLoader(
                    Subset(dataset, rows.tolist()),
                    batch_size,
                    num_workers=num_workers,
                    collate_fn=_Stack(key),
                    generator=torch.Generator(),
                )
            )
        wrong = None
        for batch in loader:
            if isinstance(batch, str):  # what a worker raises would come as many lines
                wrong = batch
                break
            yield batch
        del loader  # ends the workers, who would live as long as the error that is raised
        if wrong:
            raise UserError(wrong)


class _Stack:
    """Items to one batch of their images, or to the line that says why not."""

    def __init__(self, key: str | int | None) -> None:
        self.key = key

    def __call__(self, items: list[Any]) -> Tensor | str:
        try:
            images = [image_of(item, self.key) for item in items]
        except UserError as error:
            return str(error)
        for image in images[1:]:
            if image.shape != images[0].shape:
                two = f"{list(images[0].shape)} and {list(image.shape)}"
                return f"dataset: has images of different shapes, such as {two}; make them equal"
        return torch.stack(images)


def image_of(item: Any, key: str | int | None = None) -> Tensor:
    """The image of a data set's item, a tensor.

    A tensor or NumPy array is the image, as it is. A PIL image comes as uint8 ``[C, H, W]``. Of a
    dictionary it is what ``key`` names, otherwise the first of :data:`IMAGE_KEYS` that is there, or
    the only one; of a tuple, list or named tuple, what ``key`` names or numbers, otherwise the
    first. What is found there may be a tuple or dictionary in turn.

    Raises:
        UserError: no image is found; the keys that are there are named.
    """
    if isinstance(item, Tensor):
        return item
    if isinstance(item, np.ndarray):
        return _tensor(item)
    if type(item).__module__.startswith("PIL."):
        return _pil(item)
    if isinstance(item, Mapping):
        return image_of(item[_key_of(list(item), key)])
    if isinstance(item, tuple | list) and item:
        names = list(getattr(item, "_fields", ()))
        if isinstance(key, str) and names:
            return image_of(item[names.index(_key_of(names, key))])
        if key is None or (isinstance(key, int) and key < len(item)):
            return image_of(item[key or 0])
    if dataclasses.is_dataclass(item):
        names = [field.name for field in dataclasses.fields(item)]
        return image_of(getattr(item, _key_of(names, key)))
    where = "" if key is None else f" with key={key!r}"
    raise UserError(
        f"dataset: an item{where} is {type(item).__name__}, expected a tensor, an array, a PIL"
        " image, or a tuple or dictionary that holds one"
    )


def _key_of(names: list[Any], key: str | int | None) -> Any:
    given = IMAGE_KEYS if key is None else (key,)
    found = [name for name in given if name in names] or names * (key is None and len(names) == 1)
    if not found:
        there = ", ".join(map(repr, names)) or "nothing"
        what = "say which is the image with key=" if key is None else f"not {key!r}"
        raise UserError(f"dataset: an item holds {there}; {what}")
    return found[0]


def _tensor(array: np.ndarray) -> Tensor:
    """An array on the CPU, whatever the default device."""
    array = np.ascontiguousarray(array)
    try:
        # PyTorch warns of what may not be written to, such as a PIL image's.
        return torch.as_tensor(array if array.flags.writeable else array.copy(), device="cpu")
    except TypeError:
        raise UserError(
            f"dataset: an image is an array of {array.dtype}, expected numbers"
        ) from None


def _pil(image: Any) -> Tensor:
    if image.mode in ("1", "P", "PA"):  # bits, and numbers of colours
        image = image.convert("L" if image.mode == "1" else "RGB")
    array = np.asarray(image)
    return _tensor(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))


def codes(given: Any, rows: Tensor) -> tuple[Tensor, Tensor | None]:
    """What an encoder gave for some rows: codes on the CPU, checked, and the KL of each.

    Args:
        given: codes ``[n, d]``; (mu, logvar); a distribution of :mod:`torch.distributions`, whose
            mean is taken; or a dictionary or object of which "mu" or "mean" is the code, and
            "logvar" or "log_var", if there, the log variance.
        rows: the images' numbers, int64 ``[n]``.

    Returns:
        codes ``[n, d]``, and the KL of each to the prior, float64 ``[n, d]`` in nats, where a
        normal distribution's log variance was given.

    Raises:
        UserError: it is none of these, or has another shape, or is not finite.
    """
    tensors = [
        (t if isinstance(t, Tensor) else torch.as_tensor(t, device="cpu")).detach().cpu()
        for t in _mu_and_logvar(given)
    ]
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
    mu = tensors[0].float() if tensors[0].dtype == torch.float16 else tensors[0]
    kl = kl_to_prior(mu.double(), tensors[1].double()) if len(tensors) == 2 else None
    return mu, kl


def _mu_and_logvar(given: Any) -> list[Any]:
    """The code and, if it is there, its log variance, of what an encoder gave."""
    if isinstance(given, Tensor | np.ndarray):
        return [given]
    if isinstance(given, torch.distributions.Distribution):
        base = getattr(given, "base_dist", given)
        normal = isinstance(base, torch.distributions.Normal)
        return [given.mean, 2 * given.stddev.log()] if normal else [given.mean]
    names = list(given) if isinstance(given, Mapping) else dir(given)
    found = [next((n for n in known if n in names), None) for known in (_MU, _LOGVAR)]
    plain = isinstance(given, tuple | list)
    if found[0] and not (plain and not hasattr(given, "_fields")):
        at = given.__getitem__ if isinstance(given, Mapping) else lambda name: getattr(given, name)
        return [at(name) for name in found if name]
    if plain and len(given) == 2:
        return list(given)
    what = f"{len(given)} things" if plain else type(given).__name__
    if isinstance(given, Mapping):
        what = ", ".join(map(repr, given)) or "an empty dictionary"
    raise UserError(
        f"encode: gave {what}, expected codes, or (mu, logvar), or a distribution, or what has mu"
        " (or mean) and logvar"
    )
