// The CPU ops of an autoencoder's first and last layer, on images [B, H, W, C].
#include <atomic>

#include "arguments.h"
#include "host.h"
#include "ends.h"

namespace fvae::host {
namespace {

// Images whose gradients are summed apart: as many whatever the threads.
constexpr int64_t kImages = 8;

#define FVAE_ENDS(T)                                                                           \
  FVAE_CLONES void some_from_bits(const Patches& at, int64_t channels, const float* tables,    \
                                  T* y) {                                                      \
    from_bits(at.upper.data(), at.lower.data(), int64_t(at.upper.size()), channels, tables, y); \
  }                                                                                            \
  FVAE_CLONES void some_from_bits_backward(const Patches& at, int64_t channels, const T* grad, \
                                           const T* y, float* delta, float* tables,            \
                                           float* bias) {                                      \
    from_bits_backward(at.upper.data(), at.lower.data(), int64_t(at.upper.size()), channels,   \
                       grad, y, delta, tables, bias);                                          \
  }                                                                                            \
  FVAE_CLONES void to_pixels_by_8(ToPixels& s, const T* x, const float* bias, T* y) {          \
    to_pixels<8>(s, x, bias, y);                                                               \
  }                                                                                            \
  FVAE_WIDE void to_pixels_by_16(ToPixels& s, const T* x, const float* bias, T* y) {           \
    to_pixels<16>(s, x, bias, y);                                                              \
  }                                                                                            \
  FVAE_CLONES void to_pixels_backward_by_8(ToPixels& s, const T* grad, const T* x, T* grad_x,  \
                                           float* weight, float* bias) {                       \
    to_pixels_backward<8>(s, grad, x, grad_x, weight, bias);                                   \
  }                                                                                            \
  FVAE_WIDE void to_pixels_backward_by_16(ToPixels& s, const T* grad, const T* x, T* grad_x,   \
                                          float* weight, float* bias) {                        \
    to_pixels_backward<16>(s, grad, x, grad_x, weight, bias);                                  \
  }                                                                                            \
  void some_to_pixels(ToPixels& s, const T* x, const float* bias, T* y) {                      \
    kWideVectors ? to_pixels_by_16(s, x, bias, y) : to_pixels_by_8(s, x, bias, y);             \
  }                                                                                            \
  void some_to_pixels_backward(ToPixels& s, const T* grad, const T* x, T* grad_x,              \
                               float* weight, float* bias) {                                   \
    kWideVectors ? to_pixels_backward_by_16(s, grad, x, grad_x, weight, bias)                  \
                 : to_pixels_backward_by_8(s, grad, x, grad_x, weight, bias);                  \
  }                                                                                            \
  FVAE_CLONES bool some_are_bits(int64_t bytes, const T* x, uint8_t* to) {                     \
    return are_bits(bytes, x, to);                                                             \
  }

// Packs 8 n pixels into n bytes; whether all of them are 0 or 1.
template <class T>
FVAE_HD bool are_bits(int64_t bytes, const T* __restrict x, uint8_t* __restrict to) {
  constexpr int64_t kAtOnce = 64;
  for (int64_t at = 0; at < bytes; at += kAtOnce / 8) {
    const int64_t n = std::min(kAtOnce, 8 * (bytes - at));
    uint8_t one[kAtOnce] = {}, other = 0;
    for (int64_t i = 0; i < n; ++i) {
      const float value = wide(x[8 * at + i]);
      one[i] = value == 1.0f;
      other |= uint8_t(value != 0.0f && value != 1.0f);
    }
    if (other) return false;
    for (int64_t b = 0; b < n / 8; ++b) {
      uint8_t byte = 0;
      for (int i = 0; i < 8; ++i) byte = uint8_t(byte << 1 | one[8 * b + i]);
      to[at + b] = byte;
    }
  }
  return true;
}

FVAE_ENDS(float)
FVAE_ENDS(BFloat16)
FVAE_ENDS(Half)
#undef FVAE_ENDS

FVAE_CLONES void some_add_tables(const float* tables, int64_t channels, float* weight) {
  add_tables(tables, channels, weight);
}

// call() with a pointer to the tensor's numbers.
template <class Call>
void with_numbers(const Tensor& t, Call call) {
  void* const data = t.data_ptr();
  if (t.scalar_type() == ScalarType::Float)
    call(static_cast<float*>(data));
  else if (t.scalar_type() == ScalarType::BFloat16)
    call(static_cast<BFloat16*>(data));
  else
    call(static_cast<Half*>(data));
}

void check(const Tensor& t, const char* name, int64_t dims) {
  STD_TORCH_CHECK(t.dim() == dims && t.is_cpu() && t.is_contiguous(), name, ": expected ", dims,
                  " dimensions in a row, on the CPU");
  const ScalarType dtype = t.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::BFloat16 ||
                      dtype == ScalarType::Half,
                  name, ": expected float32, bfloat16 or float16");
}

std::vector<float> floats_of(const Tensor& given, const char* name, int64_t count) {
  const Tensor t = torch::stable::contiguous(given);
  check(t, name, t.dim());
  STD_TORCH_CHECK(t.numel() == count, name, ": got ", t.numel(), " numbers, expected ", count);
  std::vector<float> found(count);
  with_numbers(t, [&](auto* from) {
    for (int64_t i = 0; i < count; ++i) found[i] = wide(from[i]);
  });
  return found;
}

Tensor tensor_of(const Tensor& like, std::vector<int64_t> shape, ScalarType dtype) {
  return torch::stable::new_empty(like, shape, dtype);
}

Tensor tensor_of(const Tensor& like, std::vector<int64_t> shape, const std::vector<float>& numbers) {
  Tensor found = tensor_of(like, std::move(shape), ScalarType::Float);
  std::copy(numbers.begin(), numbers.end(), static_cast<float*>(found.data_ptr()));
  return found;
}

// Add up what parts of a batch have summed apart, in their order.
std::vector<float> added(const std::vector<std::vector<float>>& parts, int64_t count) {
  std::vector<float> sum(count);
  for (const auto& part : parts)
    for (int64_t i = 0; i < count; ++i) sum[i] += part[i];
  return sum;
}

std::tuple<Tensor, Tensor> packed_bits(Tensor x) {
  x = torch::stable::contiguous(x);
  check(x, "x", x.dim());
  STD_TORCH_CHECK(x.numel() % 8 == 0, "x: got ", x.numel(), " pixels, expected a multiple of 8");
  const int64_t bytes = x.numel() / 8;
  Tensor bits = tensor_of(x, {bytes}, ScalarType::Byte);
  uint8_t* const to = static_cast<uint8_t*>(bits.data_ptr());
  std::atomic<bool> all{true};
  with_numbers(x, [&](auto* from) {
    torch::stable::parallel_for(0, bytes, 1 << 13, [&](int64_t begin, int64_t end) {
      if (all && !some_are_bits(end - begin, from + 8 * begin, to + begin)) all = false;
    });
  });
  Tensor found = tensor_of(x, {}, ScalarType::Bool);
  *static_cast<bool*>(found.data_ptr()) = all;
  return {bits, found};
}

int64_t side_of(const Tensor& bits, int64_t images, int64_t half) {
  STD_TORCH_CHECK(half >= 4 && half % 4 == 0, "bits: got images of ", 2 * half,
                  " pixels a side, expected a multiple of 8");
  STD_TORCH_CHECK(bits.scalar_type() == ScalarType::Byte && bits.is_cpu() && bits.is_contiguous() &&
                      bits.numel() == images * half * half / 2,
                  "bits: expected bytes on the CPU, S S / 8 of each of ", images, " images");
  return 2 * half;
}

Tensor conv_from_bits(Tensor bits, int64_t side, Tensor weight, Tensor bias) {
  STD_TORCH_CHECK(side >= 8 && side % 8 == 0, "side: got ", side, ", expected a multiple of 8");
  const int64_t channels = weight.size(0), half = side / 2, bytes = side * side / 8;
  const int64_t images = bits.numel() / bytes;
  side_of(bits, images, half);
  std::vector<float> tables(2 * kBytes * channels);
  fill_tables(floats_of(weight, "weight", channels * kTaps).data(),
              floats_of(bias, "bias", channels).data(), channels, tables.data());
  Tensor y = tensor_of(weight, {images, half, half, channels}, weight.scalar_type());
  const uint8_t* const from = bits.const_data_ptr<uint8_t>();
  with_numbers(y, [&](auto* to) {
    torch::stable::parallel_for(0, images, 1, [&](int64_t begin, int64_t end) {
      Patches patches(side);
      for (int64_t b = begin; b < end; ++b) {
        patches.take(from + b * bytes);
        some_from_bits(patches, channels, tables.data(), to + b * half * half * channels);
      }
    });
  });
  return y;
}

std::tuple<Tensor, Tensor> conv_from_bits_backward(Tensor grad, Tensor y, Tensor bits) {
  check(grad, "grad", 4), check(y, "y", 4);
  STD_TORCH_CHECK(grad.numel() == y.numel() && grad.scalar_type() == y.scalar_type(),
                  "grad: expected the shape and dtype of y");
  const int64_t images = y.size(0), half = y.size(1), channels = y.size(3);
  const int64_t side = side_of(bits, images, half), bytes = side * side / 8;
  const int64_t parts = (images + kImages - 1) / kImages;
  std::vector<std::vector<float>> weights(parts), biases(parts);
  const uint8_t* const from = bits.const_data_ptr<uint8_t>();
  with_numbers(y, [&](auto* of_y) {
    const auto* of_grad = static_cast<decltype(of_y)>(grad.data_ptr());
    torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
      Patches patches(side);
      std::vector<float> tables(2 * kBytes * channels), delta(channels);
      for (int64_t part = begin; part < end; ++part) {
        std::fill(tables.begin(), tables.end(), 0.0f);
        weights[part].resize(channels * kTaps), biases[part].resize(channels);
        for (int64_t b = part * kImages; b < std::min(images, (part + 1) * kImages); ++b) {
          const int64_t at = b * half * half * channels;
          patches.take(from + b * bytes);
          some_from_bits_backward(patches, channels, of_grad + at, of_y + at, delta.data(),
                                  tables.data(), biases[part].data());
        }
        some_add_tables(tables.data(), channels, weights[part].data());
      }
    });
  });
  const std::vector<float> by_tap = added(weights, channels * kTaps);
  std::vector<float> weight(by_tap.size());
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t t = 0; t < kTaps; ++t) weight[c * kTaps + t] = by_tap[t * channels + c];
  return {tensor_of(y, {channels, 1, 4, 4}, weight),
          tensor_of(y, {channels}, added(biases, channels))};
}

