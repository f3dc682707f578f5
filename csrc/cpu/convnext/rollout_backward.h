// The predictor's steps backward: what forward kept, then products over all rows for both matrices.
#pragma once

#include "cpu/convnext/rollout_forward.h"

namespace jepa_fast {
namespace {

template <typename T>
struct RolloutBackward : RolloutForward<T> {
  using Base = RolloutForward<T>;
  using typename Base::Scales;
  using typename Base::V;
  using Base::action_normal, Base::before, Base::block_rows, Base::dim, Base::fuse, Base::hidden, Base::mask, Base::normal,
      Base::padded, Base::residuals, Base::rollout, Base::states, Base::update, Base::weights, Base::wide, Base::width;

  const int64_t sums_size;
  T *kept, *to_normal;  // [4D'], [D']
  T* sums;              // one step's share of the vectors' gradients, padded

  RolloutBackward(const Rollout& rollout, Pieces& pieces)
      : Base(rollout, pieces), sums_size(3 * wide + (6 + rollout.action_size) * padded) {
    kept = pieces.take<T>(wide);
    to_normal = pieces.take<T>(padded);
    sums = pieces.take<T>(sums_size);
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
      this->for_vectors(kept, kept, [](auto& values, int64_t) { gelu(values, T()); });
    }
    for (int64_t j = 0; j < hidden; j += width) store(kept + j, (load<V>(kept + j) - mean) * rstd);
    fill_zero(kept + hidden, wide - hidden);
    if (rollout.dropout) {
      this->draw_mask(place);
      for (int64_t j = 0; j < wide; j += width) store(row + j, load<V>(row + j) * load<V>(mask + j));
    }
    if (!rollout.gelu_first) {
      this->for_vectors(kept, mask, [&](auto& values, int64_t j) {
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
      this->for_vectors(kept, mask, [](auto& values, int64_t) { gelu_derivative(values, T()); });
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
      fill_zero(sums, sums_size);
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
void rollout_backward(const Rollout& rollout, const RolloutGradients& gradients, int64_t block) {
  Pieces counted{nullptr};
  RolloutBackward<T>(rollout, counted);
  Pieces pieces{static_cast<char*>(convnext_work_space(counted.used))};
  RolloutBackward<T>(rollout, pieces).backward(gradients, block);
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
