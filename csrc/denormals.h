// Numbers below the smallest normal one, 1.2e-38 in float32, taken as 0 for a while.
//
// A processor computes with them in microcode, a hundred times slower. What decays by a factor each
// step ends there and never leaves: 0.9 times four of the smallest numbers rounds to four.
#pragma once

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace fvae::host {

// While it lives, this thread reads such numbers as 0 and makes none; the thread's mode comes back.
// What computes meanwhile is another function, which no compiler moves over it.
class NoDenormals {
 public:
  NoDenormals(const NoDenormals&) = delete;
  NoDenormals& operator=(const NoDenormals&) = delete;
#if defined(__x86_64__)
  NoDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | kFlushToZero | kDenormalsAreZero); }
  ~NoDenormals() { _mm_setcsr(before_); }

 private:
  static constexpr unsigned kFlushToZero = 0x8000, kDenormalsAreZero = 0x0040;
  const unsigned before_;
#else
  NoDenormals() {}
#endif
};

}  // namespace fvae::host
