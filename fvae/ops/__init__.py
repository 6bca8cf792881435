"""The public ops: shape contract, argument checks, choice of backend.

Each op is registered once as ``torch.ops.fvae.<name>`` with a schema and a fake, so that
``torch.compile(fullgraph=True)`` takes it whole; the reference implementation serves every device,
and a faster backend registers itself for the devices it serves. ``backend=None`` lets the
dispatcher pick; a name in :data:`BACKENDS` forces that backend.

Random ops take ``rng``, a :class:`fvae.Philox`. Without it they draw a key from PyTorch's global
generator, so that ``torch.manual_seed`` governs them as it does ``torch.randn``.

Sign convention: logit 0 is "drawn from q(z)" (class 0), logit 1 is "permuted" (class 1), and the
total correlation estimate is ``mean(l0 - l1)``. The estimate can be negative.
"""

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fvae import reference
from fvae.philox import Philox

_SCHEMAS = {
    "gather_batch": "(Tensor data, int[] image_shape, bool packed, int batch_size, Tensor seed,"
    " Tensor step, int lane, ScalarType dtype) -> (Tensor, Tensor)",
    "reparameterize": "(Tensor mu, Tensor logvar, Tensor seed, Tensor step, int lane)"
    " -> (Tensor, Tensor)",
    "reparameterize_backward": "(Tensor grad_z, Tensor grad_kl, Tensor mu, Tensor logvar,"
    " Tensor seed, Tensor step, int lane) -> (Tensor, Tensor)",
    "permute_dims": "(Tensor z, Tensor seed, Tensor step, int lane) -> Tensor",
    "permute_dims_backward": "(Tensor grad, Tensor seed, Tensor step, int lane) -> Tensor",
    "logit_ratio": "(Tensor logits_z, Tensor logits_perm)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "bernoulli_nll": "(Tensor logits, Tensor target) -> (Tensor, Tensor)",
    "metric_votes": "(Tensor codes, int[] factor_sizes, int votes, int samples, bool balanced,"
    " Tensor scale, Tensor active, Tensor seed, Tensor step, int lane) -> Tensor",
    "pair_features": "(Tensor codes, int[] factor_sizes, int points, int pairs, bool balanced,"
    " Tensor seed, Tensor step, int lane) -> (Tensor, Tensor)",
    "grouped_variance": "(Tensor codes, int[] factor_sizes) -> Tensor",
}

#: The ops of the library: those of a training step in its order, then those of the metrics.
OPS = (
    "gather_batch",
    "reparameterize",
    "permute_dims",
    "logit_ratio",
    "bernoulli_nll",
    "metric_votes",
    "pair_features",
    "grouped_variance",
)
_METRICS = OPS[-3:]


def _triton(name: str) -> Callable:
    """Return the Triton launcher of an op; the kernels are imported at its first call."""

    def run(*args):
        from fvae import kernels

        if any(isinstance(a, Tensor) and a.dtype == torch.float64 for a in args):
            raise TypeError(
                f"{name}: backend='triton' computes in float32, got float64; pass"
                " backend='reference'"
            )
        return kernels.IMPLEMENTATIONS[name](*args)

    return run


#: Backend name -> registered op name -> implementation.
BACKENDS: dict[str, dict[str, Callable]] = {
    "reference": {name: getattr(reference, name) for name in _SCHEMAS}
}
if importlib.util.find_spec("triton"):
    BACKENDS["triton"] = {name: _triton(name) for name in _SCHEMAS if name not in _METRICS}

_LIBRARY = torch.library.Library("fvae", "DEF")
for _name, _schema in _SCHEMAS.items():
    # The outputs never alias an input and nothing is mutated: tagged so for the compiler.
    _LIBRARY.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(_name, BACKENDS["reference"][_name], "CompositeExplicitAutograd")
for _name, _run in BACKENDS.get("triton", {}).items():
    _LIBRARY.impl(_name, _run, "CUDA")


