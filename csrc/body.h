// The arithmetic of the metrics, written once for the host and the device.
//
// A policy `Lanes` says how many dimensions of the codes are at work at a time and who does what.
// For sets of samples, in which a lane has all samples of its dimensions:
//
//   Value               one number (a device thread) or a vector of them (the host)
//   tile                dimensions that all lanes together take at a time
//   offset(), width     first dimension of this lane within the tile, and how many it has
//   chunk()             samples that are at hand at a time: on a GPU, in shared memory
//   gather(first, n, j0)  put samples first .. first + n of the tile at dimension j0 at hand
//   load(s)             the lane's Value of sample s of those at hand
//   near(s), far(s)     ask for where load(s) of the next set begins and ends, on the host
//   at(value, w)        element w of a Value, as a float
//   least(best)         the best of all lanes
//
// For groups of many rows, which are shared out among the lanes:
//
//   row(), rows()       first row of this lane, and how many lanes step along together
//   at_once             rows that a lane loads before it adds them: a GPU's loads take long
//   load(row)           the lane's Value (of doubles) of a row of the codes
//
// A sum over samples runs in the same order on both machines.
#pragma once

#include <cfloat>
#include <cmath>

#include "draws.h"
#include "grid.h"
#include "index.h"

namespace fvae {

// The dimension of least ratio so far; none yet is -1, at infinity.
struct Best {
  float ratio;
  int dim;

  FVAE_HD bool beats(const Best& other) const {
    return ratio < other.ratio || (ratio == other.ratio && dim < other.dim);
  }
};

// The sum of term(s) over the samples, s counted within a chunk, fetching the chunks one after another.
// `fetched` says that the first is there already.
template <class Lanes, class Term>
FVAE_HD auto sum_of(Lanes& lanes, int64_t samples, int64_t j0, bool fetched, Term term) {
  using Value = typename Lanes::Value;
  // Four sums at a time: an addition need not wait for the one before it.
  Value a{}, b{}, c{}, d{};
  const int64_t chunk = lanes.chunk();
  for (int64_t first = 0; first < samples; first += chunk) {
    const int n = int(samples - first < chunk ? samples - first : chunk);
    if (first > 0 || !fetched) lanes.gather(first, n, j0);
    int s = 0;
    for (; s + 4 <= n; s += 4) {
      a += term(s);
      b += term(s + 1);
      c += term(s + 2);
      d += term(s + 3);
    }
    for (; s < n; ++s) a += term(s);
  }
  return (a + b) + (c + d);
}

// argmin over dimensions of (variance over the samples, L - 1 in the denominator) / scale.
//
// Two passes over differences from the first sample: right in float32 even where the mean is
// 10^4 deviations away. A dimension that is inactive or of scale 0 never wins, one whose ratio is not
// finite wins over none but its like, ties go to the lowest; -1 where no dimension can win.
template <class Lanes>
FVAE_HD int least_variance(Lanes& lanes, int64_t samples, int64_t dims, const float* scale,
                           const bool* active) {
  using Value = typename Lanes::Value;
  Best best{INFINITY, -1};
  const int64_t chunk = lanes.chunk();
  const bool once = samples <= chunk;
  for (int64_t j0 = 0; j0 < dims; j0 += Lanes::tile) {
    lanes.gather(0, int(once ? samples : chunk), j0);
    const Value first = lanes.load(0);
    const Value mean = sum_of(lanes, samples, j0, true, [&](int s) FVAE_LAMBDA {
                         lanes.near(s);
                         return lanes.load(s) - first;
                       }) / float(samples);
    const Value variance = sum_of(lanes, samples, j0, once, [&](int s) FVAE_LAMBDA {
                             lanes.far(s);
                             const Value x = lanes.load(s) - first - mean;
                             return x * x;
                           }) / float(samples - 1);
    for (int w = 0; w < Lanes::width; ++w) {
      const int64_t j = j0 + lanes.offset() + w;
      if (j >= dims || !active[j] || !(scale[j] > 0)) continue;
      const float ratio = lanes.at(variance, w) / scale[j];
      const float finite = ratio <= FLT_MAX ? ratio : FLT_MAX;
      // Selects, not a branch: who wins is what nobody can predict. Ties stay with the lower.
      const bool better = finite < best.ratio;
      best.ratio = better ? finite : best.ratio;
      best.dim = better ? int(j) : best.dim;
    }
  }
  return lanes.least(best).dim;
}

// out[j] = mean over the pairs of |z1_j - z2_j|; `load` of such lanes is that distance.
template <class Lanes>
FVAE_HD void mean_distance(Lanes& lanes, int64_t pairs, int64_t dims, float* out) {
  using Value = typename Lanes::Value;
  for (int64_t j0 = 0; j0 < dims; j0 += Lanes::tile) {
    const Value mean = sum_of(lanes, pairs, j0, false, [&](int s) FVAE_LAMBDA {
                         lanes.near(s);
                         lanes.far(s);
                         return lanes.load(s);
                       }) / float(pairs);
    for (int w = 0; w < Lanes::width; ++w) {
      const int64_t j = j0 + lanes.offset() + w;
      if (j < dims) out[j] = lanes.at(mean, w);
    }
  }
}

// Sums of a group's differences from its first row. In double: no second pass is needed, and the
// variance is exactly 0 where all rows are the same.
template <class Value>
struct Moments {
  Value sum, square;

  FVAE_HD void add(const Moments& other) {
    sum += other.sum;
    square += other.square;
  }

  // Population variance; rounding may leave it just below 0.
  FVAE_HD Value variance(uint32_t rows) const {
    return (square - sum * sum / double(rows)) / double(rows);
  }
};

// Not max(0, v), which would hide a NaN.
FVAE_HD float not_negative(double v) { return v < 0 ? 0 : v; }

// This lane's moments over rows [begin, end) of a group, added one by one.
template <class Lanes, class Source, class Group>
FVAE_HD auto group_moments(const Lanes& lanes, const Source& source, const Group& group,
                           uint32_t begin, uint32_t end) {
  using Value = typename Lanes::Value;
  constexpr uint32_t some = Lanes::at_once;
  const Value first = lanes.load(source.walk(group, 0, 1).row());
  Moments<Value> moments{};
  const uint32_t count = end - begin, step = lanes.rows();
  uint32_t left = lanes.row() < count ? (count - lanes.row() - 1) / step + 1 : 0;
  auto walk = source.walk(group, begin + lanes.row(), step);
  const auto next = [&]() FVAE_LAMBDA {
    const Value x = lanes.load(walk.row());
    walk.next();
    return x;
  };
  const auto add = [&](const Value& x) FVAE_LAMBDA {
    const Value difference = x - first;
    moments.add({difference, difference * difference});
  };
  for (; left >= some; left -= some) {
    Value x[some];
    for (Value& each : x) each = next();
    for (const Value& each : x) add(each);
  }
  for (; left > 0; --left) add(next());
  return moments;
}

}  // namespace fvae
