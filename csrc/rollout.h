// All steps of the predictor on the CPU, free of torch: formulas in kernels/rollout.py.
//
// T is float or double. Trajectories are worked on in blocks, each through all steps; a trajectory's values do not depend on
// its block. Sums of gradients are taken in T over a block's rows or `rollout_sum_rows` rows, in double beyond, in an order
// that is the sizes' alone.
#pragma once

#include <cstdint>

#include "dropout.h"

namespace jepa_fast {

// Rows of a matrix's gradient that are one task, and rows of trajectories and steps that are summed in T.
constexpr int64_t rollout_matrix_rows = 48;
constexpr int64_t rollout_sum_rows = 512;

// Trajectories of a block: small batches are shared out among threads, large ones read the weights once for many.
constexpr int64_t rollout_block(int64_t batch) { return batch <= 64 ? 8 : 24; }
constexpr int64_t rollout_blocks(int64_t batch) { return (batch + rollout_block(batch) - 1) / rollout_block(batch); }

// Parameters, each contiguous, in the order of the op's weights.
struct RolloutParameters {
  const void *state_norm_weight, *state_norm_bias;    // [D]
  const void *action_weight, *action_bias;            // [D, A], [D]
  const void *action_norm_weight, *action_norm_bias;  // [D]
  const void *expand_weight, *expand_bias;            // [4D, D], [4D]
  const void *norm_weight, *norm_bias;                // [4D]
  const void *project_weight, *project_bias;          // [D, 4D], [D]
};

// The numbers of the gradients of all parameters but both matrices: expand_bias, norm_weight, norm_bias [4D], project_bias,
// state_norm_weight, state_norm_bias, action_norm_weight, action_norm_bias, action_bias [D], action_weight [D, A].
constexpr int64_t rollout_vectors(int64_t dim, int64_t action_size) { return (18 + action_size) * dim; }

struct Rollout {
  const void* first;    // [B, D]
  const void* actions;  // [B, S, A]
  const void* packed;   // the parameters as `pack` leaves them
  int64_t batch, steps, dim, action_size;
  DropoutKeys keys;
  int64_t first_element;  // of the mask [B, S, 4D]
  bool dropout;
  bool state_residual;
  bool gelu_first;
};

struct RolloutResults {
  void* states;      // [B, S, D]
  void* hidden;      // [B, S, 4D], and these only where they are kept, else null
  void* dropped;     // [B, S, 4D]
  void* statistics;  // [B, S, 2]
};

struct RolloutGradients {
  const void* to_states;  // [B, S, D]
  const void *states, *hidden, *dropped, *statistics;
  void* to_first;    // [B, D]
  void* to_actions;  // [B, S, A], or null
  // What both matrices' gradients are products of: [B S, 4D], and twice [B S, rollout_padded (D)].
  void* to_hidden;
  void* fused;
  void* totals;
  double* vectors;  // [blocks, rollout_vectors]
  void* to_expand;   // [4D, D]
  void* to_project;  // [D, 4D]
};

struct RolloutKernels {
  int64_t (*padded)(int64_t dim);
  // Numbers that `pack` writes.
  int64_t (*packed_size)(int64_t dim, int64_t action_size);
  void (*pack)(const RolloutParameters&, int64_t dim, int64_t action_size, bool backward, void* packed);
  void (*forward)(const Rollout&, const RolloutResults&, int64_t block);
  // All but the matrices' gradients; then those, task by task of rows of [to_expand; to_project transposed].
  void (*backward)(const Rollout&, const RolloutGradients&, int64_t block);
  void (*matrices)(const Rollout&, const RolloutGradients&, int64_t task);
};

// Tasks of `matrices`.
constexpr int64_t rollout_matrix_tasks(int64_t dim) {
  return 2 * ((4 * dim + rollout_matrix_rows - 1) / rollout_matrix_rows);
}

// Of the instruction set that `convnext_kernels` chooses. Null: JEPA_FAST_CPU_ISA names one that is not here.
const RolloutKernels* rollout_kernels(bool is_double);

}  // namespace jepa_fast
