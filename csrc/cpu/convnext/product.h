// Small matrix products whose results stay in registers while they are summed.
#pragma once

#include "cpu/convnext/lanes.h"

namespace jepa_fast {
namespace {

// Results that a processor holds in registers at a time: so many rows of so many vectors.
constexpr int most_product_vectors = vector_registers == 32 ? 4 : 2;

constexpr int product_rows(int vectors) {
  return vector_registers == 32 ? (vectors == 4 ? 6 : vectors == 2 ? 12 : 14) : (vectors == 2 ? 6 : 10);
}

// out[m][n] (+)= sum_k a[m a_row + k a_step] b[k b_step + n] for Rows rows and Vectors vectors of columns.
template <typename T, int Width, int Rows, int Vectors, bool Add>
__attribute__((noinline)) void product_block(
    const T* a, int64_t a_row, int64_t a_step, const T* b, int64_t b_step, int64_t count, T* out, int64_t out_row) {
  using V = typename Lanes<T, Width>::type;
  V sums[Rows][Vectors];
  JEPA_FAST_UNROLL
  for (int m = 0; m < Rows; ++m) {
    JEPA_FAST_UNROLL
    for (int n = 0; n < Vectors; ++n) sums[m][n] = Add ? load<V>(out + m * out_row + n * Width) : V{};
  }
  for (int64_t k = 0; k < count; ++k) {
    V right[Vectors];
    JEPA_FAST_UNROLL
    for (int n = 0; n < Vectors; ++n) right[n] = load<V>(b + n * Width);
    JEPA_FAST_UNROLL
    for (int m = 0; m < Rows; ++m) {
      const T left = a[m * a_row];
      JEPA_FAST_UNROLL
      for (int n = 0; n < Vectors; ++n) sums[m][n] += left * right[n];
    }
    a += a_step;
    b += b_step;
  }
  JEPA_FAST_UNROLL
  for (int m = 0; m < Rows; ++m) {
    JEPA_FAST_UNROLL
    for (int n = 0; n < Vectors; ++n) store(out + m * out_row + n * Width, sums[m][n]);
  }
}

template <typename T, int Width, int Rows, int Vectors, bool Add, typename... Arguments>
JEPA_FAST_INLINE void product_of_rows(int64_t rows, Arguments... arguments) {
  if constexpr (Rows == 1) {
    product_block<T, Width, 1, Vectors, Add>(arguments...);
  } else if (rows == Rows) {
    product_block<T, Width, Rows, Vectors, Add>(arguments...);
  } else {
    product_of_rows<T, Width, Rows - 1, Vectors, Add>(rows, arguments...);
  }
}

template <typename T, int Width, int Vectors, bool Add>
void product_columns(
    int64_t rows, const T* a, int64_t a_row, int64_t a_step, const T* b, int64_t b_step, int64_t count, T* out,
    int64_t out_row) {
  constexpr int most_rows = product_rows(Vectors);
  // Blocks of nearly one size: a last block of one row would wait for every sum.
  const int64_t blocks = (rows + most_rows - 1) / most_rows;
  for (int64_t block = 0, row = 0; block < blocks; ++block) {
    const int64_t end = rows * (block + 1) / blocks;
    product_of_rows<T, Width, most_rows, Vectors, Add>(
        end - row, a + row * a_row, a_row, a_step, b, b_step, count, out + row * out_row, out_row);
    row = end;
  }
}

// out[m][n] (+)= sum_k a[m a_row + k a_step] b[k columns + n]; rows of b and out hold `columns` numbers, a multiple of Width.
template <typename T, int Width, bool Add = false>
void product(int64_t rows, int64_t columns, int64_t count, const T* a, int64_t a_row, int64_t a_step, const T* b, T* out) {
  int64_t column = 0;
  for (; column + most_product_vectors * Width <= columns; column += most_product_vectors * Width) {
    product_columns<T, Width, most_product_vectors, Add>(
        rows, a, a_row, a_step, b + column, columns, count, out + column, columns);
  }
  if constexpr (most_product_vectors > 2) {
    if (column + 2 * Width <= columns) {
      product_columns<T, Width, 2, Add>(rows, a, a_row, a_step, b + column, columns, count, out + column, columns);
      column += 2 * Width;
    }
  }
  if (column < columns) {
    product_columns<T, Width, 1, Add>(rows, a, a_row, a_step, b + column, columns, count, out + column, columns);
  }
}

}  // namespace
}  // namespace jepa_fast
