// Schema and registration of dropout_mask on the CPU.
#include "dropout.h"

#include <vector>

#include "bindings/tensors.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// float32 of `shape`, from the clock int64 [3] (seed, step, first row); see kernels/dropout.py.
Tensor dropout_mask_cpu(std::vector<int64_t> shape, double rate, Tensor clock, int64_t site) {
  STD_TORCH_CHECK(
      clock.numel() == 3 && clock.scalar_type() == ScalarType::Long, "dropout_mask: clock: expected int64 [3]");
  clock = torch::stable::contiguous(clock);
  const int64_t* const time = clock.const_data_ptr<int64_t>();
  const jepa_fast::DropoutKeys keys = jepa_fast::dropout_keys(time, site, rate);
  const Tensor mask = torch::stable::new_empty(
      clock, torch::headeronly::IntHeaderOnlyArrayRef(shape.data(), shape.size()), ScalarType::Float);
  const int64_t count = mask.numel();
  const int64_t rows = shape.empty() || shape[0] < 1 ? 1 : shape[0];
  const int64_t first = time[2] * (count / rows);
  float* const data = mask.mutable_data_ptr<float>();
  torch::stable::parallel_for(0, count, 1 << 15, [&](int64_t begin, int64_t end) {
    jepa_fast::dropout_mask_cpu(first + begin, end - begin, keys, data + begin);
  });
  return mask;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(jepa_fast, m) {
  m.def("dropout_mask(int[] shape, float rate, Tensor clock, int site) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(jepa_fast, CPU, m) { m.impl("dropout_mask", TORCH_BOX(&dropout_mask_cpu)); }
