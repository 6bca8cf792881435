// The CPU ops of pixels' losses: the loss, its gradient and its sum in one pass.
#include <cmath>
#include <type_traits>

#include "arguments.h"
#include "pixels.h"
#include "vectors.h"

namespace fvae::host {
namespace {

// One binary for every processor needs functions of one type each: a clone is of no template.
#define FVAE_PIXELS(F)                                                                          \
  FVAE_CLONES double some_loss(Bernoulli, int64_t n, F scale, F* out, const F* x) {             \
    return image_loss<Bernoulli>(n, scale, out, x);                                             \
  }                                                                                             \
  FVAE_CLONES double some_loss(Gaussian, int64_t n, F scale, F* out, const F* x) {              \
    return image_loss<Gaussian>(n, scale, out, x);                                              \
  }                                                                                             \
  FVAE_CLONES void some_unpacked(int64_t bytes, const uint8_t* from, F* to) {                   \
    unpack_bits(bytes, from, to);                                                               \
  }                                                                                             \
  FVAE_CLONES bool some_in_unit(int64_t n, const F* x) { return in_unit(n, x); }
FVAE_PIXELS(float)
FVAE_PIXELS(double)
#undef FVAE_PIXELS
#define FVAE_WIDENED(T, F)                                                                      \
  FVAE_CLONES void some_widened(int64_t n, const T* from, F* to) {                              \
    for (int64_t i = 0; i < n; ++i) to[i] = wide(from[i]);                                      \
  }
#define FVAE_WIDENED_FROM(T) FVAE_WIDENED(T, float) FVAE_WIDENED(T, double)
FVAE_WIDENED_FROM(float)
FVAE_WIDENED_FROM(BFloat16)
FVAE_WIDENED_FROM(Half)
FVAE_WIDENED_FROM(double)
#undef FVAE_WIDENED_FROM
#undef FVAE_WIDENED
#define FVAE_ROUNDED(F, T)                                                                      \
  FVAE_CLONES void some_rounded(int64_t n, const F* from, T* to) {                              \
    for (int64_t i = 0; i < n; ++i) put_as(to + i, from[i]);                                    \
  }
FVAE_ROUNDED(float, float)
FVAE_ROUNDED(float, BFloat16)
FVAE_ROUNDED(double, double)
#undef FVAE_ROUNDED

// What a network has given, [B, C, H, W] or [M, B, C, H, W]: images of `size` numbers each, one after
// another in memory, where channel c of row h and column w stands at a sum of steps.
struct Images {
  Tensor numbers;
  int64_t models = 1, images, shape[3], size, steps[3];
  bool moved;  // they came in another order

  explicit Images(const Tensor& given) : numbers(given) {
    const int64_t dims = given.dim();
    STD_TORCH_CHECK(dims == 4 || dims == 5, "expected [B, C, H, W] or [M, B, C, H, W]");
    if (dims == 5) models = given.size(0);
    images = given.size(dims - 4);
    for (int i = 0; i < 3; ++i) shape[i] = given.size(dims - 3 + i);
    size = shape[0] * shape[1] * shape[2];
    moved = !dense();
    if (moved) numbers = torch::stable::contiguous(given);
    for (int i = 0; i < 3; ++i) steps[i] = numbers.stride(dims - 3 + i);
  }

  // Whether an image lies in the order of its dimensions.
  bool in_order() const {
    int64_t expected = 1;
    for (int i = 2; i >= 0; expected *= shape[i--])
      if (shape[i] > 1 && steps[i] != expected) return false;
    return true;
  }

  // Values [C, H, W] in the order of memory.
  template <class F>
  void reorder(const F* from, F* to) const {
    for (int64_t c = 0; c < shape[0]; ++c)
      for (int64_t h = 0; h < shape[1]; ++h)
        for (int64_t w = 0; w < shape[2]; ++w)
          to[c * steps[0] + h * steps[1] + w * steps[2]] = *from++;
  }

 private:
  // Whether each image fills a piece of memory, in any order, and the next follows it.
  bool dense() const {
    const int64_t dims = numbers.dim();
    int64_t expected = 1;
    for (bool found = true; found;) {  // the image's dimension that goes on from here
      found = false;
      for (int64_t i = dims - 3; i < dims && !found; ++i)
        if (numbers.size(i) > 1 && numbers.stride(i) == expected) {
          expected *= numbers.size(i);
          found = true;
        }
    }
    if (expected != size) return false;
    for (int64_t i = dims - 4; i >= 0; expected *= numbers.size(i--))
      if (numbers.size(i) > 1 && numbers.stride(i) != expected) return false;
    return true;
  }
};

// The target in one of its four forms.
struct Target {
  enum Form { kBits, kBytes, kBools, kNumbers } form;
  Tensor numbers;
  int64_t size, bytes;  // of an image

