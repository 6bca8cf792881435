// Codes of M models and their four types, on the host and on the device; numbers of these types.
#pragma once

#include "grid.h"

namespace fvae {

struct BFloat16 {
  uint16_t bits;
};

struct Half {
  uint16_t bits;
};

union Bits {
  uint32_t bits;
  float value;
};

FVAE_HD float float_of(uint32_t bits) {
  Bits both;
  both.bits = bits;
  return both.value;
}

FVAE_HD uint32_t bits_of(float value) {
  Bits both;
  both.value = value;
  return both.bits;
}

// The arithmetic of a code: float32, or float64 where it came as that.
FVAE_HD float wide(float x) { return x; }
FVAE_HD double wide(double x) { return x; }
FVAE_HD float wide(BFloat16 x) { return float_of(uint32_t(x.bits) << 16); }
// By masks alone, which become vectors. Where the exponent is 0 there is no leading one: it is put
// there and taken away, by way of no subnormal float, which a processor may flush.
FVAE_HD float wide(Half x) {
  const uint32_t half = x.bits;
  const uint32_t exponent = half & 0x7c00;
  const uint32_t subnormal = 0u - uint32_t(exponent == 0), special = 0u - uint32_t(exponent == 0x7c00);
  const uint32_t bits = ((half & 0x7fff) << 13) + (112u << 23) + (special & (112u << 23)) +
                        (subnormal & (1u << 23));
  const float size = float_of(bits) - float_of(subnormal & (113u << 23));
  return float_of(bits_of(size) | (half & 0x8000) << 16);
}

// A number in its own dtype, rounded to the nearest, ties to even. Without a branch: these become
// vectors too.
FVAE_HD void put_as(float* to, float x) { *to = x; }
FVAE_HD void put_as(double* to, double x) { *to = x; }
FVAE_HD void put_as(BFloat16* to, float x) {
  const uint32_t bits = bits_of(x);
  to->bits = uint16_t(x != x ? (bits >> 16) | 64 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
FVAE_HD void put_as(Half* to, float x) {
  const uint32_t bits = bits_of(x) & 0x7fffffff;
  const float size = float_of(bits);
  const uint32_t normal = (bits + 0xfff + (bits >> 13 & 1) - (112u << 23)) >> 13;
  // The last bit of a number near 0.5 is a subnormal one.
  const uint32_t subnormal = bits_of(size + 0.5f) - bits_of(0.5f);
  uint32_t found = size < 0x1p-14f ? subnormal : normal;
  found = size >= 65520.0f ? 0x7c00 : found;
  found = x != x ? 0x7e00 : found;
  to->bits = uint16_t((bits_of(x) >> 16 & 0x8000) | found);
}

// [M, N, d], row-major.
template <class T>
struct Codes {
  const T* data;
  int64_t models, rows, dims;

  FVAE_HD const T* model(int64_t m) const { return data + m * rows * dims; }
};

}  // namespace fvae
