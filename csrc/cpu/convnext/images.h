// A block of whole images in bands of rows, forward and backward.
#pragma once

#include "cpu/convnext/windows.h"

namespace jepa_fast {
namespace {

// Rows [first_row, last_row) of an image, with zeros above, below, left and right where it ends, in the thread's space.
template <typename T>
struct Band {
  T* data;
  int64_t row;

  // `image` [height, width, channels]; `border` zero columns to each side.
  Band(T* data, const T* image, int64_t height, int64_t width, int64_t channels, int64_t border, int64_t first_row, int64_t last_row)
      : data(data), row((width + 2 * border) * channels) {
    for (int64_t y = first_row; y < last_row; ++y) {
      T* const to = data + (y - first_row) * row;
      if (y < 0 || y >= height) {
        fill_zero(to, row);
        continue;
      }
      fill_zero(to, border * channels);
      copy(image + y * width * channels, width * channels, to + border * channels);
      fill_zero(to + (border + width) * channels, border * channels);
    }
  }
};

struct BandOfImage {
  int64_t image, first_row, last_row;

  BandOfImage(int64_t index, int64_t rows) {
    const int64_t bands = convnext_bands(rows);
    image = index / bands;
    first_row = rows * (index % bands) / bands;
    last_row = rows * (index % bands + 1) / bands;
  }
};

template <typename T, int Width>
void bands_forward(const ImageBlock& block, const ImageResults& results, int64_t first, int64_t last) {
  using V = typename Lanes<T, Width>::type;
  const int64_t channels = block.channels;
  const int64_t width_out = block.width_out();
  const int64_t in_size = block.height * block.width * channels;
  const Packed<T> weights(block.packed, 0, channels);
  const auto lay_out = [&](Pieces& pieces, T*& band) {
    band = pieces.take<T>((convnext_band_rows + 6) * (block.width + 2 * block.padding_across) * channels);
    return TileSpace<T, Width>(pieces, channels, block.eps);
  };
  T* data = nullptr;
  Pieces counted{nullptr};
  lay_out(counted, data);
  Pieces pieces{static_cast<char*>(convnext_work_space(counted.used))};
  TileSpace<T, Width> space = lay_out(pieces, data);
  for (int64_t index = first; index < last; ++index) {
    const BandOfImage at(index, block.height_out());
    const Band<T> in(
        data, static_cast<const T*>(block.x) + at.image * in_size, block.height, block.width, channels,
        block.padding_across, at.first_row - block.padding_down, at.last_row - block.padding_down + 6);
    const int64_t offset = at.image * block.height_out() * width_out * channels;
    const T* const addend = block.addend == nullptr ? nullptr : static_cast<const T*>(block.addend) + offset;
    T* const z = static_cast<T*>(results.z) + offset;
    T* const y = static_cast<T*>(results.y) + offset;
    T* const update = results.update == nullptr ? nullptr : static_cast<T*>(results.update) + offset;
    for_tiles(at.first_row, at.last_row, 0, width_out, tile_pixels(channels), [&](const Tile& tile) {
      for (int64_t row = tile.row; row < tile.row + tile.rows; ++row) {
        const int64_t out = (row * width_out + tile.column) * channels;
        convolve_row<T, Width>(
            in.data + (row - at.first_row) * in.row + tile.column * channels, in.row, kernel_side, weights.taps, channels,
            addend == nullptr ? nullptr : addend + out, tile.columns, z + out);
      }
      const int64_t tile_offset = (tile.row * width_out + tile.column) * channels;
      space.template normalise<false>(z + tile_offset, width_out * channels, tile, weights);
      space.widen(tile.pixels(), weights);
      space.activate(tile.pixels(), space.before);
      space.narrow(tile.pixels(), space.before, weights);
      for (int64_t row = 0; row < tile.rows; ++row) {
        const int64_t out = tile_offset + row * width_out * channels;
        const T* const made = space.update + row * tile.columns * channels;
        const T* const x = in.data + (tile.row + row - at.first_row + 3) * in.row + (tile.column + 3) * channels;
        for (int64_t c = 0; c < tile.columns * channels; c += Width) {
          store(y + out + c, load<V>(x + c) + load<V>(made + c));
          if (update != nullptr) store(update + out + c, load<V>(made + c));
        }
      }
    });
  }
}

template <typename T, int Width>
void bands_backward(
    const ImageBlock& block, const ImageGradients& gradients, int64_t first, int64_t last, int64_t chunk) {
  using V = typename Lanes<T, Width>::type;
  const int64_t channels = block.channels;
  const int64_t width = block.width_out();
  const int64_t count = convnext_sums_size(channels);
  const Packed<T> weights(block.packed, 0, channels);
  const auto lay_out = [&](Pieces& pieces, T*& sums) {
    sums = pieces.take<T>(count);
    return TileSpace<T, Width>(pieces, channels, block.eps);
  };
  T* sums = nullptr;
  Pieces counted{nullptr};
  lay_out(counted, sums);
  Pieces pieces{static_cast<char*>(convnext_work_space(counted.used))};
  TileSpace<T, Width> space = lay_out(pieces, sums);
  double* const total = gradients.sums + chunk * count;
  for (int64_t index = first; index < last; ++index) {
    const BandOfImage at(index, block.height_out());
    const int64_t offset = at.image * block.height_out() * width * channels;
    fill_zero(sums, count);
    for_tiles(at.first_row, at.last_row, 0, width, tile_pixels(channels), [&](const Tile& tile) {
      const int64_t tile_offset = offset + (tile.row * width + tile.column) * channels;
      space.template normalise<true>(
          static_cast<const T*>(gradients.z) + tile_offset, width * channels, tile, weights);
      space.widen(tile.pixels(), weights);
      space.activate(tile.pixels(), space.after);
      for (int64_t row = 0; row < tile.rows; ++row) {
        const int64_t from = tile_offset + row * width * channels;
        T* const update = space.update + row * tile.columns * channels;
        copy(static_cast<const T*>(gradients.to_y) + from, tile.columns * channels, update);
        if (gradients.to_update == nullptr) continue;
        const T* const more = static_cast<const T*>(gradients.to_update) + from;
        for (int64_t i = 0; i < tile.columns * channels; ++i) update[i] += more[i];
      }
      space.project_backward(tile.pixels(), weights, Sums<T>(sums, channels));
      space.expand_backward(tile.pixels(), weights, Sums<T>(sums, channels));
      for (int64_t row = 0; row < tile.rows; ++row) {
        const int64_t to = tile_offset + row * width * channels;
        const T* const made = space.update + row * tile.columns * channels;
        T* const z_gradient = static_cast<T*>(gradients.z_gradient) + to;
        const T* const more = gradients.to_z == nullptr ? nullptr : static_cast<const T*>(gradients.to_z) + to;
        for (int64_t c = 0; c < tile.columns * channels; c += Width) {
          const V value = load<V>(made + c);
          store(z_gradient + c, more == nullptr ? value : value + load<V>(more + c));
        }
      }
    });
    for (int64_t i = 0; i < count; ++i) total[i] += static_cast<double>(sums[i]);
  }
}

template <typename T, int Width>
void bands_convolution_backward(
    const ImageBlock& block, const ImageGradients& gradients, int64_t first, int64_t last, int64_t chunk) {
  const int64_t channels = block.channels;
  const int64_t taps = kernel_side * kernel_side * channels;
  const int64_t in_size = block.height * block.width * channels;
  const int64_t out_size = block.height_out() * block.width_out() * channels;
  const int64_t border_down = 6 - block.padding_down;
  const int64_t border_across = 6 - block.padding_across;
  const Packed<T> weights(block.packed, 0, channels);
  const auto lay_out = [&](Pieces& pieces, T*& band, T*& sums) {
    band = pieces.take<T>((convnext_band_rows + 6) * (block.width + 6) * channels);
    sums = pieces.take<T>(taps);
  };
  T *data = nullptr, *sums = nullptr;
  Pieces counted{nullptr};
  lay_out(counted, data, sums);
  Pieces pieces{static_cast<char*>(convnext_work_space(counted.used))};
  lay_out(pieces, data, sums);
  double* const total = gradients.sums + chunk * convnext_sums_size(channels);
  for (int64_t index = first; index < last; ++index) {
    const BandOfImage at(index, block.height);
    const T* const x = static_cast<const T*>(block.x) + at.image * in_size;
    const T* const to_y = static_cast<const T*>(gradients.to_y) + at.image * out_size;
    T* const x_gradient = static_cast<T*>(gradients.x_gradient) + at.image * in_size;
    const Band<T> to_z(
        data, static_cast<const T*>(gradients.z_gradient) + at.image * out_size, block.height_out(), block.width_out(),
        channels, border_across, at.first_row - border_down, at.last_row - border_down + 6);
    const int64_t rows = at.last_row - at.first_row;
    fill_zero(sums, taps);
    for (int64_t a = 0; a < kernel_side; ++a) {
      taps_gradient<T, Width>(
          x + at.first_row * block.width * channels, block.width * channels, to_z.data + (6 - a) * to_z.row, to_z.row, rows,
          block.width, channels, sums + a * kernel_side * channels);
    }
    for (int64_t i = 0; i < taps; ++i) total[i] += static_cast<double>(sums[i]);
    for (int64_t y = at.first_row; y < at.last_row; ++y) {
      T* const to = x_gradient + y * block.width * channels;
      convolve_row<T, Width>(
          to_z.data + (y - at.first_row) * to_z.row, to_z.row, kernel_side, weights.flipped, channels, nullptr, block.width,
          to);
      // y holds x itself, with zeros around it or cut.
      const int64_t row = y + block.padding_down - 3;
      if (row < 0 || row >= block.height_out()) continue;
      const int64_t shift = block.padding_across - 3;
      const int64_t begin = most<int64_t>(0, -shift);
      const int64_t end = least(block.width, block.width_out() - shift);
      const T* const kept = to_y + (row * block.width_out() + begin + shift) * channels;
      for (int64_t i = 0; i < (end - begin) * channels; ++i) to[begin * channels + i] += kept[i];
    }
  }
}

}  // namespace
}  // namespace jepa_fast
