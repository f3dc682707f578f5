#include "vicreg.h"

#include <cmath>
#include <vector>

#include "cpu/tile.h"
#include "cpu/vicreg_rows.h"

namespace jepa_fast {
namespace {

constexpr int64_t strip_columns = 128;

template <typename T>
const T* rows_of(const Groups& x, int64_t group, int64_t row) {
  return static_cast<const T*>(x.data) + group * x.group_stride + row * x.row_stride;
}

// A task's work space lives as long as its thread: a fresh one would be mapped and faulted in anew for every task.
template <typename A>
A* work_space(int64_t size) {
  thread_local std::vector<A> space;
  if (static_cast<int64_t>(space.size()) < size) space.resize(static_cast<size_t>(size));
  return space.data();
}

// Blocks of 128 rows, each centred at its own mean while it is in cache, are merged one after the other by the pairwise
// update. x is read once, and what the block is centred at is never far from its values.
template <typename T>
void scatter(
    const Groups& x, const Groups* target, int64_t group, int64_t first_row, int64_t last_row, int64_t strip,
    double* chunk_mean, double* chunk_scatter, double* chunk_error) {
  using A = Working<T>;
  const int64_t first_column = strip * strip_columns;
  const int64_t columns = x.columns - first_column;
  const int64_t last_strip_row = std::min(strip_columns, columns);
  A* panels = work_space<A>(vicreg_panels(columns) * vicreg_block_rows * tile_columns);
  double mean[vicreg_most_columns] = {};
  double block_mean[vicreg_most_columns];
  double shift[vicreg_most_columns];
  double error = 0;
  A tile[tile_rows * tile_columns];
  for (int64_t row = first_row; row < last_row; row += vicreg_block_rows) {
    const int64_t rows = std::min(vicreg_block_rows, last_row - row);
    const T* block = rows_of<T>(x, group, row) + first_column;
    std::fill(block_mean, block_mean + columns, 0.0);
    wide_add_rows(block, rows, columns, x.row_stride, block_mean);
    const double before = static_cast<double>(row - first_row);
    const double count = static_cast<double>(rows);
    for (int64_t j = 0; j < columns; ++j) {
      block_mean[j] /= count;
      shift[j] = block_mean[j] - mean[j];
      mean[j] += shift[j] * (count / (before + count));
    }
    const double weight = count * (before / (before + count));
    wide_centre_rows(block, rows, columns, x.row_stride, block_mean, panels);
    for (int64_t j = 0; j < columns; j += tile_columns) {
      const A* right = panels + j * vicreg_block_rows;
      const int64_t width = std::min(tile_columns, columns - j);
      for (int64_t i = 0; i < std::min(last_strip_row, j + width); i += tile_rows) {
        const A* left = panels + i / tile_columns * tile_columns * vicreg_block_rows + i % tile_columns;
        tile_transposed_product(left, right, rows, tile);
        wide_take_tile(
            tile, std::min(tile_rows, last_strip_row - i), width, weight, shift + i, shift + j, row == first_row,
            chunk_scatter + (first_column + i) * x.columns + first_column + j, x.columns);
      }
    }
    if (strip == 0 && target != nullptr) {
      error += wide_squared_error(
          block, rows_of<T>(*target, group, row), rows, columns, x.row_stride, target->row_stride);
    }
  }
  if (strip != 0) return;
  std::copy(mean, mean + columns, chunk_mean);
  *chunk_error = error;
}

template <typename A>
void finish_covariance(
    const Groups& x, const VicregOptions& options, int64_t row, const double* sums, A* covariance, double* row_terms) {
  const double scale = 1 / static_cast<double>(x.rows - 1);
  const double hinge = options.gamma - std::sqrt(sums[0] * scale + options.eps);
  double squares = 0;
  for (int64_t j = row; j < x.columns; ++j) {
    const double value = sums[j - row] * scale;
    if (j > row) squares += value * value;
    covariance[row * x.columns + j] = static_cast<A>(value);
    covariance[j * x.columns + row] = static_cast<A>(value);
  }
  // A NaN fails the comparison and stays.
  row_terms[0] = hinge < 0 ? 0 : hinge;
  row_terms[1] = 2 * squares;
}

template <typename A>
void pack(
    const Groups& x, const VicregOptions& options, int64_t panel, const A* gradients, const A* covariance, A* packed) {
  const VicregScales scales = vicreg_scales(x, options.divisor);
  const double variance_scale = scales.variance * static_cast<double>(gradients[1]);
  const double covariance_scale = scales.covariance * static_cast<double>(gradients[2]);
  const int64_t first = panel * tile_columns;
  const int64_t width = std::min(tile_columns, x.columns - first);
  for (int64_t k = 0; k < x.columns; ++k, packed += tile_columns) {
    const A* row = covariance + k * x.columns + first;
    for (int64_t n = 0; n < width; ++n) packed[n] = static_cast<A>(covariance_scale * static_cast<double>(row[n]));
    std::fill(packed + width, packed + tile_columns, A{0});
    if (k < first || k >= first + width) continue;
    const double sigma = std::sqrt(static_cast<double>(row[k - first]) + options.eps);
    packed[k - first] = static_cast<A>(sigma >= options.gamma ? 0 : -variance_scale / sigma);
  }
  std::fill(packed, packed + (vicreg_panels(x.columns) * tile_columns - x.columns) * tile_columns, A{0});
}

template <typename T>
void gradient(
    const Groups& x, const Groups* target, const VicregOptions& options, int64_t group, int64_t block,
    const Working<T>* gradients, const double* mean, const Working<T>* packed, T* dx, T* dtarget) {
  using A = Working<T>;
  const int64_t first_row = block * vicreg_block_rows;
  const int64_t rows = std::min(vicreg_block_rows, x.rows - first_row);
  const int64_t panels = vicreg_panels(x.columns);
  const A scale = static_cast<A>(vicreg_scales(x, options.divisor).invariance * static_cast<double>(gradients[0]));
  A* centred = work_space<A>(panels * vicreg_block_rows * tile_columns);
  A tile[tile_rows * tile_columns];
  wide_centre_rows(rows_of<T>(x, group, first_row), rows, x.columns, x.row_stride, mean, centred);
  for (int64_t panel = 0; panel < panels; ++panel) {
    const int64_t first = panel * tile_columns;
    const int64_t width = std::min(tile_columns, x.columns - first);
    const A* factor = packed + first * panels * tile_columns;
    for (int64_t i = 0; i < rows; i += tile_rows) {
      tile_product(centred + i * tile_columns, vicreg_block_rows * tile_columns, panels, factor, tile);
      for (int64_t m = 0; m < std::min(tile_rows, rows - i); ++m) {
        const int64_t row = first_row + i + m;
        const int64_t offset = (group * x.rows + row) * x.columns + first;
        wide_store_gradient(
            tile + m * tile_columns, rows_of<T>(x, group, row) + first,
            target == nullptr ? nullptr : rows_of<T>(*target, group, row) + first, width, scale, dx + offset,
            dtarget == nullptr ? nullptr : dtarget + offset);
      }
    }
  }
}

}  // namespace

VicregCut vicreg_cut_cpu(int64_t rows, int64_t columns) {
  constexpr int64_t most_tasks = 32;
  constexpr int64_t fewest_rows = 2 * vicreg_block_rows;
  const int64_t strips = (columns + strip_columns - 1) / strip_columns;
  const int64_t wanted = std::clamp<int64_t>(rows / fewest_rows, 1, most_tasks / strips);
  const int64_t blocks = (rows + vicreg_block_rows - 1) / vicreg_block_rows;
  const int64_t chunk_rows = (blocks + wanted - 1) / wanted * vicreg_block_rows;
  return {chunk_rows, (rows + chunk_rows - 1) / chunk_rows, strips};
}

void vicreg_scatter_cpu(
    const Groups& x, const Groups* target, const VicregCut& cut, int64_t group, int64_t chunk, int64_t strip,
    double* means, double* scatters, double* errors) {
  const int64_t first_row = chunk * cut.chunk_rows;
  const int64_t last_row = std::min(first_row + cut.chunk_rows, x.rows);
  const int64_t index = group * cut.chunks + chunk;
  double* mean = means + index * x.columns;
  double* matrix = scatters + index * x.columns * x.columns;
  switch (x.scalar) {
    case Scalar::float32:
      return scatter<float>(x, target, group, first_row, last_row, strip, mean, matrix, errors + index);
    case Scalar::float64:
      return scatter<double>(x, target, group, first_row, last_row, strip, mean, matrix, errors + index);
    case Scalar::bfloat16:
      return scatter<BFloat16>(x, target, group, first_row, last_row, strip, mean, matrix, errors + index);
  }
}

void vicreg_mean_cpu(const Groups& x, const VicregCut& cut, int64_t group, const double* means, double* mean) {
  means += group * cut.chunks * x.columns;
  mean += group * x.columns;
  std::copy(means, means + x.columns, mean);
  for (int64_t first_row = cut.chunk_rows; first_row < x.rows; first_row += cut.chunk_rows) {
    means += x.columns;
    const int64_t last_row = std::min(first_row + cut.chunk_rows, x.rows);
    const double weight = static_cast<double>(last_row - first_row) / static_cast<double>(last_row);
    for (int64_t j = 0; j < x.columns; ++j) mean[j] += (means[j] - mean[j]) * weight;
  }
}

void vicreg_covariance_cpu(
    const Groups& x, const VicregCut& cut, const VicregOptions& options, int64_t group, int64_t row,
    const double* means, const double* mean, const double* scatters, void* covariance, double* row_terms) {
  double sums[vicreg_most_columns] = {};
  mean += group * x.columns;
  for (int64_t chunk = 0; chunk < cut.chunks; ++chunk) {
    const int64_t index = group * cut.chunks + chunk;
    const double rows = static_cast<double>(std::min(cut.chunk_rows, x.rows - chunk * cut.chunk_rows));
    const double* scatter_row = scatters + (index * x.columns + row) * x.columns;
    const double* chunk_mean = means + index * x.columns;
    const double shift = rows * (chunk_mean[row] - mean[row]);
    for (int64_t j = row; j < x.columns; ++j) sums[j - row] += scatter_row[j] + shift * (chunk_mean[j] - mean[j]);
  }
  const int64_t offset = group * x.columns * x.columns;
  row_terms += (group * x.columns + row) * 2;
  if (x.scalar == Scalar::float64) {
    finish_covariance(x, options, row, sums, static_cast<double*>(covariance) + offset, row_terms);
  } else {
    finish_covariance(x, options, row, sums, static_cast<float*>(covariance) + offset, row_terms);
  }
}

void vicreg_terms_cpu(
    const Groups& x, const VicregCut& cut, const VicregOptions& options, const double* row_terms, const double* errors,
    bool has_target, void* terms) {
  double hinge = 0;
  double squares = 0;
  double error = 0;
  for (int64_t i = 0; i < x.groups * x.columns; ++i) {
    hinge += row_terms[2 * i];
    squares += row_terms[2 * i + 1];
  }
  for (int64_t i = 0; i < (has_target ? x.groups * cut.chunks : 0); ++i) error += errors[i];
  const double groups = static_cast<double>(x.groups);
  const double columns = static_cast<double>(x.columns);
  const double values[3] = {
      error / (groups * static_cast<double>(x.rows) * columns), hinge / (groups * columns),
      squares / (groups * options.divisor)};
  for (int i = 0; i < 3; ++i) {
    if (x.scalar == Scalar::float64) {
      static_cast<double*>(terms)[i] = values[i];
    } else {
      static_cast<float*>(terms)[i] = static_cast<float>(values[i]);
    }
  }
}

void vicreg_pack_cpu(
    const Groups& x, const VicregOptions& options, int64_t group, int64_t panel, const void* gradients,
    const void* covariance, void* packed) {
  const int64_t offset = group * x.columns * x.columns;
  const int64_t panels = vicreg_panels(x.columns);
  const int64_t packed_offset = (group * panels + panel) * panels * tile_columns * tile_columns;
  if (x.scalar == Scalar::float64) {
    pack(
        x, options, panel, static_cast<const double*>(gradients), static_cast<const double*>(covariance) + offset,
        static_cast<double*>(packed) + packed_offset);
  } else {
    pack(
        x, options, panel, static_cast<const float*>(gradients), static_cast<const float*>(covariance) + offset,
        static_cast<float*>(packed) + packed_offset);
  }
}

void vicreg_gradient_cpu(
    const Groups& x, const Groups* target, const VicregOptions& options, int64_t group, int64_t block,
    const void* gradients, const double* mean, const void* packed, void* dx, void* dtarget) {
  const int64_t panels = vicreg_panels(x.columns);
  const int64_t offset = group * panels * panels * tile_columns * tile_columns;
  mean += group * x.columns;
  const auto run = [&]<typename T>(T*) {
    using A = Working<T>;
    gradient<T>(
        x, target, options, group, block, static_cast<const A*>(gradients), mean,
        static_cast<const A*>(packed) + offset, static_cast<T*>(dx), static_cast<T*>(dtarget));
  };
  switch (x.scalar) {
    case Scalar::float32:
      return run(static_cast<float*>(nullptr));
    case Scalar::float64:
      return run(static_cast<double*>(nullptr));
    case Scalar::bfloat16:
      return run(static_cast<BFloat16*>(nullptr));
  }
}

}  // namespace jepa_fast