_DEVICE_OF = {"triton": "cuda", "cuda": "cuda", "cpp": "cpu"}


def _extension(name: str, backend: str) -> Callable:
    """Return an op of the C++/CUDA extension, which the dispatcher has under its device."""
    device = _DEVICE_OF[backend]

    def run(codes: Tensor, *args):
        if codes.device.type != device:
            raise ValueError(
                f"{name}: backend={backend!r} needs {device} tensors, got codes on {codes.device}"
            )
        return getattr(torch.ops.fvae, name)(codes, *args)

    return run


def _load(module: str) -> str | None:
    """Import a part of the extension, which registers its ops; return why it is absent, or None."""
    try:
        importlib.import_module(f"fvae.{module}")
    except ImportError as error:
        # Left by a build that failed: it knows more than "No module named".
        note = Path(__file__).with_name(f"{module}.not_built.txt")
        return note.read_text().strip() if note.exists() else str(error)
    return None


#: Why the C++ ops are not there; None where they are.
EXTENSION_ERROR: str | None = _load("_C")
#: Why the CUDA ops are not there; None where they are, and where PyTorch is not a CUDA build.
CUDA_EXTENSION_ERROR: str | None = _load("_C_cuda") if torch.version.cuda else None

if EXTENSION_ERROR is None:
    BACKENDS["cpp"] = {name: _extension(name, "cpp") for name in _METRICS}
if torch.version.cuda and CUDA_EXTENSION_ERROR is None:
    BACKENDS["cuda"] = {name: _extension(name, "cuda") for name in _METRICS}


def backend_of(op: str, device_type: str) -> str:
    """Return the name of the backend that ``backend=None`` picks for an op on a device type."""
    for name, implementations in BACKENDS.items():
        if name != "reference" and op in implementations and device_type == _DEVICE_OF[name]:
            return name
    return "reference"


def implementation(name: str, backend: str | None) -> Callable:
    """Return the raw op of a backend, or the dispatcher's op where backend is None."""
    if backend is None:
        return getattr(torch.ops.fvae, name)
    if backend not in BACKENDS or name not in BACKENDS[backend]:
        known = ", ".join(b for b, table in BACKENDS.items() if name in table)
        raise ValueError(f"backend: got {backend!r}, but {name} has {known}")
    return BACKENDS[backend][name]


_FLOATS = (torch.float32, torch.bfloat16, torch.float64)


def _check_float(name: str, x: Tensor, dims: tuple[int, ...], shape: str) -> None:
    if x.dtype not in _FLOATS:
        raise TypeError(f"{name}: got {x.dtype}, expected float32 or bfloat16")
    if x.dim() not in dims or x.numel() == 0:
        raise ValueError(f"{name}: got shape {list(x.shape)}, expected {shape}, not empty")


