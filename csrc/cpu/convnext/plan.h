// How the sums of a backward pass are cut into chunks, and how the chunks' shares are put together.
#pragma once

#include <cstdint>
#include <vector>

#include "convnext.h"

namespace jepa_fast {

// Chunks of `items` tasks whose partial sums hold `sums` doubles each: a function of the sizes alone.
int64_t convnext_chunks(int64_t items, int64_t sums);

struct WindowPlan {
  std::vector<int64_t> order;
  std::vector<WindowChunk> chunks;
  std::vector<BasePart> parts;
  std::vector<BasePart> overs;
  std::vector<int64_t> part_of;
  std::vector<int64_t> over_of;
  int64_t parts_size = 0;  // numbers in all parts together
};

WindowPlan plan_windows(const WindowChain& chain, int64_t bases);

// Of the parameters' gradients, in their own layouts: weight [C, 49], gamma, beta [C], expand [4C, C], project [C, 4C].
template <typename T>
struct ParameterGradients {
  T *weight, *gamma, *beta, *expand, *project;
};

// Block `block`'s, from sums [chunks, stride] that begin at `first`.
template <typename T>
void finish_parameters(
    const double* sums, int64_t chunks, int64_t stride, int64_t channels, const ParameterGradients<T>& to);

// out [i] = sum over chunks of sums [chunk, i], chunks `stride` apart.
template <typename T>
void finish_sums(const double* sums, int64_t chunks, int64_t stride, int64_t count, T* out);

// The gradient of one base's block [H, W, C]: its z's, or with `is_update` its update's.
template <typename T>
void finish_base(
    const WindowChain& chain, const WindowPlan& plan, const T* parts, int64_t group, int64_t block, bool is_update, T* out);

// The gradients of a window's z and updates where it is a base: to_z and to_update [P, C].
template <typename T>
void finish_over(const WindowChain& chain, const WindowPlan& plan, const T* parts, int64_t over, T* to_z, T* to_update);

// Bases made of windows: images [N, L, H, W, C] that hold their own base [G, L, H, W, C] and over it the windows' values
// [N, pixels_after(L), C]. Row `row` counts the rows of all images and blocks.
template <typename T>
void paste_row(const WindowChain& chain, const T* windows, const T* bases, int64_t row, T* images);

// The gradients of `paste_row`: windows [N, pixels_after(L), C] by window, bases by the row of a base and block.
template <typename T>
void paste_backward_window(const WindowChain& chain, const T* images, int64_t window, T* windows);
template <typename T>
void paste_backward_row(const WindowChain& chain, const T* images, int64_t row, T* bases);

}  // namespace jepa_fast
