"""Fakes of the ops: shapes and dtypes for torch.compile, without numbers."""

import torch
from torch import Tensor

from fvae.ops import reference
from fvae.ops.registry import LIBRARY


def _sum_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


@torch.library.register_fake("fvae::gather_batch", lib=LIBRARY)
def _(data, image_shape, packed, batch_size, seed, step, lane, dtype, table=None):
    x = data.new_empty((*seed.shape, batch_size, *image_shape), dtype=dtype)
    return x, data.new_empty((*seed.shape, batch_size), dtype=torch.int64)


@torch.library.register_fake("fvae::reparameterize", lib=LIBRARY)
def _(mu, logvar, seed, step, lane):
    z = torch.empty_like(mu, memory_format=torch.contiguous_format)
    return z, mu.new_empty((*mu.shape[:-2], mu.shape[-1]), dtype=_sum_dtype(mu))


@torch.library.register_fake("fvae::reparameterize_backward", lib=LIBRARY)
def _(grad_z, grad_kl, mu, logvar, seed, step, lane):
    grad = torch.empty_like(mu, memory_format=torch.contiguous_format)
    return grad, torch.empty_like(grad)


@torch.library.register_fake("fvae::reparameterize_both", lib=LIBRARY)
def _(mu, logvar, seed, step, lane):
    z = mu.new_empty((*mu.shape[:-2], mu.shape[-2] // 2, mu.shape[-1]))
    kl = mu.new_empty((*mu.shape[:-2], mu.shape[-1]), dtype=_sum_dtype(mu))
    return z, torch.empty_like(z), kl


@torch.library.register_fake("fvae::reparameterize_both_backward", lib=LIBRARY)
def _(grad_z, grad_kl, mu, logvar, seed, step, lane):
    grad = torch.empty_like(mu, memory_format=torch.contiguous_format)
    return grad, torch.empty_like(grad)


@torch.library.register_fake("fvae::permute_dims", lib=LIBRARY)
def _(z, seed, step, lane):
    return torch.empty_like(z, memory_format=torch.contiguous_format)


@torch.library.register_fake("fvae::permute_dims_backward", lib=LIBRARY)
def _(grad, seed, step, lane):
    return torch.empty_like(grad, memory_format=torch.contiguous_format)


@torch.library.register_fake("fvae::logit_ratio", lib=LIBRARY)
def _(logits_z, logits_perm):
    rows = logits_z.new_empty(logits_z.shape[:-1], dtype=_sum_dtype(logits_z))
    one = rows.new_empty(rows.shape[:-1])
    return one, torch.empty_like(one), torch.empty_like(one), rows, torch.empty_like(rows)


@torch.library.register_fake("fvae::bernoulli_nll", lib=LIBRARY)
def _(logits, target):
    nll = logits.new_empty(logits.shape[:-4], dtype=_sum_dtype(logits))
    return nll, torch.empty_like(logits, dtype=reference.kept(logits.dtype))


@torch.library.register_fake("fvae::gaussian_nll", lib=LIBRARY)
def _(mean, target):
    nll = mean.new_empty(mean.shape[:-4], dtype=_sum_dtype(mean))
    return nll, torch.empty_like(mean, dtype=reference.kept(mean.dtype))


@torch.library.register_fake("fvae::pairwise_tc", lib=LIBRARY)
def _(z, mu, logvar, log_self, log_next, log_other):
    each = torch.empty_like(z, dtype=_sum_dtype(z), memory_format=torch.contiguous_format)
    one = each.new_empty(each.shape[:-1])
    return one, torch.empty_like(one), torch.empty_like(one), each


@torch.library.register_fake("fvae::pairwise_tc_backward", lib=LIBRARY)
def _(grad_qz, grad_prod, grad_qzx, z, mu, logvar, log_qz, log_qzj, log_self, log_next, log_other):
    return tuple(torch.empty_like(z, memory_format=torch.contiguous_format) for _ in range(3))


@torch.library.register_fake("fvae::activation_backward", lib=LIBRARY)
def _(grad, y, slope, dtype, factor=None):
    form = torch.channels_last if y.dim() == 4 else torch.contiguous_format
    delta = y.new_empty(0) if slope == 1 else torch.empty_like(y, memory_format=form)
    scaled = y.new_empty(0) if factor is None else torch.empty_like(y, memory_format=form)
    channels = y.shape[1:2] if y.dim() == 4 else (*y.shape[:-2], y.shape[-1])
    return delta, scaled, y.new_empty(channels, dtype=dtype)


@torch.library.register_fake("fvae::bias_activation", lib=LIBRARY)
def _(y, bias, slope):
    return None


@torch.library.register_fake("fvae::linear_backward", lib=LIBRARY)
def _(grad, y, x, weight, slope, dtype, need_x, factor=None, need_weight=True):
    return (
        x.new_empty(x.shape if need_x else 0),
        weight.new_empty(weight.shape if need_weight else 0, dtype=dtype),
        weight.new_empty(weight.shape[:-1] if need_weight else 0, dtype=dtype),
    )


@torch.library.register_fake("fvae::linear_adam", lib=LIBRARY)
def _(
    steps, settings, grads, ys, xs, slopes, params, exp_avg, exp_avg_sq, copies, group, eps,
    factor=None,
):  # fmt: skip
    return None


@torch.library.register_fake("fvae::packed_bits", lib=LIBRARY)
def _(x):
    return x.new_empty(x.numel() // 8, dtype=torch.uint8), x.new_empty((), dtype=torch.bool)


@torch.library.register_fake("fvae::conv_from_bits", lib=LIBRARY)
def _(bits, side, weight, bias):
    images = bits.numel() * 8 // side**2
    return weight.new_empty((images, side // 2, side // 2, weight.shape[0]))


@torch.library.register_fake("fvae::conv_from_bits_backward", lib=LIBRARY)
def _(grad, y, bits):
    channels = y.shape[-1]
    sums = y.new_empty((channels, 1, 4, 4), dtype=torch.float32)
    return sums, sums.new_empty(channels)


@torch.library.register_fake("fvae::conv_to_pixels", lib=LIBRARY)
def _(x, weight, bias, relu):
    images, height, width, _ = x.shape
    return x.new_empty((images, 2 * height, 2 * width, weight.shape[1]))


@torch.library.register_fake("fvae::conv_to_pixels_backward", lib=LIBRARY)
def _(grad, x, weight, relu, need_x):
    grad_x = x.new_empty(x.shape if need_x else 0)
    sums = x.new_empty(weight.shape, dtype=torch.float32)
    return grad_x, sums, sums.new_empty(weight.shape[1])


@torch.library.register_fake("fvae::conv4x4", lib=LIBRARY)
def _(x, weight, bias, relu, transposed):
    images, height, width, _ = x.shape
    if transposed:
        return x.new_empty((images, 2 * height, 2 * width, weight.shape[3]))
    return x.new_empty((images, height // 2, width // 2, weight.shape[0]))


@torch.library.register_fake("fvae::conv4x4_backward", lib=LIBRARY)
def _(grad, y, x, weight, transposed, need_x):
    grad_x = x.new_empty(x.shape if need_x else 0)
    sums = x.new_empty(weight.shape, dtype=torch.float32)
    return grad_x, sums, sums.new_empty(grad.shape[3])


@torch.library.register_fake("fvae::philox_words", lib=LIBRARY)
def _(seed, step, stream, index):
    return index.new_empty((*seed.shape, index.shape[0], 4))


@torch.library.register_fake("fvae::fused_adam", lib=LIBRARY)
def _(steps, settings, params, grads, exp_avg, exp_avg_sq, copies, groups, eps, found_inf=None):
    return None


@torch.library.register_fake("fvae::metric_votes", lib=LIBRARY)
def _(
    codes, factor_sizes, votes, samples, balanced, scale, active, seed, step, lane, offsets=None,
    rows=None,
):  # fmt: skip
    shape = (codes.shape[0], codes.shape[2], len(factor_sizes))
    return codes.new_empty(shape, dtype=torch.int64)


@torch.library.register_fake("fvae::pair_features", lib=LIBRARY)
def _(codes, factor_sizes, points, pairs, balanced, seed, step, lane, offsets=None, rows=None):
    features = codes.new_empty((codes.shape[0], points, codes.shape[2]), dtype=torch.float32)
    return features, codes.new_empty((points,), dtype=torch.int64)


@torch.library.register_fake("fvae::grouped_variance", lib=LIBRARY)
def _(codes, factor_sizes, offsets=None, rows=None):
    shape = (codes.shape[0], sum(factor_sizes), codes.shape[2])
    return codes.new_empty(shape, dtype=torch.float32)


@torch.library.register_fake("fvae::boosted_trees", lib=LIBRARY)
def _(codes, labels, classes, test, stages, rate):
    importance = codes.new_empty((len(classes), codes.shape[1]), dtype=torch.float64)
    scores = sum(n if n > 2 else 1 for n in classes)
    return importance, codes.new_empty((test.shape[0], scores), dtype=torch.float64)
