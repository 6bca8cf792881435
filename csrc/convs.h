// Convolutions of 4 x 4, stride 2 and padding 1, their transposes and the gradients of both, as
// products of blocks of matrices that lie where they are: no pixel is written under each place of a
// kernel.
//
// No PyTorch in here: plain pointers in, plain pointers out. Images are [H, W, C]. A layer joins
// large images [2H, 2W, C] and small ones [H, W, O] by weights [O, 4, 4, C]; a convolution goes from
// large to small, a transposed one from small to large, and each has the other as its gradient.
//
// Both kinds are laid out over the same cells: (H + 1)(W + 1) of an image, one image after another.
//
//   small   the cell (i, j) has the O channels of pixel (i, j); those of the last row and the last
//           column are zeros, which stand for what is around the image and around the next one
//   large   two planes, of the even and the odd rows of the padded image; the cell (i, j) of one has
//           the 2C numbers of two pixels side by side
//
// So what is under four places of a kernel's row are two cells, one after another, for all cells of
// many images alike: rows of a matrix that overlap. Products of the zeros' cells are dropped.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "codes.h"

namespace fvae::host {

// Sides of a block of sums and of a tile; bytes of a tile's row, and of a unit: two numbers, whose
// products are added at once.
constexpr int kBlock = 32, kPart = 16, kRow = 64, kUnit = 4;

// A product that is added to a block: A [32, 16 steps] of units, B [16 steps, 32] of units.
struct Segment {
  const char* a;
  int64_t a_row;  // bytes from a row to the next; a step is 64
  const char* b;
  int64_t b_row, b_next, b_step;  // to the next unit, to columns 16 to 31, to the next step
  int64_t steps;
};

// sums [rows, columns] += or = the products of some segments; 16 or 32 rows and columns. `sums` has a
// row each `row` floats.
using Multiply = void (*)(const Segment* segments, int count, int rows, int columns, bool add,
                          float* sums, int64_t row);

// Memory for T that begins at a cache line, zeros at first.
template <class T>
class Lines {
 public:
  explicit Lines(int64_t count) : given_(count * sizeof(T) + kRow) {
    const auto at = reinterpret_cast<uintptr_t>(given_.data());
    first_ = reinterpret_cast<T*>((at + kRow - 1) / kRow * kRow);
  }
  Lines(Lines&&) = default;
  T* data() { return first_; }
  const T* data() const { return first_; }

 private:
  std::vector<char> given_;
  T* first_;
};

// Sizes of a layer.
struct Sizes {
  int64_t images, height, width;  // of the small images
  int64_t large, small;           // channels C and O

