// What lies under a window: an image, and over it perhaps a window that is a base itself.
#pragma once

#include <cstdint>

#include "convnext.h"

namespace jepa_fast {
namespace {

// What a window covers of row `row` of its image after block `block`, of which 0 is the first: image columns [first, last),
// and where in the values of its block that row begins, in pixels. Nothing: first == last.
struct Covered {
  int64_t first, last;
  int64_t row;     // of the window
  int64_t column;  // of the window, that `first` is
  int64_t width;   // of the window
};

inline Covered covered_by(
    const WindowChain& chain, const int64_t* corner, int64_t height, int64_t width, int64_t block, int64_t row) {
  const int64_t down = height == chain.image_height ? 0 : 3 * (block + 1);
  const int64_t across = width == chain.image_width ? 0 : 3 * (block + 1);
  const int64_t top = corner[0] - down;
  const int64_t left = corner[1] - across;
  if (row < top || row >= top + height + 2 * down) return {0, 0, 0, 0, width + 2 * across};
  const int64_t first = left < 0 ? 0 : left;
  const int64_t end = left + width + 2 * across;
  return {first, end < chain.image_width ? end : chain.image_width, row - top, first - left, width + 2 * across};
}

inline Covered covered_by_over(const WindowChain& chain, int64_t over, int64_t block, int64_t row) {
  return covered_by(chain, chain.over_corners + 2 * over, chain.over_height, chain.over_width, block, row);
}

// Pixels of all values of a base window before those of block `block`, per window.
inline int64_t over_pixels_before(const WindowChain& chain, int64_t block) {
  int64_t total = 0;
  for (int64_t each = 1; each <= block; ++each) {
    const int64_t down = chain.over_height == chain.image_height ? 0 : 6 * each;
    const int64_t across = chain.over_width == chain.image_width ? 0 : 6 * each;
    total += (chain.over_height + down) * (chain.over_width + across);
  }
  return total;
}

inline int64_t image_under(const WindowChain& chain, int64_t window) {
  const int64_t group = chain.groups[window];
  return chain.over_corners == nullptr ? group : chain.over_groups[group];
}

}  // namespace
}  // namespace jepa_fast
