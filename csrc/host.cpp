// The metrics' CPU ops.
#include <algorithm>
#include <atomic>

#include "arguments.h"
#include "host.h"
#include "trees.h"

namespace fvae::host {
namespace {

// The dtype is a switch inside each clone, so that each clone holds all four bodies.
struct Data {
  const void* pointer;
  ScalarType dtype;
  int64_t models, rows, dims;

  explicit Data(const Input& in)
      : pointer(in.codes.const_data_ptr()),
        dtype(in.codes.scalar_type()),
        models(in.models),
        rows(in.rows),
        dims(in.dims) {
    STD_TORCH_CHECK(is_floating(dtype), "codes: expected float32, bfloat16, float16 or float64");
  }

  template <class Call>
  FVAE_HD void with_type(Call call) const {
    if (dtype == ScalarType::Float) {
      call(as<float>());
    } else if (dtype == ScalarType::Double) {
      call(as<double>());
    } else if (dtype == ScalarType::Half) {
      call(as<Half>());
    } else {
      call(as<BFloat16>());
    }
  }

  // Whether a model's codes are more than a core's cache.
  bool many() const {
    const int64_t element = dtype == ScalarType::Double ? 8 : dtype == ScalarType::Float ? 4 : 2;
    return rows * dims * element >= kManyBytes;
  }

