// The CPU op of all pairs' densities, and its gradient.
#include <algorithm>
#include <type_traits>

#include "arguments.h"
#include "host.h"
#include "pairs.h"

namespace fvae::host {
namespace {

// Rows of z whose gradients of the components are summed apart: as many whatever the threads.
constexpr int64_t kParts = 16;

// The tensors of a call, as [M, B, d].
struct Batch {
  Tensor z, mu, logvar;
  int64_t models, rows, dims;
  ScalarType dtype;

  Batch(const Tensor& given, const Tensor& means, const Tensor& logvars)
      : z(torch::stable::contiguous(given)), mu(torch::stable::contiguous(means)),
        logvar(torch::stable::contiguous(logvars)), dtype(given.scalar_type()) {
    STD_TORCH_CHECK(z.dim() == 2 || z.dim() == 3, "z: got ", z.dim(),
                    " dimensions, expected [B, d] or [M, B, d]");
    for (const Tensor* t : {&mu, &logvar})
      STD_TORCH_CHECK(t->numel() == z.numel() && t->scalar_type() == dtype,
                      "mu and logvar: expected the shape and dtype of z");
    models = z.dim() == 3 ? z.size(0) : 1;
    rows = z.size(z.dim() - 2), dims = z.size(z.dim() - 1);
    STD_TORCH_CHECK(rows >= 1 && dims >= 1, "z: is empty");
    STD_TORCH_CHECK(is_floating(dtype), "z: expected float32, bfloat16, float16 or float64");
  }

  std::vector<int64_t> shape(bool each_dimension) const {
    std::vector<int64_t> found;
    if (z.dim() == 3) found.push_back(models);
    found.push_back(rows);
    if (each_dimension) found.push_back(dims);
    return found;
  }

  template <class Call>
  void with_type(Call call) const {
    if (dtype == ScalarType::Float) {
      call(pointer<float>(z), pointer<float>(mu), pointer<float>(logvar), float());
    } else if (dtype == ScalarType::Double) {
      call(pointer<double>(z), pointer<double>(mu), pointer<double>(logvar), double());
    } else if (dtype == ScalarType::Half) {
      call(pointer<Half>(z), pointer<Half>(mu), pointer<Half>(logvar), float());
    } else {
      call(pointer<BFloat16>(z), pointer<BFloat16>(mu), pointer<BFloat16>(logvar), float());
    }
  }

