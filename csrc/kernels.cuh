// The metrics on a GPU: the bodies of body.h with a warp's threads as lanes.
//
// Includes no header of CUDA or PyTorch beyond the language itself, so that a host program which
// supplies threads, barriers, shuffles and atomics can compile and run this very source.
#pragma once

#include "body.h"
#include "codes.h"

namespace fvae::device {

constexpr int kWarp = 32;
constexpr unsigned kAll = 0xffffffffu;

// Dynamic shared memory, cut up by each kernel.
extern __shared__ __align__(16) unsigned char shared_memory[];

// Seed and step as they lie on the device: a replayed graph draws what they hold by then.
struct Key {
  const int64_t *seed, *step;
  uint32_t stream;
  __device__ Stream load() const { return Stream::of(*seed, *step, stream); }
};

// Samples that a warp holds at a time, 32 dimensions of each. An odd number of columns, so that
// the lanes of a warp, a sample each, store to different banks.
constexpr int kChunk = 128;
FVAE_HD int pitch_of(int64_t dims) { return int(dims < kWarp ? dims : kWarp) | 1; }
// A row in shared memory for each sample, or two for a pair.
FVAE_HD int warp_bytes(int64_t dims, int rows_a_sample) {
  return kChunk * (pitch_of(dims) + rows_a_sample) * 4;
}

// Elements of a row that one instruction loads.
template <class T, int Bytes>
struct alignas(Bytes) Pack {
  static constexpr int size = Bytes / int(sizeof(T));
  T x[size];
};

// A warp at one set of samples: while it fetches, a lane takes a row; while it sums, a dimension.
template <class T, int Bytes, class Source>
struct SampleLanes {
  using Value = float;
  static constexpr int tile = kWarp, width = 1;

  const T* model;
  int64_t dims, samples;
  const Source* source;
  typename Source::Factor factor;
  typename Source::Group group;  // of a vote; each pair has its own
  Stream stream;
  uint32_t index;  // of the counter, for the set's first sample
  float* scratch;
  uint32_t* rows;
  int lane, pitch, column;

  __device__ int offset() const { return lane; }
  __device__ int chunk() const { return kChunk; }
  __device__ float load(int s) const { return scratch[s * pitch + column]; }
  __device__ void near(int) const {}  // other warps work while one waits
  __device__ void far(int) const {}
  __device__ static float at(float v, int) { return v; }

  __device__ void gather(int64_t first, int n, int64_t j0) {
    __syncwarp();  // the last chunk is used up
    for (int g = lane; 4 * g < n; g += kWarp) {
      const Words words = philox(stream, index + uint32_t(first / 4 + g));
#pragma unroll
      for (int u = 0; u < 4; ++u) rows[4 * g + u] = source->row(group.drawn(words.w[u]));
    }
    __syncwarp();
    const int columns = begin_tile(j0);
    for (int s = lane; s < n; s += kWarp) {
      const T* row = model + rows[s] * dims + j0;
      for (int c = 0; c < columns; c += Pack<T, Bytes>::size) {
        const auto pack = *reinterpret_cast<const Pack<T, Bytes>*>(row + c);
#pragma unroll
        for (int u = 0; u < Pack<T, Bytes>::size; ++u)
          scratch[s * pitch + c + u] = float(wide(pack.x[u]));
      }
    }
    __syncwarp();
  }

  // Lanes beyond the last dimension look at the last one, and are not asked.
  __device__ int begin_tile(int64_t j0) {
    const int columns = int(dims - j0 < tile ? dims - j0 : tile);
    column = lane < columns ? lane : columns - 1;
    return columns;
  }

