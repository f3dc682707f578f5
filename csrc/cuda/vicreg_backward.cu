// The gradient of the VICReg terms on CUDA: one launch, no atomics, every sum in a fixed order.
//
//     dx = (x - mean) M + invariance (x - target),  M from the covariance on load
//
// Bytes moved: x, once per 64 columns of the gradient but from cache after the first time; the target and each gradient
// once. x is centred on load. Products run on the tensor cores (tensor_tile.cuh). Compiled for sm_80, sm_90 and PTX, and
// not run yet, as vicreg.cu says.
#include "vicreg.h"

#include <cuda_runtime.h>

#include "tensor_tile.cuh"

namespace jepa_fast {
namespace {

constexpr int threads = 128;  // four warps, 32 x 32 results each
constexpr int tile = 64;      // rows and columns of the results of a block
constexpr int depth = 32;     // values of the summed index in shared memory at a time

__device__ inline void store(float value, float* to) { *to = value; }
__device__ inline void store(float value, BFloat16* to) {
  const uint32_t bits = __float_as_uint(value);
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  to->bits = static_cast<uint16_t>(value == value ? rounded : 0x7fc0);
}

// Block (b, g) owns 64 rows and 64 columns of the gradient of group g: b counts the tiles of a row of tiles first, so that
// blocks that read the same rows run at about the same time. M is symmetric: a row of it stands for a column.
template <typename T>
__global__ void __launch_bounds__(threads, 4) vicreg_gradient_kernel(
    const float* __restrict__ gradients,  // [3]
    const T* __restrict__ x,              // [G, N, D], strides (group_stride, row_stride, 1)
    const T* __restrict__ target,         // the same with its own strides, or null
    const double* __restrict__ mean,      // [G, D]
    const float* __restrict__ covariance,  // [G, D, D]
    int64_t rows, int columns, int64_t group_stride, int64_t row_stride, int64_t target_group_stride,
    int64_t target_row_stride, int tiles, VicregScales scales, float gamma, float eps,
    T* __restrict__ dx,         // [G, N, D]
    T* __restrict__ dtarget) {  // [G, N, D] or null
  // [row][k] and [column][k]; eight values of padding spread the reads of a fragment over all banks.
  __shared__ __align__(8) float left_panel[tile][depth + 8];
  __shared__ __align__(8) float right_panel[tile][depth + 8];
  const int64_t group = blockIdx.y;
  const int64_t first_row = int64_t{blockIdx.x} / tiles * tile;
  const int first_column = static_cast<int>(blockIdx.x % tiles) * tile;
  const float variance_scale = static_cast<float>(scales.variance * gradients[1]);
  const float covariance_scale = static_cast<float>(scales.covariance * gradients[2]);
  const T* values = x + group * group_stride;
  const float* matrix = covariance + group * columns * columns;
  // A warp loads 32 neighbouring values of one row at a time; its lane is the value of k.
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int warp_row = warp / 2 * 32;
  const int warp_column = warp % 2 * 32;
  float sums[2][4][4] = {};
  for (int k = 0; k < columns; k += depth) {
    const int own = k + lane;
    const bool inside = own < columns;
    const Centre centre = centre_at(inside ? mean[group * columns + own] : 0.0);
#pragma unroll 4
    for (int r = warp; r < tile; r += threads / 32) {
      const int64_t row = first_row + r;
      left_panel[r][lane] = inside && row < rows ? centre(to_float(values[row * row_stride + own])) : 0.0f;
      const int column = first_column + r;
      float factor = 0.0f;
      if (inside && column < columns) {
        factor = matrix[static_cast<int64_t>(column) * columns + own];
        if (column == own) {
          const float sigma = sqrtf(factor + eps);
          // A NaN fails the comparison and stays.
          factor = sigma >= gamma ? 0.0f : -variance_scale / sigma;
        } else {
          factor *= covariance_scale;
        }
      }
      right_panel[r][lane] = factor;
    }
    __syncthreads();
#pragma unroll 1
    for (int step = 0; step < depth; step += 16) {
      const auto left = [&](int m, int s) {
        return *reinterpret_cast<const float2*>(&left_panel[warp_row + m][step + s]);
      };
      const auto right = [&](int n, int s) {
        return *reinterpret_cast<const float2*>(&right_panel[warp_column + n][step + s]);
      };
      accumulate_product<T>(sums, left, right);
    }
    __syncthreads();
  }
  const float invariance_scale = static_cast<float>(scales.invariance * gradients[0]);
  for_each_result(sums, [&](int m, int n, float value) {
    const int64_t row = first_row + warp_row + m;
    const int column = first_column + warp_column + n;
    if (row >= rows || column >= columns) return;
    const int64_t to = (group * rows + row) * columns + column;
    if (target != nullptr) {
      const float own = to_float(values[row * row_stride + column]);
      const float push =
          invariance_scale * (own - to_float(target[group * target_group_stride + row * target_row_stride + column]));
      value += push;
      if (dtarget != nullptr) store(-push, dtarget + to);
    }
    store(value, dx + to);
  });
}

template <typename T>
cudaError_t launch(
    const Groups& x, const Groups* target, const VicregOptions& options, const float* gradients, const double* mean,
    const float* covariance, void* dx, void* dtarget, cudaStream_t stream) {
  const int64_t tiles = (x.columns + tile - 1) / tile;
  const int64_t row_tiles = (x.rows + tile - 1) / tile;
  const dim3 grid(static_cast<unsigned>(row_tiles * tiles), static_cast<unsigned>(x.groups));
  vicreg_gradient_kernel<T><<<grid, threads, 0, stream>>>(
      gradients, static_cast<const T*>(x.data), target == nullptr ? nullptr : static_cast<const T*>(target->data), mean,
      covariance, x.rows, static_cast<int>(x.columns), x.group_stride, x.row_stride,
      target == nullptr ? 0 : target->group_stride, target == nullptr ? 0 : target->row_stride,
      static_cast<int>(tiles), vicreg_scales(x, options.divisor), static_cast<float>(options.gamma),
      static_cast<float>(options.eps), static_cast<T*>(dx), static_cast<T*>(dtarget));
  return cudaGetLastError();
}

}  // namespace

int vicreg_backward_cuda(
    const Groups& x, const Groups* target, const VicregOptions& options, const float* gradients, const double* mean,
    const float* covariance, void* dx, void* dtarget, void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  switch (x.scalar) {
    case Scalar::float32:
      return launch<float>(x, target, options, gradients, mean, covariance, dx, dtarget, stream);
    case Scalar::bfloat16:
      return launch<BFloat16>(x, target, options, gradients, mean, covariance, dx, dtarget, stream);
    case Scalar::float64:
      break;
  }
  return cudaErrorInvalidValue;
}

}  // namespace jepa_fast
