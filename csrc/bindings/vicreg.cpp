// Schemas and registrations of vicreg.
#include "vicreg.h"

#include <algorithm>
#include <optional>
#include <tuple>

#include "bindings/tensors.h"

namespace {

using jepa_fast::scalar_of;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// What both directions of vicreg read: x and target [G, N, D] with columns adjacent, and the options.
struct VicregInputs {
  Tensor x;
  std::optional<Tensor> target;
  jepa_fast::Groups groups;
  jepa_fast::Groups target_groups;
  jepa_fast::VicregOptions options;
  ScalarType working;  // float64 for float64 input, else float32

  const jepa_fast::Groups* target_or_null() const { return target ? &target_groups : nullptr; }
};

jepa_fast::Groups groups_of(const Tensor& x, jepa_fast::Scalar scalar) {
  return {x.const_data_ptr(), scalar, x.size(0), x.size(1), x.size(2), x.stride(0), x.stride(1)};
}

Tensor with_adjacent_columns(const Tensor& x) {
  return x.stride(2) == 1 ? x : torch::stable::contiguous(x);
}

VicregInputs prepare_vicreg(
    const Tensor& input, const std::optional<Tensor>& target, double gamma, double eps, double divisor) {
  STD_TORCH_CHECK(input.dim() == 3, "vicreg: x: got ", input.dim(), " dimensions, expected 3: [G, N, D]");
  STD_TORCH_CHECK(input.size(0) >= 1, "vicreg: x: got G = 0 groups, expected at least 1");
  STD_TORCH_CHECK(input.size(1) >= 2, "vicreg: x: got N = ", input.size(1), " rows, expected at least 2");
  STD_TORCH_CHECK(
      input.size(2) >= 1 && input.size(2) <= jepa_fast::vicreg_most_columns, "vicreg: x: got D = ", input.size(2),
      " columns, expected 1 to ", jepa_fast::vicreg_most_columns);
  const jepa_fast::Scalar scalar = scalar_of(input, "vicreg");
  const Tensor x = with_adjacent_columns(input);
  VicregInputs inputs{
      x, std::nullopt, groups_of(x, scalar), {}, {gamma, eps, divisor},
      scalar == jepa_fast::Scalar::float64 ? ScalarType::Double : ScalarType::Float};
  if (target) {
    bool same = target->dim() == 3 && target->scalar_type() == x.scalar_type();
    for (int64_t i = 0; same && i < 3; ++i) same = target->size(i) == x.size(i);
    STD_TORCH_CHECK(same, "vicreg: target: expected the shape and the dtype of x");
    inputs.target = with_adjacent_columns(*target);
    inputs.target_groups = groups_of(*inputs.target, scalar);
  }
  return inputs;
}

std::tuple<Tensor, Tensor, Tensor> vicreg_cpu(
    Tensor input, std::optional<Tensor> target, double gamma, double eps, double divisor) {
  const VicregInputs in = prepare_vicreg(input, target, gamma, eps, divisor);
  const jepa_fast::Groups& x = in.groups;
  const jepa_fast::VicregCut cut = jepa_fast::vicreg_cut_cpu(x.rows, x.columns);
  const auto doubles = [&](std::initializer_list<int64_t> shape) {
    return torch::stable::new_empty(in.x, shape, ScalarType::Double);
  };
  const Tensor means = doubles({x.groups, cut.chunks, x.columns});
  const Tensor scatters = doubles({x.groups, cut.chunks, x.columns, x.columns});
  const Tensor errors = doubles({x.groups, cut.chunks});
  const Tensor row_terms = doubles({x.groups, x.columns, 2});
  const Tensor mean = doubles({x.groups, x.columns});
  const Tensor covariance = torch::stable::new_empty(in.x, {x.groups, x.columns, x.columns}, in.working);
  const Tensor terms = torch::stable::new_empty(in.x, {3}, in.working);
  double* const means_data = means.mutable_data_ptr<double>();
  double* const scatters_data = scatters.mutable_data_ptr<double>();
  double* const errors_data = errors.mutable_data_ptr<double>();
  double* const row_terms_data = row_terms.mutable_data_ptr<double>();
  double* const mean_data = mean.mutable_data_ptr<double>();
  void* const covariance_data = covariance.mutable_data_ptr();
  torch::stable::parallel_for(
      0, x.groups * cut.chunks * cut.strips, 1, [&](int64_t first, int64_t last) {
        for (int64_t task = first; task < last; ++task) {
          const int64_t chunk = task / cut.strips;
          jepa_fast::vicreg_scatter_cpu(
              x, in.target_or_null(), cut, chunk / cut.chunks, chunk % cut.chunks, task % cut.strips, means_data,
              scatters_data, errors_data);
        }
      });
  for (int64_t group = 0; group < x.groups; ++group) {
    jepa_fast::vicreg_mean_cpu(x, cut, group, means_data, mean_data);
  }
  torch::stable::parallel_for(0, x.groups * x.columns, 32, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      jepa_fast::vicreg_covariance_cpu(
          x, cut, in.options, row / x.columns, row % x.columns, means_data, mean_data, scatters_data, covariance_data,
          row_terms_data);
    }
  });
  jepa_fast::vicreg_terms_cpu(
      x, cut, in.options, row_terms_data, errors_data, in.target.has_value(), terms.mutable_data_ptr());
  return {terms, mean, covariance};
}

