// The predictor's steps forward: a block of trajectories with its hidden layer in the cache.
#pragma once

#include "cpu/convnext/rollout_packed.h"

namespace jepa_fast {
namespace {

template <typename T>
struct RolloutForward {
  static constexpr int width = rollout_width<T>;
  using V = typename Lanes<T, width>::type;
  static constexpr T eps = T(1e-5);

  const Rollout& rollout;
  const PackedRollout<T> weights;
  const int64_t dim, hidden, padded, wide, block_rows;
  T *states, *residuals, *fused, *update;  // [R, D']
  T* before;                               // [R, 4D']
  T* mask;                                 // [4D']
  T *action, *normal, *action_normal;      // [D']

  RolloutForward(const Rollout& rollout, Pieces& pieces)
      : rollout(rollout), weights(rollout.packed, rollout.dim, rollout.action_size), dim(rollout.dim), hidden(4 * dim),
        padded(rollout_padded<T>(dim)), wide(rollout_padded<T>(hidden)), block_rows(rollout_block(rollout.batch)) {
    states = pieces.take<T>(block_rows * padded);
    residuals = pieces.take<T>(block_rows * padded);
    fused = pieces.take<T>(block_rows * padded);
    update = pieces.take<T>(block_rows * padded);
    before = pieces.take<T>(block_rows * wide);
    mask = pieces.take<T>(wide);
    action = pieces.take<T>(padded);
    normal = pieces.take<T>(padded);
    action_normal = pieces.take<T>(padded);
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
};

template <typename T>
void rollout_forward(const Rollout& rollout, const RolloutResults& results, int64_t block) {
  Pieces counted{nullptr};
  RolloutForward<T>(rollout, counted);
  Pieces pieces{static_cast<char*>(convnext_work_space(counted.used))};
  RolloutForward<T>(rollout, pieces).forward(results, block);
}

}  // namespace
}  // namespace jepa_fast
