// The metrics on a CPU: one lane, which holds sixteen dimensions in a vector.
//
// No PyTorch in here: plain pointers in, plain pointers out, so that sanitizers and other programs
// can take it alone. Ranges of sets may run on any number of threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>
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
// some other row's and is not used; only at the array's very end, which is asked for where one has
// to be careful, are fewer read.
template <class Wide, bool careful = true, class Element>
FVAE_HD Wide fill(int64_t at, int64_t size, Element value) {
  Wide v{};
  if (!careful || at <= size - kWide) {
    for (int w = 0; w < kWide; ++w) v[w] = value(w);
  } else {
    for (int w = 0; w < size - at; ++w) v[w] = value(w);
  }
  return v;
}

// Ask for the lines of a row's vectors: all but the last, in which they mostly end, and that one.
template <class T>
FVAE_HD void ask_near(const T* row, int64_t elements) {
  for (int64_t w = 0; w < elements; w += 64 / int(sizeof(T))) __builtin_prefetch(row + w);
}
template <class T>
FVAE_HD void ask_far(const T* row, int64_t elements) {
  __builtin_prefetch(reinterpret_cast<const char*>(row + elements) - 1);
}

template <class T, bool careful>
struct SampleLanes {
  using Value = Vector;
  static constexpr int tile = kWide, width = kWide;
  const T* model;
  int64_t size;         // codes of the model
  const int64_t* rows;  // where each sample's row begins
  const int64_t* next;  // likewise of the next set
  int64_t samples;
  int64_t elements;     // of all vectors of a row
  int64_t j0 = 0;

  FVAE_HD int offset() const { return 0; }
  FVAE_HD int64_t chunk() const { return samples; }
  FVAE_HD void gather(int64_t, int, int64_t tile_begin) { j0 = tile_begin; }
  FVAE_HD Vector load(int s) const {
    const int64_t at = rows[s] + j0;
    const T* code = model + at;
    return fill<Vector, careful>(at, size, [=](int w) FVAE_LAMBDA {
      return float(wide(code[w]));
    });
  }
  // All of a row at once, with the first of its vectors.
  FVAE_HD void near(int s) const {
    if (j0 == 0) ask_near(model + next[s], elements);
  }
  FVAE_HD void far(int s) const {
    if (j0 == 0) ask_far(model + next[s], elements);
  }
  FVAE_HD static float at(const Vector& v, int w) { return v[w]; }
  FVAE_HD static Best least(Best best) { return best; }
};

// As above for pairs of rows, two after each other, whose distance is the sample.
template <class T, bool careful>
struct PairLanes : SampleLanes<T, careful> {
  FVAE_HD Vector load(int s) const {
    const int64_t at = this->rows[2 * s] + this->j0, other = this->rows[2 * s + 1] + this->j0;
    const T *a = this->model + at, *b = this->model + other;
    return fill<Vector, careful>(std::max(at, other), this->size, [=](int w) FVAE_LAMBDA {
      return float(std::fabs(wide(a[w]) - wide(b[w])));
    });
  }
  FVAE_HD void near(int s) const {
    for (int u = 0; u < 2; ++u) SampleLanes<T, careful>::near(2 * s + u);
  }
  FVAE_HD void far(int s) const {
    for (int u = 0; u < 2; ++u) SampleLanes<T, careful>::far(2 * s + u);
  }
};

// Rows drawn at once, before a model's codes are read: few for one model, so that they stay in the
// first-level cache; many for several, since a line of codes is read some times, and what lies
// between has the next model's codes and page tables push it out.
constexpr int64_t kDrawn = 1024, kDrawnForMany = 1 << 20;

// A set of draws, by its number, and how it opens.
struct Opened {
  int64_t set;
  Opening opening;
};

// Some sets of draws: where the rows of each begin in a model's codes, and its fixed factor.
struct Drawn {
  int64_t samples, stride;     // of a set: samples, and places in `rows`
  const Opened* sets;
  int64_t count = 0;
  std::vector<int64_t> rows;

  // For at most `most` sets.
  Drawn(int64_t samples, int64_t stride, int64_t models, int64_t most)
      : samples(samples), stride(stride) {
    const int64_t at_once = (models == 1 ? kDrawn : kDrawnForMany) / stride;
    batch_ = std::clamp<int64_t>(at_once, 1, most);
    rows.resize(batch_ * stride);
  }

