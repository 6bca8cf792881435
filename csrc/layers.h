// What the CPU ops of the convolutions between the first and the last layer ask of their tensors.
#pragma once

#include <tuple>
#include <vector>

#include "arguments.h"
#include "convs.h"

namespace fvae::host {

using Gradients = std::tuple<Tensor, Tensor, Tensor>;  // of x, weight and bias

inline void check_layer(const Tensor& t, const char* name, std::vector<int64_t> shape,
                        ScalarType dtype) {
  bool fits = t.dim() == int64_t(shape.size()) && t.is_cpu() && t.is_contiguous() &&
              t.scalar_type() == dtype;
  for (size_t i = 0; fits && i < shape.size(); ++i) fits = t.size(int64_t(i)) == shape[i];
  STD_TORCH_CHECK(fits, name,
                  ": expected bfloat16 or float32 on the CPU, in a row, of a shape and dtype that go"
                  " with the others");
}

// The sizes of a layer with x and weight of a dtype.
inline Sizes sizes_of(const Tensor& x, const Tensor& weight, bool transposed, ScalarType dtype) {
  STD_TORCH_CHECK(x.dim() == 4 && weight.dim() == 4, "x and weight: expected four dimensions");
  const int64_t by = transposed ? 1 : 2;
  const Sizes s{x.size(0), x.size(1) / by, x.size(2) / by, weight.size(3), weight.size(0)};
  check_layer(weight, "weight", {s.small, 4, 4, s.large}, dtype);
  check_layer(x, "x", {s.images, by * s.height, by * s.width, transposed ? s.small : s.large},
              dtype);
  STD_TORCH_CHECK(s.small % kPart == 0 && s.large % kPart == 0 && s.small > 0 && s.large > 0 &&
                      s.height > 0 && s.width > 0,
                  "weight: got ", s.small, " and ", s.large, " channels, expected multiples of ",
                  kPart);
  return s;
}

inline std::vector<int64_t> shape_of(const Sizes& s, bool large) {
  if (large) return {s.images, 2 * s.height, 2 * s.width, s.large};
  return {s.images, s.height, s.width, s.small};
}

inline float* floats(const Tensor& t) { return static_cast<float*>(t.data_ptr()); }

// Images whose gradients are summed apart, at least, and parts of a batch, at most.
constexpr int64_t kImages = 8, kParts = 64;

// A batch in parts that are summed apart: the same whatever the threads.
struct Parts {
  int64_t images, count;  // of a part; of parts

  explicit Parts(int64_t all)
      : images(std::max(kImages, (all + kParts - 1) / kParts)), count((all + images - 1) / images) {}
};

// conv4x4 and its gradients in float32, winograd.cpp.
Tensor winograd(const Tensor& x, const Tensor& weight, const Tensor& bias, bool relu, bool transposed);
Gradients winograd_backward(const Tensor& grad, const std::optional<Tensor>& y, const Tensor& x,
                            const Tensor& weight, bool transposed, bool need_x);

}  // namespace fvae::host