def _check_same(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    if x.shape != other.shape or x.dtype != other.dtype or x.device != other.device:
        raise ValueError(
            f"{name}: got {list(x.shape)} {x.dtype} on {x.device}, expected that of {other_name}:"
            f" {list(other.shape)} {other.dtype} on {other.device}"
        )


def _keys(rng: Philox | None, like: Tensor) -> tuple[Tensor, Tensor, int]:
    """Return the raw key, step and lane, checked against an input ``[B, d]`` or ``[M, B, d]``."""
    if rng is None:
        rng = Philox.from_torch(like.device)
    if rng.seed.device != like.device:
        raise ValueError(
            f"rng: is on {rng.seed.device}, but the input is on {like.device};"
            f" make it with Philox(seed, device={str(like.device)!r})"
        )
    if rng.seed.dim() and (like.dim() != 3 or rng.seed.shape[0] != like.shape[0]):
        raise ValueError(
            f"rng: has {rng.seed.shape[0]} keys, expected one key, or an input [M, B, d] with a"
            f" key for each model; the input is {list(like.shape)}"
        )
    return rng.seed, rng.step, rng.lane


# --- permute_dims ---------------------------------------------------------------------------


class _PermuteDims(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, seed, step, lane, backend):
        ctx.save_for_backward(seed, step)
        ctx.lane, ctx.backend = lane, backend
        return implementation("permute_dims", backend)(z, seed, step, lane)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        run = implementation("permute_dims_backward", ctx.backend)
        return run(grad, *ctx.saved_tensors, ctx.lane), None, None, None, None


def permute_dims(z: Tensor, rng: Philox | None = None, backend: str | None = None) -> Tensor:
    """z_perm[b, j] = z[p_j(b), j], p_j an independent uniform permutation of the batch for each j.

    The result's columns have the batch's values, but are independent of each other: a sample of
    the product of the marginals of q(z), class 1 of the discriminator.

    Args:
        z: ``[B, d]``, or ``[M, B, d]`` for M models; float32 or bfloat16.
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
    _check_float("z", z, (2, 3), "[B, d] or [M, B, d]")
    seed, step, lane = _keys(rng, z)
    if z.requires_grad and torch.is_grad_enabled():
        return _PermuteDims.apply(z, seed, step, lane, backend)
    return implementation("permute_dims", backend)(z, seed, step, lane)


# --- reparameterize -------------------------------------------------------------------------


class _Reparameterize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, mu, logvar, seed, step, lane, backend):
        ctx.save_for_backward(mu, logvar, seed, step)
        ctx.lane, ctx.backend = lane, backend
        return implementation("reparameterize", backend)(mu, logvar, seed, step, lane)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_z, grad_kl):
        run = implementation("reparameterize_backward", ctx.backend)
        return *run(grad_z, grad_kl, *ctx.saved_tensors, ctx.lane), None, None, None, None


def reparameterize(
    mu: Tensor, logvar: Tensor, rng: Philox | None = None, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """z = mu + exp(logvar / 2) * eps, eps ~ N(0, 1), and the KL of q(z|x) to N(0, 1).

    ``kl[j] = mean over the batch of (mu_j^2 + exp(logvar_j) - logvar_j - 1) / 2``.

    Args:
        mu: means, ``[B, d]`` or ``[M, B, d]``; float32 or bfloat16.
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
    _check_float("mu", mu, (2, 3), "[B, d] or [M, B, d]")
    _check_same("logvar", logvar, "mu", mu)
    seed, step, lane = _keys(rng, mu)
    if torch.is_grad_enabled() and (mu.requires_grad or logvar.requires_grad):
        return _Reparameterize.apply(mu, logvar, seed, step, lane, backend)
    return implementation("reparameterize", backend)(mu, logvar, seed, step, lane)


# --- logit_ratio ----------------------------------------------------------------------------


class _LogitRatio(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits_z, logits_perm, backend):
        run = implementation("logit_ratio", backend)
        tc, disc_loss, accuracy, slope_z, slope_perm = run(logits_z, logits_perm)
        ctx.save_for_backward(slope_z, slope_perm)
        ctx.dtype = logits_z.dtype
        ctx.mark_non_differentiable(accuracy)
        return tc, disc_loss, accuracy

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_tc, grad_loss, _):
        slope_z, slope_perm = ctx.saved_tensors
        ratio_z = grad_loss.unsqueeze(-1) * slope_z + grad_tc.unsqueeze(-1) / slope_z.shape[-1]
        ratio_perm = grad_loss.unsqueeze(-1) * slope_perm
        grads = (torch.stack((s, -s), dim=-1).to(ctx.dtype) for s in (ratio_z, ratio_perm))
        return *grads, None


