// The predictor's rollout without torch: states against loops written for reading, gradients against finite differences,
// every instruction set that runs here. `scripts/test_csrc.sh` builds it with sanitizers, or for arm64.
#include "rollout.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "checks.h"
#include "convnext.h"

using namespace jepa_fast;

namespace {

struct Case {
  int64_t dim, batch, steps, actions;
  bool dropout, state_residual, gelu_first;
};

constexpr DropoutKeys keys{0x1234567u, 0x89abcdeu, 1u << 30, 1.25f};
constexpr int64_t first_element = 77;

// first, actions, then the weights in the order of the op.
std::vector<Values> draw(const Case& c) {
  std::mt19937 random(5);
  const auto normal = [&](int64_t count, double scale, double mean = 0) { return draw_normal(random, count, scale, mean); };
  const int64_t d = c.dim, h = 4 * d;
  return {normal(c.batch * d, 1), normal(c.batch * c.steps * c.actions, 1),
          normal(d, 0.3, 1),      normal(d, 0.3),
          normal(d * c.actions, 1), normal(d, 0.3),
          normal(d, 0.3, 1),      normal(d, 0.3),
          normal(h * d, 0.4),     normal(h, 0.3),
          normal(h, 0.3, 1),      normal(h, 0.3),
          normal(d * h, 0.2),     normal(d, 0.3)};
}

Values norm(const Values& x, const double* weight, const double* bias) {
  const auto count = static_cast<double>(x.size());
  double mean = 0, variance = 0;
  for (const double value : x) mean += value / count;
  for (const double value : x) variance += (value - mean) * (value - mean) / count;
  Values out(x.size());
  for (size_t i = 0; i < x.size(); ++i) out[i] = (x[i] - mean) / std::sqrt(variance + 1e-5) * weight[i] + bias[i];
  return out;
}

double gelu(double x) { return 0.5 * x * std::erfc(-x / std::sqrt(2.0)); }

Values reference(const Case& c, const std::vector<Values>& values) {
  const int64_t d = c.dim, h = 4 * d;
  const auto w = [&](size_t index) { return values[index].data(); };
  const auto affine = [&](const double* matrix, const Values& x, const double* bias, int64_t rows) {
    Values out(bias, bias + rows);
    for (size_t i = 0; i < out.size(); ++i) {
      for (size_t k = 0; k < x.size(); ++k) out[i] += matrix[i * x.size() + k] * x[k];
    }
    return out;
  };
  Values states;
  for (int64_t b = 0; b < c.batch; ++b) {
    Values state(w(0) + b * d, w(0) + (b + 1) * d);
    for (int64_t t = 0; t < c.steps; ++t) {
      const int64_t place = b * c.steps + t;
      const Values action(w(1) + place * c.actions, w(1) + (place + 1) * c.actions);
      const Values normed = norm(state, w(2), w(3));
      Values fused = norm(affine(w(4), action, w(5), d), w(6), w(7));
      for (size_t i = 0; i < fused.size(); ++i) fused[i] += normed[i];
      Values hidden = affine(w(8), fused, w(9), h);
      if (c.gelu_first) std::transform(hidden.begin(), hidden.end(), hidden.begin(), gelu);
      hidden = norm(hidden, w(10), w(11));
      if (!c.gelu_first) std::transform(hidden.begin(), hidden.end(), hidden.begin(), gelu);
      for (int64_t j = 0; j < h && c.dropout; ++j) {
        hidden[static_cast<size_t>(j)] *= dropout_factor(keys, static_cast<uint32_t>(first_element + place * h + j));
      }
      state = affine(w(12), hidden, w(13), d);
      const Values& residual = c.state_residual ? normed : fused;
      for (size_t i = 0; i < state.size(); ++i) state[i] += residual[i];
      states.insert(states.end(), state.begin(), state.end());
    }
  }
  return states;
}

template <typename T>
struct Run {
  std::vector<T> states;
  std::vector<std::vector<T>> gradients;  // like the arguments

