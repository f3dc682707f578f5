// The predictor's steps, for one instruction set.
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

template <typename T>
struct RolloutSpace {
  static constexpr int width = rollout_width<T>;
  using V = typename Lanes<T, width>::type;
  static constexpr T eps = T(1e-5);

  const Rollout& rollout;
  const PackedRollout<T> weights;
  const int64_t dim, hidden, padded, wide, block_rows;
  T *states, *residuals, *fused, *update;  // [R, D']
  T* before;                               // [R, 4D']
  T *mask, *kept;                          // [4D']
  T *action, *normal, *action_normal, *to_normal;  // [D']
  T* sums;                                 // one step's share of the vectors' gradients, padded

  RolloutSpace(const Rollout& rollout, Pieces& pieces)
      : rollout(rollout), weights(rollout.packed, rollout.dim, rollout.action_size), dim(rollout.dim), hidden(4 * dim),
        padded(rollout_padded<T>(dim)), wide(rollout_padded<T>(hidden)), block_rows(rollout_block(rollout.batch)) {
    states = pieces.take<T>(block_rows * padded);
    residuals = pieces.take<T>(block_rows * padded);
    fused = pieces.take<T>(block_rows * padded);
    update = pieces.take<T>(block_rows * padded);
    before = pieces.take<T>(block_rows * wide);
    mask = pieces.take<T>(wide);
    kept = pieces.take<T>(wide);
    action = pieces.take<T>(padded);
    normal = pieces.take<T>(padded);
    action_normal = pieces.take<T>(padded);
    to_normal = pieces.take<T>(padded);
    sums = pieces.take<T>(3 * wide + (6 + rollout.action_size) * padded);
  }

  // Sum of values [0, count): whole vectors and then what is left of one.
  template <typename F>
  JEPA_FAST_INLINE static T sum_of(int64_t count, const F& f) {
    V sum[2] = {};
    int64_t i = 0;
    for (; i + 2 * width <= count; i += 2 * width) {
      sum[0] += f(i);
      sum[1] += f(i + width);
    }
    for (; i + width <= count; i += width) sum[0] += f(i);
    T total = sum_lanes<width>(sum[0] + sum[1])[0];
    if (i < count) {
      const V rest = f(i);
      for (int64_t lane = 0; lane < count - i; ++lane) total += rest[lane];
    }
    return total;
  }

  struct Statistics {
    T mean, rstd;
  };

  // Of x [count], whose row is padded.
  JEPA_FAST_INLINE static Statistics statistics(const T* x, int64_t count) {
    const T share = T(1) / static_cast<T>(count);
    const T mean = sum_of(count, [&](int64_t i) { return load<V>(x + i); }) * share;
    const T variance = sum_of(count, [&](int64_t i) {
      const V value = load<V>(x + i) - mean;
      return value * value;
    }) * share;
    return {mean, T(1) / TileSpace<T, width>::square_root(variance + eps)};
  }

  // normal = (x - mean) rstd, zero beyond `dim`; what is padded of x is zero.
  JEPA_FAST_INLINE T normalise(const T* x, T* to) const {
    const Statistics of = statistics(x, dim);
    for (int64_t d = 0; d < padded; d += width) store(to + d, (load<V>(x + d) - of.mean) * of.rstd);
    fill_zero(to + dim, padded - dim);
    return of.rstd;
  }

  // The normalised latent and action of a row, in `normal` and `action_normal`; returns both scales.
  struct Scales {
    T latent, action;
  };
  JEPA_FAST_INLINE Scales normalise_inputs(const T* latent, const T* actions) const {
    for (int64_t d = 0; d < padded; d += width) {
      V sum = load<V>(weights.action_bias + d);
      for (int64_t i = 0; i < rollout.action_size; ++i) sum += actions[i] * load<V>(weights.action + i * padded + d);
      store(action + d, sum);
    }
    const T scale = normalise(latent, normal);
    return {scale, normalise(action, action_normal)};
  }

