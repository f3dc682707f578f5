#include "cpu/convnext/plan.h"

#include <algorithm>
#include <numeric>

#include "cpu/convnext/bases.h"

namespace jepa_fast {

int64_t convnext_chunks(int64_t items, int64_t sums) {
  constexpr int64_t most_chunks = 32;
  constexpr int64_t most_doubles = int64_t{1} << 21;
  return std::max<int64_t>(1, std::min({items, most_chunks, most_doubles / sums}));
}

WindowPlan plan_windows(const WindowChain& chain, int64_t bases) {
  // Fewer windows than this are not worth the sums of a chunk.
  constexpr int64_t fewest_windows = 4;
  WindowPlan plan;
  plan.order.resize(static_cast<size_t>(chain.windows));
  std::iota(plan.order.begin(), plan.order.end(), 0);
  // By group, then by row: a chunk's windows cover little of their base.
  std::stable_sort(plan.order.begin(), plan.order.end(), [&](int64_t left, int64_t right) {
    const int64_t shift = chain.groups[left] - chain.groups[right];
    return shift != 0 ? shift < 0 : chain.corners[2 * left] < chain.corners[2 * right];
  });
  const int64_t sums = chain.blocks * convnext_sums_size(chain.channels) + chain.channels * chain.pixel_channels;
  const int64_t chunks = convnext_chunks((chain.windows + fewest_windows - 1) / fewest_windows, sums);
  const int64_t down = chain.growth_down() * chain.blocks;
  const int64_t across = chain.growth_across() * chain.blocks;
  // The part from `first` on that is of this base, grown to hold the rectangle, or a new one.
  const auto extend = [](std::vector<BasePart>& parts, int64_t first, const BasePart& rectangle) {
    for (int64_t i = first; i < static_cast<int64_t>(parts.size()); ++i) {
      BasePart& part = parts[static_cast<size_t>(i)];
      if (part.base != rectangle.base) continue;
      part.first_row = std::min(part.first_row, rectangle.first_row);
      part.last_row = std::max(part.last_row, rectangle.last_row);
      part.first_column = std::min(part.first_column, rectangle.first_column);
      part.last_column = std::max(part.last_column, rectangle.last_column);
      return i;
    }
    parts.push_back(rectangle);
    return static_cast<int64_t>(parts.size()) - 1;
  };
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t first = chain.windows * chunk / chunks;
    const int64_t last = chain.windows * (chunk + 1) / chunks;
    const int64_t first_part = static_cast<int64_t>(plan.parts.size());
    const int64_t first_over = static_cast<int64_t>(plan.overs.size());
    for (int64_t i = first; i < last && bases > 0; ++i) {
      const int64_t window = plan.order[static_cast<size_t>(i)];
      const int64_t top = chain.corners[2 * window];
      const int64_t left = chain.corners[2 * window + 1];
      BasePart rectangle{
          chain.groups[window], std::max<int64_t>(0, top - down),
          std::min(chain.image_height, top + chain.height + down), std::max<int64_t>(0, left - across),
          std::min(chain.image_width, left + chain.width + across), 0, 0};
      if (chain.over_corners != nullptr) {
        plan.over_of.push_back(extend(plan.overs, first_over, rectangle));
        rectangle.base = chain.over_groups[rectangle.base];
      }
      plan.part_of.push_back(extend(plan.parts, first_part, rectangle));
    }
    plan.chunks.push_back(
        {first, last, first_part, static_cast<int64_t>(plan.parts.size()), first_over,
         static_cast<int64_t>(plan.overs.size())});
  }
  for (BasePart& part : plan.parts) {
    part.offset = plan.parts_size;
    const int64_t pixels = (part.last_row - part.first_row) * (part.last_column - part.first_column);
    part.size = 2 * chain.blocks * pixels * chain.channels;
    plan.parts_size += part.size;
  }
  for (BasePart& over : plan.overs) {
    over.offset = plan.parts_size;
    for (int64_t block = 0; block < chain.blocks; ++block) {
      const int64_t width = covered_by_over(chain, over.base, block, over.first_row).width;
      over.size += 2 * (over.last_row - over.first_row) * width * chain.channels;
    }
    plan.parts_size += over.size;
  }
  return plan;
}

