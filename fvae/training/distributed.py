"""Data-parallel training: one run over the processes that ``torchrun`` started.

``config.batch_size`` is the global batch; process r of n trains on rows ``r B/n .. (r + 1) B/n`` of
it, and DistributedDataParallel averages the gradients. Every loss term is a mean over the batch, so
the average of the shards' gradients is the gradient of the global batch; a term that is no mean is
computed of all its rows (:meth:`World.gather`) in every process. Random numbers are drawn
for the global batch and each process takes its rows, so a run is the same run on any number of
processes, up to the order of sums.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fvae import ops
from fvae.config import TrainConfig
from fvae.device import resolve_device
from fvae.errors import UserError
from fvae.philox import Philox
from fvae.registry import OBJECTIVES

# Steps between two messages about what one process alone knows, such as that it got a signal: each
# makes the processes wait for one another, for about as long as a step takes on a GPU.
_AGREE_EVERY = 16

_T = TypeVar("_T")


class World:
    """The processes of one run; in a world of one every method returns at once.

    Its :meth:`reparameterize` and :meth:`permute_dims` stand in for those of :mod:`fvae.ops` where
    the batch is a shard, and :meth:`gather` gives terms that are no mean over it all of its rows.

    Args:
        rank: of this process, 0 to size - 1. Process 0 alone writes and prints.
        size: number of processes. Above 1, a process group is initialised.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def main(self) -> bool:
        """Whether this process writes the run folder and prints."""
        return self.rank == 0

    # --- the step ---------------------------------------------------------------------------

    def parallel(self, *players: nn.Module | None) -> Callable[..., Any]:
        """Return ``run``: ``run(terms_of, *args)`` is ``terms_of(*args)`` with averaged gradients.

        ``terms_of`` computes loss terms with the players, every parameter of which takes part. It
        is handed over at each call, so that the players are all that ``run`` holds.

        Args:
            players: the modules that are trained; they get process 0's weights.
        """
        if self.size == 1:
            return _call
        return DistributedDataParallel(_Players(*players), gradient_as_bucket_view=True)

    def rows(self, x: Tensor, batches: int) -> Tensor:
        """Return this process's rows of each of several global batches.

        Args:
            x: ``[batches * B, ...]``.
            batches: global batches, one after another.

        Returns:
            ``[batches * B / size, ...]``.
        """
        if self.size == 1:
            return x
        return x.unflatten(0, (batches, self.size, -1))[:, self.rank].flatten(0, 1)

    def reparameterize(
        self, mu: Tensor, logvar: Tensor, rng: Philox, backend: str | None = None
    ) -> tuple[Tensor, Tensor]:
        """:func:`fvae.ops.reparameterize` of a shard, with its rows of the global batch's noise.

        Args:
            mu: means of this process's rows, ``[B / size, d]``.
            logvar: log variances, of mu's shape and dtype.
            rng: key and step of the noise, the same in every process.
            backend: of the op.

        Returns:
            z, of mu's shape, and kl ``[d]``, the shard's mean in nats.
        """
        if self.size == 1:
            return ops.reparameterize(mu, logvar, rng, backend)
        # The other rows are standard normal: their KL is 0, and B x d numbers cost nothing.
        n = mu.shape[0]
        others = (0, 0, self.rank * n, (self.size - 1 - self.rank) * n)
        z, kl = ops.reparameterize(F.pad(mu, others), F.pad(logvar, others), rng, backend)
        return z[self.rank * n : (self.rank + 1) * n], kl * self.size

    def reparameterize_both(
        self, mu: Tensor, logvar: Tensor, rng: Philox, backend: str | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """:func:`fvae.ops.reparameterize_both` of shards of two batches."""
        if self.size == 1:
            return ops.reparameterize_both(mu, logvar, rng, backend)
        (mu, mu_second), (logvar, logvar_second) = mu.chunk(2), logvar.chunk(2)
        z, kl = self.reparameterize(mu, logvar, rng, backend)
        with torch.no_grad():
            second, _ = self.reparameterize(mu_second, logvar_second, rng.at_lane(1), backend)
        return z, second, kl

    def gather(self, x: Tensor) -> Tensor:
        """The rows of the global batch, the same numbers in every process.

        The gradient reaches this process's rows ``size``-fold: a term of the whole batch is in the
        loss of every process, and DistributedDataParallel takes the mean of what each makes of it.

        Args:
            x: this process's rows, ``[B / size, ...]``; with one process of any shape.

        Returns:
            ``[B, ...]``.
        """
        if self.size == 1:
            return x
        own = x.detach().contiguous()
        shards = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(shards, own)
        shards[self.rank] = own + self.size * (x - x.detach())
        return torch.cat(shards)

    def permute_dims(self, z: Tensor, rng: Philox, backend: str | None = None) -> Tensor:
        """This process's rows of :func:`fvae.ops.permute_dims` of the global batch.

        Args:
            z: codes of this process's rows, ``[B / size, d]``; no gradient flows back to them.
            rng: key and step of the permutations, the same in every process.
            backend: of the op.

        Returns:
            z_perm, of z's shape.
        """
        if self.size == 1:
            return ops.permute_dims(z, rng, backend)
        whole = self.gather(z.detach())
        return ops.permute_dims(whole, rng, backend).chunk(self.size)[self.rank]

    # --- the loop ---------------------------------------------------------------------------

    def mean(self, x: Tensor | None) -> Tensor | None:
        """Return the mean over the processes; the same bits in each."""
        if self.size == 1 or x is None:
            return x
        x = x.clone()
        dist.all_reduce(x)
        return x / self.size

    @property
    def agree_every(self) -> int:
        """Steps between two calls of :meth:`largest` in the training loop."""
        return 1 if self.size == 1 else _AGREE_EVERY

    def largest(self, *numbers: int) -> list[int]:
        """Return of each number the largest of the processes', so that all act on the same one.

        One message between the processes, through the CPU: no GPU is waited for.
        """
        if self.size == 1:
            return list(numbers)
        agreed = torch.tensor(numbers)
        dist.all_reduce(agreed, dist.ReduceOp.MAX)
        return agreed.tolist()

    def each(self, work: Callable[[], _T]) -> _T:
        """Return ``work()``, done by every process; what one of them raises, all raise.

        Raises:
            UserError, OSError: of the first process that failed.
        """
        if self.size == 1:
            return work()
        failure: UserError | OSError | None = None
        try:
            result = work()
        except (UserError, OSError) as error:
            failure = error
        failures: list[UserError | OSError | None] = [None] * self.size
        dist.all_gather_object(failures, failure)
        for each in failures:  # ours is among them
            if each:
                raise each
        return result

    def on_main(self, work: Callable[[], _T]) -> _T:
        """Return ``work()``, done by process 0 alone; what it raises, all raise."""
        if self.size == 1:
            return work()
        shared: list[Any] = [self.each(lambda: work() if self.main else None)]
        dist.broadcast_object_list(shared, src=0)
        return shared[0]

    def on_node_first(self, work: Callable[[], _T]) -> _T:
        """Return ``work()``, done by the first process of each machine before the others.

        The others then find what the first one put into the machine's cache.
        """
        if self.size == 1:
            return work()
        first = _local_rank() == 0
        results = self.each(lambda: [work()] if first else [])
        return self.each(lambda: results[0] if first else work())


class _Players(nn.Module):
    """All players under one ``forward``, which is what DistributedDataParallel wraps."""

    def __init__(self, *players: nn.Module | None) -> None:
        super().__init__()
        self.players = nn.ModuleList(p for p in players if p is not None)

    def forward(self, terms_of: Callable[..., Any], *args: Any) -> Any:
        return _call(terms_of, *args)


def _call(terms_of: Callable[..., Any], *args: Any) -> Any:
    return terms_of(*args)


@contextmanager
def join(config: TrainConfig) -> Iterator[World]:
    """Join the processes that torchrun started: gloo on a CPU, NCCL on GPUs, one each.

    Without torchrun this is a world of one, and nothing is initialised.

    Args:
        config: the run's settings.

    Raises:
        UserError: the batch does not divide, the objective trains in one process, there are fewer
            GPUs than processes, or a process was lost on the way.
    """
    # Other launchers set WORLD_SIZE as well, for programs that they do not start.
    size = int(os.environ["WORLD_SIZE"]) if dist.is_torchelastic_launched() else 1
    if size == 1:
        yield World()
        return
    if not OBJECTIVES[config.objective].distributes:
        shared = [name for name, objective in OBJECTIVES.items() if objective.distributes]
        raise UserError(
            f"--objective {config.objective}: trains in one process; leave torchrun out, or take"
            f" one of {', '.join(shared)}"
        )
    if config.batch_size % size:
        raise UserError(
            f"--batch-size {config.batch_size}: cannot be shared equally by {size} processes; take"
            f" a multiple of {size}, or another --nproc-per-node"
        )
    cuda = resolve_device(config.device).type == "cuda"
    if cuda:
        if _local_rank() >= torch.cuda.device_count():
            raise UserError(
                f"--nproc-per-node {os.environ['LOCAL_WORLD_SIZE']}: this machine has"
                f" {torch.cuda.device_count()} CUDA devices, and each process needs its own"
            )
        torch.cuda.set_device(_local_rank())
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    try:
        yield World(dist.get_rank(), size)
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo/transport" not in str(error):
            raise
        raise UserError(
            "lost the connection to another process of this run; the last checkpoint is kept,"
            " continue with `fvae train --resume`"
        ) from None
    # After an error the connections stay open until the process ends: their loss would make the
    # others report that, rather than the error.
    dist.destroy_process_group()


def _local_rank() -> int:
    return int(os.environ["LOCAL_RANK"])
