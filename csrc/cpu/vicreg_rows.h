// What vicreg.cpp does element by element: plain loops that the compiler turns into wide instructions.
#pragma once

#include <type_traits>

#include "cpu/tile.h"
#include "vicreg.h"

namespace jepa_fast {
namespace {

static_assert(tile_columns == vicreg_panel_columns && vicreg_block_rows % tile_rows == 0);

// What float64 input is computed in, and all other input.
template <typename T>
using Working = std::conditional_t<std::is_same_v<T, double>, double, float>;

inline float working(float value) { return value; }
inline double working(double value) { return value; }
inline float working(BFloat16 value) { return to_float(value); }

inline void store(float value, float& to) { to = value; }
inline void store(double value, double& to) { to = value; }
inline void store(float value, BFloat16& to) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  to.bits = static_cast<uint16_t>(value == value ? rounded : 0x7fc0);
}

template <typename T>
inline __attribute__((always_inline)) void add_rows(
    const T* x, int64_t rows, int64_t columns, int64_t row_stride, double* sums) {
  int64_t i = 0;
  for (; i + 4 <= rows; i += 4) {
    const T* row = x + i * row_stride;
    for (int64_t j = 0; j < columns; ++j) {
      sums[j] += (widen(row[j]) + widen(row[row_stride + j])) +
                 (widen(row[2 * row_stride + j]) + widen(row[3 * row_stride + j]));
    }
  }
  for (; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) sums[j] += widen(x[i * row_stride + j]);
  }
}

// panels[p][i][j] = x[i][32 p + j] - mean, 128 rows to a panel; zero right of the last column and down to a whole tile.
// The mean goes in as the sum of two numbers: in float alone it would be off by half a unit in its last place, which for
// a mean of 1e4 is 5e-4.
template <typename T>
inline __attribute__((always_inline)) void centre_rows(
    const T* x, int64_t rows, int64_t columns, int64_t row_stride, const double* mean, Working<T>* panels) {
  using A = Working<T>;
  const int64_t padded_rows = (rows + tile_rows - 1) / tile_rows * tile_rows;
  for (int64_t first = 0; first < columns; first += tile_columns, panels += vicreg_block_rows * tile_columns) {
    const int64_t width = std::min(tile_columns, columns - first);
    A high[tile_columns] = {};
    A low[tile_columns] = {};
    for (int64_t j = 0; j < width; ++j) {
      high[j] = static_cast<A>(mean[first + j]);
      low[j] = static_cast<A>(mean[first + j] - static_cast<double>(high[j]));
    }
    if (width == tile_columns) {
      for (int64_t i = 0; i < rows; ++i) {
        const T* row = x + i * row_stride + first;
        for (int64_t j = 0; j < tile_columns; ++j) panels[i * tile_columns + j] = (working(row[j]) - high[j]) - low[j];
      }
    } else {
      for (int64_t i = 0; i < rows; ++i) {
        const T* row = x + i * row_stride + first;
        for (int64_t j = 0; j < width; ++j) panels[i * tile_columns + j] = (working(row[j]) - high[j]) - low[j];
        for (int64_t j = width; j < tile_columns; ++j) panels[i * tile_columns + j] = 0;
      }
    }
    std::fill(panels + rows * tile_columns, panels + padded_rows * tile_columns, A{0});
  }
}

template <typename T>
inline __attribute__((always_inline)) double squared_error(
    const T* x, const T* target, int64_t rows, int64_t columns, int64_t row_stride, int64_t target_stride) {
  // One sum per column and block of rows: at most 128 additions in float before double takes over.
  Working<T> sums[vicreg_most_columns] = {};
  for (int64_t i = 0; i < rows; ++i) {
    const T* row = x + i * row_stride;
    const T* target_row = target + i * target_stride;
    for (int64_t j = 0; j < columns; ++j) {
      const Working<T> difference = working(row[j]) - working(target_row[j]);
      sums[j] += difference * difference;
    }
  }
  double total = 0;
  for (int64_t j = 0; j < columns; ++j) total += static_cast<double>(sums[j]);
  return total;
}

// to[m][n] += tile[m][n] + weight shift_m shift_n, the update that takes a block of rows into a scatter matrix.
template <typename A>
inline __attribute__((always_inline)) void take_tile(
    const A* tile, int64_t rows, int64_t columns, double weight, const double* shift_rows, const double* shift_columns,
    bool first, double* to, int64_t stride) {
  for (int64_t m = 0; m < rows; ++m) {
    const double shift = weight * shift_rows[m];
    double* row = to + m * stride;
    if (first) {
      for (int64_t n = 0; n < columns; ++n) row[n] = static_cast<double>(tile[m * tile_columns + n]);
    } else {
      for (int64_t n = 0; n < columns; ++n) {
        row[n] += static_cast<double>(tile[m * tile_columns + n]) + shift * shift_columns[n];
      }
    }
  }
}

// dx = tile + scale (x - target), dtarget = -scale (x - target).
template <typename T, typename A>
inline __attribute__((always_inline)) void store_gradient(
    const A* tile, const T* x, const T* target, int64_t columns, A scale, T* dx, T* dtarget) {
  if (target == nullptr) {
    for (int64_t n = 0; n < columns; ++n) store(tile[n], dx[n]);
    return;
  }
  for (int64_t n = 0; n < columns; ++n) store(tile[n] + scale * (working(x[n]) - working(target[n])), dx[n]);
  if (dtarget == nullptr) return;
  for (int64_t n = 0; n < columns; ++n) store(-scale * (working(x[n]) - working(target[n])), dtarget[n]);
}

// Function multiversioning takes no templates: overloads per element type.
#define JEPA_FAST_ROWS(T)                                                                                          \
  JEPA_FAST_WIDE void wide_add_rows(const T* x, int64_t rows, int64_t columns, int64_t row_stride, double* sums) { \
    add_rows(x, rows, columns, row_stride, sums);                                                                  \
  }                                                                                                                \
  JEPA_FAST_WIDE void wide_centre_rows(                                                                            \
      const T* x, int64_t rows, int64_t columns, int64_t row_stride, const double* mean, Working<T>* panels) {     \
    centre_rows(x, rows, columns, row_stride, mean, panels);                                                       \
  }                                                                                                                \
  JEPA_FAST_WIDE double wide_squared_error(                                                                        \
      const T* x, const T* target, int64_t rows, int64_t columns, int64_t row_stride, int64_t target_stride) {     \
    return squared_error(x, target, rows, columns, row_stride, target_stride);                                     \
  }                                                                                                                \
  JEPA_FAST_WIDE void wide_store_gradient(                                                                         \
      const Working<T>* tile, const T* x, const T* target, int64_t columns, Working<T> scale, T* dx, T* dtarget) { \
    store_gradient(tile, x, target, columns, scale, dx, dtarget);                                                  \
  }
JEPA_FAST_ROWS(float)
JEPA_FAST_ROWS(double)
JEPA_FAST_ROWS(BFloat16)

#define JEPA_FAST_TAKE_TILE(A)                                                                                \
  JEPA_FAST_WIDE void wide_take_tile(                                                                         \
      const A* tile, int64_t rows, int64_t columns, double weight, const double* shift_rows,                  \
      const double* shift_columns, bool first, double* to, int64_t stride) {                                  \
    take_tile(tile, rows, columns, weight, shift_rows, shift_columns, first, to, stride);                     \
  }
JEPA_FAST_TAKE_TILE(float)
JEPA_FAST_TAKE_TILE(double)

#undef JEPA_FAST_ROWS
#undef JEPA_FAST_TAKE_TILE

}  // namespace
}  // namespace jepa_fast
