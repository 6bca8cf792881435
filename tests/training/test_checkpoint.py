"""What a checkpoint notices, what it falls back on, and who may write it."""

import dataclasses
import json
import multiprocessing
import shutil
import threading

import pytest
import torch
from safetensors.torch import load_file, save_file
from shared import assert_equal
from small import SMALL, log, run, step_of, tensors

import fvae
from fvae.errors import UserError
from fvae.files import locked
from fvae.training import checkpoint, loop, stacked


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of 12 steps with checkpoints at 0, 5, 10 and 12."""
    from small import bits

    folder = tmp_path_factory.mktemp("run") / "a"
    torch.manual_seed(0)  # as for the fixture `store`
    run(SMALL, bits(40), folder)
    return folder


def copy(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "a")


def flip(path, at, bit=0):
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << bit
    path.write_bytes(content)


def test_one_flipped_bit_anywhere_is_noticed(trained, tmp_path):
    folder = copy(trained, tmp_path)
    path = folder / checkpoint.NAME
    size = path.stat().st_size
    (folder / checkpoint.PREVIOUS).unlink()
    header = int.from_bytes(path.read_bytes()[:8], "little") + 8
    for at in (0, 3, 9, header // 2, header - 1, header, header + 5, size // 2, size - 1):
        for bit in (0, 6):
            flip(path, at, bit)
            with pytest.raises(UserError, match="checkpoint") as caught:
                fvae.load(folder)
            assert "\n" not in str(caught.value)
            flip(path, at, bit)
    fvae.load(folder)


def test_the_checkpoint_before_a_damaged_one_goes_on(trained, store, tmp_path, capsys):
    folder = copy(trained, tmp_path)
    flip(folder / checkpoint.NAME, -100)
    with pytest.raises(UserError, match=r"--resume \S+ goes on from the checkpoint before it"):
        fvae.load(folder)
    config = dataclasses.replace(SMALL, steps=14)
    loop.train(loop.settle(config), store, folder)
    said = capsys.readouterr().err
    assert "checksum is wrong" in said and "of step 10" in said
    run(config, store, tmp_path / "b")
    assert_equal(tensors(folder), tensors(tmp_path / "b"))
    assert log(folder) == log(tmp_path / "b")


def test_where_both_are_damaged_nothing_is_overwritten(trained, store, tmp_path):
    folder = copy(trained, tmp_path)
    for name in (checkpoint.NAME, checkpoint.PREVIOUS):
        flip(folder / name, -100)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(UserError, match="checksum is wrong"):
        loop.train(loop.settle(dataclasses.replace(SMALL, steps=14)), store, folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_a_lost_checkpoint_is_replaced_by_the_one_before(trained, store, tmp_path):
    folder = copy(trained, tmp_path)
    (folder / checkpoint.NAME).unlink()
    loop.train(loop.settle(SMALL), store, folder)
    assert_equal(tensors(folder), tensors(trained))


def test_a_checkpoint_without_a_checksum_loads_with_a_remark(trained, tmp_path, capsys):
    folder = copy(trained, tmp_path)
    path = folder / checkpoint.NAME
    metadata = {"format": "1", "config": loop.settle(SMALL).to_json()}
    save_file(load_file(path), path, metadata)
    model = fvae.load(folder)
    assert "without a checksum" in capsys.readouterr().err
    assert torch.equal(next(model.parameters()), next(fvae.load(trained).parameters()))
    assert checkpoint.state_of(folder).step == 12


@pytest.mark.parametrize("metadata", [{}, {"format": "1"}, {"format": "1", "config": "{"},
                                      {"format": "1", "config": "5"}, {"format": "2"}])  # fmt: skip
def test_metadata_of_another_kind_is_one_line(metadata, trained, tmp_path):
    folder = copy(trained, tmp_path)
    save_file(load_file(folder / checkpoint.NAME), folder / checkpoint.NAME, metadata or None)
    with pytest.raises(UserError, match="not a checkpoint of this version"):
        fvae.load(folder)


def test_the_state_is_told_by_step_and_checksum(trained, store, tmp_path):
    run(SMALL, store, tmp_path / "again")
    assert checkpoint.state_of(trained).step == step_of(trained) == 12
    assert checkpoint.state_of(tmp_path / "again") == checkpoint.state_of(trained)
    other = dataclasses.replace(SMALL, seed=1)
    run(other, store, tmp_path / "other")
    assert checkpoint.state_of(tmp_path / "other") != checkpoint.state_of(trained)
    assert checkpoint.state_of(tmp_path) is None
    for content in (b"", b"\0" * 8, b"\xff" * 40, b"\2\0\0\0\0\0\0\0{}", b"\1\0\0\0\0\0\0\x005"):
        (tmp_path / checkpoint.NAME).write_bytes(content)
        assert checkpoint.state_of(tmp_path) is None


# --- one writer -----------------------------------------------------------------------------------


def test_a_run_has_one_writer(trained, store, tmp_path):
    folder = copy(trained, tmp_path)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    more = loop.settle(dataclasses.replace(SMALL, steps=14))
    refused = []

    def other():
        for train in (loop.train, lambda c, s, r: stacked.train([c], s, [r])):
            try:
                train(more, store, folder)
            except UserError as error:
                refused.append(str(error))

    with locked(folder):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        fvae.load(folder)  # a reader needs no leave
    assert len(refused) == 2 and all("another process is training it" in r for r in refused)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    loop.train(more, store, folder)  # and now it is free


def test_the_holder_of_a_claim_may_train(trained, store, tmp_path):
    folder = copy(trained, tmp_path)
    with loop.claimed(folder):
        loop.train(loop.settle(dataclasses.replace(SMALL, steps=13)), store, folder)
        with pytest.raises(BlockingIOError), locked(folder):
            pass
    with locked(folder):
        pass


def _make(folder, barrier, made_by):
    barrier.wait()
    try:
        loop.create_run(SMALL, folder)
        made_by.put(True)
    except UserError as error:
        made_by.put(str(error))


def test_of_many_makers_of_one_folder_one_succeeds(tmp_path):
    context = multiprocessing.get_context("fork")
    for i in range(10):
        barrier, results = context.Barrier(4), context.Queue()
        makers = [
            context.Process(target=_make, args=(tmp_path / str(i), barrier, results))
            for _ in range(4)
        ]
        for maker in makers:
            maker.start()
        got = [results.get(timeout=60) for _ in makers]
        for maker in makers:
            maker.join()
        assert got.count(True) == 1, got
        assert all(r is True or "\n" not in r for r in got)
        json.loads((tmp_path / str(i) / "config.json").read_text())
