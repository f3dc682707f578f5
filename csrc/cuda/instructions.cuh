// The PTX instructions that have no name in CUDA C++, and nothing else: the tests replace this file to run the kernels on a
// CPU.
#pragma once

#include "scalar.h"

namespace jepa_fast {

__device__ inline float round_to_tf32(float value) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return __uint_as_float(bits);
}

// Two values rounded to bfloat16, the first in the lower half.
__device__ inline uint32_t pack_bfloat16(float first, float second) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(second), "f"(first));
  return packed;
}

// c += A B by a warp, A 16 x 8, B 8 x 8 in TF32. With r = lane / 4 and t = lane % 4 a lane holds
//     a0 = A[r][t], a1 = A[r + 8][t], a2 = A[r][t + 4], a3 = A[r + 8][t + 4], b0 = B[t][r], b1 = B[t + 4][r]
//     c = C[r][2 t], C[r][2 t + 1], C[r + 8][2 t], C[r + 8][2 t + 1]
__device__ inline void multiply_tf32(
    float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
               "{%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// c += A B by a warp, A 16 x 16, B 16 x 8 in bfloat16, two to a register, the lower k in the lower half:
//     a0 = A[r][2 t, 2 t + 1], a1 = A[r + 8][2 t, ...], a2 = A[r][2 t + 8, ...], a3 = A[r + 8][2 t + 8, ...]
//     b0 = B[2 t, 2 t + 1][r], b1 = B[2 t + 8, ...][r], c as above
__device__ inline void multiply_bfloat16(
    float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
               "{%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

}  // namespace jepa_fast
