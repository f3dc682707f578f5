// Where in windows something is, free of torch: two small convolutions and the softmax of a frame; formulas in
// kernels/locate.py. T is float or double. Sums of gradients are taken in T over a window, in double beyond, in fixed chunks.
#pragma once

#include <cstdint>

namespace jepa_fast {

// Windows of a chunk: as many whatever the number of threads.
constexpr int64_t locate_chunk = 32;

struct Locate {
  const void* images;      // [N, h, w]
  const int64_t* corners;  // [N, 2]: (row, column) of a window's top left pixel in its frame
  const void* look;        // [C, k, k]
  const void* spread;      // [C, k, k]
  int64_t windows, height, width;
  int64_t channels;  // a multiple of 8
  int64_t kernel;
  int64_t frame_height, frame_width;
  double temperature;
};

// Numbers of the gradients of all parameters: look and spread [k, k, C], then the logarithm of the temperature.
constexpr int64_t locate_sums(int64_t channels, int64_t kernel) { return 2 * kernel * kernel * channels + 1; }

struct LocateKernels {
  // Positions (x, y) of windows [first, last), into [N, 2].
  void (*forward)(const Locate&, void* positions, int64_t first, int64_t last);
  // Adds to sums [locate_sums] what windows [first, last) give, from the gradient [N, 2] of positions.
  void (*backward)(const Locate&, const void* to_positions, double* sums, int64_t first, int64_t last);
};

// Null: JEPA_FAST_CPU_ISA names an instruction set that is not here.
const LocateKernels* locate_kernels(bool is_double);

}  // namespace jepa_fast