// The sizes of a last layer.
struct Last {
  int64_t images, height, width, channels, colours;
  std::vector<float> weight;

  Last(const Tensor& x, const Tensor& given) {
    check(x, "x", 4);
    STD_TORCH_CHECK(given.dim() == 4 && given.size(0) == x.size(3) && given.size(2) == 4 &&
                        given.size(3) == 4 && given.scalar_type() == x.scalar_type(),
                    "weight: expected [C, O, 4, 4] for x [B, H, W, C], of its dtype");
    images = x.size(0), height = x.size(1), width = x.size(2), channels = x.size(3);
    colours = given.size(1);
    weight = floats_of(given, "weight", channels * colours * kTaps);
  }

  ToPixels shared(bool relu) const {
    return ToPixels(height, width, channels, colours, relu, weight.data());
  }
  int64_t places() const { return height * width; }
};

Tensor conv_to_pixels(Tensor x, Tensor weight, Tensor bias, bool relu) {
  const Last last(x, weight);
  const std::vector<float> biases = floats_of(bias, "bias", last.colours);
  Tensor y = tensor_of(x, {last.images, 2 * last.height, 2 * last.width, last.colours},
                       x.scalar_type());
  with_numbers(y, [&](auto* to) {
    const auto* from = static_cast<decltype(to)>(x.data_ptr());
    torch::stable::parallel_for(0, last.images, 1, [&](int64_t begin, int64_t end) {
      ToPixels s = last.shared(relu);
      for (int64_t b = begin; b < end; ++b)
        some_to_pixels(s, from + b * last.places() * last.channels, biases.data(),
                       to + b * 4 * last.places() * last.colours);
    });
  });
  return y;
}

