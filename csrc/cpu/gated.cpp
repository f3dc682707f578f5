#include "gated.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace jepa_fast {
namespace {

// Of torch.nn.functional.normalize.
constexpr double least_length = 1e-12;

// A weight's columns in double: x of length one, what of y is orthogonal to it, and their lengths.
struct Orthonormal {
  std::vector<double> x, y;
  double first_length = 0, along = 0, second_length = 0;

  template <typename T>
  Orthonormal(const T* weight, int64_t dim) : x(static_cast<size_t>(dim)), y(x.size()) {
    for (size_t i = 0; i < x.size(); ++i) first_length += square(weight[2 * i]);
    first_length = std::max(std::sqrt(first_length), least_length);
    for (size_t i = 0; i < x.size(); ++i) {
      x[i] = weight[2 * i] / first_length;
      along += x[i] * weight[2 * i + 1];
    }
    for (size_t i = 0; i < x.size(); ++i) {
      y[i] = weight[2 * i + 1] - along * x[i];
      second_length += y[i] * y[i];
    }
    second_length = std::max(std::sqrt(second_length), least_length);
    for (double& value : y) value /= second_length;
  }

  static double square(double value) { return value * value; }
};

// Sums over `count` in eight lanes, which a compiler may take as a vector.
template <typename T, typename F>
double sum_of(int64_t count, const F& f) {
  constexpr int lanes = 8;
  T sums[lanes] = {};
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    for (int lane = 0; lane < lanes; ++lane) sums[lane] += f(i + lane);
  }
  double total = 0;
  for (; i < count; ++i) total += static_cast<double>(f(i));
  for (const T sum : sums) total += static_cast<double>(sum);
  return total;
}

template <typename T>
struct Outcomes {
  const T *before, *after, *step;
  double stay, move;  // shares of the likelihood
  double nll;

  Outcomes(const GatedLikelihood<T>& at, int64_t trajectory, int64_t time) {
    const int64_t row = trajectory * at.steps + time;
    before = at.latents + (trajectory * (at.steps + 1) + time) * at.dim;
    after = before + at.dim;
    step = at.step + row * at.dim;
    const double stayed = sum_of<T>(at.dim, [&](int64_t i) { return (after[i] - before[i]) * (after[i] - before[i]); });
    const double moved = sum_of<T>(at.dim, [&](int64_t i) {
      const T gap = after[i] - before[i] - step[i];
      return gap * gap;
    });
    const double width = 2 * at.sigma * at.sigma;
    const double exponents[] = {at.log_stay[row] - stayed / width, at.log_move[row] - moved / width};
    const double largest = std::max(exponents[0], exponents[1]);
    const double sum = std::exp(exponents[0] - largest) + std::exp(exponents[1] - largest);
    nll = -(largest + std::log(sum));
    stay = std::exp(exponents[0] + nll);
    move = std::exp(exponents[1] + nll);
  }
};

}  // namespace

template <typename T>
void gated_columns(const T* weight, int64_t dim, double spread, T* columns) {
  const Orthonormal found(weight, dim);
  for (size_t i = 0; i < found.x.size(); ++i) {
    columns[2 * i] = static_cast<T>(spread * found.x[i]);
    columns[2 * i + 1] = static_cast<T>(spread * found.y[i]);
  }
}

template <typename T>
void gated_columns_backward(const T* gradient, const T* weight, int64_t dim, double spread, T* to_weight) {
  const Orthonormal found(weight, dim);
  const std::vector<double>&x = found.x, &y = found.y;
  double along_y = 0;
  for (size_t i = 0; i < x.size(); ++i) along_y += y[i] * spread * gradient[2 * i + 1];
  // Of what is orthogonal to x, before it is brought to length one.
  std::vector<double> to_rest(x.size());
  double rest_along_x = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    to_rest[i] = (spread * gradient[2 * i + 1] - along_y * y[i]) / found.second_length;
    rest_along_x += x[i] * to_rest[i];
  }
  std::vector<double> to_x(x.size());
  double along_x = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    to_x[i] = spread * gradient[2 * i] - found.along * to_rest[i] - rest_along_x * weight[2 * i + 1];
    along_x += x[i] * to_x[i];
  }
  for (size_t i = 0; i < x.size(); ++i) {
    to_weight[2 * i] = static_cast<T>((to_x[i] - along_x * x[i]) / found.first_length);
    to_weight[2 * i + 1] = static_cast<T>(to_rest[i] - rest_along_x * x[i]);
  }
}

template <typename T>
void gated_likelihood(const GatedLikelihood<T>& at, int64_t trajectory, T* expected, double* sums) {
  for (int64_t time = 0; time < at.steps; ++time) {
    const Outcomes<T> outcomes(at, trajectory, time);
    const int64_t row = trajectory * at.steps + time;
    const T chance = std::exp(at.log_move[row]);
    T* const mean = expected + row * at.dim;
    for (int64_t i = 0; i < at.dim; ++i) mean[i] = outcomes.before[i] + chance * outcomes.step[i];
    sums[0] += outcomes.nll;
    sums[1] += sum_of<T>(at.dim, [&](int64_t i) { return (mean[i] - outcomes.after[i]) * (mean[i] - outcomes.after[i]); });
    sums[2] += static_cast<double>(chance);
  }
}

template <typename T>
void gated_likelihood_backward(
    const GatedLikelihood<T>& at, int64_t trajectory, double scale, T* to_latents, T* to_step, T* to_stay, T* to_move) {
  T* const to_first = to_latents + trajectory * (at.steps + 1) * at.dim;
  std::fill_n(to_first, (at.steps + 1) * at.dim, T{});
  for (int64_t time = 0; time < at.steps; ++time) {
    const Outcomes<T> outcomes(at, trajectory, time);
    const int64_t row = trajectory * at.steps + time;
    to_stay[row] = static_cast<T>(-scale * outcomes.stay);
    to_move[row] = static_cast<T>(-scale * outcomes.move);
    const double width = at.sigma * at.sigma;
    const T of_stayed = static_cast<T>(scale * outcomes.stay / width), of_moved = static_cast<T>(scale * outcomes.move / width);
    T *const to_before = to_first + time * at.dim, *const to_after = to_before + at.dim, *const to = to_step + row * at.dim;
    for (int64_t i = 0; i < at.dim; ++i) {
      const T gap = outcomes.after[i] - outcomes.before[i];
      const T moved = of_moved * (gap - outcomes.step[i]);
      to[i] = -moved;
      to_before[i] -= of_stayed * gap + moved;
      to_after[i] += of_stayed * gap + moved;
    }
  }
}

template void gated_columns(const float*, int64_t, double, float*);
template void gated_columns(const double*, int64_t, double, double*);
template void gated_columns_backward(const float*, const float*, int64_t, double, float*);
template void gated_columns_backward(const double*, const double*, int64_t, double, double*);
template void gated_likelihood(const GatedLikelihood<float>&, int64_t, float*, double*);
template void gated_likelihood(const GatedLikelihood<double>&, int64_t, double*, double*);
template void gated_likelihood_backward(const GatedLikelihood<float>&, int64_t, double, float*, float*, float*, float*);
template void gated_likelihood_backward(const GatedLikelihood<double>&, int64_t, double, double*, double*, double*, double*);

}  // namespace jepa_fast
