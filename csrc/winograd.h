// Convolutions of 4 x 4, stride 2 and padding 1 in float32 with 9 products where 16 are due
// (Winograd 1980; Lavin & Gray 2016 have it for convolutional networks).
//
// No PyTorch in here: plain pointers in, plain pointers out. Images and weights are those of convs.h:
// large ones [2H, 2W, C], small ones [H, W, O], weights [O, 4, 4, C].
//
// The pixels of a padded large image in even and in odd rows and columns are four images, its phases,
// each of which the layer convolves with 2 x 2 weights at stride 1. Two pixels y of a row of such a
// convolution, of three numbers d with two weights g, take three products for four:
//
//   y0 = d0 g0 + d1 g1 = m0 + m1        m0 = (d0 - d1) g0
//   y1 = d1 g0 + d2 g1 = m1 + m2        m1 = d1 (g0 + g1)        m2 = (d2 - d1) g1
//
// and down and along a tile of 2 x 2 pixels takes 9 for 16. For each of the 9 points k the products of
// all T tiles are one of two matrices, large[k] [T, 4C], small[k] [T, O] and weights[k] [O, 4C]:
//
//   convolution            small[k] = large[k] weights[k]^T
//   transposed one         large[k] = small[k] weights[k]
//   gradient of weights    weights[k] = small[k]^T large[k]
//
// To split is to make such matrices: of a large image by the differences above, of weights by the sums
// above, and of a small image, of which y is what comes out, by the sums' transpose: m0 = y0,
// m1 = y0 + y1, m2 = y1. To join is the transpose of each: of a small image the sums above, of a large
// one the differences', where tiles overlap. What is no finite number spreads over its tiles.
#pragma once

#include "convs.h"
#include "vectors.h"

namespace fvae::host {

constexpr int kPoints = 9, kPhases = 4;
// Rows of a matrix that are multiplied together: as many sums as registers hold.
template <int lanes>
constexpr int kRows = lanes == kMostLanes ? 8 : 4;
// Numbers between the ends of two points' matrices, so that they share no place in a cache.
constexpr int64_t kApart = 16;

// Some images of a layer as tiles: the matrices of all points.
struct Plane {
  int64_t rows, columns;  // of a matrix
  Lines<float> numbers;

  Plane(int64_t rows, int64_t columns)
      : rows(rows), columns(columns), numbers(kPoints * (rows * columns + kApart)) {}

  float* at(int64_t point) { return numbers.data() + point * (rows * columns + kApart); }
  const float* at(int64_t point) const {
    return numbers.data() + point * (rows * columns + kApart);
  }
};

// The tiles of images of a layer.
struct Grid {
  Sizes s;
  int64_t height, width;  // in tiles