std::tuple<Tensor, Tensor, Tensor> conv_to_pixels_backward(Tensor grad, Tensor x, Tensor weight,
                                                           bool relu, bool need_x) {
  const Last last(x, weight);
  check(grad, "grad", 4);
  STD_TORCH_CHECK(grad.numel() == 4 * last.images * last.places() * last.colours &&
                      grad.scalar_type() == x.scalar_type(),
                  "grad: expected [B, 2H, 2W, O], of x's dtype");
  const int64_t parts = (last.images + kImages - 1) / kImages;
  std::vector<std::vector<float>> weights(parts), biases(parts);
  Tensor grad_x = tensor_of(x, need_x ? std::vector<int64_t>{last.images, last.height, last.width,
                                                             last.channels}
                                      : std::vector<int64_t>{0}, x.scalar_type());
  with_numbers(x, [&](auto* of_x) {
    auto* of_grad = static_cast<decltype(of_x)>(grad.data_ptr());
    auto* to = need_x ? static_cast<decltype(of_x)>(grad_x.data_ptr()) : nullptr;
    torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
      ToPixels s = last.shared(relu);
      for (int64_t part = begin; part < end; ++part) {
        weights[part].resize(s.padded_channels * s.taps), biases[part].resize(last.colours);
        for (int64_t b = part * kImages; b < std::min(last.images, (part + 1) * kImages); ++b) {
          const int64_t at = b * last.places() * last.channels;
          some_to_pixels_backward(s, of_grad + b * 4 * last.places() * last.colours, of_x + at,
                                  to ? to + at : nullptr, weights[part].data(),
                                  biases[part].data());
        }
      }
    });
  });
  return {grad_x,
          tensor_of(x, {last.channels, last.colours, 4, 4},
                    added(weights, last.channels * last.colours * kTaps)),
          tensor_of(x, {last.colours}, added(biases, last.colours))};
}

STABLE_TORCH_LIBRARY_IMPL(fvae, CPU, m) {
  m.impl("packed_bits", TORCH_BOX(&packed_bits));
  m.impl("conv_from_bits", TORCH_BOX(&conv_from_bits));
  m.impl("conv_from_bits_backward", TORCH_BOX(&conv_from_bits_backward));
  m.impl("conv_to_pixels", TORCH_BOX(&conv_to_pixels));
  m.impl("conv_to_pixels_backward", TORCH_BOX(&conv_to_pixels_backward));
}

}  // namespace
}  // namespace fvae::host
