// A probe's steps, for one instruction set.
#pragma once

#include <math.h>

#include "cpu/convnext/block.h"
#include "probe.h"

namespace jepa_fast {
namespace {

constexpr int probe_width = vector_bytes / 4;
using ProbeVector = Lanes<float, probe_width>::type;
// W1 is read in panels of so many columns: one stays in the first cache while results are summed in registers.
constexpr int64_t probe_panel = 2 * probe_width > 16 ? 2 * probe_width : 16;
// Samples at a time: their slopes of a panel stay in the first cache.
constexpr int64_t probe_block = 128;

JEPA_FAST_INLINE ProbeVector rectified(ProbeVector x) { return x > ProbeVector{} ? x : ProbeVector{}; }

// x [samples, x_row] by W1; row `sample` of each panel [count, columns] of h is the first that is written.
inline void probe_product(
    const float* x, int64_t x_row, int64_t samples, int64_t dim, int64_t hidden, const float* w1, int64_t count,
    int64_t sample, float* h) {
  for (int64_t first = 0; first < hidden; first += probe_panel) {
    const int64_t columns = least(probe_panel, hidden - first);
    product<float, probe_width>(samples, columns, dim, x, x_row, 1, w1 + first * dim, h + first * count + sample * columns);
  }
}

// W2 relu(h + b1) + b2 of a sample, where `b1` are all parameters behind W1.
JEPA_FAST_INLINE void probe_output(
    const float* h, int64_t count, int64_t sample, int64_t hidden, const float* b1, float* out) {
  ProbeVector sums[2] = {};
  for (int64_t first = 0; first < hidden; first += probe_panel) {
    const int64_t columns = least(probe_panel, hidden - first);
    const float* const row = h + first * count + sample * columns;
    for (int64_t j = 0; j < columns; j += probe_width) {
      const ProbeVector after = rectified(load<ProbeVector>(row + j) + load<ProbeVector>(b1 + first + j));
      sums[0] += after * load<ProbeVector>(b1 + hidden + first + j);
      sums[1] += after * load<ProbeVector>(b1 + 2 * hidden + first + j);
    }
  }
  for (int64_t axis = 0; axis < 2; ++axis) out[axis] = sum_lanes<probe_width>(sums[axis])[0] + b1[3 * hidden + axis];
}

inline void probe_forward(const ProbeStep& step, const float* parameters, int64_t chunk, const ProbeWork& work) {
  using V = ProbeVector;
  const int64_t dim = step.dim;
  const int64_t hidden = step.hidden;
  const int64_t count = step.batch * step.kept;
  const int64_t x_row = probe_row(dim);
  const float* const b1 = parameters + dim * hidden;
  const float* const w2 = b1 + hidden;
  float* const to_b1 = work.sums + chunk * (3 * hidden + 2);
  float* const to_w2 = to_b1 + hidden;
  float* const to_b2 = to_w2 + 2 * hidden;
  fill_zero(to_b1, 3 * hidden + 2);
  const float scale = 1.0f / static_cast<float>(count);
  const int64_t end = count * (chunk + 1) / probe_chunks;
  for (int64_t sample = count * chunk / probe_chunks; sample < end; sample += probe_block) {
    const int64_t samples = least(probe_block, end - sample);
    float* const x = work.x + sample * x_row;
    float slope[probe_block][2];
    for (int64_t i = 0; i < samples; ++i) {
      const int64_t row = (sample + i) / step.kept;
      const int64_t at = (sample + i) % step.kept;
      const int64_t time = step.steps == nullptr ? at : step.steps[row * step.kept + at];
      const int64_t chosen = step.rows[row] * step.length + time;
      copy(step.latents + chosen * dim, dim, x + i * x_row);
      for (int64_t axis = 0; axis < 2; ++axis) slope[i][axis] = -step.targets[2 * chosen + axis];
    }
    probe_product(x, x_row, samples, dim, hidden, parameters, count, sample, work.slopes);
    for (int64_t i = 0; i < samples; ++i) {
      float out[2];
      probe_output(work.slopes, count, sample + i, hidden, b1, out);
      for (int64_t axis = 0; axis < 2; ++axis) {
        slope[i][axis] = (slope[i][axis] + out[axis]) * scale;
        to_b2[axis] += slope[i][axis];
      }
    }
    for (int64_t unit = 0; unit < hidden; unit += probe_width) {
      const int64_t first = unit / probe_panel * probe_panel;
      const int64_t columns = least(probe_panel, hidden - first);
      float* const panel = work.slopes + first * count + sample * columns + (unit - first);
      const V bias = load<V>(b1 + unit);
      const V weights[2] = {load<V>(w2 + unit), load<V>(w2 + hidden + unit)};
      V bias_sum{};
      V sums[2] = {};
      for (int64_t i = 0; i < samples; ++i) {
        const V before = load<V>(panel + i * columns) + bias;
        const V after = rectified(before);
        for (int64_t axis = 0; axis < 2; ++axis) sums[axis] += after * slope[i][axis];
        const V back = weights[0] * slope[i][0] + weights[1] * slope[i][1];
        const V to_before = before > V{} ? back : V{};
        bias_sum += to_before;
        store(panel + i * columns, to_before);
      }
      store(to_b1 + unit, load<V>(to_b1 + unit) + bias_sum);
      for (int64_t axis = 0; axis < 2; ++axis) {
        float* const to = to_w2 + axis * hidden + unit;
        store(to, load<V>(to) + sums[axis]);
      }
    }
  }
}

// Source: Kingma and Ba, arXiv:1412.6980, as torch.optim.Adam has it.
struct ProbeRates {
  float rate, correction;

