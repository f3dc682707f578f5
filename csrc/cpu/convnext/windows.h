// A window through all blocks, forward: the difference to its base, which grows and stays in the cache.
#pragma once

#include "cpu/convnext/bases.h"
#include "cpu/convnext/block.h"

namespace jepa_fast {
namespace {

// Where a window lies after some blocks. Everything but `top` and `left` is in the window's own coordinates.
struct Place {
  int64_t top, left;                                       // in the image; may lie outside
  int64_t height, width;
  int64_t first_row, last_row, first_column, last_column;  // the part on the image
};

JEPA_FAST_INLINE Place place_of(const WindowChain& chain, int64_t window, int64_t block) {
  Place place;
  place.top = chain.corners[2 * window] - chain.growth_down() * block;
  place.left = chain.corners[2 * window + 1] - chain.growth_across() * block;
  place.height = chain.height_after(block);
  place.width = chain.width_after(block);
  place.first_row = most<int64_t>(0, -place.top);
  place.last_row = least(place.height, chain.image_height - place.top);
  place.first_column = most<int64_t>(0, -place.left);
  place.last_column = least(place.width, chain.image_width - place.left);
  return place;
}

JEPA_FAST_INLINE bool hangs_over(const Place& place) {
  return place.first_row > 0 || place.first_column > 0 || place.last_row < place.height ||
         place.last_column < place.width;
}

// Rows of an input that a row of the convolution's output reads: taps [first, last) meet input rows from `row` on.
struct Reach {
  int64_t first, last, row;
  int64_t rows() const { return most<int64_t>(0, last - first); }
};

// Output row `row` reads input rows row + a - padding, of which [first_row, last_row) are there.
JEPA_FAST_INLINE Reach reach_of(int64_t row, int64_t padding, int64_t first_row, int64_t last_row) {
  const int64_t first = most<int64_t>(0, first_row + padding - row);
  const int64_t last = least<int64_t>(kernel_side, last_row + padding - row);
  return {first, last, row + first - padding};
}

// The cells of an axis that average pooling makes of `size` pixels, cut to pixels [first_pixel, last_pixel): the cells that
// have any of them.
struct Cells {
  static constexpr int most_cells = static_cast<int>(convnext_pooled_side);
  int64_t first_cell = 0;
  int64_t count = 0;
  int64_t first[most_cells], last[most_cells];  // pixels of each, cut
  int64_t whole[most_cells];                    // pixels of each, not cut

  Cells(int64_t size, int64_t first_pixel, int64_t last_pixel) {
    for (int64_t cell = 0; cell < most_cells; ++cell) {
      const int64_t begin = cell * size / most_cells;
      const int64_t end = ((cell + 1) * size + most_cells - 1) / most_cells;
      const int64_t cut_begin = most(begin, first_pixel);
      const int64_t cut_end = least(end, last_pixel);
      if (cut_begin >= cut_end) continue;
      if (count == 0) first_cell = cell;
      first[count] = cut_begin;
      last[count] = cut_end;
      whole[count] = end - begin;
      ++count;
    }
  }
};

// The differences between two blocks, with zero columns around them for the convolution: row stride width + 2 border.
template <typename T>
struct Padded {
  T* data;
  int64_t border, row, channels;

  Padded(T* data, int64_t width, int64_t border, int64_t channels)
      : data(data), border(border), row((width + 2 * border) * channels), channels(channels) {}

  T* at(int64_t y, int64_t x) const { return data + y * row + (x + border) * channels; }

  // Zero where nothing will be written: the columns around the window, all of it where it hangs over the image.
  void clear(const Place& place) const {
    if (hangs_over(place)) return fill_zero(data, place.height * row);
    for (int64_t y = 0; y < place.height; ++y) {
      fill_zero(data + y * row, border * channels);
      fill_zero(data + (y + 1) * row - border * channels, border * channels);
    }
  }
};

// Stem times pixels of row `row` of a window, [w, C].
template <typename T>
void apply_stem(const WindowChain& chain, int64_t window, int64_t row, T* to) {
  const int64_t inputs = chain.pixel_channels;
  const T* pixel = static_cast<const T*>(chain.pixels) + (window * chain.height + row) * chain.width * inputs;
  const T* const stem = static_cast<const T*>(chain.stem);
  for (int64_t x = 0; x < chain.width; ++x, pixel += inputs) {
    for (int64_t c = 0; c < chain.channels; ++c, ++to) {
      *to = 0;
      for (int64_t i = 0; i < inputs; ++i) *to += pixel[i] * stem[c * inputs + i];
    }
  }
}

template <typename T, int Width>
struct WindowForward {
  using V = typename Lanes<T, Width>::type;
  const WindowChain& chain;
  const WindowResults& results;
  const int64_t channels, hidden, border;
  TileSpace<T, Width> space;
  T* buffers[2];
  T* cells;         // [cells, 4C]: sums of hidden activations
  T* rest;          // [cells, C]: sums of all that W2 does not make
  T* projected;     // [cells, C]
  T* under;         // [P, C]: a row of a base that is put together

