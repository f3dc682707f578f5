// A block's parts on tiles of a few dozen pixels, whose hidden activations stay in the cache.
#pragma once

#include "cpu/convnext/depthwise.h"
#include "cpu/convnext/gelu.h"
#include "cpu/convnext/product.h"
#include "convnext.h"

namespace jepa_fast {
namespace {

// Views of one block's packed parameters and of the sums of their gradients.
template <typename T>
struct Packed {
  const T *taps, *flipped, *gamma, *beta, *expand, *expand_t, *project, *project_t;

  Packed(const void* packed, int64_t block, int64_t channels) {
    const int64_t matrix = 4 * channels * channels;
    taps = static_cast<const T*>(packed) + block * convnext_packed_size(channels);
    flipped = taps + 49 * channels;
    gamma = flipped + 49 * channels;
    beta = gamma + channels;
    expand = beta + channels;
    expand_t = expand + matrix;
    project = expand_t + matrix;
    project_t = project + matrix;
  }
};

template <typename T>
struct Sums {
  T *taps, *gamma, *beta, *expand_t, *project;

  Sums(T* sums, int64_t channels) {
    taps = sums;
    gamma = taps + 49 * channels;
    beta = gamma + channels;
    expand_t = beta + channels;
    project = expand_t + 4 * channels * channels;
  }
};

// Takes pieces of the thread's work space, each aligned to 64 bytes. Without memory it only counts.
struct Pieces {
  char* memory;
  size_t used = 0;

  template <typename T>
  T* take(int64_t count) {
    T* piece = reinterpret_cast<T*>(memory + used);
    used += (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
    return memory == nullptr ? nullptr : piece;
  }
};

template <typename T>
JEPA_FAST_INLINE void fill_zero(T* to, int64_t count) {
  if (count > 0) __builtin_memset(to, 0, static_cast<size_t>(count) * sizeof(T));
}

template <typename T>
JEPA_FAST_INLINE void copy(const T* from, int64_t count, T* to) {
  if (count > 0) __builtin_memcpy(to, from, static_cast<size_t>(count) * sizeof(T));
}

// Pixels of a tile: its hidden activations stay near the first cache, and the sums of the weights' gradients pay. 66 are eleven
// blocks of six, and three rows of the default recipe's windows.
constexpr int64_t tile_pixels(int64_t channels) {
  return channels <= 16 ? 66 : channels <= 32 ? 40 : 24;
}

// A tile is some whole rows of a rectangle, or a part of one row.
struct Tile {
  int64_t row, rows, column, columns;
  int64_t pixels() const { return rows * columns; }
};

// Calls f(tile) for all tiles of rows [first_row, last_row), columns [first_column, last_column).
template <typename F>
JEPA_FAST_INLINE void for_tiles(
    int64_t first_row, int64_t last_row, int64_t first_column, int64_t last_column, int64_t most_pixels, const F& f) {
  const int64_t columns = last_column - first_column;
  if (columns <= 0) return;
  const int64_t rows = most<int64_t>(1, most_pixels / columns);
  const int64_t parts = (columns + most_pixels - 1) / most_pixels;
  for (int64_t row = first_row; row < last_row; row += rows) {
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t first = columns * part / parts;
      const int64_t last = columns * (part + 1) / parts;
      f(Tile{row, least(rows, last_row - row), first_column + first, last - first});
    }
  }
}

// What a tile is computed in.
template <typename T, int Width>
struct TileSpace {
  using V = typename Lanes<T, Width>::type;
  static constexpr int hidden_width = vector_bytes / static_cast<int>(sizeof(T));
  using H = typename Lanes<T, hidden_width>::type;

  int64_t channels;
  int64_t hidden;
  T eps;
  T* rstd;              // [P]
  T *normal, *inner;    // [P, C]: (z - mean) rstd, and that times gamma plus beta
  T *before, *after;    // [P, 4C]
  T *update;            // [P, C]

  TileSpace(Pieces& pieces, int64_t channels, double eps)
      : channels(channels), hidden(4 * channels), eps(static_cast<T>(eps)) {
    const int64_t pixels = tile_pixels(channels);
    rstd = pieces.take<T>(pixels);
    normal = pieces.take<T>(pixels * channels);
    inner = pieces.take<T>(pixels * channels);
    before = pieces.take<T>(pixels * hidden);
    after = pieces.take<T>(pixels * hidden);
    update = pieces.take<T>(pixels * channels);
  }

  // Pixels whose sums over channels are taken side by side.
  static constexpr int together = 4;