def logit_ratio(
    logits_z: Tensor, logits_perm: Tensor, backend: str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """TC = mean(l0 - l1) over the rows of q(z), with the discriminator's loss and accuracy.

    ``disc_loss = (cross_entropy(logits_z, 0) + cross_entropy(logits_perm, 1)) / 2``: logit 0 is
    "drawn from q(z)" (class 0), logit 1 is "permuted" (class 1).

    Args:
        logits_z: discriminator logits of z, ``[B, 2]`` or ``[M, B, 2]``; float32 or bfloat16.
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
    _check_float("logits_z", logits_z, (2, 3), "[B, 2] or [M, B, 2]")
    _check_same("logits_perm", logits_perm, "logits_z", logits_z)
    if logits_z.shape[-1] != 2:
        raise ValueError(f"logits_z: got {logits_z.shape[-1]} logits a row, expected 2")
    if torch.is_grad_enabled() and (logits_z.requires_grad or logits_perm.requires_grad):
        return _LogitRatio.apply(logits_z, logits_perm, backend)
    return implementation("logit_ratio", backend)(logits_z, logits_perm)[:3]


# --- bernoulli_nll --------------------------------------------------------------------------


class _BernoulliNLL(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, target, backend):
        nll, grad = implementation("bernoulli_nll", backend)(logits, target)
        ctx.save_for_backward(grad)
        return nll

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_nll):
        (grad,) = ctx.saved_tensors
        return grad * grad_nll.view(*grad_nll.shape, 1, 1, 1, 1).to(grad.dtype), None, None


def bernoulli_nll(logits: Tensor, target: Tensor, backend: str | None = None) -> Tensor:
    """nll = mean over the batch, sum over pixels, of log(1 + exp(l)) - l x.

    Args:
        logits: ``[B, C, H, W]`` or ``[M, B, C, H, W]``; float32 or bfloat16.
        target: x, in one of four forms, told apart by dtype and shape:
            floating point of the logits' shape, 0..1;
            bool of the logits' shape, 0 or 1;
            uint8 of the logits' shape, bytes 0..255, x = byte / 255 (0/1 images held as uint8
            are passed as ``images.bool()``);
            uint8 ``[..., C * H * W / 8]``, packed bits: pixel p of the flattened image is bit
            ``p % 8`` of byte ``p // 8``, as in the ``data`` of a binary store.
        backend: None picks; otherwise a name in :data:`BACKENDS`.

    Returns:
        nll, ``[]`` or ``[M]``, float32, in nats an image. The gradient is made in the forward
        pass; the target has none.

    Raises:
        TypeError: logits are not floating point, or target has another dtype.
        ValueError: the target's shape fits no form, or the backend does not exist.
    """
    _check_float("logits", logits, (4, 5), "[B, C, H, W] or [M, B, C, H, W]")
    packed = (*logits.shape[:-3], logits.shape[-3:].numel() // 8)
    if target.shape != logits.shape and not (
        target.dtype == torch.uint8 and target.shape == packed
    ):
        raise ValueError(
            f"target: got shape {list(target.shape)} {target.dtype}, expected"
            f" {list(logits.shape)}, or uint8 {list(packed)} of packed bits"
        )
    if target.dtype not in (*_FLOATS, torch.bool, torch.uint8):
        raise TypeError(f"target: got {target.dtype}, expected floating point, bool or uint8")
    if logits.requires_grad and torch.is_grad_enabled():
        return _BernoulliNLL.apply(logits, target, backend)
    return implementation("bernoulli_nll", backend)(logits, target)[0]


# --- gather_batch ---------------------------------------------------------------------------


def gather_batch(
    store,
    batch_size: int,
    rng: Philox | None,
    backend: str | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """x = images of the store at uniform random indices, drawn with replacement, in 0..1.

    Args:
        store: a :class:`fvae.data.Store`, or any object with ``data`` (uint8 ``[N, bytes]``),
            ``binary`` (whether a byte holds eight pixels) and ``image_shape`` (C, H, W). Where its
            ``on_demand`` is true, ``rows(indices)`` makes the images and N is ``len(store)``.
        batch_size: B, at least 1.
        rng: key and step of the draw, on the store's device; index i is
            ``word_i * N >> 32``, of bias below N / 2**32. None draws a key from PyTorch's
            global generator.
        backend: None picks; otherwise a name in :data:`BACKENDS`.
        dtype: of x; float32 or bfloat16.
        return_indices: also return the images' indices.

    Returns:
        x, ``[B, C, H, W]`` (``[M, B, C, H, W]`` where rng has M keys), and, if asked for, the
        indices, int64 ``[B]`` or ``[M, B]``.

    Raises:
        ValueError: batch_size < 1, the store is empty, rng is on another device, or the backend
            does not exist.
    """
    data = store.data
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
    draw = (batch_size, rng.seed, rng.step, rng.lane, dtype)
    if getattr(store, "on_demand", False):
        # The backend draws from blank rows, of which only the numbers are used.
        indices = run(data.new_empty(len(store), 4), [4, 1, 1], False, *draw)[1]
        rows = store.rows(indices).flatten(0, -2)
        x = reference.unpack(rows, shape, store.binary, dtype).unflatten(0, indices.shape)
    else:
        x, indices = run(data, shape, store.binary, *draw)
    return (x, indices) if return_indices else x


# --- metrics --------------------------------------------------------------------------------


def _check_grid(codes: Tensor, factor_sizes: Sequence[int]) -> list[int]:
    """Return the sizes as ints, checked against codes ``[N, d]`` or ``[M, N, d]``."""
    _check_float("codes", codes, (2, 3), "[N, d] or [M, N, d]")
    sizes = [int(n) for n in factor_sizes]
    if not sizes or min(sizes) < 2:
        raise ValueError(f"factor_sizes: got {sizes}, expected at least one, each at least 2")
    if prod(sizes) > 1 << 31:
        raise ValueError(f"factor_sizes: the product of {sizes} is above 2**31")
    if codes.shape[-2] != prod(sizes):
        raise ValueError(
            f"codes: got {codes.shape[-2]} rows, expected {prod(sizes)}, the product of {sizes}"
        )
    return sizes


def _check_draws(
    rng: Philox | None, codes: Tensor, count_name: str, count: int, groups: int
) -> Philox:
    """Return the generator, checked; ``groups`` counter indices are drawn for each of a count."""
    if not 1 <= count <= (1 << 32) // groups:
        raise ValueError(f"{count_name}: got {count}, expected 1 to {(1 << 32) // groups}")
    if rng is None:
        rng = Philox.from_torch(codes.device)
    if rng.seed.dim():
        raise ValueError("rng: has several keys, expected one; all models see the same draws")
    if rng.seed.device != codes.device:
        raise ValueError(f"rng: is on {rng.seed.device}, but the codes are on {codes.device}")
    return rng


def metric_votes(
    codes: Tensor,
    factor_sizes: Sequence[int],
    *,
    votes: int,
    samples: int,
    scale: Tensor,
    active: Tensor,
    rng: Philox | None,
    backend: str | None = None,
    balanced: bool = False,
) -> Tensor:
    """votes[j, k] = number of votes with fixed factor k in which dimension j varied least.

    Each vote fixes one factor at one value, draws L images that have it, and goes to
    ``argmin over active j of var_j / scale_j`` (ties to the lowest j). The image with factor
    classes c is row ``sum of c_k * s_k``, s_k the product of the sizes after k.

    Args:
        codes: ``[N, d]``, or ``[M, N, d]`` for M models, which all see the same draws; float32,
            float64 or bfloat16, computed in float32. N is the product of the factor sizes.
        factor_sizes: K sizes, each at least 2.
        votes: number of votes, at least 1.
        samples: L, images a vote, at least 2.
        scale: global variance of each dimension, ``[d]`` or ``[M, d]``; where it is 0 the
            dimension never wins.
        active: bool, ``[d]`` or ``[M, d]``; where False the dimension never wins.
        rng: a Philox with one key; None draws a key from PyTorch's global generator.
        backend: None picks; otherwise a name in :data:`BACKENDS`.
        balanced: vote v fixes factor v % K (protocol kim2018) instead of a random one
            (locatello2019).

    Returns:
        int64 ``[d, K]`` or ``[M, d, K]``; all zero for a model without an active dimension. A
        dimension whose variance is not finite (a code is NaN) wins over none but its like.

    Raises:
        TypeError: codes are not floating point, or active is not bool.
        ValueError: N is not the product of the sizes, a size is below 2, votes < 1, samples < 2,
            or scale, active or rng has another shape or device.

    Source: Kim & Mnih 2018, section 4; constants of the protocols in ``fvae.metrics.protocols``.
    """
    sizes = _check_grid(codes, factor_sizes)
    if samples < 2:
        raise ValueError(f"samples: got {samples}, expected at least 2")
    rng = _check_draws(rng, codes, "votes", votes, 1 + (samples + 3) // 4)
    each = (*codes.shape[:-2], codes.shape[-1])
    for name, value in (("scale", scale), ("active", active)):
        if value.shape != each or value.device != codes.device:
            raise ValueError(
                f"{name}: got shape {list(value.shape)} on {value.device}, expected {list(each)}"
                f" on {codes.device}"
            )
    if active.dtype != torch.bool:
        raise TypeError(f"active: got {active.dtype}, expected torch.bool")
    stacked = codes if codes.dim() == 3 else codes[None]
    run = implementation("metric_votes", backend)
    result = run(
        stacked, sizes, votes, samples, balanced, scale.float().view(stacked.shape[0], -1),
        active.view(stacked.shape[0], -1), rng.seed, rng.step, rng.lane,
    )  # fmt: skip
    return result if codes.dim() == 3 else result[0]


def pair_features(
    codes: Tensor,
    factor_sizes: Sequence[int],
    *,
    points: int,
    pairs: int,
    rng: Philox | None,
    backend: str | None = None,
    balanced: bool = False,
) -> tuple[Tensor, Tensor]:
    """features[p, j] = mean over the L pairs of point p of |z1_j - z2_j|; factors[p], the label.

    Each point fixes one factor. Each of its pairs draws a value of that factor, which both images
    share, and all else of both images at random. A linear classifier from features to factors is
    Higgins' metric.

    Args:
        codes: ``[N, d]``, or ``[M, N, d]`` for M models, which all see the same draws; float32,
            float64 or bfloat16. N is the product of the factor sizes, the last varying fastest.
        factor_sizes: K sizes, each at least 2.
        points: P, at least 1.
        pairs: L, pairs a point, at least 1.
        rng: a Philox with one key; None draws a key from PyTorch's global generator.
        backend: None picks; otherwise a name in :data:`BACKENDS`.
        balanced: point p fixes factor p % K (protocol kim2018) instead of a random one
            (locatello2019).

    Returns:
        features, float32 ``[P, d]`` or ``[M, P, d]``, in the unit of the codes, and factors, int64
        ``[P]``, 0 to K - 1.

    Raises:
        TypeError: codes are not floating point.
        ValueError: N is not the product of the sizes, a size is below 2, points < 1 or pairs < 1.

    Source: Higgins et al. 2017, section 3.
    """
    sizes = _check_grid(codes, factor_sizes)
    if pairs < 1:
        raise ValueError(f"pairs: got {pairs}, expected at least 1")
    rng = _check_draws(rng, codes, "points", points, 1 + pairs)
    stacked = codes if codes.dim() == 3 else codes[None]
    run = implementation("pair_features", backend)
    features, factors = run(stacked, sizes, points, pairs, balanced, rng.seed, rng.step, rng.lane)
    return features if codes.dim() == 3 else features[0], factors


def grouped_variance(
    codes: Tensor, factor_sizes: Sequence[int], backend: str | None = None
) -> Tensor:
    """variance[g, j] = population variance of z_j over all images of group g.

    A group is the images that have one value of one factor; the groups are ordered by factor,
    then by value. Protocol exhaustive of the FactorVAE metric takes one vote from each.

    Args:
        codes: ``[N, d]``, or ``[M, N, d]`` for M models; float32, float64 or bfloat16. N is the
            product of the factor sizes, the last varying fastest.
        factor_sizes: K sizes, each at least 2.
        backend: None picks; otherwise a name in :data:`BACKENDS`.

    Returns:
        float32 ``[G, d]`` or ``[M, G, d]``, G the sum of the sizes, in the square of the codes'
        unit; summed in float64, and exactly 0 where all codes of a group are the same.

    Raises:
        TypeError: codes are not floating point.
        ValueError: N is not the product of the sizes, or a size is below 2.
    """
    sizes = _check_grid(codes, factor_sizes)
    stacked = codes if codes.dim() == 3 else codes[None]
    result = implementation("grouped_variance", backend)(stacked, sizes)
    return result if codes.dim() == 3 else result[0]


# --- fakes: shapes and dtypes for torch.compile -----------------------------------------------


def _sum_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


@torch.library.register_fake("fvae::gather_batch", lib=_LIBRARY)
def _(data, image_shape, packed, batch_size, seed, step, lane, dtype):
    x = data.new_empty((*seed.shape, batch_size, *image_shape), dtype=dtype)
    return x, data.new_empty((*seed.shape, batch_size), dtype=torch.int64)


@torch.library.register_fake("fvae::reparameterize", lib=_LIBRARY)
def _(mu, logvar, seed, step, lane):
    z = torch.empty_like(mu, memory_format=torch.contiguous_format)
    return z, mu.new_empty((*mu.shape[:-2], mu.shape[-1]), dtype=_sum_dtype(mu))


@torch.library.register_fake("fvae::reparameterize_backward", lib=_LIBRARY)
def _(grad_z, grad_kl, mu, logvar, seed, step, lane):
    grad = torch.empty_like(mu, memory_format=torch.contiguous_format)
    return grad, torch.empty_like(grad)


@torch.library.register_fake("fvae::permute_dims", lib=_LIBRARY)
def _(z, seed, step, lane):
    return torch.empty_like(z, memory_format=torch.contiguous_format)


@torch.library.register_fake("fvae::permute_dims_backward", lib=_LIBRARY)
def _(grad, seed, step, lane):
    return torch.empty_like(grad, memory_format=torch.contiguous_format)


@torch.library.register_fake("fvae::logit_ratio", lib=_LIBRARY)
def _(logits_z, logits_perm):
    rows = logits_z.new_empty(logits_z.shape[:-1], dtype=_sum_dtype(logits_z))
    one = rows.new_empty(rows.shape[:-1])
    return one, torch.empty_like(one), torch.empty_like(one), rows, torch.empty_like(rows)


@torch.library.register_fake("fvae::bernoulli_nll", lib=_LIBRARY)
def _(logits, target):
    nll = logits.new_empty(logits.shape[:-4], dtype=_sum_dtype(logits))
    return nll, torch.empty_like(logits)


@torch.library.register_fake("fvae::metric_votes", lib=_LIBRARY)
def _(codes, factor_sizes, votes, samples, balanced, scale, active, seed, step, lane):
    shape = (codes.shape[0], codes.shape[2], len(factor_sizes))
    return codes.new_empty(shape, dtype=torch.int64)


@torch.library.register_fake("fvae::pair_features", lib=_LIBRARY)
def _(codes, factor_sizes, points, pairs, balanced, seed, step, lane):
    features = codes.new_empty((codes.shape[0], points, codes.shape[2]), dtype=torch.float32)
    return features, codes.new_empty((points,), dtype=torch.int64)


@torch.library.register_fake("fvae::grouped_variance", lib=_LIBRARY)
def _(codes, factor_sizes):
    shape = (codes.shape[0], sum(factor_sizes), codes.shape[2])
    return codes.new_empty(shape, dtype=torch.float32)
