// A window through all blocks, backward: every block's hidden activations are made again, its z and input were kept.
#pragma once

#include "cpu/convnext/windows.h"

namespace jepa_fast {
namespace {

template <typename T, int Width>
struct WindowBackward {
  using V = typename Lanes<T, Width>::type;
  const WindowChain& chain;
  const WindowGradients& gradients;
  const int64_t channels, hidden, sums_size;
  TileSpace<T, Width> space;
  T* sums;       // of one window: [L, sums] and the stem's [C, c]
  T* deltas[2];  // gradients of the difference after a block and before it
  T* to_z;       // with zero columns around it, as the convolution's input gradient reads it
  T* start;                      // [h, w, C]: stem times pixels
  T *to_cells, *cell_gradients;  // [cells, C], [cells, 4C]
  T *row_rest, *row_hidden;      // [cells_across + 1, C], [cells_across + 1, 4C]: of a row's pixels; the last: of a pixel's

  WindowBackward(const WindowChain& chain, const WindowGradients& gradients, Pieces& pieces)
      : chain(chain), gradients(gradients), channels(chain.channels), hidden(4 * chain.channels),
        sums_size(convnext_sums_size(chain.channels)), space(pieces, chain.channels, chain.eps) {
    sums = pieces.take<T>(chain.blocks * sums_size + channels * chain.pixel_channels);
    const int64_t height = chain.height_after(chain.blocks);
    const int64_t width = chain.width_after(chain.blocks);
    for (T*& delta : deltas) delta = pieces.take<T>(height * width * channels);
    to_z = pieces.take<T>(height * (width + 6) * channels);
    start = pieces.take<T>(chain.height * chain.width * channels);
    const int64_t cells = chain.cells_down * chain.cells_across;
    to_cells = pieces.take<T>(cells * channels);
    cell_gradients = pieces.take<T>(cells * hidden);
    row_rest = pieces.take<T>((chain.cells_across + 1) * channels);
    row_hidden = pieces.take<T>((chain.cells_across + 1) * hidden);
  }

  void run(int64_t window, const BasePart* part, const BasePart* over) {
    fill_zero(sums, chain.blocks * sums_size + channels * chain.pixel_channels);
    if (!chain.pooled) {
      const int64_t size = chain.height_after(chain.blocks) * chain.width_after(chain.blocks) * channels;
      copy(static_cast<const T*>(gradients.to_out) + window * size, size, deltas[chain.blocks % 2]);
    }
    for (int64_t block = chain.blocks; block >= 1; --block) step(window, block, part, over);
  }

  void step(int64_t window, int64_t block, const BasePart* part, const BasePart* over) {
    const Place before = place_of(chain, window, block - 1);
    const Place after = place_of(chain, window, block);
    const Packed<T> weights(chain.packed, block - 1, channels);
    const Sums<T> block_sums(sums + (block - 1) * sums_size, channels);
    T* const delta = deltas[block % 2];
    const Padded<T> to_z_rows(to_z, after.width, 3 - chain.growth_across(), channels);
    if (hangs_over(after) || to_z_rows.border > 0) fill_zero(to_z, after.height * to_z_rows.row);
    const int64_t offset = window * chain.pixels_after(chain.blocks) + chain.pixels_after(block - 1);
    const T* const z = static_cast<const T*>(gradients.z) + offset * channels;
    const T* const more_z =
        gradients.to_z == nullptr ? nullptr : static_cast<const T*>(gradients.to_z) + offset * channels;
    const T* const more_update =
        gradients.to_updates == nullptr ? nullptr : static_cast<const T*>(gradients.to_updates) + offset * channels;
    const bool from_cells = block == chain.blocks && chain.pooled;
    const Cells down(chain.image_height, after.top + after.first_row, after.top + after.last_row);
    const Cells across(chain.image_width, after.left + after.first_column, after.left + after.last_column);
    if (from_cells) spread_cells(window, after, down, across, weights, block_sums, delta);
    for_tiles(
        after.first_row, after.last_row, after.first_column, after.last_column, tile_pixels(channels),
        [&](const Tile& tile) {
          const int64_t pixels = tile.pixels();
          const int64_t first = (tile.row * after.width + tile.column) * channels;
          space.template normalise<true>(z + first, after.width * channels, tile, weights);
          space.widen(pixels, weights);
          if (from_cells) {
            space.derive(pixels);
            scale_by_cells(tile, after, down, across);
          } else {
            space.activate(pixels, space.after);
            for (int64_t row = 0; row < tile.rows; ++row) {
              const int64_t at = first + row * after.width * channels;
              T* const update = space.update + row * tile.columns * channels;
              copy(delta + at, tile.columns * channels, update);
              if (more_update == nullptr) continue;
              for (int64_t i = 0; i < tile.columns * channels; ++i) update[i] += more_update[at + i];
            }
            space.project_backward(pixels, weights, block_sums);
          }
          space.expand_backward(pixels, weights, block_sums);
          for (int64_t row = 0; row < tile.rows; ++row) {
            T* const to = to_z_rows.at(tile.row + row, tile.column);
            copy(space.update + row * tile.columns * channels, tile.columns * channels, to);
            if (more_z == nullptr) continue;
            const T* const more = more_z + first + row * after.width * channels;
            for (int64_t i = 0; i < tile.columns * channels; ++i) to[i] += more[i];
          }
        });
    if (part != nullptr) add_to_base(window, *part, over, block, after, to_z_rows, delta);
    taps_backward(window, block, before, after, to_z_rows, block_sums);
    input_backward(before, after, to_z_rows, weights, delta, deltas[(block - 1) % 2]);
    if (block == 1) stem_backward(window, deltas[0]);
  }