  int64_t row() const { return width + 1; }
  int64_t cells() const { return (height + 1) * row(); }
  int64_t small_image() const { return height * width * small; }
  int64_t large_image() const { return 4 * height * width * large; }
};

inline int64_t blocks_of(int64_t n) { return (n + kBlock - 1) / kBlock * kBlock; }

// --- what is done to whole rows, in vectors; csrc/convs.cpp has it for each processor ------------

// Whether a ReLU's output lets a gradient through: it is above 0, or no number.
FVAE_HD bool passes(BFloat16 y) {
  return bool(int(int16_t(y.bits) > 0) | int((y.bits & 0x7fff) > 0x7f80));
}

// to = grad where y lets it through, 0 elsewhere.
FVAE_HD void mask_row(int64_t n, const BFloat16* __restrict grad, const BFloat16* __restrict y,
                      BFloat16* __restrict to) {
  for (int64_t i = 0; i < n; ++i) to[i].bits = passes(y[i]) ? grad[i].bits : uint16_t(0);
}
FVAE_HD void mask_row(int64_t n, const float* __restrict grad, const float* __restrict y,
                      float* __restrict to) {
  for (int64_t i = 0; i < n; ++i) to[i] = y[i] <= 0.0f ? 0.0f : grad[i];
}

// sums [C] += the numbers of each of n pixels.
template <class T>
FVAE_HD void add_pixels(int64_t n, int64_t channels, const T* __restrict x, float* __restrict sums) {
  for (int64_t c = 0; c < channels; c += kPart) {
    float sum[kPart];
    for (int k = 0; k < kPart; ++k) sum[k] = sums[c + k];
    for (int64_t i = 0; i < n; ++i)
      for (int k = 0; k < kPart; ++k) sum[k] += wide(x[i * channels + c + k]);
    for (int k = 0; k < kPart; ++k) sums[c + k] = sum[k];
  }
}

// Pairs of rows of n numbers, one after another, with the numbers of both in turns.
FVAE_HD void join_rows(int64_t pairs, int64_t n, const BFloat16* __restrict from,
                       uint32_t* __restrict to) {
  for (int64_t q = 0; q < pairs; ++q, from += 2 * n, to += n)
    for (int64_t i = 0; i < n; ++i) to[i] = uint32_t(from[i].bits) | uint32_t(from[n + i].bits) << 16;
}

// [rows, columns] -> [columns, rows]; both multiples of 16.
template <class T>
FVAE_HD void turn(int64_t rows, int64_t columns, const T* __restrict from, T* __restrict to) {
  for (int64_t r = 0; r < rows; r += kPart)
    for (int64_t c = 0; c < columns; ++c)
      for (int k = 0; k < kPart; ++k) to[c * rows + r + k] = from[(r + k) * columns + c];
}

// Rows of a block, with a bias and a ReLU, to where each belongs; -1 is nowhere. Without branches on
// what the numbers are.
FVAE_HD void put_block(const float* __restrict sums, int columns, const float* __restrict bias,
                       bool relu, const int64_t* __restrict places, BFloat16* __restrict to) {
  const float least = relu ? 0.0f : -INFINITY;
  for (int r = 0; r < kBlock; ++r) {
    if (places[r] < 0) continue;
    BFloat16* const at = to + places[r];
    for (int c = 0; c < columns; c += kPart) {
      const float* const sum = sums + r * kBlock + c;
      float y[kPart];
      for (int k = 0; k < kPart; ++k) y[k] = sum[k] + bias[c + k];
      for (int k = 0; k < kPart; ++k) y[k] = y[k] < least ? least : y[k];
      for (int k = 0; k < kPart; ++k) put_as(at + c + k, y[k]);
    }
  }
}

// --- weights ---------------------------------------------------------------------------------------

// B of a product, in tiles of 16 units x 16 columns, two side by side.
class Tiles {
 public:
  static constexpr int64_t kStep = 2 * kPart * kRow;  // bytes
  int64_t segments, steps;                            // of a block of columns

  // For as many segments, numbers that are added up in each, and columns.
  Tiles(int64_t segments, int64_t inner, int64_t columns)
      : segments(segments), steps(inner / kBlock), tiles_(segments * inner * blocks_of(columns)) {}

  const char* at(int64_t block, int64_t segment) const {
    return reinterpret_cast<const char*>(tiles_.data()) + (block * segments + segment) * steps * kStep;
  }
  BFloat16* element(int64_t segment, int64_t k, int64_t n) {
    char* const tile = const_cast<char*>(at(n / kBlock, segment)) + k / kBlock * kStep +
                       n % kBlock / kPart * (kPart * kRow);
    return reinterpret_cast<BFloat16*>(tile) + k % kBlock / 2 * kBlock + n % kPart * 2 + k % 2;
  }

 private:
  Lines<BFloat16> tiles_;
};

// For a convolution: segments are rows of the kernel; weight [O, 4, 4, C].
inline Tiles tiles_of_halving(const Sizes& s, const BFloat16* weight) {
  Tiles found(4, 4 * s.large, s.small);
  for (int64_t o = 0; o < s.small; ++o)
    for (int64_t ky = 0; ky < 4; ++ky)
      for (int64_t k = 0; k < 4 * s.large; ++k)
        *found.element(ky, k, o) = weight[(o * 4 + ky) * 4 * s.large + k];
  return found;
}

// For a transposed one: a set for each parity (a, b) of the large pixels, of two segments each.
inline std::vector<Tiles> tiles_of_doubling(const Sizes& s, const BFloat16* weight) {
  std::vector<Tiles> found;
  for (int parity = 0; parity < 4; ++parity) {
    const int64_t a = parity / 2, b = parity % 2;
    found.emplace_back(2, 2 * s.small, s.large);
    for (int64_t t = 0; t < 2; ++t)
      for (int64_t k = 0; k < 2 * s.small; ++k) {
        const int64_t o = k % s.small, ky = 3 - a - 2 * t, kx = 3 - b - 2 * (k / s.small);
        const BFloat16* const from = weight + ((o * 4 + ky) * 4 + kx) * s.large;
        for (int64_t c = 0; c < s.large; ++c) *found.back().element(t, k, c) = from[c];
      }
  }
  return found;
}

}  // namespace fvae::host
