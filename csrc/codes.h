// Codes of M models and their three types, on the host and on the device.
#pragma once

#include "grid.h"

namespace fvae {

struct BFloat16 {
  uint16_t bits;
};

// The arithmetic of a code: float32, or float64 where it came as that.
FVAE_HD float wide(float x) { return x; }
FVAE_HD double wide(double x) { return x; }
FVAE_HD float wide(BFloat16 x) {
  union {
    uint32_t bits;
    float value;
  } both;
  both.bits = uint32_t(x.bits) << 16;
  return both.value;
}

// [M, N, d], row-major.
template <class T>
struct Codes {
  const T* data;
  int64_t models, rows, dims;

  FVAE_HD const T* model(int64_t m) const { return data + m * rows * dims; }
};

}  // namespace fvae
