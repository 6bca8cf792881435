"""The ops of a training step, in its order."""

from collections.abc import Sequence
from math import prod
from typing import Literal, Protocol, TypeGuard, overload

import torch
from torch import Tensor

from fvae.ops import autograd, reference
from fvae.ops.checks import FLOATS, check_float, check_same, keys
from fvae.ops.pairs import pair_weights
from fvae.ops.registry import implementation
from fvae.philox import Philox
from fvae.scalars import integer

# --- gather_batch ---------------------------------------------------------------------------


class PackedImages(Protocol):
    """What :func:`gather_batch` draws from, such as a :class:`fvae.data.Store`."""

    @property
    def data(self) -> Tensor:
        """uint8 ``[N, bytes]``."""

    @property
    def binary(self) -> bool:
        """Whether a byte holds eight pixels."""

    @property
    def image_shape(self) -> Sequence[int]:
        """C, H, W."""


class ImagesOnDemand(PackedImages, Protocol):
    """Packed images that are made when they are asked for; ``on_demand`` is true."""

    def __len__(self) -> int: ...

    def rows(self, indices: Tensor, /) -> Tensor:
        """Return the images at int64 ``[..., n]`` as uint8 ``[..., n, bytes]``."""


def _on_demand(store: PackedImages) -> TypeGuard[ImagesOnDemand]:
    return getattr(store, "on_demand", False)


@overload
def gather_batch(
    store: PackedImages,
    batch_size: int,
    rng: Philox | None,
    backend: str | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    table: Tensor | None = None,
    return_indices: Literal[False] = False,
) -> Tensor: ...


