#include "dropout.h"

#include "scalar.h"

namespace jepa_fast {
namespace {

JEPA_FAST_WIDE void mask_elements(uint32_t first, int64_t count, DropoutKeys keys, float* mask) {
  for (int64_t i = 0; i < count; ++i) mask[i] = dropout_factor(keys, first + static_cast<uint32_t>(i));
}

}  // namespace

DropoutKeys dropout_keys(const int64_t* clock, int64_t site, double rate) {
  const auto low = [](int64_t value) { return static_cast<uint32_t>(value); };
  const uint32_t seed = mix_bits(low(clock[0]) ^ mix_bits(low(clock[0] >> 32)));
  const uint32_t first_key = mix_bits(seed ^ mix_bits(low(clock[1]) ^ low(site << 24)));
  return {
      first_key, mix_bits(first_key ^ 0x9e3779b9u), static_cast<uint32_t>(static_cast<int64_t>(rate * 4294967296.0)),
      static_cast<float>(1.0 / (1.0 - rate))};
}

void dropout_mask_cpu(int64_t first, int64_t count, const DropoutKeys& keys, float* mask) {
  mask_elements(static_cast<uint32_t>(first), count, keys, mask);
}

}  // namespace jepa_fast
