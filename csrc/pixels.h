// Losses of pixels, their gradients and their sums on a CPU, an image at a time.
//
// No PyTorch in here: plain pointers in, plain pointers out.
#pragma once

#include <cstdint>

#include "exponential.h"

namespace fvae::host {

// log(1 + e^l) - l x, and sigmoid(l) - x.
struct Bernoulli {
  // From this logit down the sigmoid is 0 instead of less than 1e-30: whose products a processor has no
  // normal numbers for, and is slow with.
  static constexpr int black = -69;

  template <class F, class Vector>
  FVAE_HD static Vector loss(Vector l, Vector x, Vector& gradient) {
    const Vector none{}, size = l < none ? -l : l;  // of no number itself
    const Vector e = exponential(size > F(-black) ? none + F(black) : -size);
    const Vector part = F(1) / (e + F(1)), chance = l < none ? e * part : part;
    gradient = (l <= F(black) ? none : chance) - x;
    return (l > none ? l : none) + log_of_1_and(e) - l * x;
  }
};

// (m - x)^2 / 2, and m - x.
struct Gaussian {
  template <class F, class Vector>
  FVAE_HD static Vector loss(Vector m, Vector x, Vector& gradient) {
    gradient = m - x;
    return F(0.5) * gradient * gradient;
  }
};

// The sum of an image's losses; out [n] becomes scale times its gradient. Both arrays may be read up to
// a whole vector.
template <class Loss, class F>
FVAE_HD double image_loss(int64_t n, F scale, F* out, const F* x) {
  using Vector = typename Wide<F>::Vector;
  constexpr int lanes = Wide<F>::lanes;
  constexpr int64_t at_once = 32 * lanes;  // losses that are summed in their own dtype
  double total = 0;
  for (int64_t first = 0; first < n; first += at_once) {
    const int64_t end = first + at_once < n ? first + at_once : n;
    Vector sum{};
    for (int64_t i = first; i < end; i += lanes) {
      Vector gradient;
      Vector loss = Loss::template loss<F>(vector_at(out + i), vector_at(x + i), gradient);
      for (int w = int(end - i); w < lanes; ++w) loss[w] = 0;
      put(out + i, gradient * scale);
      sum += loss;
    }
    for (int w = 0; w < lanes; ++w) total += sum[w];
  }
  return total;
}

// Pixels from bits, the lowest first; up to seven more are written.
FVAE_HD void unpack_bits(int64_t bytes, const uint8_t* from, float* to) {
  using Integers = Wide<float>::Integers;
  const Integers bit = {1, 2, 4, 8, 16, 32, 64, 128};
  for (int64_t i = 0; i < bytes; ++i) {
    const Integers set = ((Integers{} + from[i]) & bit) != 0;
    put(to + 8 * i, __builtin_convertvector(-set, Floats));
  }
}

FVAE_HD void unpack_bits(int64_t bytes, const uint8_t* from, double* to) {
  for (int64_t i = 0; i < bytes; ++i)
    for (int b = 0; b < 8; ++b) to[8 * i + b] = from[i] >> b & 1;
}

// Whether all are in 0..1; no number is not.
template <class F>
FVAE_HD bool in_unit(int64_t n, const F* x) {
  int64_t outside = 0;
  for (int64_t i = 0; i < n; ++i) outside += !(x[i] >= 0 && x[i] <= 1);
  return outside == 0;
}

}  // namespace fvae::host
