import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from shared import full_disk
from small import two_at_once

from fvae.data import Store, cache_entries, cache_folder
from fvae.data.cache import cached


@pytest.fixture(autouse=True)
def folder(own_cache):
    return own_cache


def small(seed: int = 0) -> Store:
    data = np.random.default_rng(seed).integers(0, 256, (6, 4), dtype=np.uint8)
    return Store("small", torch.from_numpy(data), (1, 2, 2), False, ("a", "b"), (2, 3))


def labelled(dtype=torch.int64) -> Store:
    store = small()
    labels = torch.tensor([[3, 1], [3, 1], [-2, 0], [7, 1], [7, 2], [2**40, 1]], dtype=dtype)
    return replace(store, factor_sizes=(), labels=labels)


def never() -> Store:
    raise AssertionError("built, though it was in the cache")


def same(one: Store, other: Store) -> bool:
    fields = ("name", "image_shape", "binary", "factor_names", "factor_sizes")
    labels = (one.labels, other.labels)
    if any(x is not None for x in labels) and not torch.equal(*labels):
        return False
    return torch.equal(one.data, other.data) and all(
        getattr(one, field) == getattr(other, field) for field in fields
    )


def test_the_second_time_the_store_comes_from_disk(folder):
    assert same(cached("key", small), small())
    assert same(cached("key", never), small())
    assert [path.name for path in folder.iterdir()] == ["key.safetensors"]


def test_the_file_is_ordinary_safetensors(folder):
    cached("key", small)
    assert torch.equal(load_file(folder / "key.safetensors")["data"], small().data)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64])
def test_labels_are_kept_with_the_images(folder, dtype):
    cached("key", lambda: labelled(dtype))
    store = cached("key", never)
    assert same(store, labelled(dtype)) and store.labels.dtype == dtype
    tensors = load_file(folder / "key.safetensors")
    assert torch.equal(tensors["labels"], store.labels) and torch.equal(tensors["data"], store.data)
    path = folder / "key.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")  # a damaged label
    assert same(cached("key", lambda: labelled(dtype)), labelled(dtype))


def test_changing_a_loaded_store_leaves_the_file_alone():
    cached("key", small)
    cached("key", never).data.zero_()
    assert same(cached("key", never), small())


def test_entries_name_each_store_its_size_and_its_file(folder):
    assert cache_entries() == []
    cached("key", small)
    (entry,) = cache_entries()
    assert (entry.name, entry.path) == ("small", folder / "key.safetensors")
    assert entry.size == entry.path.stat().st_size > 24
    entry.path.write_bytes(b"?")
    assert [entry.name for entry in cache_entries()] == ["key"]


def test_the_folder_is_the_users_unless_chosen(monkeypatch, folder):
    assert cache_folder() == folder
    monkeypatch.delenv("FVAE_CACHE")
    assert cache_folder().name == "fvae"


def test_any_damaged_byte_is_found_and_the_store_built_again(folder, capsys):
    cached("key", small)
    path = folder / "key.safetensors"
    sound = path.read_bytes()
    # The bytes that loading relies on: the length, the description, the checksum and the data.
    start, end = sound.index(b'"store"') + 1, sound.index(b'}, "data"')
    for position in [*range(8), *range(start, end, 7), *range(len(sound) - 24, len(sound))]:
        path.write_bytes(sound[:position] + bytes([sound[position] ^ 1]) + sound[position + 1 :])
        built = []
        assert same(cached("key", lambda built=built: built.append(1) or small()), small())
        message = capsys.readouterr().err
        assert built, position
        assert message.count("\n") == 1 and "damaged" in message and str(path) in message
        assert path.read_bytes() == sound


@pytest.mark.parametrize("size", [0, 5, 100, -1])
def test_a_file_cut_short_is_built_again(folder, capsys, size):
    cached("key", small)
    path = folder / "key.safetensors"
    sound = path.read_bytes()
    path.write_bytes(sound[:size])
    assert same(cached("key", small), small())
    assert "damaged" in capsys.readouterr().err
    assert path.read_bytes() == sound


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_build_that_stops_leaves_no_file(folder, error):
    def stops() -> Store:
        raise error

    with pytest.raises(error):
        cached("key", stops)
    assert not folder.exists() or not list(folder.iterdir())


def test_an_interrupted_write_leaves_no_file(folder, monkeypatch):
    def interrupt(handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        cached("key", small)
    assert list(folder.iterdir()) == []


def test_a_full_disk_costs_only_the_cache(folder, monkeypatch, capsys):
    monkeypatch.setattr(os, "fsync", full_disk)
    assert same(cached("key", small), small())
    assert list(folder.iterdir()) == []
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "No space left" in message and str(folder) in message


def test_a_folder_that_cannot_be_made_costs_only_the_cache(folder, capsys):
    folder.write_text("a file where the folder should be")
    assert same(cached("key", small), small())
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "FVAE_CACHE" in message


def test_a_read_only_folder_costs_only_the_cache(folder, capsys):
    folder.mkdir(mode=0o555)
    if os.access(folder, os.W_OK):
        pytest.skip("this user may write anywhere")
    assert same(cached("key", small), small())
    assert capsys.readouterr().err.count("\n") == 1


def build_and_compare(barrier) -> None:
    for number in range(20):
        barrier.wait(timeout=60)
        assert same(cached(f"key-{number}", small), small())


def test_two_processes_at_once_do_not_disturb_each_other(folder):
    two_at_once(build_and_compare)
    assert len(list(folder.iterdir())) == 20
    assert same(cached("key-7", never), small())
