// The metrics' CUDA ops: launches on PyTorch's current stream, no synchronisation.
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>

#include <cstdint>
#include <initializer_list>
#include <type_traits>
#include <vector>

#include "arguments.h"
#include "kernels.cuh"

namespace fvae::device {
namespace {

// Names of PyTorch 2.11 only: later ones stand in later headers, whatever TORCH_TARGET_VERSION is.
cudaStream_t current_stream(const Input& in) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_get_current_cuda_stream(in.codes.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

void check_launch() {
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "launch failed: ", cudaGetErrorString(error));
}

// A kernel reads its arguments where the codes are. The dispatcher comes here where any of them is
// on a GPU, and a pointer of the host or of another GPU would end the process's use of this one.
void check_on_device(const Input& in, std::initializer_list<const Tensor*> others) {
  STD_TORCH_CHECK(in.codes.is_cuda(), "codes: expected a CUDA tensor, as another argument is");
  std::vector<const Tensor*> all(others);
  if (in.offsets) all.insert(all.end(), {&*in.offsets, &*in.lists});
  for (const Tensor* t : all)
    STD_TORCH_CHECK(t->is_cuda() && t->get_device_index() == in.codes.get_device_index(),
                    "seed, step, scale, active, offsets and rows: expected on the device of the"
                    " codes");
}

// Blocks along y, at most as many as CUDA allows: the kernels step through the models with them.
unsigned rows_of_blocks(int64_t models) { return unsigned(models < 65535 ? models : 65535); }

// At most four warps a block, and no more than their shared memory allows without asking for more.
constexpr int kSharedBytes = 48 * 1024;
struct Shape {
  dim3 blocks;
  int threads, bytes;
  Shape(int64_t sets, int64_t models, int64_t dims, int rows_a_sample) {
    const int each = warp_bytes(dims, rows_a_sample);
    const int warps = kSharedBytes / each < 4 ? kSharedBytes / each : 4;
    blocks = dim3(unsigned((sets + warps - 1) / warps), rows_of_blocks(models));
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
    case ScalarType::Half:
      return with_width<Half>(in, call);
    case ScalarType::Double:
      return with_width<double>(in, call);
    default:
      STD_TORCH_CHECK(false, "codes: expected float32, bfloat16, float16 or float64");
  }
}

Key key_of(const Tensor& seed, const Tensor& step, uint32_t use, int64_t lane) {
  check_key(seed, step);
  return {seed.const_data_ptr<int64_t>(), step.const_data_ptr<int64_t>(), stream_at(use, lane)};
}

Tensor metric_votes(Tensor codes, std::vector<int64_t> factor_sizes, int64_t votes,
                    int64_t samples, bool balanced, Tensor scale, Tensor active, Tensor seed,
                    Tensor step, int64_t lane, std::optional<Tensor> offsets,
                    std::optional<Tensor> rows) {
  const Input in(codes, factor_sizes, offsets, rows);
  check_draws(votes, 1 + (samples + 3) / 4, samples, 2);
  check_each(in, scale, active);
  check_on_device(in, {&seed, &step, &scale, &active});
  const Draws draws{{}, votes, samples, balanced};
  const Key key = key_of(seed, step, kVotes, lane);
  const Tensor scales = torch::stable::contiguous(scale);
  const Tensor actives = torch::stable::contiguous(active);
  const torch::stable::accelerator::DeviceGuard guard(in.codes.get_device_index());
  Tensor counts = torch::stable::new_zeros(in.codes, {in.models, in.dims, in.factors},
                                           ScalarType::Long);
  const Shape shape(votes, in.models, in.dims, 1);
  with_type(in, [&](auto type, auto bytes) {
    using T = decltype(type);
    in.with_source([&](auto source) {
      vote_kernel<T, bytes()><<<shape.blocks, shape.threads, shape.bytes, current_stream(in)>>>(
          codes_of<T>(in), source, draws, key, scales.const_data_ptr<float>(),
          actives.const_data_ptr<bool>(), counts.mutable_data_ptr<int64_t>());
    });
  });
  check_launch();
  return counts;
}

std::tuple<Tensor, Tensor> pair_features(Tensor codes, std::vector<int64_t> factor_sizes,
                                         int64_t points, int64_t pairs, bool balanced,
                                         Tensor seed, Tensor step, int64_t lane,
                                         std::optional<Tensor> offsets,
                                         std::optional<Tensor> rows) {
  const Input in(codes, factor_sizes, offsets, rows);
  check_draws(points, 1 + pairs, pairs, 1);
  check_on_device(in, {&seed, &step});
  const Draws draws{{}, points, pairs, balanced};
  const Key key = key_of(seed, step, kPairs, lane);
  const torch::stable::accelerator::DeviceGuard guard(in.codes.get_device_index());
  Tensor features =
      torch::stable::new_empty(in.codes, {in.models, points, in.dims}, ScalarType::Float);
  Tensor fixed = torch::stable::new_empty(in.codes, {points}, ScalarType::Long);
  const Shape shape(points, in.models, in.dims, 2);
  with_type(in, [&](auto type, auto bytes) {
    using T = decltype(type);
    in.with_source([&](auto source) {
      pair_kernel<T, bytes()><<<shape.blocks, shape.threads, shape.bytes, current_stream(in)>>>(
          codes_of<T>(in), source, draws, key, features.mutable_data_ptr<float>(),
          fixed.mutable_data_ptr<int64_t>());
    });
  });
  check_launch();
  return {features, fixed};
}

Tensor grouped_variance(Tensor codes, std::vector<int64_t> factor_sizes,
                        std::optional<Tensor> offsets, std::optional<Tensor> rows) {
  const Input in(codes, factor_sizes, offsets, rows);
  check_on_device(in, {});
  const int64_t pieces = in.groups + in.factors * in.rows / kPieceRows;  // pieces_before, of all
  STD_TORCH_CHECK(pieces <= INT32_MAX, "factor_sizes: got ", in.groups,
                  " groups, more than a launch has blocks");
  const torch::stable::accelerator::DeviceGuard guard(in.codes.get_device_index());
  Tensor variance =
      torch::stable::new_empty(in.codes, {in.models, in.groups, in.dims}, ScalarType::Float);
  Tensor buffer =
      torch::stable::new_empty(in.codes, {in.models, pieces, in.dims, 2}, ScalarType::Double);
  const auto moments = reinterpret_cast<Moments<double>*>(buffer.mutable_data_ptr<double>());
  const cudaStream_t stream = current_stream(in);
  const unsigned models = rows_of_blocks(in.models);
  with_type(in, [&](auto type, auto) {
    using T = decltype(type);
    in.with_source([&](auto source) {
      group_kernel<T><<<dim3(unsigned(pieces), models), kGroupThreads, kGroupBytes, stream>>>(
          codes_of<T>(in), source, moments);
    });
  });
  check_launch();
  in.with_source([&](auto source) {
    variance_kernel<<<dim3(unsigned(in.groups), models), kGroupThreads, kGroupBytes, stream>>>(
        moments, source, in.models, in.dims, variance.mutable_data_ptr<float>());
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
