// What a two-room frame shows, read from its bytes by fixed rules, free of torch; rules in kernels/scene.py.
#pragma once

#include <cstdint>

namespace jepa_fast {

// Centre of brightness (x, y) of windows [first, last) of images [N, h, w], into [N, 2]; corners [N, 2] (row, column), or null.
void read_centres(
    const uint8_t* images, const int64_t* corners, int64_t height, int64_t width, int64_t first, int64_t last, float* centres);

// Where an agent cannot go, of images [first, last) of [N, H, W], into [N, 2, 2, 2]: borders and wall, x and y, low and high.
void read_layout(const uint8_t* walls, int64_t height, int64_t width, int64_t first, int64_t last, float* layout);

}  // namespace jepa_fast
