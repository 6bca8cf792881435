// The CPU op of the convolutions between an autoencoder's first and last layer, and its gradients.
#include <cstring>

#include "host.h"
#include "layers.h"
#include "tiles.h"

namespace fvae::host {
namespace {

// Cells that are multiplied at once, about.
constexpr int64_t kCells = 256;

FVAE_CLONES void some_masked(int64_t n, const BFloat16* grad, const BFloat16* y, BFloat16* to) {
  mask_row(n, grad, y, to);
}
FVAE_CLONES void some_added(int64_t n, int64_t channels, const BFloat16* x, float* sums) {
  add_pixels(n, channels, x, sums);
}
FVAE_CLONES void some_put(const float* sums, int columns, const float* bias, bool relu,
                          const int64_t* places, BFloat16* to) {
  put_block(sums, columns, bias, relu, places, to);
}
FVAE_CLONES void some_joined(int64_t pairs, int64_t n, const BFloat16* from, uint32_t* to) {
  join_rows(pairs, n, from, to);
}
FVAE_CLONES void some_turned(int64_t rows, int64_t columns, const uint32_t* from, uint32_t* to) {
  turn(rows, columns, from, to);
}

// Some images of a layer, laid out over cells.
struct Cells {
  const Sizes s;
  const int64_t most, total;     // images at once; cells of them, in whole blocks
  Lines<BFloat16> small, large;  // small has zeros in front; large has two planes
  int64_t count = 0;             // images that are there

  Cells(const Sizes& s, int64_t most, bool small, bool large)
      : s(s), most(most), total(blocks_of(most * s.cells())),
        small(small ? (lead() + total + lead()) * s.small : 0), large(large ? 2 * plane() : 0) {}

  int64_t lead() const { return s.row() + 1; }
  // One more block than there are cells: what is read beyond is dropped.
  int64_t plane() const { return (total + lead() + kBlock) * 2 * s.large; }
  BFloat16* first_small() { return small.data() + lead() * s.small; }

  // Take images from `from`; where `y` is given, with the mask of its ReLU and the sums of channels.
  void take_small(const BFloat16* from, const BFloat16* y, float* sums, int64_t images) {
    BFloat16* const to = first_small();
    const int64_t cells = s.cells(), row = s.width * s.small;
    for (int64_t b = 0; b < images; ++b)
      for (int64_t i = 0; i < s.height; ++i) {
        const int64_t at = b * s.small_image() + i * row;
        take_row(from + at, y ? y + at : nullptr, sums, row, s.small,
                 to + (b * cells + i * s.row()) * s.small);
      }
    // What an earlier, larger set has left.
    for (int64_t at = images * cells * s.small; at < total * s.small; ++at) to[at] = BFloat16{};
    count = images;
  }

  void take_large(const BFloat16* from, const BFloat16* y, float* sums, int64_t images) {
    const int64_t cells = s.cells(), row = 2 * s.width * s.large;
    for (int64_t b = 0; b < images; ++b)
      for (int64_t i = 0; i < 2 * s.height; ++i) {
        const int64_t at = b * s.large_image() + i * row, padded = i + 1;
        const int64_t cell = b * cells + padded / 2 * s.row();
        take_row(from + at, y ? y + at : nullptr, sums, row, s.large,
                 large.data() + padded % 2 * plane() + cell * 2 * s.large + s.large);
      }
    count = images;
  }

  // Where each of the 32 cells from one on belongs, by place(image, row, column); -1 is nowhere.
  template <class Place>
  void places(int64_t first, int64_t* found, Place place) const {
    for (int r = 0; r < kBlock; ++r) {
      const int64_t cell = first + r, b = cell / s.cells(), rest = cell % s.cells();
      const int64_t i = rest / s.row(), j = rest % s.row();
      found[r] = b < count && i < s.height && j < s.width ? place(b, i, j) : -1;
    }
  }

