// Schema and registration of probe_train.
#include "probe.h"

#include <optional>
#include <tuple>

#include "bindings/tensors.h"

namespace {

using namespace jepa_fast;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Parameters and Adam's moments after the steps of `rows` [S, B], from those before them [3, probe_size].
Tensor probe_train_cpu(
    Tensor latents, Tensor targets, Tensor rows, std::optional<Tensor> steps, Tensor rates, Tensor state, int64_t hidden,
    int64_t first_step) {
  constexpr const char* op = "probe_train";
  const ProbeKernels* const kernels = probe_kernels();
  STD_TORCH_CHECK(kernels != nullptr, op, ": JEPA_FAST_CPU_ISA names no instruction set that this processor has");
  const auto is = [](const Tensor& x, int64_t dims, ScalarType dtype) { return x.dim() == dims && x.scalar_type() == dtype; };
  STD_TORCH_CHECK(
      is(latents, 3, ScalarType::Float) && is(targets, 3, ScalarType::Float) && is(rows, 2, ScalarType::Long) &&
          is(rates, 1, ScalarType::Double) && is(state, 2, ScalarType::Float),
      op, ": expected latents and targets float32 [N, T, D] and [N, T, 2], rows int64 [S, B], rates float64 [S], state float32");
  latents = torch::stable::contiguous(latents);
  targets = torch::stable::contiguous(targets);
  rows = torch::stable::contiguous(rows);
  rates = torch::stable::contiguous(rates);
  const int64_t count = latents.size(0);
  const int64_t length = latents.size(1);
  const int64_t dim = latents.size(2);
  const int64_t batch = rows.size(1);
  const int64_t size = probe_size(dim, hidden);
  STD_TORCH_CHECK(
      targets.size(0) == count && targets.size(1) == length && targets.size(2) == 2 && rates.size(0) == rows.size(0) &&
          state.size(0) == 3 && state.size(1) == size && hidden % 16 == 0,
      op, ": the shapes of latents, targets, rows, rates and state do not fit together");
  const auto check_range = [&](const Tensor& indices, int64_t end) {
    const int64_t* const index = indices.const_data_ptr<int64_t>();
    for (int64_t i = 0; i < indices.numel(); ++i) {
      STD_TORCH_CHECK(index[i] >= 0 && index[i] < end, op, ": got index ", index[i], ", expected less than ", end);
    }
  };
  check_range(rows, count);
  int64_t kept = length;
  if (steps) {
    steps = torch::stable::contiguous(*steps);
    STD_TORCH_CHECK(
        is(*steps, 3, ScalarType::Long) && steps->size(0) == rows.size(0) && steps->size(1) == batch, op,
        ": steps: expected int64 [S, B, K]");
    check_range(*steps, length);
    kept = steps->size(2);
  }
  const Tensor after = torch::stable::clone(torch::stable::contiguous(state));
  const Tensor gradients = torch::stable::new_empty(after, {probe_chunks, size});
  float* const data = after.mutable_data_ptr<float>();
  float* const shares = gradients.mutable_data_ptr<float>();
  for (int64_t each = 0; each < rows.size(0); ++each) {
    const ProbeStep step{
        latents.const_data_ptr<float>(), targets.const_data_ptr<float>(), rows.const_data_ptr<int64_t>() + each * batch,
        steps ? steps->const_data_ptr<int64_t>() + each * batch * kept : nullptr, length, batch, kept, dim, hidden};
    const ProbeAdam adam{data, data + size, data + 2 * size, rates.const_data_ptr<double>()[each], first_step + each};
    torch::stable::parallel_for(0, probe_chunks, 1, [&](int64_t first, int64_t last) {
      for (int64_t chunk = first; chunk < last; ++chunk) kernels->gradient(step, data, chunk, shares);
    });
    torch::stable::parallel_for(0, size, 8192, [&](int64_t first, int64_t last) {
      kernels->adam(adam, shares, size, first, last);
    });
  }
  return after;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(jepa_fast, m) {
  m.def(
      "probe_train(Tensor latents, Tensor targets, Tensor rows, Tensor? steps, Tensor rates, Tensor state, int hidden, "
      "int first_step) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(jepa_fast, CPU, m) { m.impl("probe_train", TORCH_BOX(&probe_train_cpu)); }
