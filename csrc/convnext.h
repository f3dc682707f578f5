// ConvNeXt blocks on the CPU, free of torch: plain pointers in, plain pointers out.
//
//     z = dwconv7x7(x) + addend      y = x + W2 gelu(W1 LN(z))
//
// Two forms. An image's block is cut into bands of rows. A window goes through a chain of blocks as a whole, as the difference
// to a base image whose z and updates are known, and grows by three pixels to each side with every block.
//
// Everything is channels last. T is float or double; both have the same functions. Sums over pixels are taken in T within an
// image's band or a window, in double beyond, in the order of memory: no result depends on the number of threads.
#pragma once

#include <cstddef>
#include <cstdint>

namespace jepa_fast {

constexpr int64_t convnext_channel_step = 8;
constexpr int64_t convnext_most_channels = 128;
constexpr int64_t convnext_pooled_side = 6;

// Parameters of `blocks` blocks, each contiguous: weight [L, C, 49], gamma and beta [L, C], expand [L, 4C, C], project
// [L, C, 4C].
struct ConvNextParameters {
  const void* weight;
  const void* gamma;
  const void* beta;
  const void* expand;
  const void* project;
  int64_t blocks;
  int64_t channels;
  double eps;
};

// One block's parameters as the kernels read them, one after the other in T: taps and flipped taps [49, C], gamma, beta [C],
// W1 [4C, C], its transpose, W2 [C, 4C], its transpose.
constexpr int64_t convnext_packed_size(int64_t channels) { return 2 * 49 * channels + 2 * channels + 16 * channels * channels; }

// The sums of a block's parameter gradients: taps [49, C], gamma, beta [C], W1 transposed [C, 4C], W2 [C, 4C].
constexpr int64_t convnext_sums_size(int64_t channels) { return 49 * channels + 2 * channels + 8 * channels * channels; }

// N windows [h, w] of c channels, of differences to base images, in images [H, W].
struct WindowChain {
  const void* pixels;  // [N, h, w, c]: what a window's pixels are more than its base's
  const void* stem;    // [C, c]: what pixels are multiplied by
  const void* packed;  // [L, convnext_packed_size]
  const void* base_z;       // [G, L, H, W, C]
  const void* base_update;  // [G, L, H, W, C]
  // Bases that are windows over those bases themselves, or none: z and updates of M windows [over_height, over_width] after
  // each block [M, P, C], their corners [M, 2] and which of the G bases they lie on [M].
  const void* over_z;
  const void* over_update;
  const int64_t* over_corners;
  const int64_t* over_groups;
  const int64_t* corners;  // [N, 2]: (row, column) of a window's top left pixel
  const int64_t* groups;   // [N]: which of the M bases, or of the G where there are none over them
  int64_t windows;
  int64_t height;
  int64_t width;
  int64_t blocks;
  int64_t channels;
  int64_t pixel_channels;
  int64_t image_height;
  int64_t image_width;
  int64_t over_height;
  int64_t over_width;
  int64_t cells_down;   // of the 6 x 6 pooled cells, so many at most under a window
  int64_t cells_across;
  double eps;
  bool pooled;  // the last block ends in pooled cells; else in the difference on the window

