// Schemas and registrations of feature_gate.
#include "feature_gate.h"

#include <algorithm>
#include <tuple>

#include "bindings/blocks.h"

namespace {

using namespace jepa_fast;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr const char* op = "feature_gate";

// The tensors that the pointers are of.
struct Arguments {
  Tensor positions, layout, actions, border_expand, border_project, wall_expand, wall_middle, wall_project;
  const FeatureGateKernels* kernels;
  FeatureGate gate{};
  int64_t batch, steps;

  Arguments(
      const Tensor& positions_, const Tensor& layout_, const Tensor& actions_, const Tensor& border_expand_,
      const Tensor& border_project_, const Tensor& wall_expand_, const Tensor& wall_middle_, const Tensor& wall_project_,
      double reach, double surest)
      : positions(torch::stable::contiguous(positions_)), kernels(feature_gate_kernels(is_double(op, positions_))) {
    STD_TORCH_CHECK(kernels != nullptr, op, ": JEPA_FAST_CPU_ISA names no instruction set that this processor has");
    STD_TORCH_CHECK(
        positions.dim() == 3 && border_expand_.dim() == 2 && wall_expand_.dim() == 2, op,
        ": expected positions [B, T, 2] and weights [H, inputs]");
    batch = positions.size(0);
    steps = positions.size(1);
    const int64_t border_hidden = border_expand_.size(0), wall_hidden = wall_expand_.size(0);
    STD_TORCH_CHECK(
        border_hidden > 0 && border_hidden % 16 == 0 && wall_hidden > 0 && wall_hidden % 16 == 0, op, ": got ", border_hidden,
        " and ", wall_hidden, " hidden units, expected multiples of 16");
    const auto fit = [&](const char* name, const Tensor& x, std::initializer_list<int64_t> shape) {
      return checked(op, name, x, shape, positions);
    };
    positions = fit("positions", positions, {batch, steps, 2});
    layout = fit("layout", layout_, {batch, 2, 2, 2});
    actions = fit("actions", actions_, {batch, steps, 2});
    border_expand = fit("border_expand", border_expand_, {border_hidden, 3});
    border_project = fit("border_project", border_project_, {1, border_hidden});
    wall_expand = fit("wall_expand", wall_expand_, {wall_hidden, 5});
    wall_middle = fit("wall_middle", wall_middle_, {wall_hidden, wall_hidden});
    wall_project = fit("wall_project", wall_project_, {1, wall_hidden});
    gate = {positions.const_data_ptr(),      layout.const_data_ptr(),      actions.const_data_ptr(),
            border_expand.const_data_ptr(),  border_project.const_data_ptr(), wall_expand.const_data_ptr(),
            wall_middle.const_data_ptr(),    wall_project.const_data_ptr(), batch * steps,
            steps,                           border_hidden,                wall_hidden,
            reach,                           surest};
  }
};

constexpr int64_t chunk_steps = gate_block * gate_chunk_blocks;

// Calls f(chunk, first step, last) for all chunks, in parallel.
template <typename F>
void for_chunks(int64_t count, const F& f) {
  torch::stable::parallel_for(0, (count + chunk_steps - 1) / chunk_steps, 1, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      f(chunk, chunk * chunk_steps, std::min(count, (chunk + 1) * chunk_steps));
    }
  });
}

std::tuple<Tensor, Tensor> feature_gate_cpu(
    Tensor positions, Tensor layout, Tensor actions, Tensor border_expand, Tensor border_project, Tensor wall_expand,
    Tensor wall_middle, Tensor wall_project, double reach, double surest) {
  const Arguments t(
      positions, layout, actions, border_expand, border_project, wall_expand, wall_middle, wall_project, reach, surest);
  const Tensor log_stay = torch::stable::new_empty(t.positions, {t.batch, t.steps});
  const Tensor log_move = torch::stable::new_empty(t.positions, {t.batch, t.steps});
  void *const stay = log_stay.mutable_data_ptr(), *const move = log_move.mutable_data_ptr();
  for_chunks(t.gate.count, [&](int64_t, int64_t first, int64_t last) { t.kernels->forward(t.gate, stay, move, first, last); });
  return {log_stay, log_move};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> feature_gate_cpu_backward(
    Tensor to_stay, Tensor to_move, Tensor positions, Tensor layout, Tensor actions, Tensor border_expand,
    Tensor border_project, Tensor wall_expand, Tensor wall_middle, Tensor wall_project, double reach, double surest) {
  const Arguments t(
      positions, layout, actions, border_expand, border_project, wall_expand, wall_middle, wall_project, reach, surest);
  to_stay = checked(op, "to_stay", to_stay, {t.batch, t.steps}, t.positions);
  to_move = checked(op, "to_move", to_move, {t.batch, t.steps}, t.positions);
  const int64_t border = t.gate.border_hidden, wall = t.gate.wall_hidden;
  const int64_t chunks = (t.gate.count + chunk_steps - 1) / chunk_steps;
  const int64_t count = gate_sums(border, wall);
  const Tensor sums = torch::stable::new_zeros(t.positions, {chunks, count}, ScalarType::Double);
  double* const shares = sums.mutable_data_ptr<double>();
  const auto empty = [&](std::initializer_list<int64_t> shape) { return torch::stable::new_empty(t.positions, shape); };
  const Tensor to_positions = empty({t.batch, t.steps, 2});
  void* const to = to_positions.mutable_data_ptr();
  for_chunks(t.gate.count, [&](int64_t chunk, int64_t first, int64_t last) {
    t.kernels->backward(
        t.gate, to_stay.const_data_ptr(), to_move.const_data_ptr(), to, shares + chunk * count, first, last);
  });
  const Tensor gradients[] = {empty({border, 3}), empty({1, border}), empty({wall, 5}), empty({wall, wall}), empty({1, wall})};
  by_type(op, t.positions, [&]<typename T>(T) {
    const double* from = shares;
    // [columns, rows] to [rows, columns]
    const auto add_up = [&](const Tensor& gradient) {
      const int64_t rows = gradient.size(0), columns = gradient.size(1);
      T* const out = gradient.mutable_data_ptr<T>();
      for (int64_t column = 0; column < columns; ++column) {
        for (int64_t row = 0; row < rows; ++row, ++from) {
          double sum = 0;
          for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += from[chunk * count];
          out[row * columns + column] = static_cast<T>(sum);
        }
      }
    };
    for (const Tensor& gradient : gradients) add_up(gradient);
  });
  return {to_positions, gradients[0], gradients[1], gradients[2], gradients[3], gradients[4]};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(jepa_fast, m) {
  m.def(
      "feature_gate(Tensor positions, Tensor layout, Tensor actions, Tensor border_expand, Tensor border_project, "
      "Tensor wall_expand, Tensor wall_middle, Tensor wall_project, float reach, float surest) -> (Tensor log_stay, "
      "Tensor log_move)");
  m.def(
      "feature_gate_backward(Tensor to_stay, Tensor to_move, Tensor positions, Tensor layout, Tensor actions, "
      "Tensor border_expand, Tensor border_project, Tensor wall_expand, Tensor wall_middle, Tensor wall_project, float reach, "
      "float surest) -> (Tensor to_positions, Tensor to_border_expand, Tensor to_border_project, Tensor to_wall_expand, "
      "Tensor to_wall_middle, Tensor to_wall_project)");
}

STABLE_TORCH_LIBRARY_IMPL(jepa_fast, CPU, m) {
  m.impl("feature_gate", TORCH_BOX(&feature_gate_cpu));
  m.impl("feature_gate_backward", TORCH_BOX(&feature_gate_cpu_backward));
}
