// A full grid of factor classes: which rows of the codes have a value of a factor.
#pragma once

#include "philox.h"

namespace fvae {

// 31 factors of two values are 2^31 rows, the most that a 32-bit word can choose from.
constexpr int kMaxFactors = 31;

// Numbers of one factor: the grid's rows are outer x size x stride, the last varying fastest.
struct Factor {
  uint32_t size;
  uint32_t stride;  // rows between neighbouring values
  uint32_t outer;

  FVAE_HD uint32_t images() const { return outer * stride; }  // rows that have one value

  // The r-th row that has the value, r = word * images >> 32. Its r / stride needs no division: it
  // is the floor of a floor, word * outer >> 32.
  FVAE_HD uint32_t drawn(uint32_t word, uint32_t value) const {
    const uint32_t quotient = bounded(word, outer);
    return bounded(word, images()) + quotient * (stride * (size - 1)) + value * stride;
  }

  // The r-th row that has the value.
  FVAE_HD uint32_t row(uint32_t r, uint32_t value) const {
    return r + r / stride * (stride * (size - 1)) + value * stride;
  }
};

// A walk over the rows that have a value, from the r-th on and `step` at a time: where it is in the
// codes, with no division on the way.
struct Walk {
  uint32_t row;
  uint32_t place, stride;  // in a run of `stride` neighbouring rows
  uint32_t gap;            // rows from a run's end to the next run
  uint32_t ahead, shift;   // of the row and of the place, by one step

  FVAE_HD Walk(const Factor& factor, uint32_t value, uint32_t r, uint32_t step)
      : row(factor.row(r, value)),
        place(r % factor.stride),
        stride(factor.stride),
        gap(factor.stride * (factor.size - 1)),
        ahead(step + step / factor.stride * gap),
        shift(step % factor.stride) {}

  FVAE_HD void next() {
    row += ahead;
    place += shift;
    if (place < stride) return;
    place -= stride;
    row += gap;
  }
};

struct Grid {
  int factors;
  Factor factor[kMaxFactors];

  // The factor of a group, numbered by factor and then by value; leaves the value in `group`.
  FVAE_HD int factor_of(int64_t& group) const {
    int k = 0;
    while (group >= factor[k].size) group -= factor[k++].size;
    return k;
  }
};

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
};

// How a set of draws opens. It owns one counter index and `groups` more: words 0 and 1 of the first
// choose the fixed factor and its value, the others choose the samples.
struct Opening {
  int k;
  Factor factor;
  uint32_t value;
  uint32_t samples;  // counter index of the first sample

  FVAE_HD Opening(const Draws& draws, const Stream& stream, const Grid& grid, int64_t set,
                  int64_t groups) {
    const uint32_t index = uint32_t(set * (1 + groups));
    const Words head = philox(stream, index);
    k = draws.factor(set, head.w[0], grid.factors);
    factor = grid.factor[k];
    value = bounded(head.w[1], factor.size);
    samples = index + 1;
  }
};

}  // namespace fvae