  __device__ static Best least(Best best) {
#pragma unroll
    for (int delta = kWarp / 2; delta > 0; delta /= 2) {
      const Best other{__shfl_xor_sync(kAll, best.ratio, delta),
                       __shfl_xor_sync(kAll, best.dim, delta)};
      if (other.beats(best)) best = other;
    }
    return best;
  }
};

// As above for pairs of rows, whose distance is what is summed. Each draws its own value.
template <class T, int Bytes, class Source>
struct PairLanes : SampleLanes<T, Bytes, Source> {
  __device__ void gather(int64_t first, int n, int64_t j0) {
    __syncwarp();
    for (int s = this->lane; s < n; s += kWarp) {
      const Words words = philox(this->stream, this->index + uint32_t(first + s));
      const auto group = this->factor.chosen(words.w[0]);
      this->rows[2 * s] = this->source->row(group.drawn(words.w[1]));
      this->rows[2 * s + 1] = this->source->row(group.drawn(words.w[2]));
    }
    __syncwarp();
    const int columns = this->begin_tile(j0);
    for (int s = this->lane; s < n; s += kWarp) {
      const T* a = this->model + this->rows[2 * s] * this->dims + j0;
      const T* b = this->model + this->rows[2 * s + 1] * this->dims + j0;
      for (int c = 0; c < columns; c += Pack<T, Bytes>::size) {
        const auto first_pack = *reinterpret_cast<const Pack<T, Bytes>*>(a + c);
        const auto other_pack = *reinterpret_cast<const Pack<T, Bytes>*>(b + c);
#pragma unroll
        for (int u = 0; u < Pack<T, Bytes>::size; ++u) {
          const auto difference = wide(first_pack.x[u]) - wide(other_pack.x[u]);
          this->scratch[s * this->pitch + c + u] =
              float(difference < 0 ? -difference : difference);
        }
      }
    }
    __syncwarp();
  }
};

// A warp's place in the launch, its cut of shared memory and its set of draws, which draws `groups`
// counter indices. Returns the set's number, and how it opens in `opening`; -1 where none is left.
template <class Lanes, class Source>
__device__ int64_t take_set(Lanes& lanes, int64_t dims, int rows_a_sample, const Source& source,
                            const Draws& draws, const Key& key, int64_t groups,
                            Opening& opening) {
  const int warp = int(threadIdx.x) / kWarp;
  const int64_t set = int64_t(blockIdx.x) * (blockDim.x / kWarp) + warp;
  if (set >= draws.count) return -1;  // the whole warp
  lanes.lane = int(threadIdx.x) % kWarp;
  lanes.pitch = pitch_of(dims);
  lanes.scratch = reinterpret_cast<float*>(shared_memory + warp * warp_bytes(dims, rows_a_sample));
  lanes.rows = reinterpret_cast<uint32_t*>(lanes.scratch + kChunk * lanes.pitch);
  lanes.dims = dims;
  lanes.samples = draws.samples;
  lanes.stream = key.load();
  opening = Opening(draws, lanes.stream, source.factors, set, groups);
  lanes.source = &source;
  lanes.factor = source.at(opening.k);
  lanes.index = opening.samples;
  return set;
}

// A warp for each (model, vote): counts [M, d, K] gets one more where the vote goes.
template <class T, int Bytes, class Source>
__global__ void vote_kernel(Codes<T> codes, Source source, Draws draws, Key key,
                            const float* scale, const bool* active, int64_t* counts) {
  SampleLanes<T, Bytes, Source> lanes;
  Opening set;
  if (take_set(lanes, codes.dims, 1, source, draws, key, (draws.samples + 3) / 4, set) < 0)
    return;
  lanes.group = lanes.factor.chosen(set.chooser);
  for (int64_t m = blockIdx.y; m < codes.models; m += gridDim.y) {
    lanes.model = codes.model(m);
    const int64_t row = m * codes.dims;
    const int j = least_variance(lanes, draws.samples, codes.dims, scale + row, active + row);
    if (lanes.lane == 0 && j >= 0)
      atomicAdd(reinterpret_cast<unsigned long long*>(counts + (row + j) * source.factors + set.k),
                1ull);
  }
}

// A warp for each (model, point): features [M, P, d] and fixed factors [P].
template <class T, int Bytes, class Source>
__global__ void pair_kernel(Codes<T> codes, Source source, Draws draws, Key key, float* features,
                            int64_t* fixed) {
  PairLanes<T, Bytes, Source> lanes;
  Opening set;
  const int64_t point = take_set(lanes, codes.dims, 2, source, draws, key, draws.samples, set);
  if (point < 0) return;
  lanes.factor.narrow();
  if (blockIdx.y == 0 && lanes.lane == 0) fixed[point] = set.k;
  for (int64_t m = blockIdx.y; m < codes.models; m += gridDim.y) {
    lanes.model = codes.model(m);
    mean_distance(lanes, draws.samples, codes.dims,
                  features + (m * draws.count + point) * codes.dims);
  }
}

// --- groups -----------------------------------------------------------------------------------
//
// A group's rows are shared out among blocks: the blocks of group_kernel leave the moments of their
// piece of a group, and those of variance_kernel add up the pieces. Every sum has one order, so that
// a run can be repeated bit for bit.
//
// On dSprites, 10 codes of 4 bytes a row, every factor's groups are all the codes: 5 x 29.5 MB to
// read, 50 us at 3 TB/s. Pieces of at most 2048 rows are 1913 blocks of at most 80 KB, fourteen for
// each of 132 multiprocessors, so that none waits long for another; their moments are 0.3 MB.
//
// With all groups in a row, one piece begins where a group does and one at each multiple of 2048
// rows; where both are in one place, the group before ends with a piece of no rows. So the host,
// which does not know how long the lists of an index are, knows how many pieces there are.
constexpr int64_t kPieceRows = 2048;
constexpr int kGroupThreads = 256;

// Pieces of the first groups.
template <class Source>
FVAE_HD int64_t pieces_before(const Source& source, int64_t group) {
  return group + source.start(group) / kPieceRows;
}

// Rows [begin, end) of a group.
struct Piece {
  int64_t group;
  uint32_t begin, end;
};

template <class Source>
FVAE_HD Piece piece_of(const Source& source, int64_t number) {
  const int64_t group = last_at_most(source.groups(), number, [&](int64_t g) FVAE_LAMBDA {
    return pieces_before(source, g);
  });
  const int64_t first = source.start(group), last = source.start(group + 1);
  const int64_t cut = (number - group) * kPieceRows;  // where the piece begins, or before the group
  const int64_t begin = cut < first ? first : cut;
  const int64_t end = cut + kPieceRows < last ? cut + kPieceRows : last;
  return {group, uint32_t(begin - first), uint32_t(end - first)};
}

// A block's threads are rows x columns, neighbours a column apart, so that they load neighbours.
struct Place {
  int columns;  // at most 32 dimensions of the codes
  int down;     // threads of one column

