// The CPU op of Adam: one pass over all tensors of all groups.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <type_traits>

#include "arguments.h"
#include "denormals.h"
#include "host.h"

// From here on a product and a sum are rounded each.
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif
#include "adam.h"

namespace fvae::host {
namespace {

// Weights that a thread takes at least; and weights at a time where they do not lie alike.
constexpr int64_t kGrain = 1 << 14, kPiece = 1024;

// One binary for every processor needs functions of one type each: a clone is of no template.
#define FVAE_ADAM(G, C)                                                                      \
  FVAE_CLONES void some_adam(const AdamScales& s, int64_t n, float* __restrict p,            \
                             const G* __restrict g, float* __restrict m, float* __restrict v, \
                             C* __restrict copy) {                                           \
    adam(s, n, p, g, m, v, copy);                                                            \
  }
#define FVAE_ADAM_OF(G) FVAE_ADAM(G, Nothing) FVAE_ADAM(G, BFloat16) FVAE_ADAM(G, Half)
FVAE_ADAM_OF(float)
FVAE_ADAM_OF(BFloat16)
FVAE_ADAM_OF(Half)
#undef FVAE_ADAM_OF
#undef FVAE_ADAM

bool has_sixteen_bits(const Tensor& t) {
  return t.scalar_type() == ScalarType::BFloat16 || t.scalar_type() == ScalarType::Half;
}

// call() with a pointer to numbers of 16 bits.
template <class Call>
void with_sixteen_bits(const Tensor& t, Call call) {
  if (t.scalar_type() == ScalarType::BFloat16)
    call(static_cast<BFloat16*>(t.data_ptr()));
  else
    call(static_cast<Half*>(t.data_ptr()));
}

// A tensor's weight, gradient, moments and, where there is one, copy.
struct Weights {
  std::vector<Tensor> of;  // in this order
  AdamScales scales;
  int64_t count;
  std::vector<int64_t> sizes, strides[5];  // without dimensions of one element
  bool alike;                              // all lie in one piece, in the same order

  Weights(std::vector<Tensor> tensors, const AdamScales& scales)
      : of(std::move(tensors)), scales(scales), count(of[0].numel()) {
    const Tensor& p = of[0];
    for (size_t i = 0; i < of.size(); ++i) {
      bool same = of[i].dim() == p.dim();
      for (int64_t d = 0; same && d < p.dim(); ++d) same = of[i].size(d) == p.size(d);
      STD_TORCH_CHECK(same && of[i].is_cpu(), "tensors of a weight: expected its shape, on the CPU");
      STD_TORCH_CHECK(i == 1 || i == 4 || of[i].scalar_type() == ScalarType::Float,
                      "params, exp_avg and exp_avg_sq: expected float32");
    }
    STD_TORCH_CHECK(of[1].scalar_type() == ScalarType::Float || has_sixteen_bits(of[1]),
                    "grads: expected float32, bfloat16 or float16");
    STD_TORCH_CHECK(of.size() < 5 || has_sixteen_bits(of[4]),
                    "copies: expected bfloat16 or float16");
    for (int64_t d = 0; d < p.dim(); ++d) {
      if (p.size(d) == 1) continue;
      sizes.push_back(p.size(d));
      for (size_t i = 0; i < of.size(); ++i) strides[i].push_back(of[i].stride(d));
    }
    alike = count == 0 || dense();
    for (size_t i = 1; i < of.size(); ++i) alike = alike && strides[i] == strides[0];
  }

  // Weights [begin, end) in the order of memory or, where they do not lie alike, of rows.
  void update(int64_t begin, int64_t end) const {
    if (!alike) return gathered(begin, end);
    with_gradient([&](auto* g) {
      with_copy([&](auto* copy) {
        some_adam(scales, end - begin, floats(0) + begin, g + begin, floats(2) + begin,
                  floats(3) + begin, copy + begin);
      });
    });
  }

 private:
  float* floats(int i) const { return static_cast<float*>(of[i].data_ptr()); }

  template <class Call>
  void with_gradient(Call call) const {
    if (of[1].scalar_type() == ScalarType::Float)
      call(floats(1));
    else
      with_sixteen_bits(of[1], call);
  }

  template <class Call>
  void with_copy(Call call) const {
    if (of.size() < 5)
      call(static_cast<Nothing*>(nullptr));
    else
      with_sixteen_bits(of[4], call);
  }

  // Whether the weight fills a piece of memory, in any order of its dimensions.
  bool dense() const {
    std::vector<size_t> order(sizes.size());
    std::iota(order.begin(), order.end(), size_t(0));
    std::sort(order.begin(), order.end(),
              [&](size_t a, size_t b) { return strides[0][a] < strides[0][b]; });
    int64_t expected = 1;
    for (const size_t d : order) {
      if (strides[0][d] != expected) return false;
      expected *= sizes[d];
    }
    return true;
  }