  // Of pixels p on: normal = z - mean, rstd = the sum of its squares.
  template <int Pixels>
  JEPA_FAST_INLINE void centre(const T* z, T share, int64_t p) {
    V sum[Pixels] = {};
    for (int64_t c = 0; c < channels; c += Width) {
      JEPA_FAST_UNROLL
      for (int i = 0; i < Pixels; ++i) sum[i] += load<V>(z + i * channels + c);
    }
    V squares[Pixels] = {};
    JEPA_FAST_UNROLL
    for (int i = 0; i < Pixels; ++i) sum[i] = sum_lanes<Width>(sum[i]) * share;
    for (int64_t c = 0; c < channels; c += Width) {
      JEPA_FAST_UNROLL
      for (int i = 0; i < Pixels; ++i) {
        const V value = load<V>(z + i * channels + c) - sum[i];
        squares[i] += value * value;
        store(normal + (p + i) * channels + c, value);
      }
    }
    JEPA_FAST_UNROLL
    for (int i = 0; i < Pixels; ++i) rstd[p + i] = sum_lanes<Width>(squares[i])[0];
  }

  // inner, and normal where it is kept, of z: rows of the tile lie z_row apart.
  template <bool KeepNormal>
  __attribute__((noinline)) void normalise(const T* z, int64_t z_row, const Tile& tile, const Packed<T>& block) {
    const T share = T(1) / static_cast<T>(channels);
    int64_t p = 0;
    for (int64_t row = 0; row < tile.rows; ++row) {
      const T* from = z + row * z_row;
      int64_t x = 0;
      for (; x + together <= tile.columns; x += together, p += together) centre<together>(from + x * channels, share, p);
      for (; x < tile.columns; ++x, ++p) centre<1>(from + x * channels, share, p);
    }
    for (int64_t i = 0; i < p; ++i) rstd[i] = T(1) / square_root(rstd[i] * share + eps);
    for (int64_t c = 0; c < channels; c += Width) {
      const V gamma = load<V>(block.gamma + c);
      const V beta = load<V>(block.beta + c);
      for (int64_t i = 0; i < p; ++i) {
        T* const at = normal + i * channels + c;
        const V value = load<V>(at) * rstd[i];
        if constexpr (KeepNormal) store(at, value);
        store(inner + i * channels + c, value * gamma + beta);
      }
    }
  }

  static float square_root(float x) { return __builtin_sqrtf(x); }
  static double square_root(double x) { return __builtin_sqrt(x); }

  // before = W1 inner
  void widen(int64_t pixels, const Packed<T>& block) {
    product<T, hidden_width>(pixels, hidden, channels, inner, channels, 1, block.expand_t, before);
  }

  // to = f(from), f of some vectors in place and where they are
  template <typename F>
  JEPA_FAST_INLINE void for_hidden(int64_t pixels, const T* from, T* to, const F& f) {
    int64_t i = 0;
    for (; i + gelu_vectors * hidden_width <= pixels * hidden; i += gelu_vectors * hidden_width) {
      H values[gelu_vectors];
      JEPA_FAST_UNROLL
      for (int v = 0; v < gelu_vectors; ++v) values[v] = load<H>(from + i + v * hidden_width);
      f(values, i);
      JEPA_FAST_UNROLL
      for (int v = 0; v < gelu_vectors; ++v) store(to + i + v * hidden_width, values[v]);
    }
    for (; i < pixels * hidden; i += hidden_width) {
      H value[1] = {load<H>(from + i)};
      f(value, i);
      store(to + i, value[0]);
    }
  }

  // `to` = gelu(before): after, or before itself where that is not needed any more
  __attribute__((noinline)) void activate(int64_t pixels, T* to) {
    for_hidden(pixels, before, to, [](auto& values, int64_t) { gelu(values, T()); });
  }

  // before = gelu'(before)
  __attribute__((noinline)) void derive(int64_t pixels) {
    for_hidden(pixels, before, before, [](auto& values, int64_t) { gelu_derivative(values, T()); });
  }

  // before = gelu'(before) after
  __attribute__((noinline)) void derive_times_after(int64_t pixels) {
    const T* const factors = after;
    for_hidden(pixels, before, before, [factors](auto& values, int64_t at) {
      gelu_derivative(values, T());
      for (H& value : values) value *= load<H>(factors + at + (&value - values) * hidden_width);
    });
  }

  // update = W2 activations
  void narrow(int64_t pixels, const T* activations, const Packed<T>& block) {
    product<T, Width>(pixels, channels, hidden, activations, hidden, 1, block.project_t, update);
  }

