// csrc/kernels.cuh, compiled as host C++; called from Python.
#include "cuda_on_host.h"

#include "../../csrc/kernels.cuh"

using namespace fvae;

namespace {

// The same for all kernels; filled in by Python.
struct Case {
  const void* codes;
  int64_t models, rows, dims;
  const int64_t* sizes;
  int64_t factors;
  int64_t count, samples;
  int64_t balanced;
  int64_t seed, step, stream;
  int64_t warps;  // of a block
  int64_t kind;   // 0 to 5: float by loads of 4, 8, 16 bytes, bfloat16 and float16 by 2, double by 8
  const int64_t* offsets;  // of an index; null where the rows are a grid
  const int32_t* lists;

  Index index() const {
    int64_t groups = 0;
    for (int k = 0; k < factors; ++k) groups += sizes[k];
    return {int(factors), uint32_t(rows), {groups, offsets, lists}};
  }
  Grid grid() const {
    Grid g{int(factors), {}};
    int64_t outer = 1;
    for (int k = 0; k < factors; ++k) {
      g.factor[k] = {uint32_t(sizes[k]), uint32_t(rows / outer / sizes[k]), uint32_t(outer)};
      outer *= sizes[k];
    }
    return g;
  }
  template <class T>
  Codes<T> as() const {
    return {static_cast<const T*>(codes), models, rows, dims};
  }
  Draws draws() const { return {{}, count, samples, balanced != 0}; }
  device::Key key() const { return {&seed, &step, uint32_t(stream)}; }
  dim3 blocks() const { return {unsigned((count + warps - 1) / warps), unsigned(models)}; }
};

// call<T, Bytes>(source), the source a Grid or an Index.
template <class Source, class Call>
bool with_kind(const Case& c, const Source& source, Call call) {
  switch (c.kind) {
    case 0: call.template operator()<float, 4>(source); return true;
    case 1: call.template operator()<float, 8>(source); return true;
    case 2: call.template operator()<float, 16>(source); return true;
    case 3: call.template operator()<BFloat16, 2>(source); return true;
    case 4: call.template operator()<double, 8>(source); return true;
    case 5: call.template operator()<Half, 2>(source); return true;
    default: return false;
  }
}

template <class Call>
bool with_case(const Case& c, Call call) {
  return c.offsets ? with_kind(c, c.index(), call) : with_kind(c, c.grid(), call);
}

}  // namespace

extern "C" bool run_votes(const Case& c, const float* scale, const bool* active, int64_t* counts) {
  return with_case(c, [&]<class T, int Bytes>(const auto& source) {
    on_host::launch(c.blocks(), unsigned(c.warps * device::kWarp), [&] {
      device::vote_kernel<T, Bytes>(c.as<T>(), source, c.draws(), c.key(), scale, active,
                                    counts);
    });
  });
}

extern "C" bool run_pairs(const Case& c, float* features, int64_t* fixed) {
  return with_case(c, [&]<class T, int Bytes>(const auto& source) {
    on_host::launch(c.blocks(), unsigned(c.warps * device::kWarp), [&] {
      device::pair_kernel<T, Bytes>(c.as<T>(), source, c.draws(), c.key(), features, fixed);
    });
  });
}

// Also says how many blocks the groups were shared out among.
extern "C" int64_t run_groups(const Case& c, int64_t groups, float* variance) {
  int64_t pieces = 0;
  with_case(c, [&]<class T, int Bytes>(const auto& source) {
    pieces = device::pieces_before(source, source.groups());
    std::vector<Moments<double>> moments(c.models * pieces * c.dims, {NAN, NAN});
    on_host::launch({unsigned(pieces), unsigned(c.models)}, device::kGroupThreads, [&] {
      device::group_kernel<T>(c.as<T>(), source, moments.data());
    });
    on_host::launch({unsigned(groups), unsigned(c.models)}, device::kGroupThreads, [&] {
      device::variance_kernel(moments.data(), source, c.models, c.dims, variance);
    });
  });
  return pieces;
}

extern "C" int warp_bytes(int64_t dims, int rows_a_sample) {
  return device::warp_bytes(dims, rows_a_sample);
}

extern "C" int group_bytes() { return device::kGroupBytes; }
