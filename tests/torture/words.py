"""The command line with any words: it ends with 0 or 2, and says why in one line."""

import random
from pathlib import Path

from small import SMALL_OPTIONS, write_npz

from fvae import data
from torture import Tally, command

_VALUES = [
    "0", "-1", "1", "2", "3", "7", "1e3", "1e308", "nan", "inf", "-inf", "", " ", "x", "None",
    "true", "1_0", "0x10", "99999999999999999999999", "-9223372036854775809", "1000000000", "0.5",
    "1e-300", "[red]x", "a[/b]", "\u00e9", "\udcff", "--", "-", "--seed", "a\nb", "\x1b[31m",
    "../..", "/dev/null", "/proc/self/mem", "/nowhere/x", "tpu", "cpu", "cuda", "auto",
    "kim2018", "exhaustive", "bf16", "fp32", "vae", "factor-vae", "infogan", "cpp", "triton",
    "reference", "1 2", "4 4 4 4",
]  # fmt: skip
_COMMANDS = ("train", "eval", "report", "traverse", "study", "data", "doctor", "nonsense", "")


def words(folder: Path, count: int, seed: int = 0) -> Tally:
    """Give ``count`` command lines made of real options and any values."""
    tally, rng = Tally("command line"), random.Random(seed)
    source = write_npz(folder / "dsprites.npz")
    data.load(source)
    run = folder / "run"
    small = ["--data", source, "--steps", 2, *SMALL_OPTIONS, "--precision", "fp32"]
    tally.faults += command("train", "--out", run, *small).faults
    options = _options()
    for trial in range(count):
        name = rng.choice(_COMMANDS)
        given: list[object] = [name] if name else []
        if name in ("eval", "report", "traverse"):
            given.append(rng.choice([run, run, run, folder, rng.choice(_VALUES)]))
        if name == "data":
            given.append(rng.choice([source, rng.choice(_VALUES)]))
        if name in ("train", "study"):
            given += ["--out", folder / f"out{trial}", *small]
            if name == "study":
                given += ["--seeds", 1, "--gammas", 1, "--betas", 1, "--protocol", "exhaustive"]
        for _ in range(rng.choice((0, 1, 1, 1, 2))):
            option = rng.choice(options.get(name, ["--nonsense"]))
            given += [option, *rng.choices(_VALUES, k=rng.choice((0, 1, 1, 1, 2)))]
        got = command(*given)
        tally.add(" ".join(map(repr, map(str, given))), got.faults, got.status == 2)
    return tally


def _options() -> dict[str, list[str]]:
    import dataclasses

    from fvae import commands

    kinds = (
        commands.Train,
        commands.Eval,
        commands.Report,
        commands.Traverse,
        commands.Study,
        commands.Data,
    )
    return {
        kind.__name__.lower(): [
            "--" + f.name.replace("_", "-")
            for f in dataclasses.fields(kind)
            if f.init and f.name not in ("out", "devices", "launcher")
        ]
        + ["--help", "--nonsense"]
        for kind in kinds
    }
