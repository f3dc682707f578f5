// Mean and variance of the columns of a matrix, free of torch: plain pointers in, plain pointers out.
#pragma once

#include <algorithm>
#include <cstdint>

#include "scalar.h"

namespace jepa_fast {

// A matrix [rows, columns]: columns are adjacent in memory, rows lie row_stride elements apart.
struct Matrix {
  const void* data;
  Scalar scalar;
  int64_t rows;
  int64_t columns;
  int64_t row_stride;
};

// Column moments in two stages. Rows are cut into chunks. Stage one gives, for each chunk and column, the mean and the
// sum of squared deviations from it, in double, from one pass over values shifted by the chunk's first row:
//     s = sum (x - x_0),  q = sum (x - x_0)^2,  mean = x_0 + s / n,  squares = q - s^2 / n.
// The shift is one of the values, so q is at most (n + 1) times the result: cancellation costs a factor of the chunk's
// rows and never depends on the mean. Stage two merges the chunks in a fixed order.
//
// The cut depends on the number of rows alone. Results are therefore the same bits for any number of threads.
inline int64_t rows_per_chunk(int64_t rows) {
  constexpr int64_t fewest_rows = 64;
  constexpr int64_t most_chunks = 1024;
  return std::max(fewest_rows, (rows + most_chunks - 1) / most_chunks);
}

inline int64_t chunk_count(int64_t rows) {
  const int64_t size = rows_per_chunk(rows);
  return (rows + size - 1) / size;
}

// Stage one for chunks [first_chunk, last_chunk). means and squares: [chunk_count(rows), columns].
void column_moments_chunks_cpu(
    const Matrix& x, int64_t first_chunk, int64_t last_chunk, double* means, double* squares);

// Stage two; overwrites the first row of means and squares. mean and variance [columns]: double for float64 input, else
// float.
void column_moments_merge_cpu(const Matrix& x, double* means, double* squares, void* mean, void* variance);

// Both stages on a CUDA stream; all pointers are device pointers. Returns a cudaError_t.
int column_moments_cuda(
    const Matrix& x, double* means, double* squares, void* mean, void* variance, void* stream);

}  // namespace jepa_fast
