"""The training loop: step, log, checkpoint, resume."""

import dataclasses
import functools
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from fvae import checkpoint, nets, objectives, ops
from fvae.config import DISC_BETAS, GAN_BETAS, VAE_BETAS, TrainConfig
from fvae.data import BUILT_IN, Store
from fvae.device import arithmetic, resolve_device, resolve_precision
from fvae.distributed import World
from fvae.errors import UserError
from fvae.files import write_atomically
from fvae.graph import StepGraph
from fvae.philox import Philox

CONFIG_NAME = "config.json"
LOG_NAME = "log.jsonl"

#: Terms that the progress line and the report's summary show, where a run has them.
HEADLINES = ("recon", "kl", "tc", "disc_accuracy", "wasserstein", "gradient_penalty", "mi")


class Trainer:
    """Networks, optimizer and random numbers of one run; ``step()`` trains both players once.

    Args:
        config: the settings, with device and precision other than "auto".
        store: the data set; it is moved to the device.
        world: the processes that share the batch; one, unless torchrun started more.

    Raises:
        UserError: the images are not 64 x 64 with 1 or 3 channels.
    """

    def __init__(self, config: TrainConfig, store: Store, world: World | None = None) -> None:
        channels, *size = store.image_shape
        if size != [64, 64] or channels not in (1, 3):
            raise UserError(
                f"--data {store.name}: images are {list(store.image_shape)}, expected [1, 64, 64]"
                " or [3, 64, 64]; resize them"
            )
        self.config = config
        self.world = world or World()
        self.device = torch.device(config.device)
        self.store = store.to(self.device)
        self.rng = Philox(config.seed, device=self.device)
        self.step_count = 0
        groups = self._build(channels)
        self.optimizer = torch.optim.Adam(groups, fused=True, capturable=self.device.type == "cuda")
        gpu = self.device.type == "cuda"
        self.graph = StepGraph() if gpu and config.graph and self.world.size == 1 else None
        self.weight_at = objectives.weight_at(*objectives.weight_of(config))
        # Created before the first step, so that a checkpoint always has the same tensors.
        for parameter in self._parameters().values():
            self.optimizer.state[parameter] = {
                "step": torch.zeros((), device=self.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    def _build(self, channels: int) -> list[dict]:
        """Make the networks on the device; return the optimizer's groups, one a player."""
        config = self.config
        vae, discriminator = nets.build(config, channels)
        self.vae = vae.to(self.device, memory_format=torch.channels_last)
        self.discriminator = discriminator.to(self.device) if discriminator else None
        return self._groups()

    def _groups(self) -> list[dict]:
        config = self.config
        players = [(self.vae, config.learning_rate, VAE_BETAS)]
        if self.discriminator:
            players.append((self.discriminator, config.disc_learning_rate, DISC_BETAS))
        return [
            {"params": list(network.parameters()), "lr": rate, "betas": betas}
            for network, rate, betas in players
        ]

    def _modules(self) -> dict[str, torch.nn.Module]:
        """Networks by the first part of their tensors' names in a checkpoint."""
        modules = {"vae": self.vae}
        return modules | ({"discriminator": self.discriminator} if self.discriminator else {})

    def _parameters(self) -> dict[str, Tensor]:
        return {
            f"{part}.{name}": p
            for part, module in self._modules().items()
            for name, p in module.named_parameters()
        }

    def step(self) -> objectives.Terms:
        """Train both players once: draw a batch, run forward and backward, update.

        On a GPU the first steps run one kernel after another; then the step is captured and
        replayed, unless the configuration says otherwise.

        Returns:
            the loss terms of :mod:`fvae.objectives`, detached, on the device; the next step
            overwrites them where a graph is replayed.
        """
        if self.graph and self.graph.captured:
            terms = self.graph.replay()
        else:
            with arithmetic(self.device, self.config.precision):
                # Handed over at each call: a graph that kept its trainer would be kept by it.
                terms = self.graph.step(self._step) if self.graph else self._step()
        self.step_count += 1
        return terms

    def _step(self) -> objectives.Terms:
        config, gpu = self.config, self.device.type == "cuda"
        two = config.objective == "factor-vae"
        low = gpu and config.precision == "bf16"
        x, indices = ops.gather_batch(
            self.store,
            (1 + two) * config.batch_size,
            self.rng,
            config.backend,
            dtype=torch.bfloat16 if low else torch.float32,
            return_indices=True,
        )
        x = self.world.rows(x, 1 + two)
        # A GPU reads the target's packed rows again rather than float images; on a CPU the images
        # are at hand.
        first = indices[..., : config.batch_size]
        target = self._packed(self.world.rows(first, 1)) if gpu else None
        weight = self.weight_at(self.rng.step)
        with torch.autocast(
            self.device.type,
            torch.bfloat16,
            enabled=config.precision == "bf16",
            cache_enabled=not gpu,  # a cached cast would outlive the capture it was made in
        ):
            terms = self._run(self._terms, x, weight, target)
        # The one loss, or those of several models: each depends on its own model's weights alone.
        terms["loss"].sum().backward()
        self._update()
        self.rng.advance()
        return {name: term.detach() for name, term in terms.items()}

    def _update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @functools.cached_property
    def _run(self) -> Callable[..., objectives.Terms]:
        return self.world.parallel(self.vae, self.discriminator)

    def _terms(self, x: Tensor, weight: Tensor | float, target: Tensor | None) -> objectives.Terms:
        x = self._laid_out(x)
        rest = (weight, self.rng, self.config.backend, target, self.world)
        if self.config.objective == "factor-vae":
            both = x.chunk(2, dim=-4)
            return objectives.factor_vae(self.vae, self.discriminator, *both, *rest)
        return objectives.beta_vae(self.vae, x, *rest)

    def _laid_out(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last)

    def _packed(self, indices: Tensor) -> Tensor:
        rows = self.store.rows(indices)
        return rows if self.store.binary else rows.unflatten(-1, self.store.image_shape)

    def is_finite(self) -> bool:
        """Return whether every weight is a finite number."""
        each = [p.isfinite().all() for p in self._parameters().values()]
        return bool(torch.stack(each).all())

    def state(self) -> dict[str, Tensor]:
        """Return everything that the next step depends on, by name."""
        tensors = {"rng.seed": self.rng.seed, "rng.step": self.rng.step}
        for name, parameter in self._parameters().items():
            tensors[name] = parameter
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer.{key}.{name}"] = value
        return tensors

    def restore(self, tensors: dict[str, Tensor], path: Path) -> None:
        """Take over a state that :meth:`state` returned.

        Raises:
            UserError: a tensor is missing or has another shape.
        """
        for part, module in self._modules().items():
            checkpoint.load_weights(module, tensors, part + ".", path)
        try:
            for name, parameter in self._parameters().items():
                for key, value in self.optimizer.state[parameter].items():
                    value.copy_(tensors[f"optimizer.{key}.{name}"])
            self.rng.seed.copy_(tensors["rng.seed"])
            self.rng.step.copy_(tensors["rng.step"])
        except (KeyError, RuntimeError) as error:
            raise UserError(
                f"{path}: optimizer state does not fit ({error}); it belongs to another"
                " configuration"
            ) from None
        self.step_count = int(self.rng.step)


def make_trainer(config: TrainConfig, store: Store, world: World | None = None) -> Trainer:
    """Return the trainer of the configuration's objective; a GAN's trains in one process."""
    if config.objective in GAN_BETAS:
        from fvae.train_infogan import InfoGANTrainer  # it is built on the class above

        return InfoGANTrainer(config, store)
    return Trainer(config, store, world)


class _Means:
    """Sums of the loss terms since the last log line, kept on the device without a sync."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.sums: Tensor | None = None
        self.count = 0

    def add(self, terms: objectives.Terms) -> None:
        self.names = list(terms)
        row = torch.cat([t.reshape(-1).float() for t in terms.values()])
        self.sums = row if self.sums is None else self.sums + row
        self.count += 1

    def share(self, world: World) -> None:
        """Replace the sums by their mean over the processes; what is added later adds to it."""
        self.sums = world.mean(self.sums)

    def is_finite(self) -> bool:
        return self.sums is None or bool(self.sums.isfinite().all())

    def take(self) -> dict[str, float | list[float]]:
        """Return the means by name and start anew; ``kl_dims`` is a list."""
        values = (self.sums / self.count).tolist()
        dims = len(values) - (len(self.names) - 1)
        means: dict[str, float | list[float]] = {}
        for name in self.names:
            if name == "kl_dims":
                means[name], values = values[:dims], values[dims:]
            else:
                means[name], values = values[0], values[1:]
        self.sums, self.count = None, 0
        return means

    def state(self) -> dict[str, Tensor]:
        return {
            "log.sums": torch.empty(0) if self.sums is None else self.sums,
            "log.count": torch.tensor(self.count),
        }

    def restore(self, tensors: dict[str, Tensor], device: torch.device) -> None:
        self.count = int(tensors.get("log.count", 0))
        self.sums = tensors["log.sums"].to(device) if self.count else None


def check_free(run: Path) -> None:
    """Check that a run folder can be made: it does not exist or is empty.

    Raises:
        UserError: the folder holds another run or other files.
    """
    if run.exists():
        if not run.is_dir():
            raise UserError(f"--out {run}: is a file; name a folder")
        if (run / CONFIG_NAME).exists():
            raise UserError(
                f"--out {run}: already holds a run; continue it with --resume {run}, or name"
                " another folder"
            )
        if any(run.iterdir()):
            raise UserError(f"--out {run}: is not empty; name a new folder")


def create_run(config: TrainConfig, run: Path) -> TrainConfig:
    """Make a run folder, and return the configuration with device and precision settled.

    Raises:
        UserError: the folder holds another run or other files.
        OSError: it cannot be made.
    """
    check_free(run)
    config = settle(config)
    run.mkdir(parents=True, exist_ok=True)
    write_atomically(run / CONFIG_NAME, config.to_json())
    return config


def settle(config: TrainConfig) -> TrainConfig:
    """Return the configuration with "auto" replaced by what is here, and the data path absolute."""
    device = resolve_device(config.device)
    precision = resolve_precision(config.precision, device)
    data = Path(config.data).expanduser()
    return dataclasses.replace(
        config,
        device=device.type,
        precision=precision,
        # A run is scored and shown from any folder.
        data=str(data.resolve()) if config.data not in BUILT_IN and data.exists() else config.data,
    )


def train(
    config: TrainConfig,
    store: Store,
    run: Path,
    on_log: Callable[[dict], None] = lambda line: None,
    on_step: Callable[[int], None] = lambda step: None,
    world: World | None = None,
) -> int:
    """Train until ``config.steps``, from the run's checkpoint if it has one.

    Checkpoints are written at the first start, every ``config.checkpoint_every`` steps or once a
    minute (:class:`fvae.checkpoint.Schedule`), at a signal and at the end.

    Args:
        config: settings as :func:`create_run` or ``TrainConfig.from_file`` returned them.
        store: the data set.
        run: the run folder.
        on_log: called with each line of ``log.jsonl``, by the process that writes it.
        on_step: called with the number of steps done after each.
        world: the processes that share the batch, of :func:`fvae.distributed.join`; None is this
            one alone.

    Returns:
        0, or the number of the signal (SIGINT, SIGTERM) that ended the run early, after the step in
        which it came or, with other processes, some steps later; its checkpoint is then of the last
        step.

    Raises:
        UserError: a loss or weight stopped being finite (the last good checkpoint is kept), or
            the checkpoint does not fit.
        OSError: the folder is read-only or the disk is full.
    """
    world = world or World()
    trainer = make_trainer(config, store, world)
    means = _Means()
    if world.on_main((run / checkpoint.NAME).exists):
        tensors = world.each(lambda: checkpoint.read(run, config))
        trainer.restore(tensors, run / checkpoint.NAME)
        means.restore(tensors, trainer.device)
    log = run / LOG_NAME
    world.on_main(lambda: _cut_log(log, trainer.step_count))

    def save() -> None:
        means.share(world)
        if not means.is_finite() or not trainer.is_finite():
            raise _diverged(trainer, run)
        world.on_main(lambda: checkpoint.save(run, trainer.state() | means.state(), config))
        schedule.saved()

    schedule = checkpoint.Schedule(config.checkpoint_every)
    if trainer.step_count == 0:
        save()
    started = time.monotonic() - _seconds_so_far(log)
    number = 0  # of the signal that all processes have agreed to stop for
    with _StopSignal() as stop, open(log if world.main else os.devnull, "a") as log_file:
        while trainer.step_count < config.steps and not number:
            means.add(trainer.step())
            done = trainer.step_count
            on_step(done)
            end = done == config.steps
            logs = end or done % config.log_every == 0
            saves = end or schedule.at(done)
            # Of the clocks the main process's counts, so that all save at one step.
            if logs or saves or done % world.agree_every == 0:
                number, due = world.largest(stop.number, world.main and schedule.by_clock())
                saves = saves or due or number
            if logs:
                means.share(world)
                if not means.is_finite():
                    raise _diverged(trainer, run)
                line = {"step": done, "seconds": round(time.monotonic() - started, 3)}
                line |= {"weight": trainer.weight_at(done - 1)} | means.take()
                log_file.write(json.dumps(line) + "\n")
                log_file.flush()
                if world.main:
                    on_log(line)
            if saves:
                save()
    return number if trainer.step_count < config.steps else 0


def _diverged(trainer: Trainer, run: Path) -> UserError:
    return UserError(
        f"{run}: the loss or a weight is not finite by step {trainer.step_count}; the last good"
        " checkpoint is kept. Train again with a smaller --learning-rate, or --precision fp32"
    )


def _lines(log: Path) -> list[str]:
    return log.read_text().splitlines(keepends=True) if log.exists() else []


def _cut_log(log: Path, step: int) -> None:
    """Drop the lines that came after the checkpoint; the steps are about to be done again."""
    lines = _lines(log)
    kept = []
    for line in lines:
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError):  # a line that a kill cut short
            continue
    if kept != lines:
        write_atomically(log, "".join(kept))


def _seconds_so_far(log: Path) -> float:
    lines = _lines(log)
    return json.loads(lines[-1])["seconds"] if lines else 0.0


class _StopSignal:
    """Remember the first SIGINT or SIGTERM; a second one acts as it would without us."""

    def __init__(self) -> None:
        self.number = 0
        self._previous: dict[int, object] = {}

    def _catch(self, number: int, frame: object) -> None:
        self.number = number
        signal.signal(number, self._previous[number])

    def __enter__(self) -> "_StopSignal":
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                # Ignored by whoever started us, as a shell's background job is: leave it so.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._catch)
        except ValueError:  # not the main thread: signals are somebody else's business
            self._previous.clear()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