struct VicregGradientTensors {
  Tensor gradients;   // [3]
  Tensor mean;        // float64 [G, D]
  Tensor covariance;  // [G, D, D]
  Tensor dx;          // [G, N, D]
  Tensor dtarget;     // [G, N, D], or [0] where it is not wanted

  void* dtarget_or_null() const { return dtarget.numel() == 0 ? nullptr : dtarget.mutable_data_ptr(); }
};

VicregGradientTensors prepare_vicreg_gradient(
    const VicregInputs& in, const Tensor& gradients, const Tensor& mean, const Tensor& covariance,
    bool target_gradient) {
  const jepa_fast::Groups& x = in.groups;
  STD_TORCH_CHECK(
      gradients.numel() == 3 && gradients.scalar_type() == in.working,
      "vicreg_backward: gradients: expected three values of the dtype of the terms");
  STD_TORCH_CHECK(
      mean.numel() == x.groups * x.columns && mean.scalar_type() == ScalarType::Double &&
          covariance.numel() == x.groups * x.columns * x.columns && covariance.scalar_type() == in.working,
      "vicreg_backward: mean, covariance: expected what vicreg gave for x");
  STD_TORCH_CHECK(in.target || !target_gradient, "vicreg_backward: target_gradient: there is no target");
  const auto empty = [&](std::initializer_list<int64_t> shape) { return torch::stable::new_empty(in.x, shape); };
  return {
      torch::stable::contiguous(gradients), torch::stable::contiguous(mean), torch::stable::contiguous(covariance),
      empty({x.groups, x.rows, x.columns}),
      target_gradient ? empty({x.groups, x.rows, x.columns}) : empty({0})};
}

std::tuple<Tensor, Tensor> vicreg_backward_cpu(
    Tensor gradients, Tensor input, std::optional<Tensor> target, Tensor mean, Tensor covariance, double gamma,
    double eps, double divisor, bool target_gradient) {
  const VicregInputs in = prepare_vicreg(input, target, gamma, eps, divisor);
  const VicregGradientTensors t = prepare_vicreg_gradient(in, gradients, mean, covariance, target_gradient);
  const jepa_fast::Groups& x = in.groups;
  const int64_t panels = jepa_fast::vicreg_panels(x.columns);
  const int64_t padded = panels * jepa_fast::vicreg_panel_columns;
  const Tensor packed = torch::stable::new_empty(
      in.x, {x.groups, panels, padded, jepa_fast::vicreg_panel_columns}, in.working);
  const void* const gradients_data = t.gradients.const_data_ptr();
  const double* const mean_data = t.mean.const_data_ptr<double>();
  const void* const covariance_data = t.covariance.const_data_ptr();
  void* const packed_data = packed.mutable_data_ptr();
  void* const dx = t.dx.mutable_data_ptr();
  void* const dtarget = t.dtarget_or_null();
  // Panels per task: a few thousand values pay for waking a thread.
  torch::stable::parallel_for(
      0, x.groups * panels, std::max<int64_t>(1, 512 / padded), [&](int64_t first, int64_t last) {
        for (int64_t task = first; task < last; ++task) {
          jepa_fast::vicreg_pack_cpu(
              x, in.options, task / panels, task % panels, gradients_data, covariance_data, packed_data);
        }
      });
  const int64_t blocks = (x.rows + jepa_fast::vicreg_block_rows - 1) / jepa_fast::vicreg_block_rows;
  torch::stable::parallel_for(0, x.groups * blocks, 1, [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      jepa_fast::vicreg_gradient_cpu(
          x, in.target_or_null(), in.options, task / blocks, task % blocks, gradients_data, mean_data, packed_data, dx,
          dtarget);
    }
  });
  return {t.dx, t.dtarget};
}

