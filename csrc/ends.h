// The two ends of an autoencoder of images, whose convolutions have few channels on one side: the
// first, of images of bits, and the last, whose output are pixels. Kernels of 4 x 4, stride 2,
// padding 1.
//
// No PyTorch in here: plain pointers in, plain pointers out. Images are [H, W, C]. An image at a time;
// what is summed over images is added up by whoever calls, in an order of its own.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "codes.h"
#include "vectors.h"

namespace fvae::host {

constexpr int kTaps = 16;  // of a kernel

// --- the first layer ------------------------------------------------------------------------------

// A layer's table: for each half of a kernel and each of its 256 bytes, C sums of weights.
constexpr int64_t kBytes = 256;

// Tables of weights [C, 16] and a bias [C], which the upper half's hold.
inline void fill_tables(const float* weight, const float* bias, int64_t channels, float* tables) {
  for (int half = 0; half < 2; ++half)
    for (int64_t byte = 0; byte < kBytes; ++byte) {
      float* const sum = tables + (half * kBytes + byte) * channels;
      if (byte == 0) {
        for (int64_t c = 0; c < channels; ++c) sum[c] = half == 0 ? bias[c] : 0.0f;
        continue;
      }
      // The last of its bits, and the byte without it, whose sum is there.
      const int last = __builtin_ctzll(uint64_t(byte));
      const float* const before = tables + (half * kBytes + (byte & (byte - 1))) * channels;
      for (int64_t c = 0; c < channels; ++c)
        sum[c] = before[c] + weight[c * kTaps + half * 8 + 7 - last];
    }
}

// The gradient of the weights, as [16, C], from tables of sums of gradients; it is added to.
FVAE_HD void add_tables(const float* tables, int64_t channels, float* weight) {
  for (int half = 0; half < 2; ++half)
    for (int64_t byte = 1; byte < kBytes; ++byte)
      for (int bit = 0; bit < 8; ++bit) {
        if (!(byte >> (7 - bit) & 1)) continue;
        const float* const sum = tables + (half * kBytes + byte) * channels;
        float* const to = weight + (half * 8 + bit) * channels;
        for (int64_t c = 0; c < channels; ++c) to[c] += sum[c];
      }
}

// The bits under the kernel at each place of an image, as two bytes.
struct Patches {
  int64_t side;                // of the image, a multiple of 8
  std::vector<uint8_t> fours;  // [side + 2, side / 2]: four bits of a row of the padded image
  std::vector<uint8_t> upper, lower;

  explicit Patches(int64_t side)
      : side(side), fours((side + 2) * side / 2), upper(side * side / 4), lower(side * side / 4) {}

  // `bits` has rows of side / 8 bytes, the first pixel in a byte's highest bit.
  void take(const uint8_t* bits) {
    const int64_t half = side / 2, bytes = side / 8;
    for (int64_t y = 0; y < side; ++y) {
      const uint8_t* const row = bits + y * bytes;
      uint8_t* to = fours.data() + (y + 1) * half;
      for (int64_t b = 0; b < bytes; ++b) {
        const uint32_t before = b ? row[b - 1] : 0, after = b + 1 < bytes ? row[b + 1] : 0;
        const uint32_t bits_around = before << 16 | uint32_t(row[b]) << 8 | after;
        for (int i = 0; i < 4; ++i) *to++ = bits_around >> (13 - 2 * i) & 15;
      }
    }
    for (int64_t y = 0; y < half; ++y) {
      const uint8_t* const from = fours.data() + 2 * y * half;
      for (int64_t x = 0; x < half; ++x) {
        upper[y * half + x] = uint8_t(from[x] << 4 | from[half + x]);
        lower[y * half + x] = uint8_t(from[2 * half + x] << 4 | from[3 * half + x]);
      }
    }
  }
};

// y = ReLU(convolution + bias) at `places`; what is not a number stays so.
template <class T>
FVAE_HD void from_bits(const uint8_t* __restrict upper, const uint8_t* __restrict lower,
                       int64_t places, int64_t channels, const float* __restrict tables,
                       T* __restrict y) {
  for (int64_t p = 0; p < places; ++p, y += channels) {
    const float* const a = tables + upper[p] * channels;
    const float* const b = tables + (kBytes + lower[p]) * channels;
    for (int64_t c = 0; c < channels; ++c) {
      const float sum = a[c] + b[c];
      put_as(y + c, sum < 0.0f ? 0.0f : sum);
    }
  }
}

// Adds the gradient at each place to the tables' entries of its bytes and to the bias's gradient.
template <class T>
FVAE_HD void from_bits_backward(const uint8_t* __restrict upper, const uint8_t* __restrict lower,
                                int64_t places, int64_t channels, const T* __restrict grad,
                                const T* __restrict y, float* __restrict delta,
                                float* __restrict tables, float* __restrict bias) {
  for (int64_t p = 0; p < places; ++p, grad += channels, y += channels) {
    for (int64_t c = 0; c < channels; ++c) {
      delta[c] = wide(y[c]) <= 0.0f ? 0.0f : wide(grad[c]);
      bias[c] += delta[c];
    }
    // Of most places of most images no bit is set, and of those no weight has a gradient.
    if (upper[p]) {
      float* const sum = tables + upper[p] * channels;
      for (int64_t c = 0; c < channels; ++c) sum[c] += delta[c];
    }
    if (lower[p]) {
      float* const sum = tables + (kBytes + lower[p]) * channels;
      for (int64_t c = 0; c < channels; ++c) sum[c] += delta[c];
    }
  }
}

// --- the last layer -------------------------------------------------------------------------------

// Places of an image's row that are worked at together.
constexpr int kTogether = 8;

// The sizes of a layer [H, W, C] -> [2H, 2W, O], and the memory that its images share.
struct ToPixels {
  int64_t height, width, channels, colours, taps;
  int64_t padded_channels, padded_width;
  bool relu;                        // the input goes through one
  std::vector<float> weight;        // [padded_channels, taps], t = o 16 + ky 4 + kx
  std::vector<float> transposed;    // [taps, padded_channels]
  std::vector<float> row;           // [padded_width, padded_channels]: a row of the input
  std::vector<float> products[3];   // [padded_width + 2, taps] of three rows, with zeros around
  std::vector<float> pixels;        // [2H + 2, 2W + 2, O]: a gradient, with zeros around
  std::vector<float> columns;       // [padded_width, taps]: the pixels under the kernel
  std::vector<float> sums;          // [2W, O]: of a gradient's columns

