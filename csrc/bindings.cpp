// Schemas and registrations of jepa_fast._C: the only file that sees torch, through its stable API alone.
//
// The library holds no Python: `torch.ops.load_library` loads it, so one binary serves every Python and, built for
// TORCH_TARGET_VERSION, every torch from 2.11 on.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>

#include "vicreg.h"

#ifdef JEPA_FAST_WITH_CUDA
#include <cuda_runtime.h>
#include <torch/csrc/stable/macros.h>
#endif

#if TORCH_ABI_VERSION < TORCH_TARGET_VERSION
#error "jepa_fast._C needs torch 2.11 or newer to compile"
#endif

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

jepa_fast::Scalar scalar_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return jepa_fast::Scalar::float32;
    case ScalarType::Double:
      return jepa_fast::Scalar::float64;
    case ScalarType::BFloat16:
      return jepa_fast::Scalar::bfloat16;
    default:
      STD_TORCH_CHECK(
          false, "column_moments: x: got dtype ", torch::headeronly::toString(x.scalar_type()),
          ", expected float32, float64 or bfloat16");
  }
}

struct ColumnMomentsTensors {
  Tensor x;         // [N, D], columns adjacent
  Tensor partials;  // float64 [2, chunks, D]
  Tensor mean;      // [D]
  Tensor variance;  // [D]
  jepa_fast::Matrix matrix;

  double* means() const { return partials.mutable_data_ptr<double>(); }
  double* squares() const { return means() + partials.size(1) * partials.size(2); }
};

ColumnMomentsTensors prepare_column_moments(const Tensor& input) {
  STD_TORCH_CHECK(input.dim() == 2, "column_moments: x: got ", input.dim(), " dimensions, expected 2: [N, D]");
  STD_TORCH_CHECK(input.size(0) >= 2, "column_moments: x: got N = ", input.size(0), " rows, expected at least 2");
  const jepa_fast::Scalar scalar = scalar_of(input);
  const bool adjacent = input.stride(1) == 1;
  const Tensor x = adjacent ? input : torch::stable::contiguous(input);
  const int64_t rows = x.size(0);
  const int64_t columns = x.size(1);
  const ScalarType result = scalar == jepa_fast::Scalar::float64 ? ScalarType::Double : ScalarType::Float;
  return {
      x,
      torch::stable::new_empty(x, {2, jepa_fast::chunk_count(rows), columns}, ScalarType::Double),
      torch::stable::new_empty(x, {columns}, result),
      torch::stable::new_empty(x, {columns}, result),
      {x.const_data_ptr(), scalar, rows, columns, x.stride(0)}};
}

std::tuple<Tensor, Tensor> column_moments_cpu(Tensor x) {
  const ColumnMomentsTensors t = prepare_column_moments(x);
  // Chunks per task: a few thousand values pay for waking a thread.
  const int64_t chunk_values = jepa_fast::rows_per_chunk(t.matrix.rows) * std::max<int64_t>(t.matrix.columns, 1);
  const int64_t grain = std::max<int64_t>(1, 32768 / chunk_values);
  torch::stable::parallel_for(0, jepa_fast::chunk_count(t.matrix.rows), grain, [&](int64_t first, int64_t last) {
    jepa_fast::column_moments_chunks_cpu(t.matrix, first, last, t.means(), t.squares());
  });
  jepa_fast::column_moments_merge_cpu(
      t.matrix, t.means(), t.squares(), t.mean.mutable_data_ptr(), t.variance.mutable_data_ptr());
  return {t.mean, t.variance};
}

#ifdef JEPA_FAST_WITH_CUDA
std::tuple<Tensor, Tensor> column_moments_cuda(Tensor x) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const ColumnMomentsTensors t = prepare_column_moments(x);
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  STD_CUDA_CHECK(static_cast<cudaError_t>(jepa_fast::column_moments_cuda(
      t.matrix, t.means(), t.squares(), t.mean.mutable_data_ptr(), t.variance.mutable_data_ptr(), stream)));
  return {t.mean, t.variance};
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY(jepa_fast, m) {
  m.def("column_moments(Tensor x) -> (Tensor mean, Tensor variance)");
}

STABLE_TORCH_LIBRARY_IMPL(jepa_fast, CPU, m) {
  m.impl("column_moments", TORCH_BOX(&column_moments_cpu));
}

#ifdef JEPA_FAST_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(jepa_fast, CUDA, m) {
  m.impl("column_moments", TORCH_BOX(&column_moments_cuda));
}
#endif