  // W1's input, in `to`, and what the update is added to, in `residual` unless that is null.
  JEPA_FAST_INLINE Scales fuse(const T* latent, const T* actions, T* to, T* residual) const {
    const Scales scales = normalise_inputs(latent, actions);
    for (int64_t d = 0; d < padded; d += width) {
      const V normed = load<V>(normal + d) * load<V>(weights.state_weight + d) + load<V>(weights.state_bias + d);
      const V moved =
          load<V>(action_normal + d) * load<V>(weights.action_norm_weight + d) + load<V>(weights.action_norm_bias + d);
      store(to + d, normed + moved);
      if (residual != nullptr) store(residual + d, rollout.state_residual ? normed : normed + moved);
    }
    return scales;
  }

  template <typename F>
  JEPA_FAST_INLINE void for_vectors(const T* from, T* to, const F& f) const {
    for (int64_t i = 0; i < wide; i += gelu_vectors * width) {
      V values[gelu_vectors];
      JEPA_FAST_UNROLL
      for (int v = 0; v < gelu_vectors; ++v) values[v] = load<V>(from + i + v * width);
      f(values, i);
      JEPA_FAST_UNROLL
      for (int v = 0; v < gelu_vectors; ++v) store(to + i + v * width, values[v]);
    }
  }

  void draw_mask(int64_t place) {
    const auto first = static_cast<uint32_t>(rollout.first_element + place * hidden);
    for (int64_t j = 0; j < hidden; ++j) mask[j] = dropout_factor(rollout.keys, first + static_cast<uint32_t>(j));
    fill_zero(mask + hidden, wide - hidden);
  }

  // A row's hidden layer, from W1's product to W2's input in place; `place` is its number in [B, S].
  __attribute__((noinline)) void hide(T* row, int64_t place, const RolloutResults& results) {
    for (int64_t j = 0; j < wide; j += width) store(row + j, load<V>(row + j) + load<V>(weights.expand_bias + j));
    if (results.hidden != nullptr) copy(row, hidden, static_cast<T*>(results.hidden) + place * hidden);
    if (rollout.gelu_first) for_vectors(row, row, [](auto& values, int64_t) { gelu(values, T()); });
    const Statistics of = statistics(row, hidden);
    const auto normed = [&](V value, int64_t j) {
      return (value - of.mean) * of.rstd * load<V>(weights.norm_weight + j) + load<V>(weights.norm_bias + j);
    };
    if (rollout.dropout) draw_mask(place);
    for_vectors(row, row, [&](auto& values, int64_t j) {
      JEPA_FAST_UNROLL
      for (int v = 0; v < gelu_vectors; ++v) values[v] = normed(values[v], j + v * width);
      if (!rollout.gelu_first) gelu(values, T());
      if (!rollout.dropout) return;
      JEPA_FAST_UNROLL
      for (int v = 0; v < gelu_vectors; ++v) values[v] *= load<V>(mask + j + v * width);
    });
    if (results.hidden == nullptr) return;
    copy(row, hidden, static_cast<T*>(results.dropped) + place * hidden);
    T* const kept_statistics = static_cast<T*>(results.statistics) + 2 * place;
    kept_statistics[0] = of.mean;
    kept_statistics[1] = of.rstd;
  }