  // A window does not grow along an axis that it fills.
  int64_t growth_down() const { return height == image_height ? 0 : 3; }
  int64_t growth_across() const { return width == image_width ? 0 : 3; }
  int64_t height_after(int64_t block) const { return height + 2 * growth_down() * block; }
  int64_t width_after(int64_t block) const { return width + 2 * growth_across() * block; }
  // Pixels of the windows after blocks 1 to `block`.
  int64_t pixels_after(int64_t block) const {
    int64_t total = 0;
    for (int64_t each = 1; each <= block; ++each) total += height_after(each) * width_after(each);
    return total;
  }
};

// What the forward pass writes. Pixels outside the image are zero everywhere.
struct WindowResults {
  void* out;      // pooled: differences of the cells [N, 6, 6, C], else of the last block [N, h, w, C]
  void* z;        // [N, pixels_after(L), C]
  void* inputs;   // [N, pixels_after(L - 1), C]: the differences that blocks 2 to L begin with
  void* updates;  // [N, pixels_after(L), C], or null
  void* hidden;   // pooled: mean hidden activations of the cells [N, cells_down, cells_across, 4C]
};

// What a chunk's windows cover of a base, and where that base's gradient lies among the partial ones, from `offset` on: z
// then updates. Of an image it is a rectangle, [2, L, rows, columns, C]; of a window over one its rows, [2, L, rows, its
// width after the block, C].
struct BasePart {
  int64_t base;
  int64_t first_row, last_row, first_column, last_column;  // of the image
  int64_t offset;
  int64_t size;
};

// Windows order[first] to order[last - 1], sorted by group and row, whose gradients are summed one after the other.
struct WindowChunk {
  int64_t first, last;
  int64_t first_part, last_part;
  int64_t first_over, last_over;
};

struct WindowGradients {
  const void* to_out;      // like out
  const void* to_z;        // like z, or null
  const void* to_updates;  // like updates, or null
  const void* z;
  const void* inputs;
  const void* hidden;
  const int64_t* order;
  const WindowChunk* chunks;
  const BasePart* parts;      // of images
  const BasePart* overs;      // of windows over them
  const int64_t* part_of;     // [N] in the order of `order`: the part of a window's image, if there are bases
  const int64_t* over_of;     // [N]: of the window under it, if there is one
  void* bases;        // the partial gradients; null: no base
  double* sums;       // [chunks, L convnext_sums_size + C c]: of the blocks' parameters, then of the stem
  void* to_pixels;    // [N, h, w, c], or null
};

// A block of N images [H, W], with `padding` zeros around them: 3 keeps the size.
struct ImageBlock {
  const void* x;       // [N, H, W, C]
  const void* packed;  // [convnext_packed_size]
  const void* addend;  // [N, H', W', C], or null
  int64_t images;
  int64_t height;
  int64_t width;
  int64_t channels;
  int64_t padding_down;
  int64_t padding_across;
  double eps;

  int64_t height_out() const { return height + 2 * padding_down - 6; }
  int64_t width_out() const { return width + 2 * padding_across - 6; }
};

struct ImageResults {
  void* y;       // [N, H', W', C]
  void* z;       // [N, H', W', C]
  void* update;  // [N, H', W', C], or null
};

struct ImageGradients {
  const void* to_y;       // [N, H', W', C]
  const void* to_z;       // [N, H', W', C], or null
  const void* to_update;  // [N, H', W', C], or null
  const void* z;
  void* z_gradient;  // [N, H', W', C]
  void* x_gradient;  // [N, H, W, C]
  double* sums;      // [chunks, convnext_sums_size]
};

// Rows of an image that are worked on as one.
constexpr int64_t convnext_band_rows = 8;

constexpr int64_t convnext_bands(int64_t rows) { return (rows + convnext_band_rows - 1) / convnext_band_rows; }

// One build of the kernels for one instruction set and T.
struct ConvNextKernels {
  const char* instruction_set;
  void (*pack)(const ConvNextParameters&, void* packed);
  void (*windows)(const WindowChain&, const WindowResults&, int64_t first, int64_t last);
  void (*windows_backward)(const WindowChain&, const WindowGradients&, int64_t chunk);
  // Bands [first, last) of all images together, in the order of memory.
  void (*bands)(const ImageBlock&, const ImageResults&, int64_t first, int64_t last);
  // The gradient of z, and the parameters' but the taps', which are added to sums [chunk].
  void (*bands_backward)(const ImageBlock&, const ImageGradients&, int64_t first, int64_t last, int64_t chunk);
  // The gradients of x and taps from that of z: bands of x, not of y.
  void (*bands_convolution_backward)(const ImageBlock&, const ImageGradients&, int64_t first, int64_t last, int64_t chunk);
  // Multiply-adds from registers to registers, and nothing else: what the processor can do at most. Returns their FLOPs.
  double (*multiply_adds)(int64_t steps);
  const struct ProbeKernels* probe;  // the float build's
  const struct RolloutKernels* rollout;
  const struct LocateKernels* locate;
  const struct FeatureGateKernels* feature_gate;
};

// The best build for this processor, or the one that JEPA_FAST_CPU_ISA names (avx512, avx2, baseline or neon).
// Null: that one is not there.
const ConvNextKernels* convnext_kernels(bool is_double);

// Memory of this thread, aligned to 64 bytes; gone with the next call. Contents are what the last use left.
void* convnext_work_space(size_t bytes);

}  // namespace jepa_fast
