"""Training M models of equal shape in one step on one device.

Each model has its own seed, weight of the objective and warm-up, draws what it would draw alone
and takes the step that it would take alone, to rounding, which training amplifies over many steps,
here as between any two machines. On a CPU in fp32 it is that step bit for bit with 64 x 64 images
of one channel; with others the bias of the last layer is summed in another order. See
:mod:`fvae.models.stacked` for the networks.
"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fvae.config import TrainConfig
from fvae.data import Store
from fvae.device import as_imported
from fvae.errors import UserError
from fvae.models.stacked import StackedVAE, stack
from fvae.philox import Philox
from fvae.registry import OBJECTIVES, Objective
from fvae.training import checkpoint, log, loop, objectives, run_data
from fvae.training.means import Means
from fvae.training.scaling import LossScale
from fvae.training.trainer import Trainer, sized

# The tensor of the state that has no dimension M: all models are at one step.
_SHARED = "rng.step"

# Adam's count of a model's updates, which in float16 may leave some out.
_UPDATES = "optimizer.step."


def _own(objective: Objective) -> list[str]:
    """Settings that each model of an objective may have of its own: seed, weights and warm-ups."""
    names = {"seed": None}
    for one in OBJECTIVES.values():
        if one.stacks and one.weight:
            names |= {one.weight: None, one.warmup: None}
    return [name for name in names if name not in objective.settings]


def stackable(a: TrainConfig, b: TrainConfig) -> bool:
    """Return whether two runs can train in one step.

    They may differ in seed, weight and warm-up; objectives of the same terms, as vae and beta-vae,
    go together. The learning rates are those of one fused Adam, so they are equal.
    """
    own = _own(OBJECTIVES[a.objective])

    def shape(config: TrainConfig) -> dict:
        fields = dataclasses.asdict(config)
        fields["objective"] = OBJECTIVES[config.objective].terms
        return {name: value for name, value in fields.items() if name not in own}

    return OBJECTIVES[a.objective].stacks and shape(a) == shape(b)


class StackedTrainer(Trainer):
    """Networks, optimizer and random numbers of M runs; ``step()`` trains all of them once.

    Args:
        configs: the settings of each, with device and precision other than "auto".
        store: the data set; it is moved to the device.
        group: models that share one convolution; None picks by device and precision.

    Raises:
        UserError: the settings cannot train in one step, or the images are not square, or smaller
            than 16 x 16.
    """

    def __init__(
        self, configs: Sequence[TrainConfig], store: Store, group: int | None = None
    ) -> None:
        configs = [sized(config, store) for config in configs]
        for config in configs:
            if not stackable(configs[0], config):
                raise UserError(
                    f"runs of seeds {configs[0].seed} and {config.seed} cannot train in one step:"
                    f" they differ in more than {', '.join(_own(OBJECTIVES[config.objective]))};"
                    " train each alone"
                )
        self.configs, self.group = configs, group
        super().__init__(configs[0], store)
        self.rng = Philox([c.seed for c in configs], device=self.device)
        self.scale = LossScale(self.device, len(configs)) if self.scale else None
        self.parts = self.optimizer.split() if self.scale else {}
        values = [objectives.weight_of(c) for c in configs]
        self.weights = [objectives.weight_at(*v) for v in values]
        value, warmup = (torch.tensor(v, device=self.device) for v in zip(*values, strict=True))
        # Without a warm-up the weight is complete at step 0.
        offset, warmup = (warmup == 0).long(), warmup.clamp(min=1)
        self.weight_at = lambda step: value * ((step + offset) / warmup).clamp(max=1.0)

    def _build(self, channels: int) -> list[dict]:
        each = [self._networks_of(config, channels) for config in self.configs]
        vaes, discriminators = zip(*each, strict=True)
        # One convolution for all fills a GPU better, and is faster in bf16 on a CPU; oneDNN's
        # float32 convolution in groups is slower than as many single ones.
        alone = self.device.type == "cpu" and self.config.precision == "fp32"
        group = self.group or (1 if alone else len(vaes))
        self.vae = StackedVAE(vaes, group).to(self.device)
        self.discriminator = stack(discriminators).to(self.device) if discriminators[0] else None
        return self._groups()

    def _update(self) -> None:
        if not self.scale:
            super()._update()
            return
        # One after another: each leaves out updates of its own.
        for m in range(len(self.configs)):
            for whole, parts in self.parts.items():
                assert whole.grad is not None  # the backward pass has just made it
                parts[m].grad = whole.grad[m]
            self._update_model(self._gradients(), m)
            self.optimizer.zero_grad(set_to_none=True)
        self.scale.update()
        for whole in self.parts:
            whole.grad = None

    def _laid_out(self, x: Tensor) -> Tensor:
        return x  # the networks rearrange it

    def are_finite(self) -> list[bool]:
        """Return for each model whether all its weights are finite numbers."""
        finite = [p.isfinite().flatten(1).all(1) for p in self._parameters().values()]
        return torch.stack(finite).all(0).tolist()

    def state_of(self, m: int) -> dict[str, Tensor]:
        """Return the state of model m as its own trainer would."""
        whole = {name: t for name, t in self.state().items() if not name.startswith(_UPDATES)}
        state = {name: t if name == _SHARED else t[m] for name, t in whole.items()}
        return state | self._updates(m)

    def _updates(self, m: int) -> dict[str, Tensor]:
        """Adam's counts of model m, by name."""
        own = {
            name: self.parts[p][m] if self.parts else p for name, p in self._parameters().items()
        }
        return {_UPDATES + name: self.optimizer.state[p]["step"] for name, p in own.items()}

    def restore_all(self, states: Sequence[dict[str, Tensor]], path: Path) -> None:
        """Take over the states of the M models, all of one step.

        Raises:
            UserError: a tensor is missing or has another shape; ``path`` is named.
        """
        whole = {}
        for name, first in states[0].items():
            each = [state[name] for state in states if name in state]
            if name == _SHARED or (name.startswith(_UPDATES) and len(each) == len(states)):
                whole[name] = first
            elif len(each) == len(states) and all(t.shape == first.shape for t in each):
                whole[name] = torch.stack(each)
        self.restore(whole, path)  # names what is missing
        for m, state in enumerate(states):
            for name, count in self._updates(m).items():
                count.copy_(state[name])


