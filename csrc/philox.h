// Philox4x32-10: four 32-bit words as a pure function of (key, counter), as fvae/philox.py has it.
//
// Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define FVAE_HD __host__ __device__ __forceinline__
#define FVAE_LAMBDA
#else
#define FVAE_HD inline __attribute__((always_inline))
// A lambda too must be inlined, or it is not compiled for its caller's processor.
#define FVAE_LAMBDA __attribute__((always_inline))
#endif

namespace fvae {

struct Words {
  uint32_t w[4];
};

// Key and the counter's last three words; only the first, the index, differs within a draw.
struct Stream {
  uint32_t key[2];
  uint32_t stream;
  uint32_t step[2];

  FVAE_HD static Stream of(int64_t seed, int64_t step, uint32_t stream) {
    return {{uint32_t(seed), uint32_t(uint64_t(seed) >> 32)},
            stream,
            {uint32_t(step), uint32_t(uint64_t(step) >> 32)}};
  }
};

FVAE_HD Words philox(Stream s, uint32_t index) {
  uint32_t c0 = index, c1 = s.stream, c2 = s.step[0], c3 = s.step[1];
  uint32_t k0 = s.key[0], k1 = s.key[1];
#ifdef __CUDACC__
#pragma unroll
#endif
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t(c0) * 0xD2511F53u;
    const uint64_t p1 = uint64_t(c2) * 0xCD9E8D57u;
    c0 = uint32_t(p1 >> 32) ^ c1 ^ k0;
    c2 = uint32_t(p0 >> 32) ^ c3 ^ k1;
    c1 = uint32_t(p1);
    c3 = uint32_t(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// floor(word * bound / 2^32), in [0, bound).
FVAE_HD uint32_t bounded(uint32_t word, uint32_t bound) {
  return uint32_t((uint64_t(word) * bound) >> 32);
}

}  // namespace fvae
