// Dropout masks as a hash of the element's number, free of torch.
#pragma once

#include <cstdint>

namespace jepa_fast {

// Bijective 32-bit mixing. Source: hash-prospector's lowbias32 constants.
inline uint32_t mix_bits(uint32_t bits) {
  bits ^= bits >> 16;
  bits *= 0x7feb352d;
  bits ^= bits >> 15;
  bits *= 0x846ca68b;
  return bits ^ bits >> 16;
}

// Elements [first, first + count) of a mask: 0 where the hash of the element's number is below `threshold`, else `scale`.
void dropout_mask_cpu(
    int64_t first, int64_t count, uint32_t first_key, uint32_t second_key, uint32_t threshold, float scale, float* mask);

}  // namespace jepa_fast
