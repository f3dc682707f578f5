// Schemas and registration of probe_train and probe_outputs.
#include "probe.h"

#include <algorithm>
#include <optional>

#include "bindings/tensors.h"

namespace {

using namespace jepa_fast;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

bool is(const Tensor& x, int64_t dims, ScalarType dtype) { return x.dim() == dims && x.scalar_type() == dtype; }

const ProbeKernels& kernels_for(const char* op) {
  const ProbeKernels* const kernels = probe_kernels();
  STD_TORCH_CHECK(kernels != nullptr, op, ": JEPA_FAST_CPU_ISA names no instruction set that this processor has");
  return *kernels;
}

// W1 transposed of each row of `from` [rows, probe_size], as panels; or the other way round. The rest is copied.
void lay_out(const float* from, int64_t rows, int64_t dim, int64_t hidden, int64_t panel, bool is_back, float* to) {
  const int64_t size = probe_size(dim, hidden);
  for (int64_t row = 0; row < rows; ++row, from += size, to += size) {
    for (int64_t first = 0; first < hidden; first += panel) {
      const int64_t columns = std::min(panel, hidden - first);
      for (int64_t d = 0; d < dim; ++d) {
        const int64_t plain = d * hidden + first;
        const int64_t packed = first * dim + d * columns;
        std::copy_n(from + (is_back ? packed : plain), columns, to + (is_back ? plain : packed));
      }
    }
    std::copy_n(from + dim * hidden, 3 * hidden + 2, to + dim * hidden);
  }
}

// Parameters and Adam's moments after the steps of `rows` [S, B], from those before them [3, probe_size].
Tensor probe_train_cpu(
    Tensor latents, Tensor targets, Tensor rows, std::optional<Tensor> steps, Tensor rates, Tensor state, int64_t hidden,
    int64_t first_step) {
  constexpr const char* op = "probe_train";
  const ProbeKernels& kernels = kernels_for(op);
  STD_TORCH_CHECK(
      is(latents, 3, ScalarType::Float) && is(targets, 3, ScalarType::Float) && is(rows, 2, ScalarType::Long) &&
          is(rates, 1, ScalarType::Double) && is(state, 2, ScalarType::Float),
      op, ": expected latents and targets float32 [N, T, D] and [N, T, 2], rows int64 [S, B], rates float64 [S], state float32");
  latents = torch::stable::contiguous(latents);
  targets = torch::stable::contiguous(targets);
  rows = torch::stable::contiguous(rows);
  rates = torch::stable::contiguous(rates);
  state = torch::stable::contiguous(state);
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
  const Tensor packed = torch::stable::new_empty(state, {3, size});
  float* const data = packed.mutable_data_ptr<float>();
  lay_out(state.const_data_ptr<float>(), 3, dim, hidden, kernels.panel_columns, false, data);
  const Tensor x = torch::stable::new_empty(state, {batch * kept, probe_row(dim)});
  const Tensor slopes = torch::stable::new_empty(state, {batch * kept, hidden});
  const Tensor sums = torch::stable::new_empty(state, {probe_chunks, 3 * hidden + 2});
  const ProbeWork work{x.mutable_data_ptr<float>(), slopes.mutable_data_ptr<float>(), sums.mutable_data_ptr<float>()};
  const int64_t panels = (hidden + kernels.panel_columns - 1) / kernels.panel_columns;
  for (int64_t each = 0; each < rows.size(0); ++each) {
    const ProbeStep step{
        latents.const_data_ptr<float>(), targets.const_data_ptr<float>(), rows.const_data_ptr<int64_t>() + each * batch,
        steps ? steps->const_data_ptr<int64_t>() + each * batch * kept : nullptr, length, batch, kept, dim, hidden};
    const ProbeAdam adam{data, data + size, data + 2 * size, rates.const_data_ptr<double>()[each], first_step + each};
    torch::stable::parallel_for(0, probe_chunks, 1, [&](int64_t first, int64_t last) {
      for (int64_t chunk = first; chunk < last; ++chunk) kernels.forward(step, data, chunk, work);
    });
    torch::stable::parallel_for(0, panels, 1, [&](int64_t first, int64_t last) {
      for (int64_t panel = first; panel < last; ++panel) kernels.update(step, adam, work, panel);
    });
  }
  const Tensor after = torch::stable::new_empty(state, {3, size});
  lay_out(data, 3, dim, hidden, kernels.panel_columns, true, after.mutable_data_ptr<float>());
  return after;
}

// What a probe with `parameters` [probe_size] gives for latents [M, D]: [M, 2].
Tensor probe_outputs_cpu(Tensor latents, Tensor parameters, int64_t hidden) {
  constexpr const char* op = "probe_outputs";
  const ProbeKernels& kernels = kernels_for(op);
  STD_TORCH_CHECK(
      is(latents, 2, ScalarType::Float) && is(parameters, 1, ScalarType::Float), op,
      ": expected latents float32 [M, D] and parameters float32 [P]");
  latents = torch::stable::contiguous(latents);
  parameters = torch::stable::contiguous(parameters);
  const int64_t count = latents.size(0);
  const int64_t dim = latents.size(1);
  STD_TORCH_CHECK(
      parameters.size(0) == probe_size(dim, hidden) && hidden % 16 == 0, op,
      ": the shapes of latents and parameters do not fit together");
  const Tensor packed = torch::stable::new_empty(parameters, {probe_size(dim, hidden)});
  float* const data = packed.mutable_data_ptr<float>();
  lay_out(parameters.const_data_ptr<float>(), 1, dim, hidden, kernels.panel_columns, false, data);
  const Tensor out = torch::stable::new_empty(latents, {count, 2});
  const float* const from = latents.const_data_ptr<float>();
  float* const to = out.mutable_data_ptr<float>();
  torch::stable::parallel_for(0, count, 512, [&](int64_t first, int64_t last) {
    kernels.outputs(from, dim, hidden, data, first, last, to);
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(jepa_fast, m) {
  m.def(
      "probe_train(Tensor latents, Tensor targets, Tensor rows, Tensor? steps, Tensor rates, Tensor state, int hidden, "
      "int first_step) -> Tensor");
  m.def("probe_outputs(Tensor latents, Tensor parameters, int hidden) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(jepa_fast, CPU, m) {
  m.impl("probe_train", TORCH_BOX(&probe_train_cpu));
  m.impl("probe_outputs", TORCH_BOX(&probe_outputs_cpu));
}
