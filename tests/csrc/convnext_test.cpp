// The compiled blocks without torch: windows and images against loops written for reading, gradients against finite
// differences, every instruction set that runs here. `scripts/test_csrc.sh` builds it with sanitizers, or for arm64.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "checks.h"
#include "convnext.h"
#include "cpu/convnext/plan.h"

using namespace jepa_fast;

namespace {

struct Case {
  int64_t windows, height, width, image_height, image_width, channels, blocks, bases, inputs;
  bool pooled;
};

// All that a chain is a function of, one after the other.
struct Arguments {
  Values pixels, stem, weight, gamma, beta, expand, project, base_z, base_update;
  std::vector<int64_t> corners, groups;

  explicit Arguments(const Case& c) {
    std::mt19937 random(7);
    const auto draw = [&](int64_t count, double scale, double mean = 0) { return draw_normal(random, count, scale, mean); };
    const int64_t matrix = c.blocks * 4 * c.channels * c.channels;
    const int64_t base = c.bases * c.blocks * c.image_height * c.image_width * c.channels;
    pixels = draw(c.windows * c.height * c.width * c.inputs, 1);
    stem = draw(c.channels * c.inputs, 1);
    weight = draw(c.blocks * c.channels * 49, 0.2);
    gamma = draw(c.blocks * c.channels, 0.3, 1);
    beta = draw(c.blocks * c.channels, 0.3);
    expand = draw(matrix, 0.25);
    project = draw(matrix, 0.12);
    base_z = draw(base, 1);
    base_update = draw(base, 1);
    for (int64_t window = 0; window < c.windows; ++window) {
      const bool far = window % 2 == 1;
      corners.push_back(far ? c.image_height - c.height : static_cast<int64_t>(random()) % (c.image_height - c.height + 1));
      corners.push_back(far ? c.image_width - c.width : static_cast<int64_t>(random()) % (c.image_width - c.width + 1));
      groups.push_back(c.bases > 0 ? window % c.bases : 0);
    }
  }

