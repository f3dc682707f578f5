#include "column_moments.h"

#include <type_traits>

namespace jepa_fast {
namespace {

// Columns that a loop over rows carries in registers.
constexpr int64_t block_columns = 16;

// Sums of one block of columns over `rows` rows. Width is known at compile time for full blocks only.
template <typename T, typename Width>
inline __attribute__((always_inline)) void block_moments(
    const T* x, int64_t rows, int64_t row_stride, Width width, double* mean, double* squares) {
  double shift[block_columns];
  double sum[block_columns] = {};
  double square[block_columns] = {};
  for (int64_t j = 0; j < width; ++j) shift[j] = widen(x[j]);
  for (int64_t i = 1; i < rows; ++i) {
    const T* row = x + i * row_stride;
    for (int64_t j = 0; j < width; ++j) {
      const double deviation = widen(row[j]) - shift[j];
      sum[j] += deviation;
      square[j] += deviation * deviation;
    }
  }
  const double count = static_cast<double>(rows);
  for (int64_t j = 0; j < width; ++j) {
    const double centred = square[j] - sum[j] * sum[j] / count;
    mean[j] = shift[j] + sum[j] / count;
    // Rounding may leave it just below zero; a NaN fails the comparison and stays.
    squares[j] = centred < 0 ? 0 : centred;
  }
}

template <typename T>
inline __attribute__((always_inline)) void chunk_moments(
    const T* x, int64_t rows, int64_t columns, int64_t row_stride, double* means, double* squares) {
  int64_t j = 0;
  for (; j + block_columns <= columns; j += block_columns) {
    constexpr std::integral_constant<int64_t, block_columns> full{};
    block_moments(x + j, rows, row_stride, full, means + j, squares + j);
  }
  if (j < columns) block_moments(x + j, rows, row_stride, columns - j, means + j, squares + j);
}

// Function multiversioning takes no templates: one named function per scalar type.
JEPA_FAST_WIDE void chunk_float32(
    const float* x, int64_t rows, int64_t columns, int64_t row_stride, double* means, double* squares) {
  chunk_moments(x, rows, columns, row_stride, means, squares);
}

JEPA_FAST_WIDE void chunk_float64(
    const double* x, int64_t rows, int64_t columns, int64_t row_stride, double* means, double* squares) {
  chunk_moments(x, rows, columns, row_stride, means, squares);
}

JEPA_FAST_WIDE void chunk_bfloat16(
    const BFloat16* x, int64_t rows, int64_t columns, int64_t row_stride, double* means, double* squares) {
  chunk_moments(x, rows, columns, row_stride, means, squares);
}

template <typename Result>
void finish(const double* mean_in, const double* square, double rows, int64_t columns, void* mean, void* variance) {
  for (int64_t j = 0; j < columns; ++j) {
    static_cast<Result*>(mean)[j] = static_cast<Result>(mean_in[j]);
    static_cast<Result*>(variance)[j] = static_cast<Result>(square[j] / (rows - 1));
  }
}

}  // namespace

void column_moments_chunks_cpu(
    const Matrix& x, int64_t first_chunk, int64_t last_chunk, double* means, double* squares) {
  const int64_t size = rows_per_chunk(x.rows);
  for (int64_t chunk = first_chunk; chunk < last_chunk; ++chunk) {
    const int64_t first_row = chunk * size;
    const int64_t rows = std::min(size, x.rows - first_row);
    const int64_t offset = first_row * x.row_stride;
    double* mean = means + chunk * x.columns;
    double* square = squares + chunk * x.columns;
    switch (x.scalar) {
      case Scalar::float32:
        chunk_float32(static_cast<const float*>(x.data) + offset, rows, x.columns, x.row_stride, mean, square);
        break;
      case Scalar::float64:
        chunk_float64(static_cast<const double*>(x.data) + offset, rows, x.columns, x.row_stride, mean, square);
        break;
      case Scalar::bfloat16:
        chunk_bfloat16(static_cast<const BFloat16*>(x.data) + offset, rows, x.columns, x.row_stride, mean, square);
        break;
    }
  }
}

void column_moments_merge_cpu(const Matrix& x, double* means, double* squares, void* mean, void* variance) {
  const int64_t size = rows_per_chunk(x.rows);
  for (int64_t first_row = size; first_row < x.rows; first_row += size) {
    const double* other_mean = means + first_row / size * x.columns;
    const double* other_square = squares + first_row / size * x.columns;
    const double count = static_cast<double>(first_row);
    const double other_count = static_cast<double>(std::min(size, x.rows - first_row));
    const double weight = other_count / (count + other_count);
    for (int64_t j = 0; j < x.columns; ++j) {
      const double difference = other_mean[j] - means[j];
      means[j] += difference * weight;
      squares[j] += other_square[j] + difference * difference * (count * weight);
    }
  }
  const double rows = static_cast<double>(x.rows);
  if (x.scalar == Scalar::float64) {
    finish<double>(means, squares, rows, x.columns, mean, variance);
  } else {
    finish<float>(means, squares, rows, x.columns, mean, variance);
  }
}

}  // namespace jepa_fast
