// The CPU op of the convolutions between an autoencoder's first and last layer, in float32.
#include "winograd.h"

#include "layers.h"

namespace fvae::host {
namespace {

// Tiles that are multiplied at once, about.
constexpr int64_t kTiles = 32;

// A function of winograd.h for each width of vectors, and the one that fits the processor.
#define FVAE_BOTH(name, parameters, arguments)                                        \
  FVAE_CLONES void name##_by_8 parameters { name<8> arguments; }                      \
  FVAE_WIDE void name##_by_16 parameters { name<kMostLanes> arguments; }              \
  void some_##name parameters {                                                       \
    kWideVectors ? name##_by_16 arguments : name##_by_8 arguments;                    \
  }

FVAE_BOTH(multiply_all,
          (int64_t rows, int64_t columns, int64_t inner, const float* a, int64_t a_row, int64_t a_step,
           const float* b, int64_t b_step, float* c, int64_t c_row, bool add),
          (rows, columns, inner, a, a_row, a_step, b, b_step, c, c_row, add))
FVAE_BOTH(split_large,
          (const Grid& g, int64_t images, const float* x, const float* zeros, Plane& to),
          (g, images, x, zeros, to))
FVAE_BOTH(split_small,
          (const Grid& g, int64_t images, const float* y, const float* zeros, Plane& to),
          (g, images, y, zeros, to))
FVAE_BOTH(join_small,
          (const Grid& g, int64_t images, const Plane& from, const float* bias, bool relu, float* none,
           float* y),
          (g, images, from, bias, relu, none, y))
FVAE_BOTH(join_large,
          (const Grid& g, int64_t images, const Plane& from, int64_t none, const float* bias,
           bool relu, float* x),
          (g, images, from, none, bias, relu, x))
FVAE_BOTH(split_weights, (const Sizes& s, int64_t o, const float* weight, Plane& to),
          (s, o, weight, to))
FVAE_BOTH(join_weights, (const Sizes& s, const Plane& from, float* weight), (s, from, weight))
#undef FVAE_BOTH

FVAE_CLONES void some_masked(int64_t n, const float* grad, const float* y, float* to) {
  mask_row(n, grad, y, to);
}
FVAE_CLONES void some_added(int64_t n, int64_t channels, const float* x, float* sums) {
  add_pixels(n, channels, x, sums);
}
FVAE_CLONES void some_turned(int64_t rows, int64_t columns, const float* from, float* to) {
  turn(rows, columns, from, to);
}
FVAE_CLONES void some_summed(int64_t n, const float* __restrict from, float* __restrict to) {
  for (int64_t i = 0; i < n; ++i) to[i] += from[i];
}

// The weights of the points: [O, 4C], and of a convolution the other way round, too.
struct Weights {
  Plane as_given, turned;

  Weights(const Sizes& s, const float* weight, bool turn)
      : as_given(s.small, kPhases * s.large), turned(turn ? kPhases * s.large : 0, s.small) {
    torch::stable::parallel_for(0, s.small, 8, [&](int64_t begin, int64_t end) {
      for (int64_t o = begin; o < end; ++o) some_split_weights(s, o, weight, as_given);
    });
    if (!turn) return;
    torch::stable::parallel_for(0, kPoints, 1, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k)
        some_turned(s.small, turned.rows, as_given.at(k), turned.at(k));
    });
  }
};

// Some images of a layer, and what they are as tiles.
struct Work {
  const Grid g;
  const int64_t rows;  // tiles of as many images as are there at once, in whole blocks
  Plane large, small;  // one row more than there are tiles stays zeros
  std::vector<float> zeros, none;

  Work(const Sizes& s, int64_t most)
      : g(s), rows(up_to(most * g.tiles(), kMostLanes)),
        large(rows + 1, kPhases * s.large), small(rows, s.small),
        zeros(std::max(s.large, s.small)), none(s.small) {}

  void halve(const Weights& weights) {
    const int64_t inner = large.columns;
    for (int k = 0; k < kPoints; ++k)
      some_multiply_all(rows, small.columns, inner, large.at(k), inner, 1, weights.turned.at(k),
                        small.columns, small.at(k), small.columns, false);
  }

  void doubled(const Weights& weights) {
    const int64_t inner = small.columns;
    for (int k = 0; k < kPoints; ++k)
      some_multiply_all(rows, large.columns, inner, small.at(k), inner, 1, weights.as_given.at(k),
                        large.columns, large.at(k), large.columns, false);
  }

  // sums = or += the weights' gradient of the points, of some images.
  void weigh(int64_t images, bool add, Plane& sums) const {
    for (int k = 0; k < kPoints; ++k)
      some_multiply_all(small.columns, large.columns, images * g.tiles(), small.at(k), 1,
                        small.columns, large.at(k), large.columns, sums.at(k), large.columns, add);
  }

