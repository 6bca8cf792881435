// The densities of all pairs of a batch on a CPU, none of which is kept.
//
// No PyTorch in here: plain pointers in, plain pointers out. A row of z at a time, against the
// components some at once: their log densities of one dimension lie in the first-level cache.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "exponential.h"

namespace fvae::host {

// The components q(z|x_j) of one model, dimension by dimension and padded to whole vectors, so that
// log q(z_k|x_j) = constant - ((z_k - mean) scale)^2 / 2. What pads has density 0.
template <class F>
struct Components {
  static constexpr int lanes = Wide<F>::lanes;
  // Components at a time: what is kept of them for one dimension fits the first-level cache.
  static constexpr int64_t chunk = 256;
  int64_t rows, dims, padded;
  std::vector<F> mean, scale, constant;  // [d, padded]

  template <class T>
  Components(const T* mu, const T* logvar, int64_t rows, int64_t dims)
      : rows(rows), dims(dims), padded((rows + lanes - 1) / lanes * lanes),
        mean(dims * padded), scale(dims * padded), constant(dims * padded, -INFINITY) {
    for (int64_t j = 0; j < rows; ++j) {
      for (int64_t k = 0; k < dims; ++k) {
        const F v = wide(logvar[j * dims + k]);
        mean[k * padded + j] = wide(mu[j * dims + k]);
        scale[k * padded + j] = std::exp(F(-0.5) * v);
        constant[k * padded + j] = F(-0.5) * (F(1.8378770664093453) + v);
      }
    }
  }
};

// log w_ij where j = i, where j = i + 1, and elsewhere.
template <class F>
struct PairWeights {
  F self, next, other;

  // Of row i and all components [padded]; `clear` takes it back.
  FVAE_HD void set(F* row, int64_t i, int64_t rows) const {
    row[(i + 1) % rows] = next;
    row[i] = self;
  }
  FVAE_HD void clear(F* row, int64_t i, int64_t rows) const {
    row[(i + 1) % rows] = row[i] = other;
  }
};

// The log of a sum of exponentials, some sums at a time, each by its own greatest term so far.
template <class F>
struct LogSum {
  using Vector = typename Wide<F>::Vector;
  static constexpr int lanes = Wide<F>::lanes;
  Vector most, sum;

  FVAE_HD void clear() {
    most = Vector{} - std::numeric_limits<F>::max();
    sum = Vector{};
  }
  // Make room for terms as great as `greatest`.
  FVAE_HD void raise(Vector greatest) {
    const Vector more = greatest > most ? greatest : most;
    sum *= exponential(most - more);
    most = more;
  }
  FVAE_HD void add(Vector x) { sum += exponential(x - most); }
  FVAE_HD F total() const {
    F greatest = most[0];
    for (int w = 1; w < lanes; ++w) greatest = most[w] > greatest ? most[w] : greatest;
    F all = 0;
    for (int w = 0; w < lanes; ++w) all += sum[w] * std::exp(most[w] - greatest);
    return greatest + std::log(all);
  }
};

// What a thread works in, for one model.
template <class F>
struct PairSpace {
  // Plain numbers: memory is aligned for those, and not for vectors of them.
  std::vector<F> weights, logs, scores, joint, most, sum;

