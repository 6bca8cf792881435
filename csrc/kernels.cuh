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
template <class T, int Bytes>
struct SampleLanes {
  using Value = float;
  static constexpr int tile = kWarp, width = 1;

  const T* model;
  int64_t dims, samples;
  Factor factor;
  uint32_t value;
  Stream stream;
  uint32_t index;  // of the counter, for the set's first sample
  float* scratch;
  uint32_t* rows;
  int lane, pitch, column;

  __device__ int offset() const { return lane; }
  __device__ int chunk() const { return kChunk; }
  __device__ float load(int s) const { return scratch[s * pitch + column]; }
  __device__ static float at(float v, int) { return v; }

  __device__ void gather(int64_t first, int n, int64_t j0) {
    __syncwarp();  // the last chunk is used up
    for (int g = lane; 4 * g < n; g += kWarp) {
      const Words words = philox(stream, index + uint32_t(first / 4 + g));
#pragma unroll
      for (int u = 0; u < 4; ++u) rows[4 * g + u] = factor.drawn(words.w[u], value);
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
template <class T, int Bytes>
struct PairLanes : SampleLanes<T, Bytes> {
  __device__ void gather(int64_t first, int n, int64_t j0) {
    __syncwarp();
    for (int s = this->lane; s < n; s += kWarp) {
      const Words words = philox(this->stream, this->index + uint32_t(first + s));
      const uint32_t value = bounded(words.w[0], this->factor.size);
      this->rows[2 * s] = this->factor.drawn(words.w[1], value);
      this->rows[2 * s + 1] = this->factor.drawn(words.w[2], value);
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

// The warp's place in the grid and its cut of shared memory.
template <class Lanes>
__device__ void take_place(Lanes& lanes, int64_t dims, int rows_a_sample) {
  const int warp = int(threadIdx.x) / kWarp;
  lanes.lane = int(threadIdx.x) % kWarp;
  lanes.pitch = pitch_of(dims);
  lanes.scratch = reinterpret_cast<float*>(shared_memory + warp * warp_bytes(dims, rows_a_sample));
  lanes.rows = reinterpret_cast<uint32_t*>(lanes.scratch + kChunk * lanes.pitch);
  lanes.dims = dims;
}

// A warp for each (model, vote): counts [M, d, K] gets one more where the vote goes.
template <class T, int Bytes>
__global__ void vote_kernel(Codes<T> codes, Grid grid, Draws draws, Key key, const float* scale,
                            const bool* active, int64_t* counts) {
  SampleLanes<T, Bytes> lanes;
  take_place(lanes, codes.dims, 1);
  lanes.samples = draws.samples;
  lanes.stream = key.load();
  const int64_t groups = (draws.samples + 3) / 4;
  const int64_t warps = blockDim.x / kWarp;
  const int64_t vote = int64_t(blockIdx.x) * warps + threadIdx.x / kWarp;
  if (vote >= draws.count) return;  // the whole warp
  const uint32_t index = uint32_t(vote * (1 + groups));
  const Words head = philox(lanes.stream, index);
  const int k = draws.factor(vote, head.w[0], grid.factors);
  lanes.factor = grid.factor[k];
  lanes.value = bounded(head.w[1], lanes.factor.size);
  lanes.index = index + 1;
  for (int64_t m = blockIdx.y; m < codes.models; m += gridDim.y) {
    lanes.model = codes.model(m);
    const int64_t row = m * codes.dims;
    const int j = least_variance(lanes, draws.samples, codes.dims, scale + row, active + row);
    if (lanes.lane == 0 && j >= 0)
      atomicAdd(reinterpret_cast<unsigned long long*>(counts + (row + j) * grid.factors + k),
                1ull);
  }
}

// A warp for each (model, point): features [M, P, d] and fixed factors [P].
template <class T, int Bytes>
__global__ void pair_kernel(Codes<T> codes, Grid grid, Draws draws, Key key, float* features,
                            int64_t* fixed) {
  PairLanes<T, Bytes> lanes;
  take_place(lanes, codes.dims, 2);
  lanes.samples = draws.samples;
  lanes.stream = key.load();
  const int64_t warps = blockDim.x / kWarp;
  const int64_t point = int64_t(blockIdx.x) * warps + threadIdx.x / kWarp;
  if (point >= draws.count) return;
  const uint32_t index = uint32_t(point * (1 + draws.samples));
  const Words head = philox(lanes.stream, index);
  const int k = draws.factor(point, head.w[0], grid.factors);
  lanes.factor = grid.factor[k];
  lanes.index = index + 1;
  if (blockIdx.y == 0 && lanes.lane == 0) fixed[point] = k;
  for (int64_t m = blockIdx.y; m < codes.models; m += gridDim.y) {
    lanes.model = codes.model(m);
    mean_distance(lanes, draws.samples, codes.dims,
                  features + (m * draws.count + point) * codes.dims);
  }
}

constexpr int kGroupThreads = 512;
constexpr int kGroupBytes = kGroupThreads * 8;  // of shared memory

// A block at one group: its threads are rows x dimensions, neighbours a dimension apart.
template <class T>
struct RowLanes {
  using Value = double;
  static constexpr int width = 1;
  const T* model;  // at the tile's first dimension
  int64_t dims;
  int columns, lanes_down;
  double* partial;  // [kGroupThreads]

  __device__ int thread() const { return int(threadIdx.x); }
  __device__ bool idle() const { return thread() >= columns * lanes_down; }
  // An idle thread starts beyond every row.
  __device__ uint32_t row() const { return idle() ? kAll : uint32_t(thread() / columns); }
  __device__ uint32_t rows() const { return uint32_t(lanes_down); }
  __device__ int offset() const { return thread() % columns; }
  __device__ double load(uint32_t row) const { return wide(model[row * dims + offset()]); }
  __device__ static double at(double v, int) { return v; }

  // Always added in the same order, so that a run can be repeated bit for bit.
  __device__ double total(double v) const {
    __syncthreads();
    partial[thread()] = v;
    __syncthreads();
    double sum = 0;
    for (int i = 0; i < lanes_down; ++i) sum += partial[i * columns + offset()];
    return sum;
  }
};

// A block for each (group, model): variance [M, G, d].
template <class T>
__global__ void group_kernel(Codes<T> codes, Grid grid, int64_t groups, float* variance) {
  int64_t value = blockIdx.x;
  const int k = grid.factor_of(value);
  for (int64_t m = blockIdx.y; m < codes.models; m += gridDim.y) {
    float* out = variance + (m * groups + blockIdx.x) * codes.dims;
    for (int64_t j0 = 0; j0 < codes.dims; j0 += kWarp) {
      RowLanes<T> lanes;
      lanes.model = codes.model(m) + j0;
      lanes.dims = codes.dims;
      lanes.columns = int(codes.dims - j0 < kWarp ? codes.dims - j0 : kWarp);
      lanes.lanes_down = kGroupThreads / lanes.columns;
      lanes.partial = reinterpret_cast<double*>(shared_memory);
      group_variance(lanes, grid.factor[k], uint32_t(value), lanes.columns, out + j0);
    }
  }
}

}  // namespace fvae::device
