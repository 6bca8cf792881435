"""drop_in.score on data sets and encoders of every make."""

import collections
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from items import IMAGES, MAKES, SIZES, Items, N, encode, picture
from PIL import Image
from settings import SETTINGS
from torch.distributions import Independent, Laplace, MultivariateNormal, Normal
from torch.utils.data import DataLoader, IterableDataset

from fvae import drop_in
from fvae.errors import UserError
from fvae.items import image_of
from fvae.ops.reference import kl_to_prior


@pytest.fixture(scope="module")
def want():
    return drop_in.score(encode, IMAGES, SIZES, metric="mig").score


@pytest.mark.parametrize("make", MAKES)
def test_items_of_every_make(make, want):
    function, key = MAKES[make]
    got = drop_in.score(encode, Items(function), SIZES, metric="mig", key=key)
    assert got.score == want > 0.99


@pytest.mark.parametrize("make", ["a tensor", "Hugging Face's {'image': PIL}"])
@pytest.mark.parametrize("name", ["one thread", "default dtype float64", "default device"])
def test_workers_and_other_defaults(make, name, want):
    function, key = MAKES[make]
    with SETTINGS[name]():
        for workers in (0, 2):
            got = drop_in.score(
                encode, Items(function), SIZES, metric="mig", key=key, num_workers=workers
            )
            assert got.score == want


def test_data_sets_that_are_lists_or_arrays(want):
    for dataset in (IMAGES.numpy(), IMAGES.double(), list(IMAGES), [picture(i) for i in range(N)]):
        assert drop_in.score(encode, dataset, SIZES, metric="mig").score == want


def test_numbers_of_any_make(want):
    for sizes in (np.array(SIZES), [np.int64(s) for s in SIZES], torch.tensor(SIZES)):
        got = drop_in.score(
            encode, IMAGES, sizes, "mig", seed=np.int64(0), batch_size=torch.tensor(7)
        )
        assert got.score == want


@pytest.mark.parametrize(
    ("mode", "shape", "most"),
    [("L", (1, 2, 3), 200), ("RGB", (3, 2, 3), 200), ("1", (1, 2, 3), 255), ("P", (3, 2, 3), 204)],
)
def test_pictures_become_bytes(mode, shape, most):
    image = image_of(Image.new("L", (3, 2), 200).convert("RGB").convert(mode))
    assert (image.dtype, tuple(image.shape), int(image.max())) == (torch.uint8, shape, most)


def _named(x):
    return collections.namedtuple("Output", "recon mu logvar")(None, x, x * 0 - 4)


ENCODERS = {
    "Normal": lambda x: Normal(x, torch.full_like(x, 0.1)),
    "Independent(Normal)": lambda x: Independent(Normal(x, torch.full_like(x, 0.1)), 1),
    "a dictionary": lambda x: {"mu": x, "logvar": x * 0 - 4, "z": None},
    "a dictionary of the mean": lambda x: {"mean": x},
    "an object": lambda x: SimpleNamespace(mean=x, log_var=x * 0 - 4),
    "a named tuple": _named,
    "an array": lambda x: x.numpy(),
    "float16": lambda x: x.half(),
}


@pytest.mark.parametrize("kind", ENCODERS)
def test_encoders_of_every_make(kind):
    got = drop_in.score(lambda x: ENCODERS[kind](encode(x)), IMAGES, SIZES)
    assert got.score == 1.0


def test_a_normal_s_kl_is_the_protocol_s_and_no_other_distribution_s():
    from fvae.items import codes

    mu, rows = torch.randn(4, 3), torch.arange(4)
    _, kl = codes(Normal(mu, torch.full_like(mu, 0.5)), rows)
    logvar = torch.full_like(mu, 0.25).log()
    torch.testing.assert_close(kl, kl_to_prior(mu.double(), logvar.double()))
    for other in (Laplace(mu, torch.ones_like(mu)), MultivariateNormal(mu, torch.eye(3))):
        found, kl = codes(other, rows)
        assert torch.equal(found, mu) and kl is None


class Stream(IterableDataset):
    def __iter__(self):
        return iter(IMAGES)


def _various(i):
    return torch.zeros(1, 1 + (i > 3))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        (DataLoader(IMAGES), {}, "got a DataLoader, .*; pass its data set, loader.dataset"),
        (Stream(), {}, "got Stream, expected one that has a length"),
        ((x for x in IMAGES), {}, "got generator"),
        ({"train": IMAGES}, {}, "got dict"),
        (5, {}, "got int"),
        (Items(lambda i: "x"), {}, "an item is str, expected a tensor"),
        (Items(lambda i: [[1, 2], [3]]), {}, "an item is int, expected a tensor"),
        (Items(lambda i: {"a": IMAGES[i], "b": 1}), {}, "holds 'a', 'b'; say .* with key="),
        (Items(lambda i: {"a": IMAGES[i]}), {"key": "b"}, "holds 'a'; not 'b'"),
        (Items(lambda i: {}), {}, "an item holds nothing"),
        (Items(lambda i: (IMAGES[i], i)), {"key": 7}, "an item with key=7 is tuple"),
        (Items(_various), {}, r"different shapes, such as \[1, 1\] and \[1, 2\]"),
        (Items(lambda i: np.array(["a"])), {}, "an array of <U1, expected numbers"),
        (IMAGES, {"batch_size": 2.5}, "batch_size: got 2.5, expected an integer"),
        (IMAGES, {"seed": "x"}, "seed: got 'x'"),
    ],
)
def test_what_is_no_data_set_is_named_in_one_line(dataset, options, message, workers):
    with pytest.raises(UserError, match=message) as caught:
        drop_in.score(encode, dataset, SIZES, num_workers=workers, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("no", "gave str"),
        ({}, "gave an empty dictionary"),
        ({"z": 1}, "gave 'z'"),
        (None, "gave None"),
    ],
)
def test_what_is_no_code_is_named(given, message):
    with pytest.raises(UserError, match=message):
        drop_in.score(lambda x: given, IMAGES, SIZES)


def test_workers_below_none():
    with pytest.raises(UserError, match="num_workers: got -1"):
        drop_in.score(encode, IMAGES, SIZES, num_workers=-1)