  template <class T>
  FVAE_HD Codes<T> as() const {
    return {static_cast<const T*>(pointer), models, rows, dims};
  }
};

// Who draws knows the source, who reads the codes their type: so that neither is there for each of
// the other's.
FVAE_CLONES void open(const Draws& draws, int factors, int64_t groups, int64_t begin,
                      std::vector<Opened>& sets) {
  open_sets(draws, factors, groups, begin, sets);
}

FVAE_CLONES void draw(const Grid& grid, const Draws& draws, int64_t dims, Drawn& drawn) {
  draw_votes(grid, draws, dims, drawn);
}

FVAE_CLONES void draw(const Index& index, const Draws& draws, int64_t dims, Drawn& drawn) {
  draw_votes(index, draws, dims, drawn);
}

FVAE_CLONES void draw(const Grid& grid, const Draws& draws, int64_t dims, int64_t* fixed,
                      Drawn& drawn) {
  draw_pairs(grid, draws, dims, fixed, drawn);
}

FVAE_CLONES void draw(const Index& index, const Draws& draws, int64_t dims, int64_t* fixed,
                      Drawn& drawn) {
  draw_pairs(index, draws, dims, fixed, drawn);
}

FVAE_CLONES void count_votes(const Data& data, const Drawn& drawn, int factors, const float* scale,
                             const bool* active, int64_t* counts) {
  data.with_type([&](const auto& codes) FVAE_LAMBDA {
    votes(codes, drawn, factors, scale, active, counts);
  });
}

FVAE_CLONES void make_features(const Data& data, const Drawn& drawn, int64_t points,
                               float* features) {
  data.with_type([&](const auto& codes) FVAE_LAMBDA { pairs(codes, drawn, points, features); });
}

FVAE_CLONES void one_group(const Data& data, int64_t m, const Grid& grid, int64_t number,
                           float* out) {
  data.with_type([&](const auto& codes) FVAE_LAMBDA { group(codes, m, grid, number, out); });
}

FVAE_CLONES void one_group(const Data& data, int64_t m, const Index& index, int64_t number,
                           float* out) {
  data.with_type([&](const auto& codes) FVAE_LAMBDA { group(codes, m, index, number, out); });
}

Stream stream_of(const Tensor& seed, const Tensor& step, uint32_t use, int64_t lane) {
  check_key(seed, step);
  return Stream::of(*seed.const_data_ptr<int64_t>(), *step.const_data_ptr<int64_t>(),
                    stream_at(use, lane));
}

// What is cheap to see of an index, an offset for each value. Its rows are more than what is drawn.
void check_offsets(const Input& in) {
  if (!in.offsets) return;
  const int64_t* offsets = in.offsets->const_data_ptr<int64_t>();
  bool rising = offsets[0] == 0 && offsets[in.groups] == in.factors * in.rows;
  for (int64_t g = 0; g < in.groups; ++g) rising &= offsets[g] < offsets[g + 1];
  STD_TORCH_CHECK(rising, "offsets: expected to rise from 0 to the number of rows of all factors");
}

// Sets of draws a thread takes at least.
constexpr int64_t kGrain = 64;

Tensor metric_votes(Tensor codes, std::vector<int64_t> factor_sizes, int64_t votes,
                    int64_t samples, bool balanced, Tensor scale, Tensor active, Tensor seed,
                    Tensor step, int64_t lane, std::optional<Tensor> offsets,
                    std::optional<Tensor> rows) {
  const Input in(codes, factor_sizes, offsets, rows);
  const Data data(in);
  check_offsets(in);
  check_draws(votes, 1 + (samples + 3) / 4, samples, 2);
  check_each(in, scale, active);
  const Draws draws{stream_of(seed, step, kVotes, lane), votes, samples, balanced};
  const Tensor scales = torch::stable::contiguous(scale);
  const Tensor actives = torch::stable::contiguous(active);
  const int64_t cells = in.models * in.dims * in.factors;
  Tensor result =
      torch::stable::new_zeros(in.codes, {in.models, in.dims, in.factors}, ScalarType::Long);
  int64_t* total = result.mutable_data_ptr<int64_t>();
  in.with_source([&](const auto& source) {
    torch::stable::parallel_for(0, votes, kGrain, [&](int64_t begin, int64_t end) {
      std::vector<int64_t> counts(cells);
      Drawn drawn(samples, (samples + 3) / 4 * 4, in.models, end - begin);
      for (int64_t at = begin; at < end; at += kOrdered) {
        std::vector<Opened> sets(std::min(kOrdered, end - at));
        open(draws, source.factors, (samples + 3) / 4, at, sets);
        if (data.many()) sets = in_order(source, sets);
        drawn.each_batch(sets, [&] {
          draw(source, draws, in.dims, drawn);
          count_votes(data, drawn, source.factors, scales.const_data_ptr<float>(),
                      actives.const_data_ptr<bool>(), counts.data());
        });
      }
      for (int64_t i = 0; i < cells; ++i)
        if (counts[i]) std::atomic_ref<int64_t>(total[i]) += counts[i];
    });
  });
  return result;
}

std::tuple<Tensor, Tensor> pair_features(Tensor codes, std::vector<int64_t> factor_sizes,
                                         int64_t points, int64_t pairs, bool balanced,
                                         Tensor seed, Tensor step, int64_t lane,
                                         std::optional<Tensor> offsets,
                                         std::optional<Tensor> rows) {
  const Input in(codes, factor_sizes, offsets, rows);
  const Data data(in);
  check_offsets(in);
  check_draws(points, 1 + pairs, pairs, 1);
  const Draws draws{stream_of(seed, step, kPairs, lane), points, pairs, balanced};
  Tensor features =
      torch::stable::new_empty(in.codes, {in.models, points, in.dims}, ScalarType::Float);
  Tensor fixed = torch::stable::new_empty(in.codes, {points}, ScalarType::Long);
  float* out = features.mutable_data_ptr<float>();
  int64_t* factors = fixed.mutable_data_ptr<int64_t>();
  in.with_source([&](const auto& source) {
    torch::stable::parallel_for(0, points, kGrain, [&](int64_t begin, int64_t end) {
      Drawn drawn(pairs, 2 * pairs, in.models, end - begin);
      for (int64_t at = begin; at < end; at += kOrdered) {
        std::vector<Opened> sets(std::min(kOrdered, end - at));
        open(draws, source.factors, pairs, at, sets);
        drawn.each_batch(sets, [&] {
          draw(source, draws, in.dims, factors, drawn);
          make_features(data, drawn, points, out);
        });
      }
    });
  });
  return {features, fixed};
}

Tensor grouped_variance(Tensor codes, std::vector<int64_t> factor_sizes,
                        std::optional<Tensor> offsets, std::optional<Tensor> rows) {
  const Input in(codes, factor_sizes, offsets, rows);
  const Data data(in);
  check_offsets(in);
  Tensor result =
      torch::stable::new_empty(in.codes, {in.models, in.groups, in.dims}, ScalarType::Float);
  float* out = result.mutable_data_ptr<float>();
  // Thread t takes every T-th group: neighbouring groups are of one size, a half range is not.
  const int64_t threads = torch::stable::get_num_threads();
  in.with_source([&](const auto& source) {
    torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = 0; i < in.models * in.groups; ++i) {
        if (i % threads < begin || i % threads >= end) continue;
        one_group(data, i / in.groups, source, i % in.groups, out + i * in.dims);
      }
    });
  });
  return result;
}