  std::vector<Values*> all() {
    return {&pixels, &stem, &weight, &gamma, &beta, &expand, &project, &base_z, &base_update};
  }
};

WindowChain chain_of(const Case& c, const Arguments& a) {
  WindowChain chain{};
  chain.corners = a.corners.data();
  chain.groups = a.groups.data();
  chain.windows = c.windows;
  chain.height = c.height;
  chain.width = c.width;
  chain.blocks = c.blocks;
  chain.channels = c.channels;
  chain.pixel_channels = c.inputs;
  chain.image_height = c.image_height;
  chain.image_width = c.image_width;
  chain.cells_down = convnext_pooled_side;
  chain.cells_across = convnext_pooled_side;
  chain.eps = 1e-5;
  chain.pooled = c.pooled;
  return chain;
}

// The last difference [N, h, w, C] by the formulas.
Values reference(const Case& c, const Arguments& a) {
  const WindowChain chain = chain_of(c, a);
  Values out;
  for (int64_t n = 0; n < c.windows; ++n) {
    Values delta(static_cast<size_t>(c.height * c.width * c.channels));
    for (int64_t p = 0; p < c.height * c.width; ++p) {
      for (int64_t k = 0; k < c.channels; ++k) {
        for (int64_t i = 0; i < c.inputs; ++i) {
          delta[p * c.channels + k] += a.pixels[(n * c.height * c.width + p) * c.inputs + i] * a.stem[k * c.inputs + i];
        }
      }
    }
    int64_t height = c.height, width = c.width;
    for (int64_t l = 0; l < c.blocks; ++l) {
      const int64_t down = chain.growth_down(), across = chain.growth_across();
      const int64_t new_height = height + 2 * down, new_width = width + 2 * across;
      Values next(static_cast<size_t>(new_height * new_width * c.channels));
      for (int64_t y = 0; y < new_height; ++y) {
        for (int64_t x = 0; x < new_width; ++x) {
          const int64_t row = a.corners[2 * n] - down * (l + 1) + y;
          const int64_t column = a.corners[2 * n + 1] - across * (l + 1) + x;
          if (row < 0 || column < 0 || row >= c.image_height || column >= c.image_width) continue;
          const int64_t base =
              (((a.groups[n] * c.blocks + l) * c.image_height + row) * c.image_width + column) * c.channels;
          const auto before = [&](int64_t i, int64_t j, int64_t k) {
            const bool inside = i >= 0 && j >= 0 && i < height && j < width;
            return inside ? delta[(i * width + j) * c.channels + k] : 0.0;
          };
          Values z(static_cast<size_t>(c.channels)), inner = z;
          double mean = 0, variance = 0;
          for (int64_t k = 0; k < c.channels; ++k) {
            z[k] = c.bases > 0 ? a.base_z[base + k] : 0;
            for (int64_t tap = 0; tap < 49; ++tap) {
              z[k] += a.weight[(l * c.channels + k) * 49 + tap] * before(y + tap / 7 - 3 - down, x + tap % 7 - 3 - across, k);
            }
            mean += z[k] / static_cast<double>(c.channels);
          }
          for (double value : z) variance += (value - mean) * (value - mean) / static_cast<double>(c.channels);
          for (int64_t k = 0; k < c.channels; ++k) {
            inner[k] = (z[k] - mean) / std::sqrt(variance + 1e-5) * a.gamma[l * c.channels + k] + a.beta[l * c.channels + k];
          }
          double* const to = next.data() + (y * new_width + x) * c.channels;
          for (int64_t j = 0; j < 4 * c.channels; ++j) {
            double h = 0;
            for (int64_t k = 0; k < c.channels; ++k) h += a.expand[(l * 4 * c.channels + j) * c.channels + k] * inner[k];
            const double g = 0.5 * h * std::erfc(-h / std::sqrt(2.0));
            for (int64_t k = 0; k < c.channels; ++k) to[k] += a.project[(l * c.channels + k) * 4 * c.channels + j] * g;
          }
          for (int64_t k = 0; k < c.channels; ++k) {
            to[k] += before(y - down, x - across, k) - (c.bases > 0 ? a.base_update[base + k] : 0);
          }
        }
      }
      delta = next;
      height = new_height;
      width = new_width;
    }
    if (!c.pooled) {
      out.insert(out.end(), delta.begin(), delta.end());
      continue;
    }
    const auto at = [&](int64_t cell, int64_t size) {
      return std::pair(cell * size / 6, ((cell + 1) * size + 5) / 6);
    };
    for (int64_t i = 0; i < 6; ++i) {
      for (int64_t j = 0; j < 6; ++j) {
        const auto [top, bottom] = at(i, c.image_height);
        const auto [left, right] = at(j, c.image_width);
        for (int64_t k = 0; k < c.channels; ++k) {
          double sum = 0;
          for (int64_t y = 0; y < height; ++y) {
            for (int64_t x = 0; x < width; ++x) {
              const int64_t row = a.corners[2 * n] - chain.growth_down() * c.blocks + y;
              const int64_t column = a.corners[2 * n + 1] - chain.growth_across() * c.blocks + x;
              if (row < top || row >= bottom || column < left || column >= right) continue;
              sum += delta[(y * width + x) * c.channels + k];
            }
          }
          out.push_back(sum / static_cast<double>((bottom - top) * (right - left)));
        }
      }
    }
  }
  return out;
}

// One forward and backward pass in T. Buffers hold exactly what they must: a sanitizer sees a step beyond.
template <typename T>
struct Run {
  std::vector<T> out, z, inputs, hidden;
  std::vector<Values> gradients;  // as Arguments::all

