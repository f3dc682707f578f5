"""Depthwise 7x7 convolution and LayerNorm over channels in one kernel, and the LayerNorm's backward.

    z = dwconv(x)      y = gamma xhat + beta,   xhat = (z - mean) rstd

The forward program first marches down its columns and writes z, which the backward pass needs anyway; then it reads its
own z back, out of the cache it was just written to, in tiles that hold all channels of a pixel. So the march is free to
hold the taps of a warp's worth of channels only, and no row of it waits for other warps.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from jepa_fast.kernels.triton.depthwise import KERNEL, THREADS, blocks, march, strip_rows
from jepa_fast.kernels.triton.launch import on_device, persistent_programs

SIZES = ("columns", "height", "width", "out_height", "out_width", "pad_y", "pad_x", "rows")
PROGRAMS = 6  # per multiprocessor that go backward through the norm
TILE = 2048  # elements of z that a program normalises at once: 16 per thread


@triton.jit
def strip_pixels(
    start, first, last, column_block, columns, out_height, out_width, BLOCK_COLUMNS: tl.constexpr, PIXELS: tl.constexpr
):
    """PIXELS pixels of a strip, from its `start`-th on, all [PIXELS, 1]: image, row, column, whether they exist."""
    p = start + tl.arange(0, PIXELS)[:, None]
    i = first + p // BLOCK_COLUMNS
    q = column_block * BLOCK_COLUMNS + p % BLOCK_COLUMNS
    return (q // out_width).to(tl.int64), i, q % out_width, (i < last) & (q < columns)


@triton.jit
def normalised(z, c, eps, C: tl.constexpr):
    """xhat [PIXELS, BLOCK] and rstd [PIXELS, 1] of z, float32 and zero in channels c >= C."""
    mean = tl.sum(z, axis=1, keep_dims=True) / C
    centred = z - mean
    # Channels are padded to a power of two.
    if z.shape[1] > C:
        centred = tl.where(c < C, centred, 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, axis=1, keep_dims=True) / C + eps)
    return centred * rstd, rstd


@triton.jit(do_not_specialize=SIZES)
def _dwconv_norm_forward_kernel(
    x_ptr,  # [N, H, W, C]
    taps_ptr,  # [49, C], float32
    gamma_ptr,  # [C]
    beta_ptr,  # [C]
    z_ptr,  # [N, H', W', C]
    y_ptr,  # [N, H', W', C]
    columns,  # N W'
    height,
    width,
    out_height,
    out_width,
    pad_y,
    pad_x,
    rows,
    eps,
    C: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PADDED_C: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """One program per block of columns and strip of rows, all channels. float32 inside, deterministic."""
    column_block = tl.program_id(0)
    first = tl.program_id(1) * rows
    last = tl.minimum(first + rows, out_height)
    for channel_block in range((C + BLOCK_C - 1) // BLOCK_C):
        march(
            x_ptr, taps_ptr, x_ptr, z_ptr, columns, height, width, out_height, out_width, pad_y, pad_x, 0, 0, 0, 0,
            first, last, column_block, channel_block, C, BLOCK_COLUMNS, BLOCK_C, False,
        )  # fmt: skip
    tl.debug_barrier()
    c = tl.arange(0, PADDED_C)[None, :]
    gamma = tl.load(gamma_ptr + c, mask=c < C, other=0.0).to(tl.float32)
    beta = tl.load(beta_ptr + c, mask=c < C, other=0.0).to(tl.float32)
    for start in range(0, (last - first) * BLOCK_COLUMNS, PIXELS):
        image, i, j, live = strip_pixels(
            start, first, last, column_block, columns, out_height, out_width, BLOCK_COLUMNS, PIXELS
        )
        place = ((image * out_height + i) * out_width + j) * C + c
        z = tl.load(z_ptr + place, mask=live & (c < C), other=0.0).to(tl.float32)
        xhat, _rstd = normalised(z, c, eps, C)
        y = tl.fma(xhat, gamma, beta)
        tl.store(y_ptr + place, y.to(y_ptr.dtype.element_ty), mask=live & (c < C))


@triton.jit(do_not_specialize=("pixels",))
def _dwconv_norm_backward_kernel(
    dy_ptr,  # [P, C]
    z_ptr,  # [P, C]
    gamma_ptr,  # [C]
    dz_ptr,  # [P, C]
    partial_ptr,  # [programs, 2, C], float32: gamma's part, beta's part
    pixels,  # P
    eps,
    C: tl.constexpr,
    PADDED_C: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """Through the LayerNorm: dz, and a part of dgamma and dbeta. A program takes every so-manieth tile of pixels.

    float32 inside; the order of sums depends on the number of programs alone.
    """
    c = tl.arange(0, PADDED_C)[None, :]
    gamma = tl.load(gamma_ptr + c, mask=c < C, other=0.0).to(tl.float32)
    dgamma = tl.zeros([PIXELS, PADDED_C], tl.float32)
    dbeta = tl.zeros([PIXELS, PADDED_C], tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(pixels, PIXELS), tl.num_programs(0)):
        p = tile * PIXELS + tl.arange(0, PIXELS)[:, None]
        place = p.to(tl.int64) * C + c
        live = (p < pixels) & (c < C)
        z = tl.load(z_ptr + place, mask=live, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + place, mask=live, other=0.0).to(tl.float32)
        xhat, rstd = normalised(z, c, eps, C)
        dgamma = tl.fma(dy, xhat, dgamma)
        dbeta += dy
        dz = norm_backward(dy * gamma, xhat, rstd, c, C)
        tl.store(dz_ptr + place, dz.to(dz_ptr.dtype.element_ty), mask=live)
    channel = tl.arange(0, PADDED_C)
    place = tl.program_id(0) * 2 * C + channel
    tl.store(partial_ptr + place, tl.sum(dgamma, axis=0), mask=channel < C)
    tl.store(partial_ptr + C + place, tl.sum(dbeta, axis=0), mask=channel < C)


@triton.jit
def norm_backward(dxhat, xhat, rstd, c, C: tl.constexpr):
    """dz of xhat's gradient; that of channels c >= C has to be zero."""
    mean = tl.sum(dxhat, axis=1, keep_dims=True) / C
    slope = tl.sum(dxhat * xhat, axis=1, keep_dims=True) / C
    return (dxhat - mean - xhat * slope) * rstd


