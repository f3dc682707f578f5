// Depthwise 7x7 convolution of channels-last rows, and its gradients. Lanes are channels.
#pragma once

#include "cpu/convnext/lanes.h"

namespace jepa_fast {
namespace {

constexpr int kernel_side = 7;
// Pixels whose sums are in registers at a time: a sum waits four cycles for its last, while eight others are added to. With
// 16 registers the seven taps of a row come from the cache.
constexpr int most_row_pixels = 12;
// Pixels of the gradient's left factor that are.
constexpr int gradient_pixels = vector_registers == 32 ? 8 : 4;

// Pixels pixels of one row: out[x] = addend[x] + sum over rows a, taps b of in[a in_row + (x + b) channels] taps[7 a + b].
template <typename T, int Width, int Pixels>
__attribute__((noinline)) void convolve_block(
    const T* in, int64_t in_row, int64_t rows, const T* taps, int64_t channels, const T* addend, T* out) {
  using V = typename Lanes<T, Width>::type;
  V sums[Pixels];
  JEPA_FAST_UNROLL
  for (int x = 0; x < Pixels; ++x) sums[x] = addend == nullptr ? V{} : load<V>(addend + x * channels);
  for (int64_t a = 0; a < rows; ++a) {
    V tap[kernel_side];
    JEPA_FAST_UNROLL
    for (int b = 0; b < kernel_side; ++b) tap[b] = load<V>(taps + b * channels);
    JEPA_FAST_UNROLL
    for (int i = 0; i < Pixels + kernel_side - 1; ++i) {
      const V value = load<V>(in + i * channels);
      JEPA_FAST_UNROLL
      for (int b = 0; b < kernel_side; ++b) {
        if (i - b >= 0 && i - b < Pixels) sums[i - b] += value * tap[b];
      }
    }
    in += in_row;
    taps += kernel_side * channels;
  }
  JEPA_FAST_UNROLL
  for (int x = 0; x < Pixels; ++x) store(out + x * channels, sums[x]);
}

template <typename T, int Width, int Pixels, typename... Arguments>
JEPA_FAST_INLINE void convolve_pixels(int64_t pixels, Arguments... arguments) {
  if constexpr (Pixels == 1) {
    convolve_block<T, Width, 1>(arguments...);
  } else if (pixels == Pixels) {
    convolve_block<T, Width, Pixels>(arguments...);
  } else {
    convolve_pixels<T, Width, Pixels - 1>(pixels, arguments...);
  }
}

// A row of `pixels` pixels, all channels; the first of `rows` rows of in and taps is row 0 here.
template <typename T, int Width>
void convolve_row(
    const T* in, int64_t in_row, int64_t rows, const T* taps, int64_t channels, const T* addend, int64_t pixels, T* out) {
  const int64_t blocks = (pixels + most_row_pixels - 1) / most_row_pixels;
  for (int64_t channel = 0; channel < channels; channel += Width) {
    for (int64_t block = 0, x = 0; block < blocks; ++block) {
      const int64_t end = pixels * (block + 1) / blocks;
      const int64_t offset = x * channels + channel;
      convolve_pixels<T, Width, most_row_pixels>(
          end - x, in + offset, in_row, rows, taps + channel, channels, addend == nullptr ? addend : addend + offset,
          out + offset);
      x = end;
    }
  }
}

template <typename T, int Width, int Pixels>
JEPA_FAST_INLINE void add_taps(
    const T* in, const T* dz, int64_t channels, typename Lanes<T, Width>::type (&sums)[kernel_side]) {
  using V = typename Lanes<T, Width>::type;
  V left[Pixels];
  JEPA_FAST_UNROLL
  for (int j = 0; j < Pixels; ++j) left[j] = load<V>(in + j * channels);
  JEPA_FAST_UNROLL
  for (int i = 0; i < Pixels + kernel_side - 1; ++i) {
    const V right = load<V>(dz + i * channels);
    JEPA_FAST_UNROLL
    for (int b = 0; b < kernel_side; ++b) {
      const int j = i - (kernel_side - 1 - b);
      if (j >= 0 && j < Pixels) sums[b] += left[j] * right;
    }
  }
}

// Gradient of one row of taps: sums[b] += sum over rows and pixels j of in[j] dz[j + 6 - b].
template <typename T, int Width>
void taps_gradient(
    const T* in, int64_t in_row, const T* dz, int64_t dz_row, int64_t rows, int64_t pixels, int64_t channels, T* sums) {
  using V = typename Lanes<T, Width>::type;
  for (int64_t channel = 0; channel < channels; channel += Width) {
    V total[kernel_side];
    JEPA_FAST_UNROLL
    for (int b = 0; b < kernel_side; ++b) total[b] = load<V>(sums + b * channels + channel);
    for (int64_t row = 0; row < rows; ++row) {
      const T* left = in + row * in_row + channel;
      const T* right = dz + row * dz_row + channel;
      int64_t j = 0;
      for (; j + gradient_pixels <= pixels; j += gradient_pixels) {
        add_taps<T, Width, gradient_pixels>(left + j * channels, right + j * channels, channels, total);
      }
      for (; j < pixels; ++j) add_taps<T, Width, 1>(left + j * channels, right + j * channels, channels, total);
    }
    JEPA_FAST_UNROLL
    for (int b = 0; b < kernel_side; ++b) store(sums + b * channels + channel, total[b]);
  }
}

}  // namespace
}  // namespace jepa_fast