  Run(const Case& c, Arguments a, const Values* probe) {
    const ConvNextKernels& kernels = *convnext_kernels(sizeof(T) == 8);
    std::vector<std::vector<T>> values;
    for (Values* part : a.all()) values.emplace_back(part->begin(), part->end());
    WindowChain chain = chain_of(c, a);
    std::vector<T> packed(static_cast<size_t>(c.blocks * convnext_packed_size(c.channels)));
    kernels.pack(
        {values[2].data(), values[3].data(), values[4].data(), values[5].data(), values[6].data(), c.blocks, c.channels,
         1e-5},
        packed.data());
    chain.pixels = values[0].data();
    chain.stem = values[1].data();
    chain.packed = packed.data();
    if (c.bases > 0) chain.base_z = values[7].data();
    if (c.bases > 0) chain.base_update = values[8].data();
    const int64_t last = chain.height_after(c.blocks) * chain.width_after(c.blocks);
    out.resize(static_cast<size_t>(c.windows * (c.pooled ? 36 : last) * c.channels));
    z.resize(static_cast<size_t>(c.windows * chain.pixels_after(c.blocks) * c.channels));
    inputs.resize(static_cast<size_t>(c.windows * chain.pixels_after(c.blocks - 1) * c.channels));
    hidden.resize(static_cast<size_t>(c.pooled ? c.windows * 36 * 4 * c.channels : 0));
    kernels.windows(chain, {out.data(), z.data(), inputs.data(), nullptr, hidden.data()}, 0, c.windows);
    if (probe == nullptr) return;
    const std::vector<T> to_out(probe->begin(), probe->end());
    const WindowPlan plan = plan_windows(chain, c.bases);
    const int64_t stride = c.blocks * convnext_sums_size(c.channels) + c.channels * c.inputs;
    Values sums(plan.chunks.size() * static_cast<size_t>(stride));
    std::vector<T> parts(static_cast<size_t>(plan.parts_size)), to_pixels(values[0].size());
    const WindowGradients arguments{
        to_out.data(), nullptr, nullptr, z.data(), inputs.data(), hidden.data(), plan.order.data(), plan.chunks.data(),
        plan.parts.data(), plan.overs.data(), plan.part_of.data(), plan.over_of.data(),
        c.bases > 0 ? parts.data() : nullptr, sums.data(), to_pixels.data()};
    const int64_t chunks = static_cast<int64_t>(plan.chunks.size());
    for (int64_t chunk = 0; chunk < chunks; ++chunk) kernels.windows_backward(chain, arguments, chunk);
    std::vector<std::vector<T>> to(values);
    to[0] = to_pixels;
    finish_sums<T>(
        sums.data() + c.blocks * convnext_sums_size(c.channels), chunks, stride, c.channels * c.inputs, to[1].data());
    for (int64_t l = 0; l < c.blocks; ++l) {
      const int64_t matrix = l * 4 * c.channels * c.channels;
      finish_parameters<T>(
          sums.data() + l * convnext_sums_size(c.channels), chunks, stride, c.channels,
          {to[2].data() + l * c.channels * 49, to[3].data() + l * c.channels, to[4].data() + l * c.channels,
           to[5].data() + matrix, to[6].data() + matrix});
    }
    const int64_t size = c.image_height * c.image_width * c.channels;
    for (int64_t image = 0; image < c.bases * c.blocks; ++image) {
      for (const bool is_update : {false, true}) {
        finish_base<T>(
            chain, plan, parts.data(), image / c.blocks, image % c.blocks, is_update,
            to[is_update ? 8 : 7].data() + image * size);
      }
    }
    for (const std::vector<T>& part : to) gradients.emplace_back(part.begin(), part.end());
  }
};

double dot(const Values& left, const Values& right) {
  double sum = 0;
  for (size_t i = 0; i < left.size(); ++i) sum += left[i] * right[i];
  return sum;
}

template <typename T>
double distance(const std::vector<T>& got, const Values& expected) {
  double error = 0, size = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    error += std::pow(static_cast<double>(got[i]) - expected[i], 2);
    size += std::pow(expected[i], 2);
  }
  return std::sqrt(error / std::max(size, 1e-300));
}

void run(const Case& c) {
  Arguments arguments(c);
  const Values truth = reference(c, arguments);
  std::mt19937 random(11);
  std::normal_distribution<double> normal;
  Values probe(truth.size());
  for (double& value : probe) value = normal(random);
  const Run<double> exact(c, arguments, &probe);
  const Run<float> single(c, arguments, &probe);
  check(distance(exact.out, truth) < 1e-12, "windows in double", distance(exact.out, truth));
  check(distance(single.out, truth) < 2e-6, "windows in float", distance(single.out, truth));
  for (size_t part = 0; part < exact.gradients.size(); ++part) {
    const Values rounded(single.gradients[part]);
    check(distance(rounded, exact.gradients[part]) < 2e-5, "gradients in float", distance(rounded, exact.gradients[part]));
    // The slope along a random direction of this argument alone.
    Values direction(exact.gradients[part].size());
    for (double& value : direction) value = normal(random);
    double values[2];
    constexpr double step = 1e-5;
    for (int side = 0; side < 2; ++side) {
      Arguments moved = arguments;
      Values& values_of = *moved.all()[part];
      for (size_t i = 0; i < direction.size(); ++i) values_of[i] += (side == 0 ? step : -step) * direction[i];
      values[side] = dot(Run<double>(c, moved, nullptr).out, probe);
    }
    const double slope = (values[0] - values[1]) / (2 * step);
    const double found = dot(exact.gradients[part], direction);
    check(std::abs(slope - found) <= 1e-6 * std::max(1.0, std::abs(slope)), "slope", slope - found);
  }
}

}  // namespace

int main() {
  if (convnext_kernels(false) == nullptr) {
    std::printf("JEPA_FAST_CPU_ISA: not here\n");
    return 0;
  }
  const Case cases[] = {
      {3, 5, 5, 17, 19, 16, 2, 2, 1, true}, {3, 5, 5, 17, 19, 16, 2, 1, 1, false}, {2, 9, 3, 9, 16, 8, 3, 1, 2, true},
      {2, 8, 9, 8, 9, 24, 1, 0, 1, false},  {4, 1, 1, 7, 8, 32, 2, 3, 1, true},    {1, 2, 1, 3, 4, 64, 1, 1, 3, true}};
  for (const Case& each : cases) run(each);
  std::printf("%s: %s\n", convnext_kernels(false)->instruction_set, failures == 0 ? "all hold" : "failures");
  return failures == 0 ? 0 : 1;
}