template <typename T>
void finish_over(const WindowChain& chain, const WindowPlan& plan, const T* parts, int64_t over, T* to_z, T* to_update) {
  const int64_t pixels = over_pixels_before(chain, chain.blocks);
  std::vector<double> sums(static_cast<size_t>(2 * pixels * chain.channels));
  for (const BasePart& part : plan.overs) {
    if (part.base != over) continue;
    for (int64_t kind = 0; kind < 2; ++kind) {
      const T* from = parts + part.offset + kind * part.size / 2;
      for (int64_t block = 0; block < chain.blocks; ++block) {
        for (int64_t row = part.first_row; row < part.last_row; ++row) {
          const Covered own = covered_by_over(chain, over, block, row);
          const int64_t start = kind * pixels + over_pixels_before(chain, block) + own.row * own.width;
          double* const to = sums.data() + (start + own.column) * chain.channels;
          for (int64_t i = 0; i < (own.last - own.first) * chain.channels; ++i) {
            to[i] += static_cast<double>(from[own.column * chain.channels + i]);
          }
          from += own.width * chain.channels;
        }
      }
    }
  }
  const int64_t count = pixels * chain.channels;
  for (int64_t i = 0; i < count; ++i) to_z[i] = static_cast<T>(sums[static_cast<size_t>(i)]);
  for (int64_t i = 0; i < count; ++i) to_update[i] = static_cast<T>(sums[static_cast<size_t>(count + i)]);
}

template <typename T>
void finish_sums(const double* sums, int64_t chunks, int64_t stride, int64_t count, T* out) {
  for (int64_t i = 0; i < count; ++i) {
    double sum = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += sums[chunk * stride + i];
    out[i] = static_cast<T>(sum);
  }
}

template <typename T>
void finish_parameters(
    const double* sums, int64_t chunks, int64_t stride, int64_t channels, const ParameterGradients<T>& to) {
  const int64_t hidden = 4 * channels;
  const int64_t count = convnext_sums_size(channels);
  std::vector<double> totals(static_cast<size_t>(count));
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    for (int64_t i = 0; i < count; ++i) totals[static_cast<size_t>(i)] += sums[chunk * stride + i];
  }
  const double* at = totals.data();
  for (int64_t tap = 0; tap < 49; ++tap) {
    for (int64_t c = 0; c < channels; ++c) to.weight[c * 49 + tap] = static_cast<T>(*at++);
  }
  for (int64_t c = 0; c < channels; ++c) to.gamma[c] = static_cast<T>(*at++);
  for (int64_t c = 0; c < channels; ++c) to.beta[c] = static_cast<T>(*at++);
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t j = 0; j < hidden; ++j) to.expand[j * channels + c] = static_cast<T>(*at++);
  }
  for (int64_t i = 0; i < hidden * channels; ++i) to.project[i] = static_cast<T>(*at++);
}

template <typename T>
void finish_base(
    const WindowChain& chain, const WindowPlan& plan, const T* parts, int64_t group, int64_t block, bool is_update, T* out) {
  const int64_t row_size = chain.image_width * chain.channels;
  std::vector<double> row(static_cast<size_t>(row_size));
  for (int64_t y = 0; y < chain.image_height; ++y, out += row_size) {
    bool is_touched = false;
    for (const BasePart& part : plan.parts) {
      if (part.base != group || y < part.first_row || y >= part.last_row) continue;
      if (!is_touched) std::fill(row.begin(), row.end(), 0.0);
      is_touched = true;
      const int64_t count = (part.last_column - part.first_column) * chain.channels;
      const int64_t rows = part.last_row - part.first_row;
      const int64_t layer = is_update ? chain.blocks + block : block;
      const T* const from = parts + part.offset + (layer * rows + y - part.first_row) * count;
      double* const to = row.data() + part.first_column * chain.channels;
      for (int64_t i = 0; i < count; ++i) to[i] += static_cast<double>(from[i]);
    }
    if (is_touched) {
      for (int64_t i = 0; i < row_size; ++i) out[i] = static_cast<T>(row[static_cast<size_t>(i)]);
    } else {
      std::fill(out, out + row_size, T{});
    }
  }
}

template void finish_sums(const double*, int64_t, int64_t, int64_t, float*);
template void finish_sums(const double*, int64_t, int64_t, int64_t, double*);
template void finish_parameters(const double*, int64_t, int64_t, int64_t, const ParameterGradients<float>&);
template void finish_parameters(const double*, int64_t, int64_t, int64_t, const ParameterGradients<double>&);
template void finish_over(const WindowChain&, const WindowPlan&, const float*, int64_t, float*, float*);
template void finish_over(const WindowChain&, const WindowPlan&, const double*, int64_t, double*, double*);
template void finish_base(const WindowChain&, const WindowPlan&, const float*, int64_t, int64_t, bool, float*);
template void finish_base(const WindowChain&, const WindowPlan&, const double*, int64_t, int64_t, bool, double*);

}  // namespace jepa_fast