  __device__ explicit Place(int64_t dims)
      : columns(int(dims < kWarp ? dims : kWarp)), down(kGroupThreads / columns) {}

  __device__ int thread() const { return int(threadIdx.x); }
  __device__ int column() const { return thread() % columns; }
  // Threads too many for a whole row start beyond every row.
  __device__ uint32_t row() const { return thread() < columns * down ? thread() / columns : kAll; }

  // The moments of each column, in the threads of row 0.
  __device__ Moments<double> total(Moments<double> mine) const {
    const auto all = reinterpret_cast<Moments<double>*>(shared_memory);
    __syncthreads();  // the last total is read
    all[thread()] = mine;
    __syncthreads();
    if (row() == 0)
      for (int i = 1; i < down; ++i) mine.add(all[i * columns + column()]);
    return mine;
  }
};
constexpr int kGroupBytes = kGroupThreads * int(sizeof(Moments<double>));  // of shared memory

template <class T>
struct RowLanes {
  using Value = double;
  static constexpr int at_once = 4;
  const T* column;  // of the model's first row
  int64_t dims;
  Place place;

  __device__ uint32_t row() const { return place.row(); }
  __device__ uint32_t rows() const { return uint32_t(place.down); }
  __device__ double load(uint32_t row) const { return wide(column[row * dims]); }
};

// A block for each (piece, model): moments [M, pieces, d].
template <class T, class Source>
__global__ void group_kernel(Codes<T> codes, Source source, Moments<double>* moments) {
  const Piece piece = piece_of(source, blockIdx.x);
  const auto group = source.group(piece.group);
  for (int64_t m = blockIdx.y; m < codes.models; m += gridDim.y) {
    for (int64_t j0 = 0; j0 < codes.dims; j0 += kWarp) {
      const Place place(codes.dims - j0);
      const int64_t j = j0 + place.column();
      const RowLanes<T> lanes{codes.model(m) + j, codes.dims, place};
      const Moments<double> total =
          place.total(group_moments(lanes, source, group, piece.begin, piece.end));
      if (place.row() == 0) moments[(m * gridDim.x + blockIdx.x) * codes.dims + j] = total;
    }
  }
}

// A block for each (group, model): variance [M, G, d].
template <class Source>
__global__ void variance_kernel(const Moments<double>* moments, Source source, int64_t models,
                                int64_t dims, float* variance) {
  const int64_t first = pieces_before(source, blockIdx.x);
  const int64_t pieces = pieces_before(source, blockIdx.x + 1) - first;
  const int64_t all = pieces_before(source, gridDim.x);
  const uint32_t rows = source.group(blockIdx.x).count();
  for (int64_t m = blockIdx.y; m < models; m += gridDim.y) {
    for (int64_t j0 = 0; j0 < dims; j0 += kWarp) {
      const Place place(dims - j0);
      const int64_t j = j0 + place.column();
      const Moments<double>* column = moments + (m * all + first) * dims + j;
      Moments<double> mine{};
      for (int64_t i = place.row(); i < pieces; i += place.down) mine.add(column[i * dims]);
      const Moments<double> total = place.total(mine);
      if (place.row() == 0)
        variance[(m * gridDim.x + blockIdx.x) * dims + j] = not_negative(total.variance(rows));
    }
  }
}

}  // namespace fvae::device
