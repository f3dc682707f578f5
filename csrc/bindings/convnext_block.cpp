// Schemas and registrations of convnext_block on the CPU. The operator itself, for all devices, is kernels/convnext_block.py.
#include <algorithm>
#include <numeric>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "bindings/blocks.h"
#include "cpu/convnext/plan.h"

namespace {

using namespace jepa_fast;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using torch::stable::unsqueeze;

constexpr const char* op = "convnext_block";

PackedBlocks pack_block(
    const Tensor& weight, const Tensor& gamma, const Tensor& beta, const Tensor& expand, const Tensor& project, double eps) {
  return pack_blocks(
      op, unsqueeze(weight, 0), unsqueeze(gamma, 0), unsqueeze(beta, 0), unsqueeze(expand, 0), unsqueeze(project, 0), eps);
}

ImageBlock block_of(const Tensor& x, const PackedBlocks& packed, const std::vector<int64_t>& padding, double eps) {
  STD_TORCH_CHECK(
      x.dim() == 4 && x.size(3) == packed.channels && x.scalar_type() == packed.packed.scalar_type(), op,
      ": x: expected [N, H, W, C] with the channels and the dtype of the weight");
  STD_TORCH_CHECK(padding.size() == 2, op, ": padding: expected two numbers");
  for (int axis = 0; axis < 2; ++axis) {
    const int64_t pad = padding[static_cast<size_t>(axis)];
    STD_TORCH_CHECK(
        pad >= 0 && pad <= 6 && x.size(axis + 1) + 2 * pad >= 7, op, ": padding: got ", pad,
        ", expected 0 to 6, and at least one pixel out");
  }
  return {x.const_data_ptr(), packed.packed.const_data_ptr(), nullptr,    x.size(0),  x.size(1),
          x.size(2),          packed.channels,                padding[0], padding[1], eps};
}

std::tuple<Tensor, Tensor, Tensor> convnext_block_cpu(
    Tensor input, Tensor weight, Tensor gamma, Tensor beta, Tensor expand, Tensor project, std::optional<Tensor> addend,
    std::vector<int64_t> padding, double eps, bool keep) {
  const PackedBlocks packed = pack_block(weight, gamma, beta, expand, project, eps);
  const Tensor x = torch::stable::contiguous(input);
  ImageBlock block = block_of(x, packed, padding, eps);
  const auto shape = {block.images, block.height_out(), block.width_out(), block.channels};
  if (addend) {
    addend = checked(op, "addend", *addend, shape, packed.packed);
    block.addend = addend->const_data_ptr();
  }
  const Tensor y = torch::stable::new_empty(x, shape);
  const Tensor z = torch::stable::new_empty(x, shape);
  const Tensor update =
      torch::stable::new_empty(x, {keep ? block.images : 0, block.height_out(), block.width_out(), block.channels});
  const ImageResults results{
      y.mutable_data_ptr(), z.mutable_data_ptr(), keep ? update.mutable_data_ptr() : nullptr};
  torch::stable::parallel_for(
      0, block.images * convnext_bands(block.height_out()), 1,
      [&](int64_t first, int64_t last) { packed.kernels->bands(block, results, first, last); });
  return {y, z, update};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> convnext_block_backward_cpu(
    Tensor to_y, std::optional<Tensor> to_z, std::optional<Tensor> to_update, Tensor input, Tensor z, Tensor weight,
    Tensor gamma, Tensor beta, Tensor expand, Tensor project, std::vector<int64_t> padding, double eps) {
  const PackedBlocks packed = pack_block(weight, gamma, beta, expand, project, eps);
  const Tensor x = torch::stable::contiguous(input);
  const ImageBlock block = block_of(x, packed, padding, eps);
  const auto shape = {block.images, block.height_out(), block.width_out(), block.channels};
  to_y = checked(op, "dy", to_y, shape, packed.packed);
  z = checked(op, "z", z, shape, packed.packed);
  if (to_z) to_z = checked(op, "dz", *to_z, shape, packed.packed);
  if (to_update) to_update = checked(op, "dupdate", *to_update, shape, packed.packed);
  const Tensor z_gradient = torch::stable::new_empty(x, shape);
  const Tensor x_gradient = torch::stable::new_empty(x, {block.images, block.height, block.width, block.channels});
  // Both passes are cut into as many chunks, each into bands of its own rows.
  const int64_t bands_out = block.images * convnext_bands(block.height_out());
  const int64_t bands_in = block.images * convnext_bands(block.height);
  const int64_t size = convnext_sums_size(block.channels);
  const int64_t chunks = convnext_chunks(std::min(bands_out, bands_in), size);
  const Tensor sums = torch::stable::new_zeros(x, {chunks, size}, ScalarType::Double);
  const ImageGradients gradients{
      to_y.const_data_ptr(),
      to_z ? to_z->const_data_ptr() : nullptr,
      to_update ? to_update->const_data_ptr() : nullptr,
      z.const_data_ptr(),
      z_gradient.mutable_data_ptr(),
      x_gradient.mutable_data_ptr(),
      sums.mutable_data_ptr<double>()};
  torch::stable::parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) {
    for (int64_t chunk = first; chunk < last; ++chunk) {
      packed.kernels->bands_backward(
          block, gradients, bands_out * chunk / chunks, bands_out * (chunk + 1) / chunks, chunk);
    }
  });
  torch::stable::parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) {
    for (int64_t chunk = first; chunk < last; ++chunk) {
      packed.kernels->bands_convolution_backward(
          block, gradients, bands_in * chunk / chunks, bands_in * (chunk + 1) / chunks, chunk);
    }
  });
  const int64_t channels = block.channels;
  const auto like = [&](std::initializer_list<int64_t> sizes) { return torch::stable::new_empty(x, sizes); };
  const Tensor to_weight = like({channels, 1, 7, 7});
  const Tensor to_gamma = like({channels});
  const Tensor to_beta = like({channels});
  const Tensor to_expand = like({4 * channels, channels});
  const Tensor to_project = like({channels, 4 * channels});
  const auto finish = [&]<typename T>(T*) {
    const auto data = [](const Tensor& tensor) { return static_cast<T*>(tensor.mutable_data_ptr()); };
    finish_parameters<T>(
        sums.const_data_ptr<double>(), chunks, size, channels,
        {data(to_weight), data(to_gamma), data(to_beta), data(to_expand), data(to_project)});
  };
  if (x.scalar_type() == ScalarType::Double) {
    finish(static_cast<double*>(nullptr));
  } else {
    finish(static_cast<float*>(nullptr));
  }
  return {x_gradient, z_gradient, to_weight, to_gamma, to_beta, to_expand, to_project};
}

