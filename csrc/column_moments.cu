// Column moments on CUDA: two launches, no atomics, float64 accumulation, every sum in a fixed order.
//
// Bytes moved: x once, plus 32 bytes per chunk and column of partial results (at 64 rows a chunk, half a byte a value).
// Compiled for sm_80, sm_90 and PTX; `make gates` prints registers and stack and fails on any local memory.
#include "column_moments.h"

#include <cuda_runtime.h>

namespace jepa_fast {
namespace {

// A block is 32 columns wide, so that a warp reads one row's neighbouring columns, and 8 rows deep.
constexpr int lanes = 32;
constexpr int depth = 8;

// Stage one. Block (c, k) owns columns [32 c, 32 c + 32) of chunk k; thread (l, g) sums rows g, g + 8, ... of column l.
// The 8 partial sums of a column are added in ascending order of g.
template <typename T>
__global__ void __launch_bounds__(lanes * depth) column_moments_chunks_kernel(
    const T* __restrict__ x,  // [rows, columns], stride (row_stride, 1)
    int64_t rows, int64_t columns, int64_t row_stride, int64_t chunk_rows,
    double* __restrict__ means,      // [chunks, columns]
    double* __restrict__ squares) {  // [chunks, columns]
  __shared__ double sums[depth][lanes];
  __shared__ double square_sums[depth][lanes];
  const int64_t column = int64_t{blockIdx.x} * lanes + threadIdx.x;
  const int64_t first_row = int64_t{blockIdx.y} * chunk_rows;
  const int64_t last_row = min(first_row + chunk_rows, rows);
  double shift = 0;
  double sum = 0;
  double square = 0;
  if (column < columns) {
    shift = widen(x[first_row * row_stride + column]);
#pragma unroll 4
    for (int64_t row = first_row + threadIdx.y; row < last_row; row += depth) {
      const double deviation = widen(x[row * row_stride + column]) - shift;
      sum += deviation;
      square = fma(deviation, deviation, square);
    }
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  square_sums[threadIdx.y][threadIdx.x] = square;
  __syncthreads();
  if (threadIdx.y != 0 || column >= columns) return;
#pragma unroll
  for (int g = 1; g < depth; ++g) {
    sum += sums[g][threadIdx.x];
    square += square_sums[g][threadIdx.x];
  }
  const double mean_shift = sum / static_cast<double>(last_row - first_row);
  const double centred = fma(-sum, mean_shift, square);
  means[blockIdx.y * columns + column] = shift + mean_shift;
  // A NaN fails the comparison and stays.
  squares[blockIdx.y * columns + column] = centred < 0 ? 0 : centred;
}

struct Moments {
  double count;
  double mean;
  double square;
};

__device__ inline void merge(Moments& into, const Moments& other) {
  if (other.count == 0) return;
  const double total = into.count + other.count;
  const double weight = other.count / total;
  const double difference = other.mean - into.mean;
  into.mean += difference * weight;
  into.square += other.square + difference * difference * (into.count * weight);
  into.count = total;
}

// Stage two. Block c owns columns [32 c, 32 c + 32); thread (l, g) merges chunks g, g + 8, ... of column l in ascending
// order, then the 8 results are merged in ascending order of g.
template <typename Result>
__global__ void __launch_bounds__(lanes * depth) column_moments_merge_kernel(
    const double* __restrict__ means,    // [chunks, columns]
    const double* __restrict__ squares,  // [chunks, columns]
    int64_t rows, int64_t columns, int64_t chunk_rows, int64_t chunks,
    Result* __restrict__ mean,        // [columns]
    Result* __restrict__ variance) {  // [columns]
  __shared__ Moments partial[depth][lanes];
  const int64_t column = int64_t{blockIdx.x} * lanes + threadIdx.x;
  Moments moments{0, 0, 0};
  if (column < columns) {
    for (int64_t chunk = threadIdx.y; chunk < chunks; chunk += depth) {
      const double count = static_cast<double>(min(chunk_rows, rows - chunk * chunk_rows));
      merge(moments, {count, means[chunk * columns + column], squares[chunk * columns + column]});
    }
  }
  partial[threadIdx.y][threadIdx.x] = moments;
  __syncthreads();
  if (threadIdx.y != 0 || column >= columns) return;
#pragma unroll
  for (int g = 1; g < depth; ++g) merge(moments, partial[g][threadIdx.x]);
  mean[column] = static_cast<Result>(moments.mean);
  variance[column] = static_cast<Result>(moments.square / (moments.count - 1));
}

template <typename T, typename Result>
cudaError_t launch(
    const Matrix& x, double* means, double* squares, void* mean, void* variance, cudaStream_t stream) {
  const int64_t chunk_rows = rows_per_chunk(x.rows);
  const int64_t chunks = chunk_count(x.rows);
  const dim3 block(lanes, depth);
  const unsigned column_blocks = static_cast<unsigned>((x.columns + lanes - 1) / lanes);
  column_moments_chunks_kernel<T><<<dim3(column_blocks, static_cast<unsigned>(chunks)), block, 0, stream>>>(
      static_cast<const T*>(x.data), x.rows, x.columns, x.row_stride, chunk_rows, means, squares);
  if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
  column_moments_merge_kernel<Result><<<column_blocks, block, 0, stream>>>(
      means, squares, x.rows, x.columns, chunk_rows, chunks, static_cast<Result*>(mean),
      static_cast<Result*>(variance));
  return cudaGetLastError();
}

}  // namespace

int column_moments_cuda(
    const Matrix& x, double* means, double* squares, void* mean, void* variance, void* stream_handle) {
  if (x.columns == 0) return cudaSuccess;
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  switch (x.scalar) {
    case Scalar::float32:
      return launch<float, float>(x, means, squares, mean, variance, stream);
    case Scalar::float64:
      return launch<double, double>(x, means, squares, mean, variance, stream);
    case Scalar::bfloat16:
      return launch<BFloat16, float>(x, means, squares, mean, variance, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace jepa_fast
