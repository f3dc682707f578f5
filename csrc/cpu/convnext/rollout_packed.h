// The predictor's parameters as its kernels read them, and products with them.
#pragma once

#include "cpu/convnext/block.h"
#include "rollout.h"

namespace jepa_fast {
namespace {

// Vectors are padded with zeros to whole panels: the columns of a matrix that are packed together.
template <typename T>
constexpr int rollout_width = vector_bytes / static_cast<int>(sizeof(T));
template <typename T>
constexpr int64_t rollout_panel = int64_t{gelu_vectors} * rollout_width<T>;

template <typename T>
constexpr int64_t rollout_padded(int64_t count) {
  return (count + rollout_panel<T> - 1) / rollout_panel<T> * rollout_panel<T>;
}

// Views of the packed parameters: padded vectors, then matrices in panels, [panels, count, panel].
template <typename T>
struct PackedRollout {
  T *state_weight, *state_bias, *action_bias, *action_norm_weight, *action_norm_bias, *project_bias;  // [D']
  T *expand_bias, *norm_weight, *norm_bias;  // [4D']
  T* action;                                 // Wa transposed [A, D']
  T *expand_t, *project_t;                   // W1 and W2 transposed, as the forward pass takes them
  T *project, *expand;                       // as the backward pass does
  int64_t size;

  PackedRollout(const void* packed, int64_t dim, int64_t action_size) {
    const int64_t hidden = 4 * dim;
    const int64_t padded = rollout_padded<T>(dim);
    const int64_t wide = rollout_padded<T>(hidden);
    T* const start = static_cast<T*>(const_cast<void*>(packed));
    int64_t at = 0;
    const auto take = [&](int64_t count) {
      T* const piece = start + at;
      at += count;
      return piece;
    };
    state_weight = take(padded);
    state_bias = take(padded);
    action_bias = take(padded);
    action_norm_weight = take(padded);
    action_norm_bias = take(padded);
    project_bias = take(padded);
    expand_bias = take(wide);
    norm_weight = take(wide);
    norm_bias = take(wide);
    action = take(action_size * padded);
    expand_t = take(dim * wide);
    project_t = take(hidden * padded);
    project = take(dim * wide);
    expand = take(hidden * padded);
    size = at;
  }
};

template <typename T>
int64_t rollout_packed_size(int64_t dim, int64_t action_size) {
  T* const none = nullptr;
  return PackedRollout<T>(none, dim, action_size).size;
}

// Matrix [count, columns], element (k, n) at k row_step + n column_step, to panels.
template <typename T>
void pack_panels(const T* from, int64_t count, int64_t columns, int64_t row_step, int64_t column_step, T* to) {
  constexpr int64_t panel = rollout_panel<T>;
  for (int64_t first = 0; first < columns; first += panel, to += count * panel) {
    const int64_t filled = least(panel, columns - first);
    if (filled < panel) fill_zero(to, count * panel);
    if (column_step == 1) {
      for (int64_t k = 0; k < count; ++k) copy(from + k * row_step + first, filled, to + k * panel);
      continue;
    }
    for (int64_t n = 0; n < filled; ++n) {
      const T* const column = from + (first + n) * column_step;
      for (int64_t k = 0; k < count; ++k) to[k * panel + n] = column[k * row_step];
    }
  }
}

template <typename T>
void pack_rollout(const RolloutParameters& from, int64_t dim, int64_t action_size, bool backward, void* packed) {
  const int64_t hidden = 4 * dim;
  const int64_t padded = rollout_padded<T>(dim);
  const int64_t wide = rollout_padded<T>(hidden);
  const PackedRollout<T> to(packed, dim, action_size);
  const auto vector = [](const void* values, int64_t count, int64_t size, T* out) {
    copy(static_cast<const T*>(values), count, out);
    fill_zero(out + count, size - count);
  };
  vector(from.state_norm_weight, dim, padded, to.state_weight);
  vector(from.state_norm_bias, dim, padded, to.state_bias);
  vector(from.action_bias, dim, padded, to.action_bias);
  vector(from.action_norm_weight, dim, padded, to.action_norm_weight);
  vector(from.action_norm_bias, dim, padded, to.action_norm_bias);
  vector(from.project_bias, dim, padded, to.project_bias);
  vector(from.expand_bias, hidden, wide, to.expand_bias);
  vector(from.norm_weight, hidden, wide, to.norm_weight);
  vector(from.norm_bias, hidden, wide, to.norm_bias);
  fill_zero(to.action, action_size * padded);
  for (int64_t d = 0; d < dim; ++d) {
    for (int64_t i = 0; i < action_size; ++i) {
      to.action[i * padded + d] = static_cast<const T*>(from.action_weight)[d * action_size + i];
    }
  }
  const T* const expand = static_cast<const T*>(from.expand_weight);
  const T* const project = static_cast<const T*>(from.project_weight);
  if (backward) {
    pack_panels(project, dim, hidden, hidden, 1, to.project);
    pack_panels(expand, hidden, dim, dim, 1, to.expand);
  } else {
    pack_panels(expand, dim, hidden, 1, dim, to.expand_t);
    pack_panels(project, hidden, dim, 1, hidden, to.project_t);
  }
}

// out [rows, columns] = a [rows, count] times packed panels; rows of a and out lie a_row and `columns` apart, the latter a
// multiple of the panel.
template <typename T>
void panel_product(int64_t rows, int64_t columns, int64_t count, const T* a, int64_t a_row, const T* packed, T* out) {
  constexpr int width = rollout_width<T>;
  constexpr int64_t panel = rollout_panel<T>;
  constexpr int64_t strip = int64_t{most_product_vectors} * width;
  for (int64_t column = 0; column < columns; column += strip) {
    product_columns<T, width, most_product_vectors, false>(
        rows, a, a_row, 1, packed + column / panel * panel * count + column % panel, panel, count, out + column, columns);
  }
}

}  // namespace
}  // namespace jepa_fast