def norm_blocks(channels: int) -> dict[str, int]:
    """Channels padded to a power of two, and pixels in a tile."""
    padded = triton.next_power_of_2(channels)
    return {"PADDED_C": padded, "PIXELS": TILE // padded}


def dwconv_norm_forward(
    x: Tensor, taps: Tensor, gamma: Tensor, beta: Tensor, padding: tuple[int, int], eps: float
) -> tuple[Tensor, Tensor]:
    """y and z [N, H', W', C] of contiguous x [N, H, W, C]; gamma and beta contiguous."""
    count, height, width, channels = x.shape
    out_height, out_width = (x.shape[axis + 1] + 2 * padding[axis] - KERNEL + 1 for axis in (0, 1))
    z = torch.empty(count, out_height, out_width, channels, dtype=x.dtype, device=x.device)
    y = torch.empty_like(z)
    if z.numel() == 0:
        return y, z
    sizes = blocks(channels)
    across = -(-count * out_width // sizes["BLOCK_COLUMNS"])
    rows = strip_rows(out_height, across)
    with on_device(x):
        _dwconv_norm_forward_kernel[(across, -(-out_height // rows), 1)](
            x, taps, gamma, beta, z, y, count * out_width, height, width, out_height, out_width, *padding, rows, eps,
            channels, **sizes, **norm_blocks(channels), num_warps=THREADS // 32, enable_fp_fusion=True,
        )  # fmt: skip
    return y, z


def dwconv_norm_backward(dy: Tensor, z: Tensor, gamma: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """dz as z, and float32 dgamma and dbeta [C], through the LayerNorm alone; all contiguous."""
    channels = z.shape[-1]
    pixels = z.numel() // channels
    sizes = norm_blocks(channels)
    dz = torch.empty_like(z)
    programs = max(1, min(persistent_programs(z, PROGRAMS), -(-pixels // sizes["PIXELS"])))
    partial = torch.empty(programs, 2, channels, dtype=torch.float32, device=z.device)
    with on_device(z):
        _dwconv_norm_backward_kernel[(programs, 1, 1)](
            dy, z, gamma, dz, partial, pixels, eps, channels, **sizes, num_warps=THREADS // 32, enable_fp_fusion=True
        )
    dgamma, dbeta = (part.sum(0) for part in partial.unbind(1))
    return dz, dgamma, dbeta
