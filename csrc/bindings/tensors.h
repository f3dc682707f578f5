// What the bindings share: torch's stable API, which nothing outside this folder sees.
//
// The library holds no Python: `torch.ops.load_library` loads it, so one binary serves every Python and, built for
// TORCH_TARGET_VERSION, every torch from 2.11 on.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/shim_utils.h>

#include "scalar.h"

#ifdef JEPA_FAST_WITH_CUDA
#include <cuda_runtime.h>
#include <torch/csrc/stable/macros.h>
#endif

#if TORCH_ABI_VERSION < TORCH_TARGET_VERSION
#error "jepa_fast._C needs torch 2.11 or newer to compile"
#endif

namespace jepa_fast {

inline Scalar scalar_of(const torch::stable::Tensor& x, const char* op) {
  using torch::headeronly::ScalarType;
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return Scalar::float32;
    case ScalarType::Double:
      return Scalar::float64;
    case ScalarType::BFloat16:
      return Scalar::bfloat16;
    default:
      STD_TORCH_CHECK(
          false, op, ": x: got dtype ", torch::headeronly::toString(x.scalar_type()),
          ", expected float32, float64 or bfloat16");
  }
}

#ifdef JEPA_FAST_WITH_CUDA
inline void* current_stream(const torch::stable::Tensor& x) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  return stream;
}
#endif

}  // namespace jepa_fast