  WindowForward(const WindowChain& chain, const WindowResults& results, Pieces& pieces)
      : chain(chain), results(results), channels(chain.channels), hidden(4 * chain.channels),
        border(3 + chain.growth_across()), space(pieces, chain.channels, chain.eps) {
    const int64_t most_blocks = chain.blocks - 1;
    const int64_t size =
        chain.height_after(most_blocks) * (chain.width_after(most_blocks) + 2 * border) * channels;
    for (T*& buffer : buffers) buffer = pieces.take<T>(size);
    const int64_t count = chain.cells_down * chain.cells_across;
    cells = pieces.take<T>(count * hidden);
    rest = pieces.take<T>(count * channels);
    projected = pieces.take<T>(count * channels);
    under = pieces.take<T>(tile_pixels(channels) * channels);
  }

  // Pixels [column, column + count) of row `row` of what lies under a window after block `block`, 0 the first.
  const T* base_row(
      const void* bases, const void* overs, int64_t window, int64_t block, int64_t row, int64_t column, int64_t count) {
    const int64_t image = image_under(chain, window) * chain.blocks + block;
    const T* const base =
        static_cast<const T*>(bases) + ((image * chain.image_height + row) * chain.image_width + column) * channels;
    if (overs == nullptr) return base;
    const int64_t over = chain.groups[window];
    const Covered own = covered_by_over(chain, over, block, row);
    const int64_t first = most(own.first, column);
    const int64_t last = least(own.last, column + count);
    if (first >= last) return base;
    const int64_t start =
        over * over_pixels_before(chain, chain.blocks) + over_pixels_before(chain, block) + own.row * own.width;
    const T* const from = static_cast<const T*>(overs) + (start + own.column + first - own.first) * channels;
    if (last - first == count) return from;
    copy(base, (first - column) * channels, under);
    copy(from, (last - first) * channels, under + (first - column) * channels);
    copy(base + (last - column) * channels, (column + count - last) * channels, under + (last - column) * channels);
    return under;
  }

  void run(int64_t window) {
    start(window);
    for (int64_t block = 1; block <= chain.blocks; ++block) step(window, block);
  }

  // The difference before the first block: stem times pixels.
  __attribute__((noinline)) void start(int64_t window) {
    const Padded<T> to(buffers[0], chain.width, border, channels);
    fill_zero(to.data, chain.height * to.row);
    for (int64_t y = 0; y < chain.height; ++y) apply_stem<T>(chain, window, y, to.at(y, 0));
  }

  void step(int64_t window, int64_t block) {
    const Place before = place_of(chain, window, block - 1);
    const Place after = place_of(chain, window, block);
    const Packed<T> weights(chain.packed, block - 1, channels);
    const Padded<T> from(buffers[(block - 1) % 2], before.width, border, channels);
    const bool last = block == chain.blocks;
    const bool to_cells = last && chain.pooled && results.updates == nullptr;
    const int64_t offset = window * chain.pixels_after(chain.blocks) + chain.pixels_after(block - 1);
    const int64_t size = after.height * after.width * channels;
    T* const z = static_cast<T*>(results.z) + offset * channels;
    T* const updates = results.updates == nullptr ? nullptr : static_cast<T*>(results.updates) + offset * channels;
    // Where the next difference goes, its rows apart.
    T* to = nullptr;
    int64_t to_row = after.width * channels;
    if (!last) {
      const Padded<T> next(buffers[block % 2], after.width, border, channels);
      next.clear(after);
      to = next.at(0, 0);
      to_row = next.row;
    } else if (!to_cells) {
      to = static_cast<T*>(results.out) + window * size;
      fill_zero(to, size);
    }
    const bool is_cut = hangs_over(after);
    if (is_cut) fill_zero(z, size);
    if (is_cut && updates != nullptr) fill_zero(updates, size);
    const Cells down(chain.image_height, after.top + after.first_row, after.top + after.last_row);
    const Cells across(chain.image_width, after.left + after.first_column, after.left + after.last_column);
    if (to_cells) {
      fill_zero(cells, down.count * across.count * hidden);
      fill_zero(rest, down.count * across.count * channels);
    }
    for_tiles(
        after.first_row, after.last_row, after.first_column, after.last_column, tile_pixels(channels),
        [&](const Tile& tile) {
          for (int64_t y = tile.row; y < tile.row + tile.rows; ++y) {
            const Reach reach = reach_of(y, 3 + chain.growth_down(), before.first_row, before.last_row);
            convolve_row<T, Width>(
                from.data + reach.row * from.row + tile.column * channels, from.row, reach.rows(),
                weights.taps + reach.first * kernel_side * channels, channels,
                chain.base_z == nullptr ? nullptr
                                        : base_row(
                                              chain.base_z, chain.over_z, window, block - 1, after.top + y,
                                              after.left + tile.column, tile.columns),
                tile.columns,
                z + (y * after.width + tile.column) * channels);
          }
          space.template normalise<false>(
              z + (tile.row * after.width + tile.column) * channels, after.width * channels, tile, weights);
          space.widen(tile.pixels(), weights);
          space.activate(tile.pixels(), space.before);
          if (to_cells) {
            pool(tile, after, down, across, space.before, hidden, cells);
          } else {
            space.narrow(tile.pixels(), space.before, weights);
          }
          // What is left of the block: the difference that came in, and the base's update.
          for (int64_t y = tile.row, p = 0; y < tile.row + tile.rows; ++y) {
            const int64_t row_before = y - chain.growth_down();
            const bool has_row = row_before >= before.first_row && row_before < before.last_row;
            const T* base = chain.base_update == nullptr ? nullptr
                                                         : base_row(
                                                               chain.base_update, chain.over_update, window, block - 1,
                                                               after.top + y, after.left + tile.column, tile.columns);
            for (int64_t x = tile.column; x < tile.column + tile.columns; ++x, ++p) {
              const T* old = from.data + row_before * from.row + (x + 3) * channels;
              T* const update = space.update + p * channels;
              T* const next = to_cells ? space.normal + p * channels : to + y * to_row + x * channels;
              for (int64_t c = 0; c < channels; c += Width) {
                V value = has_row ? load<V>(old + c) : V{};
                if (!to_cells) value += load<V>(update + c);
                if (base != nullptr) value -= load<V>(base + c);
                store(next + c, value);
              }
              if (base != nullptr) base += channels;
              if (updates != nullptr) copy(update, channels, updates + (y * after.width + x) * channels);
            }
          }
          if (to_cells) {
            pool(tile, after, down, across, space.normal, channels, rest);
          }
        });
    if (!last && results.inputs != nullptr) {
      const Padded<T> next(buffers[block % 2], after.width, border, channels);
      const int64_t kept = window * chain.pixels_after(chain.blocks - 1) + chain.pixels_after(block - 1);
      T* const inputs = static_cast<T*>(results.inputs) + kept * channels;
      for (int64_t y = 0; y < after.height; ++y) {
        copy(next.at(y, 0), after.width * channels, inputs + y * after.width * channels);
      }
    }
    if (to_cells) finish_cells(window, down, across, weights);
  }