  // run() with one batch after another of some sets.
  template <class Run>
  void each_batch(const std::vector<Opened>& all, Run run) {
    const int64_t end = int64_t(all.size());
    for (int64_t at = 0; at < end; at += count) {
      sets = all.data() + at;
      count = std::min(batch_, end - at);
      run();
    }
  }

 private:
  int64_t batch_;
};

// Sets that are opened at a time; bytes of codes from which on it pays to put them in order; and
// of how many groups these are told apart.
constexpr int64_t kOrdered = 1 << 15, kManyBytes = 4 << 20, kBuckets = 1 << 12;

// Open sets from `begin` on, each with `groups` counter indices for its samples: all words of one
// kind first, which become vectors.
FVAE_HD void open_sets(const Draws& draws, int factors, int64_t groups, int64_t begin,
                       std::vector<Opened>& sets) {
  const int64_t count = int64_t(sets.size());
  std::vector<uint32_t> first(count), second(count);
  for (int64_t i = 0; i < count; ++i) {
    const Words head = philox(draws.stream, draws.opening(begin + i, groups));
    first[i] = head.w[0];
    second[i] = head.w[1];
  }
  for (int64_t i = 0; i < count; ++i)
    sets[i] = {begin + i, {draws, Words{{first[i], second[i]}}, factors, begin + i, groups}};
}

// The sets, one group after another: its rows are then in a cache after the first of them.
template <class Source>
std::vector<Opened> in_order(const Source& source, const std::vector<Opened>& sets) {
  int shift = 0;
  while (source.groups() >> shift > kBuckets) ++shift;
  std::vector<int32_t> bucket(sets.size()), end(kBuckets + 1);
  for (size_t i = 0; i < sets.size(); ++i) {
    const Opening& opening = sets[i].opening;
    bucket[i] = int32_t(source.number(opening.k, opening.chooser) >> shift);
    ++end[bucket[i] + 1];
  }
  std::partial_sum(end.begin(), end.end(), end.begin());
  std::vector<Opened> ordered(sets.size());
  for (size_t i = 0; i < sets.size(); ++i) ordered[end[bucket[i]]++] = sets[i];
  return ordered;
}

// From places to where their rows begin in a model's codes, in two steps: the numbers of the rows are
// on their way from an index's memory while more are drawn. Of a grid a place is the number.
FVAE_HD void fetch(const Grid&, const int64_t*, int64_t) {}
FVAE_HD void find_rows(const Grid&, int64_t dims, int64_t* places, int64_t count) {
  for (int64_t i = 0; i < count; ++i) places[i] *= dims;
}

FVAE_HD void fetch(const Index& index, const int64_t* places, int64_t count) {
  for (int64_t i = 0; i < count; ++i) __builtin_prefetch(index.lists.rows + places[i]);
}
// One after another, which `volatile` sees to: a gather of many is slow.
FVAE_HD void find_rows(const Index& index, int64_t dims, int64_t* places, int64_t count) {
  const volatile int32_t* rows = index.lists.rows;
  for (int64_t i = 0; i < count; ++i) places[i] = rows[places[i]] * dims;
}

// Draw the votes of a batch, which `each_batch` has chosen.
template <class Source>
FVAE_HD void draw_votes(const Source& source, const Draws& draws, int64_t dims, Drawn& drawn) {
  const int64_t groups = (draws.samples + 3) / 4;
  for (int64_t i = 0; i < drawn.count; ++i) {
    const Opening& set = drawn.sets[i].opening;
    const auto group = source.at(set.k).chosen(set.chooser);
    int64_t* rows = drawn.rows.data() + i * drawn.stride;
    for (int64_t g = 0; g < groups; ++g) {
      const Words words = philox(draws.stream, set.samples + uint32_t(g));
      for (int u = 0; u < 4; ++u) rows[4 * g + u] = group.drawn(words.w[u]);
    }
    fetch(source, rows, drawn.stride);
  }
  find_rows(source, dims, drawn.rows.data(), drawn.count * drawn.stride);
}