  Run(const Case& c, const std::vector<Values>& drawn, const Values* probe) {
    const RolloutKernels& kernels = *rollout_kernels(sizeof(T) == 8);
    std::vector<std::vector<T>> v;
    for (const Values& values : drawn) v.emplace_back(values.begin(), values.end());
    const auto numbers = [](int64_t count) { return std::vector<T>(static_cast<size_t>(count), static_cast<T>(NAN)); };
    const int64_t d = c.dim, h = 4 * d, rows = c.batch * c.steps;
    const RolloutParameters parameters{v[2].data(), v[3].data(), v[4].data(),  v[5].data(),  v[6].data(),  v[7].data(),
                                       v[8].data(), v[9].data(), v[10].data(), v[11].data(), v[12].data(), v[13].data()};
    std::vector<T> packed = numbers(kernels.packed_size(d, c.actions));
    kernels.pack(parameters, d, c.actions, false, packed.data());
    const Rollout rollout{
        v[0].data(), v[1].data(), packed.data(), c.batch, c.steps, d, c.actions, keys, first_element, c.dropout,
        c.state_residual, c.gelu_first};
    states = numbers(rows * d);
    std::vector<T> alone = states, hidden = numbers(rows * h), dropped = hidden, statistics = numbers(2 * rows);
    for (int64_t block = 0; block < rollout_blocks(c.batch); ++block) {
      kernels.forward(rollout, {alone.data(), nullptr, nullptr, nullptr}, block);
      kernels.forward(rollout, {states.data(), hidden.data(), dropped.data(), statistics.data()}, block);
    }
    check(alone == states, "states where nothing is kept", 0);
    if (probe == nullptr) return;
    kernels.pack(parameters, d, c.actions, true, packed.data());
    const std::vector<T> to_states(probe->begin(), probe->end());
    for (const std::vector<T>& values : v) gradients.push_back(numbers(static_cast<int64_t>(values.size())));
    std::vector<T> to_hidden = numbers(rows * h), fused = numbers(rows * kernels.padded(d)), totals = fused;
    const int64_t count = rollout_vectors(d, c.actions);
    Values shares(static_cast<size_t>(rollout_blocks(c.batch) * count), NAN);
    const RolloutGradients arguments{
        to_states.data(), states.data(), hidden.data(), dropped.data(), statistics.data(), gradients[0].data(),
        gradients[1].data(), to_hidden.data(), fused.data(), totals.data(), shares.data(), gradients[8].data(),
        gradients[12].data()};
    for (int64_t block = 0; block < rollout_blocks(c.batch); ++block) kernels.backward(rollout, arguments, block);
    for (int64_t task = 0; task < rollout_matrix_tasks(d); ++task) kernels.matrices(rollout, arguments, task);
    size_t at = 0;
    for (const size_t index : {9, 10, 11, 13, 2, 3, 6, 7, 5, 4}) {
      for (T& value : gradients[index]) {
        double sum = 0;
        for (size_t share = at; share < shares.size(); share += static_cast<size_t>(count)) sum += shares[share];
        value = static_cast<T>(sum);
        ++at;
      }
    }
  }
};

template <typename T>
double distance(const std::vector<T>& got, const Values& expected) {
  double error = 0, size = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    error += std::pow(static_cast<double>(got[i]) - expected[i], 2);
    size += std::pow(expected[i], 2);
  }
  return expected.empty() ? 0 : std::sqrt(error / std::max(size, 1e-300));
}

double dot(const Values& left, const Values& right) {
  double sum = 0;
  for (size_t i = 0; i < left.size(); ++i) sum += left[i] * right[i];
  return sum;
}

void run(const Case& c) {
  const std::vector<Values> arguments = draw(c);
  const Values truth = reference(c, arguments);
  std::mt19937 random(11);
  std::normal_distribution<double> normal;
  Values probe(truth.size());
  for (double& value : probe) value = normal(random);
  const Run<double> exact(c, arguments, &probe);
  const Run<float> single(c, arguments, &probe);
  check(distance(exact.states, truth) < 1e-12, "states in double", distance(exact.states, truth));
  check(distance(single.states, truth) < 1e-5, "states in float", distance(single.states, truth));
  for (size_t part = 0; part < arguments.size(); ++part) {
    const Values& found = exact.gradients[part];
    check(distance(single.gradients[part], found) < 2e-5, "gradients in float", distance(single.gradients[part], found));
    // The slope along a random direction of this argument alone.
    Values direction(found.size());
    for (double& value : direction) value = normal(random);
    double values[2];
    constexpr double step = 1e-6;
    for (int side = 0; side < 2; ++side) {
      std::vector<Values> moved = arguments;
      for (size_t i = 0; i < direction.size(); ++i) moved[part][i] += (side == 0 ? step : -step) * direction[i];
      values[side] = dot(Run<double>(c, moved, nullptr).states, probe);
    }
    const double slope = (values[0] - values[1]) / (2 * step);
    const double along = dot(found, direction);
    check(std::abs(slope - along) <= 1e-6 * std::max(1.0, std::abs(slope)), "slope", slope - along);
  }
}

}  // namespace

int main() {
  if (convnext_kernels(false) == nullptr) {
    std::printf("JEPA_FAST_CPU_ISA: not here\n");
    return 0;
  }
  const Case cases[] = {
      {5, 3, 4, 2, true, false, false}, {16, 9, 2, 1, false, true, true}, {20, 1, 1, 3, true, true, false},
      {33, 2, 3, 2, true, false, true}, {8, 0, 2, 2, false, false, false}, {3, 67, 2, 7, false, false, false}};
  for (const Case& each : cases) run(each);
  std::printf("rollout, %s: %s\n", convnext_kernels(false)->instruction_set, failures == 0 ? "all hold" : "failures");
  return failures == 0 ? 0 : 1;
}
