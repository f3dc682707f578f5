#include "dropout.h"

#include "scalar.h"

namespace jepa_fast {
namespace {

JEPA_FAST_WIDE void mask_elements(
    uint32_t first, int64_t count, uint32_t first_key, uint32_t second_key, uint32_t threshold, float scale, float* mask) {
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = mix_bits(mix_bits((first + static_cast<uint32_t>(i)) ^ first_key) + second_key);
    mask[i] = bits >= threshold ? scale : 0.0f;
  }
}

}  // namespace

void dropout_mask_cpu(
    int64_t first, int64_t count, uint32_t first_key, uint32_t second_key, uint32_t threshold, float scale, float* mask) {
  mask_elements(static_cast<uint32_t>(first), count, first_key, second_key, threshold, scale, mask);
}

}  // namespace jepa_fast