  // The gradient of the pooled cells, spread to pixels: `delta` [h, w, C], and cell_gradients of the hidden activations.
  __attribute__((noinline)) void spread_cells(
      int64_t window, const Place& after, const Cells& down, const Cells& across, const Packed<T>& weights,
      const Sums<T>& block_sums, T* delta) {
    constexpr int64_t side = convnext_pooled_side;
    const T* const to_out = static_cast<const T*>(gradients.to_out) + window * side * side * channels;
    const int64_t count = down.count * across.count;
    for (int64_t i = 0; i < down.count; ++i) {
      for (int64_t j = 0; j < across.count; ++j) {
        copy(
            to_out + ((down.first_cell + i) * side + across.first_cell + j) * channels, channels,
            to_cells + (i * across.count + j) * channels);
      }
    }
    const T* const means =
        static_cast<const T*>(gradients.hidden) + window * chain.cells_down * chain.cells_across * hidden;
    constexpr int wide = TileSpace<T, Width>::hidden_width;
    product<T, wide, true>(channels, hidden, count, to_cells, 1, channels, means, block_sums.project);
    for (int64_t i = 0; i < down.count; ++i) {
      for (int64_t j = 0; j < across.count; ++j) {
        const T share = T(1) / static_cast<T>(down.whole[i] * across.whole[j]);
        for (int64_t c = 0; c < channels; ++c) to_cells[(i * across.count + j) * channels + c] *= share;
      }
    }
    product<T, wide>(count, hidden, channels, to_cells, channels, 1, weights.project, cell_gradients);
    for (int64_t y = after.first_row; y < after.last_row; ++y) {
      add_rows_of_cells(after.top + y, down, across, to_cells, channels, row_rest);
      for_cell_ranges(after, across, after.first_column, after.last_column, [&](int64_t x, int64_t last, int64_t i, int64_t end) {
        T* const sum = row_rest + across.count * channels;
        add_cells(row_rest, i, end, channels, sum);
        for (; x < last; ++x) copy(sum, channels, delta + (y * after.width + x) * channels);
      });
    }
  }

  // rows [j] = sum of the cells of column j that image row y lies in.
  void add_rows_of_cells(int64_t y, const Cells& down, const Cells& across, const T* cells, int64_t count, T* rows) {
    fill_zero(rows, across.count * count);
    for (int64_t i = 0; i < down.count; ++i) {
      if (y < down.first[i] || y >= down.last[i]) continue;
      for (int64_t c = 0; c < across.count * count; ++c) rows[c] += cells[i * across.count * count + c];
    }
  }

  JEPA_FAST_INLINE void add_cells(const T* rows, int64_t first, int64_t last, int64_t count, T* sum) {
    copy(rows + first * count, count, sum);
    for (int64_t j = first + 1; j < last; ++j) {
      for (int64_t c = 0; c < count; ++c) sum[c] += rows[j * count + c];
    }
  }

