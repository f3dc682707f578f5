// A window through both convolutions and the softmax, in the first cache, for one instruction set.
#pragma once

#include <math.h>

#include "cpu/convnext/block.h"
#include "locate.h"

namespace jepa_fast {
namespace {

JEPA_FAST_INLINE double exponential(double x) { return exp(x); }

// 2^n times a polynomial of the rest, in [-ln 2 / 2, ln 2 / 2]: without a call, so that a loop of it becomes vectors. Off by
// less than 2e-7 of the result; for x up to 87, and nothing below -87.
JEPA_FAST_INLINE float exponential(float x) {
  constexpr float large = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float inside = x < -87.0f ? -87.0f : x;
  const float shifted = inside * 1.44269504f + large;
  const float n = shifted - large;
  const float rest = (inside - n * 0.693145752f) - n * 1.42860677e-6f;
  float sum = 1.3888889e-3f;
  sum = sum * rest + 8.3333333e-3f;
  sum = sum * rest + 4.1666667e-2f;
  sum = sum * rest + 1.6666667e-1f;
  sum = sum * rest + 0.5f;
  sum = sum * rest + 1.0f;
  sum = sum * rest + 1.0f;
  int32_t power;
  __builtin_memcpy(&power, &shifted, sizeof(power));
  power = static_cast<int32_t>(static_cast<uint32_t>(power) << 23) + 0x3f800000;
  float scale;
  __builtin_memcpy(&scale, &power, sizeof(scale));
  return x < -87.0f ? 0.0f : sum * scale;
}

// Kernels of side Kernel, or 0: of any.
template <typename T, int Width, int Kernel>
struct LocateWindow {
  using V = typename Lanes<T, Width>::type;
  const Locate& locate;
  const int64_t kernel, channels;
  // Of the hidden layer and of the logits, which reach further than the window.
  const int64_t margin, height, width, logit_height, logit_width;
  const T temperature;
  T *look, *spread;   // [k, k, C]
  T* image;           // [h + 2 margin, w + 2 margin]
  T* hidden;          // [height + 2 margin, width + 2 margin, C]: with zeros around it
  T* scaled;          // [logit_height, logit_width]: logits over the temperature; backward their gradient
  T* weights;         // the same shape
  T* to_hidden;       // [height, width, C]
  T* sums;            // [locate_sums]
  // Of the window: what of its logits is inside of the frame, the softmax's sum and where it is, from the frame's centre.
  int64_t first_row, last_row, first_column, last_column;
  T total, at_x, at_y;

  LocateWindow(const Locate& locate, Pieces& pieces)
      : locate(locate), kernel(Kernel > 0 ? Kernel : locate.kernel), channels(locate.channels), margin(kernel - 1),
        height(locate.height + margin), width(locate.width + margin), logit_height(height + margin),
        logit_width(width + margin), temperature(static_cast<T>(locate.temperature)) {
    const int64_t taps = kernel * kernel * channels;
    look = pieces.take<T>(taps);
    spread = pieces.take<T>(taps);
    image = pieces.take<T>((locate.height + 2 * margin) * (locate.width + 2 * margin));
    hidden = pieces.take<T>((height + 2 * margin) * (width + 2 * margin) * channels);
    scaled = pieces.take<T>(logit_height * logit_width);
    weights = pieces.take<T>(logit_height * logit_width);
    to_hidden = pieces.take<T>(height * width * channels);
    sums = pieces.take<T>(locate_sums(channels, kernel));
  }

  // What is the same for all windows.
  void begin() {
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t tap = 0; tap < kernel * kernel; ++tap) {
        look[tap * channels + c] = static_cast<const T*>(locate.look)[c * kernel * kernel + tap];
        spread[tap * channels + c] = static_cast<const T*>(locate.spread)[c * kernel * kernel + tap];
      }
    }
    fill_zero(image, (locate.height + 2 * margin) * image_row());
    fill_zero(hidden, (height + 2 * margin) * hidden_row());
  }

  // Calls f(a, b, number) for all taps.
  template <typename F>
  JEPA_FAST_INLINE void for_taps(const F& f) const {
    if constexpr (Kernel > 0) {
      JEPA_FAST_UNROLL
      for (int tap = 0; tap < Kernel * Kernel; ++tap) f(tap / Kernel, tap % Kernel, tap);
    } else {
      for (int64_t tap = 0; tap < kernel * kernel; ++tap) f(tap / kernel, tap % kernel, tap);
    }
  }

