// Products of small tiles, the inner loops of a matrix product: 8 x 32 results from registers.
#pragma once

#include <cstdint>

namespace jepa_fast {

constexpr int64_t tile_rows = 8;
constexpr int64_t tile_columns = 32;

// out[m][n] = sum_k a[32 k + m] b[32 k + n] over `count` values of k: A^T B of two panels that are 32 columns wide.
void tile_transposed_product(const float* a, const float* b, int64_t count, float* out);
void tile_transposed_product(const double* a, const double* b, int64_t count, double* out);

// out[m][n] = sum_p sum_k a[p panel_stride + 32 m + k] b[32 (32 p + k) + n]: 8 rows of A, kept as panels of 32 columns,
// times one panel of B.
void tile_product(const float* a, int64_t panel_stride, int64_t panels, const float* b, float* out);
void tile_product(const double* a, int64_t panel_stride, int64_t panels, const double* b, double* out);

}  // namespace jepa_fast
