#include <algorithm>
#include <vector>

#include "cpu/convnext/bases.h"
#include "cpu/convnext/plan.h"

namespace jepa_fast {
namespace {

Covered covered(const WindowChain& chain, int64_t window, int64_t block, int64_t row) {
  return covered_by(chain, chain.corners + 2 * window, chain.height, chain.width, block, row);
}

// Where the pixels that a window covers of a row are among the values of all windows.
int64_t offset_of(const WindowChain& chain, int64_t window, int64_t block, const Covered& own) {
  return window * chain.pixels_after(chain.blocks) + chain.pixels_after(block) + own.row * own.width + own.column;
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
  const T* const from = windows + offset_of(chain, window, block, own) * channels;
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
      std::copy(from, from + (own.last - own.first) * channels, windows + offset_of(chain, window, block, own) * channels);
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