  void split(bool to_large, int64_t images, const float* from) {
    to_large ? some_split_large(g, images, from, zeros.data(), large)
             : some_split_small(g, images, from, zeros.data(), small);
  }

  void join(bool from_large, int64_t images, const float* bias, bool relu, float* to) {
    from_large ? some_join_large(g, images, large, rows, bias, relu, to)
               : some_join_small(g, images, small, bias, relu, none.data(), to);
  }
};

int64_t at_once(const Sizes& s) {
  return std::clamp<int64_t>(kTiles / Grid(s).tiles(), 1, kImages);
}

}  // namespace

Tensor winograd(const Tensor& x, const Tensor& weight, const Tensor& bias, bool relu,
                bool transposed) {
  const Sizes s = sizes_of(x, weight, transposed, ScalarType::Float);
  check_layer(bias, "bias", {transposed ? s.large : s.small}, ScalarType::Float);
  Tensor y = torch::stable::new_empty(x, shape_of(s, transposed), ScalarType::Float);
  const Weights weights(s, floats(weight), !transposed);
  const int64_t some = at_once(s), groups = (s.images + some - 1) / some;
  const int64_t of_x = transposed ? s.small_image() : s.large_image();
  const int64_t of_y = transposed ? s.large_image() : s.small_image();
  torch::stable::parallel_for(0, groups, 1, [&](int64_t begin, int64_t end) {
    Work work(s, some);
    for (int64_t b = begin * some; b < std::min(end * some, s.images); b += some) {
      const int64_t images = std::min(some, s.images - b);
      work.split(!transposed, images, floats(x) + b * of_x);
      transposed ? work.doubled(weights) : work.halve(weights);
      work.join(transposed, images, floats(bias), relu, floats(y) + b * of_y);
    }
  });
  return y;
}

Gradients winograd_backward(const Tensor& grad, const std::optional<Tensor>& y, const Tensor& x,
                            const Tensor& weight, bool transposed, bool need_x) {
  const Sizes s = sizes_of(x, weight, transposed, ScalarType::Float);
  check_layer(grad, "grad", shape_of(s, transposed), ScalarType::Float);
  if (y) check_layer(*y, "y", shape_of(s, transposed), ScalarType::Float);
  const int64_t some = at_once(s), channels = transposed ? s.large : s.small;
  const auto [of_a_part, parts] = Parts(s.images);
  const int64_t of_grad = transposed ? s.large_image() : s.small_image();
  const int64_t of_x = transposed ? s.small_image() : s.large_image();
  Tensor grad_x = torch::stable::new_empty(
      x, need_x ? shape_of(s, !transposed) : std::vector<int64_t>{0}, ScalarType::Float);
  const Weights weights(s, floats(weight), need_x && transposed);
  const int64_t size = 16 * s.small * s.large;
  Tensor sums = torch::stable::new_empty(x, {parts, size}, ScalarType::Float);
  std::vector<float> biases(parts * channels);
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    Work work(s, some);
    Plane points(s.small, kPhases * s.large);
    std::vector<float> masked(y ? some * of_grad : 0), none(s.large + s.small);
    for (int64_t part = begin; part < end; ++part) {
      const int64_t first = part * of_a_part, last = std::min(s.images, first + of_a_part);
      for (int64_t b = first; b < last; b += some) {
        const int64_t images = std::min(some, last - b);
        const float* delta = floats(grad) + b * of_grad;
        if (y) {
          some_masked(images * of_grad, delta, floats(*y) + b * of_grad, masked.data());
          delta = masked.data();
        }
        some_added(images * of_grad / channels, channels, delta, biases.data() + part * channels);
        work.split(transposed, images, delta);
        work.split(!transposed, images, floats(x) + b * of_x);
        work.weigh(images, b > first, points);
        if (!need_x) continue;
        transposed ? work.halve(weights) : work.doubled(weights);
        work.join(!transposed, images, none.data(), false, floats(grad_x) + b * of_x);
      }
      some_join_weights(s, points, floats(sums) + part * size);
    }
  });
  Tensor of_weight = torch::stable::new_zeros(x, {s.small, 4, 4, s.large}, ScalarType::Float);
  Tensor of_bias = torch::stable::new_zeros(x, {channels}, ScalarType::Float);
  float *const to = floats(of_weight), *const to_bias = floats(of_bias);
  const float* const from = floats(sums);
  torch::stable::parallel_for(0, size, 1 << 12, [=](int64_t begin, int64_t end) {
    for (int64_t part = 0; part < parts; ++part)
      some_summed(end - begin, from + part * size + begin, to + begin);
  });
  for (int64_t part = 0; part < parts; ++part)
    some_summed(channels, biases.data() + part * channels, to_bias);
  return {grad_x, of_weight, of_bias};
}

}  // namespace fvae::host