  // The gradients of W2 and of the hidden activations, which are in `after`, from that of the update in `update`; `before`
  // becomes the gradient of itself.
  __attribute__((noinline)) void project_backward(int64_t pixels, const Packed<T>& block, const Sums<T>& sums) {
    product<T, hidden_width, true>(channels, hidden, pixels, update, 1, channels, after, sums.project);
    product<T, hidden_width>(pixels, hidden, channels, update, channels, 1, block.project, after);
    derive_times_after(pixels);
  }

  // The gradients of W1, gamma, beta and z from that of `before`, which is in it. z's replaces `update`.
  __attribute__((noinline)) void expand_backward(int64_t pixels, const Packed<T>& block, const Sums<T>& sums) {
    product<T, hidden_width, true>(channels, hidden, pixels, inner, 1, channels, before, sums.expand_t);
    T* const to_inner = inner;
    product<T, Width>(pixels, channels, hidden, before, hidden, 1, block.expand, to_inner);
    for (int64_t c = 0; c < channels; c += Width) {
      V gamma = load<V>(sums.gamma + c);
      V beta = load<V>(sums.beta + c);
      for (int64_t i = 0; i < pixels; ++i) {
        const V gradient = load<V>(to_inner + i * channels + c);
        gamma += gradient * load<V>(normal + i * channels + c);
        beta += gradient;
      }
      store(sums.gamma + c, gamma);
      store(sums.beta + c, beta);
    }
    const T share = T(1) / static_cast<T>(channels);
    int64_t p = 0;
    for (; p + together <= pixels; p += together) norm_backward<together>(to_inner, block, share, p);
    for (; p < pixels; ++p) norm_backward<1>(to_inner, block, share, p);
  }

  // The gradient of z of pixels p on, in `update`.
  template <int Pixels>
  JEPA_FAST_INLINE void norm_backward(const T* to_inner, const Packed<T>& block, T share, int64_t p) {
    V sum[Pixels] = {};
    V along[Pixels] = {};
    const auto at = [&](int i, int64_t c) { return (p + i) * channels + c; };
    for (int64_t c = 0; c < channels; c += Width) {
      const V gamma = load<V>(block.gamma + c);
      JEPA_FAST_UNROLL
      for (int i = 0; i < Pixels; ++i) {
        const V scaled = load<V>(to_inner + at(i, c)) * gamma;
        sum[i] += scaled;
        along[i] += scaled * load<V>(normal + at(i, c));
      }
    }
    JEPA_FAST_UNROLL
    for (int i = 0; i < Pixels; ++i) {
      sum[i] = sum_lanes<Width>(sum[i]) * share;
      along[i] = sum_lanes<Width>(along[i]) * share;
    }
    for (int64_t c = 0; c < channels; c += Width) {
      const V gamma = load<V>(block.gamma + c);
      JEPA_FAST_UNROLL
      for (int i = 0; i < Pixels; ++i) {
        const V scaled = load<V>(to_inner + at(i, c)) * gamma;
        store(update + at(i, c), (scaled - sum[i] - load<V>(normal + at(i, c)) * along[i]) * rstd[p + i]);
      }
    }
  }
};

template <typename T>
void pack(const ConvNextParameters& from, void* to) {
  const int64_t channels = from.channels;
  const int64_t hidden = 4 * channels;
  T* at = static_cast<T*>(to);
  for (int64_t block = 0; block < from.blocks; ++block) {
    const T* weight = static_cast<const T*>(from.weight) + block * 49 * channels;
    const T* gamma = static_cast<const T*>(from.gamma) + block * channels;
    const T* beta = static_cast<const T*>(from.beta) + block * channels;
    const T* expand = static_cast<const T*>(from.expand) + block * hidden * channels;
    const T* project = static_cast<const T*>(from.project) + block * hidden * channels;
    for (int64_t tap = 0; tap < 49; ++tap) {
      for (int64_t c = 0; c < channels; ++c) *at++ = weight[c * 49 + tap];
    }
    for (int64_t tap = 48; tap >= 0; --tap) {
      for (int64_t c = 0; c < channels; ++c) *at++ = weight[c * 49 + tap];
    }
    for (int64_t c = 0; c < channels; ++c) *at++ = gamma[c];
    for (int64_t c = 0; c < channels; ++c) *at++ = beta[c];
    for (int64_t i = 0; i < hidden * channels; ++i) *at++ = expand[i];
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t j = 0; j < hidden; ++j) *at++ = expand[j * channels + c];
    }
    for (int64_t i = 0; i < hidden * channels; ++i) *at++ = project[i];
    for (int64_t j = 0; j < hidden; ++j) {
      for (int64_t c = 0; c < channels; ++c) *at++ = project[c * hidden + j];
    }
  }
}

}  // namespace
}  // namespace jepa_fast
