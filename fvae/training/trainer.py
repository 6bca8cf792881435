"""One training step of one run: draw a batch, run forward and backward, update both players."""

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fvae import ops
from fvae.config import DISC_BETAS, SMALLEST_IMAGE, VAE_BETAS, TrainConfig
from fvae.data import Store
from fvae.data.correlated import check_pairs, correlated
from fvae.device import AUTOCAST, arithmetic, autocast
from fvae.errors import UserError
from fvae.models import vae as nets
from fvae.models.branches import Branches, branched
from fvae.models.forms import plainly
from fvae.models.stacked import StackedVAE
from fvae.philox import Philox
from fvae.registry import OBJECTIVES
from fvae.training import checkpoint, objectives
from fvae.training.adam import Adam, schedule_of
from fvae.training.distributed import World
from fvae.training.graph import StepGraph
from fvae.training.memory import check_memory
from fvae.training.scaling import LossScale


class Trainer:
    """Networks, optimizer and random numbers of one run; ``step()`` trains both players once.

    Args:
        config: the settings, with device and precision other than "auto".
        store: the data set; it is moved to the device.
        world: the processes that share the batch; one, unless torchrun started more.

    Raises:
        UserError: the images are not square, or smaller than 16 x 16, or of another size than the
            settings say; or the set has not the factors that they correlate.
    """

    vae: nets.VAE | StackedVAE
    #: VAE and discriminator that the step runs: the weights' own, or copies of them in bfloat16.
    networks: list[nn.Module]

    def __init__(self, config: TrainConfig, store: Store, world: World | None = None) -> None:
        config = sized(config, store)
        self.config, self.objective = config, OBJECTIVES[config.objective]
        self.world = world or World()
        self.device = torch.device(config.device)
        self.store = store.to(self.device)
        self.table = self._table()
        self.rng = Philox(config.seed, device=self.device)
        self.step_count = 0
        self._one: Tensor | None = None  # what backward passes begin with
        groups, gpu = self._build(store.image_shape[0]), self.device.type == "cuda"
        self.optimizer = Adam(groups, config.backend)
        self.schedule = schedule_of(config)
        self.constants = objectives.constants(config, len(store))
        self.graph = StepGraph() if gpu and config.graph and self.world.size == 1 else None
        self.branches = Branches() if self.graph and config.branches else None
        self.weight_at = objectives.weight_at(*objectives.weight_of(config))
        self.scale = LossScale(self.device) if config.precision == "fp16" else None
        if gpu:
            self._leave_gradients_unmade()

    def _leave_gradients_unmade(self) -> None:
        """Let the optimizer make the discriminator's gradients, where it updates the weights.

        On a GPU, which waits for memory there. Not where somebody else reads gradients: a loss
        scale, which looks for what is not finite, and processes, which average them.
        """
        if self.objective.discriminator and not self.scale and self.world.size == 1:
            discriminator: Any = self.networks[1]
            discriminator.take = functools.partial(self.optimizer.take, 1)

    def _table(self) -> Tensor | None:
        """What images are drawn by; None draws all alike."""
        if not self.config.correlate:
            return None
        return ops.alias_table(correlated(self.store, self.config.correlate)).to(self.device)

    def _build(self, channels: int) -> list[dict]:
        """Make the networks on the device; return the optimizer's groups, one a player."""
        vae, discriminator = self._networks_of(self.config, channels)
        self.vae = nets.channels_last(vae, self.device)
        self.discriminator = discriminator.to(self.device) if discriminator else None
        return self._groups()

    def _networks_of(self, config: TrainConfig, channels: int) -> nets.Networks:
        """Make a run's networks, on the CPU; the decoder's last bias is as the settings ask."""
        vae, discriminator = nets.build(config, channels, self.objective.discriminator)
        if config.output_bias == "mean":
            mean = self._mean_pixel.cpu()
            last: Any = vae.decoder[-1]
            with torch.no_grad():
                # Kept from infinity, where a channel is black in all that were drawn.
                last.bias.copy_(mean.logit(1e-3) if config.likelihood == "bernoulli" else mean)
        return vae, discriminator

    @functools.cached_property
    def _mean_pixel(self) -> Tensor:
        """Each channel's mean over 1,024 images, the same of every run on this data set."""
        rng, means = Philox(0, device=self.device), []
        for _ in range(16):
            x = ops.gather_batch(self.store, 64, rng, self.config.backend)
            means.append(x.mean((0, 2, 3), dtype=torch.float64))
            rng.advance()
        return torch.stack(means).mean(0).float()

    def _groups(self) -> list[dict]:
        """Make the networks that compute; return the optimizer's groups, one a player."""
        config = self.config
        players: list[tuple[nn.Module, float, tuple[float, float]]] = [
            (self.vae, config.learning_rate, VAE_BETAS)
        ]
        if self.discriminator:
            players.append((self.discriminator, config.disc_learning_rate, DISC_BETAS))
        # Where processes share a batch, their gradients are averaged in float32.
        half = AUTOCAST["bf16"] if config.precision == "bf16" and self.world.size == 1 else None
        groups, self.networks = [], []
        for network, rate, betas in players:
            working = _in_half(network, half) if half else network
            self.networks.append(working)
            tensors = {
                "params": list(network.parameters()), "leaves": list(working.parameters())
            }  # fmt: skip
            groups.append({"lr": rate, "betas": betas, **tensors})
        return groups

    def _modules(self) -> dict[str, nn.Module]:
        """Networks by the first part of their tensors' names in a checkpoint."""
        modules: dict[str, nn.Module] = {"vae": self.vae}
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
            the loss terms of :mod:`fvae.training.objectives`, detached, on the device; the next
            step overwrites them where a graph is replayed.
        """
        if self.schedule:
            self.optimizer.scale_rates(self.schedule(self.step_count))
        if self.graph and self.graph.captured:
            terms = self.graph.replay()
        else:
            reference = self.config.backend == "reference"
            branches = branched(self.branches)
            with arithmetic(self.device, self.config.precision), plainly(reference), branches:
                # Handed over at each call: a graph that kept its trainer would be kept by it.
                terms = self.graph.step(self._step) if self.graph else self._step()
        self.step_count += 1
        return terms

    def _step(self) -> objectives.Terms:
        config, gpu = self.config, self.device.type == "cuda"
        batches = objectives.drawn(config)
        x, indices = ops.gather_batch(
            self.store,
            batches * config.batch_size,
            self.rng,
            config.backend,
            dtype=AUTOCAST.get(config.precision, torch.float32) if gpu else torch.float32,
            table=self.table,
            return_indices=True,
        )
        x = self.world.rows(x, batches)
        # A GPU reads the target's packed rows again rather than float images; on a CPU the images
        # are at hand.
        first = indices[..., : config.batch_size]
        target = self._packed(self.world.rows(first, 1)) if gpu else None
        weight = self.weight_at(self.rng.step)
        # On a GPU a cached cast would outlive the capture it was made in.
        with autocast(self.device, config.precision, cached=not gpu):
            terms = self._run(self._terms, x, weight, target)
        self._backward(terms["loss"])
        self._update()
        self.rng.advance()
        return {name: term.detach() for name, term in terms.items()}

    def _backward(self, loss: Tensor, inputs: Sequence[Tensor] | None = None) -> None:
        """Make gradients of the one loss, or of several models' which share no weights."""
        if self.scale:
            loss = loss * self.scale.factor
        total = loss.sum() if loss.dim() else loss
        if self._one is None:  # made once: each step would start a kernel for it
            self._one = torch.ones((), device=total.device)
        # What is owed goes to every leaf, not to those of some inputs alone.
        whole = self.branches if inputs is None else None
        with whole.owing() if whole else contextlib.nullcontext():
            total.backward(self._one, inputs=inputs)

    def _update(self) -> None:
        if self.scale:
            self._update_model(self._gradients())
            self.scale.update()
        else:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _update_model(self, gradients: Sequence[Tensor], model: int | None = None) -> None:
        """Let Adam, which leaves out an update on the device, step what has a gradient now."""
        assert self.scale
        self.optimizer.found_inf = self.scale.unscale(gradients, model)
        self.optimizer.step()

    def _gradients(self) -> list[Tensor]:
        return [leaf.grad for leaf in self.optimizer.leaves if leaf.grad is not None]

    @functools.cached_property
    def _run(self) -> Callable[..., objectives.Terms]:
        return self.world.parallel(*self.networks)

    def _terms(self, x: Tensor, weight: Tensor | float, target: Tensor | None) -> objectives.Terms:
        drawn = objectives.drawn(self.config)
        batches = self._laid_out(x).chunk(drawn, dim=-4) * (self.objective.batches // drawn)
        terms_of = self.objective.terms
        assert terms_of is not None, "an objective without terms has a trainer of its own"
        rest = (weight, self.rng, self.config.backend, target, self.world)
        return terms_of(*self.networks, *batches, *rest, **self.constants)

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
        tensors |= self.scale.state() if self.scale else {}
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
        self.optimizer.copy()
        try:
            for name, parameter in self._parameters().items():
                for key, value in self.optimizer.state[parameter].items():
                    value.copy_(tensors[f"optimizer.{key}.{name}"])
            for name, value in (self.scale.state() if self.scale else {}).items():
                value.copy_(tensors[name])
            self.rng.seed.copy_(tensors["rng.seed"])
            self.rng.step.copy_(tensors["rng.step"])
        except (KeyError, RuntimeError) as error:
            raise UserError(
                f"{path}: optimizer state does not fit ({error}); it belongs to another"
                " configuration"
            ) from None
        self.step_count = int(self.rng.step)


def _in_half(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of a network whose weights are rounded, each laid out as it was."""
    weights = {id(p): nn.Parameter(p.detach().to(dtype)) for p in network.parameters()}
    return copy.deepcopy(network, weights)


def sized(config: TrainConfig, store: Store) -> TrainConfig:
    """Return the configuration with the size of the store's images.

    Raises:
        UserError: there are no networks for images of that size, it says another one, a step does
            not fit into memory, or the set has not the factors that it correlates.
    """
    channels, height, width = store.image_shape
    if height != width or height < SMALLEST_IMAGE:
        raise UserError(
            f"--data {store.name}: images are {height} x {width}, expected square ones of at least"
            f" {SMALLEST_IMAGE} x {SMALLEST_IMAGE}; crop or resize them"
        )
    if config.image_size not in (None, height):
        raise UserError(
            f"--data {store.name}: images are {height} x {width}, and --image-size, or the run,"
            f" says {config.image_size}; only the pictures of a folder, .zip or .tar are resized"
        )
    check_pairs(store, config.correlate)
    config = dataclasses.replace(config, image_size=height)
    check_memory(config, channels)
    return config


def make_trainer(config: TrainConfig, store: Store, world: World | None = None) -> Trainer:
    """Return the trainer of the configuration's objective."""
    return (OBJECTIVES[config.objective].trainer or Trainer)(config, store, world)
