// Adam's update of many weights on a CPU, in one pass over memory.
//
// No PyTorch in here: plain pointers in, plain pointers out. Each operation is rounded by itself, so
// that a weight has the same bits wherever it stands in a vector, on every processor. Whoever includes
// this sees to that, and compiles it with -fno-math-errno: a vector's roots set none.
#pragma once

#include <cstdint>

#include "codes.h"

namespace fvae::host {

// What the weights of a tensor share.
struct AdamScales {
  float beta1, rest1;  // and 1 - beta1
  float beta2, rest2;
  float step;  // lr / (1 - beta1^t)
  float root;  // 1 / sqrt(1 - beta2^t)
  float eps;
};

// In place of copies that nobody wants.
struct Nothing {};
FVAE_HD void put_as(Nothing*, float) {}

// n weights p with gradients g and moments m and v; `copy` gets the new weights rounded.
template <class G, class C>
FVAE_HD void adam(const AdamScales& s, int64_t n, float* __restrict p, const G* __restrict g,
                  float* __restrict m, float* __restrict v, C* __restrict copy) {
  for (int64_t i = 0; i < n; ++i) {
    const float x = wide(g[i]);
    const float mean = s.beta1 * m[i] + s.rest1 * x;
    const float square = s.beta2 * v[i] + s.rest2 * x * x;
    const float next = p[i] - s.step * mean / (__builtin_sqrtf(square) * s.root + s.eps);
    m[i] = mean, v[i] = square, p[i] = next;
    put_as(copy + i, next);
  }
}

}  // namespace fvae::host
