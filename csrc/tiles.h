// Products of blocks of 32 x 32 numbers in bfloat16: in tiles (AMX), where the processor has them,
// which is found out when the program runs; in loops, for the same result, elsewhere.
#pragma once

#include "convs.h"

// GCC knows tiles from version 11 on.
#if defined(__x86_64__) && defined(__linux__) && !defined(__clang__) && __GNUC__ >= 11 && \
    !defined(FVAE_ONE_TARGET)
#define FVAE_TILES 1
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fvae::host {

inline void multiply_in_loops(const Segment* segments, int count, int rows, int columns, bool add,
                              float* sums, int64_t row) {
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < columns; ++c) {
      float sum = add ? sums[r * row + c] : 0.0f;
      for (const Segment* s = segments; s < segments + count; ++s)
        for (int64_t u = 0; u < s->steps * kPart; ++u) {
          const auto* const a = reinterpret_cast<const BFloat16*>(s->a + r * s->a_row) + 2 * u;
          const auto* const b = reinterpret_cast<const BFloat16*>(
                                    s->b + u / kPart * s->b_step + u % kPart * s->b_row +
                                    c / kPart * s->b_next) + c % kPart * 2;
          sum += wide(a[0]) * wide(b[0]) + wide(a[1]) * wide(b[1]);
        }
      sums[r * row + c] = sum;
    }
}

#ifdef FVAE_TILES

#define FVAE_AMX __attribute__((target("amx-tile,amx-bf16")))

FVAE_AMX inline void multiply_in_tiles(const Segment* segments, int count, int rows, int columns,
                                       bool add, float* sums, int64_t row) {
  const bool low = rows > kPart, right = columns > kPart;
  const int64_t bytes = row * int64_t(sizeof(float));
  float *const below = sums + kPart * row, *const beside = sums + kPart;
  if (add) {
    _tile_loadd(0, sums, bytes);
    if (right) _tile_loadd(1, beside, bytes);
    if (low) _tile_loadd(2, below, bytes);
    if (low && right) _tile_loadd(3, below + kPart, bytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (const Segment* s = segments; s < segments + count; ++s) {
    const char *a = s->a, *b = s->b;
    for (int64_t step = 0; step < s->steps; ++step, a += kRow, b += s->b_step) {
      _tile_loadd(4, a, s->a_row);
      _tile_loadd(6, b, s->b_row);
      _tile_dpbf16ps(0, 4, 6);
      if (right) {
        _tile_loadd(7, b + s->b_next, s->b_row);
        _tile_dpbf16ps(1, 4, 7);
      }
      if (low) {
        _tile_loadd(5, a + kPart * s->a_row, s->a_row);
        _tile_dpbf16ps(2, 5, 6);
        if (right) _tile_dpbf16ps(3, 5, 7);
      }
    }
  }
  _tile_stored(0, sums, bytes);
  if (right) _tile_stored(1, beside, bytes);
  if (low) _tile_stored(2, below, bytes);
  if (low && right) _tile_stored(3, below + kPart, bytes);
}

// Linux lends a process the tiles' registers when it asks.
inline bool tiles_are_lent() {
  constexpr int kAsk = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kAsk, kTileData) == 0;
}

inline bool found_tiles() {
  // GCC 12 has no names for these: AMX-BF16 and AMX-TILE.
  unsigned a, b, c, d;
  __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(0));
  return d >> 22 & 1 && d >> 24 & 1 && tiles_are_lent();
}

inline bool has_tiles() {
  static const bool found = __builtin_cpu_supports("avx512bw") && found_tiles();
  return found;
}

inline Multiply multiply_here() { return has_tiles() ? multiply_in_tiles : multiply_in_loops; }

// Within its life this thread's tiles are 16 rows of 64 bytes each; whoever had them before finds
// them as they were set.
class TilesOn {
 public:
  TilesOn() : on_(has_tiles()) {
    if (on_) begin();
  }
  ~TilesOn() {
    if (on_) end();
  }
  TilesOn(const TilesOn&) = delete;

 private:
  struct alignas(kRow) Shape {
    uint8_t palette, start, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  };

  FVAE_AMX void begin() {
    // GCC takes note of the first eight bytes alone that these instructions write and read.
    __asm__ volatile("" : : "r"(&before_) : "memory");
    _tile_storeconfig(&before_);
    Shape ours{};
    ours.palette = 1;
    for (int t = 0; t < 8; ++t) ours.row_bytes[t] = kRow, ours.rows[t] = kPart;
    __asm__ volatile("" : : "r"(&ours), "r"(&before_) : "memory");
    _tile_loadconfig(&ours);
  }
  FVAE_AMX void end() {
    if (before_.palette)
      _tile_loadconfig(&before_);
    else
      _tile_release();
  }

  bool on_;
  Shape before_{};
};

#else

inline bool has_tiles() { return false; }
inline Multiply multiply_here() { return multiply_in_loops; }
struct TilesOn {
  TilesOn() {}
};

#endif

}  // namespace fvae::host
