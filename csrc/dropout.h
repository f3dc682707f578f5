// Dropout masks as a hash of the element's number, free of torch.
#pragma once

#include <cstdint>

namespace jepa_fast {

// Bijective 32-bit mixing. Source: hash-prospector's lowbias32 constants. Always inline: builds for several instruction sets
// use it, and the linker would keep one copy.
inline __attribute__((always_inline)) uint32_t mix_bits(uint32_t bits) {
  bits ^= bits >> 16;
  bits *= 0x7feb352d;
  bits ^= bits >> 15;
  bits *= 0x846ca68b;
  return bits ^ bits >> 16;
}

// What a mask is a function of beside its elements' numbers.
struct DropoutKeys {
  uint32_t first_key, second_key, threshold;
  float scale;
};

// Of a clock [3] (seed, step, first row) at a site; see kernels/dropout.py.
DropoutKeys dropout_keys(const int64_t* clock, int64_t site, double rate);

// An element of a mask by its number: 0 where its hash is below the threshold, else the scale.
inline __attribute__((always_inline)) float dropout_factor(const DropoutKeys& keys, uint32_t element) {
  const uint32_t bits = mix_bits(mix_bits(element ^ keys.first_key) + keys.second_key);
  return bits >= keys.threshold ? keys.scale : 0.0f;
}

// Elements [first, first + count) of a mask.
void dropout_mask_cpu(int64_t first, int64_t count, const DropoutKeys& keys, float* mask);

}  // namespace jepa_fast
