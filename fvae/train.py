"""The training loop: step, log, checkpoint, resume."""

import dataclasses
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from fvae import checkpoint, nets, objectives, ops
from fvae.config import DISC_BETAS, VAE_BETAS, TrainConfig
from fvae.data import Store
from fvae.device import resolve_device, resolve_precision
from fvae.errors import UserError
from fvae.files import write_atomically
from fvae.philox import Philox

CONFIG_NAME = "config.json"
LOG_NAME = "log.jsonl"

# Eager steps before a CUDA graph is captured; they are steps of the run like any other.
_GRAPH_WARM_UP = 3


class Trainer:
    """Networks, optimizer and random numbers of one run; ``step()`` trains both players once.

    Args:
        config: the settings, with device and precision other than "auto".
        store: the data set; it is moved to the device.

    Raises:
        UserError: the images are not 64 x 64 with 1 or 3 channels.
    """

    def __init__(self, config: TrainConfig, store: Store) -> None:
        channels, *size = store.image_shape
        if size != [64, 64] or channels not in (1, 3):
            raise UserError(
                f"--data {store.name}: images are {list(store.image_shape)}, expected [1, 64, 64]"
                " or [3, 64, 64]; resize them"
            )
        self.config = config
        self.device = torch.device(config.device)
        self.store = store.to(self.device)
        self.rng = Philox(config.seed, device=self.device)
        self.step_count = 0
        groups = self._build(channels)
        self.optimizer = torch.optim.Adam(groups, fused=True, capturable=self.device.type == "cuda")
        self.graph: torch.cuda.CUDAGraph | None = None
        self.warm_up_steps = 0
        value = config.gamma if config.objective == "factor-vae" else config.beta
        if config.objective == "vae":
            value = 1.0
        warmup = 0 if config.objective == "vae" else config.warmup_steps
        self.weight_at = objectives.weight_at(value, warmup)
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
        groups = [
            {"params": list(vae.parameters()), "lr": config.learning_rate, "betas": VAE_BETAS}
        ]
        if discriminator:
            groups.append(
                {
                    "params": list(discriminator.parameters()),
                    "lr": config.disc_learning_rate,
                    "betas": DISC_BETAS,
                }
            )
        return groups

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
        if self.graph:
            self.graph.replay()
        elif self.device.type == "cuda" and self.config.graph:
            if self.warm_up_steps < _GRAPH_WARM_UP:
                self.warm_up_steps += 1
                self.terms = self._warm_up_step()
            else:
                self._capture()
                self.graph.replay()
        else:
            self.terms = self._step()
        self.step_count += 1
        return self.terms

    def _warm_up_step(self) -> objectives.Terms:
        """Step on a side stream, as capture demands of what allocates and autotunes."""
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            terms = self._step()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        return terms

    def _capture(self) -> None:
        """Record one step; what it reads and writes then stays where it is."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.terms = self._step()
        self.graph = graph

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
        x = x.contiguous(memory_format=torch.channels_last)
        # A GPU reads the target's packed rows again rather than float images; on a CPU the images
        # are at hand.
        target = self._packed(indices[: config.batch_size]) if gpu else None
        weight = self.weight_at(self.rng.step)
        with torch.autocast(
            self.device.type,
            torch.bfloat16,
            enabled=config.precision == "bf16",
            cache_enabled=not gpu,  # a cached cast would outlive the capture it was made in
        ):
            if two:
                first, second = x.split(config.batch_size)
                terms = objectives.factor_vae(
                    self.vae, self.discriminator, first, second, weight, self.rng,
                    config.backend, target,
                )  # fmt: skip
            else:
                terms = objectives.beta_vae(self.vae, x, weight, self.rng, config.backend, target)
        terms["loss"].backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.rng.advance()
        return {name: term.detach() for name, term in terms.items()}

    def _packed(self, indices: Tensor) -> Tensor:
        rows = self.store.data[indices]
        return rows if self.store.binary else rows.view(-1, *self.store.image_shape)

    def is_finite(self) -> bool:
        """Return whether every weight is a finite number."""
        return all(bool(p.isfinite().all()) for p in self._parameters().values())

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
        checkpoint.load_weights(self.vae, tensors, "vae.", path)
        if self.discriminator:
            checkpoint.load_weights(self.discriminator, tensors, "discriminator.", path)
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
    """Return the configuration with "auto" replaced by what is here, and a file's path absolute."""
    device = resolve_device(config.device)
    precision = resolve_precision(config.precision, device)
    data = Path(config.data).expanduser()
    return dataclasses.replace(
        config,
        device=device.type,
        precision=precision,
        # A run is scored and shown from any folder.
        data=str(data.resolve()) if data.suffix else config.data,
    )


def train(
    config: TrainConfig,
    store: Store,
    run: Path,
    on_log: Callable[[dict], None] = lambda line: None,
    on_step: Callable[[int], None] = lambda step: None,
) -> int:
    """Train until ``config.steps``, from the run's checkpoint if it has one.

    Args:
        config: settings as :func:`create_run` or ``TrainConfig.from_file`` returned them.
        store: the data set.
        run: the run folder.
        on_log: called with each line of ``log.jsonl``.
        on_step: called with the number of steps done after each.

    Returns:
        0, or the number of the signal (SIGINT, SIGTERM) that ended the run early; its checkpoint
        is then of the last step.

    Raises:
        UserError: a loss or weight stopped being finite (the last good checkpoint is kept), or
            the checkpoint does not fit.
        OSError: the folder is read-only or the disk is full.
    """
    trainer = Trainer(config, store)
    means = _Means()
    if (run / checkpoint.NAME).exists():
        tensors = checkpoint.read(run, config)
        trainer.restore(tensors, run / checkpoint.NAME)
        means.restore(tensors, trainer.device)
    log = run / LOG_NAME
    _cut_log(log, trainer.step_count)

    def save() -> None:
        if not means.is_finite() or not trainer.is_finite():
            raise _diverged(trainer, run)
        checkpoint.save(run, trainer.state() | means.state(), config)

    if trainer.step_count == 0:
        save()
    started = time.monotonic() - _seconds_so_far(log)
    with _StopSignal() as stop, log.open("a") as log_file:
        while trainer.step_count < config.steps and not stop.number:
            means.add(trainer.step())
            done = trainer.step_count
            on_step(done)
            if done % config.log_every == 0 or done == config.steps:
                if not means.is_finite():
                    raise _diverged(trainer, run)
                line = {"step": done, "seconds": round(time.monotonic() - started, 3)}
                line |= {"weight": trainer.weight_at(done - 1)} | means.take()
                log_file.write(json.dumps(line) + "\n")
                log_file.flush()
                on_log(line)
            if done % config.checkpoint_every == 0 or done == config.steps or stop.number:
                save()
        if stop.number and trainer.step_count < config.steps:
            save()
    return stop.number if trainer.step_count < config.steps else 0


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