  void forward(const RolloutResults& results, int64_t block) {
    const int64_t begin = block * block_rows;
    const int64_t rows = least(block_rows, rollout.batch - begin);
    fill_zero(states, rows * padded);
    for (int64_t r = 0; r < rows; ++r) {
      copy(static_cast<const T*>(rollout.first) + (begin + r) * dim, dim, states + r * padded);
    }
    for (int64_t step = 0; step < rollout.steps; ++step) {
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t place = (begin + r) * rollout.steps + step;
        fuse(
            states + r * padded, static_cast<const T*>(rollout.actions) + place * rollout.action_size, fused + r * padded,
            residuals + r * padded);
      }
      panel_product(rows, wide, dim, fused, padded, weights.expand_t, before);
      for (int64_t r = 0; r < rows; ++r) hide(before + r * wide, (begin + r) * rollout.steps + step, results);
      panel_product(rows, padded, hidden, before, wide, weights.project_t, update);
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t d = r * padded; d < (r + 1) * padded; d += width) {
          store(states + d, load<V>(residuals + d) + load<V>(update + d) + load<V>(weights.project_bias + d - r * padded));
        }
        const int64_t place = (begin + r) * rollout.steps + step;
        copy(states + r * padded, dim, static_cast<T*>(results.states) + place * dim);
      }
    }
  }

  // The sums of the vectors' gradients, of one step.
  struct Vectors {
    T *expand_bias, *norm_weight, *norm_bias, *project_bias, *state_weight, *state_bias, *action_norm_weight,
        *action_norm_bias, *action_bias, *action_weight;
  };
  Vectors vectors() const {
    T* at = sums;
    const auto take = [&](int64_t count) {
      T* const piece = at;
      at += count;
      return piece;
    };
    // In the order in which they are written: a braced list is read from left to right.
    return {take(wide), take(wide), take(wide), take(padded), take(padded), take(padded), take(padded), take(padded),
            take(padded), take(padded)};
  }

  JEPA_FAST_INLINE static void add(T* to, V value) { store(to, load<V>(to) + value); }

  // The gradient of a norm's input, from that of its output in `gradient`, times its weight; n are normalised.
  // f(i, dx) takes it. Numbers beyond `count` are zero in `gradient`.
  template <typename G, typename N, typename F>
  JEPA_FAST_INLINE static void norm_backward(int64_t count, int64_t size, T rstd, const G& scaled, const N& n, const F& f) {
    const T share = T(1) / static_cast<T>(count);
    V sum{}, along{};
    for (int64_t i = 0; i < size; i += width) {
      const V value = scaled(i);
      sum += value;
      along += value * n(i);
    }
    const T mean = sum_lanes<width>(sum)[0] * share;
    const T slope = sum_lanes<width>(along)[0] * share;
    for (int64_t i = 0; i < size; i += width) f(i, (scaled(i) - mean - n(i) * slope) * rstd);
  }

  // A row's gradient of W2's input, `row`, to that of W1's product, in place.
  __attribute__((noinline)) void hide_backward(T* row, int64_t place, const RolloutGradients& gradients, const Vectors& to) {
    const T* const h = static_cast<const T*>(gradients.hidden) + place * hidden;
    const T* const of = static_cast<const T*>(gradients.statistics) + 2 * place;
    const T mean = of[0], rstd = of[1];
    // kept = the normalised values, zero beyond.
    copy(h, hidden, kept);
    if (rollout.gelu_first) {
      fill_zero(kept + hidden, wide - hidden);
      for_vectors(kept, kept, [](auto& values, int64_t) { gelu(values, T()); });
    }
    for (int64_t j = 0; j < hidden; j += width) store(kept + j, (load<V>(kept + j) - mean) * rstd);
    fill_zero(kept + hidden, wide - hidden);
    if (rollout.dropout) {
      draw_mask(place);
      for (int64_t j = 0; j < wide; j += width) store(row + j, load<V>(row + j) * load<V>(mask + j));
    }
    if (!rollout.gelu_first) {
      for_vectors(kept, mask, [&](auto& values, int64_t j) {
        JEPA_FAST_UNROLL
        for (int v = 0; v < gelu_vectors; ++v) {
          values[v] = values[v] * load<V>(weights.norm_weight + j + v * width) + load<V>(weights.norm_bias + j + v * width);
        }
        gelu_derivative(values, T());
      });
      for (int64_t j = 0; j < wide; j += width) store(row + j, load<V>(row + j) * load<V>(mask + j));
    }
    for (int64_t j = 0; j < wide; j += width) {
      const V gradient = load<V>(row + j);
      add(to.norm_weight + j, gradient * load<V>(kept + j));
      add(to.norm_bias + j, gradient);
    }
    norm_backward(
        hidden, wide, rstd, [&](int64_t j) { return load<V>(row + j) * load<V>(weights.norm_weight + j); },
        [&](int64_t j) { return load<V>(kept + j); }, [&](int64_t j, V value) { store(row + j, value); });
    fill_zero(row + hidden, wide - hidden);
    if (rollout.gelu_first) {
      copy(h, hidden, kept);
      for_vectors(kept, mask, [](auto& values, int64_t) { gelu_derivative(values, T()); });
      for (int64_t j = 0; j < wide; j += width) store(row + j, load<V>(row + j) * load<V>(mask + j));
    }
    for (int64_t j = 0; j < wide; j += width) add(to.expand_bias + j, load<V>(row + j));
    copy(row, hidden, static_cast<T*>(gradients.to_hidden) + place * hidden);
  }

  // From the gradients of W1's input and of the latent after the step to those of the latent before it, which replaces
  // `total`, and of the action.
  __attribute__((noinline)) void fuse_backward(
      const T* latent, const T* to_fused, T* total, int64_t place, const RolloutGradients& gradients, const Vectors& to) {
    const int64_t size = rollout.action_size;
    const T* const actions = static_cast<const T*>(rollout.actions) + place * size;
    T* const fused_row = static_cast<T*>(gradients.fused) + place * padded;
    const Scales scales = fuse(latent, actions, fused_row, nullptr);
    const auto moved = [&](int64_t d) {
      const V gradient = load<V>(to_fused + d);
      return rollout.state_residual ? gradient : gradient + load<V>(total + d);
    };
    for (int64_t d = 0; d < padded; d += width) {
      const V gradient = moved(d);
      add(to.action_norm_weight + d, gradient * load<V>(action_normal + d));
      add(to.action_norm_bias + d, gradient);
    }
    norm_backward(
        dim, padded, scales.action, [&](int64_t d) { return moved(d) * load<V>(weights.action_norm_weight + d); },
        [&](int64_t d) { return load<V>(action_normal + d); }, [&](int64_t d, V value) { store(to_normal + d, value); });
    fill_zero(to_normal + dim, padded - dim);
    for (int64_t d = 0; d < padded; d += width) add(to.action_bias + d, load<V>(to_normal + d));
    for (int64_t i = 0; i < size; ++i) {
      V sum{};
      for (int64_t d = 0; d < padded; d += width) {
        const V gradient = load<V>(to_normal + d);
        add(to.action_weight + i * padded + d, gradient * actions[i]);
        sum += gradient * load<V>(weights.action + i * padded + d);
      }
      if (gradients.to_actions != nullptr) {
        static_cast<T*>(gradients.to_actions)[place * size + i] = sum_lanes<width>(sum)[0];
      }
    }
    const auto to_normed = [&](int64_t d) { return load<V>(to_fused + d) + load<V>(total + d); };
    for (int64_t d = 0; d < padded; d += width) {
      const V gradient = to_normed(d);
      add(to.state_weight + d, gradient * load<V>(normal + d));
      add(to.state_bias + d, gradient);
    }
    norm_backward(
        dim, padded, scales.latent, [&](int64_t d) { return to_normed(d) * load<V>(weights.state_weight + d); },
        [&](int64_t d) { return load<V>(normal + d); }, [&](int64_t d, V value) { store(total + d, value); });
    fill_zero(total + dim, padded - dim);
  }

  // The sums of one step to those of all, whose vectors are not padded.
  void add_vectors(double* to) const {
    const Vectors from = vectors();
    const auto add_all = [&](const T* values, int64_t count) {
      for (int64_t i = 0; i < count; ++i) *to++ += static_cast<double>(values[i]);
    };
    add_all(from.expand_bias, hidden);
    add_all(from.norm_weight, hidden);
    add_all(from.norm_bias, hidden);
    add_all(from.project_bias, dim);
    add_all(from.state_weight, dim);
    add_all(from.state_bias, dim);
    add_all(from.action_norm_weight, dim);
    add_all(from.action_norm_bias, dim);
    add_all(from.action_bias, dim);
    for (int64_t d = 0; d < dim; ++d) {
      for (int64_t i = 0; i < rollout.action_size; ++i) *to++ += static_cast<double>(from.action_weight[i * padded + d]);
    }
  }

  void backward(const RolloutGradients& gradients, int64_t block) {
    const int64_t begin = block * block_rows;
    const int64_t rows = least(block_rows, rollout.batch - begin);
    const Vectors to = vectors();
    double* const total_vectors = gradients.vectors + block * rollout_vectors(dim, rollout.action_size);
    fill_zero(total_vectors, rollout_vectors(dim, rollout.action_size));
    // The gradient of the latents, [R, D'].
    T* const totals = residuals;
    fill_zero(totals, rows * padded);
    for (int64_t step = rollout.steps - 1; step >= 0; --step) {
      fill_zero(sums, 3 * wide + (6 + rollout.action_size) * padded);
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t place = (begin + r) * rollout.steps + step;
        T* const total = totals + r * padded;
        const T* const more = static_cast<const T*>(gradients.to_states) + place * dim;
        for (int64_t d = 0; d < dim; ++d) total[d] += more[d];
        for (int64_t d = 0; d < padded; d += width) add(to.project_bias + d, load<V>(total + d));
        copy(total, padded, static_cast<T*>(gradients.totals) + place * padded);
      }
      panel_product(rows, wide, dim, totals, padded, weights.project, before);
      for (int64_t r = 0; r < rows; ++r) hide_backward(before + r * wide, (begin + r) * rollout.steps + step, gradients, to);
      panel_product(rows, padded, hidden, before, wide, weights.expand, update);
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t place = (begin + r) * rollout.steps + step;
        const T* const latent = step > 0 ? static_cast<const T*>(gradients.states) + (place - 1) * dim
                                         : static_cast<const T*>(rollout.first) + (begin + r) * dim;
        fill_zero(states, padded);
        copy(latent, dim, states);
        fuse_backward(states, update + r * padded, totals + r * padded, place, gradients, to);
      }
      add_vectors(total_vectors);
    }
    for (int64_t r = 0; r < rows; ++r) {
      copy(totals + r * padded, dim, static_cast<T*>(gradients.to_first) + (begin + r) * dim);
    }
  }
};