  // Calls f(x, last, i, end) for runs [x, last) of a window's columns that lie in the same cells [i, end).
  template <typename F>
  JEPA_FAST_INLINE void for_cell_ranges(const Place& place, const Cells& across, int64_t first, int64_t last, const F& f) {
    for (int64_t x = first; x < last;) {
      const int64_t column = place.left + x;
      int64_t begin = 0;
      while (column >= across.last[begin]) ++begin;
      int64_t end = begin;
      int64_t next = place.left + last;
      // Cells that begin later end later.
      while (end < across.count && across.first[end] <= column) next = least(next, across.last[end++]);
      if (end < across.count) next = least(next, across.first[end]);
      f(x, next - place.left, begin, end);
      x = next - place.left;
    }
  }

  // space.before times the gradient of the hidden activations, which pixels in the same cells share.
  __attribute__((noinline)) void scale_by_cells(const Tile& tile, const Place& after, const Cells& down, const Cells& across) {
    using H = typename TileSpace<T, Width>::H;
    constexpr int wide = TileSpace<T, Width>::hidden_width;
    for (int64_t row = 0; row < tile.rows; ++row) {
      add_rows_of_cells(after.top + tile.row + row, down, across, cell_gradients, hidden, row_hidden);
      const int64_t end_column = tile.column + tile.columns;
      for_cell_ranges(after, across, tile.column, end_column, [&](int64_t x, int64_t last, int64_t i, int64_t end) {
        T* const sum = row_hidden + across.count * hidden;
        add_cells(row_hidden, i, end, hidden, sum);
        for (; x < last; ++x) {
          T* const at = space.before + (row * tile.columns + x - tile.column) * hidden;
          for (int64_t c = 0; c < hidden; c += wide) store(at + c, load<H>(at + c) * load<H>(sum + c));
        }
      });
    }
  }

  __attribute__((noinline)) void add_to_base(
      int64_t window, const BasePart& part, const BasePart* over, int64_t block, const Place& after,
      const Padded<T>& to_z_rows, const T* delta) {
    for (int64_t y = after.first_row; y < after.last_row; ++y) {
      const int64_t row = after.top + y;
      const int64_t first = after.left + after.first_column;
      const int64_t last = after.left + after.last_column;
      Covered own{last, last, 0, 0, 0};
      if (over != nullptr) own = covered_by_over(chain, chain.groups[window], block - 1, row);
      const int64_t own_first = least(most(own.first, first), last);
      const int64_t own_last = most(own_first, least(own.last, last));
      const auto add = [&](int64_t begin, int64_t end, T* z, T* update) {
        const T* const from_z = to_z_rows.at(y, begin - after.left);
        const T* const from_delta = delta + (y * after.width + begin - after.left) * channels;
        for (int64_t c = 0; c < (end - begin) * channels; c += Width) {
          store(z + c, load<V>(z + c) + load<V>(from_z + c));
          store(update + c, load<V>(update + c) - load<V>(from_delta + c));
        }
      };
      const int64_t columns = part.last_column - part.first_column;
      const int64_t rows = part.last_row - part.first_row;
      const int64_t at = ((block - 1) * rows + row - part.first_row) * columns - part.first_column;
      T* const image = static_cast<T*>(gradients.bases) + part.offset;
      const auto add_to_image = [&](int64_t begin, int64_t end) {
        add(begin, end, image + (at + begin) * channels, image + part.size / 2 + (at + begin) * channels);
      };
      add_to_image(first, own_first);
      add_to_image(own_last, last);
      if (own_first < own_last) {
        const int64_t over_rows = over->last_row - over->first_row;
        int64_t offset = (row - over->first_row) * own.width + own.column + own_first - own.first;
        for (int64_t each = 1; each < block; ++each) {
          offset += over_rows * covered_by_over(chain, chain.groups[window], each - 1, row).width;
        }
        T* const strip = static_cast<T*>(gradients.bases) + over->offset + offset * channels;
        add(own_first, own_last, strip, strip + over->size / 2);
      }
    }
  }

