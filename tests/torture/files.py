"""Damaged files: each is read as far as it is whole, or refused in one line."""

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from small import SMALL_OPTIONS, write_npz

from fvae import data
from torture import Tally, command, in_child

_PIECES = (b"", b"\0", b"\xff" * 8, b"5", b"{", b"}", b"null", b"NaN", b"-1", b'"', b"true", b"[]",
           b"1e999", b"\xed\xa0\x80", b"\n", b"9" * 40, b"[" * 3000, b"\0" * 4096)  # fmt: skip


def mutations(content: bytes, count: int, rng: random.Random) -> Iterator[bytes]:
    """Yield damaged copies: bits flipped, cut short, pieces lost, doubled, put in or exchanged."""
    for _ in range(count):
        damaged = bytearray(content)
        for _ in range(rng.choice((1, 1, 1, 2, 5, 20))):
            # Half of all damage is near the beginning or the end, where headers are.
            size = len(damaged)
            span = size if rng.random() < 0.5 else min(size, 300)
            at = rng.randrange(span + 1)
            at = at if rng.random() < 0.5 else max(0, size - at)
            kind = rng.randrange(6)
            length = rng.choice((1, 2, 4, 8, 50, 1000))
            if kind == 0 and at < size:
                damaged[at] ^= 1 << rng.randrange(8)
            elif kind == 1:
                del damaged[at:]
            elif kind == 2:
                del damaged[at : at + length]
            elif kind == 3:
                damaged[at:at] = damaged[at : at + length]
            elif kind == 4:
                damaged[at:at] = rng.choice(_PIECES)
            else:
                piece = rng.choice(_PIECES)
                damaged[at : at + len(piece)] = piece
        yield bytes(damaged)


def damaged(
    kind: str, path: Path, read: Callable[[], object], count: int, seed: int = 0, batch: int = 100
) -> Tally:
    """Damage one file in many ways and read each; ``batch`` of them in one process.

    Args:
        kind: of the row.
        path: the file; it is whole again afterwards.
        read: reads it; a UserError is a refusal, any other exception a fault.
        count: trials.
        seed: of the damage.
        batch: trials in one process.
    """
    from fvae.errors import UserError

    tally, whole = Tally(kind), path.read_bytes()
    read()  # as it is, it can be read
    variants = list(mutations(whole, count, random.Random(seed)))

    def try_all(contents: list[bytes]) -> int:
        for content in contents:
            path.unlink(missing_ok=True)
            path.write_bytes(content)
            try:
                read()
            except UserError as error:
                print("refused")
                if "\n" in str(error):
                    print("Traceback: of more than one line:", repr(str(error)))
        return 0

    def trial(contents: list[bytes], first: int) -> None:
        limit = 10.0 + 0.2 * len(contents)
        got = in_child(lambda: try_all(contents), limit=limit)
        faults = [f for f in got.faults if not f.startswith("took") or got.seconds > limit
                  or "GB" in f]  # fmt: skip
        if faults and len(contents) > 1:  # which one was it?
            half = len(contents) // 2
            trial(contents[:half], first)
            trial(contents[half:], first + half)
            return
        tally.trials += len(contents)
        tally.refused += got.out.count("refused\n")
        tally.faults += [f"mutation {first}: {f}: {got.err[-300:]}" for f in faults]

    for first in range(0, count, batch):
        trial(variants[first : first + batch], first)
    path.write_bytes(whole)
    return tally


def run_files(folder: Path, count: int) -> list[Tally]:
    """Damage each file of a run's folder and read it as every command does."""
    from fvae import report
    from fvae.config import TrainConfig
    from fvae.report.scores import read_scores
    from fvae.training import checkpoint, run_data
    from fvae.training import log as logs

    source = write_npz(folder / "dsprites.npz")
    data.load(source)
    run = folder / "run"
    words = ["train", "--out", run, "--data", source, "--steps", 12, *SMALL_OPTIONS]
    made = [command(*words, "--precision", "fp32", "--checkpoint-every", 5, "--log-every", 4),
            command("eval", run, "--protocol", "exhaustive")]  # fmt: skip
    assert not any(m.faults for m in made), made
    spare = shutil.copytree(run, folder / "spare")

    def all_that_is_read() -> None:
        TrainConfig.from_file(run / "config.json")
        logs.read(run)
        read_scores(run)
        report.scores_of(run, "exhaustive")
        checkpoint.state_of(run)
        run_data.check(run, store)
        checkpoint.load(run)

    def resumed() -> None:
        from fvae.training import loop

        for name in (checkpoint.NAME, checkpoint.PREVIOUS, "log.jsonl", "config.json"):
            if name != target:
                shutil.copy(spare / name, run / name)
        loop.train(TrainConfig.from_file(run / "config.json"), store, run)

    store = data.load(source)
    tallies = []
    for target in sorted(p.name for p in spare.iterdir() if p.suffix in (".json", ".jsonl",
            ".safetensors")):  # fmt: skip
        read = resumed if "checkpoint" in target or "log" in target else all_that_is_read
        tallies.append(damaged(f"damaged {target}", run / target, all_that_is_read, count // 2))
        more = damaged("", run / target, read, count - count // 2, seed=1)
        tallies[-1].trials += more.trials
        tallies[-1].refused += more.refused
        tallies[-1].faults += more.faults
    return tallies