  int64_t image_row() const { return locate.width + 2 * margin; }
  int64_t hidden_row() const { return (width + 2 * margin) * channels; }
  T* hidden_at(int64_t y, int64_t x) const { return hidden + (y + margin) * hidden_row() + (x + margin) * channels; }

  __attribute__((noinline)) void forward(int64_t window) {
    const T* const from = static_cast<const T*>(locate.images) + window * locate.height * locate.width;
    for (int64_t y = 0; y < locate.height; ++y) {
      copy(from + y * locate.width, locate.width, image + (y + margin) * image_row() + margin);
    }
    for (int64_t y = 0; y < height; ++y) {
      for (int64_t x = 0; x < width; ++x) {
        for (int64_t c = 0; c < channels; c += Width) {
          V sum{};
          for_taps([&](int64_t a, int64_t b, int64_t tap) {
            sum += image[(y + a) * image_row() + x + b] * load<V>(look + tap * channels + c);
          });
          store(hidden_at(y, x) + c, sum > V{} ? sum : V{});
        }
      }
    }
    for (int64_t y = 0; y < logit_height; ++y) {
      for (int64_t x = 0; x < logit_width; ++x) {
        V sum{};
        for (int64_t c = 0; c < channels; c += Width) {
          for_taps([&](int64_t a, int64_t b, int64_t tap) {
            sum += load<V>(hidden_at(y - a, x - b) + c) * load<V>(spread + tap * channels + c);
          });
        }
        scaled[y * logit_width + x] = sum_lanes<Width>(sum)[0];
      }
    }
    for (int64_t i = 0; i < logit_height * logit_width; ++i) scaled[i] /= temperature;
    find(window);
  }

  T place_x(int64_t window, int64_t x) const { return place(locate.corners[2 * window + 1] - margin + x, locate.frame_width); }
  T place_y(int64_t window, int64_t y) const { return place(locate.corners[2 * window] - margin + y, locate.frame_height); }
  static T place(int64_t at, int64_t size) { return static_cast<T>(at) - static_cast<T>(size - 1) / 2; }

  // The softmax over the frame, whose logits are 0 outside of the window.
  void find(int64_t window) {
    const int64_t top = locate.corners[2 * window] - margin;
    const int64_t left = locate.corners[2 * window + 1] - margin;
    first_row = most<int64_t>(0, -top);
    last_row = most(first_row, least(logit_height, locate.frame_height - top));
    first_column = most<int64_t>(0, -left);
    last_column = most(first_column, least(logit_width, locate.frame_width - left));
    T largest = 0;
    for (int64_t y = first_row; y < last_row; ++y) {
      for (int64_t x = first_column; x < last_column; ++x) largest = most(largest, scaled[y * logit_width + x]);
    }
    const T outside = exponential(-largest);
    // In float64: of a frame most weights are `outside`, and equal addends round the same way.
    double sum = 0, sum_x = 0, sum_y = 0;
    for (int64_t y = first_row; y < last_row; ++y) {
      double row = 0;
      T* const row_weights = weights + y * logit_width;
      const T* const row_scaled = scaled + y * logit_width;
      for (int64_t x = first_column; x < last_column; ++x) row_weights[x] = exponential(row_scaled[x] - largest);
      for (int64_t x = first_column; x < last_column; ++x) {
        const double more = static_cast<double>(row_weights[x]) - static_cast<double>(outside);
        row += more;
        sum_x += more * static_cast<double>(place_x(window, x));
      }
      sum += row;
      sum_y += row * static_cast<double>(place_y(window, y));
    }
    sum += static_cast<double>(outside) * static_cast<double>(locate.frame_height * locate.frame_width);
    total = static_cast<T>(sum);
    at_x = static_cast<T>(sum_x / sum);
    at_y = static_cast<T>(sum_y / sum);
  }

