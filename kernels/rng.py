"""Philox4x32-10 inside a kernel: the words of ``fvae.philox``, bit for bit."""

import triton
import triton.language as tl


@triton.jit
def four_words(seed, step, index, stream):
    """Return the four words, uint32, at each counter index (a tensor of 32-bit integers)."""
    low = index.to(tl.uint32)
    zero = low * 0
    step_low = zero + (step & 0xFFFFFFFF).to(tl.uint32)
    step_high = zero + ((step >> 32) & 0xFFFFFFFF).to(tl.uint32)
    # A stream of 2**31 or more comes as an integer of 64 bits.
    return tl.philox(seed, low, zero + stream.to(tl.uint32), step_low, step_high)


@triton.jit
def interleave(a, b, c, d):
    """Return [4n] with a[i], b[i], c[i], d[i] side by side."""
    pairs = tl.join(tl.join(a, c), tl.join(b, d))  # [n, 2, 2]: [i, 0] = a, b and [i, 1] = c, d
    return tl.reshape(pairs, [4 * a.shape[0]])


@triton.jit
def _cos_sin(turn):
    """Return cos and sin, float32, of 2 pi turn / 2**24, for integers 0 <= turn < 2**24.

    The reduction to [-pi/4, pi/4] is exact in integers; the library's own would keep a table in
    local memory for arguments that never come. Polynomials: Cephes, sinf.c and cosf.c.
    """
    quarter = (turn + 2097152) >> 22  # nearest quarter turn, 0 to 4
    rest = turn.to(tl.int32) - (quarter << 22).to(tl.int32)
    x = rest.to(tl.float32) * 3.7450702829239286e-07  # 2 pi 2**-24
    x2 = x * x
    s = -1.9515295891e-4 * x2 + 8.3321608736e-3
    s = ((s * x2 - 1.6666654611e-1) * x2) * x + x
    c = 2.443315711809948e-5 * x2 - 1.388731625493765e-3
    c = ((c * x2 + 4.166664568298827e-2) * x2 - 0.5) * x2 + 1.0
    odd = (quarter & 1) == 1
    first, second = tl.where(odd, s, c), tl.where(odd, c, s)
    cos = tl.where(((quarter + 1) & 2) == 2, -first, first)
    return cos, tl.where((quarter & 2) == 2, -second, second)


@triton.jit
def box_muller(w0, w1):
    """Return two standard normals, float32, from two words, as ``fvae.philox.normal`` does."""
    u = ((w0 >> 8) + 1).to(tl.float32) * 5.9604644775390625e-08  # 2**-24
    radius = tl.sqrt(-2.0 * tl.log(u))
    cos, sin = _cos_sin(w1 >> 8)
    return radius * cos, radius * sin


@triton.jit
def four_normals(seed, step, index, stream):
    """Return [4n] standard normals: element i is that of word ``i % 4`` of counter ``i // 4``."""
    w0, w1, w2, w3 = four_words(seed, step, index, stream)
    n0, n1 = box_muller(w0, w1)
    n2, n3 = box_muller(w2, w3)
    return interleave(n0, n1, n2, n3)
