// Schemas and registrations of the predictor's rollout on the CPU.
#include "rollout.h"

#include <tuple>
#include <vector>

#include "bindings/blocks.h"

namespace {

using namespace jepa_fast;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr const char* op = "rollout";
// Where its dropout draws from; see kernels/dropout.py.
constexpr int64_t site = 2;

// The tensors that a rollout's pointers are of.
struct Arguments {
  Tensor first, actions, packed;
  const RolloutKernels* kernels;
  Rollout rollout{};

  Arguments(
      const Tensor& first_, const Tensor& actions_, const Tensor& clock, const std::vector<Tensor>& weights, double dropout,
      bool state_residual, bool gelu_first, bool backward)
      : first(torch::stable::contiguous(first_)),
        kernels(rollout_kernels(is_double(op, first_))) {
    STD_TORCH_CHECK(kernels != nullptr, op, ": JEPA_FAST_CPU_ISA names no instruction set that this processor has");
    STD_TORCH_CHECK(
        first.dim() == 2 && actions_.dim() == 3 && weights.size() == 12, op,
        ": expected first [B, D], actions [B, S, A] and 12 weights");
    const int64_t batch = first.size(0), dim = first.size(1), steps = actions_.size(1), size = actions_.size(2);
    const int64_t hidden = 4 * dim;
    actions = checked(op, "actions", actions_, {batch, steps, size}, first);
    const auto fit = [&](size_t index, const char* name, std::initializer_list<int64_t> shape) {
      return checked(op, name, weights[index], shape, first);
    };
    const Tensor all[] = {
        fit(0, "state_norm_weight", {dim}),    fit(1, "state_norm_bias", {dim}),
        fit(2, "action_weight", {dim, size}),  fit(3, "action_bias", {dim}),
        fit(4, "action_norm_weight", {dim}),   fit(5, "action_norm_bias", {dim}),
        fit(6, "expand_weight", {hidden, dim}), fit(7, "expand_bias", {hidden}),
        fit(8, "norm_weight", {hidden}),       fit(9, "norm_bias", {hidden}),
        fit(10, "project_weight", {dim, hidden}), fit(11, "project_bias", {dim})};
    packed = torch::stable::new_empty(first, {kernels->packed_size(dim, size)});
    const auto data = [&](size_t index) { return all[index].const_data_ptr(); };
    kernels->pack(
        {data(0), data(1), data(2), data(3), data(4), data(5), data(6), data(7), data(8), data(9), data(10), data(11)}, dim,
        size, backward, packed.mutable_data_ptr());
    rollout = {
        first.const_data_ptr(), actions.const_data_ptr(), packed.const_data_ptr(), batch, steps, dim, size, {}, 0,
        dropout > 0, state_residual, gelu_first};
    if (dropout > 0) {
      STD_TORCH_CHECK(clock.numel() == 3 && clock.scalar_type() == ScalarType::Long, op, ": clock: expected int64 [3]");
      const Tensor time = torch::stable::contiguous(clock);
      rollout.keys = dropout_keys(time.const_data_ptr<int64_t>(), site, dropout);
      rollout.first_element = time.const_data_ptr<int64_t>()[2] * steps * hidden;
    }
  }

