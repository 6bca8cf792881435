"""Steps a second on a GPU: ours and the textbook's, in the same arithmetic, taking turns.

Each of ours is first walked beside a textbook that has its weights and random numbers; a kind of
step whose losses are other ones is not timed.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch

from bench.arithmetic import arithmetic, current, precisions
from bench.baseline import Textbook, permute_dims_by_sorting, permute_dims_on_device
from bench.device_timing import Call, interleaved, median, ratio
from bench.record import Record
from bench.setup import Setup
from bench.step import twin
from fvae import ops
from fvae.config import TrainConfig
from fvae.ops import reference
from fvae.training.trainer import Trainer

#: (relative, absolute) distance that a loss, in nats, may have from the textbook's.
LOSS_TOLERANCE = {
    "fp32": (1e-4, 1e-4),
    "tf32": (5e-3, 5e-3),
    "bf16": (2e-2, 3e-2),
    "fp16": (2e-2, 3e-2),
}

# The textbook's encoder and decoder have one size, that of a default run.
_TEXTBOOK_SIZE = {
    "conv_channels": TrainConfig.conv_channels,
    "hidden_units": TrainConfig.hidden_units,
}
#: Modes of ``torch.compile``, the last two with CUDA graphs; the last tries its kernels out first.
AUTOTUNED = "max-autotune"
COMPILE_MODES = ("default", "reduce-overhead", AUTOTUNED)

# Images that the textbook holds as float32 on the device.
_IMAGES = 8192
# Steps that ours takes beside the textbook: on a GPU the first three run kernel after kernel.
_CHECKED_STEPS = 6

# How the textbook's kinds differ; the first is what people write.
TEXTBOOKS: dict[str, dict] = {
    "textbook as written": {},
    "textbook foreach": {
        "adam": "foreach", "permute": permute_dims_on_device, "retain_graph": False,
    },
    "textbook fused": {
        "adam": "fused", "permute": permute_dims_by_sorting, "retain_graph": False,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """One kind of step.

    Attributes:
        kind: what it is called, beside its arithmetic.
        precision: a name in ``bench.arithmetic.TF32``.
        make: builds and checks it, and returns the step.
        facts: what else its row says.
    """

    kind: str
    precision: str
    make: Callable[[], Call]
    facts: dict = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Kind and arithmetic."""
        return f"{self.kind} {self.precision}"


def differences(
    got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], precision: str
) -> list[str]:
    """Say which terms are further apart than the precision explains."""
    relative, absolute = LOSS_TOLERANCE[precision]
    return [
        f"{name} is {got[name].tolist()}, expected {value.tolist()}"
        for name, value in expected.items()
        if not torch.allclose(got[name].float(), value.float(), rtol=relative, atol=absolute)
    ]


def ours(setup: Setup, precision: str, graph: bool) -> Call:
    """Return the step of our default run, after it has walked beside the textbook.

    Args:
        setup: device, data and sizes.
        precision: of our run and of the textbook beside it.
        graph: replay the whole step as a CUDA graph.

    Raises:
        ValueError: a loss is not the textbook's.
    """
    config = setup.config(precision=precision, graph=graph, **_TEXTBOOK_SIZE)
    trainer = Trainer(config, setup.on_device)
    textbook = twin(trainer, bf16=precision == "bf16")
    for step in range(_CHECKED_STEPS):
        x = ops.gather_batch(setup.on_device, 2 * trainer.config.batch_size, trainer.rng)
        expected = textbook.step(*x.chunk(2))
        wrong = differences(trainer.step(), expected, precision)
        if wrong:
            raise ValueError(f"not timed, not the textbook's losses at step {step}: {wrong}")
    return trainer.step


