#include "cpu/tile.h"

namespace jepa_fast {
namespace {

template <typename T, int Bytes>
struct Vector {
  // Only as aligned as its elements: tiles start anywhere in a panel.
  typedef T type __attribute__((vector_size(Bytes), aligned(alignof(T))));
};

// out[m][n] = sum over p < outer, k < inner of a[p a_outer + k A_inner + m A_row] b[32 (p inner + k) + n].
// Rows x 2 vectors of results stay in registers: 16, 8 or 4 x 2, so that the multiply-adds in flight cover their latency.
template <typename T, int Bytes, int Rows, int64_t AInner, int64_t ARow>
inline __attribute__((always_inline)) void contract(
    const T* a, int64_t a_outer, int64_t outer, const T* b, int64_t inner, T* out) {
  using V = typename Vector<T, Bytes>::type;
  constexpr int64_t width = Bytes / sizeof(T);
  for (int64_t m0 = 0; m0 < tile_rows; m0 += Rows) {
    for (int64_t n0 = 0; n0 < tile_columns; n0 += 2 * width) {
      V sums[Rows][2] = {};
      const T* b_row = b + n0;
      for (int64_t p = 0; p < outer; ++p) {
        const T* a_row = a + p * a_outer + m0 * ARow;
        for (int64_t k = 0; k < inner; ++k) {
          const V left = *reinterpret_cast<const V*>(b_row);
          const V right = *reinterpret_cast<const V*>(b_row + width);
#pragma GCC unroll 8
          for (int m = 0; m < Rows; ++m) {
            const T value = a_row[m * ARow];
            sums[m][0] += value * left;
            sums[m][1] += value * right;
          }
          a_row += AInner;
          b_row += tile_columns;
        }
      }
#pragma GCC unroll 8
      for (int m = 0; m < Rows; ++m) {
        T* row = out + (m0 + m) * tile_columns + n0;
        *reinterpret_cast<V*>(row) = sums[m][0];
        *reinterpret_cast<V*>(row + width) = sums[m][1];
      }
    }
  }
}

// One version of both products per instruction set; a call picks the widest one that the processor has. GCC does so for
// calls in this file alone: elsewhere only the plain version would be seen.
#define JEPA_FAST_TILES(attribute, bytes, rows, T)                                                       \
  attribute void transposed_product(const T* a, const T* b, int64_t count, T* out) {                     \
    contract<T, bytes, rows, tile_columns, 1>(a, 0, 1, b, count, out);                                   \
  }                                                                                                      \
  attribute void product(const T* a, int64_t panel_stride, int64_t panels, const T* b, T* out) {         \
    contract<T, bytes, rows, 1, tile_columns>(a, panel_stride, panels, b, tile_columns, out);            \
  }

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
JEPA_FAST_TILES(__attribute__((target("arch=x86-64-v4"))), 64, 8, float)
JEPA_FAST_TILES(__attribute__((target("arch=x86-64-v4"))), 64, 8, double)
JEPA_FAST_TILES(__attribute__((target("arch=x86-64-v3"))), 32, 4, float)
JEPA_FAST_TILES(__attribute__((target("arch=x86-64-v3"))), 32, 4, double)
JEPA_FAST_TILES(__attribute__((target("default"))), 16, 4, float)
JEPA_FAST_TILES(__attribute__((target("default"))), 16, 4, double)
#else
JEPA_FAST_TILES(, 16, 4, float)
JEPA_FAST_TILES(, 16, 4, double)
#endif

}  // namespace

void tile_transposed_product(const float* a, const float* b, int64_t count, float* out) {
  transposed_product(a, b, count, out);
}

void tile_transposed_product(const double* a, const double* b, int64_t count, double* out) {
  transposed_product(a, b, count, out);
}

void tile_product(const float* a, int64_t panel_stride, int64_t panels, const float* b, float* out) {
  product(a, panel_stride, panels, b, out);
}

void tile_product(const double* a, int64_t panel_stride, int64_t panels, const double* b, double* out) {
  product(a, panel_stride, panels, b, out);
}

}  // namespace jepa_fast
