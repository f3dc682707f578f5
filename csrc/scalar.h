// Element types that the ops read, and how they widen to what the ops compute in.
#pragma once

#include <bit>
#include <cstdint>

// One build for every x86-64, and the wide registers where the processor has them.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && !defined(__CUDACC__)
#define JEPA_FAST_WIDE __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define JEPA_FAST_WIDE
#endif

namespace jepa_fast {

enum class Scalar { float32, float64, bfloat16 };

struct BFloat16 {
  uint16_t bits;
};

#ifdef __CUDACC__
__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(BFloat16 value) { return __uint_as_float(uint32_t{value.bits} << 16); }
__device__ inline double widen(double value) { return value; }
__device__ inline double widen(float value) { return value; }
__device__ inline double widen(BFloat16 value) { return to_float(value); }
#else
inline float to_float(BFloat16 value) { return std::bit_cast<float>(uint32_t{value.bits} << 16); }
inline double widen(double value) { return value; }
inline double widen(float value) { return value; }
inline double widen(BFloat16 value) { return to_float(value); }
#endif

}  // namespace jepa_fast