// The factors that labels [K, n] hold, with their numbers of classes, 0 of real values.
std::vector<trees::Factor> factors_of(const Tensor& labels, const std::vector<int64_t>& classes) {
  const int64_t rows = labels.size(1);
  std::vector<trees::Factor> factors;
  for (int64_t k = 0; k < labels.size(0); ++k) {
    const double* of = labels.const_data_ptr<double>() + k * rows;
    STD_TORCH_CHECK(classes[k] == 0 || (classes[k] >= 2 && classes[k] <= rows), "classes: got ",
                    classes[k], ", expected 0, or 2 to the number of rows");
    std::vector<bool> occurs(classes[k]);
    for (int64_t i = 0; i < rows; ++i) {
      const bool known = classes[k] ? of[i] >= 0 && of[i] < double(classes[k]) &&
                                          of[i] == std::floor(of[i])
                                    : std::isfinite(of[i]);
      STD_TORCH_CHECK(known, "labels: factor ", k, " has ", of[i], ", expected ",
                      classes[k] ? "its classes' numbers" : "finite values");
      if (classes[k]) occurs[size_t(of[i])] = true;
    }
    for (const bool it : occurs)
      STD_TORCH_CHECK(it, "labels: a class of factor ", k, " does not occur");
    factors.push_back({classes[k], of});
  }
  return factors;
}

std::tuple<Tensor, Tensor> boosted_trees(Tensor codes, Tensor labels, std::vector<int64_t> classes,
                                         Tensor test, int64_t stages, double rate) {
  STD_TORCH_CHECK(codes.dim() == 2 && test.dim() == 2 && codes.size(1) == test.size(1) &&
                      codes.size(1) >= 1 && codes.size(0) >= 1 && codes.size(0) <= INT32_MAX,
                  "codes and test: expected [n, d] and [T, d]");
  STD_TORCH_CHECK(codes.scalar_type() == ScalarType::Float &&
                      test.scalar_type() == ScalarType::Float &&
                      labels.scalar_type() == ScalarType::Double,
                  "codes, test and labels: expected float32, float32 and float64");
  STD_TORCH_CHECK(labels.dim() == 2 && labels.size(1) == codes.size(0) &&
                      labels.size(0) == int64_t(classes.size()) && !classes.empty(),
                  "labels: expected [K, n], with a number of classes for each");
  STD_TORCH_CHECK(stages >= 1, "stages: got ", stages, ", expected at least 1");
  const Tensor x = torch::stable::contiguous(codes), y = torch::stable::contiguous(labels),
               unseen = torch::stable::contiguous(test);
  const int64_t rows = x.size(0), dims = x.size(1), tests = unseen.size(0);
  for (const Tensor* t : {&x, &unseen})
    for (int64_t i = 0; i < t->numel(); ++i)
      STD_TORCH_CHECK(std::isfinite(t->const_data_ptr<float>()[i]),
                      "codes and test: expected finite float32 numbers");
  const std::vector<trees::Factor> factors = factors_of(y, classes);
  int64_t scores = 0;
  for (const trees::Factor& factor : factors) scores += factor.scores();
  Tensor importance =
      torch::stable::new_empty(x, {int64_t(factors.size()), dims}, ScalarType::Double);
  Tensor result = torch::stable::new_empty(x, {tests, scores}, ScalarType::Double);
  trees::boost(trees::Sorted(x.const_data_ptr<float>(), rows, dims), factors,
               unseen.const_data_ptr<float>(), tests, stages, rate,
               torch::stable::get_num_threads(), importance.mutable_data_ptr<double>(),
               result.mutable_data_ptr<double>(), [](int64_t count, auto work) {
                 torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
                   for (int64_t i = begin; i < end; ++i) work(i);
                 });
               });
  return {importance, result};
}

STABLE_TORCH_LIBRARY_IMPL(fvae, CPU, m) {
  m.impl("metric_votes", TORCH_BOX(&metric_votes));
  m.impl("pair_features", TORCH_BOX(&pair_features));
  m.impl("grouped_variance", TORCH_BOX(&grouped_variance));
  m.impl("boosted_trees", TORCH_BOX(&boosted_trees));
}

}  // namespace
}  // namespace fvae::host
