// How likely an agent moves, from where lines lie around it, free of torch: two small networks; formulas in
// kernels/feature_gate.py. T is float or double. Sums of gradients are taken in T over a block of steps, in double beyond, in
// fixed chunks.
#pragma once

#include <cstdint>

namespace jepa_fast {

// Steps that go through the networks together, and blocks of them that are a chunk.
constexpr int64_t gate_block = 32;
constexpr int64_t gate_chunk_blocks = 2;

// N steps of B trajectories, T of each in turn.
struct FeatureGate {
  const void* positions;  // [N, 2]
  const void* layout;     // [B, 2, 2, 2]: borders and wall, x and y, low and high
  const void* actions;    // [N, 2]
  const void *border_expand, *border_project;              // [Hb, 3], [1, Hb]
  const void *wall_expand, *wall_middle, *wall_project;    // [Hw, 5], [Hw, Hw], [1, Hw]
  int64_t count, steps;                  // N, T
  int64_t border_hidden, wall_hidden;  // multiples of 16
  double reach, surest;
};

// Numbers of the gradients of all parameters: border_expand transposed [3, Hb], border_project, wall_expand transposed
// [5, Hw], wall_middle transposed [Hw, Hw], wall_project.
constexpr int64_t gate_sums(int64_t border_hidden, int64_t wall_hidden) {
  return 4 * border_hidden + (6 + wall_hidden) * wall_hidden;
}

struct FeatureGateKernels {
  // Logarithms of the probabilities of staying and of moving of steps [first, last).
  void (*forward)(const FeatureGate&, void* log_stay, void* log_move, int64_t first, int64_t last);
  // Their gradients to positions [N, 2], and added to sums [gate_sums].
  void (*backward)(
      const FeatureGate&, const void* to_stay, const void* to_move, void* to_positions, double* sums, int64_t first,
      int64_t last);
};

// Null: JEPA_FAST_CPU_ISA names an instruction set that is not here.
const FeatureGateKernels* feature_gate_kernels(bool is_double);

}  // namespace jepa_fast