  // `given` is the weight [C, O, 4, 4].
  ToPixels(int64_t height, int64_t width, int64_t channels, int64_t colours, bool relu,
           const float* given)
      : height(height), width(width), channels(channels), colours(colours), taps(kTaps * colours),
        padded_channels(up_to(channels, kMostLanes)), padded_width(up_to(width, kTogether)), relu(relu),
        weight(padded_channels * taps), transposed(taps * padded_channels),
        row(padded_width * padded_channels), pixels((2 * height + 2) * (2 * width + 2) * colours),
        columns(padded_width * taps), sums(2 * width * colours) {
    for (auto& each : products) each.resize((padded_width + 2) * taps);
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t t = 0; t < taps; ++t)
        transposed[t * padded_channels + c] = weight[c * taps + t] = given[c * taps + t];
  }
};

// A row of the input [W, C] into s.row.
template <class T>
FVAE_HD void take_row(ToPixels& s, const T* __restrict x) {
  float* to = s.row.data();
  for (int64_t j = 0; j < s.width; ++j, to += s.padded_channels, x += s.channels)
    for (int64_t c = 0; c < s.channels; ++c) {
      const float value = wide(x[c]);
      to[c] = s.relu && value < 0.0f ? 0.0f : value;
    }
}

// s.row into a row [W, C] of the gradient of the input x: as it is, or where a ReLU let x through.
template <class T>
FVAE_HD void put_row(const ToPixels& s, const T* __restrict x, T* __restrict grad_x) {
  const float* __restrict from = s.row.data();
  const bool relu = s.relu;
  const int64_t channels = s.channels;
  for (int64_t j = 0; j < s.width; ++j, from += s.padded_channels, x += channels, grad_x += channels)
    for (int64_t c = 0; c < channels; ++c)
      put_as(grad_x + c, relu && wide(x[c]) <= 0.0f ? 0.0f : from[c]);
}

// out[j, k] = sum over i of x[j, i] w[i, k], of `kTogether` rows j and `lanes` columns k at once.
template <int lanes>
FVAE_HD void multiply(const float* x, int64_t rows, int64_t inner, const float* w, int64_t columns,
                      float* out) {
  for (int64_t j = 0; j < rows; j += kTogether, x += kTogether * inner, out += kTogether * columns)
    for (int64_t k = 0; k < columns; k += lanes) {
      typename Several<lanes>::Vector sum[kTogether] = {};
      for (int64_t i = 0; i < inner; ++i) {
        const auto from = Several<lanes>::at(w + i * columns + k);
        for (int u = 0; u < kTogether; ++u) sum[u] += x[u * inner + i] * from;
      }
      for (int u = 0; u < kTogether; ++u) Several<lanes>::put(out + u * columns + k, sum[u]);
    }
}

