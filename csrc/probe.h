// Steps of Adam on a probe, a network D -> H -> 2 with ReLU under the mean squared error, free of torch.
#pragma once

#include <cstdint>

namespace jepa_fast {

// Samples of a step are cut into so many chunks, whatever the number of threads.
constexpr int64_t probe_chunks = 16;

// Parameters, and Adam's moments like them, lie as W1 transposed [D, H], b1 [H], W2 [2, H], b2 [2]. The kernels read W1
// as panels of columns, [D, columns] each, one after the other; the last may be narrower.
constexpr int64_t probe_size(int64_t dim, int64_t hidden) { return dim * hidden + 3 * hidden + 2; }

// Rows of gathered latents: padded, since rows a power of two apart share few of the cache's places.
constexpr int64_t probe_row(int64_t dim) { return (dim + 15) / 16 * 16 + 16; }

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

struct ProbeWork {
  float* x;       // [B K, probe_row]: the samples' latents
  float* slopes;  // of the loss by pre-activations, as panels [B K, columns]
  float* sums;    // [probe_chunks, 3 H + 2]: of each chunk the gradients of b1, W2 and b2
};

struct ProbeAdam {
  float* parameters;
  float* mean;
  float* square;
  double rate;
  int64_t step;  // from 1
};

struct ProbeKernels {
  int64_t panel_columns;
  // Forward and the slopes, of the samples of a chunk.
  void (*forward)(const ProbeStep&, const float* parameters, int64_t chunk, const ProbeWork&);
  // The gradients of a panel of hidden units, and Adam on its parameters; b2 goes with panel 0.
  void (*update)(const ProbeStep&, const ProbeAdam&, const ProbeWork&, int64_t panel);
  // W2 relu(W1 x + b1) + b2 of rows [first, last) of latents [M, D], into [M, 2].
  void (*outputs)(
      const float* latents, int64_t dim, int64_t hidden, const float* parameters, int64_t first, int64_t last, float* out);
};

// Of the instruction set that `convnext_kernels` chooses. Null: JEPA_FAST_CPU_ISA names one that is not here.
const ProbeKernels* probe_kernels();

}  // namespace jepa_fast
