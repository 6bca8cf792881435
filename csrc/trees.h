// Gradient-boosted trees of depth 3 with exact greedy splits, of several factors at once.
//
// No PyTorch in here: plain pointers in, plain pointers out. The codes are sorted once for all
// trees; a tree's nodes then are segments of each dimension's order, divided in place. The trees of
// one stage are independent of one another, and no sum depends on who grows which.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

namespace fvae::trees {

struct Entry {
  float value;
  uint32_t row;
};

constexpr int kDepth = 3, kInner = (1 << kDepth) - 1, kNodes = 2 * kInner + 1;
// Values no further apart are one; an impurity no greater is none; a curvature below is none.
constexpr float kSame = 1e-7f;
constexpr double kPure = std::numeric_limits<double>::epsilon(), kFlat = 1e-150;

// Node i has the children 2 i + 1 and 2 i + 2; a leaf has feature -1.
struct Tree {
  int feature[kNodes];
  double threshold[kInner];
  double value[kNodes];

  Tree() : threshold{}, value{} { std::fill_n(feature, kNodes, -1); }

  double at(const float* x) const {
    int node = 0;
    while (feature[node] >= 0) node = 2 * node + (x[feature[node]] <= threshold[node] ? 1 : 2);
    return value[node];
  }
};

// Rows in order of each dimension, [d, n].
struct Sorted {
  int64_t rows, dims;
  std::vector<Entry> entries;
  std::vector<double> inverse;  // 1 / i

  Sorted(const float* codes, int64_t rows, int64_t dims)
      : rows(rows), dims(dims), entries(rows * dims), inverse(rows + 1) {
    for (int64_t i = 1; i <= rows; ++i) inverse[i] = 1.0 / double(i);
    for (int64_t j = 0; j < dims; ++j) {
      Entry* order = entries.data() + j * rows;
      for (int64_t i = 0; i < rows; ++i) order[i] = {codes[i * dims + j], uint32_t(i)};
      std::sort(order, order + rows, [](const Entry& a, const Entry& b) {
        return a.value < b.value || (a.value == b.value && a.row < b.row);
      });
    }
  }
};

// The split before place `at` of a dimension's order: gain = sums' squares over counts.
struct Split {
  double gain = -std::numeric_limits<double>::infinity(), left = 0;
  int64_t at = 0;
};

inline void best_split(const Entry* order, int64_t count, const double* target, double total,
                       const double* inverse, Split& best) {
  double left = 0;
  for (int64_t i = 1; i < count; ++i) {
    left += target[order[i - 1].row];
    if (!(order[i].value > order[i - 1].value + kSame)) continue;
    const double right = total - left;
    const double gain = left * left * inverse[i] + right * right * inverse[count - i];
    if (gain > best.gain) best = {gain, left, i};
  }
}

// Grows one tree after another in buffers of its own.
class Grower {
 public:
  explicit Grower(const Sorted& data)
      : data_(data), right_(data.rows), order_(data.dims) {
    for (auto& level : levels_) level.resize(data.entries.size());
  }

  // Fits a tree to target [n]; adds to importance [d]; leaf(node, entries, count) for each leaf.
  template <class Leaf>
  void grow(const double* target, uint64_t key, Tree& tree, double* importance, Leaf leaf) {
    key_ = key;
    divide(data_.entries.data(), 0, data_.rows, 0, 0, target, tree, importance, leaf);
  }

