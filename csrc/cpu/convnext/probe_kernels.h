// A probe's steps, for one instruction set.
#pragma once

#include <math.h>

#include "cpu/convnext/block.h"
#include "probe.h"

namespace jepa_fast {
namespace {

inline void probe_gradient(const ProbeStep& step, const float* parameters, int64_t chunk, float* gradients) {
  constexpr int width = vector_bytes / 4;
  constexpr int64_t most_samples = 48;
  using V = typename Lanes<float, width>::type;
  const int64_t dim = step.dim;
  const int64_t hidden = step.hidden;
  const float* const b1 = parameters + dim * hidden;
  const float* const w2 = b1 + hidden;
  const float* const b2 = w2 + 2 * hidden;
  float* const to_w1 = gradients + chunk * probe_size(dim, hidden);
  float* const to_b1 = to_w1 + dim * hidden;
  float* const to_w2 = to_b1 + hidden;
  float* const to_b2 = to_w2 + 2 * hidden;
  fill_zero(to_w1, probe_size(dim, hidden));
  const auto lay_out = [&](Pieces& pieces, float*& x, float*& h) {
    x = pieces.take<float>(most_samples * dim);
    h = pieces.take<float>(most_samples * hidden);
  };
  float *x = nullptr, *h = nullptr;
  Pieces counted{nullptr};
  lay_out(counted, x, h);
  Pieces pieces{static_cast<char*>(convnext_work_space(counted.used))};
  lay_out(pieces, x, h);
  const int64_t count = step.batch * step.kept;
  const float scale = 1.0f / static_cast<float>(count);
  const int64_t end = count * (chunk + 1) / probe_chunks;
  for (int64_t first = count * chunk / probe_chunks; first < end; first += most_samples) {
    const int64_t samples = least(most_samples, end - first);
    float slope[most_samples][2];
    for (int64_t i = 0; i < samples; ++i) {
      const int64_t row = (first + i) / step.kept;
      const int64_t at = (first + i) % step.kept;
      const int64_t time = step.steps == nullptr ? at : step.steps[row * step.kept + at];
      const int64_t sample = step.rows[row] * step.length + time;
      copy(step.latents + sample * dim, dim, x + i * dim);
      for (int64_t axis = 0; axis < 2; ++axis) slope[i][axis] = -step.targets[2 * sample + axis];
    }
    product<float, width>(samples, hidden, dim, x, dim, 1, parameters, h);
    for (int64_t i = 0; i < samples; ++i) {
      V out[2] = {};
      for (int64_t j = 0; j < hidden; j += width) {
        const V before = load<V>(h + i * hidden + j) + load<V>(b1 + j);
        const V after = before > V{} ? before : V{};
        store(h + i * hidden + j, after);
        out[0] += after * load<V>(w2 + j);
        out[1] += after * load<V>(w2 + hidden + j);
      }
      for (int64_t axis = 0; axis < 2; ++axis) {
        slope[i][axis] = (slope[i][axis] + sum_lanes<width>(out[axis])[0] + b2[axis]) * scale;
        to_b2[axis] += slope[i][axis];
      }
      for (int64_t j = 0; j < hidden; j += width) {
        const V after = load<V>(h + i * hidden + j);
        store(to_w2 + j, load<V>(to_w2 + j) + after * slope[i][0]);
        store(to_w2 + hidden + j, load<V>(to_w2 + hidden + j) + after * slope[i][1]);
        const V back = load<V>(w2 + j) * slope[i][0] + load<V>(w2 + hidden + j) * slope[i][1];
        const V to_before = after > V{} ? back : V{};
        store(h + i * hidden + j, to_before);
        store(to_b1 + j, load<V>(to_b1 + j) + to_before);
      }
    }
    product<float, width, true>(dim, hidden, samples, x, 1, dim, h, to_w1);
  }
}

// Source: Kingma and Ba, arXiv:1412.6980, as torch.optim.Adam has it.
inline void probe_adam(const ProbeAdam& adam, const float* gradients, int64_t size, int64_t first, int64_t last) {
  constexpr float keep_mean = 0.9f, keep_square = 0.999f, eps = 1e-8f;
  const double step = static_cast<double>(adam.step);
  const float rate = static_cast<float>(adam.rate / (1 - pow(0.9, step)));
  const float correction = static_cast<float>(1 / sqrt(1 - pow(0.999, step)));
  for (int64_t i = first; i < last; ++i) {
    float gradient = 0;
    for (int64_t chunk = 0; chunk < probe_chunks; ++chunk) gradient += gradients[chunk * size + i];
    adam.mean[i] = keep_mean * adam.mean[i] + (1 - keep_mean) * gradient;
    adam.square[i] = keep_square * adam.square[i] + (1 - keep_square) * gradient * gradient;
    adam.parameters[i] -= rate * adam.mean[i] / (__builtin_sqrtf(adam.square[i]) * correction + eps);
  }
}

}  // namespace
}  // namespace jepa_fast
