"""Philox4x32-10: random numbers as a pure function of (key, counter).

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11. Every backend computes the
same 32-bit words, so a draw made by a GPU kernel can be made again on a CPU.

The 128-bit counter of a draw is ``(index, stream, step low, step high)``:

* ``index`` numbers the groups of four words inside one draw (element ``i`` of a draw takes word
  ``i % 4`` of group ``i // 4``);
* ``stream`` is ``256 * lane + use``: the use is the op that draws (:class:`Stream`), the lane
  tells apart two draws of one op in one step, such as the noise of the first and second batch;
* ``step`` is the training step.

The 64-bit key is the run's seed.
"""

import enum
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from fvae.scalars import integer

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10

#: What makes words on a CPU in one call: the extension's op, once it is loaded.
native: Callable[[Tensor, Tensor, int, Tensor], Tensor] | None = None


class Stream(enum.IntEnum):
    """What a draw is used for; the low byte of the counter's second word."""

    BATCH = 0
    NOISE = 1
    PERMUTATION = 2
    VOTES = 3
    PAIRS = 4
    SAMPLE = 5
    CODES = 6
    MIXTURE = 7
    ALIAS = 8

    def at(self, lane: int) -> int:
        """Return the counter's second word for this use in a lane."""
        return 256 * lane + self


