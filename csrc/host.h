// The metrics on a CPU: one lane, which holds sixteen dimensions in a vector.
//
// No PyTorch in here: plain pointers in, plain pointers out, so that sanitizers and other programs
// can take it alone. Ranges of sets may run on any number of threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "body.h"
#include "codes.h"

// One binary for every x86-64 processor: the loader picks the widest vectors that it has.
// `flatten` puts the whole body into each clone.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(FVAE_ONE_TARGET)
#define FVAE_CLONES \
  __attribute__((flatten, target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FVAE_CLONES
#endif

namespace fvae::host {

constexpr int kWide = 16;
typedef float Vector __attribute__((vector_size(4 * kWide)));

// value(w) for sixteen elements from element `at` of an array on. What lies beyond dimension d is
// some other row's and is not used; only at the array's very end are fewer read.
template <class Wide, class Element>
FVAE_HD Wide fill(int64_t at, int64_t size, Element value) {
  Wide v{};
  if (at <= size - kWide) {
    for (int w = 0; w < kWide; ++w) v[w] = value(w);
  } else {
    for (int w = 0; w < size - at; ++w) v[w] = value(w);
  }
  return v;
}

template <class T>
struct SampleLanes {
  using Value = Vector;
  static constexpr int tile = kWide, width = kWide;
  static constexpr int rows_a_sample = 1;
  const T* model;
  int64_t size;         // codes of the model
  const int64_t* rows;  // where each sample's row begins
  int64_t samples;
  int64_t j0 = 0;

  FVAE_HD int offset() const { return 0; }
  FVAE_HD int64_t chunk() const { return samples; }
  FVAE_HD void gather(int64_t, int, int64_t tile_begin) { j0 = tile_begin; }
  FVAE_HD Vector load(int s) const {
    const int64_t at = rows[s] + j0;
    const T* code = model + at;
    return fill<Vector>(at, size, [=](int w) FVAE_LAMBDA { return float(wide(code[w])); });
  }
  FVAE_HD static float at(const Vector& v, int w) { return v[w]; }
  FVAE_HD static Best least(Best best) { return best; }
};

// As above for pairs of rows, two after each other, whose distance is the sample.
template <class T>
struct PairLanes : SampleLanes<T> {
  static constexpr int rows_a_sample = 2;

  FVAE_HD Vector load(int s) const {
    const int64_t at = this->rows[2 * s] + this->j0, other = this->rows[2 * s + 1] + this->j0;
    const T *a = this->model + at, *b = this->model + other;
    return fill<Vector>(std::max(at, other), this->size, [=](int w) FVAE_LAMBDA {
      return float(std::fabs(wide(a[w]) - wide(b[w])));
    });
  }
};

// Ask for all that the vectors of some rows will read, which is more than the rows.
template <class T>
FVAE_HD void prefetch(const T* model, int64_t dims, const int64_t* rows, int64_t count) {
  const int64_t bytes = (dims + kWide - 1) / kWide * kWide * int64_t(sizeof(T));
  for (int64_t s = 0; s < count; ++s) {
    const char* row = reinterpret_cast<const char*>(model + rows[s]);
    for (int64_t line = 0; line < bytes; line += 64) __builtin_prefetch(row + line);
    __builtin_prefetch(row + bytes - 1);
  }
}

// Rows drawn at once, before a model's codes are read: few for one model, so that they stay in the
// first-level cache; many for several, since each change of model starts with cold page tables.
constexpr int64_t kDrawn = 1024, kDrawnForMany = 1 << 17;

// Walk over sets [begin, end), some at once: draw(set, rows) writes where the rows of a set begin
// and returns its factor; then, for each model, use(lanes, m, set, factor) sees one after another,
// while the rows of the next are on their way from memory, which is most of the time.
template <class Lanes, class T, class Draw, class Use>
FVAE_HD void each_set(const Codes<T>& codes, int64_t begin, int64_t end, int64_t samples,
                      Draw draw, Use use) {
  const int64_t size = codes.rows * codes.dims;
  const int64_t stride = (samples + 3) / 4 * 4 * Lanes::rows_a_sample;
  const int64_t at_once = std::clamp<int64_t>(
      (codes.models == 1 ? kDrawn : kDrawnForMany) / stride, 1, end - begin);
  std::vector<int64_t> rows(at_once * stride);
  std::vector<int> factors(at_once);
  for (int64_t first = begin; first < end; first += at_once) {
    const int64_t n = std::min(at_once, end - first);
    for (int64_t i = 0; i < n; ++i) factors[i] = draw(first + i, rows.data() + i * stride);
    for (int64_t m = 0; m < codes.models; ++m) {
      const T* model = codes.model(m);
      prefetch(model, codes.dims, rows.data(), stride);
      for (int64_t i = 0; i < n; ++i) {
        const int64_t* mine = rows.data() + i * stride;
        if (i + 1 < n) prefetch(model, codes.dims, mine + stride, stride);
        Lanes lanes{model, size, mine, samples};
        use(lanes, m, first + i, factors[i]);
      }
    }
  }
}

// Votes [begin, end) of every model, added to counts [M, d, K]; scale and active are [M, d].
template <class T>
FVAE_HD void votes(const Codes<T>& codes, const Grid& grid, const Draws& draws, const float* scale,
                   const bool* active, int64_t begin, int64_t end, int64_t* counts) {
  const int64_t groups = (draws.samples + 3) / 4;
  const auto draw = [&](int64_t vote, int64_t* rows) FVAE_LAMBDA {
    const Opening set(draws, draws.stream, grid, vote, groups);
    for (int64_t g = 0; g < groups; ++g) {
      const Words words = philox(draws.stream, set.samples + uint32_t(g));
      for (int u = 0; u < 4; ++u)
        rows[4 * g + u] = set.factor.drawn(words.w[u], set.value) * codes.dims;
    }
    return set.k;
  };
  const auto use = [&](SampleLanes<T>& lanes, int64_t m, int64_t, int k) FVAE_LAMBDA {
    const int64_t row = m * codes.dims;
    const int j = least_variance(lanes, draws.samples, codes.dims, scale + row, active + row);
    if (j >= 0) ++counts[(row + j) * grid.factors + k];
  };
  each_set<SampleLanes<T>>(codes, begin, end, draws.samples, draw, use);
}

// Points [begin, end) of every model: features [M, P, d], and the fixed factors [P].
template <class T>
FVAE_HD void pairs(const Codes<T>& codes, const Grid& grid, const Draws& draws, int64_t begin,
                   int64_t end, float* features, int64_t* fixed) {
  const auto draw = [&](int64_t point, int64_t* rows) FVAE_LAMBDA {
    const Opening set(draws, draws.stream, grid, point, draws.samples);
    const Factor f = set.factor;  // each pair draws a value of its own
    for (int64_t g = 0; g < draws.samples; ++g) {
      const Words words = philox(draws.stream, set.samples + uint32_t(g));
      const uint32_t value = bounded(words.w[0], f.size);
      rows[2 * g] = f.drawn(words.w[1], value) * codes.dims;
      rows[2 * g + 1] = f.drawn(words.w[2], value) * codes.dims;
    }
    fixed[point] = set.k;
    return set.k;
  };
  const auto use = [&](PairLanes<T>& lanes, int64_t m, int64_t set, int) FVAE_LAMBDA {
    mean_distance(lanes, draws.samples, codes.dims,
                  features + (m * draws.count + set) * codes.dims);
  };
  each_set<PairLanes<T>>(codes, begin, end, draws.samples, draw, use);
}

typedef double WideVector __attribute__((vector_size(8 * kWide)));

// One lane over all rows, sixteen dimensions at a time.
template <class T>
struct RowLanes {
  using Value = WideVector;
  static constexpr int at_once = 1;
  const Codes<T>& codes;
  const T* model;
  int64_t j0;

  FVAE_HD uint32_t row() const { return 0; }
  FVAE_HD uint32_t rows() const { return 1; }
  FVAE_HD WideVector load(uint32_t row) const {
    const int64_t at = row * codes.dims + j0;
    const T* code = model + at;
    return fill<WideVector>(at, codes.rows * codes.dims,
                            [=](int w) FVAE_LAMBDA { return double(wide(code[w])); });
  }
};

// Variances [d] of the rows that have a value of a factor.
template <class T>
FVAE_HD void group(const Codes<T>& codes, int64_t m, const Factor& factor, uint32_t value,
                   float* out) {
  for (int64_t j0 = 0; j0 < codes.dims; j0 += kWide) {
    const RowLanes<T> lanes{codes, codes.model(m), j0};
    const uint32_t images = factor.images();
    const WideVector variance = group_moments(lanes, factor, value, 0, images).variance(images);
    const int64_t left = codes.dims - j0;
    for (int w = 0; w < (left < kWide ? left : kWide); ++w) out[j0 + w] = not_negative(variance[w]);
  }
}

}  // namespace fvae::host
