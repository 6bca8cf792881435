"""Tile sizes and warps of every kernel, by op and width: the one table.

Chosen by what the kernels compile to (``python -m fvae.kernels.report``); tuning on a GPU runs
from bench/, never at import and never inside a graph capture.
"""

import triton

#: gather_batch: 32-bit words of a store's row a program unpacks, and warps, by form of the store.
GATHER_WORDS = {"bits": 128, "bytes": 1024}
GATHER_WARPS = {"bits": 1, "bytes": 4}

#: reparameterize: counter indices (four elements each) a program, elements of a tile of the KL.
NOISE_GROUPS = 128
KL_ELEMENTS = 1024

#: permute_dims: largest batch that one program sorts; beyond it, a segmented sort and a gather,
#: whose keys a program draws in so many counter indices.
SORT_ROWS = 4096
KEY_GROUPS = 256

#: logit_ratio: rows of a tile.
LOGIT_ROWS = 1024

#: bernoulli_nll: pixels a program walks, how many at a time, and partial sums added in one go.
NLL_PIXELS, NLL_TILE, NLL_PARTIALS = 8192, 2048, 1024

#: Warps where no line above says otherwise.
WARPS = 4


def sort_warps(size: int) -> int:
    """Warps of a program that sorts ``size`` rows: eight keys a thread, up to sixteen warps."""
    return max(1, min(16, size // 256))


def kl_rows(rows: int, width: int) -> int:
    """Rows of a tile of the KL's columns, for B rows of ``width`` columns (a power of two)."""
    return max(1, min(KL_ELEMENTS // width, triton.next_power_of_2(rows)))
