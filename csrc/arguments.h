// What the CPU and the CUDA ops ask of their arguments, through PyTorch's stable ABI.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <vector>

#include "grid.h"
#include "index.h"

namespace fvae {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline bool is_floating(ScalarType dtype) {
  return dtype == ScalarType::Float || dtype == ScalarType::Double ||
         dtype == ScalarType::BFloat16 || dtype == ScalarType::Half;
}

// Low byte of the counter's second word, as fvae.philox.Stream has them.
constexpr uint32_t kVotes = 3, kPairs = 4;

inline uint32_t stream_at(uint32_t use, int64_t lane) { return uint32_t(256 * lane + use); }

// Codes [M, N, d] over a grid of factors or, with an index (fvae.ops.RowIndex), of rows with labels;
// contiguous. Of an index its maker answers for what the tensors hold: a GPU's are not looked at.
struct __attribute__((visibility("hidden"))) Input {
  Tensor codes;
  std::optional<Tensor> offsets, lists;
  Grid grid;
  int64_t models, rows, dims, factors;
  int64_t groups = 0;  // one for each value of each factor

  Input(const Tensor& given, const std::vector<int64_t>& sizes,
        const std::optional<Tensor>& given_offsets, const std::optional<Tensor>& given_rows)
      : codes(torch::stable::contiguous(given)) {
    STD_TORCH_CHECK(codes.dim() == 3, "codes: got ", codes.dim(), " dimensions, expected [M, N, d]");
    models = codes.size(0), rows = codes.size(1), dims = codes.size(2);
    // A CUDA launch has at least one block.
    STD_TORCH_CHECK(models >= 1 && dims >= 1, "codes: got ", models, " models of ", dims,
                    " dimensions, expected at least one of each");
    STD_TORCH_CHECK(!sizes.empty() && sizes.size() <= INT32_MAX, "factor_sizes: got ", sizes.size(),
                    " sizes, expected at least one");
    factors = int64_t(sizes.size());
    for (const int64_t size : sizes) {
      STD_TORCH_CHECK(size >= 1 && size <= int64_t(1) << 31,
                      "factor_sizes: a size is below 1 or above 2^31");
      groups += size;
    }
    STD_TORCH_CHECK(given_offsets.has_value() == given_rows.has_value(),
                    "offsets and rows: expected both or none");
    if (given_offsets)
      take_index(*given_offsets, *given_rows);
    else
      take_grid(sizes);
  }

  // call(source), a Grid or an Index.
  template <class Call>
  void with_source(Call call) const {
    if (offsets)
      call(Index{int(factors), uint32_t(rows),
                 Lists{groups, offsets->const_data_ptr<int64_t>(),
                       lists->const_data_ptr<int32_t>()}});
    else
      call(grid);
  }

 private:
  void take_grid(const std::vector<int64_t>& sizes) {
    STD_TORCH_CHECK(factors <= kMaxFactors, "factor_sizes: got ", factors, " sizes, expected 1 to ",
                    kMaxFactors);
    int64_t product = 1;
    for (const int64_t size : sizes) {
      STD_TORCH_CHECK(product <= (int64_t(1) << 31) / size,
                      "factor_sizes: their product is above 2^31");
      product *= size;
    }
    STD_TORCH_CHECK(rows == product, "codes: got ", rows, " rows, expected ", product,
                    ", the product of factor_sizes");
    grid.factors = int(factors);
    int64_t outer = 1;
    for (int k = 0; k < grid.factors; ++k) {
      const int64_t stride = product / outer / sizes[k];
      grid.factor[k] = {uint32_t(sizes[k]), uint32_t(stride), uint32_t(outer)};
      outer *= sizes[k];
    }
  }

  void take_index(const Tensor& given_offsets, const Tensor& given_rows) {
    STD_TORCH_CHECK(given_offsets.scalar_type() == ScalarType::Long &&
                        given_rows.scalar_type() == ScalarType::Int,
                    "offsets and rows: expected int64 and int32");
    STD_TORCH_CHECK(rows >= 1 && rows <= INT32_MAX,
                    "codes: got ", rows, " rows, expected 1 to 2^31 - 1 with an index");
    STD_TORCH_CHECK(given_offsets.dim() == 1 && given_offsets.numel() == groups + 1 &&
                        given_rows.dim() == 1 && given_rows.numel() == factors * rows,
                    "offsets and rows: got ", given_offsets.numel(), " and ", given_rows.numel(),
                    " numbers, expected ", groups + 1, " and ", factors * rows,
                    ": one offset more than there are values, and for each factor the rows of the"
                    " codes");
    offsets = torch::stable::contiguous(given_offsets);
    lists = torch::stable::contiguous(given_rows);
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
