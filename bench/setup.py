"""What the programs run on: the real data and sizes, or tiny ones to try a GPU's on a CPU."""

from dataclasses import dataclass
from functools import cache

import torch

from fvae import data
from fvae.config import TrainConfig
from fvae.data import Store

_TINY = {
    "batch_size": 2, "disc_units": 8, "conv_channels": (4, 4, 4, 4),
    "hidden_units": 8,
}  # fmt: skip


def bits(sizes: tuple[int, ...] = (4, 5, 25)) -> Store:
    """Return random images with factors of some sizes."""
    count = int(torch.tensor(sizes).prod())
    generator = torch.Generator().manual_seed(0)
    packed = torch.randint(0, 256, (count, 512), dtype=torch.uint8, generator=generator)
    names = tuple(f"factor {k}" for k in range(len(sizes)))
    return Store("bits", packed, (1, 64, 64), True, names, sizes)


@cache
def _store(tiny: bool) -> Store:
    """The data set in the host's memory."""
    return bits() if tiny else data.load("dsprites")


@cache
def _on_device(device: str, tiny: bool) -> Store:
    return _store(tiny).to(device)


@dataclass(frozen=True)
class Setup:
    """Device and sizes.

    Attributes:
        device: "cuda", or "cpu", of tiny sizes but where it is to be measured itself.
        batch_size: of a run; None is the default's.
        measured: take a CPU's sizes to be those of a GPU.
    """

    device: str
    batch_size: int | None = None
    measured: bool = False

    @property
    def tiny(self) -> bool:
        """Whether the sizes are those for trying a program rather than for measuring."""
        return self.device == "cpu" and not self.measured

    @property
    def store(self) -> Store:
        """The data set, in the host's memory."""
        return _store(self.tiny)

    @property
    def on_device(self) -> Store:
        """The data set on the device: one copy for all trainers."""
        return _on_device(self.device, self.tiny)

    @property
    def rounds(self) -> int:
        """Rounds of interleaved steps."""
        return 1 if self.tiny else 7

    @property
    def round_seconds(self) -> float:
        """About how long a round of one kind of step lasts."""
        return 0.0 if self.tiny else 0.15

    @property
    def warm_up(self) -> int:
        """Steps before the first round."""
        return 1 if self.tiny else 10

    def config(self, **fields) -> TrainConfig:
        """Return a default run's settings with some fields changed."""
        sizes = _TINY if self.tiny else {}
        sizes = sizes | ({"batch_size": self.batch_size} if self.batch_size else {})
        return TrainConfig(**{"device": self.device, **sizes, **fields})