  Tensor empty(std::initializer_list<int64_t> shape) const { return torch::stable::new_empty(first, shape); }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> rollout_cpu(
    Tensor first, Tensor actions, Tensor clock, std::vector<Tensor> weights, double dropout, bool state_residual,
    bool gelu_first, bool keep) {
  const Arguments t(first, actions, clock, weights, dropout, state_residual, gelu_first, false);
  const Rollout& rollout = t.rollout;
  const int64_t batch = rollout.batch, steps = rollout.steps, dim = rollout.dim;
  const auto kept = [&](int64_t count) { return keep ? t.empty({batch, steps, count}) : t.empty({0}); };
  const Tensor states = t.empty({batch, steps, dim}), hidden = kept(4 * dim), dropped = kept(4 * dim), statistics = kept(2);
  RolloutResults results{states.mutable_data_ptr(), nullptr, nullptr, nullptr};
  if (keep) {
    results.hidden = hidden.mutable_data_ptr();
    results.dropped = dropped.mutable_data_ptr();
    results.statistics = statistics.mutable_data_ptr();
  }
  torch::stable::parallel_for(0, rollout_blocks(batch), 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) t.kernels->forward(rollout, results, block);
  });
  return {states, hidden, dropped, statistics};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> rollout_cpu_backward(
    Tensor gradient, Tensor first, Tensor actions, Tensor clock, std::vector<Tensor> weights, Tensor states, Tensor hidden,
    Tensor dropped, Tensor statistics, double dropout, bool state_residual, bool gelu_first, bool actions_wanted) {
  const Arguments t(first, actions, clock, weights, dropout, state_residual, gelu_first, true);
  const Rollout& rollout = t.rollout;
  const int64_t batch = rollout.batch, steps = rollout.steps, dim = rollout.dim, size = rollout.action_size;
  const auto fit = [&](const char* name, const Tensor& x, int64_t count) {
    return checked(op, name, x, {batch, steps, count}, t.first);
  };
  gradient = fit("gradient", gradient, dim);
  states = fit("states", states, dim);
  hidden = fit("hidden", hidden, 4 * dim);
  dropped = fit("dropped", dropped, 4 * dim);
  statistics = fit("statistics", statistics, 2);
  const Tensor to_first = t.empty({batch, dim});
  const Tensor to_actions = actions_wanted ? t.empty({batch, steps, size}) : t.empty({0});
  const Tensor to_expand = t.empty({4 * dim, dim}), to_project = t.empty({dim, 4 * dim});
  const int64_t padded = t.kernels->padded(dim);
  const Tensor to_hidden = t.empty({batch * steps, 4 * dim});
  const Tensor fused = t.empty({batch * steps, padded}), totals = t.empty({batch * steps, padded});
  const int64_t blocks = rollout_blocks(batch);
  const int64_t count = rollout_vectors(dim, size);
  const Tensor sums = torch::stable::new_empty(t.first, {blocks, count}, ScalarType::Double);
  const Tensor vectors = t.empty({count});
  const RolloutGradients gradients{
      gradient.const_data_ptr(), states.const_data_ptr(), hidden.const_data_ptr(), dropped.const_data_ptr(),
      statistics.const_data_ptr(), to_first.mutable_data_ptr(),
      actions_wanted ? to_actions.mutable_data_ptr() : nullptr, to_hidden.mutable_data_ptr(), fused.mutable_data_ptr(),
      totals.mutable_data_ptr(), sums.mutable_data_ptr<double>(), to_expand.mutable_data_ptr(),
      to_project.mutable_data_ptr()};
  torch::stable::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) t.kernels->backward(rollout, gradients, block);
  });
  torch::stable::parallel_for(0, rollout_matrix_tasks(dim), 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) t.kernels->matrices(rollout, gradients, task);
  });
  const double* const shares = sums.const_data_ptr<double>();
  const auto finish = [&]<typename T>(T* out) {
    for (int64_t i = 0; i < count; ++i) {
      double sum = 0;
      for (int64_t block = 0; block < blocks; ++block) sum += shares[block * count + i];
      out[i] = static_cast<T>(sum);
    }
  };
  is_double(op, t.first) ? finish(vectors.mutable_data_ptr<double>()) : finish(vectors.mutable_data_ptr<float>());
  return {to_first, to_actions, to_expand, to_project, vectors};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(jepa_fast, m) {
  m.def(
      "rollout_cpu(Tensor first, Tensor actions, Tensor clock, Tensor[] weights, float dropout, bool state_residual, "
      "bool gelu_first, bool keep) -> (Tensor states, Tensor hidden, Tensor dropped, Tensor statistics)");
  m.def(
      "rollout_cpu_backward(Tensor gradient, Tensor first, Tensor actions, Tensor clock, Tensor[] weights, Tensor states, "
      "Tensor hidden, Tensor dropped, Tensor statistics, float dropout, bool state_residual, bool gelu_first, "
      "bool actions_wanted) -> (Tensor first_gradient, Tensor actions_gradient, Tensor expand_gradient, "
      "Tensor project_gradient, Tensor vectors)");
}

STABLE_TORCH_LIBRARY_IMPL(jepa_fast, CPU, m) {
  m.impl("rollout_cpu", TORCH_BOX(&rollout_cpu));
  m.impl("rollout_cpu_backward", TORCH_BOX(&rollout_cpu_backward));
}