 private:
  static void take_row(const BFloat16* from, const BFloat16* y, float* sums, int64_t n, int64_t channels,
                       BFloat16* to) {
    if (y)
      some_masked(n, from, y, to);
    else
      std::memcpy(to, from, n * sizeof(BFloat16));
    if (sums) some_added(n / channels, channels, to, sums);
  }
};

template <class T>
const char* bytes(const T* at) {
  return reinterpret_cast<const char*>(at);
}

Segment segment_of_tiles(const char* a, int64_t a_row, const char* b, int64_t steps) {
  return {a, a_row, b, kRow, kPart * kRow, 2 * kPart * kRow, steps};
}

// small images = the convolution of the large ones that are there.
void halve(const Cells& cells, const Tiles& tiles, Multiply multiply, const float* bias, bool relu,
           BFloat16* to) {
  const Sizes& s = cells.s;
  alignas(kRow) float sums[kBlock * kBlock];
  int64_t places[kBlock];
  const int64_t end = cells.count * s.cells();
  for (int64_t p = 0; p < end; p += kBlock) {
    cells.places(p, places, [&](int64_t b, int64_t i, int64_t j) {
      return ((b * s.height + i) * s.width + j) * s.small;
    });
    for (int64_t n = 0; n < s.small; n += kBlock) {
      Segment rows[4];
      for (int ky = 0; ky < 4; ++ky) {
        const BFloat16* const from = cells.large.data() + ky % 2 * cells.plane() +
                                     (p + ky / 2 * s.row()) * 2 * s.large;
        rows[ky] = segment_of_tiles(bytes(from), 2 * s.large * sizeof(BFloat16),
                                    tiles.at(n / kBlock, ky), tiles.steps);
      }
      const int columns = int(std::min<int64_t>(kBlock, s.small - n));
      multiply(rows, 4, kBlock, columns, false, sums, kBlock);
      some_put(sums, columns, bias + n, relu, places, to + n);
    }
  }
}

// large images = the transposed convolution of the small ones that are there.
void doubled(Cells& cells, const std::vector<Tiles>& tiles, Multiply multiply, const float* bias,
             bool relu, BFloat16* to) {
  const Sizes& s = cells.s;
  alignas(kRow) float sums[kBlock * kBlock];
  int64_t places[kBlock];
  const int64_t end = cells.count * s.cells();
  for (int64_t p = 0; p < end; p += kBlock) {
    cells.places(p, places, [&](int64_t b, int64_t i, int64_t j) {
      return ((b * 2 * s.height + 2 * i) * 2 * s.width + 2 * j) * s.large;
    });
    for (int parity = 0; parity < 4; ++parity) {
      const int64_t a = parity / 2, b = parity % 2;
      BFloat16* const of_parity = to + (a * 2 * s.width + b) * s.large;
      for (int64_t n = 0; n < s.large; n += kBlock) {
        Segment rows[2];
        for (int64_t t = 0; t < 2; ++t) {
          const BFloat16* const from =
              cells.first_small() + (p + (a - 1 + t) * s.row() + b - 1) * s.small;
          rows[t] = segment_of_tiles(bytes(from), s.small * sizeof(BFloat16),
                                     tiles[parity].at(n / kBlock, t), tiles[parity].steps);
        }
        const int columns = int(std::min<int64_t>(kBlock, s.large - n));
        multiply(rows, 2, kBlock, columns, false, sums, kBlock);
        some_put(sums, columns, bias + n, relu, places, of_parity + n);
      }
    }
  }
}

// The gradient of the weights: sums over cells of small x large, as [row of the kernel, half of it]
// [O, 2C].
struct WeightSums {
  const Sizes s;
  int64_t units;                           // of the cells
  Lines<uint32_t> turned, even, odd, few;  // [O, units]; pairs of cells of both planes; of small

  WeightSums(const Cells& cells)
      : s(cells.s), units(cells.total / 2), turned(units * s.small), even(cells.plane()),
        odd(cells.plane()), few(units * s.small) {}