// As above for points, each of whose pairs draws a value of its own. fixed [P].
template <class Source>
FVAE_HD void draw_pairs(const Source& source, const Draws& draws, int64_t dims, int64_t* fixed,
                        Drawn& drawn) {
  const int64_t pairs = draws.samples;  // in no memory that the rows might be thought to share
  std::vector<uint32_t> choosers(pairs);
  for (int64_t i = 0; i < drawn.count; ++i) {
    const Opening& set = drawn.sets[i].opening;
    auto factor = source.at(set.k);
    factor.narrow();
    int64_t* rows = drawn.rows.data() + i * drawn.stride;
    // Words first where a value is searched: they come some at once, in vectors.
    if constexpr (Source::searched) {
      for (int64_t g = 0; g < pairs; ++g) {
        const Words words = philox(draws.stream, set.samples + uint32_t(g));
        choosers[g] = words.w[0];
        for (int u = 0; u < 2; ++u) rows[2 * g + u] = words.w[1 + u];
      }
      for (int64_t g = 0; g < pairs; ++g) {
        const auto group = factor.chosen(choosers[g]);
        for (int u = 0; u < 2; ++u) rows[2 * g + u] = group.drawn(uint32_t(rows[2 * g + u]));
      }
    } else {
      for (int64_t g = 0; g < pairs; ++g) {
        const Words words = philox(draws.stream, set.samples + uint32_t(g));
        const auto group = factor.chosen(words.w[0]);
        for (int u = 0; u < 2; ++u) rows[2 * g + u] = group.drawn(words.w[1 + u]);
      }
    }
    fetch(source, rows, drawn.stride);
    fixed[drawn.sets[i].set] = set.k;
  }
  find_rows(source, dims, drawn.rows.data(), drawn.count * drawn.stride);
}

// use(lanes, m, i) for the i-th set that is drawn and each model, one set after another, while the
// rows of the next are on their way from memory, which is most of the time: they are asked for one
// by one as this set's are read, since a processor waits for no more than a few at once.
template <template <class, bool> class Lanes, class T, class Use>
FVAE_HD void each_set(const Codes<T>& codes, const Drawn& drawn, Use use) {
  const int64_t size = codes.rows * codes.dims;
  const int64_t elements = (codes.dims + kWide - 1) / kWide * kWide;
  const int64_t last = size - elements;  // the last row whose vectors end within the codes
  for (int64_t m = 0; m < codes.models; ++m) {
    const T* model = codes.model(m);
    for (int64_t s = 0; s < drawn.stride; ++s) {
      ask_near(model + drawn.rows[s], elements);
      ask_far(model + drawn.rows[s], elements);
    }
    for (int64_t i = 0; i < drawn.count; ++i) {
      const int64_t* mine = drawn.rows.data() + i * drawn.stride;
      const int64_t* next = i + 1 < drawn.count ? mine + drawn.stride : mine;
      int64_t greatest = 0;
      for (int64_t s = 0; s < drawn.stride; ++s) greatest = std::max(greatest, mine[s]);
      if (greatest <= last) {
        Lanes<T, false> lanes{model, size, mine, next, drawn.samples, elements};
        use(lanes, m, i);
      } else {
        Lanes<T, true> lanes{model, size, mine, next, drawn.samples, elements};
        use(lanes, m, i);
      }
    }
  }
}

// Votes of every model, added to counts [M, d, K]; scale and active are [M, d].
template <class T>
FVAE_HD void votes(const Codes<T>& codes, const Drawn& drawn, int factors, const float* scale,
                   const bool* active, int64_t* counts) {
  each_set<SampleLanes>(codes, drawn, [&](auto& lanes, int64_t m, int64_t i) FVAE_LAMBDA {
    const int64_t row = m * codes.dims;
    const int j = least_variance(lanes, drawn.samples, codes.dims, scale + row, active + row);
    if (j >= 0) ++counts[(row + j) * factors + drawn.sets[i].opening.k];
  });
}

// Points of every model: features [M, P, d] of P points in all.
template <class T>
FVAE_HD void pairs(const Codes<T>& codes, const Drawn& drawn, int64_t points, float* features) {
  each_set<PairLanes>(codes, drawn, [&](auto& lanes, int64_t m, int64_t i) FVAE_LAMBDA {
    mean_distance(lanes, drawn.samples, codes.dims,
                  features + (m * points + drawn.sets[i].set) * codes.dims);
  });
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

// Variances [d] of the rows of a group.
template <class T, class Source>
FVAE_HD void group(const Codes<T>& codes, int64_t m, const Source& source, int64_t number,
                   float* out) {
  const auto group = source.group(number);
  for (int64_t j0 = 0; j0 < codes.dims; j0 += kWide) {
    const RowLanes<T> lanes{codes, codes.model(m), j0};
    const WideVector variance =
        group_moments(lanes, source, group, 0, group.count()).variance(group.count());
    const int64_t left = codes.dims - j0;
    for (int w = 0; w < (left < kWide ? left : kWide); ++w) out[j0 + w] = not_negative(variance[w]);
  }
}

}  // namespace fvae::host