  // Adds a tile's values [P, count] to the cells that its pixels lie in.
  __attribute__((noinline)) void pool(
      const Tile& tile, const Place& place, const Cells& down, const Cells& across, const T* values, int64_t count,
      T* sums) {
    for (int64_t row = 0; row < tile.rows; ++row) {
      const int64_t y = place.top + tile.row + row;
      for (int64_t i = 0; i < down.count; ++i) {
        if (y < down.first[i] || y >= down.last[i]) continue;
        for (int64_t j = 0; j < across.count; ++j) {
          const int64_t left = place.left + tile.column;
          const int64_t first = most(across.first[j], left) - left;
          const int64_t last = least(across.last[j], left + tile.columns) - left;
          if (first >= last) continue;
          const T* from = values + (row * tile.columns + first) * count;
          T* const to = sums + (i * across.count + j) * count;
          for (int64_t c = 0; c < count; c += Width) {
            V sum = load<V>(to + c);
            for (int64_t x = 0; x < last - first; ++x) sum += load<V>(from + x * count + c);
            store(to + c, sum);
          }
        }
      }
    }
  }

  // Sums to means, the hidden ones projected and kept.
  __attribute__((noinline)) void finish_cells(int64_t window, const Cells& down, const Cells& across, const Packed<T>& weights) {
    for (int64_t i = 0; i < down.count; ++i) {
      for (int64_t j = 0; j < across.count; ++j) {
        const T share = T(1) / static_cast<T>(down.whole[i] * across.whole[j]);
        const int64_t cell = i * across.count + j;
        for (int64_t c = 0; c < hidden; ++c) cells[cell * hidden + c] *= share;
        for (int64_t c = 0; c < channels; ++c) rest[cell * channels + c] *= share;
      }
    }
    const int64_t count = down.count * across.count;
    product<T, Width>(count, channels, hidden, cells, hidden, 1, weights.project_t, projected);
    constexpr int64_t side = convnext_pooled_side;
    T* const out = static_cast<T*>(results.out) + window * side * side * channels;
    fill_zero(out, side * side * channels);
    for (int64_t i = 0; i < down.count; ++i) {
      for (int64_t j = 0; j < across.count; ++j) {
        const int64_t cell = i * across.count + j;
        T* const to = out + ((down.first_cell + i) * side + across.first_cell + j) * channels;
        for (int64_t c = 0; c < channels; ++c) to[c] = projected[cell * channels + c] + rest[cell * channels + c];
      }
    }
    const int64_t kept = chain.cells_down * chain.cells_across * hidden;
    T* const to = static_cast<T*>(results.hidden) + window * kept;
    copy(cells, count * hidden, to);
    fill_zero(to + count * hidden, kept - count * hidden);
  }
};

template <typename T, int Width>
void windows_forward(const WindowChain& chain, const WindowResults& results, int64_t first, int64_t last) {
  Pieces counted{nullptr};
  WindowForward<T, Width>(chain, results, counted);
  Pieces pieces{static_cast<char*>(convnext_work_space(counted.used))};
  WindowForward<T, Width> forward(chain, results, pieces);
  for (int64_t window = first; window < last; ++window) forward.run(window);
}

}  // namespace
}  // namespace jepa_fast