@as_imported()
def train(
    configs: list[TrainConfig],
    store: Store,
    runs: list[Path],
    on_log: Callable[[int, dict], None] = lambda m, line: None,
    on_step: Callable[[int], None] = lambda step: None,
) -> int:
    """Train M runs together until ``steps``, from their checkpoints if they have them.

    Every folder ends up as :func:`fvae.training.loop.train` would leave it, and may be evaluated or
    resumed alone. A model whose loss or weights stop being finite keeps its last good checkpoint
    and is written no more; the others go on unharmed.

    Args:
        configs: settings of each run, as :func:`fvae.training.loop.create_run` returned them.
        store: the data set.
        runs: the run folders.
        on_log: called with the run's number and each line of its ``log.jsonl``.
        on_step: called with the number of steps done after each.

    Returns:
        0, or the number of the signal (SIGINT, SIGTERM, SIGHUP) that ended the runs early; their
        checkpoints are then of the last step.

    Raises:
        UserError: the runs are not stackable or at different steps, a checkpoint does not fit,
            or, once the others are done, a model diverged.
        OSError: a folder is read-only or the disk is full; all runs keep their old checkpoints.
    """
    with contextlib.ExitStack() as claims:
        for run in runs:
            claims.enter_context(loop.claimed(run))
        return _train(configs, store, runs, on_log, on_step)


