// The instructions of csrc/cuda/instructions.cuh in plain C++. Tensor cores are taken to be worse than any that was measured:
// every addend is cut off at the last bit that a float as large as the largest addend has, and so is the sum.
#pragma once

#include "cuda_runtime.h"
#include "scalar.h"

namespace jepa_fast {

inline float round_to_tf32(float value) {
  if (!std::isfinite(value)) return value;
  return std::bit_cast<float>((std::bit_cast<uint32_t>(value) + 0x1000) & 0xffffe000u);
}

inline uint32_t round_to_bfloat16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  return value == value ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : 0x7fff;
}

inline uint32_t pack_bfloat16(float first, float second) {
  return round_to_bfloat16(first) | round_to_bfloat16(second) << 16;
}

inline float truncated_sum(const double* addends, int count) {
  double largest = 0;
  for (int i = 0; i < count; ++i) {
    if (!std::isfinite(addends[i])) return NAN;
    largest = std::max(largest, std::abs(addends[i]));
  }
  if (largest == 0) return 0;
  const double unit = std::ldexp(1.0, std::ilogb(largest) - 23);
  double sum = 0;
  for (int i = 0; i < count; ++i) sum += std::trunc(addends[i] / unit) * unit;
  if (sum == 0) return 0;
  const double sum_unit = std::ldexp(1.0, std::ilogb(sum) - 23);
  return static_cast<float>(std::trunc(sum / sum_unit) * sum_unit);
}

// Each lane shows its part of A and B to its warp, then works out its own four results. value_of(word, i) is the i-th value
// that a register holds.
template <int PerRegister, typename ValueOf>
void multiply(float (&c)[4], const uint32_t (&registers)[6], const ValueOf& value_of) {
  auto& shown = emulation::lane_values[emulation::warp()];
  const int lane = emulation::lane();
  std::copy(registers, registers + 6, shown[lane]);
  emulation::sync_warp();
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4;
    const int column = lane % 4 * 2 + i % 2;
    double addends[1 + 8 * PerRegister];
    int count = 0;
    addends[count++] = static_cast<double>(c[i]);
    for (int half = 0; half < 2; ++half) {
      for (int t = 0; t < 4; ++t) {
        for (int n = 0; n < PerRegister; ++n) {
          const float a = value_of(shown[row * 4 + t][2 * half + i / 2], n);
          const float b = value_of(shown[column * 4 + t][4 + half], n);
          addends[count++] = static_cast<double>(a) * static_cast<double>(b);
        }
      }
    }
    c[i] = truncated_sum(addends, count);
  }
  emulation::sync_warp();
}

inline void multiply_tf32(
    float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  multiply<1>(c, {a0, a1, a2, a3, b0, b1}, [](uint32_t word, int) { return std::bit_cast<float>(word); });
}

inline void multiply_bfloat16(
    float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  multiply<2>(c, {a0, a1, a2, a3, b0, b1}, [](uint32_t word, int n) {
    return std::bit_cast<float>(n == 0 ? word << 16 : word & 0xffff0000u);
  });
}

}  // namespace jepa_fast