template <typename T>
void rollout_forward(const Rollout& rollout, const RolloutResults& results, int64_t block) {
  Pieces counted{nullptr};
  RolloutSpace<T>(rollout, counted);
  Pieces pieces{static_cast<char*>(convnext_work_space(counted.used))};
  RolloutSpace<T>(rollout, pieces).forward(results, block);
}

template <typename T>
void rollout_backward(const Rollout& rollout, const RolloutGradients& gradients, int64_t block) {
  Pieces counted{nullptr};
  RolloutSpace<T>(rollout, counted);
  Pieces pieces{static_cast<char*>(convnext_work_space(counted.used))};
  RolloutSpace<T>(rollout, pieces).backward(gradients, block);
}

// Rows of a matrix's gradient [4D, D]: to_hidden^T fused, or dropped^T totals, which is the transposed gradient of W2.
template <typename T>
void rollout_matrices(const Rollout& rollout, const RolloutGradients& gradients, int64_t task) {
  constexpr int width = rollout_width<T>;
  const int64_t dim = rollout.dim;
  const int64_t hidden = 4 * dim;
  const int64_t padded = rollout_padded<T>(dim);
  const int64_t tasks = rollout_matrix_tasks(dim) / 2;
  const bool is_expand = task < tasks;
  const int64_t first = task % tasks * rollout_matrix_rows;
  const int64_t rows = least(rollout_matrix_rows, hidden - first);
  const T* const left = static_cast<const T*>(is_expand ? gradients.to_hidden : gradients.dropped);
  const T* const right = static_cast<const T*>(is_expand ? gradients.fused : gradients.totals);
  const auto lay_out = [&](Pieces& pieces, T*& part, double*& total) {
    part = pieces.take<T>(rows * padded);
    total = pieces.take<double>(rows * padded);
  };
  T* part = nullptr;
  double* total = nullptr;
  Pieces counted{nullptr};
  lay_out(counted, part, total);
  Pieces pieces{static_cast<char*>(convnext_work_space(counted.used))};
  lay_out(pieces, part, total);
  fill_zero(total, rows * padded);
  const int64_t count = rollout.batch * rollout.steps;
  for (int64_t k = 0; k < count; k += rollout_sum_rows) {
    product<T, width>(
        rows, padded, least(rollout_sum_rows, count - k), left + k * hidden + first, 1, hidden, right + k * padded, part);
    for (int64_t i = 0; i < rows * padded; ++i) total[i] += static_cast<double>(part[i]);
  }
  T* const to = static_cast<T*>(is_expand ? gradients.to_expand : gradients.to_project);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t d = 0; d < dim; ++d) {
      to[is_expand ? (first + row) * dim + d : d * hidden + first + row] = static_cast<T>(total[row * padded + d]);
    }
  }
}

}  // namespace
}  // namespace jepa_fast
