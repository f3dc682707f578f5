// Schemas and registrations of window_chain: windows through a chain of ConvNeXt blocks.
#include <algorithm>
#include <optional>
#include <tuple>

#include "bindings/blocks.h"
#include "cpu/convnext/bases.h"
#include "cpu/convnext/plan.h"

namespace {

using namespace jepa_fast;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr const char* op = "window_chain";

// Most cells of an axis that windows of so many pixels can lie in.
int64_t most_cells(int64_t size, int64_t window) {
  constexpr int64_t side = convnext_pooled_side;
  int64_t most = 0;
  for (int64_t first = 1 - window; first < size; ++first) {
    int64_t count = 0;
    for (int64_t cell = 0; cell < side; ++cell) {
      const int64_t begin = std::max<int64_t>({cell * size / side, first, 0});
      count += begin < std::min(((cell + 1) * size + side - 1) / side, first + window);
    }
    most = std::max(most, count);
  }
  return most;
}

// Raises unless windows [N, height, width] at `corners` lie inside images and `groups` are of so many bases: the kernels
// follow both into memory.
void check_places(
    const WindowChain& chain, const char* name, const Tensor& corners, const Tensor& groups, int64_t windows, int64_t height,
    int64_t width, int64_t bases) {
  STD_TORCH_CHECK(
      corners.dim() == 2 && corners.size(0) == windows && corners.size(1) == 2 && groups.dim() == 1 &&
          groups.size(0) == windows && corners.scalar_type() == ScalarType::Long &&
          groups.scalar_type() == ScalarType::Long,
      op, ": ", name, "corners, groups: expected int64 [N, 2] and [N]");
  STD_TORCH_CHECK(
      height >= 1 && width >= 1 && height <= chain.image_height && width <= chain.image_width, op, ": ", name,
      "windows: got ", height, " x ", width, ", expected at most the image's ", chain.image_height, " x ",
      chain.image_width);
  const int64_t* const corner = corners.const_data_ptr<int64_t>();
  const int64_t* const group = groups.const_data_ptr<int64_t>();
  for (int64_t window = 0; window < windows; ++window) {
    const int64_t row = corner[2 * window];
    const int64_t column = corner[2 * window + 1];
    STD_TORCH_CHECK(
        row >= 0 && column >= 0 && row + height <= chain.image_height && column + width <= chain.image_width, op, ": ",
        name, "corners: got a window at (", row, ", ", column, "), which is not inside the image");
    STD_TORCH_CHECK(
        group[window] >= 0 && group[window] < std::max<int64_t>(bases, 1), op, ": ", name, "groups: got ", group[window],
        ", expected one of ", bases, " bases");
  }
}

// Bases that are windows over bases.
struct Over {
  std::optional<Tensor> z, update, corners, groups;
  int64_t height, width;
};

// The tensors that a chain's pointers are of.
struct Chain {
  Tensor pixels, stem, corners, groups;
  std::optional<Tensor> base_z, base_update;
  Over over;
  PackedBlocks packed;
  int64_t bases;
  WindowChain chain{};

  Chain(
      const Tensor& pixels_, const Tensor& stem_, PackedBlocks packed_, const Tensor& corners_, const Tensor& groups_,
      const Over& over_, int64_t bases_, int64_t image_height, int64_t image_width, double eps, bool pooled)
      : pixels(torch::stable::contiguous(pixels_)),
        stem(checked(op, "stem", stem_, {packed_.channels, pixels_.size(3)}, packed_.packed)),
        corners(torch::stable::contiguous(corners_)),
        groups(torch::stable::contiguous(groups_)),
        over(over_),
        packed(packed_),
        bases(bases_) {
    STD_TORCH_CHECK(pixels.dim() == 4, op, ": pixels: got ", pixels.dim(), " dimensions, expected 4: [N, h, w, c]");
    const int64_t windows = pixels.size(0);
    STD_TORCH_CHECK(
        pixels.scalar_type() == packed.packed.scalar_type(), op, ": pixels: expected the dtype of the weight");
    chain.pixels = pixels.const_data_ptr();
    chain.stem = stem.const_data_ptr();
    chain.packed = packed.packed.const_data_ptr();
    chain.corners = corners.const_data_ptr<int64_t>();
    chain.groups = groups.const_data_ptr<int64_t>();
    chain.windows = windows;
    chain.height = pixels.size(1);
    chain.width = pixels.size(2);
    chain.blocks = packed.blocks;
    chain.channels = packed.channels;
    chain.pixel_channels = pixels.size(3);
    chain.image_height = image_height;
    chain.image_width = image_width;
    chain.eps = eps;
    chain.pooled = pooled;
    int64_t under = bases;
    if (over.corners) {
      STD_TORCH_CHECK(over.groups.has_value() && bases > 0, op, ": over: expected groups, and bases under it");
      over.corners = torch::stable::contiguous(*over.corners);
      over.groups = torch::stable::contiguous(*over.groups);
      under = over.corners->size(0);
      check_places(chain, "over ", *over.corners, *over.groups, under, over.height, over.width, bases);
      chain.over_corners = over.corners->const_data_ptr<int64_t>();
      chain.over_groups = over.groups->const_data_ptr<int64_t>();
      chain.over_height = over.height;
      chain.over_width = over.width;
    }
    check_places(chain, "", corners, groups, windows, chain.height, chain.width, under);
    chain.cells_down = most_cells(image_height, chain.height_after(chain.blocks));
    chain.cells_across = most_cells(image_width, chain.width_after(chain.blocks));
  }