 private:
  template <class Leaf>
  void divide(const Entry* from, int64_t begin, int64_t end, int node, int depth,
              const double* target, Tree& tree, double* importance, Leaf& leaf) {
    const int64_t n = data_.rows, count = end - begin;
    double sum = 0, squares = 0;
    for (int64_t i = begin; i < end; ++i) {
      const double t = target[from[i].row];
      sum += t, squares += t * t;
    }
    const double mean = sum / double(count);
    Split best;
    int chosen = -1;
    if (count >= 2 && squares / double(count) - mean * mean > kPure) {
      shuffle();
      for (const int j : order_) {
        const Entry* order = from + j * n + begin;
        if (order[count - 1].value <= order[0].value + kSame) continue;  // taken as constant
        const double before = best.gain;
        best_split(order, count, target, sum, data_.inverse.data(), best);
        if (best.gain > before) chosen = j;
      }
    }
    if (chosen < 0) return leaf(node, from + begin, count);
    const Entry* order = from + chosen * n + begin;
    tree.feature[node] = chosen;
    tree.threshold[node] = double(order[best.at - 1].value) / 2 + double(order[best.at].value) / 2;
    importance[chosen] += best.gain - sum * mean;
    if (depth + 1 == kDepth) {
      leaf(2 * node + 1, order, best.at);
      leaf(2 * node + 2, order + best.at, count - best.at);
      return;
    }
    for (int64_t i = 0; i < count; ++i) right_[order[i].row] = i >= best.at;
    Entry* const to = levels_[depth].data();
    for (int64_t j = 0; j < data_.dims; ++j) {
      const Entry* in = from + j * n + begin;
      Entry* side[2] = {to + j * n + begin, to + j * n + begin + best.at};
      for (int64_t i = 0; i < count; ++i) *side[right_[in[i].row]]++ = in[i];
    }
    const int64_t middle = begin + best.at;
    divide(to, begin, middle, 2 * node + 1, depth + 1, target, tree, importance, leaf);
    divide(to, middle, end, 2 * node + 2, depth + 1, target, tree, importance, leaf);
  }

  // Of splits that are equally good the first wins, so the dimensions come in random order.
  void shuffle() {
    std::iota(order_.begin(), order_.end(), 0);
    for (size_t left = order_.size(); left > 1; --left)
      std::swap(order_[left - 1], order_[next() % left]);
  }

  uint64_t next() {  // SplitMix64
    uint64_t x = key_ += 0x9e3779b97f4a7c15;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
  }

  const Sorted& data_;
  std::vector<Entry> levels_[kDepth - 1];
  std::vector<uint8_t> right_;
  std::vector<int> order_;
  uint64_t key_ = 0;
};

// One factor: labels [n], of classes 0 .. classes - 1 or, where that is 0, real values. It has one
// score where it is real-valued or of two classes, otherwise one a class.
struct Factor {
  int64_t classes;
  const double* labels;

  int64_t scores() const { return classes > 2 ? classes : 1; }
};

inline double log_share(int64_t count, int64_t of) {
  return std::log(std::clamp(double(count) / double(of), kPure, 1 - kPure));
}

// Where the scores start: the mean, the log odds, the centred logarithms of the shares.
inline void start(const Factor& factor, int64_t rows, double* first) {
  if (!factor.classes) {
    first[0] = std::accumulate(factor.labels, factor.labels + rows, 0.0) / double(rows);
    return;
  }
  std::vector<int64_t> counts(factor.classes);
  for (int64_t i = 0; i < rows; ++i) ++counts[int64_t(factor.labels[i])];
  if (factor.classes == 2) {
    first[0] = log_share(counts[1], rows) - log_share(counts[0], rows);
    return;
  }
  double mean = 0;
  for (int64_t c = 0; c < factor.classes; ++c) mean += first[c] = log_share(counts[c], rows);
  for (int64_t c = 0; c < factor.classes; ++c) first[c] -= mean / double(factor.classes);
}

// What the trees of a stage learn, [scores, n]: label - prediction of rows [begin, end).
inline void residuals(const Factor& factor, const double* scores, int64_t rows, int64_t begin,
                      int64_t end, double* out) {
  if (factor.classes <= 2) {
    for (int64_t i = begin; i < end; ++i)
      out[i] = factor.labels[i] - (factor.classes ? 1 / (1 + std::exp(-scores[i])) : scores[i]);
    return;
  }
  for (int64_t i = begin; i < end; ++i) {
    double most = scores[i], sum = 0;
    for (int64_t c = 1; c < factor.classes; ++c) most = std::max(most, scores[c * rows + i]);
    for (int64_t c = 0; c < factor.classes; ++c)
      sum += out[c * rows + i] = std::exp(scores[c * rows + i] - most);
    for (int64_t c = 0; c < factor.classes; ++c)
      out[c * rows + i] = double(factor.labels[i] == double(c)) - out[c * rows + i] / sum;
  }
}

// A leaf's value: the mean or, of classes, one Newton step of the log-loss.
inline double leaf_value(const Factor& factor, int64_t c, const double* residual,
                         const Entry* entries, int64_t count) {
  double sum = 0, curvature = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t row = entries[i].row;
    const double r = residual[row], label = factor.labels[row];
    const double p = (factor.classes > 2 ? double(label == double(c)) : label) - r;
    sum += r, curvature += p * (1 - p);
  }
  if (!factor.classes) return sum / double(count);
  if (std::fabs(curvature / double(count)) < kFlat) return 0;
  const double share = factor.classes > 2 ? double(factor.classes - 1) / double(factor.classes) : 1;
  return share * sum / curvature;
}

