// What the bindings of convnext_block and window_chain share.
#pragma once

#include <initializer_list>

#include "bindings/tensors.h"
#include "convnext.h"

namespace jepa_fast {

// Parameters of L blocks, packed as the kernels read them.
struct PackedBlocks {
  torch::stable::Tensor packed;  // [L, convnext_packed_size]
  const ConvNextKernels* kernels;
  int64_t blocks;
  int64_t channels;
};

// Raises unless `x` is contiguous after `contiguous`, of the expected shape and of the dtype and device of `like`.
inline torch::stable::Tensor checked(
    const char* op, const char* name, const torch::stable::Tensor& x, std::initializer_list<int64_t> shape,
    const torch::stable::Tensor& like) {
  bool fits = x.dim() == static_cast<int64_t>(shape.size());
  int64_t axis = 0;
  for (const int64_t size : shape) fits = fits && x.size(axis++) == size;
  STD_TORCH_CHECK(fits, op, ": ", name, ": does not have the shape that the other arguments imply");
  STD_TORCH_CHECK(
      x.scalar_type() == like.scalar_type(), op, ": ", name, ": got dtype ",
      torch::headeronly::toString(x.scalar_type()), ", expected ", torch::headeronly::toString(like.scalar_type()));
  return torch::stable::contiguous(x);
}

inline bool is_double(const char* op, const torch::stable::Tensor& x) {
  const Scalar scalar = scalar_of(x, op);
  STD_TORCH_CHECK(scalar != Scalar::bfloat16, op, ": got dtype BFloat16, expected float32 or float64");
  return scalar == Scalar::float64;
}

// Calls f(T()) with the type of x.
template <typename F>
void by_type(const char* op, const torch::stable::Tensor& x, const F& f) {
  is_double(op, x) ? f(double()) : f(float());
}

// weight [L, C, 1, 7, 7], gamma and beta [L, C], expand [L, 4C, C], project [L, C, 4C].
inline PackedBlocks pack_blocks(
    const char* op, const torch::stable::Tensor& weight, const torch::stable::Tensor& gamma,
    const torch::stable::Tensor& beta, const torch::stable::Tensor& expand, const torch::stable::Tensor& project,
    double eps) {
  STD_TORCH_CHECK(weight.dim() == 5, op, ": weight: got ", weight.dim(), " dimensions, expected 5: [L, C, 1, 7, 7]");
  const int64_t blocks = weight.size(0);
  const int64_t channels = weight.size(1);
  STD_TORCH_CHECK(blocks >= 1, op, ": weight: got L = 0 blocks, expected at least 1");
  STD_TORCH_CHECK(
      channels >= convnext_channel_step && channels <= convnext_most_channels && channels % convnext_channel_step == 0, op,
      ": weight: got C = ", channels, " channels, expected a multiple of 8 up to ", convnext_most_channels);
  const ConvNextKernels* const kernels = convnext_kernels(is_double(op, weight));
  STD_TORCH_CHECK(kernels != nullptr, op, ": JEPA_FAST_CPU_ISA names no instruction set that this processor has");
  const auto packed = torch::stable::new_empty(weight, {blocks, convnext_packed_size(channels)});
  const auto taps = checked(op, "weight", weight, {blocks, channels, 1, 7, 7}, weight);
  const auto scale = checked(op, "gamma", gamma, {blocks, channels}, weight);
  const auto shift = checked(op, "beta", beta, {blocks, channels}, weight);
  const auto wide = checked(op, "expand", expand, {blocks, 4 * channels, channels}, weight);
  const auto narrow = checked(op, "project", project, {blocks, channels, 4 * channels}, weight);
  kernels->pack(
      {taps.const_data_ptr(), scale.const_data_ptr(), shift.const_data_ptr(), wide.const_data_ptr(),
       narrow.const_data_ptr(), blocks, channels, eps},
      packed.mutable_data_ptr());
  return {packed, kernels, blocks, channels};
}

// Gradients like the parameters of L blocks.
struct BlockGradients {
  torch::stable::Tensor weight, gamma, beta, expand, project;

  BlockGradients(const torch::stable::Tensor& like, int64_t blocks, int64_t channels)
      : weight(torch::stable::new_empty(like, {blocks, channels, 1, 7, 7})),
        gamma(torch::stable::new_empty(like, {blocks, channels})),
        beta(torch::stable::new_empty(like, {blocks, channels})),
        expand(torch::stable::new_empty(like, {blocks, 4 * channels, channels})),
        project(torch::stable::new_empty(like, {blocks, channels, 4 * channels})) {}
};

}  // namespace jepa_fast