def _train(
    configs: list[TrainConfig],
    store: Store,
    runs: list[Path],
    on_log: Callable[[int, dict], None],
    on_step: Callable[[int], None],
) -> int:
    for run in runs:
        run_data.check(run, store, quietly=True)
    trainer, means = StackedTrainer(configs, store), Means(len(runs))
    configs = trainer.configs
    config, live, lost = configs[0], list(range(len(runs))), []
    states = _read_together(configs, runs)
    if states:
        trainer.restore_all(states, runs[0] / checkpoint.NAME)
        means.restore(states, trainer.device)
    for run in runs:
        run_data.keep(run, store)
    seconds_so_far = max(log.cut(run, trainer.step_count) for run in runs)

    def drop(finite: list[bool]) -> None:
        for m in [m for m in live if not finite[m]]:
            live.remove(m)
            lost.append(loop._diverged(trainer, runs[m]))

    def save() -> None:
        drop(means.are_finite())
        drop(trainer.are_finite())
        _save_together([(configs[m], runs[m], trainer.state_of(m) | means.state(m)) for m in live])
        schedule.saved()

    schedule = checkpoint.Schedule(config.checkpoint_every)
    if trainer.step_count == 0:
        save()
    started = time.monotonic() - seconds_so_far
    number = 0
    with loop._StopSignal() as stop, contextlib.ExitStack() as opened:
        files = [opened.enter_context((run / log.NAME).open("a")) for run in runs]
        while trainer.step_count < config.steps and not number and live:
            means.add(trainer.step())
            done = trainer.step_count
            on_step(done)
            end, number = done == config.steps, stop.number
            if end or done % config.log_every == 0:
                drop(means.are_finite())
                seconds = round(time.monotonic() - started, 3)
                for m in live:
                    line: dict[str, Any] = {"step": done, "seconds": seconds}
                    line |= {"weight": trainer.weights[m](done - 1)} | means.of(m)
                    files[m].write(json.dumps(line) + "\n")
                    files[m].flush()
                    on_log(m, line)
                means.clear()
            if end or number or schedule.at(done) or schedule.by_clock():
                save()
    if number and trainer.step_count < config.steps:
        return number
    if lost:
        raise UserError("; ".join(map(str, lost)))
    return 0


def _save_together(states: list[tuple[TrainConfig, Path, dict[str, Tensor]]]) -> None:
    """Write the checkpoints of several runs so that they never stay at different steps.

    All new files are complete before the first replaces an old one: after a kill in between, the
    next start replaces the rest (:func:`_read_together`).
    """
    try:
        for config, run, tensors in states:
            checkpoint.prepare(run, tensors, config)
    except BaseException:
        for _, run, _ in states:
            (run / checkpoint.NEXT).unlink(missing_ok=True)
        raise
    for _, run, _ in states:
        checkpoint.promote(run)


def _read_together(configs: list[TrainConfig], runs: list[Path]) -> list[dict[str, Tensor]]:
    """Return the checkpoints' tensors, of one step; none if that is step 0."""
    found = [checkpoint.recover(run, config) for config, run in zip(configs, runs, strict=True)]
    states = {m: state for m, state in enumerate(found) if state is not None}
    following = {
        m: checkpoint.read(run, configs[m], checkpoint.NEXT)
        for m, run in enumerate(runs)
        if (run / checkpoint.NEXT).exists()
    }
    newest = max((int(state["rng.step"]) for state in states.values()), default=None)
    for m, state in following.items():
        path = runs[m] / checkpoint.NEXT
        if int(state["rng.step"]) == newest:  # another run's replacement was done
            checkpoint.promote(runs[m])
            states[m] = state
        else:
            path.unlink()
    steps = [int(states[m]["rng.step"]) if m in states else 0 for m in range(len(runs))]
    if len(set(steps)) > 1:
        each = ", ".join(f"{run} {step}" for run, step in zip(runs, steps, strict=True))
        raise UserError(
            f"the runs are at different steps ({each}); train together those at one step, or each"
            " alone with `fvae train --resume`"
        )
    # A checkpoint of step 0 is what every run starts from anyway.
    return [states[m] for m in range(len(runs))] if steps[0] else []
