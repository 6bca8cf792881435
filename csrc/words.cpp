// The CPU op of random words: those of fvae/philox.py, in one call.
#include "arguments.h"
#include "philox.h"

namespace fvae {
namespace {

constexpr int64_t kGrain = 1 << 12;

Tensor philox_words(Tensor seed, Tensor step, int64_t stream, Tensor index) {
  seed = torch::stable::contiguous(seed), index = torch::stable::contiguous(index);
  for (const Tensor* t : {&seed, &step, &index})
    STD_TORCH_CHECK(t->scalar_type() == ScalarType::Long && t->is_cpu(),
                    "seed, step and index: expected int64 on the CPU");
  STD_TORCH_CHECK(seed.dim() <= 1 && step.numel() == 1 && index.dim() == 1,
                  "seed, step and index: expected [] or [M], [] and [n]");
  const int64_t keys = seed.numel(), count = index.numel();
  std::vector<int64_t> shape{count, 4};
  if (seed.dim()) shape.insert(shape.begin(), keys);
  Tensor words = torch::stable::new_empty(index, shape, ScalarType::Long);
  const int64_t *key = seed.const_data_ptr<int64_t>(), *at = index.const_data_ptr<int64_t>();
  const int64_t now = *step.const_data_ptr<int64_t>();
  int64_t* const to = static_cast<int64_t*>(words.data_ptr());
  torch::stable::parallel_for(0, keys * count, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Words found =
          philox(Stream::of(key[i / count], now, uint32_t(stream)), uint32_t(at[i % count]));
      for (int w = 0; w < 4; ++w) to[4 * i + w] = found.w[w];
    }
  });
  return words;
}

STABLE_TORCH_LIBRARY_IMPL(fvae, CPU, m) { m.impl("philox_words", TORCH_BOX(&philox_words)); }

}  // namespace
}  // namespace fvae