  Tensor empty(std::initializer_list<int64_t> shape) const { return torch::stable::new_empty(packed.packed, shape); }
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> window_chain_cpu(
    Tensor pixels, Tensor stem, Tensor weight, Tensor gamma, Tensor beta, Tensor expand, Tensor project,
    std::optional<Tensor> base_z, std::optional<Tensor> base_update, std::optional<Tensor> over_z,
    std::optional<Tensor> over_update, std::optional<Tensor> over_corners, std::optional<Tensor> over_groups,
    int64_t over_height, int64_t over_width, Tensor corners, Tensor groups, int64_t image_height, int64_t image_width,
    double eps, bool pooled, bool keep) {
  STD_TORCH_CHECK(!(pooled && keep), op, ": keep: updates are not kept of what is pooled");
  STD_TORCH_CHECK(base_z.has_value() == base_update.has_value(), op, ": base_update: expected with base_z, or neither");
  const PackedBlocks packed = pack_blocks(op, weight, gamma, beta, expand, project, eps);
  const Over over{over_z, over_update, over_corners, over_groups, over_height, over_width};
  Chain t(
      pixels, stem, packed, corners, groups, over, base_z ? base_z->size(0) : 0, image_height, image_width, eps, pooled);
  WindowChain& chain = t.chain;
  if (base_z) {
    const auto of_bases = {t.bases, chain.blocks, image_height, image_width, chain.channels};
    t.base_z = checked(op, "base_z", *base_z, of_bases, packed.packed);
    t.base_update = checked(op, "base_update", *base_update, of_bases, packed.packed);
    chain.base_z = t.base_z->const_data_ptr();
    chain.base_update = t.base_update->const_data_ptr();
  }
  if (over_corners) {
    STD_TORCH_CHECK(over_z.has_value() && over_update.has_value(), op, ": over_z, over_update: expected with over_corners");
    const auto of_overs = {over_corners->size(0), over_pixels_before(chain, chain.blocks), chain.channels};
    t.over.z = checked(op, "over_z", *over_z, of_overs, packed.packed);
    t.over.update = checked(op, "over_update", *over_update, of_overs, packed.packed);
    chain.over_z = t.over.z->const_data_ptr();
    chain.over_update = t.over.update->const_data_ptr();
  }
  const int64_t count = chain.windows;
  const int64_t channels = chain.channels;
  const int64_t side = convnext_pooled_side;
  const Tensor out = pooled ? t.empty({count, side, side, channels})
                            : t.empty({count, chain.height_after(chain.blocks), chain.width_after(chain.blocks), channels});
  const Tensor z = t.empty({count, chain.pixels_after(chain.blocks), channels});
  const Tensor inputs = t.empty({count, chain.pixels_after(chain.blocks - 1), channels});
  const Tensor updates = t.empty({keep ? count : 0, chain.pixels_after(chain.blocks), channels});
  const Tensor hidden = t.empty({pooled ? count : 0, chain.cells_down, chain.cells_across, 4 * channels});
  const WindowResults results{
      out.mutable_data_ptr(), z.mutable_data_ptr(), inputs.mutable_data_ptr(),
      keep ? updates.mutable_data_ptr() : nullptr, hidden.mutable_data_ptr()};
  torch::stable::parallel_for(0, count, 1, [&](int64_t first, int64_t last) {
    packed.kernels->windows(chain, results, first, last);
  });
  return {out, z, inputs, updates, hidden};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> window_chain_backward_cpu(
    Tensor to_out, std::optional<Tensor> to_z, std::optional<Tensor> to_updates, Tensor pixels, Tensor stem, Tensor weight,
    Tensor gamma, Tensor beta, Tensor expand, Tensor project, int64_t bases, std::optional<Tensor> over_corners,
    std::optional<Tensor> over_groups, int64_t over_height, int64_t over_width, Tensor corners, Tensor groups, Tensor z,
    Tensor inputs, Tensor hidden, int64_t image_height, int64_t image_width, double eps, bool pooled, bool pixel_gradient) {
  const PackedBlocks packed = pack_blocks(op, weight, gamma, beta, expand, project, eps);
  const Over over{std::nullopt, std::nullopt, over_corners, over_groups, over_height, over_width};
  const Chain t(pixels, stem, packed, corners, groups, over, bases, image_height, image_width, eps, pooled);
  const WindowChain& chain = t.chain;
  const int64_t count = chain.windows;
  const int64_t channels = chain.channels;
  const int64_t side = convnext_pooled_side;
  const int64_t height = pooled ? side : chain.height_after(chain.blocks);
  const int64_t width = pooled ? side : chain.width_after(chain.blocks);
  const int64_t area = chain.pixels_after(chain.blocks);
  const auto like = [&](const char* name, const Tensor& x, std::initializer_list<int64_t> shape) {
    return checked(op, name, x, shape, packed.packed);
  };
  const Tensor out_gradient = like("to_out", to_out, {count, height, width, channels});
  const Tensor kept_z = like("z", z, {count, area, channels});
  const Tensor kept_inputs = like("inputs", inputs, {count, chain.pixels_after(chain.blocks - 1), channels});
  const Tensor kept_hidden =
      like("hidden", hidden, {pooled ? count : 0, chain.cells_down, chain.cells_across, 4 * channels});
  if (to_z) to_z = like("to_z", *to_z, {count, area, channels});
  if (to_updates) to_updates = like("to_updates", *to_updates, {count, area, channels});
  const WindowPlan plan = plan_windows(chain, bases);
  const int64_t chunks = static_cast<int64_t>(plan.chunks.size());
  const int64_t sums_size = convnext_sums_size(channels);
  const int64_t stem_size = channels * chain.pixel_channels;
  const int64_t stride = chain.blocks * sums_size + stem_size;
  const Tensor sums = torch::stable::new_empty(packed.packed, {chunks, stride}, ScalarType::Double);
  const Tensor parts = t.empty({plan.parts_size});
  const Tensor to_pixels = t.empty({pixel_gradient ? count : 0, chain.height, chain.width, chain.pixel_channels});
  const WindowGradients gradients{
      out_gradient.const_data_ptr(),
      to_z ? to_z->const_data_ptr() : nullptr,
      to_updates ? to_updates->const_data_ptr() : nullptr,
      kept_z.const_data_ptr(),
      kept_inputs.const_data_ptr(),
      kept_hidden.const_data_ptr(),
      plan.order.data(),
      plan.chunks.data(),
      plan.parts.data(),
      plan.overs.data(),
      plan.part_of.data(),
      plan.over_of.data(),
      bases > 0 ? parts.mutable_data_ptr() : nullptr,
      sums.mutable_data_ptr<double>(),
      pixel_gradient ? to_pixels.mutable_data_ptr() : nullptr};
  torch::stable::parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) {
    for (int64_t chunk = first; chunk < last; ++chunk) packed.kernels->windows_backward(chain, gradients, chunk);
  });
  const BlockGradients to(packed.packed, chain.blocks, channels);
  const Tensor to_stem = t.empty({channels, chain.pixel_channels});
  const Tensor to_base_z = t.empty({bases, chain.blocks, image_height, image_width, channels});
  const Tensor to_base_update = t.empty({bases, chain.blocks, image_height, image_width, channels});
  const int64_t overs = over_corners ? over_corners->size(0) : 0;
  const int64_t over_size = over_pixels_before(chain, chain.blocks);
  const Tensor to_over_z = t.empty({overs, over_size, channels});
  const Tensor to_over_update = t.empty({overs, over_size, channels});
  const auto finish = [&]<typename T>(T*) {
    const auto data = [](const Tensor& x) { return static_cast<T*>(x.mutable_data_ptr()); };
    torch::stable::parallel_for(0, overs, 1, [&](int64_t first, int64_t last) {
      for (int64_t each = first; each < last; ++each) {
        const int64_t at = each * over_size * channels;
        finish_over<T>(chain, plan, data(parts), each, data(to_over_z) + at, data(to_over_update) + at);
      }
    });
    const double* const all = sums.const_data_ptr<double>();
    torch::stable::parallel_for(0, chain.blocks, 1, [&](int64_t first, int64_t last) {
      for (int64_t block = first; block < last; ++block) {
        const int64_t matrix = block * 4 * channels * channels;
        finish_parameters<T>(
            all + block * sums_size, chunks, stride, channels,
            {data(to.weight) + block * 49 * channels, data(to.gamma) + block * channels, data(to.beta) + block * channels,
             data(to.expand) + matrix, data(to.project) + matrix});
      }
    });
    finish_sums<T>(all + chain.blocks * sums_size, chunks, stride, stem_size, data(to_stem));
    const int64_t size = image_height * image_width * channels;
    torch::stable::parallel_for(0, 2 * bases * chain.blocks, 1, [&](int64_t first, int64_t last) {
      for (int64_t task = first; task < last; ++task) {
        const int64_t image = task / 2;
        T* const out = data(task % 2 == 1 ? to_base_update : to_base_z) + image * size;
        finish_base<T>(chain, plan, data(parts), image / chain.blocks, image % chain.blocks, task % 2 == 1, out);
      }
    });
  };
  if (packed.packed.scalar_type() == ScalarType::Double) {
    finish(static_cast<double*>(nullptr));
  } else {
    finish(static_cast<float*>(nullptr));
  }
  return {to_pixels,  to_stem,   to.weight,      to.gamma,  to.beta,       to.expand,
          to.project, to_base_z, to_base_update, to_over_z, to_over_update};
}

// The geometry of windows [h, w] whose values after all blocks are [N, P, C], in images [H, W].
WindowChain geometry(
    const Tensor& corners, const Tensor& groups, int64_t height, int64_t width, int64_t blocks, int64_t channels,
    int64_t bases, int64_t image_height, int64_t image_width) {
  WindowChain chain{};
  chain.corners = corners.const_data_ptr<int64_t>();
  chain.groups = groups.const_data_ptr<int64_t>();
  chain.windows = corners.size(0);
  chain.height = height;
  chain.width = width;
  chain.blocks = blocks;
  chain.channels = channels;
  chain.image_height = image_height;
  chain.image_width = image_width;
  check_places(chain, "", corners, groups, chain.windows, height, width, bases);
  return chain;
}

// windows [N, P, C] over bases [G, L, H, W, C]: [N, L, H, W, C].
Tensor paste_windows_cpu(
    Tensor windows, Tensor bases, Tensor corners, Tensor groups, int64_t height, int64_t width) {
  STD_TORCH_CHECK(bases.dim() == 5, "paste_windows: bases: got ", bases.dim(), " dimensions, expected 5: [G, L, H, W, C]");
  const bool is_wide = is_double("paste_windows", bases);
  corners = torch::stable::contiguous(corners);
  groups = torch::stable::contiguous(groups);
  bases = torch::stable::contiguous(bases);
  const WindowChain chain = geometry(
      corners, groups, height, width, bases.size(1), bases.size(4), bases.size(0), bases.size(2), bases.size(3));
  windows = checked(
      "paste_windows", "windows", windows, {chain.windows, chain.pixels_after(chain.blocks), chain.channels}, bases);
  const Tensor images = torch::stable::new_empty(
      bases, {chain.windows, chain.blocks, chain.image_height, chain.image_width, chain.channels});
  const auto run = [&]<typename T>(T*) {
    torch::stable::parallel_for(
        0, chain.windows * chain.blocks * chain.image_height, 64, [&](int64_t first, int64_t last) {
          for (int64_t row = first; row < last; ++row) {
            paste_row<T>(
                chain, static_cast<const T*>(windows.const_data_ptr()), static_cast<const T*>(bases.const_data_ptr()), row,
                static_cast<T*>(images.mutable_data_ptr()));
          }
        });
  };
  is_wide ? run(static_cast<double*>(nullptr)) : run(static_cast<float*>(nullptr));
  return images;
}

std::tuple<Tensor, Tensor> paste_windows_backward_cpu(
    Tensor to_images, int64_t bases, Tensor corners, Tensor groups, int64_t height, int64_t width) {
  STD_TORCH_CHECK(to_images.dim() == 5, "paste_windows: to_images: expected 5 dimensions: [N, L, H, W, C]");
  const bool is_wide = is_double("paste_windows", to_images);
  corners = torch::stable::contiguous(corners);
  groups = torch::stable::contiguous(groups);
  to_images = torch::stable::contiguous(to_images);
  const WindowChain chain = geometry(
      corners, groups, height, width, to_images.size(1), to_images.size(4), bases, to_images.size(2), to_images.size(3));
  STD_TORCH_CHECK(to_images.size(0) == chain.windows, "paste_windows: to_images: expected one image per window");
  const Tensor to_windows =
      torch::stable::new_empty(to_images, {chain.windows, chain.pixels_after(chain.blocks), chain.channels});
  const Tensor to_bases = torch::stable::new_empty(
      to_images, {bases, chain.blocks, chain.image_height, chain.image_width, chain.channels});
  const auto run = [&]<typename T>(T*) {
    const T* const images = static_cast<const T*>(to_images.const_data_ptr());
    T* const window_values = static_cast<T*>(to_windows.mutable_data_ptr());
    T* const base_values = static_cast<T*>(to_bases.mutable_data_ptr());
    torch::stable::parallel_for(0, chain.windows, 1, [&](int64_t first, int64_t last) {
      for (int64_t window = first; window < last; ++window) paste_backward_window<T>(chain, images, window, window_values);
    });
    torch::stable::parallel_for(0, bases * chain.blocks * chain.image_height, 4, [&](int64_t first, int64_t last) {
      for (int64_t row = first; row < last; ++row) paste_backward_row<T>(chain, images, row, base_values);
    });
  };
  is_wide ? run(static_cast<double*>(nullptr)) : run(static_cast<float*>(nullptr));
  return {to_windows, to_bases};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(jepa_fast, m) {
  m.def(
      "window_chain(Tensor pixels, Tensor stem, Tensor weight, Tensor gamma, Tensor beta, Tensor expand, Tensor project, "
      "Tensor? base_z, Tensor? base_update, Tensor? over_z, Tensor? over_update, Tensor? over_corners, "
      "Tensor? over_groups, int over_height, int over_width, Tensor corners, Tensor groups, int image_height, "
      "int image_width, float eps, bool pooled, bool keep) -> (Tensor out, Tensor z, Tensor inputs, Tensor updates, Tensor hidden)");
  m.def(
      "window_chain_backward(Tensor to_out, Tensor? to_z, Tensor? to_updates, Tensor pixels, Tensor stem, Tensor weight, "
      "Tensor gamma, Tensor beta, Tensor expand, Tensor project, int bases, Tensor? over_corners, Tensor? over_groups, "
      "int over_height, int over_width, Tensor corners, Tensor groups, Tensor z, Tensor inputs, Tensor hidden, int image_height, int image_width, float eps, bool pooled, bool pixel_gradient) -> "
      "(Tensor to_pixels, Tensor to_stem, Tensor to_weight, Tensor to_gamma, Tensor to_beta, Tensor to_expand, "
      "Tensor to_project, Tensor to_base_z, Tensor to_base_update, Tensor to_over_z, Tensor to_over_update)");
  m.def(
      "paste_windows(Tensor windows, Tensor bases, Tensor corners, Tensor groups, int height, int width) -> Tensor");
  m.def(
      "paste_windows_backward(Tensor to_images, int bases, Tensor corners, Tensor groups, int height, int width) -> "
      "(Tensor to_windows, Tensor to_bases)");
}

STABLE_TORCH_LIBRARY_IMPL(jepa_fast, CPU, m) {
  m.impl("window_chain", TORCH_BOX(&window_chain_cpu));
  m.impl("window_chain_backward", TORCH_BOX(&window_chain_backward_cpu));
  m.impl("paste_windows", TORCH_BOX(&paste_windows_cpu));
  m.impl("paste_windows_backward", TORCH_BOX(&paste_windows_backward_cpu));
}
