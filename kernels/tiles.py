"""Tile sizes and warps of every kernel, by op and width: the one table.

Chosen by what the kernels compile to (``python -m fvae.kernels.report``); tuning on a GPU runs
from bench/, never at import and never inside a graph capture.
"""

import triton

#: gather_batch: 32-bit words of a store's row a program unpacks, and warps, by form of the store.
GATHER_WORDS = {"bits": 128, "bytes": 1024}
GATHER_WARPS = {"bits": 1, "bytes": 4}
#: Pixels a program of rows that are no whole words.
GATHER_BYTEWISE = 1024

#: reparameterize: counter indices (four elements each) a program; elements of a tile of the KL, and
#: programs that share the tiles of one model.
NOISE_GROUPS = 128
KL_ELEMENTS, KL_PROGRAMS = 1024, 256

#: permute_dims: largest batch that one program sorts; beyond it, a segmented sort and a gather,
#: whose keys a program draws in so many counter indices.
SORT_ROWS = 4096
KEY_GROUPS = 256

#: logit_ratio: rows a program.
LOGIT_ROWS = 512

#: bernoulli_nll, gaussian_nll: pixels of a tile, and programs that share the tiles of one model. A
#: batch of 64 images of one channel makes 256 programs of one tile.
NLL_TILE, NLL_PROGRAMS = 1024, 1024

#: pairwise_tc: numbers of rows, components and dimensions that a program has at hand.
PAIR_TERMS = 1024

#: activation_backward, bias_activation: numbers of a tile, channels of one at most, and programs
#: that share a tile of channels.
ACTIVATION_TILE, ACTIVATION_CHANNELS, ACTIVATION_PROGRAMS = 2048, 64, 256

#: linear_backward: rows and columns of a tile of a gradient, and products of an element in one go.
LINEAR_TILE, LINEAR_STEP = 32, 32

#: linear_adam: layers of one launch.
LINEAR_LAYERS = 8

#: fused_adam: elements a program; tensors whose scales a program makes; words of the table that one
#: launch writes; and lines that a program looks at, or more where there are more.
ADAM_TILE, ADAM_TENSORS, ADAM_WORDS, ADAM_LINES = 1024, 64, 256, 64

#: Partial sums that the last program adds in one go.
PARTIALS = 1024

#: Warps where no line above says otherwise.
WARPS = 4


def sort_warps(size: int) -> int:
    """Warps of a program that sorts ``size`` rows: four keys a thread, which need no spill."""
    return max(1, min(32, size // 128))


def kl_rows(rows: int, width: int) -> int:
    """Rows of a tile of the KL's columns, for B rows of ``width`` columns (a power of two)."""
    return max(1, min(KL_ELEMENTS // width, triton.next_power_of_2(rows)))


def pairs(width: int) -> tuple[int, int]:
    """Rows a program, and components in one go, of ``width`` dimensions (a power of two)."""
    rows = max(1, min(4, PAIR_TERMS // width))
    return rows, max(1, PAIR_TERMS // (rows * width))


def turns(tiles: int, programs: int) -> int:
    """Tiles that each program walks, so that at most so many programs share all of them."""
    return triton.cdiv(tiles, programs)
