// Rows with labels, in any order and number: which of them have a value of a factor, by lists.
#pragma once

#include "philox.h"

namespace fvae {

// The greatest i in [0, n) with at(i) <= x; at(0) is. No branch to mispredict but the loop's.
template <class At>
FVAE_HD int64_t last_at_most(int64_t n, int64_t x, At at) {
  int64_t base = 0;
  while (n > 1) {
    const int64_t half = n / 2;
    base += at(base + half) <= x ? half : 0;
    n -= half;
  }
  return base;
}

// The rows that have a value: places [begin, begin + size) of all lists.
struct IndexGroup {
  int64_t begin;
  uint32_t size;

  FVAE_HD uint32_t count() const { return size; }
  FVAE_HD int64_t drawn(uint32_t word) const { return begin + bounded(word, size); }
};

class IndexWalk {
 public:
  FVAE_HD IndexWalk(const int32_t* from, uint32_t step) : at_(from), step_(step) {}

  FVAE_HD uint32_t row() const { return uint32_t(*at_); }
  FVAE_HD void next() { at_ += step_; }

 private:
  const int32_t* at_;
  uint32_t step_;
};

// The lists of each value of each factor. Those of one factor hold every row once, and each holds at
// least one, so that a place among all lists says by itself which list it is in.
struct Lists {
  int64_t count;
  const int64_t* offsets;  // [count + 1], where each begins in `rows`, and the end
  const int32_t* rows;     // [factors * N]

  FVAE_HD IndexGroup list(int64_t g) const {
    return {offsets[g], uint32_t(offsets[g + 1] - offsets[g])};
  }
};

struct IndexFactor {
  Lists lists;
  int64_t first;        // place of its first list
  uint32_t rows;        // N
  int64_t list, count;  // lists to look among, all until `narrow`

  // Look among its own lists, found by two searches more: for who chooses many times.
  FVAE_HD void narrow() {
    const int64_t begin = search(first);
    count = search(first + rows - 1) - begin + 1;
    list = begin;
  }

  // The group of a drawn row: a value is drawn as often as it occurs.
  FVAE_HD IndexGroup chosen(uint32_t word) const { return lists.list(number(word)); }
  FVAE_HD int64_t number(uint32_t word) const { return search(first + bounded(word, rows)); }

  // The list that a place is in.
  FVAE_HD int64_t search(int64_t place) const {
    const int64_t* offsets = lists.offsets + list;
    const auto offset = [=](int64_t g) FVAE_LAMBDA { return offsets[g]; };
    return list + last_at_most(count, place, offset);
  }
};

// A source of rows, as grid.h has it.
struct Index {
  using Factor = IndexFactor;
  using Group = IndexGroup;
  static constexpr bool searched = true;
  int factors;
  uint32_t rows;  // N
  Lists lists;

  FVAE_HD IndexFactor at(int k) const { return {lists, k * int64_t(rows), rows, 0, lists.count}; }
  FVAE_HD int64_t groups() const { return lists.count; }
  FVAE_HD int64_t number(int k, uint32_t word) const { return at(k).number(word); }
  FVAE_HD int64_t start(int64_t g) const { return lists.offsets[g]; }
  FVAE_HD IndexGroup group(int64_t g) const { return lists.list(g); }
  FVAE_HD uint32_t row(int64_t place) const { return uint32_t(lists.rows[place]); }
  FVAE_HD IndexWalk walk(const IndexGroup& group, uint32_t r, uint32_t step) const {
    return {lists.rows + group.begin + r, step};
  }
};

}  // namespace fvae
