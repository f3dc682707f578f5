// Schemas and registrations of read_centres and read_layout.
#include "scene.h"

#include <optional>

#include "bindings/tensors.h"

namespace {

using namespace jepa_fast;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

Tensor images_of(const char* op, const Tensor& images) {
  STD_TORCH_CHECK(
      images.dim() == 3 && images.scalar_type() == ScalarType::Byte, op, ": expected images uint8 [N, H, W]");
  return torch::stable::contiguous(images);
}

Tensor read_centres_cpu(Tensor images, std::optional<Tensor> corners) {
  images = images_of("read_centres", images);
  if (corners) {
    corners = torch::stable::contiguous(*corners);
    STD_TORCH_CHECK(
        corners->dim() == 2 && corners->size(0) == images.size(0) && corners->size(1) == 2 &&
            corners->scalar_type() == ScalarType::Long,
        "read_centres: expected corners int64 [N, 2]");
  }
  const Tensor out = torch::stable::new_empty(images, {images.size(0), 2}, ScalarType::Float);
  float* const to = out.mutable_data_ptr<float>();
  torch::stable::parallel_for(0, images.size(0), 256, [&](int64_t first, int64_t last) {
    read_centres(
        images.const_data_ptr<uint8_t>(), corners ? corners->const_data_ptr<int64_t>() : nullptr, images.size(1),
        images.size(2), first, last, to);
  });
  return out;
}

Tensor read_layout_cpu(Tensor walls) {
  walls = images_of("read_layout", walls);
  const Tensor out = torch::stable::new_empty(walls, {walls.size(0), 2, 2, 2}, ScalarType::Float);
  float* const to = out.mutable_data_ptr<float>();
  torch::stable::parallel_for(0, walls.size(0), 16, [&](int64_t first, int64_t last) {
    read_layout(walls.const_data_ptr<uint8_t>(), walls.size(1), walls.size(2), first, last, to);
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(jepa_fast, m) {
  m.def("read_centres(Tensor images, Tensor? corners) -> Tensor");
  m.def("read_layout(Tensor walls) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(jepa_fast, CPU, m) {
  m.impl("read_centres", TORCH_BOX(&read_centres_cpu));
  m.impl("read_layout", TORCH_BOX(&read_layout_cpu));
}