  int64_t place(int i, int64_t row) const {
    int64_t found = 0;
    for (size_t d = sizes.size(); d-- > 0; row /= sizes[d]) found += row % sizes[d] * strides[i][d];
    return found;
  }

  void gathered(int64_t begin, int64_t end) const {
    float p[kPiece], g[kPiece], m[kPiece], v[kPiece];
    for (int64_t first = begin; first < end; first += kPiece) {
      const int64_t n = std::min(kPiece, end - first);
      float* const into[] = {p, g, m, v};
      for (int i : {0, 2, 3})
        for (int64_t k = 0; k < n; ++k) into[i][k] = floats(i)[place(i, first + k)];
      with_gradient([&](auto* from) {
        for (int64_t k = 0; k < n; ++k) g[k] = wide(from[place(1, first + k)]);
      });
      some_adam(scales, n, p, g, m, v, static_cast<Nothing*>(nullptr));
      for (int i : {0, 2, 3})
        for (int64_t k = 0; k < n; ++k) floats(i)[place(i, first + k)] = into[i][k];
      with_copy([&](auto* copy) {
        if constexpr (!std::is_same_v<decltype(copy), Nothing*>)
          for (int64_t k = 0; k < n; ++k) put_as(copy + place(4, first + k), p[k]);
      });
    }
  }
};

const float* floats_of(const Tensor& t, const char* wrong) {
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float && t.is_cpu(), wrong);
  return static_cast<const float*>(t.const_data_ptr());
}

void fused_adam(Tensor steps, Tensor settings, std::vector<Tensor> params,
                std::vector<Tensor> grads, std::vector<Tensor> exp_avg,
                std::vector<Tensor> exp_avg_sq, std::vector<Tensor> copies,
                std::vector<int64_t> groups, double eps, std::optional<Tensor> found_inf) {
  const size_t tensors = params.size();
  STD_TORCH_CHECK(grads.size() == tensors && exp_avg.size() == tensors &&
                      exp_avg_sq.size() == tensors && groups.size() == tensors &&
                      (copies.empty() || copies.size() == tensors),
                  "lists: expected one entry for each of ", tensors, " params");
  STD_TORCH_CHECK(steps.dim() == 1 && steps.numel() == int64_t(tensors), "steps: got ",
                  steps.numel(), " counts, expected one for each of ", tensors, " params");
  STD_TORCH_CHECK(settings.dim() == 2 && settings.size(1) == 3,
                  "settings: expected [G, 3], lr, beta1 and beta2 of each group");
  STD_TORCH_CHECK(!found_inf || found_inf->numel() == 1, "found_inf: expected one number");
  settings = torch::stable::contiguous(settings);
  floats_of(steps, "steps: expected float32 on the CPU");
  const float* each = floats_of(settings, "settings: expected float32 on the CPU");
  float* const counts = static_cast<float*>(steps.mutable_data_ptr());
  std::vector<Weights> weights;
  std::vector<int64_t> starts{0};
  weights.reserve(tensors);
  for (size_t t = 0; t < tensors; ++t) {
    STD_TORCH_CHECK(groups[t] >= 0 && groups[t] < settings.size(0), "groups: got ", groups[t],
                    ", expected 0 to ", settings.size(0) - 1);
    const float *group = each + 3 * groups[t], lr = group[0], beta1 = group[1], beta2 = group[2];
    const double step = double(counts[int64_t(t) * steps.stride(0)]) + 1;
    std::vector<Tensor> of{params[t], grads[t], exp_avg[t], exp_avg_sq[t]};
    if (!copies.empty()) of.push_back(copies[t]);
    weights.emplace_back(
        std::move(of),
        AdamScales{beta1, float(1 - double(beta1)), beta2, float(1 - double(beta2)),
                   float(lr / (1 - std::pow(double(beta1), step))),
                   float(1 / std::sqrt(1 - std::pow(double(beta2), step))), float(eps)});
    starts.push_back(starts.back() + weights.back().count);
  }
  if (found_inf && *floats_of(*found_inf, "found_inf: expected float32 on the CPU") == 1) return;
  for (size_t t = 0; t < tensors; ++t) counts[int64_t(t) * steps.stride(0)] += 1;
  // All weights in a row, so that threads share them evenly and small tensors cost no start.
  torch::stable::parallel_for(0, starts.back(), kGrain, [&](int64_t begin, int64_t end) {
    const NoDenormals none;  // dead units' moments decay to them
    size_t t = std::upper_bound(starts.begin(), starts.end(), begin) - starts.begin() - 1;
    for (; begin < end; ++t) {
      const int64_t last = std::min(end, starts[t + 1]);
      weights[t].update(begin - starts[t], last - starts[t]);
      begin = last;
    }
  });
}

STABLE_TORCH_LIBRARY_IMPL(fvae, CPU, m) { m.impl("fused_adam", TORCH_BOX(&fused_adam)); }

}  // namespace
}  // namespace fvae::host
