"""Where windows were cut out of shared base images: the bases' gradient, as a sum of the windows' that cover a pixel.

    dbase[g, y, x] = sum over windows n of group g that cover (y, x) of gradient[n, y - top_n, x - left_n]

Each pixel asks all windows, instead of each window adding to its pixels: the order of a sum is that of the windows, and
nothing is sorted. Windows are taken in chunks, and their sums are added up in a second stage.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from jepa_fast.kernels.triton.launch import on_device

SIZES = (
    "count", "chunk", "height", "width", "window_height", "window_width", "margin_y", "margin_x",
)  # fmt: skip
COLUMNS = 32  # of a base that a program sums up
WARPS = 4
WANTED_PROGRAMS = 3072
FEWEST_WINDOWS = 16  # in a chunk


@triton.jit(do_not_specialize=SIZES)
def _crop_backward_kernel(
    gradient_ptr,  # [N, h, w, C]
    corners_ptr,  # [N, 2], int64: row and column of a window's top left pixel, before its margin
    groups_ptr,  # [N], int64
    partial_ptr,  # [chunks, G, H, W, C], float32
    count,  # N
    chunk,  # windows in one
    height,
    width,
    window_height,
    window_width,
    margin_y,
    margin_x,
    C: tl.constexpr,
    PADDED_C: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One program per row of a base, COLUMNS of its columns and chunk of windows. float32 sums, deterministic."""
    y = tl.program_id(0) % height
    group = tl.program_id(0) // height
    start = tl.program_id(1) * COLUMNS
    x = start + tl.arange(0, COLUMNS)[:, None]
    c = tl.arange(0, PADDED_C)[None, :]
    first = tl.program_id(2) * chunk
    total = tl.zeros([COLUMNS, PADDED_C], tl.float32)
    for n in range(first, tl.minimum(first + chunk, count)):
        i = y + margin_y - tl.load(corners_ptr + 2 * n).to(tl.int32)
        left = tl.load(corners_ptr + 2 * n + 1).to(tl.int32) - margin_x
        covers = (i >= 0) & (i < window_height) & (left < start + COLUMNS) & (left + window_width > start)
        if covers & (tl.load(groups_ptr + n) == group):
            j = x - left
            place = ((n * window_height + i).to(tl.int64) * window_width + j) * C + c
            inside = (j >= 0) & (j < window_width) & (c < C)
            total += tl.load(gradient_ptr + place, mask=inside, other=0.0).to(tl.float32)
    row = (tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)).to(tl.int64)
    tl.store(partial_ptr + (row * width + x) * C + c, total, mask=(x < width) & (c < C))


def crop_backward(
    gradient: Tensor,
    corners: Tensor,
    groups: Tensor,
    shape: Sequence[int],
    margin: Sequence[int],
) -> Tensor:
    """float32 gradient of bases of `shape` [G, H, W, C] from that of contiguous windows [N, h, w, C]."""
    bases, height, width, channels = shape
    count, window_height, window_width = gradient.shape[:3]
    strips = -(-width // COLUMNS)
    wanted = -(-WANTED_PROGRAMS // max(1, bases * height * strips))
    chunk = max(FEWEST_WINDOWS, -(-count // wanted))
    chunks = max(1, -(-count // chunk))
    partial = torch.empty(chunks, *shape, dtype=torch.float32, device=gradient.device)
    if partial.numel() > 0:
        with on_device(gradient):
            _crop_backward_kernel[(bases * height, strips, chunks)](
                gradient, corners, groups, partial, count, chunk, height, width, window_height, window_width, *margin,
                channels, triton.next_power_of_2(channels), COLUMNS, num_warps=WARPS, enable_fp_fusion=True,
            )  # fmt: skip
    return partial.sum(0)