  // sums += those of the images that are there.
  void add(Cells& cells, Multiply multiply, float* sums) {
    const int64_t width = 2 * s.large, pairs = cells.plane() / width / 2;
    some_joined(units, s.small, cells.first_small(), few.data());
    for (int plane = 0; plane < 2; ++plane) {
      const BFloat16* const from = cells.large.data() + plane * cells.plane();
      some_joined(pairs, width, from, even.data() + plane * pairs * width);
      some_joined(pairs - 1, width, from + width, odd.data() + plane * pairs * width);
    }
    some_turned(units, s.small, few.data(), turned.data());
    for (int64_t part = 0; part < 8; ++part) {
      const int64_t ky = part / 2, shift = ky / 2 * s.row() + part % 2, plane = ky % 2;
      const uint32_t* const joined = shift % 2 ? odd.data() : even.data();
      const char* const from = bytes(joined + (plane * pairs + shift / 2) * width);
      for (int64_t o = 0; o < s.small; o += kBlock)
        for (int64_t n = 0; n < width; n += kBlock) {
          const Segment one{bytes(turned.data() + o * units), units * kUnit,
                            from + n * kUnit, width * kUnit, kRow, kPart * width * kUnit,
                            units / kPart};
          multiply(&one, 1, int(std::min<int64_t>(kBlock, s.small - o)), kBlock, true,
                   sums + (part * s.small + o) * width + n, width);
        }
    }
  }
};

// --- the ops -----------------------------------------------------------------------------------

void check(const Tensor& t, const char* name, std::vector<int64_t> shape) {
  check_layer(t, name, std::move(shape), ScalarType::BFloat16);
}

int64_t at_once(const Sizes& s) { return std::clamp<int64_t>(kCells / s.cells(), 1, kImages); }

BFloat16* numbers(const Tensor& t) { return static_cast<BFloat16*>(t.data_ptr()); }

Tensor conv4x4(Tensor x, Tensor weight, Tensor bias, bool relu, bool transposed) {
  if (x.scalar_type() == ScalarType::Float) return winograd(x, weight, bias, relu, transposed);
  const Sizes s = sizes_of(x, weight, transposed, ScalarType::BFloat16);
  const int64_t channels = transposed ? s.large : s.small;
  check(bias, "bias", {channels});
  std::vector<float> biases(channels);
  for (int64_t c = 0; c < channels; ++c) biases[c] = wide(numbers(bias)[c]);
  Tensor y = torch::stable::new_empty(x, shape_of(s, transposed), ScalarType::BFloat16);
  const int64_t some = at_once(s), groups = (s.images + some - 1) / some;
  const Multiply multiply = multiply_here();
  std::vector<Tiles> tiles;
  if (transposed)
    tiles = tiles_of_doubling(s, numbers(weight));
  else
    tiles.push_back(tiles_of_halving(s, numbers(weight)));
  torch::stable::parallel_for(0, groups, 1, [&](int64_t begin, int64_t end) {
    const TilesOn on;
    Cells cells(s, some, transposed, !transposed);
    for (int64_t group = begin; group < end; ++group) {
      const int64_t b = group * some, images = std::min(some, s.images - b);
      if (transposed) {
        cells.take_small(numbers(x) + b * s.small_image(), nullptr, nullptr, images);
        doubled(cells, tiles, multiply, biases.data(), relu, numbers(y) + b * s.large_image());
      } else {
        cells.take_large(numbers(x) + b * s.large_image(), nullptr, nullptr, images);
        halve(cells, tiles[0], multiply, biases.data(), relu, numbers(y) + b * s.small_image());
      }
    }
  });
  return y;
}

// Sums of parts of a batch, in their order: [row and half of a kernel, O, 2C] of each part ->
// [O, 4, 4, C].
void add_parts(const Sizes& s, const std::vector<float>& sums, int64_t parts, float* to) {
  const int64_t width = 2 * s.large, size = 8 * s.small * width;
  torch::stable::parallel_for(0, s.small, 8, [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o)
      for (int64_t half = 0; half < 8; ++half)
        for (int64_t part = 0; part < parts; ++part) {
          const float* const from = sums.data() + part * size + (half * s.small + o) * width;
          float* const at = to + (o * 8 + half) * width;
          for (int64_t i = 0; i < width; ++i) at[i] += from[i];
        }
  });
}

Gradients conv4x4_backward(Tensor grad, std::optional<Tensor> y, Tensor x, Tensor weight,
                           bool transposed, bool need_x) {
  if (x.scalar_type() == ScalarType::Float)
    return winograd_backward(grad, y, x, weight, transposed, need_x);
  const Sizes s = sizes_of(x, weight, transposed, ScalarType::BFloat16);
  check(grad, "grad", shape_of(s, transposed));
  if (y) check(*y, "y", shape_of(s, transposed));
  const int64_t some = at_once(s);
  const auto [of_a_part, parts] = Parts(s.images);
  const int64_t size = 16 * s.small * s.large, channels = transposed ? s.large : s.small;
  const int64_t grad_image = transposed ? s.large_image() : s.small_image();
  const int64_t x_image = transposed ? s.small_image() : s.large_image();
  Tensor grad_x = torch::stable::new_empty(
      x, need_x ? shape_of(s, !transposed) : std::vector<int64_t>{0}, ScalarType::BFloat16);
  const Multiply multiply = multiply_here();
  std::vector<Tiles> tiles;
  if (need_x && !transposed) tiles = tiles_of_doubling(s, numbers(weight));
  if (need_x && transposed) tiles.push_back(tiles_of_halving(s, numbers(weight)));
  std::vector<float> sums(parts * size), biases(parts * channels), none(s.small + s.large);
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    const TilesOn on;
    Cells cells(s, some, true, true);
    WeightSums weights(cells);
    for (int64_t part = begin; part < end; ++part) {
      const int64_t last = std::min(s.images, (part + 1) * of_a_part);
      for (int64_t b = part * of_a_part; b < last; b += some) {
        const int64_t images = std::min(some, last - b);
        const BFloat16* const from = numbers(grad) + b * grad_image;
        const BFloat16* const of_y = y ? numbers(*y) + b * grad_image : nullptr;
        const BFloat16* const of_x = numbers(x) + b * x_image;
        float* const bias = biases.data() + part * channels;
        if (transposed) {
          cells.take_large(from, of_y, bias, images);
          cells.take_small(of_x, nullptr, nullptr, images);
        } else {
          cells.take_small(from, of_y, bias, images);
          cells.take_large(of_x, nullptr, nullptr, images);
        }
        weights.add(cells, multiply, sums.data() + part * size);
        if (need_x && transposed)
          halve(cells, tiles[0], multiply, none.data(), false, numbers(grad_x) + b * x_image);
        else if (need_x)
          doubled(cells, tiles, multiply, none.data(), false, numbers(grad_x) + b * x_image);
      }
    }
  });
  Tensor of_weight = torch::stable::new_zeros(x, {s.small, 4, 4, s.large}, ScalarType::Float);
  Tensor of_bias = torch::stable::new_zeros(x, {channels}, ScalarType::Float);
  add_parts(s, sums, parts, floats(of_weight));
  for (int64_t part = 0; part < parts; ++part)
    for (int64_t c = 0; c < channels; ++c) floats(of_bias)[c] += biases[part * channels + c];
  return {grad_x, of_weight, of_bias};
}

bool has_matrix_units(Tensor) { return has_tiles(); }

STABLE_TORCH_LIBRARY_IMPL(fvae, CPU, m) {
  m.impl("conv4x4", TORCH_BOX(&conv4x4));
  m.impl("conv4x4_backward", TORCH_BOX(&conv4x4_backward));
  m.impl("has_matrix_units", TORCH_BOX(&has_matrix_units));
}

}  // namespace
}  // namespace fvae::host
