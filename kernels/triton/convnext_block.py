"""The whole ConvNeXt block forward in one kernel.

    z = dwconv(x) + addend      u = LN(z)      h = W1 u      y = x + W2 gelu(h)

The forward program marches down its columns and writes z, as in `dwconv_norm`, then takes its own z back out of the
cache in tiles of pixels and runs LayerNorm and MLP on them; the hidden activations never leave the registers.
Products of 16-bit activations are on tensor cores, with float32 sums; float32 ones are IEEE products.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from jepa_fast.kernels.triton.depthwise import KERNEL, blocks, depthwise, march, strip_rows
from jepa_fast.kernels.triton.dwconv_norm import normalised, strip_pixels
from jepa_fast.kernels.triton.elementwise import gelu
from jepa_fast.kernels.triton.launch import on_device
from jepa_fast.kernels.triton.parameters import lay_out

SIZES = (
    "columns", "height", "width", "out_height", "out_width", "pad_y", "pad_x", "rows",
)  # fmt: skip


@triton.jit
def load_weight(
    weight_ptr, hidden, dtype: tl.constexpr, C: tl.constexpr, PADDED_C: tl.constexpr, HIDDEN: tl.constexpr,
    IS_EXPAND: tl.constexpr,
):  # fmt: skip
    """HIDDEN hidden units of W1 [4C, C] or W2 [C, 4C], as [PADDED_C, HIDDEN]; zero in channels c >= C."""
    c = tl.arange(0, PADDED_C)[:, None]
    h = hidden + tl.arange(0, HIDDEN)[None, :]
    place = h * C + c if IS_EXPAND else c * (4 * C) + h
    return tl.load(weight_ptr + place, mask=c < C, other=0.0).to(dtype)


@triton.jit(do_not_specialize=SIZES)
def _convnext_block_forward_kernel(
    x_ptr,  # [N, H, W, C]
    taps_ptr,  # [49, C], float32
    addend_ptr,  # [N, H', W', C], of z
    gamma_ptr,  # [C]
    beta_ptr,  # [C]
    expand_ptr,  # [4C, C]
    project_ptr,  # [C, 4C]
    z_ptr,  # [N, H', W', C]
    y_ptr,  # [N, H', W', C]
    update_ptr,  # [N, H', W', C], written if KEEP
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
    HIDDEN: tl.constexpr,
    HAS_ADDEND: tl.constexpr,
    CONVOLVES: tl.constexpr,  # otherwise z is there already
    KEEP: tl.constexpr,
):
    """One program per block of columns and strip of rows, all channels. float32 sums, deterministic."""
    column_block = tl.program_id(0)
    first = tl.program_id(1) * rows
    last = tl.minimum(first + rows, out_height)
    if CONVOLVES:
        for channel_block in range((C + BLOCK_C - 1) // BLOCK_C):
            march(
                x_ptr, taps_ptr, addend_ptr, z_ptr, columns, height, width, out_height, out_width, pad_y, pad_x,
                out_height, out_width, 0, 0, first, last, column_block, channel_block, C, BLOCK_COLUMNS, BLOCK_C,
                HAS_ADDEND,
            )  # fmt: skip
        tl.debug_barrier()
    dtype = x_ptr.dtype.element_ty
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
        u = tl.fma(xhat, gamma, beta).to(dtype)
        update = tl.zeros([PIXELS, PADDED_C], tl.float32)
        for hidden in range(0, 4 * C, HIDDEN):
            h = tl.dot(u, load_weight(expand_ptr, hidden, dtype, C, PADDED_C, HIDDEN, True), input_precision="ieee")
            a = gelu(h).to(dtype)
            project = load_weight(project_ptr, hidden, dtype, C, PADDED_C, HIDDEN, False)
            update = tl.dot(a, tl.trans(project), update, input_precision="ieee")
        if KEEP:
            tl.store(update_ptr + place, update.to(update_ptr.dtype.element_ty), mask=live & (c < C))
        # The residual: x under the output, which is wider where the padding is more than 3.
        i -= pad_y - 3
        j -= pad_x - 3
        shown = live & (c < C) & (i >= 0) & (i < height) & (j >= 0) & (j < width)
        x = tl.load(x_ptr + ((image * height + i) * width + j) * C + c, mask=shown, other=0.0).to(tl.float32)
        tl.store(y_ptr + place, (x + update).to(y_ptr.dtype.element_ty), mask=live & (c < C))


class Tile(NamedTuple):
    """How a kernel cuts its work."""

    pixels: int
    hidden: int  # units of the hidden layer at once
    warps: int
    registers: int | None = None  # the most that a thread may take


class Tiles(NamedTuple):
    """Of the three kernels, for one number of channels."""

    forward: Tile
    backward: Tile
    weights: Tile | None  # none: the backward kernel makes the weights' gradients too


# Chosen by what the kernels take and count offline (kernels/gates.json): nothing spills, as few instructions per output
# and as many resident warps as that leaves. 168 registers leave room for three programs of four warps.
TILES_16_BIT = {
    16: Tiles(Tile(64, 64, 4, 168), Tile(64, 64, 4), None),
    32: Tiles(Tile(64, 32, 4, 168), Tile(64, 32, 4), Tile(64, 32, 4)),
    64: Tiles(Tile(64, 32, 4, 168), Tile(32, 32, 4), Tile(64, 32, 4)),
    96: Tiles(Tile(128, 32, 8), Tile(32, 32, 4), Tile(64, 32, 8)),
    128: Tiles(Tile(128, 32, 8), Tile(32, 32, 4), Tile(64, 32, 8)),
}
TILES_FLOAT32 = {
    16: Tiles(Tile(32, 64, 4), Tile(32, 64, 4), None),
    32: Tiles(Tile(32, 32, 4, 224), Tile(32, 32, 4), Tile(32, 32, 4)),
    64: Tiles(Tile(16, 32, 4), Tile(16, 32, 4, 224), Tile(16, 32, 4)),
    96: Tiles(Tile(32, 32, 8), Tile(16, 16, 8), Tile(16, 16, 8)),
    128: Tiles(Tile(32, 32, 8), Tile(16, 16, 8), Tile(16, 16, 8)),
}
MOST_FUSED_CHANNELS = 64  # beyond, convolution and MLP are two kernels: together they take too many registers


def tiles(channels: int, dtype: torch.dtype) -> Tiles:
    """The tiles for some channels in a dtype."""
    return (TILES_FLOAT32 if dtype == torch.float32 else TILES_16_BIT)[channels]


def constants(channels: int, tile: Tile) -> dict[str, int]:
    """What the kernels have in common."""
    padded = triton.next_power_of_2(channels)
    return {"C": channels, "PADDED_C": padded, "PIXELS": tile.pixels, "HIDDEN": tile.hidden}


def block_forward(
    x: Tensor,
    weight: Tensor,
    gamma: Tensor,
    beta: Tensor,
    expand: Tensor,
    project: Tensor,
    addend: Tensor | None,
    padding: tuple[int, int],
    eps: float,
    keep: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, z and, to be kept, the update y - x, else nothing, all [N, H', W', C], of x [N, H, W, C]; all contiguous."""
    count, height, width, channels = x.shape
    out_height, out_width = (x.shape[axis + 1] + 2 * padding[axis] - KERNEL + 1 for axis in (0, 1))
    taps, expand, project = lay_out(weight, expand, project, x.dtype)
    fused = channels <= MOST_FUSED_CHANNELS
    if fused:
        z = torch.empty(count, out_height, out_width, channels, dtype=x.dtype, device=x.device)
    else:
        z = depthwise(x, taps, padding, addend)
    y = torch.empty_like(z)
    update = torch.empty_like(z) if keep else z.new_empty(0, *z.shape[1:])
    if y.numel() == 0:
        return y, z, update
    tile = tiles(channels, x.dtype).forward
    sizes = blocks(channels)
    across = -(-count * out_width // sizes["BLOCK_COLUMNS"])
    rows = strip_rows(out_height, across)
    with on_device(x):
        _convnext_block_forward_kernel[(across, -(-out_height // rows), 1)](
            x, taps, x if addend is None else addend, gamma, beta, expand, project, z, y, update, count * out_width,
            height, width, out_height, out_width, *padding, rows, eps, **constants(channels, tile), **sizes,
            HAS_ADDEND=fused and addend is not None, CONVOLVES=fused, KEEP=keep, num_warps=tile.warps, num_stages=1,
            maxnreg=tile.registers, enable_fp_fusion=True,
        )  # fmt: skip
    return y, z, update