// A row of pixels [2W, O] from rows ky_a and ky_b of the kernels at two rows of products.
template <class T>
FVAE_HD void put_pixels(const ToPixels& s, const float* a, int ky_a, const float* b, int ky_b,
                        const float* bias, T* y) {
  for (int64_t j = 0; j < s.width; ++j)
    for (int64_t o = 0; o < s.colours; ++o) {
      const int64_t at = (j + 1) * s.taps + o * kTaps;  // of place j; one zero before the first
      const float *p = a + at + 4 * ky_a, *q = b + at + 4 * ky_b;
      T* const to = y + 2 * j * s.colours + o;
      put_as(to, bias[o] + ((p[1] + q[1]) + (p[3 - s.taps] + q[3 - s.taps])));
      put_as(to + s.colours, bias[o] + ((p[2] + q[2]) + (p[s.taps] + q[s.taps])));
    }
}

// An image x [H, W, C] -> y [2H, 2W, O].
template <int lanes, class T>
FVAE_HD void to_pixels(ToPixels& s, const T* x, const float* bias, T* y) {
  const int64_t line = 2 * s.width * s.colours;
  auto& products = s.products;  // of the row before, this one and the next
  for (auto& each : products) std::fill(each.begin(), each.end(), 0.0f);
  for (int64_t i = -1; i < s.height; ++i) {
    products[0].swap(products[1]), products[1].swap(products[2]);
    if (i + 1 < s.height) {
      take_row(s, x + (i + 1) * s.width * s.channels);
      multiply<lanes>(s.row.data(), s.padded_width, s.padded_channels, s.weight.data(), s.taps,
                      products[2].data() + s.taps);
    } else {
      std::fill(products[2].begin(), products[2].end(), 0.0f);
    }
    if (i < 0) continue;
    const float *before = products[0].data(), *here = products[1].data(), *next = products[2].data();
    put_pixels(s, here, 1, before, 3, bias, y + 2 * i * line);
    put_pixels(s, here, 2, next, 0, bias, y + (2 * i + 1) * line);
  }
}

// Row ky of the kernels at each place of a row, from a row of padded pixels.
FVAE_HD void take_columns(ToPixels& s, const float* pixels, int64_t ky) {
  float* to = s.columns.data() + 4 * ky;
  if (s.colours == 1) {
    for (int64_t j = 0; j < s.width; ++j, to += kTaps) std::memcpy(to, pixels + 2 * j, 16);
    return;
  }
  for (int64_t j = 0; j < s.width; ++j, to += s.taps)
    for (int64_t o = 0; o < s.colours; ++o)
      for (int64_t kx = 0; kx < 4; ++kx) to[o * kTaps + kx] = pixels[(2 * j + kx) * s.colours + o];
}

// Gradients of an image: of x into grad_x, where that is wanted; to those of weight, as s.weight is
// laid out, and of bias it is added.
template <int lanes, class T>
FVAE_HD void to_pixels_backward(ToPixels& s, const T* grad, const T* x, T* grad_x, float* weight,
                                float* bias) {
  const int64_t line = 2 * s.width * s.colours, padded = line + 2 * s.colours;
  std::fill(s.sums.begin(), s.sums.end(), 0.0f);
  float* __restrict const sums = s.sums.data();
  for (int64_t i = 0; i < 2 * s.height; ++i) {
    float* __restrict const to = s.pixels.data() + (i + 1) * padded + s.colours;
    for (int64_t j = 0; j < line; ++j) {
      to[j] = wide(grad[i * line + j]);
      sums[j] += to[j];  // many columns at once, where one sum would wait for itself
    }
  }
  for (int64_t j = 0; j < 2 * s.width; ++j)
    for (int64_t o = 0; o < s.colours; ++o) bias[o] += sums[j * s.colours + o];
  for (int64_t i = 0; i < s.height; ++i) {
    for (int64_t ky = 0; ky < 4; ++ky) take_columns(s, s.pixels.data() + (2 * i + ky) * padded, ky);
    take_row(s, x + i * s.width * s.channels);
    // As many channels at a time as taps: half the registers that a processor has are sums.
    for (int64_t c = 0; c < s.padded_channels; c += lanes)
      for (int64_t t = 0; t < s.taps; t += lanes) {
        typename Several<lanes>::Vector sum[lanes];
        for (int u = 0; u < lanes; ++u)
          sum[u] = Several<lanes>::at(weight + (c + u) * s.taps + t);
        for (int64_t j = 0; j < s.width; ++j) {
          const auto of = Several<lanes>::at(s.columns.data() + j * s.taps + t);
          const float* const h = s.row.data() + j * s.padded_channels + c;
          for (int u = 0; u < lanes; ++u) sum[u] += h[u] * of;
        }
        for (int u = 0; u < lanes; ++u)
          Several<lanes>::put(weight + (c + u) * s.taps + t, sum[u]);
      }
    if (!grad_x) continue;
    multiply<lanes>(s.columns.data(), s.padded_width, s.taps, s.transposed.data(),
                    s.padded_channels, s.row.data());
    put_row(s, x + i * s.width * s.channels, grad_x + i * s.width * s.channels);
  }
}

}  // namespace fvae::host
