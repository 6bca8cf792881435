"""gather_batch: indices, gather, unpack of bits or bytes, and cast in one launch."""

from math import prod

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
    data_ptr,  # the store's rows as 32-bit words, [N, words]; or as bytes, [N, bytes]
    x_ptr,  # [keys, B, pixels]
    index_ptr,  # int64 [keys, B]
    seed_ptr,  # int64 [] or [M]
    step_ptr,  # int64 []
    table_ptr,  # int64 [N], keep << 31 | alias; unread where ALIAS is 0
    key_stride,  # 0 or 1
    stream,
    images,  # N
    batch,  # B
    words,  # 32-bit words of a row; of bytes, the pixels of an image
    row_stride,  # of bytes: from row to row
    byte_stride,  # of bytes: from byte to byte of a row
    PACKED: tl.constexpr,
    BYTEWISE: tl.constexpr,
    WORDS: tl.constexpr,
    ALIAS: tl.constexpr,  # from the stream of indices to that of aliases, or 0
):
    """x[b] = unpack(data[word_b * N >> 32]): a word holds 32 pixels of one bit, or 4 of a byte."""
    b, part, key = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    seed = tl.load(seed_ptr + key * key_stride)
    step = tl.load(step_ptr)
    w0, w1, w2, w3 = four_words(seed, step, tl.zeros([1], tl.int32) + b // 4, stream)
    lane = b % 4
    drawn = tl.where(lane == 0, w0, tl.where(lane == 1, w1, tl.where(lane == 2, w2, w3)))
    index = tl.sum((drawn.to(tl.uint64) * images) >> 32, axis=0).to(tl.int64)
    if ALIAS:
        w0, w1, w2, w3 = four_words(seed, step, tl.zeros([1], tl.int32) + b // 4, stream + ALIAS)
        drawn = tl.where(lane == 0, w0, tl.where(lane == 1, w1, tl.where(lane == 2, w2, w3)))
        entry = tl.load(table_ptr + index)
        stays = tl.sum(drawn.to(tl.int64), axis=0) < (entry >> 31)
        index = tl.where(stays, index, entry & 0x7FFFFFFF)
    out = key.to(tl.int64) * batch + b
    if part == 0:
        tl.store(index_ptr + out, index)

    if BYTEWISE:
        pixel = part * WORDS + tl.arange(0, WORDS)
        inside = pixel < words
        byte = (pixel // 8 if PACKED else pixel).to(tl.int64)
        value = tl.load(data_ptr + index * row_stride + byte * byte_stride, mask=inside, other=0)
        if PACKED:
            x = ((value.to(tl.int32) >> (pixel % 8)) & 1).to(tl.float32)
        else:
            x = value.to(tl.float32) * (1.0 / 255.0)
        tl.store(x_ptr + out * words + pixel, x.to(x_ptr.dtype.element_ty), mask=inside)
    else:
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
    table: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Triton backend of ``fvae::gather_batch``.

    Rows that are whole words in one piece are read as words; any others byte by byte, where they
    are. A draw by weight takes a second word and one entry of the table, in the same launch.

    Raises:
        ValueError: the store's rows are too many or too long for integers of 32 bits.
    """
    pixels = prod(image_shape)
    check_below("store.data", data.shape[0], (1 << 31) + 1, "rows")
    check_below("store.data", data.shape[1] * (8 if packed else 1), 1 << 31, "pixels a row")
    shape = (*seed.shape, batch_size)
    x = torch.empty((*shape, *image_shape), dtype=dtype, device=data.device)
    indices = torch.empty(shape, dtype=torch.int64, device=data.device)
    bytewise = bool(
        pixels % (32 if packed else 4) or not data.is_contiguous() or data.storage_offset() % 4
    )
    form = "bits" if packed else "bytes"
    if bytewise:
        count, largest, warps = pixels, tiles.GATHER_BYTEWISE, tiles.WARPS
    else:
        count, largest = data.shape[1] // 4, tiles.GATHER_WORDS[form]
        warps = tiles.GATHER_WARPS[form]
    tile = min(largest, triton.next_power_of_2(count))
    launch(
        gather_batch_kernel,
        (batch_size, triton.cdiv(count, tile), seed.numel()),
        (
            data if bytewise else data.view(torch.int32), x, indices, seed, step,
            step if table is None else table.contiguous(), int(seed.dim() == 1),
            Stream.BATCH.at(lane), data.shape[0], batch_size, count, *data.stride(),
        ),
        PACKED=packed,
        BYTEWISE=bytewise,
        WORDS=tile,
        ALIAS=0 if table is None else Stream.ALIAS - Stream.BATCH,
        num_warps=warps,
    )  # fmt: skip
    return x, indices