def batches_of(setup: Setup, on_device: bool) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
    """Return a function that draws two batches from images held as float32 on the device.

    They are a part of the set, which spares the textbook the unpacking, in its favour.

    Args:
        setup: device, data and batch size.
        on_device: draw the indices there too, rather than on the host.
    """
    store, count = setup.store, setup.config().batch_size
    rows = store.data[:: max(1, len(store) // _IMAGES)]
    images = reference.unpack(rows, store.image_shape, store.binary, torch.float32)
    images = images.to(setup.device)
    where = setup.device if on_device else "cpu"

    def draw() -> tuple[torch.Tensor, torch.Tensor]:
        first, second = (torch.randint(len(images), (count,), device=where) for _ in range(2))
        return images[first], images[second]

    return draw


def textbook(
    setup: Setup, draw: Callable, precision: str, compile_mode: str | None = None, **options
) -> Call:
    """Return a textbook's step.

    Raises:
        ValueError: compiled, its losses are not those of the same one before.
    """
    options |= {"device": setup.device, "units": setup.config().disc_units}
    options |= {"bf16": precision == "bf16"}
    step = Textbook(compile_mode=compile_mode, **options)
    if compile_mode is not None:
        _check_compiled(step, Textbook(**options), draw())
    return lambda: step.step(*draw())


def _check_compiled(
    compiled: Textbook, plain: Textbook, batch: tuple[torch.Tensor, torch.Tensor]
) -> None:
    """Compare first losses; both draw noise of their own, hence the width of the tolerance."""
    for net, other in zip(
        (plain.encoder, plain.decoder, plain.disc),
        (compiled.encoder, compiled.decoder, compiled.disc),
        strict=True,
    ):
        net.load_state_dict(other.state_dict())
    got = {name: loss.detach().clone() for name, loss in compiled.step(*batch).items()}
    wrong = differences(got, plain.step(*batch), "bf16")
    if wrong:
        raise ValueError(f"not timed, compiling changed the losses: {wrong}")


def measure(setup: Setup, variants: list[Variant], attempt: Callable) -> list[dict]:
    """Build what can be built, time it in turns, and return a row for each.

    Args:
        setup: device and sizes.
        variants: what to time.
        attempt: ``attempt(name)`` is a context in which the variant of that name may fail.
    """
    named = {variant.name: variant for variant in variants}
    steps: dict[str, Call] = {}
    used: dict[str, dict] = {}

    @contextmanager
    def turn(name: str) -> Iterator[None]:
        """Let one of them fail, and compute in its arithmetic: it takes turns with others."""
        with attempt(name), arithmetic(named[name].precision):
            yield

    for name, variant in named.items():
        with turn(name):
            steps[name] = variant.make()
            used[name] = current()
    rates = interleaved(steps, setup.device, setup.rounds, setup.round_seconds, turn, setup.warm_up)
    return [
        {
            "kind": v.kind,
            "precision": v.precision,
            "arithmetic": used[v.name] | {"autocast": "bf16" if v.precision == "bf16" else None},
            "batch_size": setup.config().batch_size,
            **v.facts,
            "steps_per_second": rates[v.name],
            "images_per_second": setup.config().batch_size * rates[v.name]["p50"],
        }
        for v in variants
        if v.name in rates
    ]


def _textbook_variants(setup: Setup, names: list[str]) -> list[Variant]:
    variants = []
    draws = {where: batches_of(setup, where) for where in (False, True)}
    for kind, options in TEXTBOOKS.items():
        fast = bool(options)
        facts = {
            "adam": options.get("adam", "single"),
            "random_numbers": "device" if fast else "host",
        }
        # What somebody gets who sets nothing: products in IEEE float32, convolutions in TF32.
        for precision in [*names, *([] if fast or setup.tiny else ["default"])]:
            make = partial(textbook, setup, draws[fast], precision, **options)
            variants.append(Variant(kind, precision, make, facts))
    return variants


def eager_and_graph(setup: Setup, record: Record) -> list[dict]:
    """Time ours, as kernel after kernel and as one graph, and the textbooks."""
    known = precisions(setup.device)
    return _beside_textbooks(
        setup, record, known, known if setup.tiny else ["fp32", "tf32", "bf16"]
    )


def larger_batch(setup: Setup, record: Record) -> list[dict]:
    """Time the same at another batch size, in the precisions that a GPU trains in by default."""
    known = [p for p in ("bf16", "tf32") if p in precisions(setup.device)] or ["fp32"]
    return _beside_textbooks(setup, record, known, known)


def _beside_textbooks(
    setup: Setup, record: Record, own: list[str], theirs: list[str]
) -> list[dict]:
    variants = [
        Variant(f"ours {name}", p, partial(ours, setup, p, graph))
        for p in own
        for name, graph in (("graph", True), ("eager", False))
    ]
    variants += _textbook_variants(setup, theirs)
    batch = setup.config().batch_size
    return measure(setup, variants, lambda name: record.attempt(f"steps/{name}, batch {batch}"))


def compiled(
    setup: Setup, precision: str, record: Record, modes: Sequence[str] = COMPILE_MODES
) -> list[dict]:
    """Time the textbook under ``torch.compile`` beside itself and ours in one arithmetic."""
    torch.compiler.reset()  # past a number of compilations of one function it would run eager
    draw, fused = batches_of(setup, on_device=True), TEXTBOOKS["textbook fused"]
    facts = {"adam": "fused", "random_numbers": "device"}
    variants = [
        Variant("ours graph", precision, partial(ours, setup, precision, True)),
        Variant("textbook fused", precision, partial(textbook, setup, draw, precision, **fused),
                facts),
    ]  # fmt: skip
    for mode in modes:
        make = partial(textbook, setup, draw, precision, mode, **fused)
        variants.append(Variant(f"textbook compiled {mode}", precision, make, facts))
    return measure(setup, variants, lambda name: record.attempt(f"compiled/{name}"))


def table(rows: list[dict]) -> str:
    """Return lines of rates, and of what ours as a graph is over each in the same arithmetic.

    Images a second are those of a batch; the second, which the discriminator learns from, does not
    count.
    """
    best = {
        r["precision"]: median(r["steps_per_second"]) for r in rows if r["kind"] == "ours graph"
    }
    # PyTorch's default is nobody's arithmetic but its own: no ratio is given.
    lines = [
        f"{'step':<34}{'arithmetic':<14}{'steps/s':>9}{'images/s':>10}{'ours graph over it':>20}"
    ]
    for row in rows:
        rate = median(row["steps_per_second"])
        over = ratio(best.get(row["precision"]), rate)
        lines.append(
            f"{row['kind']:<34}{row['precision']:<14}{rate:>9.0f}"
            f"{row['images_per_second']:>10.0f}{'-' if over is None else f'{over:.2f}':>20}"
        )
    return "\n".join(lines)
