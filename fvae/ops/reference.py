"""Every op in plain PyTorch: the definition that all backends are checked against.

The functions take the raw arguments of the registered ops (keys and steps as tensors, no checks);
people call :mod:`fvae.ops`, which documents shapes and units. All accumulate in float32, or in
float64 where the input is float64.

Sign convention: logit 0 is "drawn from q(z)" (class 0), logit 1 is "permuted" (class 1).
"""

from collections.abc import Iterator, Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from fvae import philox
from fvae.ops.adam_formulas import fused_adam as fused_adam
from fvae.ops.adam_formulas import linear_adam as linear_adam
from fvae.ops.alias import aliased
from fvae.ops.both_formulas import reparameterize_both as reparameterize_both
from fvae.ops.both_formulas import (
    reparameterize_both_backward as reparameterize_both_backward,
)
from fvae.ops.conv_formulas import conv4x4 as conv4x4
from fvae.ops.conv_formulas import conv4x4_backward as conv4x4_backward
from fvae.ops.conv_formulas import has_matrix_units as has_matrix_units
from fvae.ops.drawing import drawn_rows, fixed_factor, strides, vote_samples
from fvae.ops.end_formulas import conv_from_bits as conv_from_bits
from fvae.ops.end_formulas import conv_from_bits_backward as conv_from_bits_backward
from fvae.ops.end_formulas import conv_to_pixels as conv_to_pixels
from fvae.ops.end_formulas import conv_to_pixels_backward as conv_to_pixels_backward
from fvae.ops.end_formulas import packed_bits as packed_bits
from fvae.ops.layer_formulas import activation_backward as activation_backward
from fvae.ops.layer_formulas import bias_activation as bias_activation
from fvae.ops.layer_formulas import linear_backward as linear_backward
from fvae.ops.pairs import pairwise_tc as pairwise_tc
from fvae.ops.pairs import pairwise_tc_backward as pairwise_tc_backward
from fvae.ops.pairs import wide as wide
from fvae.philox import Stream
from fvae.philox import words_of_tensors as philox_words  # noqa: F401

# Row b holds the bits of byte b, lowest first: unpacking is then one table lookup.
_BITS = ((torch.arange(256)[:, None] >> torch.arange(8)) & 1).to(torch.float32)

# Pairs drawn at a time: bounds the working memory to tens of megabytes.
_PAIRS_AT_ONCE = 1 << 17


