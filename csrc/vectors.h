// Vectors of floats in as many lanes as a processor has, and functions compiled for each width.
#pragma once

#include <cstdint>
#include <cstring>

#include "host.h"

namespace fvae::host {

// So many numbers at once: 16, or 8 where the processor has no such vectors, since GCC takes these
// through memory then.
template <int lanes>
struct Several {
  typedef float Vector __attribute__((vector_size(4 * lanes)));

  FVAE_HD static Vector at(const float* from) {
    Vector found;
    std::memcpy(&found, from, sizeof found);
    return found;
  }
  FVAE_HD static void put(float* to, Vector x) { std::memcpy(to, &x, sizeof x); }
};
constexpr int kMostLanes = 16;

// One binary for every processor needs functions of one type each: a clone is of no template.
// What is made of vectors there is in two widths.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(FVAE_ONE_TARGET)
#define FVAE_WIDE __attribute__((flatten, target("arch=x86-64-v4")))
inline const bool kWideVectors =
    __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
    __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
    __builtin_cpu_supports("avx512vl");
#else
#define FVAE_WIDE
constexpr bool kWideVectors = false;
#endif

inline int64_t up_to(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

}  // namespace fvae::host
