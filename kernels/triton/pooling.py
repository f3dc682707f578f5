"""Average pooling of windows of images into the cells of the images they lie in, forward and backward.

    pooled[n, r, s, c] = sum over the window's pixels in cell (r, s) of x[n, i, j, c] / pixels of the cell

Cell r of an axis of L pixels is [floor(r L / S), ceil((r + 1) L / S)), as adaptive average pooling cuts it: cells may
share a pixel, but of at least S pixels none is in more than two. Sums are float32, in a fixed order.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from jepa_fast.kernels.triton.launch import on_device
from jepa_fast.kernels.triton.windows import WINDOW, locate

PIECE = 16  # pixels, down and along, that a program of the forward pass adds at once
TILE = 1024  # elements that a program of the backward writes
WARPS = 4


@triton.jit(do_not_specialize=WINDOW)
def _window_pool_forward_kernel(
    x_ptr,  # [N, h, w, C]
    corners_ptr,  # [N, 2] int64: row and column of a window's top left pixel, before its margin
    pooled_ptr,  # [N, SIDE, SIDE, C] float32
    height,
    width,
    window_height,
    window_width,
    margin_y,
    margin_x,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    SIDE: tl.constexpr,
    PIECE: tl.constexpr,
):
    """One program per window, row of cells and block of channels: a cell is added PIECE x PIECE pixels at a time."""
    n = tl.program_id(0) // SIDE
    r = tl.program_id(0) % SIDE
    top = tl.load(corners_ptr + 2 * n).to(tl.int32) - margin_y
    left = tl.load(corners_ptr + 2 * n + 1).to(tl.int32) - margin_x
    first = r * height // SIDE
    end = ((r + 1) * height + SIDE - 1) // SIDE
    last_i = tl.minimum(end - top, window_height)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    base = x_ptr + n.to(tl.int64) * window_height * window_width * C
    for s in tl.static_range(SIDE):
        start = s * width // SIDE
        stop = ((s + 1) * width + SIDE - 1) // SIDE
        last_j = tl.minimum(stop - left, window_width)
        total = tl.zeros([PIECE, PIECE, BLOCK_C], tl.float32)
        for down in range(tl.maximum(first - top, 0), last_i, PIECE):
            i = (down + tl.arange(0, PIECE))[:, None, None]
            for along in range(tl.maximum(start - left, 0), last_j, PIECE):
                j = (along + tl.arange(0, PIECE))[None, :, None]
                here = (i < last_i) & (j < last_j) & (channel < C)[None, None, :]
                place = (i * window_width + j) * C + channel[None, None, :]
                total += tl.load(base + place, mask=here, other=0.0).to(tl.float32)
        mean = tl.sum(tl.sum(total, axis=0), axis=0) / ((end - first) * (stop - start)).to(tl.float32)
        cell = ((n * SIDE + r) * SIDE + s).to(tl.int64) * C
        tl.store(pooled_ptr + cell + channel, mean, mask=channel < C)


@triton.jit
def cell_weight(cell, pixel, length, SIDE: tl.constexpr):
    """What a cell of an axis takes a pixel times, zero where the pixel is not in it."""
    first = cell * length // SIDE
    end = ((cell + 1) * length + SIDE - 1) // SIDE
    inside = (cell < SIDE) & (pixel >= first) & (pixel < end)
    return tl.where(inside, 1.0 / (end - first).to(tl.float32), 0.0)


@triton.jit(do_not_specialize=("pixels", *WINDOW))
def _window_pool_backward_kernel(
    gradient_ptr,  # [N, SIDE, SIDE, C] float32
    corners_ptr,  # [N, 2] int64
    out_ptr,  # [N, h, w, C]
    pixels,  # N h w
    height,
    width,
    window_height,
    window_width,
    margin_y,
    margin_x,
    C: tl.constexpr,
    PADDED_C: tl.constexpr,
    SIDE: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """Each pixel adds up what the at most four cells that it is in send back. PIXELS pixels a program."""
    p = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)[:, None]
    c = tl.arange(0, PADDED_C)[None, :]
    live = p < pixels
    n, y, x, shown = locate(
        p, live, corners_ptr, height, width, window_height, window_width, margin_y, margin_x
    )  # fmt: skip
    r = tl.where(shown, y * SIDE // height, 0)
    s = tl.where(shown, x * SIDE // width, 0)
    out = tl.zeros([PIXELS, PADDED_C], tl.float32)
    for down in tl.static_range(2):
        for along in tl.static_range(2):
            weight = cell_weight(r + down, y, height, SIDE) * cell_weight(s + along, x, width, SIDE)
            here = shown & (weight > 0.0)
            place = ((n * SIDE + r + down) * SIDE + s + along) * C + c
            out += weight * tl.load(gradient_ptr + place, mask=here & (c < C), other=0.0)
    tl.store(out_ptr + p.to(tl.int64) * C + c, out.to(out_ptr.dtype.element_ty), mask=live & (c < C))


def block_channels(dtype: torch.dtype) -> int:
    """Channels that a program of the forward pass adds: of float32 the registers hold half as many."""
    return 8 if dtype == torch.float32 else 16


def window_pool_forward(x: Tensor, corners: Tensor, margin: Sequence[int], image: Sequence[int], side: int) -> Tensor:
    """float32 [N, S, S, C] of contiguous windows x [N, h, w, C]; zero outside them."""
    count, *window, channels = x.shape
    pooled = torch.empty(count, side, side, channels, dtype=torch.float32, device=x.device)
    if pooled.numel() > 0:
        block = block_channels(x.dtype)
        with on_device(x):
            _window_pool_forward_kernel[(count * side, triton.cdiv(channels, block), 1)](
                x, corners, pooled, *image, *window, *margin, channels, block, side, PIECE, num_warps=WARPS,
                enable_fp_fusion=True,
            )  # fmt: skip
    return pooled


def window_pool_backward(
    gradient: Tensor,
    corners: Tensor,
    shape: Sequence[int],
    margin: Sequence[int],
    image: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    """Gradient of windows of `shape` [N, h, w, C] in `dtype` from that of the cells, float32 [N, S, S, C]."""
    count, *window, channels = shape
    out = torch.empty(*shape, dtype=dtype, device=gradient.device)
    if out.numel() > 0:
        padded = triton.next_power_of_2(channels)
        pixels = count * window[0] * window[1]
        with on_device(gradient):
            _window_pool_backward_kernel[(triton.cdiv(pixels * padded, TILE), 1, 1)](
                gradient, corners, out, pixels, *image, *window, *margin, channels, padded, gradient.shape[1],
                TILE // padded, num_warps=WARPS, enable_fp_fusion=True,
            )  # fmt: skip
    return out