// All factors at once: importance [K, d], each row with sum 1 or 0; scores [T, all factors' scores]
// of test codes [T, d]. share(count, work): work(i) for i < count, by any number of threads.
template <class Share>
void boost(const Sorted& data, const std::vector<Factor>& factors, const float* test, int64_t tests,
           int64_t stages, double rate, int64_t threads, double* importance, double* test_scores,
           Share share) {
  struct Output {
    int64_t factor, c, first;  // `first` is the first score of the factor
  };
  const int64_t n = data.rows, d = data.dims, k = int64_t(factors.size());
  std::vector<Output> outputs;
  for (int64_t f = 0; f < k; ++f) {
    const int64_t first = int64_t(outputs.size());
    for (int64_t c = 0; c < factors[f].scores(); ++c) outputs.push_back({f, c, first});
  }
  const int64_t trees = int64_t(outputs.size());
  std::vector<double> starts(trees), scores(trees * n), residual(trees * n), gains(trees * d);
  for (int64_t o = 0; o < trees; o += factors[outputs[o].factor].scores())
    start(factors[outputs[o].factor], n, &starts[o]);
  for (int64_t o = 0; o < trees; ++o) {
    std::fill_n(&scores[o * n], n, starts[o]);
    for (int64_t i = 0; i < tests; ++i) test_scores[i * trees + o] = starts[o];
  }
  std::vector<Grower> growers(std::min(threads, trees), Grower(data));
  constexpr int64_t kRows = 512;
  const int64_t parts = (n + kRows - 1) / kRows;
  for (int64_t stage = 0; stage < stages; ++stage) {
    share(k * parts, [&](int64_t i) {
      const int64_t f = i / parts, begin = i % parts * kRows;
      int64_t first = 0;
      for (int64_t before = 0; before < f; ++before) first += factors[before].scores();
      residuals(factors[f], &scores[first * n], n, begin, std::min(n, begin + kRows),
                &residual[first * n]);
    });
    std::atomic<int64_t> next{0};
    share(int64_t(growers.size()), [&](int64_t mine) {
      for (int64_t o; (o = next++) < trees;) {
        const Output& output = outputs[o];
        const Factor& factor = factors[output.factor];
        const double* target = &residual[o * n];
        Tree tree;
        growers[mine].grow(
            target, uint64_t(stage * trees + o) << 32, tree, &gains[o * d],
            [&](int node, const Entry* entries, int64_t count) {
              const double step = rate * leaf_value(factor, output.c, target, entries, count);
              tree.value[node] = step;
              for (int64_t i = 0; i < count; ++i) scores[o * n + entries[i].row] += step;
            });
        for (int64_t i = 0; i < tests; ++i) test_scores[i * trees + o] += tree.at(test + i * d);
      }
    });
  }
  std::fill_n(importance, k * d, 0.0);
  for (int64_t o = 0; o < trees; ++o)
    for (int64_t j = 0; j < d; ++j) importance[outputs[o].factor * d + j] += gains[o * d + j];
  for (int64_t f = 0; f < k; ++f) {
    const double sum = std::accumulate(importance + f * d, importance + (f + 1) * d, 0.0);
    for (int64_t j = 0; sum > 0 && j < d; ++j) importance[f * d + j] /= sum;
  }
}

}  // namespace fvae::trees
