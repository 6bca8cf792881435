"""What can be chosen by name: objectives, metrics and data sets, each one entry in one registry.

The command line's choices and help, evaluation, studies and pages follow from the entries. An
entry from outside is added before the first use of its name::

    from fvae.registry import OBJECTIVES, Objective

    OBJECTIVES.add(Objective("my-vae", "recon + beta KL^2", terms=my_terms, weight="beta"))

The modules that the environment variable ``FVAE_PLUGINS`` names, with commas between, are imported
at the first look, so that ``fvae``, torchrun and a study's processes know their entries too.
"""

import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from fvae.errors import UserError


@dataclass(frozen=True)
class Objective:
    """What a run minimises.

    Attributes:
        name: as ``--objective`` takes it.
        about: one line for the help text.
        terms: ``terms(*networks, *batches, weight, rng, backend, target, draws)`` computes the
            loss terms of a batch by name, ``loss`` among them, as those of
            :mod:`fvae.training.objectives` do. None where the trainer has its own.
        weight: the setting that weighs the varied term, such as "gamma"; None where there is none.
        grid: the option of a study that holds its weights, such as "gammas"; None where a study
            does not vary it.
        warmup: the setting that holds the steps over which the weight grows from 0.
        settings: further settings that ``terms`` takes, as keyword arguments of their names.
        counts: whether ``terms`` takes ``dataset_size=``, the number of the data set's images.
        batches: batches of images that ``terms`` takes; a step draws one, and gives it twice, where
            ``--shuffle`` is "same".
        discriminator: whether a discriminator is trained beside the VAE.
        stacks: whether runs of several seeds and weights can share a step.
        distributes: whether processes can share a batch: every term is a mean over it, or is
            computed of the rows that ``draws.gather`` brings together.
        trainer: ``trainer(config, store, world)`` returns what makes its steps; None is
            :class:`fvae.training.trainer.Trainer`.
        model: ``model(config, image_channels)`` returns an untrained model to load a run's weights
            into, for images of ``config.image_size``; None is :class:`fvae.models.vae.VAE`, whose
            ``encode``, ``decode`` and ``pixels`` it needs, as :mod:`fvae.models.infogan` has them.
        part: first part of the names of the model's tensors in a checkpoint.
        first: the rest of the name of its first convolution's weight, whose shape tells C.
    """

    name: str
    about: str
    terms: Callable[..., Any] | None = None
    weight: str | None = None
    grid: str | None = None
    warmup: str = "warmup_steps"
    settings: tuple[str, ...] = ()
    counts: bool = False
    batches: int = 1
    discriminator: bool = False
    stacks: bool = True
    distributes: bool = True
    trainer: Callable[..., Any] | None = None
    model: Callable[..., Any] | None = None
    part: str = "vae"
    first: str = "encoder.0.weight"

    def __post_init__(self) -> None:
        """Check what the fields ask of each other; raise a ValueError that names the entry."""
        if self.terms is None and self.trainer is None:
            raise ValueError(f"objective {self.name!r}: has neither terms nor a trainer")
        if self.grid and not self.weight:
            raise ValueError(f"objective {self.name!r}: grid {self.grid!r} needs a weight")

    def takes(self, setting: str) -> bool:
        """Return whether a setting is one of this objective's own."""
        growth = self.warmup if self.weight else None
        return setting in (self.weight, growth, *self.settings)


@dataclass(frozen=True)
class Metric:
    """A score of a representation.

    Attributes:
        name: key of its result in ``eval-*.json``, column of every table.
        about: one line.
        score: ``score(codes, factors, protocol, seed, kl)`` returns a dataclass with a ``score``,
            and where they are worth saying a ``ceiling`` and a ``note``. Factors are a
            :class:`fvae.metrics.Factors`: labels of the rows, or a full grid, of which it is the
            sequence of its sizes. kl is None or the mean KL of each dimension, nats.
        rows: ``rows(factors, protocol, seed)`` yields the rows of the codes that it reads, int64,
            in any order and with repeats.
        protocols: names of ``fvae eval --protocol`` under which it exists.
        options: keyword arguments of ``score`` that ``fvae eval`` may give, such as "bins".
        usual: whether it is taken where no metric is named.
        supervised: whether it needs factors. One that does not is given a
            :meth:`fvae.metrics.Factors.unknown` of a set that has none.
        posterior: whether ``score`` also takes ``logvar=``, log variances of q(z|x) beside the
            codes; a model that has none has no such score.
        error: ``error(result, score, codes, factors, seed, rows)`` returns the standard error that
            the score owes to its random draws, or None where it has none; ways of making one are in
            :mod:`fvae.metrics.resampling`. None where no way pays.
    """

    name: str
    about: str
    score: Callable[..., Any]
    rows: Callable[..., Any]
    protocols: tuple[str, ...] = ("kim2018", "locatello2019")
    options: tuple[str, ...] = ()
    usual: bool = True
    supervised: bool = True
    posterior: bool = False
    error: Callable[..., float | None] | None = None


@dataclass(frozen=True)
class DataSet:
    """A data set that is made here, with nothing to download.

    Attributes:
        name: as ``--data`` takes it.
        about: one line.
        build: ``build(progress)`` returns the store; progress takes the share that is done.
        key: name of its entry in the cache, which changes with what is built; None where building
            is too quick to be worth a file.
    """

    name: str
    about: str
    build: Callable[..., Any]
    key: str | None = None
    takes: str = ""


Entry = TypeVar("Entry", Objective, Metric, DataSet)


class Registry(Mapping[str, Entry]):
    """Entries by name, in the order in which they were added.

    Args:
        what: what an unknown name is called in an error, such as "--objective".
        home: the module that adds the entries of this package; imported at the first look.
    """

    def __init__(self, what: str, home: str) -> None:
        self.what, self.home = what, home
        self._entries: dict[str, Entry] = {}

    def add(self, entry: Entry) -> Entry:
        """Add an entry, and return it.

        Raises:
            ValueError: there is one of that name.
        """
        importlib.import_module(self.home)  # the entries of this package come first
        if entry.name in self._entries:
            raise ValueError(f"{self.what}: {entry.name!r} is registered already")
        self._entries[entry.name] = entry
        return entry

    def remove(self, name: str) -> None:
        """Take an entry out again."""
        del self._all()[name]

    def __getitem__(self, name: str) -> Entry:
        """Return the entry of that name.

        Raises:
            UserError: there is none.
        """
        entries = self._all()
        if name not in entries:
            raise UserError(f"{self.what}: got {name!r}, expected one of {', '.join(entries)}")
        return entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._all()

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def _all(self) -> dict[str, Entry]:
        # By name: what stands below in the layering is asked about what stands above it.
        importlib.import_module(self.home)
        for name in filter(None, os.environ.get("FVAE_PLUGINS", "").split(",")):
            try:
                importlib.import_module(name.strip())
            except ImportError as error:
                raise UserError(f"FVAE_PLUGINS: cannot import {name.strip()} ({error})") from None
        return self._entries


OBJECTIVES: Registry[Objective] = Registry("--objective", "fvae.training.registry")
METRICS: Registry[Metric] = Registry("--metrics", "fvae.metrics.registry")
DATA: Registry[DataSet] = Registry("--data", "fvae.data.registry")
