// The VICReg terms on CUDA: five launches, no atomics, every sum in a fixed order.
//
// Bytes moved: x twice (target once); the centred matrix is never written. On top come about D^2 / 2 floats per split of
// the rows, D^2 floats of covariance and D doubles per chunk of rows. Products run on the tensor cores (tensor_tile.cuh).
// Compiled for sm_80, sm_90 and PTX; `make gates` prints registers and stack and fails on any local memory. Not run yet:
// tests/kernels/test_vicreg_cuda_arithmetic.py follows its arithmetic on a CPU.
#include "vicreg.h"

#include <cuda_runtime.h>

#include "tensor_tile.cuh"

namespace jepa_fast {
namespace {

constexpr int threads = 128;  // of the scatter kernel: four warps, 32 x 32 results each
constexpr int tile = 64;      // rows and columns of the results of a block
constexpr int depth = 32;     // rows in shared memory at a time
constexpr int lanes = 32;     // columns of a block of the sums kernel
constexpr int sum_rows = 8;   // rows it takes at a time
constexpr int reduce_threads = 256;

__device__ inline double block_sum(double value, double* shared) {
  // In a fixed order: halves are folded onto each other.
  shared[threadIdx.x] = value;
  for (int half = reduce_threads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < half) shared[threadIdx.x] += shared[threadIdx.x + half];
  }
  __syncthreads();
  return shared[0];
}

// Block (c, k, g) sums columns [32 c, 32 c + 32) of chunk k of group g, and the squared errors there. Thread (l, r) takes
// rows r, r + 8, ... of column l; the 8 partial sums of a column are added in ascending order of r.
template <typename T, bool HasTarget>
__global__ void __launch_bounds__(lanes * sum_rows) vicreg_sums_kernel(
    const T* __restrict__ x,       // [G, N, D], strides (group_stride, row_stride, 1)
    const T* __restrict__ target,  // [G, N, D], strides (target_group_stride, target_row_stride, 1)
    int64_t rows, int columns, int64_t group_stride, int64_t row_stride, int64_t target_group_stride,
    int64_t target_row_stride, int64_t chunk_rows,
    double* __restrict__ sums,      // [G, chunks, D]
    double* __restrict__ errors) {  // [G, chunks, column blocks]
  __shared__ double shared[sum_rows][lanes];
  const int column = static_cast<int>(blockIdx.x) * lanes + static_cast<int>(threadIdx.x);
  const int64_t group = blockIdx.z;
  const int64_t chunk = group * gridDim.y + blockIdx.y;
  const int64_t first_row = int64_t{blockIdx.y} * chunk_rows;
  const int64_t last_row = min(first_row + chunk_rows, rows);
  double sum = 0;
  double error = 0;
  if (column < columns) {
    const T* value = x + group * group_stride + column;
    const T* target_value = HasTarget ? target + group * target_group_stride + column : nullptr;
#pragma unroll 4
    for (int64_t row = first_row + threadIdx.y; row < last_row; row += sum_rows) {
      const T own = value[row * row_stride];
      sum += widen(own);
      if constexpr (HasTarget) {
        const float difference = to_float(own) - to_float(target_value[row * target_row_stride]);
        error += static_cast<double>(difference * difference);
      }
    }
  }
  shared[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y == 0 && column < columns) {
#pragma unroll
    for (int r = 1; r < sum_rows; ++r) sum += shared[r][threadIdx.x];
    sums[chunk * columns + column] = sum;
  }
  if constexpr (HasTarget) {
    __syncthreads();
    shared[threadIdx.y][threadIdx.x] = error;
    __syncthreads();
    if (threadIdx.y != 0) return;
#pragma unroll
    for (int r = 1; r < sum_rows; ++r) error += shared[r][threadIdx.x];
#pragma unroll
    for (int half = lanes / 2; half > 0; half /= 2) error += __shfl_down_sync(~0u, error, half);
    if (threadIdx.x == 0) errors[chunk * gridDim.x + blockIdx.x] = error;
  }
}

// Block (c, g) owns columns [32 c, 32 c + 32) of group g; thread (l, r) adds chunks r, r + 8, ... of column l.
__global__ void __launch_bounds__(lanes * sum_rows) vicreg_means_kernel(
    const double* __restrict__ sums,  // [G, chunks, D]
    int64_t rows, int columns, int chunks,
    double* __restrict__ mean) {  // [G, D]
  __shared__ double shared[sum_rows][lanes];
  const int column = static_cast<int>(blockIdx.x) * lanes + static_cast<int>(threadIdx.x);
  const int64_t group = blockIdx.y;
  double sum = 0;
  if (column < columns) {
    for (int64_t chunk = threadIdx.y; chunk < chunks; chunk += sum_rows) {
      sum += sums[(group * chunks + chunk) * columns + column];
    }
  }
  shared[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= columns) return;
#pragma unroll
  for (int r = 1; r < sum_rows; ++r) sum += shared[r][threadIdx.x];
  mean[group * columns + column] = sum / static_cast<double>(rows);
}

// Tile p of the upper triangle of a square of tiles, row by row: (0, 0), (0, 1), ..., (1, 1), ...
__device__ inline void triangle_position(int p, int tiles, int& i, int& j) {
  i = 0;
  for (int length = tiles; p >= length; --length) {
    p -= length;
    ++i;
  }
  j = i + p;
}

// Block (p, s, g): tile p of the upper triangle of the scatter matrix of rows [split_rows s, split_rows (s + 1)) of group
// g. Rows come 32 at a time; a thread loads one column, of the left or of the right panel.
template <typename T>
__global__ void __launch_bounds__(threads, 4) vicreg_scatter_kernel(
    const T* __restrict__ x,  // [G, N, D], strides (group_stride, row_stride, 1)
    const double* __restrict__ mean,  // [G, D]
    int64_t rows, int columns, int64_t group_stride, int64_t row_stride, int64_t split_rows, int tiles,
    float* __restrict__ partials) {  // [G, splits, tiles (tiles + 1) / 2, 64, 64]
  // [side][row][column]; four columns of padding spread the reads of a fragment over all banks.
  __shared__ float panels[2][depth][tile + 4];
  int i = 0;
  int j = 0;
  triangle_position(static_cast<int>(blockIdx.x), tiles, i, j);
  const int64_t group = blockIdx.z;
  const int64_t first_row = int64_t{blockIdx.y} * split_rows;
  const int64_t last_row = min(first_row + split_rows, rows);
  const int side = static_cast<int>(threadIdx.x) / tile;
  const int own = static_cast<int>(threadIdx.x) % tile;
  const int column = (side == 0 ? i : j) * tile + own;
  const bool inside = column < columns;
  const Centre centre = centre_at(inside ? mean[group * columns + column] : 0.0);
  const T* values = x + group * group_stride + (inside ? column : 0);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int warp_row = warp / 2 * 32;
  const int warp_column = warp % 2 * 32;
  float sums[2][4][4] = {};
  for (int64_t row = first_row; row < last_row; row += depth) {
#pragma unroll 8
    for (int r = 0; r < depth; ++r) {
      panels[side][r][own] =
          inside && row + r < last_row ? centre(to_float(values[(row + r) * row_stride])) : 0.0f;
    }
    __syncthreads();
#pragma unroll 1
    for (int k = 0; k < depth; k += 16) {
      const auto left = [&](int m, int r) {
        return make_float2(panels[0][k + r][warp_row + m], panels[0][k + r + 1][warp_row + m]);
      };
      const auto right = [&](int n, int r) {
        return make_float2(panels[1][k + r][warp_column + n], panels[1][k + r + 1][warp_column + n]);
      };
      accumulate_product<T>(sums, left, right);
    }
    __syncthreads();
  }
  const int64_t block = (group * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  float* partial = partials + block * tile * tile;
  for_each_result(sums, [&](int m, int n, float value) {
    partial[(warp_row + m) * tile + warp_column + n] = value;
  });
}

// Block (b, p, g) owns values [256 b, 256 b + 256) of tile p: adds them over the splits in ascending order, in double, and
// gives the covariance with its mirror image and the block's share of the terms.
__global__ void __launch_bounds__(reduce_threads) vicreg_covariance_kernel(
    const float* __restrict__ partials,  // [G, splits, tiles (tiles + 1) / 2, 64, 64]
    int64_t rows, int columns, int splits, int tiles, double gamma, double eps,
    float* __restrict__ covariance,     // [G, D, D]
    double* __restrict__ block_terms) {  // [G, tiles (tiles + 1) / 2, 16, 2]: hinge, squares off the diagonal
  __shared__ double shared[reduce_threads];
  int i = 0;
  int j = 0;
  triangle_position(static_cast<int>(blockIdx.y), tiles, i, j);
  const int64_t group = blockIdx.z;
  const int index = static_cast<int>(blockIdx.x) * reduce_threads + static_cast<int>(threadIdx.x);
  const int row = i * tile + index / tile;
  const int column = j * tile + index % tile;
  double hinge = 0;
  double square = 0;
  if (row <= column && column < columns) {
    double sum = 0;
#pragma unroll 4
    for (int64_t split = 0; split < splits; ++split) {
      sum += static_cast<double>(partials[((group * splits + split) * gridDim.y + blockIdx.y) * tile * tile + index]);
    }
    const double value = sum / static_cast<double>(rows - 1);
    float* matrix = covariance + group * columns * columns;
    matrix[row * columns + column] = static_cast<float>(value);
    matrix[column * columns + row] = static_cast<float>(value);
    if (row == column) {
      hinge = gamma - sqrt(value + eps);
      // A NaN fails the comparison and stays.
      if (hinge < 0) hinge = 0;
    } else {
      square = 2 * value * value;
    }
  }
  hinge = block_sum(hinge, shared);
  __syncthreads();
  square = block_sum(square, shared);
  if (threadIdx.x != 0) return;
  double* own = block_terms + ((group * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x) * 2;
  own[0] = hinge;
  own[1] = square;
}

// One block: all shares of the three terms, each thread its own in ascending order, then the threads.
__global__ void __launch_bounds__(reduce_threads) vicreg_terms_kernel(
    const double* __restrict__ block_terms, int64_t blocks, const double* __restrict__ errors, int64_t error_blocks,
    double invariance_scale, double variance_scale, double covariance_scale,
    float* __restrict__ terms) {  // [3]
  __shared__ double shared[reduce_threads];
  double error = 0;
  double hinge = 0;
  double square = 0;
  for (int64_t i = threadIdx.x; i < error_blocks; i += reduce_threads) error += errors[i];
  for (int64_t i = threadIdx.x; i < blocks; i += reduce_threads) {
    hinge += block_terms[2 * i];
    square += block_terms[2 * i + 1];
  }
  error = block_sum(error, shared);
  __syncthreads();
  hinge = block_sum(hinge, shared);
  __syncthreads();
  square = block_sum(square, shared);
  if (threadIdx.x != 0) return;
  terms[0] = static_cast<float>(error * invariance_scale);
  terms[1] = static_cast<float>(hinge * variance_scale);
  terms[2] = static_cast<float>(square * covariance_scale);
}

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <typename T>
cudaError_t launch(
    const Groups& x, const Groups* target, const VicregOptions& options, const VicregCudaPlan& plan,
    const VicregCudaSpace& space, double* mean, float* covariance, float* terms, cudaStream_t stream) {
  const T* values = static_cast<const T*>(x.data);
  const int columns = static_cast<int>(x.columns);
  const int tiles = static_cast<int>(plan.tiles);
  const unsigned groups = static_cast<unsigned>(x.groups);
  const unsigned column_blocks = static_cast<unsigned>(plan.column_blocks);
  const unsigned triangle = static_cast<unsigned>(plan.triangle);
  const dim3 sum_block(lanes, sum_rows);
  const dim3 sum_grid(column_blocks, static_cast<unsigned>(plan.chunks), groups);
  if (target != nullptr) {
    vicreg_sums_kernel<T, true><<<sum_grid, sum_block, 0, stream>>>(
        values, static_cast<const T*>(target->data), x.rows, columns, x.group_stride, x.row_stride,
        target->group_stride, target->row_stride, plan.chunk_rows, space.sums, space.errors);
  } else {
    vicreg_sums_kernel<T, false><<<sum_grid, sum_block, 0, stream>>>(
        values, nullptr, x.rows, columns, x.group_stride, x.row_stride, 0, 0, plan.chunk_rows, space.sums,
        space.errors);
  }
  if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
  vicreg_means_kernel<<<dim3(column_blocks, groups), sum_block, 0, stream>>>(
      space.sums, x.rows, columns, static_cast<int>(plan.chunks), mean);
  if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
  vicreg_scatter_kernel<T><<<dim3(triangle, static_cast<unsigned>(plan.splits), groups), threads, 0, stream>>>(
      values, mean, x.rows, columns, x.group_stride, x.row_stride, plan.split_rows, tiles, space.partials);
  if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
  constexpr unsigned blocks_per_tile = tile * tile / reduce_threads;
  vicreg_covariance_kernel<<<dim3(blocks_per_tile, triangle, groups), reduce_threads, 0, stream>>>(
      space.partials, x.rows, columns, static_cast<int>(plan.splits), tiles, options.gamma, options.eps, covariance,
      space.block_terms);
  if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
  const double group_columns = static_cast<double>(x.groups) * static_cast<double>(x.columns);
  vicreg_terms_kernel<<<1, reduce_threads, 0, stream>>>(
      space.block_terms, x.groups * plan.triangle * blocks_per_tile, space.errors,
      target == nullptr ? 0 : x.groups * plan.chunks * plan.column_blocks,
      1 / (group_columns * static_cast<double>(x.rows)), 1 / group_columns,
      1 / (static_cast<double>(x.groups) * options.divisor), terms);
  return cudaGetLastError();
}

}  // namespace

VicregCudaPlan vicreg_plan_cuda(const Groups& x) {
  // Enough blocks to fill any device, without asking which one it is: the cut, and with it every bit of a result, depends
  // on the shape alone.
  constexpr int64_t wanted_blocks = 512;
  constexpr int64_t fewest_rows = 64;
  // More rows would cost the float sums of a split too many digits.
  constexpr int64_t most_rows = 16384;
  VicregCudaPlan plan{};
  plan.column_blocks = divide_up(x.columns, lanes);
  plan.tiles = divide_up(x.columns, tile);
  plan.triangle = plan.tiles * (plan.tiles + 1) / 2;
  const int64_t chunks = std::max<int64_t>(1, 4 * wanted_blocks / (plan.column_blocks * x.groups));
  plan.chunk_rows = std::max(fewest_rows, divide_up(x.rows, chunks));
  plan.chunks = divide_up(x.rows, plan.chunk_rows);
  const int64_t splits = std::max<int64_t>(1, wanted_blocks / (plan.triangle * x.groups));
  const int64_t rows = std::clamp(divide_up(x.rows, splits), fewest_rows, most_rows);
  plan.split_rows = divide_up(rows, depth) * depth;
  plan.splits = divide_up(x.rows, plan.split_rows);
  plan.partial_values = tile * tile;
  plan.term_blocks = tile * tile / reduce_threads;
  return plan;
}

int vicreg_cuda(
    const Groups& x, const Groups* target, const VicregOptions& options, const VicregCudaPlan& plan,
    const VicregCudaSpace& space, double* mean, float* covariance, float* terms, void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  switch (x.scalar) {
    case Scalar::float32:
      return launch<float>(x, target, options, plan, space, mean, covariance, terms, stream);
    case Scalar::bfloat16:
      return launch<BFloat16>(x, target, options, plan, space, mean, covariance, terms, stream);
    case Scalar::float64:
      break;
  }
  return cudaErrorInvalidValue;
}

}  // namespace jepa_fast