#ifdef JEPA_FAST_WITH_CUDA
void check_cuda_limits(const VicregInputs& in) {
  STD_TORCH_CHECK(
      in.groups.scalar != jepa_fast::Scalar::float64,
      "vicreg: x: got float64 on cuda, expected float32 or bfloat16: float64 is for the CPU");
  STD_TORCH_CHECK(in.groups.groups <= 65535, "vicreg: x: got G = ", in.groups.groups, " groups, expected at most 65535");
  STD_TORCH_CHECK(
      !in.target || in.target->get_device_index() == in.x.get_device_index(), "vicreg: target: expected on the device of x");
}

std::tuple<Tensor, Tensor, Tensor> vicreg_cuda(
    Tensor input, std::optional<Tensor> target, double gamma, double eps, double divisor) {
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  const VicregInputs in = prepare_vicreg(input, target, gamma, eps, divisor);
  check_cuda_limits(in);
  const jepa_fast::Groups& x = in.groups;
  const jepa_fast::VicregCudaPlan plan = jepa_fast::vicreg_plan_cuda(x);
  const auto empty = [&](std::initializer_list<int64_t> shape, ScalarType dtype) {
    return torch::stable::new_empty(in.x, shape, dtype);
  };
  const Tensor sums = empty({x.groups, plan.chunks, x.columns}, ScalarType::Double);
  const Tensor errors = empty({x.groups, plan.chunks, plan.column_blocks}, ScalarType::Double);
  const Tensor partials = empty({x.groups, plan.splits, plan.triangle, plan.partial_values}, ScalarType::Float);
  const Tensor block_terms = empty({x.groups, plan.triangle, plan.term_blocks, 2}, ScalarType::Double);
  const Tensor mean = empty({x.groups, x.columns}, ScalarType::Double);
  const Tensor covariance = empty({x.groups, x.columns, x.columns}, ScalarType::Float);
  const Tensor terms = empty({3}, ScalarType::Float);
  const jepa_fast::VicregCudaSpace space{
      sums.mutable_data_ptr<double>(), errors.mutable_data_ptr<double>(), partials.mutable_data_ptr<float>(),
      block_terms.mutable_data_ptr<double>()};
  STD_CUDA_CHECK(static_cast<cudaError_t>(jepa_fast::vicreg_cuda(
      x, in.target_or_null(), in.options, plan, space, mean.mutable_data_ptr<double>(),
      covariance.mutable_data_ptr<float>(), terms.mutable_data_ptr<float>(), jepa_fast::current_stream(in.x))));
  return {terms, mean, covariance};
}

std::tuple<Tensor, Tensor> vicreg_backward_cuda(
    Tensor gradients, Tensor input, std::optional<Tensor> target, Tensor mean, Tensor covariance, double gamma,
    double eps, double divisor, bool target_gradient) {
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  const VicregInputs in = prepare_vicreg(input, target, gamma, eps, divisor);
  check_cuda_limits(in);
  const VicregGradientTensors t = prepare_vicreg_gradient(in, gradients, mean, covariance, target_gradient);
  STD_CUDA_CHECK(static_cast<cudaError_t>(jepa_fast::vicreg_backward_cuda(
      in.groups, in.target_or_null(), in.options, t.gradients.const_data_ptr<float>(),
      t.mean.const_data_ptr<double>(), t.covariance.const_data_ptr<float>(), t.dx.mutable_data_ptr(),
      t.dtarget_or_null(), jepa_fast::current_stream(in.x))));
  return {t.dx, t.dtarget};
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(jepa_fast, m) {
  m.def(
      "vicreg(Tensor x, Tensor? target, float gamma, float eps, float divisor) -> "
      "(Tensor terms, Tensor mean, Tensor covariance)");
  m.def(
      "vicreg_backward(Tensor gradients, Tensor x, Tensor? target, Tensor mean, Tensor covariance, float gamma, "
      "float eps, float divisor, bool target_gradient) -> (Tensor x_gradient, Tensor target_gradient)");
}

STABLE_TORCH_LIBRARY_IMPL(jepa_fast, CPU, m) {
  m.impl("vicreg", TORCH_BOX(&vicreg_cpu));
  m.impl("vicreg_backward", TORCH_BOX(&vicreg_backward_cpu));
}

#ifdef JEPA_FAST_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(jepa_fast, CUDA, m) {
  m.impl("vicreg", TORCH_BOX(&vicreg_cuda));
  m.impl("vicreg_backward", TORCH_BOX(&vicreg_backward_cuda));
}
#endif
