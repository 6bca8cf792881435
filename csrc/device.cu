// The metrics' CUDA ops: launches on PyTorch's current stream, no synchronisation.
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>

#include "arguments.h"
#include "kernels.cuh"

namespace fvae::device {
namespace {

cudaStream_t current_stream(const Tensor& t) {
  void* stream = nullptr;
  // Not STABLE_TORCH_ERROR_CODE_CHECK, which came after 2.11.
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

void check_launch() {
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "launch failed: ", cudaGetErrorString(error));
}

// At most four warps a block, and no more than their shared memory allows without asking for more.
constexpr int kSharedBytes = 48 * 1024;
struct Shape {
  dim3 blocks;
  int threads, bytes;
  Shape(int64_t sets, int64_t models, int64_t dims, int rows_a_sample) {
    const int each = warp_bytes(dims, rows_a_sample);
    const int warps = kSharedBytes / each < 4 ? kSharedBytes / each : 4;
    blocks = dim3(unsigned((sets + warps - 1) / warps), unsigned(models < 65535 ? models : 65535));
    threads = warps * kWarp;
    bytes = warps * each;
  }
};

template <class T>
Codes<T> codes_of(const Input& in) {
  return {static_cast<const T*>(in.codes.const_data_ptr()), in.models, in.rows, in.dims};
}

// call(T{}, bytes) with the codes' type and the widest load, up to 16 bytes, that every row allows.
template <class T, int Bytes = 16, class Call>
void with_width(const Input& in, Call call) {
  const auto address = reinterpret_cast<uintptr_t>(in.codes.const_data_ptr());
  if constexpr (Bytes > int(sizeof(T))) {
    if ((address | uint64_t(in.dims * sizeof(T))) % Bytes != 0)
      return with_width<T, Bytes / 2>(in, call);
  }
  call(T{}, std::integral_constant<int, Bytes>{});
}

template <class Call>
void with_type(const Input& in, Call call) {
  switch (in.codes.scalar_type()) {
    case ScalarType::Float:
      return with_width<float>(in, call);
    case ScalarType::BFloat16:
      return with_width<BFloat16>(in, call);
    case ScalarType::Double:
      return with_width<double>(in, call);
    default:
      STD_TORCH_CHECK(false, "codes: expected float32, bfloat16 or float64");
  }
}

Key key_of(const Tensor& seed, const Tensor& step, uint32_t use, int64_t lane) {
  check_key(seed, step);
  STD_TORCH_CHECK(seed.is_cuda() && step.is_cuda(), "seed and step: expected CUDA tensors");
  return {seed.const_data_ptr<int64_t>(), step.const_data_ptr<int64_t>(), stream_at(use, lane)};
}

Tensor metric_votes(Tensor codes, std::vector<int64_t> factor_sizes, int64_t votes,
                    int64_t samples, bool balanced, Tensor scale, Tensor active, Tensor seed,
                    Tensor step, int64_t lane) {
  const Input in(codes, factor_sizes);
  check_draws(votes, 1 + (samples + 3) / 4, samples, 2);
  check_each(in, scale, active);
  const Draws draws{{}, votes, samples, balanced};
  const Key key = key_of(seed, step, kVotes, lane);
  const Tensor scales = torch::stable::contiguous(scale);
  const Tensor actives = torch::stable::contiguous(active);
  const torch::stable::accelerator::DeviceGuard guard(in.codes.get_device_index());
  Tensor counts = torch::stable::new_zeros(in.codes, {in.models, in.dims, in.grid.factors},
                                           ScalarType::Long);
  with_type(in, [&](auto type, auto bytes) {
    using T = decltype(type);
    const Shape shape(votes, in.models, in.dims, 1);
    vote_kernel<T, bytes()><<<shape.blocks, shape.threads, shape.bytes, current_stream(counts)>>>(
        codes_of<T>(in), in.grid, draws, key, scales.const_data_ptr<float>(),
        actives.const_data_ptr<bool>(), counts.mutable_data_ptr<int64_t>());
  });
  check_launch();
  return counts;
}

std::tuple<Tensor, Tensor> pair_features(Tensor codes, std::vector<int64_t> factor_sizes,
                                         int64_t points, int64_t pairs, bool balanced,
                                         Tensor seed, Tensor step, int64_t lane) {
  const Input in(codes, factor_sizes);
  check_draws(points, 1 + pairs, pairs, 1);
  const Draws draws{{}, points, pairs, balanced};
  const Key key = key_of(seed, step, kPairs, lane);
  const torch::stable::accelerator::DeviceGuard guard(in.codes.get_device_index());
  Tensor features =
      torch::stable::new_empty(in.codes, {in.models, points, in.dims}, ScalarType::Float);
  Tensor fixed = torch::stable::new_empty(in.codes, {points}, ScalarType::Long);
  with_type(in, [&](auto type, auto bytes) {
    using T = decltype(type);
    const Shape shape(points, in.models, in.dims, 2);
    pair_kernel<T, bytes()><<<shape.blocks, shape.threads, shape.bytes, current_stream(fixed)>>>(
        codes_of<T>(in), in.grid, draws, key, features.mutable_data_ptr<float>(),
        fixed.mutable_data_ptr<int64_t>());
  });
  check_launch();
  return {features, fixed};
}

Tensor grouped_variance(Tensor codes, std::vector<int64_t> factor_sizes) {
  const Input in(codes, factor_sizes);
  const int64_t groups = in.cells();
  const torch::stable::accelerator::DeviceGuard guard(in.codes.get_device_index());
  Tensor variance =
      torch::stable::new_empty(in.codes, {in.models, groups, in.dims}, ScalarType::Float);
  with_type(in, [&](auto type, auto) {
    using T = decltype(type);
    const dim3 blocks(unsigned(groups), unsigned(in.models < 65535 ? in.models : 65535));
    group_kernel<T><<<blocks, kGroupThreads, kGroupBytes, current_stream(variance)>>>(
        codes_of<T>(in), in.grid, groups, variance.mutable_data_ptr<float>());
  });
  check_launch();
  return variance;
}

STABLE_TORCH_LIBRARY_IMPL(fvae, CUDA, m) {
  m.impl("metric_votes", TORCH_BOX(&metric_votes));
  m.impl("pair_features", TORCH_BOX(&pair_features));
  m.impl("grouped_variance", TORCH_BOX(&grouped_variance));
}

}  // namespace
}  // namespace fvae::device
