#include "scene.h"

#include <algorithm>
#include <limits>
#include <vector>

namespace jepa_fast {

void read_centres(
    const uint8_t* images, const int64_t* corners, int64_t height, int64_t width, int64_t first, int64_t last, float* centres) {
  for (int64_t image = first; image < last; ++image) {
    // Integers: no order of sums changes them.
    int64_t total = 0, along_x = 0, along_y = 0;
    const uint8_t* pixel = images + image * height * width;
    for (int64_t y = 0; y < height; ++y) {
      int64_t row = 0;
      for (int64_t x = 0; x < width; ++x, ++pixel) {
        row += *pixel;
        along_x += x * *pixel;
      }
      total += row;
      along_y += y * row;
    }
    const float light = std::max(static_cast<float>(total), std::numeric_limits<float>::min());
    const int64_t* const corner = corners == nullptr ? nullptr : corners + 2 * image;
    centres[2 * image] = static_cast<float>(along_x) / light + (corner == nullptr ? 0.0f : static_cast<float>(corner[1]));
    centres[2 * image + 1] = static_cast<float>(along_y) / light + (corner == nullptr ? 0.0f : static_cast<float>(corner[0]));
  }
}

namespace {

struct Ends {
  int64_t low, high;
};

// First and last place of `size` that holds; where there is none, `low` and `high` times the size.
template <typename Holds>
Ends find_ends(int64_t size, int64_t low, int64_t high, const Holds& holds) {
  int64_t first = 0;
  while (first < size && !holds(first)) ++first;
  if (first == size) return {low * size, high * size};
  int64_t last = size - 1;
  while (!holds(last)) --last;
  return {first, last};
}

bool is_between(int64_t place, Ends ends) { return place > ends.low && place < ends.high; }

}  // namespace

void read_layout(const uint8_t* walls, int64_t height, int64_t width, int64_t first, int64_t last, float* layout) {
  std::vector<int64_t> by_column(static_cast<size_t>(width)), by_row(static_cast<size_t>(height));
  for (int64_t image = first; image < last; ++image) {
    const uint8_t* const pixels = walls + image * height * width;
    // How many solid pixels the columns hold in rows between `ys`, and the rows in columns between `xs`.
    const auto count = [&](Ends xs, Ends ys) {
      std::fill(by_column.begin(), by_column.end(), 0);
      std::fill(by_row.begin(), by_row.end(), 0);
      for (int64_t y = 0; y < height; ++y) {
        const bool counts_row = is_between(y, ys);
        for (int64_t x = 0; x < width; ++x) {
          const int64_t solid = pixels[y * width + x] != 0;
          if (counts_row) by_column[static_cast<size_t>(x)] += solid;
          if (is_between(x, xs)) by_row[static_cast<size_t>(y)] += solid;
        }
      }
    };
    const auto column = [&](int64_t x) { return by_column[static_cast<size_t>(x)]; };
    const auto row = [&](int64_t y) { return by_row[static_cast<size_t>(y)]; };
    count({-1, width}, {-1, height});
    const Ends border_x = find_ends(width, -1, 2, [&](int64_t x) { return column(x) == height; });
    const Ends border_y = find_ends(height, -1, 2, [&](int64_t y) { return row(y) == width; });
    count(border_x, border_y);
    const Ends wall_x = find_ends(width, 2, 2, [&](int64_t x) { return column(x) > 0 && is_between(x, border_x); });
    const Ends door_y = find_ends(height, 2, 2, [&](int64_t y) { return row(y) == 0 && is_between(y, border_y); });
    float* to = layout + 8 * image;
    for (const Ends ends : {border_x, border_y, wall_x, door_y}) {
      *to++ = static_cast<float>(ends.low);
      *to++ = static_cast<float>(ends.high);
    }
  }
}

}  // namespace jepa_fast
