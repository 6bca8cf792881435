// What the CPU and the CUDA ops ask of their arguments, through PyTorch's stable ABI.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <vector>

#include "grid.h"

namespace fvae {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Low byte of the counter's second word, as fvae.philox.Stream has them.
constexpr uint32_t kVotes = 3, kPairs = 4;

inline uint32_t stream_at(uint32_t use, int64_t lane) { return uint32_t(256 * lane + use); }

// Codes [M, N, d] over a grid of factors; contiguous.
struct __attribute__((visibility("hidden"))) Input {
  Tensor codes;
  Grid grid;
  int64_t models, rows, dims;

  Input(const Tensor& given, const std::vector<int64_t>& sizes)
      : codes(torch::stable::contiguous(given)) {
    STD_TORCH_CHECK(codes.dim() == 3, "codes: got ", codes.dim(), " dimensions, expected [M, N, d]");
    models = codes.size(0), rows = codes.size(1), dims = codes.size(2);
    // A CUDA launch has at least one block.
    STD_TORCH_CHECK(models >= 1 && dims >= 1, "codes: got ", models, " models of ", dims,
                    " dimensions, expected at least one of each");
    STD_TORCH_CHECK(!sizes.empty() && sizes.size() <= kMaxFactors, "factor_sizes: got ",
                    sizes.size(), " sizes, expected 1 to ", kMaxFactors);
    int64_t product = 1;
    for (const int64_t size : sizes) {
      STD_TORCH_CHECK(size >= 1 && product <= (int64_t(1) << 31) / size,
                      "factor_sizes: a size is below 1, or their product is above 2^31");
      product *= size;
    }
    STD_TORCH_CHECK(rows == product, "codes: got ", rows, " rows, expected ", product,
                    ", the product of factor_sizes");
    grid.factors = int(sizes.size());
    int64_t outer = 1;
    for (int k = 0; k < grid.factors; ++k) {
      const int64_t stride = product / outer / sizes[k];
      grid.factor[k] = {uint32_t(sizes[k]), uint32_t(stride), uint32_t(outer)};
      outer *= sizes[k];
    }
  }

  int64_t cells() const {
    int64_t sum = 0;
    for (int k = 0; k < grid.factors; ++k) sum += grid.factor[k].size;
    return sum;
  }
};

// A set of draws must fit the 32-bit index of the counter.
inline void check_draws(int64_t count, int64_t groups_a_set, int64_t samples, int64_t least) {
  STD_TORCH_CHECK(samples >= least, "got ", samples, " samples a set, expected at least ", least);
  STD_TORCH_CHECK(count >= 1 && count <= (int64_t(1) << 32) / groups_a_set, "got ", count,
                  " sets, expected 1 to 2^32 / ", groups_a_set);
}

// scale (float32) and active (bool), [M, d].
inline void check_each(const Input& input, const Tensor& scale, const Tensor& active) {
  for (const Tensor* t : {&scale, &active})
    STD_TORCH_CHECK(t->dim() == 2 && t->size(0) == input.models && t->size(1) == input.dims,
                    "scale and active: expected shape [M, d] of the codes");
  STD_TORCH_CHECK(scale.scalar_type() == ScalarType::Float, "scale: expected float32");
  STD_TORCH_CHECK(active.scalar_type() == ScalarType::Bool, "active: expected bool");
}

inline void check_key(const Tensor& seed, const Tensor& step) {
  for (const Tensor* t : {&seed, &step})
    STD_TORCH_CHECK(t->numel() == 1 && t->scalar_type() == ScalarType::Long,
                    "seed and step: expected one int64 each");
}

}  // namespace fvae