  Target(const Tensor& given, const Images& like) : numbers(torch::stable::contiguous(given)) {
    size = like.size, bytes = (size + 7) / 8;
    const ScalarType dtype = given.scalar_type();
    bool same = given.dim() == like.numbers.dim();
    for (int64_t i = 0; same && i < given.dim(); ++i) same = given.size(i) == like.numbers.size(i);
    if (dtype == ScalarType::Byte)
      form = same ? kBytes : kBits;
    else
      form = dtype == ScalarType::Bool ? kBools : kNumbers;
    const int64_t expected = like.models * like.images * (form == kBits ? bytes : size);
    STD_TORCH_CHECK(given.is_cpu() && numbers.numel() == expected && (same || form == kBits),
                    "target: expected the shape of the pixels, or bytes of their bits, on the CPU");
    STD_TORCH_CHECK(form != kNumbers || is_floating(dtype), "target: expected floating point, bool or uint8");
  }

  // Pixels of an image, up to the end of a whole byte of bits.
  template <class F>
  void take(int64_t image, F* to) const {
    const uint8_t* const from = static_cast<const uint8_t*>(numbers.const_data_ptr());
    if (form == kBits)
      some_unpacked(bytes, from + image * bytes, to);
    else if (form == kNumbers)
      with_floats(numbers, [&](const auto* data) { some_widened(size, data + image * size, to); });
    else
      for (int64_t i = 0; i < size; ++i)
        to[i] = form == kBools ? F(from[image * size + i] != 0)
                               : F(from[image * size + i]) * (F(1) / F(255));
  }

  template <class Call>
  static void with_floats(const Tensor& t, Call call) {
    void* const data = t.data_ptr();
    if (t.scalar_type() == ScalarType::Float)
      call(static_cast<float*>(data));
    else if (t.scalar_type() == ScalarType::BFloat16)
      call(static_cast<BFloat16*>(data));
    else if (t.scalar_type() == ScalarType::Half)
      call(static_cast<Half*>(data));
    else
      call(static_cast<double*>(data));
  }
};

// F: what is computed in; T: what the gradient is kept in.
template <class Loss, class F, class From, class T>
void losses(const Images& out, const Target& target, const From* from, T* gradient, F* nll) {
  const int64_t images = out.models * out.images, room = up_to(out.size, 8) + Wide<F>::lanes;
  const F scale = F(1) / F(out.images);
  const bool in_order = out.in_order();
  const bool checked = std::is_same_v<Loss, Bernoulli> && target.form == Target::kNumbers;
  std::vector<double> each(images);
  torch::stable::parallel_for(0, images, 4, [&](int64_t begin, int64_t end) {
    std::vector<F> row(room), x(room), turned(in_order ? 0 : room);
    for (int64_t b = begin; b < end; ++b) {
      some_widened(out.size, from + b * out.size, row.data());
      target.take(b, x.data());
      if (!in_order) out.reorder(x.data(), turned.data());
      each[b] = some_loss(Loss(), out.size, scale, row.data(), (in_order ? x : turned).data());
      some_rounded(out.size, row.data(), gradient + b * out.size);
      if (checked && !some_in_unit(out.size, x.data())) each[b] = NAN;
    }
  });
  for (int64_t m = 0; m < out.models; ++m) {
    double sum = 0;
    for (int64_t b = 0; b < out.images; ++b) sum += each[m * out.images + b];
    nll[m] = F(sum / double(out.images));
  }
}

template <class Loss>
std::tuple<Tensor, Tensor> pixel_loss(Tensor given, Tensor wanted) {
  const ScalarType dtype = given.scalar_type();
  STD_TORCH_CHECK(is_floating(dtype), "expected float32, bfloat16, float16 or float64");
  const Images out(given);
  const Target target(wanted, out);
  const ScalarType sums = dtype == ScalarType::Double ? dtype : ScalarType::Float;
  std::vector<int64_t> models;
  if (given.dim() == 5) models.push_back(out.models);
  Tensor nll = torch::stable::new_empty(given, models, sums);
  const auto like = [&](const Tensor& images) {  // laid out as they are
    const Tensor found = torch::stable::empty_like(images);
    return dtype == ScalarType::Half ? torch::stable::to(found, ScalarType::Float) : found;
  };
  const Tensor gradient = like(out.numbers);
  Target::with_floats(out.numbers, [&](auto* from) {
    Target::with_floats(gradient, [&](auto* to) {
      using From = std::remove_pointer_t<decltype(from)>;
      using To = std::remove_pointer_t<decltype(to)>;
      if constexpr (std::is_same_v<From, Half> ? std::is_same_v<To, float>
                                               : std::is_same_v<From, To>) {
        using F = std::conditional_t<std::is_same_v<From, double>, double, float>;
        losses<Loss, F>(out, target, from, to, static_cast<F*>(nll.data_ptr()));
      }
    });
  });
  if (!out.moved) return {nll, gradient};
  Tensor back = like(given);
  return {nll, torch::stable::copy_(back, gradient)};
}

STABLE_TORCH_LIBRARY_IMPL(fvae, CPU, m) {
  m.impl("bernoulli_nll", TORCH_BOX(&pixel_loss<Bernoulli>));
  m.impl("gaussian_nll", TORCH_BOX(&pixel_loss<Gaussian>));
}

}  // namespace
}  // namespace fvae::host
