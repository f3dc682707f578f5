// Steps of Adam on a probe, a network D -> H -> 2 with ReLU under the mean squared error, free of torch.
#pragma once

#include <cstdint>

namespace jepa_fast {

// Samples of a step are cut into so many chunks, whatever the number of threads.
constexpr int64_t probe_chunks = 16;

// Parameters, their gradients and Adam's moments lie as W1 transposed [D, H], b1 [H], W2 [2, H], b2 [2].
constexpr int64_t probe_size(int64_t dim, int64_t hidden) { return dim * hidden + 3 * hidden + 2; }

struct ProbeStep {
  const float* latents;   // [N, T, D]
  const float* targets;   // [N, T, 2]
  const int64_t* rows;    // [B]: trajectories of the step
  const int64_t* steps;   // [B, K]: of each its time steps, or null for all T
  int64_t length;         // T
  int64_t batch;
  int64_t kept;           // K, or T
  int64_t dim;
  int64_t hidden;         // a multiple of 16
};

struct ProbeAdam {
  float* parameters;
  float* mean;
  float* square;
  double rate;
  int64_t step;  // from 1
};

struct ProbeKernels {
  // The gradient's share of chunk `chunk`, into gradients [probe_chunks, probe_size].
  void (*gradient)(const ProbeStep&, const float* parameters, int64_t chunk, float* gradients);
  // Adam on parameters [first, last), their gradients the sums over the chunks.
  void (*adam)(const ProbeAdam&, const float* gradients, int64_t size, int64_t first, int64_t last);
};

// Of the instruction set that `convnext_kernels` chooses. Null: JEPA_FAST_CPU_ISA names one that is not here.
const ProbeKernels* probe_kernels();

}  // namespace jepa_fast
