// Parts of the gated family, free of torch: the lift's columns and the likelihood of two outcomes; formulas in
// kernels/gated.py. T is float or double.
#pragma once

#include <cstdint>

namespace jepa_fast {

// Columns [D, 2], orthogonal and of length `spread`, of a weight [D, 2].
template <typename T>
void gated_columns(const T* weight, int64_t dim, double spread, T* columns);

// The gradient of the weight from that of the columns.
template <typename T>
void gated_columns_backward(const T* gradient, const T* weight, int64_t dim, double spread, T* to_weight);

template <typename T>
struct GatedLikelihood {
  const T* latents;   // [B, T + 1, D]
  const T* step;      // [B, T, D]
  const T* log_stay;  // [B, T]
  const T* log_move;  // [B, T]
  int64_t steps, dim;
  double sigma;
};

// Of a trajectory the sums of -log likelihood, squared errors of the expected latents and probabilities of moving, into
// sums [3]; and those latents, into [B, T, D].
template <typename T>
void gated_likelihood(const GatedLikelihood<T>& at, int64_t trajectory, T* expected, double* sums);

// Of a trajectory the gradients of `scale` times the sum of -log likelihood.
template <typename T>
void gated_likelihood_backward(
    const GatedLikelihood<T>& at, int64_t trajectory, double scale, T* to_latents, T* to_step, T* to_stay, T* to_move);

}  // namespace jepa_fast
