// Enough of CUDA to run a kernel's own source on a CPU: a std::thread for each CUDA thread.
//
// Blocks run one after another. Shared memory is filled with NaN before each, so that a kernel
// that reads what it has not written is found out.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <barrier>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__
#define __align__(n) __attribute__((aligned(n)))

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
inline thread_local dim3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace on_host {

constexpr int kWarp = 32;
using Barrier = std::barrier<>;

struct Warp {
  Barrier barrier{kWarp};
  std::array<uint32_t, kWarp> exchange;
};
inline std::vector<std::unique_ptr<Warp>> warps;
inline std::unique_ptr<Barrier> block;

inline Warp& warp() { return *warps[threadIdx.x / kWarp]; }

}  // namespace on_host

inline void __syncwarp() { on_host::warp().barrier.arrive_and_wait(); }
inline void __syncthreads() { on_host::block->arrive_and_wait(); }

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  static_assert(sizeof(T) == 4);
  on_host::Warp& warp = on_host::warp();
  const unsigned lane = threadIdx.x % on_host::kWarp;
  std::memcpy(&warp.exchange[lane], &value, 4);
  warp.barrier.arrive_and_wait();
  std::memcpy(&value, &warp.exchange[lane ^ mask], 4);
  warp.barrier.arrive_and_wait();
  return value;
}

inline unsigned long long atomicAdd(unsigned long long* at, unsigned long long more) {
  return std::atomic_ref<unsigned long long>(*at).fetch_add(more);
}

namespace fvae::device {
inline constexpr int kSharedBytes = 48 * 1024;
alignas(16) unsigned char shared_memory[kSharedBytes];
}  // namespace fvae::device

namespace on_host {

// kernel() by every thread of every block. A kernel may return early with a whole warp.
template <class Kernel>
void launch(dim3 blocks, unsigned threads, Kernel kernel) {
  gridDim = blocks;
  blockDim = {threads};
  warps.clear();
  for (unsigned w = 0; w < (threads + kWarp - 1) / kWarp; ++w)
    warps.push_back(std::make_unique<Warp>());
  block = std::make_unique<Barrier>(threads);
  Barrier next(threads);
  const auto run = [&](unsigned thread) {
    threadIdx = {thread};
    for (unsigned y = 0; y < blocks.y; ++y)
      for (unsigned x = 0; x < blocks.x; ++x) {
        blockIdx = {x, y};
        if (thread == 0) std::fill_n(fvae::device::shared_memory, fvae::device::kSharedBytes, 0xff);
        next.arrive_and_wait();
        kernel();
        next.arrive_and_wait();
      }
  };
  std::vector<std::thread> pool;
  for (unsigned t = 0; t < threads; ++t) pool.emplace_back(run, t);
  for (auto& t : pool) t.join();
}

}  // namespace on_host
