#include <algorithm>
#include <vector>

#include "cpu/convnext/plan.h"

namespace jepa_fast {
namespace {

// What a window covers of one row of its image after block `block`, of which 0 is the first: columns [first, last), and
// where in the window that lies. Nothing: first == last.
struct Covered {
  int64_t first, last;
  int64_t offset;  // pixels into the windows' values
};

Covered covered(const WindowChain& chain, int64_t window, int64_t block, int64_t row) {
  const int64_t top = chain.corners[2 * window] - chain.growth_down() * (block + 1);
  const int64_t left = chain.corners[2 * window + 1] - chain.growth_across() * (block + 1);
  const int64_t width = chain.width_after(block + 1);
  if (row < top || row >= top + chain.height_after(block + 1)) return {0, 0, 0};
  const int64_t first = std::max<int64_t>(0, left);
  const int64_t start = window * chain.pixels_after(chain.blocks) + chain.pixels_after(block);
  return {first, std::min(chain.image_width, left + width), start + (row - top) * width + first - left};
}

}  // namespace

template <typename T>
void paste_row(const WindowChain& chain, const T* windows, const T* bases, int64_t row, T* images) {
  const int64_t y = row % chain.image_height;
  const int64_t block = row / chain.image_height % chain.blocks;
  const int64_t window = row / chain.image_height / chain.blocks;
  const int64_t channels = chain.channels;
  const int64_t size = chain.image_width * channels;
  const int64_t base_row = (chain.groups[window] * chain.blocks + block) * chain.image_height + y;
  const Covered own = covered(chain, window, block, y);
  T* const to = images + row * size;
  const T* const base = bases + base_row * size;
  std::copy(base, base + own.first * channels, to);
  const T* const from = windows + own.offset * channels;
  std::copy(from, from + (own.last - own.first) * channels, to + own.first * channels);
  std::copy(base + own.last * channels, base + size, to + own.last * channels);
}

template <typename T>
void paste_backward_window(const WindowChain& chain, const T* images, int64_t window, T* windows) {
  const int64_t channels = chain.channels;
  const int64_t pixels = chain.pixels_after(chain.blocks);
  T* const to = windows + window * pixels * channels;
  std::fill(to, to + pixels * channels, T{});
  for (int64_t block = 0; block < chain.blocks; ++block) {
    for (int64_t y = 0; y < chain.image_height; ++y) {
      const Covered own = covered(chain, window, block, y);
      const int64_t row = (window * chain.blocks + block) * chain.image_height + y;
      const T* const from = images + (row * chain.image_width + own.first) * channels;
      std::copy(from, from + (own.last - own.first) * channels, windows + own.offset * channels);
    }
  }
}

template <typename T>
void paste_backward_row(const WindowChain& chain, const T* images, int64_t row, T* bases) {
  const int64_t y = row % chain.image_height;
  const int64_t block = row / chain.image_height % chain.blocks;
  const int64_t group = row / chain.image_height / chain.blocks;
  const int64_t channels = chain.channels;
  const int64_t size = chain.image_width * channels;
  std::vector<double> sums(static_cast<size_t>(size));
  for (int64_t window = 0; window < chain.windows; ++window) {
    if (chain.groups[window] != group) continue;
    const Covered own = covered(chain, window, block, y);
    const T* const from = images + ((window * chain.blocks + block) * chain.image_height + y) * size;
    for (int64_t i = 0; i < own.first * channels; ++i) sums[static_cast<size_t>(i)] += static_cast<double>(from[i]);
    for (int64_t i = own.last * channels; i < size; ++i) sums[static_cast<size_t>(i)] += static_cast<double>(from[i]);
  }
  for (int64_t i = 0; i < size; ++i) bases[row * size + i] = static_cast<T>(sums[static_cast<size_t>(i)]);
}

template void paste_row(const WindowChain&, const float*, const float*, int64_t, float*);
template void paste_row(const WindowChain&, const double*, const double*, int64_t, double*);
template void paste_backward_window(const WindowChain&, const float*, int64_t, float*);
template void paste_backward_window(const WindowChain&, const double*, int64_t, double*);
template void paste_backward_row(const WindowChain&, const float*, int64_t, float*);
template void paste_backward_row(const WindowChain&, const double*, int64_t, double*);

}  // namespace jepa_fast
