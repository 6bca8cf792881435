// Vectors of 32 bytes, and exponentials of them. GCC takes wider ones through memory where the
// processor has none, at seven times the time.
#pragma once

#include <cmath>
#include <cstdint>

#include "codes.h"

namespace fvae::host {

template <class F>
struct Wide;

template <>
struct Wide<float> {
  static constexpr int lanes = 8;
  typedef float Vector __attribute__((vector_size(32)));
  typedef int32_t Integers __attribute__((vector_size(32)));
};

template <>
struct Wide<double> {
  static constexpr int lanes = 4;
  typedef double Vector __attribute__((vector_size(32)));
};

using Floats = Wide<float>::Vector;
using Doubles = Wide<double>::Vector;

template <class F>
FVAE_HD typename Wide<F>::Vector vector_at(const F* p) {
  typename Wide<F>::Vector v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

template <class F>
FVAE_HD void put(F* p, typename Wide<F>::Vector v) {
  __builtin_memcpy(p, &v, sizeof v);
}

// e^x, relative error below 2e-7; 0 below e^-87, NaN of NaN. x is at most 88.
FVAE_HD Floats exponential(Floats x) {
  using Integers = Wide<float>::Integers;
  const Floats low = x < -87.0f ? Floats{} - 87.0f : x;
  // The nearest multiple of log 2 is taken away, in two parts, of which the first is exact.
  constexpr float to_integer = 12582912.0f;
  const Floats n = (low * 1.44269504f + to_integer) - to_integer;
  const Floats r = (low - n * 0.693359375f) + n * 2.12194440e-4f;
  Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const Integers power = (__builtin_convertvector(n, Integers) + 127) << 23;
  const Floats found = p * (Floats)power;
  return x < -87.0f ? Floats{} : found;
}

FVAE_HD Doubles exponential(Doubles x) {
  Doubles found;
  for (int w = 0; w < Wide<double>::lanes; ++w) found[w] = std::exp(x[w]);
  return found;
}

// log(1 + x) of x in 0..1: 2 artanh(x / (2 + x)), whose series is short there, and exact for small x.
FVAE_HD Floats log_of_1_and(Floats x) {
  const Floats s = x / (x + 2.0f), q = s * s;
  Floats p = q * (1.0f / 13) + 1.0f / 11;
  p = p * q + 1.0f / 9;
  p = p * q + 1.0f / 7;
  p = p * q + 1.0f / 5;
  p = p * q + 1.0f / 3;
  return (p * q * s + s) * 2.0f;
}

FVAE_HD Doubles log_of_1_and(Doubles x) {
  Doubles found;
  for (int w = 0; w < Wide<double>::lanes; ++w) found[w] = std::log1p(x[w]);
  return found;
}

}  // namespace fvae::host