@overload
def gather_batch(
    store: PackedImages,
    batch_size: int,
    rng: Philox | None,
    backend: str | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    table: Tensor | None = None,
    return_indices: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def gather_batch(
    store: PackedImages,
    batch_size: int,
    rng: Philox | None,
    backend: str | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    table: Tensor | None = None,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """x = images of the store at random indices, uniform or by weight, with replacement, in 0..1.

    Args:
        store: a :class:`fvae.data.Store`, or any object with ``data`` (uint8 ``[N, bytes]``),
            ``binary`` (whether a byte holds eight pixels) and ``image_shape`` (C, H, W). Where its
            ``on_demand`` is true, ``rows(indices)`` makes the images and N is ``len(store)``.
        batch_size: B, at least 1.
        rng: key and step of the draw, on the store's device; index i is
            ``word_i * N >> 32``, of bias below N / 2**32. None draws a key from PyTorch's
            global generator.
        backend: None picks; otherwise a name in :data:`BACKENDS`.
        dtype: of x; float32, bfloat16 or float16.
        table: of :func:`alias_table`, int64 ``[N]`` on the store's device: images are drawn by its
            weights, with the index above and one word more. None draws all alike.
        return_indices: also return the images' indices.

    Returns:
        x, ``[B, C, H, W]`` (``[M, B, C, H, W]`` where rng has M keys), and, if asked for, the
        indices, int64 ``[B]`` or ``[M, B]``.

    Raises:
        TypeError: batch_size is no integer.
        ValueError: batch_size < 1, the store is empty, its rows are no images of its shape, rng is
            on another device, table is no int64 ``[N]`` there, or the backend does not exist.
    """
    data = store.data
    batch_size = integer("batch_size", batch_size)
    if batch_size < 1:
        raise ValueError(f"batch_size: got {batch_size}, expected at least 1")
    if data.dim() != 2 or data.dtype != torch.uint8 or data.shape[0] == 0:
        raise ValueError(
            f"store.data: got {list(data.shape)} {data.dtype}, expected uint8 [N, bytes], N >= 1"
        )
    if rng is None:
        rng = Philox.from_torch(data.device)
    if rng.seed.device != data.device:
        raise ValueError(f"rng: is on {rng.seed.device}, but the store is on {data.device}")
    run = implementation("gather_batch", backend)
    shape = list(store.image_shape)
    pixels = prod(shape)
    width = -(-pixels // 8) if store.binary else pixels
    if not _on_demand(store) and data.shape[1] != width:
        raise ValueError(
            f"store.data: got rows of {data.shape[1]} bytes, expected {width} for images {shape}"
            f" of {'bits' if store.binary else 'bytes'}"
        )
    count = len(store) if _on_demand(store) else data.shape[0]
    if table is not None and (
        table.shape != (count,) or table.dtype != torch.int64 or table.device != data.device
    ):
        raise ValueError(
            f"table: got {list(table.shape)} {table.dtype} on {table.device}, expected [{count}]"
            f" torch.int64 on {data.device}; make it with alias_table"
        )
    draw = (batch_size, rng.seed, rng.step, rng.lane, dtype, table)
    if _on_demand(store):
        # The backend draws from blank rows, of which only the numbers are used.
        indices = run(data.new_empty(count, 4), [4, 1, 1], False, *draw)[1]
        rows = store.rows(indices).flatten(0, -2)
        x = reference.unpack(rows, shape, store.binary, dtype).unflatten(0, indices.shape)
    else:
        x, indices = run(data, shape, store.binary, *draw)
    return (x, indices) if return_indices else x


# --- reparameterize -------------------------------------------------------------------------


def reparameterize(
    mu: Tensor, logvar: Tensor, rng: Philox | None = None, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """z = mu + exp(logvar / 2) * eps, eps ~ N(0, 1), and the KL of q(z|x) to N(0, 1).

    ``kl[j] = mean over the batch of (mu_j^2 + exp(logvar_j) - logvar_j - 1) / 2``.

    Args:
        mu: means, ``[B, d]`` or ``[M, B, d]``; float32, bfloat16 or float16.
        logvar: log variances, of mu's shape and dtype.
        rng: key and step of the noise; None draws a key from PyTorch's global generator.
        backend: None picks; otherwise a name in :data:`BACKENDS`.

    Returns:
        z, of mu's shape and dtype, and kl, ``[d]`` or ``[M, d]``, float32, in nats. Backward
        draws the noise again instead of keeping it, so ``rng.advance()`` belongs after it.

    Raises:
        TypeError: mu or logvar is not floating point.
        ValueError: shapes, dtypes or devices differ, an input is empty, or the backend does not
            exist.

    Source: Kingma & Welling 2014.
    """
    check_float("mu", mu, (2, 3), "[B, d] or [M, B, d]")
    check_same("logvar", logvar, "mu", mu)
    seed, step, lane = keys(rng, mu)
    return autograd.reparameterize(mu, logvar, seed, step, lane, backend)


# --- permute_dims ---------------------------------------------------------------------------


def permute_dims(z: Tensor, rng: Philox | None = None, backend: str | None = None) -> Tensor:
    """z_perm[b, j] = z[p_j(b), j], p_j an independent uniform permutation of the batch for each j.

    The result's columns have the batch's values, but are independent of each other: a sample of
    the product of the marginals of q(z), class 1 of the discriminator.

    Args:
        z: ``[B, d]``, or ``[M, B, d]`` for M models; float32, bfloat16 or float16.
        rng: key and step of the permutations; None draws a key from PyTorch's global generator.
        backend: None picks; otherwise a name in :data:`BACKENDS`.

    Returns:
        z_perm, of z's shape and dtype. Its gradient is the inverse permutation of the upstream
        gradient; detach it to train a discriminator.

    Raises:
        TypeError: z is not floating point.
        ValueError: z has another shape or is empty, rng is on another device, or the backend
            does not exist.

    Source: Kim & Mnih 2018, Algorithm 1.
    """
    check_float("z", z, (2, 3), "[B, d] or [M, B, d]")
    seed, step, lane = keys(rng, z)
    return autograd.permute_dims(z, seed, step, lane, False, backend)


# --- logit_ratio ----------------------------------------------------------------------------


def logit_ratio(
    logits_z: Tensor, logits_perm: Tensor, backend: str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """TC = mean(l0 - l1) over the rows of q(z), with the discriminator's loss and accuracy.

    ``disc_loss = (cross_entropy(logits_z, 0) + cross_entropy(logits_perm, 1)) / 2``: logit 0 is
    "drawn from q(z)" (class 0), logit 1 is "permuted" (class 1).

    Args:
        logits_z: discriminator logits of z, ``[B, 2]`` or ``[M, B, 2]``; float32, bfloat16 or
            float16.
        logits_perm: logits of the permuted z, of the same shape and dtype.
        backend: None picks; otherwise a name in :data:`BACKENDS`.

    Returns:
        tc (nats; can be negative), disc_loss (nats) and disc_accuracy (0 to 1, a tie counts as
        wrong), each ``[]`` or ``[M]``, float32. Gradients are made in the forward pass; accuracy
        has none.

    Raises:
        TypeError: an input is not floating point.
        ValueError: shapes, dtypes or devices differ, or the backend does not exist.

    Source: Kim & Mnih 2018, equation 3 and Algorithm 2.
    """
    check_float("logits_z", logits_z, (2, 3), "[B, 2] or [M, B, 2]")
    check_same("logits_perm", logits_perm, "logits_z", logits_z)
    if logits_z.shape[-1] != 2:
        raise ValueError(f"logits_z: got {logits_z.shape[-1]} logits a row, expected 2")
    return autograd.logit_ratio(logits_z, logits_perm, backend)


# --- bernoulli_nll, gaussian_nll -------------------------------------------------------------


def pixel_nll(op: str, out: Tensor, target: Tensor, backend: str | None = None) -> Tensor:
    """:func:`bernoulli_nll` or :func:`gaussian_nll`, by name, without a look at target's values.

    For the training step, which waits for no device: its images cannot be wrong. Bernoulli's nll is
    NaN where a floating-point target is outside 0..1.
    """
    name = "logits" if op == "bernoulli_nll" else "mean"
    check_float(name, out, (4, 5), "[B, C, H, W] or [M, B, C, H, W]")
    packed = (*out.shape[:-3], -(-out.shape[-3:].numel() // 8))
    if target.shape != out.shape and not (target.dtype == torch.uint8 and target.shape == packed):
        raise ValueError(
            f"target: got shape {list(target.shape)} {target.dtype}, expected"
            f" {list(out.shape)}, or uint8 {list(packed)} of packed bits"
        )
    if target.dtype not in (*FLOATS, torch.bool, torch.uint8):
        raise TypeError(f"target: got {target.dtype}, expected floating point, bool or uint8")
    return autograd.pixel_nll(op, out, target, backend)


def bernoulli_nll(logits: Tensor, target: Tensor, backend: str | None = None) -> Tensor:
    """nll = mean over the batch, sum over pixels, of log(1 + exp(l)) - l x.

    Args:
        logits: ``[B, C, H, W]`` or ``[M, B, C, H, W]``; float32, bfloat16 or float16.
        target: x, in one of four forms, told apart by dtype and shape:
            floating point of the logits' shape, 0..1;
            bool of the logits' shape, 0 or 1;
            uint8 of the logits' shape, bytes 0..255, x = byte / 255 (0/1 images held as uint8
            are passed as ``images.bool()``);
            uint8 ``[..., ceil(C * H * W / 8)]``, packed bits: pixel p of the flattened image is
            bit ``p % 8`` of byte ``p // 8``, as in the ``data`` of a binary store.
        backend: None picks; otherwise a name in :data:`BACKENDS`.

    Returns:
        nll, ``[]`` or ``[M]``, float32, in nats an image. The gradient is made in the forward
        pass; a black pixel's is 0 from a logit of -69 down, instead of less than 1e-30, with
        whose products a processor is slow. NaN where a floating-point target is outside 0..1
        and that cannot be raised: on a GPU, which is not waited for, and where
        ``torch.compile`` or a transform of ``torch.func`` traces the call.

    Raises:
        TypeError: logits are not floating point, or target has another dtype.
        ValueError: the target's shape fits no form, a floating-point target on the CPU is outside
            0..1 or not a number, or the backend does not exist.
    """
    nll = pixel_nll("bernoulli_nll", logits, target, backend)
    if target.is_floating_point() and target.device.type == "cpu":
        _check_in_unit(nll, target)
    return nll


def _check_in_unit(nll: Tensor, target: Tensor) -> None:
    """Raise a ValueError where nll is NaN for a target outside 0..1."""
    if torch.compiler.is_compiling():
        return
    try:
        if not bool(nll.detach().isnan().any()):
            return
        low, high = (bound.item() for bound in target.aminmax())
    except RuntimeError:  # traced or vmapped: there are no values to look at
        return
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"target: got values from {low:g} to {high:g}, expected floating point in 0..1; scale"
            " the images, or take gaussian_nll"
        )


def gaussian_nll(mean: Tensor, target: Tensor, backend: str | None = None) -> Tensor:
    """nll = mean over the batch, sum over pixels, of (m - x)^2 / 2.

    The negative log likelihood of Gaussian pixels of unit variance, without its constant
    ``C * H * W * log(2 pi) / 2``, which no parameter changes: 0 is a perfect reconstruction, as
    in other libraries' squared-error losses.

    Args:
        mean: m, ``[B, C, H, W]`` or ``[M, B, C, H, W]``; float32, bfloat16 or float16; any numbers.
        target: x, in one of the four forms of :func:`bernoulli_nll`; a floating-point one may
            have any values.
        backend: None picks; otherwise a name in :data:`BACKENDS`.

    Returns:
        nll, ``[]`` or ``[M]``, float32, in nats an image. The gradient is made in the forward
        pass.

    Raises:
        TypeError: mean is not floating point, or target has another dtype.
        ValueError: the target's shape fits no form, or the backend does not exist.
    """
    return pixel_nll("gaussian_nll", mean, target, backend)


# --- pairwise_tc ------------------------------------------------------------------------------


def pairwise_tc(
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    dataset_size: int | None = None,
    sampling: Literal["weighted", "stratified"] = "weighted",
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log densities of each z_i under the batch's mixture: joint, product of marginals, own.

    With q(z|x_j) = N(mu_j, exp(logvar_j)) and log weights log w_ij,

    ``log_qz[i]      = log sum_j w_ij prod_k q(z_ik|x_j)``,
    ``log_prod_qz[i] = sum_k log sum_j w_ij q(z_ik|x_j)``,
    ``log_qzx[i]     = sum_k log q(z_ik|x_i)``;

    so ``mean(log_qz - log_prod_qz)`` estimates the total correlation and ``mean(log_qzx - log_qz)``
    the mutual information of z and x. All pairs are looked at and none is kept.

    Args:
        z: a draw from each q(z|x_i), ``[B, d]`` or ``[M, B, d]``; float32, bfloat16 or float16.
        mu: means of q(z|x), of z's shape and dtype.
        logvar: its log variances, of z's shape and dtype.
        dataset_size: N, images of the data set that the batch was drawn from. None takes the batch
            for all there is: w = 1/B, the mixture itself.
        sampling: of a batch from N images. "weighted": w = 1/(N B). "stratified", whose weights of
            a row sum to 1: 1/N where j = i, (N - B + 1) / (N (B - 1)) where j = i + 1 (of the last
            row, 0), and 1/(B - 1) elsewhere; z_i's own image counts as one of N.
        backend: None picks; otherwise a name in :data:`BACKENDS`.

    Returns:
        log_qz, log_prod_qz and log_qzx, each ``[B]`` or ``[M, B]``, float32, in nats. Backward
        computes the pairs again.

    Raises:
        TypeError: an input is not floating point, or dataset_size is no integer.
        ValueError: shapes, dtypes or devices differ, an input is empty, dataset_size is too small
            or sampling has another value, or the backend does not exist.

    Source: Chen et al. 2018, equation 5 and appendix C.
    """
    check_float("z", z, (2, 3), "[B, d] or [M, B, d]")
    check_same("mu", mu, "z", z)
    check_same("logvar", logvar, "z", z)
    weights = pair_weights(z.shape[-2], dataset_size, sampling)
    return autograd.pairwise_tc(z, mu, logvar, weights, backend)
