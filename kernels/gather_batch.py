"""gather_batch: indices, gather, unpack of bits or bytes, and cast in one launch."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fvae.kernels import tiles
from fvae.kernels.launch import check_below, jit, launch
from fvae.kernels.rng import four_words
from fvae.philox import Stream


@jit("data_ptr", "x_ptr", "words")
def gather_batch_kernel(
    data_ptr,  # the store's rows as 32-bit words, [N, words]
    x_ptr,  # [keys, B, pixels]
    index_ptr,  # int64 [keys, B]
    seed_ptr,  # int64 [] or [M]
    step_ptr,  # int64 []
    key_stride,  # 0 or 1
    stream,
    images,  # N
    batch,  # B
    words,  # 32-bit words of a row
    PACKED: tl.constexpr,
    WORDS: tl.constexpr,
):
    """x[b] = unpack(data[word_b * N >> 32]): a word holds 32 pixels of one bit, or 4 of a byte."""
    b, part, key = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    seed = tl.load(seed_ptr + key * key_stride)
    step = tl.load(step_ptr)
    w0, w1, w2, w3 = four_words(seed, step, tl.zeros([1], tl.int32) + b // 4, stream)
    lane = b % 4
    drawn = tl.where(lane == 0, w0, tl.where(lane == 1, w1, tl.where(lane == 2, w2, w3)))
    index = tl.sum((drawn.to(tl.uint64) * images) >> 32, axis=0).to(tl.int64)
    out = key.to(tl.int64) * batch + b
    if part == 0:
        tl.store(index_ptr + out, index)

    PIXELS: tl.constexpr = 32 if PACKED else 4
    word = part * WORDS + tl.arange(0, WORDS)
    inside = word < words
    value = tl.load(data_ptr + index * words + word, mask=inside, other=0)
    pixel = tl.arange(0, PIXELS)
    if PACKED:
        x = ((value[:, None] >> pixel[None, :]) & 1).to(tl.float32)
    else:
        x = ((value[:, None] >> (8 * pixel[None, :])) & 0xFF).to(tl.float32) * (1.0 / 255.0)
    # As one row, so that a thread stores 16 bytes whatever the dtype.
    x = tl.reshape(x.to(x_ptr.dtype.element_ty), [WORDS * PIXELS])
    at = part * WORDS * PIXELS + tl.arange(0, WORDS * PIXELS)
    tl.store(x_ptr + out * words * PIXELS + at, x, mask=at < words * PIXELS)


def gather_batch(
    data: Tensor,
    image_shape: list[int],
    packed: bool,
    batch_size: int,
    seed: Tensor,
    step: Tensor,
    lane: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Triton backend of ``fvae::gather_batch``.

    Raises:
        ValueError: the store's rows are not contiguous, or no whole number of four bytes, or too
            many or too long for integers of 32 bits.
    """
    if not data.is_contiguous() or data.shape[1] % 4 or data.storage_offset() % 4:
        raise ValueError(
            f"store.data: got rows of {data.shape[1]} bytes, contiguous: {data.is_contiguous()};"
            " backend='triton' needs contiguous rows of a multiple of 4 bytes, aligned to 4"
        )
    check_below("store.data", data.shape[0], (1 << 31) + 1, "rows")
    check_below("store.data", data.shape[1] * (8 if packed else 1), 1 << 31, "pixels a row")
    shape = (*seed.shape, batch_size)
    x = torch.empty((*shape, *image_shape), dtype=dtype, device=data.device)
    indices = torch.empty(shape, dtype=torch.int64, device=data.device)
    words = data.shape[1] // 4
    form = "bits" if packed else "bytes"
    tile = min(tiles.GATHER_WORDS[form], triton.next_power_of_2(words))
    launch(
        gather_batch_kernel,
        (batch_size, triton.cdiv(words, tile), seed.numel()),
        (
            data.view(torch.int32), x, indices, seed, step, int(seed.dim() == 1),
            Stream.BATCH.at(lane), data.shape[0], batch_size, words,
        ),
        PACKED=packed,
        WORDS=tile,
        num_warps=tiles.GATHER_WARPS[form],
    )  # fmt: skip
    return x, indices