  explicit Grid(const Sizes& s) : s(s), height((s.height + 1) / 2), width((s.width + 1) / 2) {}
  int64_t tiles() const { return height * width; }
};

// --- products ------------------------------------------------------------------------------------

// c [rows, vectors * lanes] = or += a b over `inner`; a has an element each `a_row` down and each
// `a_step` along, b a row each `b_step`.
template <int lanes, int rows, int vectors>
FVAE_HD void multiply_block(int64_t inner, const float* a, int64_t a_row, int64_t a_step,
                            const float* b, int64_t b_step, float* c, int64_t c_row, bool add) {
  using Some = Several<lanes>;
  typename Some::Vector sum[rows][vectors] = {};
  for (int64_t k = 0; k < inner; ++k, a += a_step, b += b_step) {
    typename Some::Vector from[vectors];
    for (int v = 0; v < vectors; ++v) from[v] = Some::at(b + v * lanes);
    for (int u = 0; u < rows; ++u)
      for (int v = 0; v < vectors; ++v) sum[u][v] += a[u * a_row] * from[v];
  }
  for (int u = 0; u < rows; ++u)
    for (int v = 0; v < vectors; ++v) {
      float* const to = c + u * c_row + v * lanes;
      Some::put(to, add ? Some::at(to) + sum[u][v] : sum[u][v]);
    }
}

// c [rows, columns] = or += a b: rows of kRows, columns of 16.
template <int lanes>
FVAE_HD void multiply_all(int64_t rows, int64_t columns, int64_t inner, const float* a, int64_t a_row,
                          int64_t a_step, const float* b, int64_t b_step, float* c, int64_t c_row,
                          bool add) {
  constexpr int some = kRows<lanes>;
  int64_t n = 0;
  for (; n + 2 * lanes <= columns; n += 2 * lanes)
    for (int64_t m = 0; m < rows; m += some)
      multiply_block<lanes, some, 2>(inner, a + m * a_row, a_row, a_step, b + n, b_step,
                                     c + m * c_row + n, c_row, add);
  for (; n < columns; n += lanes)
    for (int64_t m = 0; m < rows; m += some)
      multiply_block<lanes, some, 1>(inner, a + m * a_row, a_row, a_step, b + n, b_step,
                                     c + m * c_row + n, c_row, add);
}

// --- tiles ------------------------------------------------------------------------------------------

// Numbers at 0, 2, 6 and 8 of 3 x 3 -> with their sums between.
template <class Vector>
FVAE_HD void add_between(Vector* e) {
  e[3] = e[0] + e[6], e[5] = e[2] + e[8];
  for (int u = 0; u < 3; ++u) e[3 * u + 1] = e[3 * u] + e[3 * u + 2];
}

// Its transpose: number (u, v) of 2 x 2 is then m[3 + 2v] + m[6u + 2v].
template <class Vector>
FVAE_HD void add_middle(Vector* m) {
  for (int u = 0; u < 3; ++u) m[3 * u] += m[3 * u + 1], m[3 * u + 2] += m[3 * u + 1];
}

// --- images as tiles, and back ---------------------------------------------------------------------

// Images of a layer -> to, a row a tile. Number (r, q) of phase (a, b) is pixel (2r + a - 1, 2q + b - 1);
// tile (i, j) has those from (2i, 2j) to (2i + 2, 2j + 2).
template <int lanes>
FVAE_HD void split_large(const Grid& g, int64_t images, const float* x, const float* zeros,
                         Plane& to) {
  using Some = Several<lanes>;
  const Sizes& s = g.s;
  int64_t t = 0;
  for (int64_t b = 0; b < images; ++b, x += s.large_image())
    for (int64_t i = 0; i < g.height; ++i)
      for (int64_t j = 0; j < g.width; ++j, ++t)
        for (int phase = 0; phase < kPhases; ++phase) {
          const float* from[9];
          for (int u = 0; u < 3; ++u)
            for (int v = 0; v < 3; ++v) {
              const int64_t y = 2 * (2 * i + u) + phase / 2 - 1, z = 2 * (2 * j + v) + phase % 2 - 1;
              const bool inside = y >= 0 && z >= 0 && y < 2 * s.height && z < 2 * s.width;
              from[3 * u + v] = inside ? x + (y * 2 * s.width + z) * s.large : zeros;
            }
          float* const at = to.at(0) + t * to.columns + phase * s.large;
          const int64_t next = to.at(1) - to.at(0);
          for (int64_t c = 0; c < s.large; c += lanes) {
            typename Some::Vector d[9];
            for (int k = 0; k < 9; ++k) d[k] = Some::at(from[k] + c);
            for (int u = 0; u < 3; ++u)
              d[3 * u] -= d[3 * u + 1], d[3 * u + 2] -= d[3 * u + 1];
            for (int v = 0; v < 3; ++v) d[v] -= d[3 + v], d[6 + v] -= d[3 + v];
            for (int k = 0; k < 9; ++k) Some::put(at + k * next + c, d[k]);
          }
        }
}

// The four pixels of a tile of a small image, `none` where the image has ended.
template <class T>
FVAE_HD void pixels_of(const Sizes& s, T* image, int64_t i, int64_t j, T* none, T** found) {
  for (int u = 0; u < 2; ++u)
    for (int v = 0; v < 2; ++v) {
      const bool inside = 2 * i + u < s.height && 2 * j + v < s.width;
      found[2 * u + v] = inside ? image + ((2 * i + u) * s.width + 2 * j + v) * s.small : none;
    }
}

// The same of small images; tile (i, j) has the pixels from (2i, 2j) to (2i + 1, 2j + 1).
template <int lanes>
FVAE_HD void split_small(const Grid& g, int64_t images, const float* y, const float* zeros,
                         Plane& to) {
  using Some = Several<lanes>;
  const Sizes& s = g.s;
  const int64_t next = to.at(1) - to.at(0);
  float* at = to.at(0);
  for (int64_t b = 0; b < images; ++b, y += s.small_image())
    for (int64_t i = 0; i < g.height; ++i)
      for (int64_t j = 0; j < g.width; ++j, at += to.columns) {
        const float* from[4];
        pixels_of(s, y, i, j, zeros, from);
        for (int64_t o = 0; o < s.small; o += lanes) {
          typename Some::Vector e[9];
          e[0] = Some::at(from[0] + o), e[2] = Some::at(from[1] + o);
          e[6] = Some::at(from[2] + o), e[8] = Some::at(from[3] + o);
          add_between(e);
          for (int k = 0; k < 9; ++k) Some::put(at + k * next + o, e[k]);
        }
      }
}

// A sum as an output: after its ReLU, if there is one.
template <int lanes>
FVAE_HD typename Several<lanes>::Vector finished(typename Several<lanes>::Vector x, bool relu) {
  if (!relu) return x;
  // What is no number stays so.
  return x < 0.0f ? typename Several<lanes>::Vector{} : x;
}

// Small images from their tiles.
template <int lanes>
FVAE_HD void join_small(const Grid& g, int64_t images, const Plane& from, const float* bias, bool relu,
                        float* none, float* y) {
  using Some = Several<lanes>;
  const Sizes& s = g.s;
  const int64_t next = from.at(1) - from.at(0);
  const float* at = from.at(0);
  for (int64_t b = 0; b < images; ++b, y += s.small_image())
    for (int64_t i = 0; i < g.height; ++i)
      for (int64_t j = 0; j < g.width; ++j, at += from.columns) {
        float* to[4];
        pixels_of(s, y, i, j, none, to);
        for (int64_t o = 0; o < s.small; o += lanes) {
          typename Some::Vector m[9];
          for (int k = 0; k < 9; ++k) m[k] = Some::at(at + k * next + o);
          add_middle(m);
          const auto more = Some::at(bias + o);
          for (int u = 0; u < 2; ++u)
            for (int v = 0; v < 2; ++v)
              Some::put(to[2 * u + v] + o,
                        finished<lanes>(m[3 + 2 * v] + m[6 * u + 2 * v] + more, relu));
        }
      }
}

// Large images from their tiles: tile (i, j) makes the numbers (2i, 2j) to (2i + 1, 2j + 1) of each
// phase, to which the tiles above and before it add what reaches over. Tile `none` is zeros.
template <int lanes>
FVAE_HD void join_large(const Grid& g, int64_t images, const Plane& from, int64_t none,
                        const float* bias, bool relu, float* x) {
  using Some = Several<lanes>;
  const Sizes& s = g.s;
  const int64_t next = from.at(1) - from.at(0), down = 3 * next;
  for (int64_t b = 0; b < images; ++b, x += s.large_image())
    for (int64_t i = 0; i <= s.height / 2; ++i)
      for (int64_t j = 0; j <= s.width / 2; ++j) {
        const auto tile = [&](int64_t i, int64_t j) {
          const bool inside = i >= 0 && j >= 0 && i < g.height && j < g.width;
          return from.at(0) + (inside ? b * g.tiles() + i * g.width + j : none) * from.columns;
        };
        const float *here = tile(i, j), *above = tile(i - 1, j) + 2 * down;
        const float *before = tile(i, j - 1) + 2 * next, *corner = tile(i - 1, j - 1) + 8 * next;
        for (int phase = 0; phase < kPhases; ++phase) {
          float* to[4];
          for (int u = 0; u < 2; ++u)
            for (int v = 0; v < 2; ++v) {
              const int64_t y = 2 * (2 * i + u) + phase / 2 - 1, z = 2 * (2 * j + v) + phase % 2 - 1;
              const bool inside = y >= 0 && z >= 0 && y < 2 * s.height && z < 2 * s.width;
              to[2 * u + v] = inside ? x + (y * 2 * s.width + z) * s.large : nullptr;
            }
          for (int64_t c = 0, at = phase * s.large; c < s.large; c += lanes, at += lanes) {
            typename Some::Vector p[2][3];
            for (int u = 0; u < 3; ++u) {
              const float* const row = here + u * down + at;
              const auto first = Some::at(row);
              p[0][u] = first, p[1][u] = Some::at(row + next) - first - Some::at(row + 2 * next);
            }
            const auto more = Some::at(bias + c);
            auto q00 = p[0][0] + more, q10 = p[0][1] - p[0][0] - p[0][2] + more;
            auto q01 = p[1][0] + more, q11 = p[1][1] - p[1][0] - p[1][2] + more;
            const auto up = Some::at(above + at), left = Some::at(before + at);
            q00 += up, q01 += Some::at(above + next + at) - up - Some::at(above + 2 * next + at);
            q00 += left;
            q10 += Some::at(before + down + at) - left - Some::at(before + 2 * down + at);
            q00 += Some::at(corner + at);
            if (to[0]) Some::put(to[0] + c, finished<lanes>(q00, relu));
            if (to[1]) Some::put(to[1] + c, finished<lanes>(q01, relu));
            if (to[2]) Some::put(to[2] + c, finished<lanes>(q10, relu));
            if (to[3]) Some::put(to[3] + c, finished<lanes>(q11, relu));
          }
        }
      }
}

// --- weights -----------------------------------------------------------------------------------------

// Weights [O, 4, 4, C] of some o -> those of the points [O, 4C].
template <int lanes>
FVAE_HD void split_weights(const Sizes& s, int64_t o, const float* weight, Plane& to) {
  using Some = Several<lanes>;
  for (int phase = 0; phase < kPhases; ++phase)
    for (int64_t c = 0; c < s.large; c += lanes) {
      typename Some::Vector e[9];
      for (int p = 0; p < 2; ++p)
        for (int q = 0; q < 2; ++q)
          e[6 * p + 2 * q] = Some::at(
              weight + ((o * 4 + 2 * p + phase / 2) * 4 + 2 * q + phase % 2) * s.large + c);
      add_between(e);
      for (int k = 0; k < 9; ++k) Some::put(to.at(k) + o * to.columns + phase * s.large + c, e[k]);
    }
}

// And their gradient: those of the points -> [O, 4, 4, C].
template <int lanes>
FVAE_HD void join_weights(const Sizes& s, const Plane& from, float* weight) {
  using Some = Several<lanes>;
  for (int64_t o = 0; o < s.small; ++o)
    for (int phase = 0; phase < kPhases; ++phase)
      for (int64_t c = 0; c < s.large; c += lanes) {
        typename Some::Vector m[9];
        for (int k = 0; k < 9; ++k)
          m[k] = Some::at(from.at(k) + o * from.columns + phase * s.large + c);
        add_middle(m);
        for (int p = 0; p < 2; ++p)
          for (int q = 0; q < 2; ++q)
            Some::put(weight + ((o * 4 + 2 * p + phase / 2) * 4 + 2 * q + phase % 2) * s.large + c,
                      m[3 + 2 * q] + m[6 * p + 2 * q]);
      }
}

}  // namespace fvae::host