  explicit ProbeRates(const ProbeAdam& adam) {
    const double step = static_cast<double>(adam.step);
    rate = static_cast<float>(adam.rate / (1 - pow(0.9, step)));
    correction = static_cast<float>(1 / sqrt(1 - pow(0.999, step)));
  }

  // On parameters [first, first + count).
  JEPA_FAST_INLINE void apply(const ProbeAdam& adam, const float* gradients, int64_t first, int64_t count) const {
    constexpr float keep_mean = 0.9f, keep_square = 0.999f, eps = 1e-8f;
    float* const parameters = adam.parameters + first;
    float* const mean = adam.mean + first;
    float* const square = adam.square + first;
    for (int64_t i = 0; i < count; ++i) {
      mean[i] = keep_mean * mean[i] + (1 - keep_mean) * gradients[i];
      square[i] = keep_square * square[i] + (1 - keep_square) * gradients[i] * gradients[i];
      parameters[i] -= rate * mean[i] / (__builtin_sqrtf(square[i]) * correction + eps);
    }
  }
};

inline void probe_update(const ProbeStep& step, const ProbeAdam& adam, const ProbeWork& work, int64_t panel) {
  const int64_t dim = step.dim;
  const int64_t hidden = step.hidden;
  const int64_t count = step.batch * step.kept;
  const int64_t x_row = probe_row(dim);
  const int64_t first = panel * probe_panel;
  const int64_t columns = least(probe_panel, hidden - first);
  float* const gradients = static_cast<float*>(convnext_work_space(static_cast<size_t>(dim * columns) * sizeof(float)));
  fill_zero(gradients, dim * columns);
  for (int64_t sample = 0; sample < count; sample += probe_block) {
    product<float, probe_width, true>(
        dim, columns, least(probe_block, count - sample), work.x + sample * x_row, 1, x_row,
        work.slopes + first * count + sample * columns, gradients);
  }
  const ProbeRates rates(adam);
  rates.apply(adam, gradients, first * dim, dim * columns);
  const auto apply_sums = [&](int64_t at, int64_t width) {
    float sums[probe_panel] = {};
    for (int64_t chunk = 0; chunk < probe_chunks; ++chunk) {
      for (int64_t j = 0; j < width; ++j) sums[j] += work.sums[chunk * (3 * hidden + 2) + at + j];
    }
    rates.apply(adam, sums, dim * hidden + at, width);
  };
  for (int64_t part = 0; part < 3; ++part) apply_sums(part * hidden + first, columns);
  if (panel == 0) apply_sums(3 * hidden, 2);
}

inline void probe_outputs(
    const float* latents, int64_t dim, int64_t hidden, const float* parameters, int64_t first, int64_t last, float* out) {
  constexpr int64_t block = 48;
  float* const h = static_cast<float*>(convnext_work_space(static_cast<size_t>(block * hidden) * sizeof(float)));
  for (int64_t sample = first; sample < last; sample += block) {
    const int64_t samples = least(block, last - sample);
    probe_product(latents + sample * dim, dim, samples, dim, hidden, parameters, samples, 0, h);
    for (int64_t i = 0; i < samples; ++i) {
      probe_output(h, samples, i, hidden, parameters + dim * hidden, out + 2 * (sample + i));
    }
  }
}

}  // namespace
}  // namespace jepa_fast