std::string cpu_instruction_set() {
  const ConvNextKernels* const kernels = convnext_kernels(false);
  return kernels == nullptr ? "" : kernels->instruction_set;
}

// FLOPs of so many steps of multiply-adds on each of the threads.
double multiply_adds_cpu(int64_t steps) {
  const ConvNextKernels* const kernels = convnext_kernels(false);
  STD_TORCH_CHECK(kernels != nullptr, "multiply_adds: JEPA_FAST_CPU_ISA names no instruction set that this processor has");
  const int64_t threads = torch::stable::get_num_threads();
  std::vector<double> flops(static_cast<size_t>(threads));
  torch::stable::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) flops[static_cast<size_t>(i)] = kernels->multiply_adds(steps);
  });
  return std::accumulate(flops.begin(), flops.end(), 0.0);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(jepa_fast, m) {
  m.def(
      "convnext_block_cpu(Tensor x, Tensor weight, Tensor gamma, Tensor beta, Tensor expand, Tensor project, "
      "Tensor? addend, int[] padding, float eps, bool keep) -> (Tensor y, Tensor z, Tensor update)");
  m.def(
      "convnext_block_cpu_backward(Tensor dy, Tensor? dz, Tensor? dupdate, Tensor x, Tensor z, Tensor weight, "
      "Tensor gamma, Tensor beta, Tensor expand, Tensor project, int[] padding, float eps) -> "
      "(Tensor dx, Tensor dz_all, Tensor dweight, Tensor dgamma, Tensor dbeta, Tensor dexpand, Tensor dproject)");
  m.def("cpu_instruction_set() -> str");
  m.def("multiply_adds(int steps) -> float");
}

STABLE_TORCH_LIBRARY_IMPL(jepa_fast, CPU, m) {
  m.impl("convnext_block_cpu", TORCH_BOX(&convnext_block_cpu));
  m.impl("convnext_block_cpu_backward", TORCH_BOX(&convnext_block_backward_cpu));
}

STABLE_TORCH_LIBRARY_IMPL(jepa_fast, CompositeExplicitAutograd, m) {
  m.impl("cpu_instruction_set", TORCH_BOX(&cpu_instruction_set));
  m.impl("multiply_adds", TORCH_BOX(&multiply_adds_cpu));
}
