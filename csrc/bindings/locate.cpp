// Schemas and registrations of locate.
#include "locate.h"

#include <algorithm>
#include <cmath>
#include <tuple>

#include "bindings/blocks.h"

namespace {

using namespace jepa_fast;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr const char* op = "locate";

// The tensors that the pointers are of.
struct Arguments {
  Tensor images, corners, look, spread;
  const LocateKernels* kernels;
  Locate locate{};

  Arguments(
      const Tensor& images_, const Tensor& corners_, const Tensor& look_, const Tensor& spread_, const Tensor& log_temperature,
      int64_t frame_height, int64_t frame_width)
      : images(torch::stable::contiguous(images_)), kernels(locate_kernels(is_double(op, images_))) {
    STD_TORCH_CHECK(kernels != nullptr, op, ": JEPA_FAST_CPU_ISA names no instruction set that this processor has");
    STD_TORCH_CHECK(
        images.dim() == 3 && look_.dim() == 4 && corners_.dim() == 2 && corners_.size(0) == images.size(0) &&
            corners_.size(1) == 2 && corners_.scalar_type() == ScalarType::Long,
        op, ": expected images [N, h, w], corners int64 [N, 2] and look [C, 1, k, k]");
    const int64_t channels = look_.size(0), kernel = look_.size(2);
    STD_TORCH_CHECK(
        channels > 0 && channels % convnext_channel_step == 0 && kernel > 0, op, ": look: got ", channels,
        " channels, expected a multiple of 8");
    look = checked(op, "look", look_, {channels, 1, kernel, kernel}, images);
    spread = checked(op, "spread", spread_, {channels, 1, kernel, kernel}, images);
    corners = torch::stable::contiguous(corners_);
    STD_TORCH_CHECK(log_temperature.numel() == 1, op, ": log_temperature: expected one number");
    checked(op, "log_temperature", log_temperature, {}, images);
    const double logarithm = log_temperature.scalar_type() == ScalarType::Double
                                 ? *log_temperature.const_data_ptr<double>()
                                 : *log_temperature.const_data_ptr<float>();
    locate = {images.const_data_ptr(), corners.const_data_ptr<int64_t>(), look.const_data_ptr(), spread.const_data_ptr(),
              images.size(0),          images.size(1),                    images.size(2),         channels,
              kernel,                  frame_height,                      frame_width,            std::exp(logarithm)};
  }
};

Tensor locate_cpu(
    Tensor images, Tensor corners, Tensor look, Tensor spread, Tensor log_temperature, int64_t frame_height,
    int64_t frame_width) {
  const Arguments t(images, corners, look, spread, log_temperature, frame_height, frame_width);
  const Tensor out = torch::stable::new_empty(t.images, {t.locate.windows, 2});
  void* const to = out.mutable_data_ptr();
  torch::stable::parallel_for(0, t.locate.windows, locate_chunk, [&](int64_t first, int64_t last) {
    t.kernels->forward(t.locate, to, first, last);
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> locate_cpu_backward(
    Tensor gradient, Tensor images, Tensor corners, Tensor look, Tensor spread, Tensor log_temperature, int64_t frame_height,
    int64_t frame_width) {
  const Arguments t(images, corners, look, spread, log_temperature, frame_height, frame_width);
  const int64_t windows = t.locate.windows, channels = t.locate.channels, kernel = t.locate.kernel;
  gradient = checked(op, "gradient", gradient, {windows, 2}, t.images);
  const int64_t chunks = (windows + locate_chunk - 1) / locate_chunk;
  const int64_t count = locate_sums(channels, kernel);
  const Tensor sums = torch::stable::new_zeros(t.images, {chunks, count}, ScalarType::Double);
  double* const shares = sums.mutable_data_ptr<double>();
  torch::stable::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      t.kernels->backward(
          t.locate, gradient.const_data_ptr(), shares + chunk * count, chunk * locate_chunk,
          std::min(windows, (chunk + 1) * locate_chunk));
    }
  });
  const Tensor to_look = torch::stable::new_empty(t.images, {channels, 1, kernel, kernel});
  const Tensor to_spread = torch::stable::new_empty(t.images, {channels, 1, kernel, kernel});
  const Tensor to_temperature = torch::stable::new_empty(t.images, {});
  by_type(op, t.images, [&]<typename T>(T) {
    T *const look_gradient = to_look.mutable_data_ptr<T>(), *const spread_gradient = to_spread.mutable_data_ptr<T>();
    const int64_t taps = kernel * kernel;
    const auto total = [&](int64_t at) {
      double sum = 0;
      for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += shares[chunk * count + at];
      return static_cast<T>(sum);
    };
    for (int64_t tap = 0; tap < taps; ++tap) {
      for (int64_t c = 0; c < channels; ++c) {
        look_gradient[c * taps + tap] = total(tap * channels + c);
        spread_gradient[c * taps + tap] = total((taps + tap) * channels + c);
      }
    }
    *to_temperature.mutable_data_ptr<T>() = total(2 * taps * channels);
  });
  return {to_look, to_spread, to_temperature};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(jepa_fast, m) {
  m.def(
      "locate(Tensor images, Tensor corners, Tensor look, Tensor spread, Tensor log_temperature, int frame_height, "
      "int frame_width) -> Tensor");
  m.def(
      "locate_backward(Tensor gradient, Tensor images, Tensor corners, Tensor look, Tensor spread, Tensor log_temperature, "
      "int frame_height, int frame_width) -> (Tensor look_gradient, Tensor spread_gradient, Tensor log_temperature_gradient)");
}

STABLE_TORCH_LIBRARY_IMPL(jepa_fast, CPU, m) {
  m.impl("locate", TORCH_BOX(&locate_cpu));
  m.impl("locate_backward", TORCH_BOX(&locate_cpu_backward));
}
