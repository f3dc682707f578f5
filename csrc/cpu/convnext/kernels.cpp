// The kernels for one instruction set: CMake compiles this file once for each, with JEPA_FAST_ISA its name.
#include "cpu/convnext/feature_gate_kernels.h"
#include "cpu/convnext/images.h"
#include "cpu/convnext/locate_kernels.h"
#include "cpu/convnext/probe_kernels.h"
#include "cpu/convnext/rollout_backward.h"
#include "cpu/convnext/windows_backward.h"

#define JEPA_FAST_JOIN(a, b) a##b
#define JEPA_FAST_NAMED(prefix, name) JEPA_FAST_JOIN(prefix, name)
#define JEPA_FAST_TEXT(name) #name
#define JEPA_FAST_TEXT_OF(name) JEPA_FAST_TEXT(name)

namespace jepa_fast {
namespace {

// Calls F::run<Width> with the widest vector whose lanes divide the channels.
template <typename T, template <typename, int> typename F, typename... Arguments>
void by_width(int64_t channels, const Arguments&... arguments) {
  constexpr int width = vector_bytes / static_cast<int>(sizeof(T));
  if constexpr (width > convnext_channel_step) {
    if (channels % width != 0) return F<T, convnext_channel_step>::run(arguments...);
  }
  F<T, width>::run(arguments...);
}

#define JEPA_FAST_BY_WIDTH(name)                                                             \
  template <typename T, int Width>                                                           \
  struct By_##name {                                                                         \
    template <typename... Arguments>                                                         \
    static void run(const Arguments&... arguments) {                                         \
      name<T, Width>(arguments...);                                                          \
    }                                                                                        \
  };                                                                                         \
  template <typename T, typename Shape, typename... Arguments>                               \
  void any_##name(const Shape& shape, Arguments... arguments) {                              \
    by_width<T, By_##name>(shape.channels, shape, arguments...);                             \
  }

JEPA_FAST_BY_WIDTH(windows_forward)
JEPA_FAST_BY_WIDTH(windows_backward)
JEPA_FAST_BY_WIDTH(bands_forward)
JEPA_FAST_BY_WIDTH(bands_backward)
JEPA_FAST_BY_WIDTH(bands_convolution_backward)
JEPA_FAST_BY_WIDTH(locate_forward)
JEPA_FAST_BY_WIDTH(locate_backward)

template <typename T>
double multiply_adds(int64_t steps) {
  constexpr int width = vector_bytes / static_cast<int>(sizeof(T));
  constexpr int sums_in_flight = 12;
  using V = typename Lanes<T, width>::type;
  V sums[sums_in_flight];
  JEPA_FAST_UNROLL
  for (int i = 0; i < sums_in_flight; ++i) sums[i] = spread<V>(static_cast<T>(i));
  // Read at run time: a compiler that knew them would compute the sums itself.
  static volatile T factors[2] = {T(0.999), T(0.001)};
  const V factor = spread<V>(static_cast<T>(factors[0]));
  const V addend = spread<V>(static_cast<T>(factors[1]));
  for (int64_t step = 0; step < steps; ++step) {
    JEPA_FAST_UNROLL
    for (int i = 0; i < sums_in_flight; ++i) sums[i] = sums[i] * factor + addend;
  }
  volatile T kept = 0;
  for (int i = 0; i < sums_in_flight; ++i) kept = kept + sums[i][0];
  return 2.0 * width * sums_in_flight * static_cast<double>(steps);
}

constexpr ProbeKernels probe{probe_panel, probe_forward, probe_update, probe_outputs};

template <typename T>
constexpr RolloutKernels rollout{
    rollout_padded<T>, rollout_packed_size<T>, pack_rollout<T>, rollout_forward<T>, rollout_backward<T>, rollout_matrices<T>};

template <typename T>
constexpr LocateKernels locate{
    [](const Locate& at, void* positions, int64_t first, int64_t last) {
      any_locate_forward<T>(at, positions, first, last);
    },
    [](const Locate& at, const void* to_positions, double* sums, int64_t first, int64_t last) {
      any_locate_backward<T>(at, to_positions, sums, first, last);
    }};

template <typename T>
constexpr FeatureGateKernels feature_gate{gate_forward<T>, gate_backward<T>};

template <typename T>
constexpr ConvNextKernels kernels = {
    JEPA_FAST_TEXT_OF(JEPA_FAST_ISA),
    pack<T>,
    [](const WindowChain& chain, const WindowResults& results, int64_t first, int64_t last) {
      any_windows_forward<T>(chain, results, first, last);
    },
    [](const WindowChain& chain, const WindowGradients& gradients, int64_t chunk) {
      any_windows_backward<T>(chain, gradients, chunk);
    },
    [](const ImageBlock& block, const ImageResults& results, int64_t first, int64_t last) {
      any_bands_forward<T>(block, results, first, last);
    },
    [](const ImageBlock& block, const ImageGradients& gradients, int64_t first, int64_t last, int64_t chunk) {
      any_bands_backward<T>(block, gradients, first, last, chunk);
    },
    [](const ImageBlock& block, const ImageGradients& gradients, int64_t first, int64_t last, int64_t chunk) {
      any_bands_convolution_backward<T>(block, gradients, first, last, chunk);
    },
    multiply_adds<T>,
    &probe,
    &rollout<T>,
    &locate<T>,
    &feature_gate<T>,
};

}  // namespace

const ConvNextKernels* JEPA_FAST_NAMED(convnext_kernels_, JEPA_FAST_ISA)(bool is_double) {
  return is_double ? &kernels<double> : &kernels<float>;
}

}  // namespace jepa_fast
