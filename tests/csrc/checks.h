// What the torch-free tests share: values in double, and failures that are counted and printed.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

using Values = std::vector<double>;
inline int failures = 0;

inline void check(bool holds, const char* what, double got) {
  if (holds) return;
  ++failures;
  std::printf("FAILED %s: %.3e\n", what, got);
}

inline Values draw_normal(std::mt19937& random, int64_t count, double scale, double mean = 0) {
  std::normal_distribution<double> normal(mean, scale);
  Values values(static_cast<size_t>(count));
  for (double& value : values) value = normal(random);
  return values;
}

template <typename T>
std::vector<T> as(const Values& values) {
  return {values.begin(), values.end()};
}

// The gradient of f(values) against central differences of it, where `every` picks some of the places.
template <typename F>
void check_gradient(const char* what, Values& values, const Values& gradient, size_t every, const F& f) {
  constexpr double step = 1e-5;
  double worst = 0, largest = 1e-6;
  for (size_t i = 0; i < values.size(); i += every) {
    const double kept = values[i];
    values[i] = kept + step;
    const double above = f();
    values[i] = kept - step;
    const double below = f();
    values[i] = kept;
    worst = std::fmax(worst, std::fabs((above - below) / (2 * step) - gradient[i]));
    largest = std::fmax(largest, std::fabs(gradient[i]));
  }
  check(worst < 1e-4 * largest, what, worst / largest);
}
