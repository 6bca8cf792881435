// A full grid of factor classes: which rows of the codes have a value of a factor, by a formula.
//
// A source of rows is a Grid or, of anybody's labels, an Index. Its rows stand in groups, those of one
// value of one factor, numbered by factor and then by value. What the ops ask of it:
//
//   factors, groups()   how many there are
//   at(k)               factor k; chosen(word) of it is the group of the value that a word draws
//   number(k, word)     the number of that group
//   group(g), start(g)  a group; and how many rows stand before it if all groups stand in a row
//   searched            whether that takes a search, which narrow() of it makes shorter
//   row(place)          what stands at a place, which a group's drawn(word) gives: the row of the
//                       group numbered word * count() >> 32
//   walk(group, r, step)   a walk over its rows from the r-th on; r = count() is no row's
#pragma once

#include "philox.h"

namespace fvae {

// 31 factors of two values are 2^31 rows, the most that a 32-bit word can choose from.
constexpr int kMaxFactors = 31;

// Numbers of one factor: the grid's rows are outer x size x stride, the last varying fastest.
struct GridFactor {
  uint32_t size;
  uint32_t stride;  // rows between neighbouring values
  uint32_t outer;

  FVAE_HD uint32_t images() const { return outer * stride; }  // rows that have one value
  FVAE_HD struct GridGroup chosen(uint32_t word) const;
  FVAE_HD void narrow() {}
};

// The rows that have a value.
struct GridGroup {
  GridFactor factor;
  uint32_t value;

  FVAE_HD uint32_t count() const { return factor.images(); }

  // The r-th row, r = word * count >> 32. Its r / stride needs no division: it is the floor of a
  // floor, word * outer >> 32.
  FVAE_HD uint32_t drawn(uint32_t word) const {
    const uint32_t quotient = bounded(word, factor.outer);
    return bounded(word, count()) + quotient * gap() + value * factor.stride;
  }

  // The r-th row.
  FVAE_HD uint32_t row(uint32_t r) const {
    return r + r / factor.stride * gap() + value * factor.stride;
  }

  // Rows from the end of a run of neighbours to the next run.
  FVAE_HD uint32_t gap() const { return factor.stride * (factor.size - 1); }
};

FVAE_HD GridGroup GridFactor::chosen(uint32_t word) const { return {*this, bounded(word, size)}; }

// `step` rows at a time: where it is in the codes, with no division on the way.
class GridWalk {
 public:
  FVAE_HD GridWalk(const GridGroup& group, uint32_t r, uint32_t step)
      : at_(group.row(r)),
        place_(r % group.factor.stride),
        stride_(group.factor.stride),
        gap_(group.gap()),
        ahead_(step + step / stride_ * gap_),
        shift_(step % stride_) {}

  FVAE_HD uint32_t row() const { return at_; }
  FVAE_HD void next() {
    at_ += ahead_;
    place_ += shift_;
    if (place_ < stride_) return;
    place_ -= stride_;
    at_ += gap_;
  }

 private:
  uint32_t at_;
  uint32_t place_, stride_;  // in a run of `stride` neighbouring rows
  uint32_t gap_;             // rows from a run's end to the next run
  uint32_t ahead_, shift_;   // of the row and of the place, by one step
};

struct Grid {
  using Factor = GridFactor;
  using Group = GridGroup;
  static constexpr bool searched = false;
  int factors;
  GridFactor factor[kMaxFactors];

  FVAE_HD const GridFactor& at(int k) const { return factor[k]; }

  FVAE_HD int64_t groups() const {
    int64_t sum = 0;
    for (int k = 0; k < factors; ++k) sum += factor[k].size;
    return sum;
  }

  FVAE_HD int64_t number(int k, uint32_t word) const {
    int64_t sum = bounded(word, factor[k].size);
    for (int i = 0; i < k; ++i) sum += factor[i].size;
    return sum;
  }

  FVAE_HD GridGroup group(int64_t g) const {
    const int k = factor_of(g);
    return {factor[k], uint32_t(g)};
  }

  FVAE_HD int64_t start(int64_t g) const {
    const int k = factor_of(g);
    const int64_t rows = int64_t(factor[0].size) * factor[0].images();
    return k * rows + (k < factors ? g * factor[k].images() : 0);
  }

  FVAE_HD uint32_t row(uint32_t place) const { return place; }
  FVAE_HD static GridWalk walk(const GridGroup& group, uint32_t r, uint32_t step) {
    return {group, r, step};
  }

 private:
  // The factor of a group; leaves the value in `group`. Of the number after the last, `factors`.
  FVAE_HD int factor_of(int64_t& group) const {
    int k = 0;
    while (k < factors && group >= factor[k].size) group -= factor[k++].size;
    return k;
  }
};

}  // namespace fvae
