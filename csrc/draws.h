// Sets of samples that share a value of a factor: which words of the counter choose what.
#pragma once

#include "philox.h"

namespace fvae {

// A kind of draw: `count` sets of L, whose fixed factor takes turns or is random.
struct Draws {
  Stream stream;
  int64_t count;
  int64_t samples;  // L
  bool balanced;

  // The fixed factor of a set, from word 0 of its first counter index.
  FVAE_HD int factor(int64_t set, uint32_t word, int factors) const {
    return balanced ? int(set % factors) : int(bounded(word, uint32_t(factors)));
  }

  // The first counter index of a set that has `groups` of them for its samples.
  FVAE_HD static uint32_t opening(int64_t set, int64_t groups) {
    return uint32_t(set * (1 + groups));
  }
};

// How a set of draws opens. It owns one counter index and `groups` more: words 0 and 1 of the first
// choose the fixed factor and its value, the others choose the samples.
struct Opening {
  int k;
  uint32_t chooser;  // of the value
  uint32_t samples;  // counter index of the first sample

  Opening() = default;
  FVAE_HD Opening(const Draws& draws, const Words& head, int factors, int64_t set, int64_t groups)
      : k(draws.factor(set, head.w[0], factors)),
        chooser(head.w[1]),
        samples(draws.opening(set, groups) + 1) {}
  FVAE_HD Opening(const Draws& draws, const Stream& stream, int factors, int64_t set,
                  int64_t groups)
      : Opening(draws, philox(stream, draws.opening(set, groups)), factors, set, groups) {}
};

}  // namespace fvae
