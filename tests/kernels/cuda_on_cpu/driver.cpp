// What the test calls: both directions on host memory, with work space full of NaN.
#include <cmath>
#include <vector>

#include "vicreg.h"

using jepa_fast::Groups;

namespace {

// shape: G, N, D, then group and row stride of x and of the target.
Groups groups_of(const void* data, bool bfloat16, const int64_t* shape, const int64_t* strides) {
  const auto scalar = bfloat16 ? jepa_fast::Scalar::bfloat16 : jepa_fast::Scalar::float32;
  return {data, scalar, shape[0], shape[1], shape[2], strides[0], strides[1]};
}

}  // namespace

extern "C" int vicreg_forward(
    const void* x_data, const void* target_data, bool bfloat16, const int64_t* shape, double gamma, double eps,
    double divisor, int64_t split_rows, double* mean, float* covariance, float* terms) {
  const Groups x = groups_of(x_data, bfloat16, shape, shape + 3);
  const Groups target = groups_of(target_data, bfloat16, shape, shape + 5);
  jepa_fast::VicregCudaPlan plan = jepa_fast::vicreg_plan_cuda(x);
  if (split_rows > 0) {
    plan.split_rows = split_rows;
    plan.splits = (x.rows + split_rows - 1) / split_rows;
  }
  const auto size = [](auto... sizes) { return static_cast<size_t>((sizes * ... * 1)); };
  std::vector<double> sums(size(x.groups, plan.chunks, x.columns), NAN);
  std::vector<double> errors(size(x.groups, plan.chunks, plan.column_blocks), NAN);
  std::vector<float> partials(size(x.groups, plan.splits, plan.triangle, plan.partial_values), NAN);
  std::vector<double> block_terms(size(x.groups, plan.triangle, plan.term_blocks, int64_t{2}), NAN);
  const jepa_fast::VicregCudaSpace space{sums.data(), errors.data(), partials.data(), block_terms.data()};
  return jepa_fast::vicreg_cuda(
      x, target_data == nullptr ? nullptr : &target, {gamma, eps, divisor}, plan, space, mean, covariance, terms,
      nullptr);
}

extern "C" int vicreg_backward(
    const float* gradients, const void* x_data, const void* target_data, bool bfloat16, const int64_t* shape,
    double gamma, double eps, double divisor, const double* mean, const float* covariance, void* dx, void* dtarget) {
  const Groups x = groups_of(x_data, bfloat16, shape, shape + 3);
  const Groups target = groups_of(target_data, bfloat16, shape, shape + 5);
  return jepa_fast::vicreg_backward_cuda(
      x, target_data == nullptr ? nullptr : &target, {gamma, eps, divisor}, gradients, mean, covariance, dx, dtarget,
      nullptr);
}