  __attribute__((noinline)) void taps_backward(
      int64_t window, int64_t block, const Place& before, const Place& after, const Padded<T>& to_z_rows,
      const Sums<T>& block_sums) {
    const T* input = start;
    if (block == 1) {
      for (int64_t y = 0; y < chain.height; ++y) apply_stem<T>(chain, window, y, start + y * chain.width * channels);
    } else {
      const int64_t kept = window * chain.pixels_after(chain.blocks - 1) + chain.pixels_after(block - 2);
      input = static_cast<const T*>(gradients.inputs) + kept * channels;
    }
    const int64_t padding = 3 + chain.growth_down();
    for (int64_t a = 0; a < kernel_side; ++a) {
      // Input row i meets row i - a + padding of z.
      const int64_t first = most(before.first_row, after.first_row + a - padding);
      const int64_t last = least(before.last_row, after.last_row + a - padding);
      if (first >= last) continue;
      taps_gradient<T, Width>(
          input + (first * before.width + before.first_column) * channels, before.width * channels,
          to_z_rows.data + (first - a + padding) * to_z_rows.row + before.first_column * channels, to_z_rows.row,
          last - first, before.last_column - before.first_column, channels,
          block_sums.taps + a * kernel_side * channels);
    }
  }

  // The stem's gradient, and the pixels' where it is wanted, from that of stem times pixels.
  __attribute__((noinline)) void stem_backward(int64_t window, const T* delta) {
    const int64_t inputs = chain.pixel_channels;
    const int64_t first = window * chain.height * chain.width * inputs;
    const T* pixel = static_cast<const T*>(chain.pixels) + first;
    const T* const stem = static_cast<const T*>(chain.stem);
    T* to_pixel = gradients.to_pixels == nullptr ? nullptr : static_cast<T*>(gradients.to_pixels) + first;
    T* const to_stem = sums + chain.blocks * sums_size;
    for (int64_t p = 0; p < chain.height * chain.width; ++p, delta += channels) {
      for (int64_t i = 0; i < inputs; ++i, ++pixel) {
        for (int64_t c = 0; c < channels; ++c) to_stem[c * inputs + i] += *pixel * delta[c];
        if (to_pixel == nullptr) continue;
        T sum{};
        for (int64_t c = 0; c < channels; ++c) sum += delta[c] * stem[c * inputs + i];
        *to_pixel++ = sum;
      }
    }
  }

  // `to` [h, w, C]: the gradient of the difference before a block, zero outside the image.
  __attribute__((noinline)) void input_backward(
      const Place& before, const Place& after, const Padded<T>& to_z_rows, const Packed<T>& weights, const T* delta, T* to) {
    fill_zero(to, before.height * before.width * channels);
    for (int64_t y = before.first_row; y < before.last_row; ++y) {
      const Reach reach = reach_of(y, 3 - chain.growth_down(), after.first_row, after.last_row);
      const int64_t at = (y + chain.growth_down()) * after.width + before.first_column + chain.growth_across();
      convolve_row<T, Width>(
          to_z_rows.data + reach.row * to_z_rows.row + before.first_column * channels, to_z_rows.row, reach.rows(),
          weights.flipped + reach.first * kernel_side * channels, channels, delta + at * channels,
          before.last_column - before.first_column, to + (y * before.width + before.first_column) * channels);
    }
  }
};

template <typename T, int Width>
void windows_backward(const WindowChain& chain, const WindowGradients& gradients, int64_t index) {
  Pieces counted{nullptr};
  WindowBackward<T, Width>(chain, gradients, counted);
  Pieces pieces{static_cast<char*>(convnext_work_space(counted.used))};
  WindowBackward<T, Width> backward(chain, gradients, pieces);
  const WindowChunk& chunk = gradients.chunks[index];
  const int64_t count = chain.blocks * backward.sums_size + chain.channels * chain.pixel_channels;
  double* const sums = gradients.sums + index * count;
  fill_zero(sums, count);
  const auto clear = [&](const BasePart* part, const BasePart* last) {
    for (; part < last; ++part) fill_zero(static_cast<T*>(gradients.bases) + part->offset, part->size);
  };
  clear(gradients.parts + chunk.first_part, gradients.parts + chunk.last_part);
  clear(gradients.overs + chunk.first_over, gradients.overs + chunk.last_over);
  for (int64_t i = chunk.first; i < chunk.last; ++i) {
    backward.run(
        gradients.order[i], gradients.bases == nullptr ? nullptr : gradients.parts + gradients.part_of[i],
        chain.over_corners == nullptr ? nullptr : gradients.overs + gradients.over_of[i]);
    for (int64_t j = 0; j < count; ++j) sums[j] += static_cast<double>(backward.sums[j]);
  }
}

}  // namespace
}  // namespace jepa_fast
