// The smaller ops without torch: gradients against finite differences, a probe's step against loops written for reading,
// every instruction set that runs here. `scripts/test_csrc.sh` builds it with sanitizers, or for arm64.
#include <algorithm>
#include <cmath>
#include <cstdio>

#include "checks.h"
#include "convnext.h"
#include "feature_gate.h"
#include "gated.h"
#include "locate.h"
#include "probe.h"
#include "scene.h"

using namespace jepa_fast;

namespace {

std::mt19937 generator(3);

Values normal(int64_t count, double scale, double mean = 0) { return draw_normal(generator, count, scale, mean); }

double dot(const Values& a, const Values& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

double furthest(const std::vector<float>& a, const Values& b) {
  double worst = 0;
  for (size_t i = 0; i < b.size(); ++i) worst = std::fmax(worst, std::fabs(a[i] - b[i]));
  return worst;
}

void test_locate(int64_t windows, int64_t height, int64_t width, int64_t channels, int64_t kernel) {
  constexpr int64_t frame_height = 11, frame_width = 13;
  const int64_t taps = kernel * kernel * channels, count = locate_sums(channels, kernel);
  Values images = normal(windows * height * width, 1), look = normal(taps, 0.5), spread = normal(taps, 0.3);
  Values logarithm = {0.4};
  std::vector<int64_t> corners;
  for (int64_t i = 0; i < windows; ++i) {
    corners.push_back(static_cast<int64_t>(generator() % (frame_height + height)) - height);
    corners.push_back(static_cast<int64_t>(generator() % (frame_width + width)) - width);
  }
  const LocateKernels& kernels = *locate_kernels(true);
  const auto shape = [&](const void* image, const void* first, const void* second) {
    return Locate{image, corners.data(), first, second, windows, height, width, channels, kernel, frame_height, frame_width,
                  std::exp(logarithm[0])};
  };
  const Values to_out = normal(2 * windows, 1);
  const auto value = [&] {
    Values out(to_out.size());
    kernels.forward(shape(images.data(), look.data(), spread.data()), out.data(), 0, windows);
    return dot(out, to_out);
  };
  Values sums(static_cast<size_t>(count));
  kernels.backward(shape(images.data(), look.data(), spread.data()), to_out.data(), sums.data(), 0, windows);
  Values to_look(look.size()), to_spread(spread.size());
  for (int64_t tap = 0; tap < kernel * kernel; ++tap) {
    for (int64_t c = 0; c < channels; ++c) {
      to_look[static_cast<size_t>(c * kernel * kernel + tap)] = sums[static_cast<size_t>(tap * channels + c)];
      to_spread[static_cast<size_t>(c * kernel * kernel + tap)] = sums[static_cast<size_t>(taps + tap * channels + c)];
    }
  }
  check_gradient("locate, look", look, to_look, 3, value);
  check_gradient("locate, spread", spread, to_spread, 3, value);
  check_gradient("locate, temperature", logarithm, {sums.back()}, 1, value);
  Values wide(to_out.size());
  kernels.forward(shape(images.data(), look.data(), spread.data()), wide.data(), 0, windows);
  const auto narrow_images = as<float>(images), narrow_look = as<float>(look), narrow_spread = as<float>(spread);
  std::vector<float> narrow(to_out.size());
  locate_kernels(false)->forward(
      shape(narrow_images.data(), narrow_look.data(), narrow_spread.data()), narrow.data(), 0, windows);
  check(furthest(narrow, wide) < 1e-3, "locate, float", furthest(narrow, wide));
}

void test_gate(int64_t batch, int64_t steps, int64_t border, int64_t wall) {
  const int64_t count = batch * steps;
  Values positions = normal(2 * count, 0.5), layout = normal(8 * batch, 1), actions = normal(2 * count, 0.2);
  Values weights[] = {
      normal(3 * border, 0.6), normal(border, 0.6), normal(5 * wall, 0.6), normal(wall * wall, 0.2), normal(wall, 0.6)};
  const auto shape = [&] {
    return FeatureGate{positions.data(),  layout.data(),     actions.data(),    weights[0].data(), weights[1].data(),
                       weights[2].data(), weights[3].data(), weights[4].data(), count,             steps,
                       border,            wall,              4.0,               20.0};
  };
  const FeatureGateKernels& kernels = *feature_gate_kernels(true);
  const Values to_stay = normal(count, 1), to_move = normal(count, 1);
  const auto value = [&] {
    Values stay(to_stay.size()), move(to_move.size());
    kernels.forward(shape(), stay.data(), move.data(), 0, count);
    return dot(stay, to_stay) + dot(move, to_move);
  };
  Values sums(static_cast<size_t>(gate_sums(border, wall))), to_positions(positions.size());
  kernels.backward(shape(), to_stay.data(), to_move.data(), to_positions.data(), sums.data(), 0, count);
  check_gradient("gate, positions", positions, to_positions, 1, value);
  const int64_t rows[] = {border, 1, wall, wall, 1}, columns[] = {3, border, 5, wall, wall};
  const double* from = sums.data();
  for (int which = 0; which < 5; ++which) {
    Values gradient(weights[which].size());
    // A layer's gradient lies transposed, that of a last one as it is.
    for (int64_t column = 0; column < columns[which]; ++column) {
      for (int64_t row = 0; row < rows[which]; ++row) gradient[static_cast<size_t>(row * columns[which] + column)] = *from++;
    }
    check_gradient("gate, weights", weights[which], gradient, 7, value);
  }
  Values stay(to_stay.size()), move(to_move.size());
  kernels.forward(shape(), stay.data(), move.data(), 0, count);
  for (size_t i = 0; i < stay.size(); ++i) {
    const double sum = std::exp(stay[i]) + std::exp(move[i]);
    check(std::fabs(sum - 1) < 1e-12, "gate, probabilities", sum);
  }
}

void test_gated(int64_t steps, int64_t dim) {
  constexpr double spread = 20;
  Values weight = normal(2 * dim, 1), mix = normal(2 * dim, 1), to_weight(weight.size());
  gated_columns_backward(mix.data(), weight.data(), dim, spread, to_weight.data());
  check_gradient("columns", weight, to_weight, 1, [&] {
    Values columns(weight.size());
    gated_columns(weight.data(), dim, spread, columns.data());
    return dot(columns, mix);
  });
  Values latents = normal((steps + 1) * dim, 1), step = normal(steps * dim, 1), stay = normal(steps, 1), move = normal(steps, 1);
  const auto view = [&] {
    return GatedLikelihood<double>{latents.data(), step.data(), stay.data(), move.data(), steps, dim, 1.2};
  };
  const auto value = [&] {
    Values expected(step.size());
    double sums[3] = {};
    gated_likelihood(view(), 0, expected.data(), sums);
    return sums[0];
  };
  Values to_latents(latents.size()), to_step(step.size()), to_stay(stay.size()), to_move(move.size());
  gated_likelihood_backward(view(), 0, 1.0, to_latents.data(), to_step.data(), to_stay.data(), to_move.data());
  check_gradient("likelihood, latents", latents, to_latents, 1, value);
  check_gradient("likelihood, step", step, to_step, 1, value);
  check_gradient("likelihood, stay", stay, to_stay, 1, value);
  check_gradient("likelihood, move", move, to_move, 1, value);
}

// One step of Adam from zero moments, which moves every parameter by the rate against its gradient's sign.
void test_probe(int64_t batch, int64_t length, int64_t kept, int64_t dim, int64_t hidden) {
  const ProbeKernels& kernels = *probe_kernels();
  const int64_t trajectories = 5, size = probe_size(dim, hidden), count = batch * kept;
  const Values latents = normal(trajectories * length * dim, 1), targets = normal(trajectories * length * 2, 1);
  const Values plain = normal(size, 0.3);
  const auto narrow_latents = as<float>(latents), narrow_targets = as<float>(targets);
  // W1 transposed [D, H] to panels of its columns.
  std::vector<float> parameters = as<float>(plain), mean(parameters.size()), square(parameters.size());
  const auto panel_place = [&](int64_t d, int64_t h) {
    const int64_t first = h / kernels.panel_columns * kernels.panel_columns;
    const int64_t columns = std::min(kernels.panel_columns, hidden - first);
    return static_cast<size_t>(first * dim + d * columns + h - first);
  };
  for (int64_t d = 0; d < dim; ++d) {
    for (int64_t h = 0; h < hidden; ++h) {
      parameters[panel_place(d, h)] = static_cast<float>(plain[static_cast<size_t>(d * hidden + h)]);
    }
  }
  const std::vector<float> before = parameters;
  std::vector<int64_t> rows, times;
  for (int64_t i = 0; i < batch; ++i) rows.push_back(static_cast<int64_t>(generator() % trajectories));
  for (int64_t i = 0; i < count; ++i) times.push_back(static_cast<int64_t>(generator() % static_cast<uint64_t>(length)));
  std::vector<float> x(static_cast<size_t>(count * probe_row(dim))), slopes(static_cast<size_t>(count * hidden));
  std::vector<float> sums(static_cast<size_t>(probe_chunks * (3 * hidden + 2)));
  const ProbeWork work{x.data(), slopes.data(), sums.data()};
  const ProbeStep step{narrow_latents.data(), narrow_targets.data(), rows.data(), kept == length ? nullptr : times.data(),
                       length, batch, kept, dim, hidden};
  constexpr double rate = 1e-3;
  const ProbeAdam adam{parameters.data(), mean.data(), square.data(), rate, 1};
  for (int64_t chunk = 0; chunk < probe_chunks; ++chunk) kernels.forward(step, parameters.data(), chunk, work);
  const int64_t panels = (hidden + kernels.panel_columns - 1) / kernels.panel_columns;
  for (int64_t panel = 0; panel < panels; ++panel) kernels.update(step, adam, work, panel);
  // The gradient by loops; W1, then b1, W2, b2.
  Values gradient(plain.size());
  const double *const b1 = plain.data() + dim * hidden, *const w2 = b1 + hidden, *const b2 = w2 + 2 * hidden;
  for (int64_t sample = 0; sample < count; ++sample) {
    const int64_t time = kept == length ? sample % kept : times[static_cast<size_t>(sample)];
    const int64_t at = rows[static_cast<size_t>(sample / kept)] * length + time;
    Values h(static_cast<size_t>(hidden));
    double slope[2] = {b2[0], b2[1]};
    for (int64_t j = 0; j < hidden; ++j) {
      double value = b1[j];
      for (int64_t d = 0; d < dim; ++d) value += latents[static_cast<size_t>(at * dim + d)] * plain[static_cast<size_t>(d * hidden + j)];
      h[static_cast<size_t>(j)] = std::fmax(value, 0.0);
      for (int64_t axis = 0; axis < 2; ++axis) slope[axis] += h[static_cast<size_t>(j)] * w2[axis * hidden + j];
    }
    for (int64_t axis = 0; axis < 2; ++axis) {
      slope[axis] = (slope[axis] - targets[static_cast<size_t>(2 * at + axis)]) / static_cast<double>(count);
      gradient[static_cast<size_t>(dim * hidden + 3 * hidden + axis)] += slope[axis];
    }
    for (int64_t j = 0; j < hidden; ++j) {
      double back = 0;
      for (int64_t axis = 0; axis < 2; ++axis) {
        gradient[static_cast<size_t>(dim * hidden + (1 + axis) * hidden + j)] += slope[axis] * h[static_cast<size_t>(j)];
        back += slope[axis] * w2[axis * hidden + j];
      }
      if (h[static_cast<size_t>(j)] <= 0) continue;
      gradient[static_cast<size_t>(dim * hidden + j)] += back;
      for (int64_t d = 0; d < dim; ++d) {
        gradient[static_cast<size_t>(d * hidden + j)] += back * latents[static_cast<size_t>(at * dim + d)];
      }
    }
  }
  double worst = 0;
  for (int64_t i = 0; i < size; ++i) {
    const size_t place = i < dim * hidden ? panel_place(i / hidden, i % hidden) : static_cast<size_t>(i);
    worst = std::fmax(worst, std::fabs(mean[place] - 0.1 * gradient[static_cast<size_t>(i)]));
    check(std::fabs(parameters[place] - before[place]) < 1.01 * rate, "probe, step", parameters[place] - before[place]);
  }
  check(worst < 1e-5, "probe, gradient", worst);
  std::vector<float> out(static_cast<size_t>(2 * trajectories * length));
  kernels.outputs(narrow_latents.data(), dim, hidden, before.data(), 0, trajectories * length, out.data());
  for (const float value : out) check(std::isfinite(value), "probe, outputs", value);
}

void test_scene() {
  // Borders at the outermost lines of 6 x 7 pixels, a wall in column 3 with a door in row 2.
  std::vector<uint8_t> walls(6 * 7);
  for (int64_t y = 0; y < 6; ++y) {
    for (int64_t x = 0; x < 7; ++x) {
      const bool solid = y == 0 || y == 5 || x == 0 || x == 6 || (x == 3 && y != 2);
      walls[static_cast<size_t>(7 * y + x)] = solid ? 9 : 0;
    }
  }
  float layout[8];
  read_layout(walls.data(), 6, 7, 0, 1, layout);
  const float expected[8] = {0, 6, 0, 5, 3, 3, 2, 2};
  for (int i = 0; i < 8; ++i) check(layout[i] == expected[i], "layout", layout[i]);
  const std::vector<uint8_t> black(6);
  const int64_t corner[2] = {3, 7};
  float centre[2];
  read_centres(black.data(), corner, 2, 3, 0, 1, centre);
  check(centre[0] == 7 && centre[1] == 3, "centre of black", centre[0]);
}

}  // namespace

int main() {
  if (convnext_kernels(false) == nullptr) {
    std::printf("JEPA_FAST_CPU_ISA: not here\n");
    return 0;
  }
  test_locate(7, 3, 4, 8, 3);
  test_locate(3, 1, 1, 24, 3);
  test_locate(4, 2, 3, 16, 2);
  test_gate(3, 25, 16, 32);
  test_gate(1, 1, 32, 16);
  test_gated(3, 5);
  test_gated(2, 19);
  test_probe(4, 6, 6, 19, 48);
  test_probe(3, 6, 2, 5, 16);
  test_scene();
  std::printf("ops, %s: %s\n", convnext_kernels(false)->instruction_set, failures == 0 ? "all hold" : "failures");
  return failures == 0 ? 0 : 1;
}