class Philox:
    """Key and step of the random numbers that an op draws, kept on the device.

    Args:
        seed: the key, any integer (taken modulo 2**64), or a sequence of M keys, one for each of
            M models: an op on ``[M, B, d]`` then draws for model m what it draws alone. Integers
            of Python, of NumPy, or in a tensor, also one that ``torch.func.vmap`` maps over.
        step: the step, ``0 <= step < 2**63``.
        device: where the two int64 tensors live; None is PyTorch's default device.

    An op draws the same numbers as long as ``seed``, ``step`` and lane are the same. Call
    :meth:`advance` once a training step, after the backward pass: backward draws the forward's
    noise again. A checkpoint needs the seed and the step, nothing else.

    Raises:
        TypeError: seed or step is no integer.
        ValueError: step is negative or too large, or there are no keys.
    """

    def __init__(
        self,
        seed: int | Sequence[int] | Tensor,
        step: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        step = integer("step", step)
        if not 0 <= step < 1 << 63:
            raise ValueError(f"step: got {step}, expected 0 to 2**63 - 1")
        # Not tensors of inference mode, which could be neither advanced nor saved outside of it.
        with torch.inference_mode(False):
            self.seed = _keys(seed, device)
            self.step = torch.tensor(step, dtype=torch.int64, device=device)
        self.lane = 0

    def at_lane(self, lane: int) -> Self:
        """Return a view with the same seed and step tensors that draws other numbers.

        Args:
            lane: 0 to 2**24 - 1; a new generator has lane 0.
        """
        lane = integer("lane", lane)
        if not 0 <= lane < 1 << 24:
            raise ValueError(f"lane: got {lane}, expected 0 to {(1 << 24) - 1}")
        other = object.__new__(type(self))
        other.seed, other.step, other.lane = self.seed, self.step, lane
        return other

    def advance(self) -> None:
        """Add one to the step, in place on the device (legal inside a CUDA graph)."""
        self.step.add_(1)

    @classmethod
    def from_torch(cls, device: torch.device | str | None = None) -> Self:
        """Return a generator whose key is drawn from PyTorch's global generator state."""
        rng = object.__new__(cls)
        rng.seed = torch.randint(-(1 << 63), (1 << 63) - 1, (), dtype=torch.int64, device=device)
        rng.step = torch.zeros((), dtype=torch.int64, device=device)
        rng.lane = 0
        return rng

    def __repr__(self) -> str:
        return f"Philox(seed={self.seed.tolist()}, step={self.step.item()}, lane={self.lane})"


def philox4x32(counter: Tensor, key: Tensor) -> Tensor:
    """Philox4x32-10(counter, key): ten rounds of multiply and xor.

    Args:
        counter: int64 ``[4, ...]``, four words of 32 bits.
        key: int64 ``[2, ...]``, two words of 32 bits, broadcast against the counter.

    Returns:
        int64 ``[4, ...]``, four words of 32 bits each, 0 to 2**32 - 1.
    """
    tail = (1,) * (counter.dim() - 1)
    device = counter.device
    multipliers = _on_device(_MULTIPLIERS, device).view(2, *tail)
    weyl = _on_device(_WEYL, device).view(2, *tail)
    turns = torch.arange(_ROUNDS, device=device).view(_ROUNDS, 1, *tail)
    # Even words swapped, odd words as they are: a round is then one product, whose high halves are
    # the next even words and whose low halves are the next odd ones. The int64 product wraps
    # modulo 2**64, which leaves all 64 bits of the unsigned product in place.
    even, odd = counter[0::2].flip(0), counter[1::2]
    keys = ((key + weyl * turns) & _MASK).unbind(0)
    multipliers = multipliers.flip(0)
    for round_key in keys:
        product = even * multipliers
        high = (product >> 32).bitwise_and_(_MASK)
        even = (high ^ odd ^ round_key).flip(0)
        odd = product.bitwise_and_(_MASK)
    return torch.stack((even.flip(0), odd), dim=1).flatten(0, 1)


def _on_device(pair: tuple[int, int], device: torch.device) -> Tensor:
    """Two constants, made where they are needed: a CUDA graph cannot hold a copy from the host."""
    first, second = pair
    return torch.arange(2, dtype=torch.int64, device=device) * (second - first) + first


def words(seed: Tensor, step: Tensor, stream: int, count: int) -> Tensor:
    """Return the first ``count`` words of a draw.

    Args:
        seed: int64 ``[]`` or ``[M]``, keys.
        step: int64 ``[]``.
        stream: of :meth:`Stream.at`.
        count: words for each key; word i is word ``i % 4`` of counter index ``i // 4``.

    Returns:
        int64 ``[count]`` or ``[M, count]``, 0 to 2**32 - 1.
    """
    index = torch.arange((count + 3) // 4, dtype=torch.int64, device=seed.device)
    return words_at(seed, step, stream, index).flatten(-2)[..., :count]


def words_at(seed: Tensor, step: Tensor, stream: int, index: Tensor) -> Tensor:
    """Return the four words at each counter index.

    Args:
        seed: int64 ``[]`` or ``[M]``, keys.
        step: int64 ``[]``.
        stream: of :meth:`Stream.at`.
        index: int64 ``[n]``, 0 to 2**32 - 1.

    Returns:
        int64 ``[n, 4]`` or ``[M, n, 4]``, 0 to 2**32 - 1.
    """
    if native and seed.device.type == "cpu" and not torch.compiler.is_compiling():
        if not torch._C._are_functorch_transforms_active():
            return native(seed, step, stream, index)
    return words_of_tensors(seed, step, stream, index)


def words_of_tensors(seed: Tensor, step: Tensor, stream: int, index: Tensor) -> Tensor:
    """:func:`words_at` by PyTorch's operations on int64, on any device."""
    n = index.shape[0]
    counter = torch.stack(
        (
            index,
            index.new_full((n,), stream),
            (step & _MASK).expand(n),
            ((step >> 32) & _MASK).expand(n),
        )
    )
    if seed.dim():
        counter = counter.unsqueeze(1)
    key = torch.stack((seed & _MASK, (seed >> 32) & _MASK)).unsqueeze(-1)
    return philox4x32(counter, key).movedim(0, -1)


def integers(seed: Tensor, step: Tensor, stream: int, count: int, bound: int) -> Tensor:
    """Draw ``count`` integers in [0, bound) for each key; integer i takes word i.

    Args:
        seed: int64 ``[]`` or ``[M]``, keys.
        step: int64 ``[]``.
        stream: of :meth:`Stream.at`.
        count: integers for each key.
        bound: 1 to 2**31.

    Returns:
        int64 ``[count]`` or ``[M, count]``.
    """
    return bounded(words(seed, step, stream, count), bound)


def bounded(word: Tensor, bound: int | Tensor) -> Tensor:
    """floor(word * bound / 2**32): an integer in [0, bound) from one word.

    Args:
        word: int64, 0 to 2**32 - 1.
        bound: 1 to 2**31; the bias of each value is below bound / 2**32.

    Returns:
        int64 of the word's shape.
    """
    return (word * bound) >> 32


def uniform(word: Tensor) -> Tensor:
    """(word >> 8) / 2**24: a number in [0, 1) from one word, exact in float32.

    Args:
        word: int64, 0 to 2**32 - 1.

    Returns:
        float32 of the word's shape.
    """
    return (word >> 8).to(torch.float32) * 2.0**-24


def normal(word: Tensor) -> Tensor:
    """Box-Muller: two words give two standard normal numbers.

    ``r = sqrt(-2 log u), (r cos t, r sin t)`` with ``u = ((w0 >> 8) + 1) / 2**24`` in (0, 1] and
    ``t = 2 pi (w1 >> 8) / 2**24``; both fractions are exact in float32.

    Args:
        word: int64 ``[..., n]``, n even, 0 to 2**32 - 1; words 2k and 2k + 1 make a pair.

    Returns:
        float32 ``[..., n]``.
    """
    pair = (word >> 8).unflatten(-1, (-1, 2))
    u = (pair[..., 0] + 1).to(torch.float32) * 2.0**-24
    angle = pair[..., 1].to(torch.float32) * (2.0 * torch.pi * 2.0**-24)
    radius = torch.sqrt(-2.0 * torch.log(u))
    return torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1).flatten(-2)


def _keys(seed: Any, device: torch.device | str | None) -> Tensor:
    """Keys as int64 [] or [M], the bits of each modulo 2**64."""
    if isinstance(seed, Tensor) and seed.dim() < 2 and seed.numel():
        if seed.dtype == torch.uint64:
            seed = seed.view(torch.int64)
        elif seed.dtype == torch.bool or seed.is_floating_point() or seed.is_complex():
            raise TypeError(f"seed: got {seed.dtype}, expected integers")
        # A copy, which keeps its numbers; asked for by name: under vmap nobody knows them.
        return seed.to(device or torch.get_default_device(), torch.int64, copy=True)
    if not hasattr(seed, "__iter__") or not getattr(seed, "ndim", 1):
        keys: Any = _signed(integer("seed", seed))
    else:
        keys = [_signed(integer("seed", s)) for s in seed]
        if not keys:
            raise ValueError("seed: got no keys, expected one or more")
    return torch.tensor(keys, dtype=torch.int64, device=device)


def _signed(seed: int) -> int:
    """Map an integer modulo 2**64 to the int64 with the same bits."""
    seed &= (1 << 64) - 1
    return seed - (1 << 64) if seed >> 63 else seed
