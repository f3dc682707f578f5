// The VICReg terms and their gradient, free of torch: plain pointers in, plain pointers out.
//
// x [G, N, D] holds G groups of N rows; each group has its own statistics, and terms are averaged over the groups.
#pragma once

#include <algorithm>
#include <cstdint>

#include "scalar.h"

namespace jepa_fast {

constexpr int64_t vicreg_most_columns = 1024;

// [groups, rows, columns]: columns are adjacent in memory; groups and rows lie so many elements apart.
struct Groups {
  const void* data;
  Scalar scalar;
  int64_t groups;
  int64_t rows;
  int64_t columns;
  int64_t group_stride;
  int64_t row_stride;
};

struct VicregOptions {
  double gamma;
  double eps;
  double divisor;  // of the squared off-diagonal covariances: D or D (D - 1)
};

// What multiplies the statistics in the gradient, once the gradients of the three terms are known.
//     dx = (x - mean) M + invariance (x - target)
//     M_ij = covariance S_ij,  M_jj = -variance / sigma_j where sigma_j = sqrt(S_jj + eps) < gamma, else 0
struct VicregScales {
  double invariance;
  double variance;
  double covariance;
};

inline VicregScales vicreg_scales(const Groups& x, double divisor) {
  const double groups = static_cast<double>(x.groups);
  const double columns = static_cast<double>(x.columns);
  const double degrees = static_cast<double>(x.rows - 1);
  return {
      2 / (groups * static_cast<double>(x.rows) * columns), 1 / (groups * columns * degrees),
      4 / (groups * divisor * degrees)};
}

// The CPU cuts each group into chunks of rows and each chunk's scatter matrix into strips of 128 of its rows. The cut
// depends on N and D alone: results are the same bits for any number of threads.
struct VicregCut {
  int64_t chunk_rows;
  int64_t chunks;
  int64_t strips;
};

VicregCut vicreg_cut_cpu(int64_t rows, int64_t columns);

// Strip `strip` of chunk `chunk` of group `group`: rows [128 strip, ...) of the chunk's scatter matrix about the chunk's
// own mean, right of the diagonal and on it (what lies left of it is left as it was). Strip 0 also gives the chunk's mean
// and, where there is a target, the sum of (x - target)^2.
//     means    [G, chunks, D]
//     scatters [G, chunks, D, D]
//     errors   [G, chunks]
void vicreg_scatter_cpu(
    const Groups& x, const Groups* target, const VicregCut& cut, int64_t group, int64_t chunk, int64_t strip,
    double* means, double* scatters, double* errors);

// Mean of group `group` over all its chunks: mean [G, D].
void vicreg_mean_cpu(const Groups& x, const VicregCut& cut, int64_t group, const double* means, double* mean);

// Row `row` of the covariance matrix of group `group` right of the diagonal, from all chunks about the group's mean, and
// its mirror image; covariance [G, D, D] is double for float64 input, else float.
//     row_terms [G, D, 2]: the row's hinge, and the squares of what is off the diagonal in it and in its mirror image
void vicreg_covariance_cpu(
    const Groups& x, const VicregCut& cut, const VicregOptions& options, int64_t group, int64_t row,
    const double* means, const double* mean, const double* scatters, void* covariance, double* row_terms);

// The three terms, added up in the order of memory: terms [3] is double for float64 input, else float.
void vicreg_terms_cpu(
    const Groups& x, const VicregCut& cut, const VicregOptions& options, const double* row_terms, const double* errors,
    bool has_target, void* terms);

// Rows of x that the gradient takes at a time, and the panels its matrix M is packed in: [G, panels, D, 32].
constexpr int64_t vicreg_block_rows = 128;
constexpr int64_t vicreg_panel_columns = 32;

inline int64_t vicreg_panels(int64_t columns) { return (columns + vicreg_panel_columns - 1) / vicreg_panel_columns; }

// Panel `panel` of M of group `group`: packed [G, panels, 32 panels, 32], zero where there is no row or column; double
// for float64 input, else float, as are covariance [G, D, D] and gradients [3].
void vicreg_pack_cpu(
    const Groups& x, const VicregOptions& options, int64_t group, int64_t panel, const void* gradients,
    const void* covariance, void* packed);

// Rows [128 block, ...) of group `group` of both gradients. dx and, unless null, dtarget [G, N, D] are contiguous and of
// the element type of x.
void vicreg_gradient_cpu(
    const Groups& x, const Groups* target, const VicregOptions& options, int64_t group, int64_t block,
    const void* gradients, const double* mean, const void* packed, void* dx, void* dtarget);

// How CUDA cuts the same work: rows into chunks for the means and into splits for the scatter matrix, that matrix into
// tiles of 64 x 64, of which the upper triangle is computed.
struct VicregCudaPlan {
  int64_t column_blocks;  // of 32 columns
  int64_t chunk_rows;
  int64_t chunks;
  int64_t tiles;     // in a row of tiles
  int64_t triangle;  // tiles on the diagonal and above it
  int64_t split_rows;
  int64_t splits;
  int64_t partial_values;  // of a tile
  int64_t term_blocks;     // shares of the terms per tile
};

VicregCudaPlan vicreg_plan_cuda(const Groups& x);

struct VicregCudaSpace {
  double* sums;         // [G, chunks, D]
  double* errors;       // [G, chunks, column blocks], untouched without a target
  float* partials;      // [G, splits, triangle, partial values]
  double* block_terms;  // [G, triangle, term blocks, 2]
};

// Both on a CUDA stream; all pointers but the structs are device pointers. Return a cudaError_t; float64 input is invalid.
int vicreg_cuda(
    const Groups& x, const Groups* target, const VicregOptions& options, const VicregCudaPlan& plan,
    const VicregCudaSpace& space, double* mean, float* covariance, float* terms, void* stream);
int vicreg_backward_cuda(
    const Groups& x, const Groups* target, const VicregOptions& options, const float* gradients, const double* mean,
    const float* covariance, void* dx, void* dtarget, void* stream);

}  // namespace jepa_fast