def kl_to_prior(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL of N(mu, exp(logvar)) to N(0, 1), elementwise, nats."""
    return 0.5 * (mu * mu + torch.expm1(logvar) - logvar)


def _noise(like: Tensor, seed: Tensor, step: Tensor, lane: int) -> Tensor:
    """Standard normal noise of the shape of ``like``; element i in row-major order takes word i."""
    count = like.numel() // seed.numel() if seed.dim() else like.numel()
    word = philox.words(seed, step, Stream.NOISE.at(lane), count + count % 2)
    return philox.normal(word)[..., :count].reshape(like.shape)


def reparameterize(
    mu: Tensor, logvar: Tensor, seed: Tensor, step: Tensor, lane: int
) -> tuple[Tensor, Tensor]:
    """z = mu + exp(logvar / 2) * noise; kl = mean over the batch of KL(q || N(0, 1))."""
    m, v = wide(mu), wide(logvar)
    z = m + torch.exp(0.5 * v) * _noise(mu, seed, step, lane)
    kl = kl_to_prior(m, v).mean(-2)
    return z.to(mu.dtype).contiguous(), kl.contiguous()


def reparameterize_backward(
    grad_z: Tensor,
    grad_kl: Tensor,
    mu: Tensor,
    logvar: Tensor,
    seed: Tensor,
    step: Tensor,
    lane: int,
) -> tuple[Tensor, Tensor]:
    """Gradients of mu and logvar; the noise is drawn again, not stored."""
    noise = _noise(mu, seed, step, lane)
    grads = reparameterize_gradients(grad_z, grad_kl, mu, logvar, noise)
    return grads[0].contiguous(), grads[1].contiguous()


def reparameterize_gradients(
    grad_z: Tensor, grad_kl: Tensor, mu: Tensor, logvar: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of mu and logvar for a given noise, themselves differentiable in all but that."""
    m, v, g = wide(mu), wide(logvar), wide(grad_z)
    k = grad_kl.unsqueeze(-2) / mu.shape[-2]
    grad_mu = g + k * m
    scaled = torch.exp(0.5 * v) * noise
    grad_logvar = 0.5 * (g * scaled + k * torch.expm1(v))
    return grad_mu.to(mu.dtype), grad_logvar.to(logvar.dtype)


def permutation(seed: Tensor, step: Tensor, lane: int, shape: Sequence[int]) -> Tensor:
    """Row that each element of the permuted batch comes from.

    Column c orders its rows by (word << 32 | row), where row b takes word ``b % 4`` of counter
    index ``c * ceil(B / 4) + b // 4``; a stable sort of the words is that order.

    Returns:
        int64 of ``shape``, ``[B, d]`` or ``[M, B, d]``.
    """
    *models, rows, dims = shape
    groups = (rows + 3) // 4
    columns = dims if seed.dim() else prod(models) * dims
    word = philox.words(seed, step, Stream.PERMUTATION.at(lane), columns * groups * 4)
    word = word.reshape(*models, dims, groups * 4)[..., :rows]
    return torch.sort(word, dim=-1, stable=True).indices.transpose(-1, -2)


def permute_dims(z: Tensor, seed: Tensor, step: Tensor, lane: int) -> Tensor:
    """z_perm[b, j] = z[permutation_j(b), j]: each column shuffled by its own permutation."""
    return torch.gather(z, -2, permutation(seed, step, lane, z.shape)).contiguous()


def permute_dims_backward(grad: Tensor, seed: Tensor, step: Tensor, lane: int) -> Tensor:
    """The inverse permutation of the gradient."""
    rows = permutation(seed, step, lane, grad.shape)
    return torch.empty_like(grad, memory_format=torch.contiguous_format).scatter_(-2, rows, grad)


def logit_ratio(
    logits_z: Tensor, logits_perm: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """TC estimate, discriminator loss and accuracy, and d disc_loss / d (l0 - l1) of each row."""
    s_z = (wide(logits_z[..., 0]) - wide(logits_z[..., 1])).contiguous()
    s_perm = (wide(logits_perm[..., 0]) - wide(logits_perm[..., 1])).contiguous()
    rows = s_z.shape[-1]
    tc = s_z.mean(-1)
    disc_loss = 0.5 * (F.softplus(-s_z).mean(-1) + F.softplus(s_perm).mean(-1))
    right = (s_z > 0).sum(-1) + (s_perm < 0).sum(-1)
    slope_z = torch.sigmoid(-s_z) * (-0.5 / rows)
    slope_perm = torch.sigmoid(s_perm) * (0.5 / rows)
    return tc, disc_loss, right.to(tc.dtype) / (2 * rows), slope_z, slope_perm


def unpack(rows: Tensor, image_shape: Sequence[int], packed: bool, dtype: torch.dtype) -> Tensor:
    """Rows of a store, uint8 ``[n, bytes]``, as images in 0..1, ``[n, C, H, W]``."""
    if packed and rows.device.type == "cpu":
        pixels = F.embedding(rows.int(), _BITS.to(dtype))
    elif packed:
        # No table: a CUDA graph cannot hold its copy from the host.
        bit = torch.arange(8, dtype=torch.uint8, device=rows.device)
        pixels = ((rows[..., None] >> bit) & 1).to(dtype)
    else:
        pixels = rows.to(dtype) * (1 / 255)
    # The last byte of a row may have bits left over.
    return pixels.flatten(1)[:, : prod(image_shape)].reshape(-1, *image_shape)


def gather_batch(
    data: Tensor,
    image_shape: Sequence[int],
    packed: bool,
    batch_size: int,
    seed: Tensor,
    step: Tensor,
    lane: int,
    dtype: torch.dtype,
    table: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Images and their indices; image i of the batch takes word i: index = word * N >> 32.

    With a table of aliases the index stays or changes by word i of the stream of aliases.
    """
    indices = philox.integers(seed, step, Stream.BATCH.at(lane), batch_size, data.shape[0])
    if table is not None:
        word = philox.words(seed, step, Stream.ALIAS.at(lane), batch_size)
        indices = aliased(table, indices, word)
    rows = data[indices.reshape(-1)]
    return unpack(rows, image_shape, packed, dtype).unflatten(0, indices.shape), indices


def _pixels(target: Tensor, like: Tensor) -> Tensor:
    """Any form of target as floating point of the shape and dtype of ``like``."""
    if target.dtype == torch.uint8 and target.shape != like.shape:
        return unpack(target.flatten(0, -2), like.shape[-3:], True, like.dtype).view(like.shape)
    if target.dtype == torch.uint8:
        return target.to(like.dtype) * (1 / 255)
    return target.to(like.dtype)


def bernoulli_nll(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """sum over pixels, mean over the batch, of log(1 + exp(l)) - l x; and its gradient.

    NaN where a floating-point target is outside 0..1. The gradient has the logits' dtype, but
    float32 for float16: a loss scale comes later.
    """
    logit = wide(logits)
    x = _pixels(target, logit)
    # In place: the gradient keeps the layout of the logits, and the image is walked once less.
    grad = _chance(logit).sub_(x).mul_(1 / logits.shape[-4])
    return _bernoulli(logit, x, target), grad.to(kept(logits.dtype))


#: Logits of pixels that are always black fall and fall. Their sigmoid is soon one of the numbers
#: below 1.2e-38, with which a processor computes a hundred times slower, and so are its products on
#: the way back: a step takes twice its time. From this logit on, of 1e-30, it is 0.
_BLACK = -69.0


def _chance(logit: Tensor) -> Tensor:
    """sigmoid(l), a new tensor, and 0 where l is not above :data:`_BLACK`."""
    return torch.sigmoid(logit).masked_fill(logit <= _BLACK, 0.0)


def _bernoulli(logit: Tensor, x: Tensor, target: Tensor) -> Tensor:
    nll = (F.softplus(logit.clamp(min=_BLACK)) - logit * x).sum((-3, -2, -1)).mean(-1)
    if target.is_floating_point():
        values = x.detach()
        if x.dim() == 4:
            low, high = values.aminmax()
        else:  # of each model apart
            low, high = values.amin((-4, -3, -2, -1)), values.amax((-4, -3, -2, -1))
        nll = nll.masked_fill(~((low >= 0) & (high <= 1)), torch.nan)
    return nll


def kept(dtype: torch.dtype) -> torch.dtype:
    """What the gradient of pixels is kept in: float32 for float16, as a loss scale comes later."""
    return torch.float32 if dtype == torch.float16 else dtype


def gaussian_nll(mean: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """sum over pixels, mean over the batch, of (m - x)^2 / 2; and its gradient."""
    m = wide(mean)
    # Into memory laid out as the mean is, as the gradient will be.
    error = torch.sub(m, _pixels(target, m), out=torch.empty_like(m))
    nll = 0.5 * error.square().sum((-3, -2, -1)).mean(-1)
    return nll, error.mul_(1 / mean.shape[-4]).to(kept(mean.dtype))


def pixel_nll(op: str, out: Tensor, target: Tensor) -> Tensor:
    """nll of "bernoulli_nll" or "gaussian_nll", as autograd and its transforms can follow it."""
    y = wide(out)
    x = _pixels(target, y)
    if op == "bernoulli_nll":
        return _bernoulli(y, x, target)
    return 0.5 * (y - x).square().sum((-3, -2, -1)).mean(-1)


def pixel_nll_gradient(op: str, out: Tensor, target: Tensor) -> Tensor:
    """Its gradient in ``out``, itself differentiable; in the dtype of the sums."""
    y = wide(out)
    x = _pixels(target, y)
    return ((_chance(y) if op == "bernoulli_nll" else y) - x) * (1 / out.shape[-4])


def metric_votes(
    codes: Tensor,
    factor_sizes: Sequence[int],
    votes: int,
    samples: int,
    balanced: bool,
    scale: Tensor,
    active: Tensor,
    seed: Tensor,
    step: Tensor,
    lane: int,
    offsets: Tensor | None = None,
    rows: Tensor | None = None,
) -> Tensor:
    """Votes of each model: the active dimension of least variance / scale votes for the factor."""
    factor, index = vote_samples(
        factor_sizes, votes, samples, balanced, seed, step, lane, offsets, rows
    )
    usable = active & (scale > 0)
    most = torch.finfo(torch.float32).max
    counts = []
    for m in range(codes.shape[0]):
        # Differences from the first sample: exact where the mean dwarfs the deviation.
        sample = codes[m][index].float()
        ratio = (sample - sample[:, :1]).var(dim=1) / scale[m]
        # A ratio that is not finite loses to all that are, but not to a dimension out of the race.
        ratio = ratio.nan_to_num(most, most).clamp(max=most)
        winner = torch.where(usable[m], ratio, torch.inf).argmin(-1)
        cell = winner * len(factor_sizes) + factor
        count = torch.bincount(cell, minlength=codes.shape[2] * len(factor_sizes))
        counts.append(count * usable[m].any())
    return torch.stack(counts).view(codes.shape[0], codes.shape[2], len(factor_sizes))


def pair_chunks(
    factor_sizes: Sequence[int],
    points: int,
    pairs: int,
    balanced: bool,
    seed: Tensor,
    step: Tensor,
    lane: int,
    offsets: Tensor | None = None,
    rows: Tensor | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Fixed factor and pairs of rows of each point, some points at a time.

    Point p owns ``1 + L`` counter indices of Stream.PAIRS. Word 0 of the first chooses the factor
    (``p % K`` where ``balanced``). Each index that follows is a pair: word 0 chooses the value
    that both images share, words 1 and 2 the two images among those that have it
    (:func:`drawn_rows`).

    Yields:
        factor int64 ``[n]``, rows int64 ``[n, L, 2]``.
    """
    device = seed.device
    groups = 1 + pairs
    at_once = max(1, _PAIRS_AT_ONCE // groups)
    for start in range(0, points, at_once):
        point = torch.arange(start, min(start + at_once, points), device=device)
        index = (point[:, None] * groups + torch.arange(groups, device=device)).flatten()
        word = philox.words_at(seed, step, Stream.PAIRS.at(lane), index)
        word = word.view(len(point), groups, 4)
        factor = fixed_factor(point, word[:, 0, 0], len(factor_sizes), balanced)
        chooser, drawn, k = word[:, 1:, :1], word[:, 1:, 1:3], factor[:, None, None]
        yield factor, drawn_rows(factor_sizes, offsets, rows, k, chooser, drawn)


def pair_features(
    codes: Tensor,
    factor_sizes: Sequence[int],
    points: int,
    pairs: int,
    balanced: bool,
    seed: Tensor,
    step: Tensor,
    lane: int,
    offsets: Tensor | None = None,
    rows: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean over a point's pairs of |z1 - z2|, and the factor that each of them shares."""
    features, factors = [], []
    for factor, drawn in pair_chunks(
        factor_sizes, points, pairs, balanced, seed, step, lane, offsets, rows
    ):
        z = wide(codes[:, drawn])
        features.append((z[..., 0, :] - z[..., 1, :]).abs().mean(-2).float())
        factors.append(factor)
    return torch.cat(features, dim=1), torch.cat(factors)


def _groups(
    codes: Tensor, factor_sizes: Sequence[int], offsets: Tensor | None, rows: Tensor | None
) -> Iterator[Tensor]:
    """Codes [M, n, d] of the rows that have a value, for each value of each factor."""
    if offsets is None or rows is None:
        for size, stride in zip(factor_sizes, strides(factor_sizes), strict=True):
            grid = codes.unflatten(1, (-1, size, stride))
            yield from (grid[:, :, value].flatten(1, 2) for value in range(size))
    else:
        yield from (codes[:, r.long()] for r in rows.tensor_split(offsets[1:-1].cpu()))


def grouped_variance(
    codes: Tensor,
    factor_sizes: Sequence[int],
    offsets: Tensor | None = None,
    rows: Tensor | None = None,
) -> Tensor:
    """Population variance over all images that have a value, for each value of each factor."""
    groups = []
    for z in _groups(codes, factor_sizes, offsets, rows):
        # Less its first row, a dimension that is constant here has a variance of exactly 0.
        wide = z.double()
        groups.append((wide - wide[:, :1]).var(dim=1, correction=0))
    return torch.stack(groups, dim=1).float()


def boosted_trees(
    codes: Tensor, labels: Tensor, classes: list[int], test: Tensor, stages: int, rate: float
) -> tuple[Tensor, Tensor]:
    """Importance ``[K, d]`` and scores ``[T, S]``, float64, of scikit-learn's boosted trees."""
    from sklearn.ensemble import GradientBoostingClassifier, GradientBoostingRegressor

    x, unseen = codes.cpu().numpy(), test.cpu().numpy()
    importance, scores = [], []
    for size, y in zip(classes, labels.cpu().numpy(), strict=True):
        kind = GradientBoostingClassifier if size else GradientBoostingRegressor
        model = kind(n_estimators=stages, learning_rate=rate, random_state=0).fit(x, y)
        found = model.decision_function(unseen) if size else model.predict(unseen)
        importance.append(torch.from_numpy(model.feature_importances_))
        scores.append(torch.from_numpy(found.reshape(len(unseen), -1)))
    return torch.stack(importance).to(codes.device), torch.cat(scores, dim=1).to(codes.device)
