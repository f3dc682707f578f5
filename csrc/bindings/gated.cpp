// Schemas and registrations of gated_columns and gated_likelihood.
#include "gated.h"

#include <algorithm>
#include <tuple>
#include <vector>

#include "bindings/blocks.h"

namespace {

using namespace jepa_fast;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

Tensor columns_weight(const Tensor& weight) {
  STD_TORCH_CHECK(weight.dim() == 2 && weight.size(1) == 2, "gated_columns: expected weight [D, 2]");
  return torch::stable::contiguous(weight);
}

Tensor gated_columns_cpu(Tensor weight, double spread) {
  weight = columns_weight(weight);
  const Tensor out = torch::stable::new_empty(weight, {weight.size(0), 2});
  by_type("gated_columns", weight, [&]<typename T>(T) {
    gated_columns(weight.const_data_ptr<T>(), weight.size(0), spread, out.mutable_data_ptr<T>());
  });
  return out;
}

Tensor gated_columns_cpu_backward(Tensor gradient, Tensor weight, double spread) {
  weight = columns_weight(weight);
  gradient = checked("gated_columns", "gradient", gradient, {weight.size(0), 2}, weight);
  const Tensor out = torch::stable::new_empty(weight, {weight.size(0), 2});
  by_type("gated_columns", weight, [&]<typename T>(T) {
    gated_columns_backward(
        gradient.const_data_ptr<T>(), weight.const_data_ptr<T>(), weight.size(0), spread, out.mutable_data_ptr<T>());
  });
  return out;
}

// The tensors of a likelihood, contiguous and of one type.
struct Arguments {
  static constexpr const char* op = "gated_likelihood";
  Tensor latents, step, log_stay, log_move;
  int64_t batch, steps, dim;
  double sigma;

  Arguments(const Tensor& latents_, const Tensor& step_, const Tensor& log_stay_, const Tensor& log_move_, const Tensor& sigma_)
      : latents(torch::stable::contiguous(latents_)) {
    STD_TORCH_CHECK(latents.dim() == 3 && latents.size(1) >= 1, op, ": expected latents [B, T + 1, D]");
    batch = latents.size(0);
    steps = latents.size(1) - 1;
    dim = latents.size(2);
    step = checked(op, "step", step_, {batch, steps, dim}, latents);
    log_stay = checked(op, "log_stay", log_stay_, {batch, steps}, latents);
    log_move = checked(op, "log_move", log_move_, {batch, steps}, latents);
    STD_TORCH_CHECK(sigma_.numel() == 1, op, ": sigma: expected one number");
    const Scalar scalar = scalar_of(sigma_, op);
    STD_TORCH_CHECK(scalar != Scalar::bfloat16, op, ": sigma: got dtype BFloat16, expected float32 or float64");
    sigma = scalar == Scalar::float64 ? *sigma_.const_data_ptr<double>() : *sigma_.const_data_ptr<float>();
  }

  template <typename T>
  GatedLikelihood<T> view() const {
    return {latents.const_data_ptr<T>(), step.const_data_ptr<T>(), log_stay.const_data_ptr<T>(), log_move.const_data_ptr<T>(),
            steps, dim, sigma};
  }

  Tensor empty(std::initializer_list<int64_t> shape) const { return torch::stable::new_empty(latents, shape); }

  template <typename F>
  void for_trajectories(const F& f) const {
    torch::stable::parallel_for(0, batch, 8, [&](int64_t first, int64_t last) {
      for (int64_t trajectory = first; trajectory < last; ++trajectory) f(trajectory);
    });
  }
};

std::tuple<Tensor, Tensor> gated_likelihood_cpu(
    Tensor latents, Tensor step, Tensor log_stay, Tensor log_move, Tensor sigma) {
  const Arguments t(latents, step, log_stay, log_move, sigma);
  const Tensor parts = t.empty({3}), expected = t.empty({t.batch, t.steps, t.dim});
  std::vector<double> sums(static_cast<size_t>(3 * t.batch));
  by_type(t.op, t.latents, [&]<typename T>(T) {
    const GatedLikelihood<T> view = t.view<T>();
    T* const to = expected.mutable_data_ptr<T>();
    t.for_trajectories([&](int64_t trajectory) { gated_likelihood(view, trajectory, to, sums.data() + 3 * trajectory); });
    const double counts[] = {
        static_cast<double>(t.batch * t.steps), static_cast<double>(t.batch * t.steps * t.dim),
        static_cast<double>(t.batch * t.steps)};
    for (int64_t part = 0; part < 3; ++part) {
      double sum = 0;
      for (int64_t trajectory = 0; trajectory < t.batch; ++trajectory) sum += sums[static_cast<size_t>(3 * trajectory + part)];
      parts.mutable_data_ptr<T>()[part] = static_cast<T>(sum / counts[part]);
    }
  });
  return {parts, expected};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> gated_likelihood_cpu_backward(
    Tensor gradient, Tensor latents, Tensor step, Tensor log_stay, Tensor log_move, Tensor sigma) {
  const Arguments t(latents, step, log_stay, log_move, sigma);
  gradient = checked(t.op, "gradient", gradient, {3}, t.latents);
  const Tensor to_latents = t.empty({t.batch, t.steps + 1, t.dim}), to_step = t.empty({t.batch, t.steps, t.dim});
  const Tensor to_stay = t.empty({t.batch, t.steps}), to_move = t.empty({t.batch, t.steps});
  by_type(t.op, t.latents, [&]<typename T>(T) {
    const GatedLikelihood<T> view = t.view<T>();
    const double scale = static_cast<double>(gradient.const_data_ptr<T>()[0]) / static_cast<double>(t.batch * t.steps);
    T *const latents_gradient = to_latents.mutable_data_ptr<T>(), *const step_gradient = to_step.mutable_data_ptr<T>();
    T *const stay_gradient = to_stay.mutable_data_ptr<T>(), *const move_gradient = to_move.mutable_data_ptr<T>();
    t.for_trajectories([&](int64_t trajectory) {
      gated_likelihood_backward(view, trajectory, scale, latents_gradient, step_gradient, stay_gradient, move_gradient);
    });
  });
  return {to_latents, to_step, to_stay, to_move};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(jepa_fast, m) {
  m.def("gated_columns(Tensor weight, float spread) -> Tensor");
  m.def("gated_columns_backward(Tensor gradient, Tensor weight, float spread) -> Tensor");
  m.def(
      "gated_likelihood(Tensor latents, Tensor step, Tensor log_stay, Tensor log_move, Tensor sigma) -> (Tensor parts, "
      "Tensor expected)");
  m.def(
      "gated_likelihood_backward(Tensor gradient, Tensor latents, Tensor step, Tensor log_stay, Tensor log_move, "
      "Tensor sigma) -> (Tensor to_latents, Tensor to_step, Tensor to_stay, Tensor to_move)");
}

STABLE_TORCH_LIBRARY_IMPL(jepa_fast, CPU, m) {
  m.impl("gated_columns", TORCH_BOX(&gated_columns_cpu));
  m.impl("gated_columns_backward", TORCH_BOX(&gated_columns_cpu_backward));
  m.impl("gated_likelihood", TORCH_BOX(&gated_likelihood_cpu));
  m.impl("gated_likelihood_backward", TORCH_BOX(&gated_likelihood_cpu_backward));
}
