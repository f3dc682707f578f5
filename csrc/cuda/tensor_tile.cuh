// A warp's 32 x 32 results on the tensor cores, from float values split into a high and a low part.
//
//     float32 input   both parts in TF32: 22 bits of a value's 24
//     bfloat16 input  both parts in bfloat16: 16 bits, twice the rate; the input had 8 before the mean was taken off
//
// Of the four products of the parts, low times low is left out. Tensor cores truncate what they add to, which over a long
// sum is a bias; they add up 16 products here, from zero, and an ordinary float addition does the rest.
#pragma once

#include <type_traits>

#include "instructions.cuh"

namespace jepa_fast {

// x - mean, where the mean is the sum of two floats: in one float it would be off by half a unit in its last place, which
// for a mean of 1e4 is 5e-4.
struct Centre {
  float high;
  float low;

  __device__ float operator()(float value) const { return (value - high) - low; }
};

__device__ inline Centre centre_at(double mean) {
  const float high = static_cast<float>(mean);
  return {high, static_cast<float>(mean - static_cast<double>(high))};
}

// How one lane holds the parts of a pair of values that are neighbours in k, and multiplies them: 16 values of k are two
// pairs per lane. Which k a lane calls its own is free as long as both factors agree: the lane whose place in its group of
// four is t has k = 2 t, 2 t + 1 and 2 t + 8, 2 t + 9.
struct Tf32Pairs {
  struct Pair {
    uint32_t high[2];
    uint32_t low[2];
  };

  static __device__ Pair split(float2 value) {
    const float first = round_to_tf32(value.x);
    const float second = round_to_tf32(value.y);
    return {
        {__float_as_uint(first), __float_as_uint(second)},
        {__float_as_uint(round_to_tf32(value.x - first)), __float_as_uint(round_to_tf32(value.y - second))}};
  }

  // a[p][h]: pair p of row h, and of the row eight below; b[p]: pair p of the column.
  static __device__ void multiply_all(float (&c)[4], const Pair (&a)[2][2], const Pair (&b)[2]) {
#pragma unroll
    for (int p = 0; p < 2; ++p) {
      const Pair& top = a[p][0];
      const Pair& bottom = a[p][1];
      multiply_tf32(c, top.low[0], bottom.low[0], top.low[1], bottom.low[1], b[p].high[0], b[p].high[1]);
      multiply_tf32(c, top.high[0], bottom.high[0], top.high[1], bottom.high[1], b[p].low[0], b[p].low[1]);
      multiply_tf32(c, top.high[0], bottom.high[0], top.high[1], bottom.high[1], b[p].high[0], b[p].high[1]);
    }
  }
};

struct BFloat16Pairs {
  struct Pair {
    uint32_t high;
    uint32_t low;
  };

  static __device__ Pair split(float2 value) {
    const uint32_t high = pack_bfloat16(value.x, value.y);
    const float first = value.x - __uint_as_float(high << 16);
    const float second = value.y - __uint_as_float(high & 0xffff0000u);
    return {high, pack_bfloat16(first, second)};
  }

  static __device__ void multiply_all(float (&c)[4], const Pair (&a)[2][2], const Pair (&b)[2]) {
    multiply_bfloat16(c, a[0][0].low, a[0][1].low, a[1][0].low, a[1][1].low, b[0].high, b[1].high);
    multiply_bfloat16(c, a[0][0].high, a[0][1].high, a[1][0].high, a[1][1].high, b[0].low, b[1].low);
    multiply_bfloat16(c, a[0][0].high, a[0][1].high, a[1][0].high, a[1][1].high, b[0].high, b[1].high);
  }
};

template <typename T>
using PairsOf = std::conditional_t<std::is_same_v<T, float>, Tf32Pairs, BFloat16Pairs>;

// sums += A B for 16 values of k. left(m, k) gives A[m][k] and A[m][k + 1], right(n, k) gives B[k][n] and B[k + 1][n], for
// m, n < 32 and even k < 16. A lane's share of sums is what for_each_result visits.
template <typename T, typename Left, typename Right>
__device__ inline void accumulate_product(float (&sums)[2][4][4], const Left& left, const Right& right) {
  using Pairs = PairsOf<T>;
  using Pair = typename Pairs::Pair;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int row = lane / 4;
  const int k = lane % 4 * 2;
  Pair b[4][2];
#pragma unroll
  for (int n = 0; n < 4; ++n) {
#pragma unroll
    for (int p = 0; p < 2; ++p) b[n][p] = Pairs::split(right(8 * n + row, 8 * p + k));
  }
#pragma unroll
  for (int m = 0; m < 2; ++m) {
    Pair a[2][2];
#pragma unroll
    for (int p = 0; p < 2; ++p) {
      a[p][0] = Pairs::split(left(16 * m + row, 8 * p + k));
      a[p][1] = Pairs::split(left(16 * m + row + 8, 8 * p + k));
    }
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      float part[4] = {};
      Pairs::multiply_all(part, a, b[n]);
#pragma unroll
      for (int c = 0; c < 4; ++c) sums[m][n][c] += part[c];
    }
  }
}

// visit(row, column, value) for the results that this lane holds of its warp's 32 x 32.
template <typename Visit>
__device__ inline void for_each_result(const float (&sums)[2][4][4], const Visit& visit) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (int c = 0; c < 4; ++c) visit(16 * m + lane / 4 + c / 2 * 8, 8 * n + lane % 4 * 2 + c % 2, sums[m][n][c]);
    }
  }
}

}  // namespace jepa_fast