  PairSpace(const Components<F>& c, F other, bool keeps)
      : weights(c.padded, other), logs((keeps ? c.dims : 1) * c.chunk),
        scores(keeps ? c.dims * c.chunk : 0), joint(c.chunk), most(c.dims * c.lanes),
        sum(c.dims * c.lanes) {}
};

// The standard score, of one or of some at once, cut where its square would overflow: no share of such a pair is left.
template <class F, class V>
FVAE_HD V score(V x, V mean, V scale) {
  constexpr F most = F(1e18);
  const V t = (x - mean) * scale;
  const V low = t < -most ? V{} - most : t;
  return low > most ? V{} + most : low;
}

// Row i of z [d]: log q(z), and log q(z_k) in each [d].
template <class F, class T>
FVAE_HD F densities(const Components<F>& c, const PairWeights<F>& w, const T* z, int64_t i,
                    PairSpace<F>& space, F* each) {
  using Vector = typename Wide<F>::Vector;
  constexpr int lanes = Wide<F>::lanes;
  w.set(space.weights.data(), i, c.rows);
  LogSum<F> whole;
  whole.clear();
  for (int64_t k = 0; k < c.dims; ++k) {
    put(space.most.data() + k * lanes, whole.most);
    put(space.sum.data() + k * lanes, whole.sum);
  }
  F* logs = space.logs.data();
  F* joint = space.joint.data();
  for (int64_t first = 0; first < c.padded; first += c.chunk) {
    const int64_t n = c.padded - first < c.chunk ? c.padded - first : c.chunk;
    const F* weights = space.weights.data() + first;
    for (int64_t j = 0; j < n; j += lanes) put(joint + j, vector_at(weights + j));
    for (int64_t k = 0; k < c.dims; ++k) {
      const int64_t at = k * c.padded + first;
      const F *mean = c.mean.data() + at, *scale = c.scale.data() + at;
      const F* constant = c.constant.data() + at;
      const Vector x = Vector{} + F(wide(z[k]));
      F *most_at = space.most.data() + k * lanes, *sum_at = space.sum.data() + k * lanes;
      LogSum<F> sum{vector_at(most_at), vector_at(sum_at)};
      Vector greatest = sum.most;
      for (int64_t j = 0; j < n; j += lanes) {
        const Vector t = score<F>(x, vector_at(mean + j), vector_at(scale + j));
        const Vector log = vector_at(constant + j) - F(0.5) * t * t;
        put(joint + j, vector_at(joint + j) + log);
        const Vector weighted = log + vector_at(weights + j);
        greatest = weighted > greatest ? weighted : greatest;
        put(logs + j, weighted);
      }
      sum.raise(greatest);
      for (int64_t j = 0; j < n; j += lanes) sum.add(vector_at(logs + j));
      put(most_at, sum.most);
      put(sum_at, sum.sum);
    }
    Vector greatest = whole.most;
    for (int64_t j = 0; j < n; j += lanes) {
      const Vector log = vector_at(joint + j);
      greatest = log > greatest ? log : greatest;
    }
    whole.raise(greatest);
    for (int64_t j = 0; j < n; j += lanes) whole.add(vector_at(joint + j));
  }
  w.clear(space.weights.data(), i, c.rows);
  for (int64_t k = 0; k < c.dims; ++k)
    each[k] = LogSum<F>{vector_at(space.most.data() + k * lanes),
                        vector_at(space.sum.data() + k * lanes)}
                  .total();
  return whole.total();
}

// Row i of z: its gradient [d], and what it adds to those of all components [d, padded].
template <class F, class T>
FVAE_HD void gradients(const Components<F>& c, const PairWeights<F>& w, const T* z, int64_t i,
                       F grad_qz, F grad_prod, F log_qz, const F* each, PairSpace<F>& space,
                       F* grad_z, F* grad_mean, F* grad_logvar) {
  using Vector = typename Wide<F>::Vector;
  constexpr int lanes = Wide<F>::lanes;
  w.set(space.weights.data(), i, c.rows);
  F* joint = space.joint.data();
  for (int64_t k = 0; k < c.dims; ++k) grad_z[k] = 0;
  for (int64_t first = 0; first < c.padded; first += c.chunk) {
    const int64_t n = c.padded - first < c.chunk ? c.padded - first : c.chunk;
    const F* weights = space.weights.data() + first;
    for (int64_t j = 0; j < n; j += lanes) put(joint + j, vector_at(weights + j) - log_qz);
    for (int64_t k = 0; k < c.dims; ++k) {
      const int64_t at = k * c.padded + first;
      const F *mean = c.mean.data() + at, *scale = c.scale.data() + at;
      const F* constant = c.constant.data() + at;
      F *logs = space.logs.data() + k * c.chunk, *scores = space.scores.data() + k * c.chunk;
      const Vector x = Vector{} + F(wide(z[k]));
      for (int64_t j = 0; j < n; j += lanes) {
        const Vector t = score<F>(x, vector_at(mean + j), vector_at(scale + j));
        const Vector log = vector_at(constant + j) - F(0.5) * t * t;
        put(joint + j, vector_at(joint + j) + log);
        put(logs + j, log);
        put(scores + j, t);
      }
    }
    for (int64_t j = 0; j < n; j += lanes)
      put(joint + j, grad_qz * exponential(vector_at(joint + j)));
    for (int64_t k = 0; k < c.dims; ++k) {
      const int64_t at = k * c.padded + first;
      const F* scale = c.scale.data() + at;
      const F *logs = space.logs.data() + k * c.chunk, *scores = space.scores.data() + k * c.chunk;
      Vector sum{};
      for (int64_t j = 0; j < n; j += lanes) {
        const Vector own = exponential(vector_at(logs + j) + (vector_at(weights + j) - each[k]));
        const Vector t = vector_at(scores + j);
        // What pads has no density, and a score that means nothing.
        const Vector share = vector_at(joint + j) + grad_prod * own;
        const Vector slope = share * t * vector_at(scale + j);
        sum += slope;
        put(grad_mean + at + j, vector_at(grad_mean + at + j) + slope);
        put(grad_logvar + at + j,
            vector_at(grad_logvar + at + j) + F(0.5) * share * (t * t - F(1)));
      }
      for (int v = 0; v < lanes; ++v) grad_z[k] -= sum[v];
    }
  }
  w.clear(space.weights.data(), i, c.rows);
}

}  // namespace fvae::host
