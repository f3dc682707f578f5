// Which build of the kernels this processor gets, and the threads' work space.
#include <cstdlib>
#include <memory>
#include <string_view>

#include "convnext.h"
#include "feature_gate.h"
#include "locate.h"
#include "probe.h"
#include "rollout.h"

namespace jepa_fast {

#if defined(__x86_64__)
const ConvNextKernels* convnext_kernels_avx512(bool is_double);
const ConvNextKernels* convnext_kernels_avx2(bool is_double);
const ConvNextKernels* convnext_kernels_baseline(bool is_double);
#elif defined(__aarch64__)
const ConvNextKernels* convnext_kernels_neon(bool is_double);
#else
const ConvNextKernels* convnext_kernels_baseline(bool is_double);
#endif

namespace {

using Build = const ConvNextKernels* (*)(bool);

struct Candidate {
  std::string_view name;
  Build build;
  bool runs_here;
};

Build choose() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                    __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  const Candidate candidates[] = {
      {"avx512", convnext_kernels_avx512, avx512},
      {"avx2", convnext_kernels_avx2, avx2},
      {"baseline", convnext_kernels_baseline, true}};
#elif defined(__aarch64__)
  const Candidate candidates[] = {{"neon", convnext_kernels_neon, true}};
#else
  const Candidate candidates[] = {{"baseline", convnext_kernels_baseline, true}};
#endif
  const char* const variable = std::getenv("JEPA_FAST_CPU_ISA");
  const std::string_view wanted = variable == nullptr ? "" : variable;
  for (const Candidate& candidate : candidates) {
    if (candidate.runs_here && (wanted.empty() || wanted == candidate.name)) return candidate.build;
  }
  return nullptr;
}

}  // namespace

const ConvNextKernels* convnext_kernels(bool is_double) {
  static const Build build = choose();
  return build == nullptr ? nullptr : build(is_double);
}

const ProbeKernels* probe_kernels() {
  const ConvNextKernels* const kernels = convnext_kernels(false);
  return kernels == nullptr ? nullptr : kernels->probe;
}

const RolloutKernels* rollout_kernels(bool is_double) {
  const ConvNextKernels* const kernels = convnext_kernels(is_double);
  return kernels == nullptr ? nullptr : kernels->rollout;
}

const LocateKernels* locate_kernels(bool is_double) {
  const ConvNextKernels* const kernels = convnext_kernels(is_double);
  return kernels == nullptr ? nullptr : kernels->locate;
}

const FeatureGateKernels* feature_gate_kernels(bool is_double) {
  const ConvNextKernels* const kernels = convnext_kernels(is_double);
  return kernels == nullptr ? nullptr : kernels->feature_gate;
}

void* convnext_work_space(size_t bytes) {
  // As long as its thread: a fresh one would be mapped and faulted in anew for every task.
  struct Space {
    std::unique_ptr<std::byte, decltype(&std::free)> memory{nullptr, &std::free};
    size_t bytes = 0;
  };
  thread_local Space space;
  if (space.bytes < bytes) {
    const size_t rounded = (bytes + 63) / 64 * 64;
    space.memory.reset(static_cast<std::byte*>(std::aligned_alloc(64, rounded)));
    space.bytes = space.memory == nullptr ? 0 : rounded;
    if (space.memory == nullptr) throw std::bad_alloc();
  }
  return space.memory.get();
}

}  // namespace jepa_fast