  // out [ky, kx, C] = sum over hidden pixels of left [y + ky, x + kx] times right [y, x, C].
  void taps_gradient(const T* left, int64_t left_row, const T* right, int64_t right_row, T* out) const {
    for (int64_t c = 0; c < channels; c += Width) {
      if constexpr (Kernel > 0) {
        V sums_of_taps[Kernel * Kernel] = {};
        for (int64_t y = 0; y < height; ++y) {
          for (int64_t x = 0; x < width; ++x) {
            const V pixel = load<V>(right + y * right_row + x * channels + c);
            const T* const factors = left + y * left_row + x;
            for_taps([&](int64_t a, int64_t b, int64_t tap) { sums_of_taps[tap] += factors[a * left_row + b] * pixel; });
          }
        }
        for_taps([&](int64_t, int64_t, int64_t tap) { store(out + tap * channels + c, sums_of_taps[tap]); });
      } else {
        for_taps([&](int64_t a, int64_t b, int64_t tap) {
          V sum{};
          for (int64_t y = 0; y < height; ++y) {
            const T* const factors = left + (y + a) * left_row + b;
            for (int64_t x = 0; x < width; ++x) sum += factors[x] * load<V>(right + y * right_row + x * channels + c);
          }
          store(out + tap * channels + c, sum);
        });
      }
    }
  }

  // After `forward` of the same window: `sums` of it, from the gradient of its position.
  __attribute__((noinline)) void backward(int64_t window, const T* to_position) {
    const int64_t taps = kernel * kernel * channels;
    T to_temperature = 0;
    for (int64_t y = 0; y < logit_height; ++y) {
      const T from_y = to_position[1] * (place_y(window, y) - at_y);
      for (int64_t x = 0; x < logit_width; ++x) {
        T& at = scaled[y * logit_width + x];
        const bool inside = y >= first_row && y < last_row && x >= first_column && x < last_column;
        T slope = 0;
        if (inside) {
          slope = weights[y * logit_width + x] / total * (to_position[0] * (place_x(window, x) - at_x) + from_y);
          to_temperature -= slope * at;
        }
        at = slope / temperature;
      }
    }
    for (int64_t y = 0; y < height; ++y) {
      for (int64_t x = 0; x < width; ++x) {
        for (int64_t c = 0; c < channels; c += Width) {
          V sum{};
          for_taps([&](int64_t a, int64_t b, int64_t tap) {
            sum += scaled[(y + a) * logit_width + x + b] * load<V>(spread + tap * channels + c);
          });
          store(to_hidden + (y * width + x) * channels + c, load<V>(hidden_at(y, x) + c) > V{} ? sum : V{});
        }
      }
    }
    taps_gradient(image, image_row(), to_hidden, width * channels, sums);
    taps_gradient(scaled, logit_width, hidden_at(0, 0), hidden_row(), sums + taps);
    sums[2 * taps] = to_temperature;
  }
};

// Calls f(space) with a window's space, for kernels of the usual side or of another.
template <typename T, int Width, typename F>
JEPA_FAST_INLINE void with_window_space(const Locate& locate, const F& f) {
  const auto run = [&]<int Kernel>(std::integral_constant<int, Kernel>) {
    Pieces counted{nullptr};
    LocateWindow<T, Width, Kernel>(locate, counted);
    Pieces pieces{static_cast<char*>(convnext_work_space(counted.used))};
    LocateWindow<T, Width, Kernel> space(locate, pieces);
    space.begin();
    f(space);
  };
  constexpr int usual = 3;
  locate.kernel == usual ? run(std::integral_constant<int, usual>{}) : run(std::integral_constant<int, 0>{});
}

template <typename T, int Width>
void locate_forward(const Locate& locate, void* positions, int64_t first, int64_t last) {
  T* const to = static_cast<T*>(positions);
  with_window_space<T, Width>(locate, [&](auto& space) {
    for (int64_t window = first; window < last; ++window) {
      space.forward(window);
      to[2 * window] = space.at_x + static_cast<T>(locate.frame_width - 1) / 2;
      to[2 * window + 1] = space.at_y + static_cast<T>(locate.frame_height - 1) / 2;
    }
  });
}

template <typename T, int Width>
void locate_backward(const Locate& locate, const void* to_positions, double* sums, int64_t first, int64_t last) {
  with_window_space<T, Width>(locate, [&](auto& space) {
    for (int64_t window = first; window < last; ++window) {
      space.forward(window);
      space.backward(window, static_cast<const T*>(to_positions) + 2 * window);
      for (int64_t i = 0; i < locate_sums(locate.channels, locate.kernel); ++i) {
        sums[i] += static_cast<double>(space.sums[i]);
      }
    }
  });
}

}  // namespace
}  // namespace jepa_fast