 private:
  template <class T>
  static const T* pointer(const Tensor& t) {
    return static_cast<const T*>(t.const_data_ptr());
  }
};

// One binary for every processor needs functions of one type each: a clone is of no template.
#define FVAE_PAIRS(F, T)                                                                         \
  FVAE_CLONES void some_densities(const Components<F>& c, const PairWeights<F>& w, const T* z,   \
                                  int64_t begin, int64_t end, PairSpace<F>& space, F* log_qz,    \
                                  F* each) {                                                     \
    for (int64_t i = begin; i < end; ++i)                                                        \
      log_qz[i] = densities(c, w, z + i * c.dims, i, space, each + i * c.dims);                  \
  }                                                                                              \
  FVAE_CLONES void some_gradients(const Components<F>& c, const PairWeights<F>& w, const T* z,   \
                                  int64_t begin, int64_t end, const F* grad_qz,                  \
                                  const F* grad_prod, const F* log_qz, const F* each,            \
                                  PairSpace<F>& space, F* grad_z, F* grad_mean,                  \
                                  F* grad_logvar) {                                              \
    for (int64_t i = begin; i < end; ++i)                                                        \
      gradients(c, w, z + i * c.dims, i, grad_qz[i], grad_prod[i], log_qz[i], each + i * c.dims, \
                space, grad_z + i * c.dims, grad_mean, grad_logvar);                             \
  }

FVAE_PAIRS(float, float)
FVAE_PAIRS(float, BFloat16)
FVAE_PAIRS(float, Half)
FVAE_PAIRS(double, double)
#undef FVAE_PAIRS

std::tuple<Tensor, Tensor, Tensor, Tensor> pairwise_tc(Tensor z, Tensor mu, Tensor logvar,
                                                       double log_self, double log_next,
                                                       double log_other) {
  const Batch batch(z, mu, logvar);
  const ScalarType sums = batch.dtype == ScalarType::Double ? ScalarType::Double
                                                            : ScalarType::Float;
  Tensor log_qz = torch::stable::new_empty(batch.z, batch.shape(false), sums);
  Tensor log_prod = torch::stable::new_empty(batch.z, batch.shape(false), sums);
  Tensor log_qzx = torch::stable::new_empty(batch.z, batch.shape(false), sums);
  Tensor log_qzj = torch::stable::new_empty(batch.z, batch.shape(true), sums);
  batch.with_type([&](auto* zs, auto* mus, auto* logvars, auto zero) {
    using F = decltype(zero);
    const PairWeights<F> weights{F(log_self), F(log_next), F(log_other)};
    const int64_t rows = batch.rows, dims = batch.dims;
    for (int64_t m = 0; m < batch.models; ++m) {
      const auto* of = zs + m * rows * dims;
      const Components<F> c(mus + m * rows * dims, logvars + m * rows * dims, rows, dims);
      F* qz = static_cast<F*>(log_qz.mutable_data_ptr()) + m * rows;
      F* prod = static_cast<F*>(log_prod.mutable_data_ptr()) + m * rows;
      F* qzx = static_cast<F*>(log_qzx.mutable_data_ptr()) + m * rows;
      F* each = static_cast<F*>(log_qzj.mutable_data_ptr()) + m * rows * dims;
      torch::stable::parallel_for(0, rows, 16, [&](int64_t begin, int64_t end) {
        PairSpace<F> space(c, weights.other, false);
        some_densities(c, weights, of, begin, end, space, qz, each);
        for (int64_t i = begin; i < end; ++i) {
          F product = 0, own = 0;
          for (int64_t k = 0; k < dims; ++k) {
            const int64_t at = k * c.padded + i;
            const F t = score<F>(F(wide(of[i * dims + k])), c.mean[at], c.scale[at]);
            product += each[i * dims + k];
            own += c.constant[at] - F(0.5) * t * t;
          }
          prod[i] = product, qzx[i] = own;
        }
      });
    }
  });
  return {log_qz, log_prod, log_qzx, log_qzj};
}

std::tuple<Tensor, Tensor, Tensor> pairwise_tc_backward(
    Tensor grad_qz, Tensor grad_prod, Tensor grad_qzx, Tensor z, Tensor mu, Tensor logvar,
    Tensor log_qz, Tensor log_qzj, double log_self, double log_next, double log_other) {
  const Batch batch(z, mu, logvar);
  const ScalarType sums = batch.dtype == ScalarType::Double ? ScalarType::Double
                                                            : ScalarType::Float;
  const std::vector<int64_t> shape = batch.shape(true);
  Tensor grads[3];
  for (Tensor& grad : grads) grad = torch::stable::new_empty(batch.z, shape, batch.dtype);
  Tensor given[5] = {grad_qz, grad_prod, grad_qzx, log_qz, log_qzj};
  for (Tensor& t : given) {
    STD_TORCH_CHECK(t.scalar_type() == sums, "gradients and sums: expected the dtype of the sums");
    t = torch::stable::contiguous(t);
  }
  batch.with_type([&](auto* zs, auto* mus, auto* logvars, auto zero) {
    using F = decltype(zero);
    const PairWeights<F> weights{F(log_self), F(log_next), F(log_other)};
    const int64_t rows = batch.rows, dims = batch.dims;
    for (int64_t m = 0; m < batch.models; ++m) {
      const auto* of = zs + m * rows * dims;
      const Components<F> c(mus + m * rows * dims, logvars + m * rows * dims, rows, dims);
      const F* in[5];
      for (int t = 0; t < 5; ++t)
        in[t] = static_cast<const F*>(given[t].const_data_ptr()) + m * rows * (t == 4 ? dims : 1);
      using T = std::remove_const_t<std::remove_pointer_t<decltype(of)>>;
      T* out[3];
      for (int t = 0; t < 3; ++t)
        out[t] = static_cast<T*>(grads[t].mutable_data_ptr()) + m * rows * dims;
      const int64_t size = dims * c.padded;
      const int64_t parts = std::min(kParts, rows);
      std::vector<F> means(parts * size), logs(parts * size), own(rows * dims);
      torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
        PairSpace<F> space(c, weights.other, true);
        for (int64_t p = begin; p < end; ++p)
          some_gradients(c, weights, of, p * rows / parts, (p + 1) * rows / parts, in[0], in[1],
                         in[3], in[4], space, own.data(), means.data() + p * size,
                         logs.data() + p * size);
      });
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t k = 0; k < dims; ++k) {
          const int64_t at = k * c.padded + i, to = i * dims + k;
          F mean = 0, log = 0;
          for (int64_t p = 0; p < parts; ++p) mean += means[p * size + at], log += logs[p * size + at];
          const F t = score<F>(F(wide(of[to])), c.mean[at], c.scale[at]);
          put_as(out[0] + to, own[to] - in[2][i] * t * c.scale[at]);
          put_as(out[1] + to, mean + in[2][i] * t * c.scale[at]);
          put_as(out[2] + to, log + F(0.5) * in[2][i] * (t * t - F(1)));
        }
      }
    }
  });
  return {grads[0], grads[1], grads[2]};
}

STABLE_TORCH_LIBRARY_IMPL(fvae, CPU, m) {
  m.impl("pairwise_tc", TORCH_BOX(&pairwise_tc));
  m.impl("pairwise_tc_backward", TORCH_BOX(&pairwise_tc_backward));
}

}  // namespace
}  // namespace fvae::host
