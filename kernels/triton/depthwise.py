"""Depthwise 7x7 convolution of channels-last images as one march down the rows, the part that all conv kernels share.

    out[n, i, j, c] = sum_{dy, dx} taps[7 dy + dx, c] x[n, i + dy - pad_y, j + dx - pad_x, c]
                      + addend[n, i + shift_y, j + shift_x, c]

A program owns BLOCK_COLUMNS columns of output pixels, counted through all images (column q is column q % W' of image
q / W'), so that odd widths waste no lanes. It walks down the input rows with seven sums in registers, one per output
row that the input row reaches, and the 49 taps of its channels beside them: every input row is loaded once per column
offset, while the row before it is summed, and nothing is computed twice but the first rows of a strip. Sums are
float32, in a fixed order.

Two channels per thread: 98 registers of taps, 14 of sums.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from jepa_fast.kernels.triton.launch import Grid, on_device, persistent_programs

KERNEL = 7
THREADS = 128  # four warps
RESIDENT = 3  # programs of so many threads that 168 registers leave room for on a multiprocessor
# Fewer programs than this leave multiprocessors idle: columns are then cut into strips of rows.
WANTED_PROGRAMS = 1024
FEWEST_ROWS = 8
# Sizes of the images. Not specialised: one compilation serves all, and it is the one that the gates have measured.
SIZES = (
    "columns", "height", "width", "out_height", "out_width", "pad_y", "pad_x", "addend_height", "addend_width",
    "shift_y", "shift_x", "rows",
)  # fmt: skip
WEIGHT_SIZES = (
    "columns", "height", "width", "out_height", "out_width", "pad_y", "pad_x", "rows", "blocks", "items",
)  # fmt: skip


@triton.jit
def load_taps(taps_ptr, channels, C: tl.constexpr):
    """The 49 taps [49, C] of some channels [1, BLOCK_C], as a tuple."""
    taps = ()
    for tap in tl.static_range(49):
        taps = taps + (tl.load(taps_ptr + tap * C + channels, mask=channels < C, other=0.0),)
    return taps


@triton.jit
def load_row(x_ptrs, column, width, live, C: tl.constexpr):
    """One input row at the seven column offsets, as it is stored; zero outside."""
    xs = ()
    for dx in tl.static_range(7):
        inside = (column + dx >= 0) & (column + dx < width)
        xs = xs + (tl.load(x_ptrs + dx * C, mask=live & inside, other=0.0),)
    return xs


@triton.jit
def emit(
    out, out_ptrs, addend_ptrs, addend_row, q, live, addend_live, columns, addend_height, HAS_ADDEND: tl.constexpr
):
    """Write a finished output row."""
    if HAS_ADDEND:
        # A limit of columns for a condition on rows: the interpreter cannot mask with a scalar truth value.
        within = (addend_row >= 0) & (addend_row < addend_height)
        shown = addend_live & (q < tl.where(within, columns, 0))
        out += tl.load(addend_ptrs, mask=shown, other=0.0).to(tl.float32)
    tl.store(out_ptrs, out.to(out_ptrs.dtype.element_ty), mask=live)


@triton.jit
def march(
    x_ptr,  # [N, H, W, C]
    taps_ptr,  # [49, C], float32
    addend_ptr,  # [N, A, B, C]
    out_ptr,  # [N, H', W', C]
    columns,  # N W'
    height,
    width,
    out_height,
    out_width,
    pad_y,
    pad_x,
    addend_height,
    addend_width,
    shift_y,  # the addend's row for output row 0; may be negative
    shift_x,
    first,  # output rows [first, last)
    last,
    column_block,
    channel_block,
    C: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    HAS_ADDEND: tl.constexpr,
):
    """Write rows [first, last) of BLOCK_COLUMNS columns and BLOCK_C channels of the output."""
    c = channel_block * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    q = column_block * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)[:, None]
    image = (q // out_width).to(tl.int64)
    j = q % out_width
    live = (q < columns) & (c < C)
    taps = load_taps(taps_ptr, c, C)

    # Output row i reads input rows i - pad_y to i - pad_y + 6; rows above the image add nothing.
    top = tl.maximum(first - pad_y, 0)
    out_row = top + pad_y - 6
    x_ptrs = x_ptr + ((image * height + top) * width + (j - pad_x)) * C + c
    out_ptrs = out_ptr + ((image * out_height + out_row) * out_width + j) * C + c
    addend_ptrs = addend_ptr + ((image * addend_height + out_row + shift_y) * addend_width + (j + shift_x)) * C + c
    addend_live = live & (j + shift_x >= 0) & (j + shift_x < addend_width)
    zero = tl.zeros([BLOCK_COLUMNS, BLOCK_C], tl.float32)
    # sums[k] is output row out_row + k; the seventh, which this input row is the first to reach, begins at zero.
    sums = (zero, zero, zero, zero, zero, zero)
    below = tl.minimum(last + 6 - pad_y, height)
    ahead = load_row(x_ptrs, j - pad_x, width, live, C)
    for row in range(top, below):
        xs = ahead
        # The last row is loaded twice rather than one beyond it.
        x_ptrs += tl.where(row + 1 < below, width * C, 0)
        ahead = load_row(x_ptrs, j - pad_x, width, live, C)
        newest = zero
        for dx in tl.static_range(7):
            x = xs[dx].to(tl.float32)
            moved = ()
            for k in tl.static_range(6):
                moved = moved + (tl.fma(x, taps[(6 - k) * 7 + dx], sums[k]),)
            sums = moved
            newest = tl.fma(x, taps[dx], newest)
        if out_row >= first:
            emit(
                sums[0], out_ptrs, addend_ptrs, out_row + shift_y, q, live, addend_live, columns, addend_height,
                HAS_ADDEND,
            )  # fmt: skip
        sums = (sums[1], sums[2], sums[3], sums[4], sums[5], newest)
        out_row += 1
        out_ptrs += out_width * C
        addend_ptrs += addend_width * C
    # No input row is left for these.
    for k in tl.static_range(6):
        if (out_row + k >= first) & (out_row + k < last):
            emit(
                sums[k], out_ptrs + k * out_width * C, addend_ptrs + k * addend_width * C, out_row + k + shift_y, q,
                live, addend_live, columns, addend_height, HAS_ADDEND,
            )  # fmt: skip


@triton.jit(do_not_specialize=SIZES)
def _depthwise_kernel(
    x_ptr,  # [N, H, W, C]
    taps_ptr,  # [49, C], float32
    addend_ptr,  # [N, A, B, C]
    out_ptr,  # [N, H', W', C]
    columns,  # N W'
    height,
    width,
    out_height,
    out_width,
    pad_y,
    pad_x,
    addend_height,
    addend_width,
    shift_y,
    shift_x,
    rows,
    C: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    HAS_ADDEND: tl.constexpr,
):
    """One program per block of columns, strip of rows and block of channels. float32 sums, deterministic."""
    first = tl.program_id(1) * rows
    last = tl.minimum(first + rows, out_height)
    march(
        x_ptr, taps_ptr, addend_ptr, out_ptr, columns, height, width, out_height, out_width, pad_y, pad_x,
        addend_height, addend_width, shift_y, shift_x, first, last, tl.program_id(0), tl.program_id(2),
        C, BLOCK_COLUMNS, BLOCK_C, HAS_ADDEND,
    )  # fmt: skip


@triton.jit(do_not_specialize=WEIGHT_SIZES)
def _depthwise_weight_kernel(
    x_ptr,  # [N, H, W, C]
    gradient_ptr,  # [N, H', W', C], of the output
    partial_ptr,  # [programs, 49, C], float32
    columns,  # N W'
    height,
    width,
    out_height,
    out_width,
    pad_y,
    pad_x,
    rows,
    blocks,
    items,
    C: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Part of the taps' gradient: a program takes every so-manieth block of columns and strip of `rows` input rows.

    It holds one sum per tap, column and channel, and seven rows of the gradient, the ones that an input row reached.
    float32 sums, in an order that depends on the number of programs alone.
    """
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    zero = tl.zeros([BLOCK_COLUMNS, BLOCK_C], tl.float32)
    sums = ()
    for _tap in tl.static_range(49):
        sums = sums + (zero,)
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        q = (item % blocks) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)[:, None]
        image = (q // out_width).to(tl.int64)
        j = q % out_width
        live = (q < columns) & (c < C)
        first = (item // blocks) * rows
        last = tl.minimum(first + rows, height)
        # Input row r reached output rows r + pad_y - 6 to r + pad_y.
        gradient_row = first + pad_y - 6
        gradient_ptrs = gradient_ptr + ((image * out_height + gradient_row) * out_width + j) * C + c
        reached = ()
        for _row in tl.static_range(6):
            limit = tl.where((gradient_row >= 0) & (gradient_row < out_height), columns, 0)
            reached = reached + (tl.load(gradient_ptrs, mask=live & (q < limit), other=0.0).to(tl.float32),)
            gradient_row += 1
            gradient_ptrs += out_width * C
        x_ptrs = x_ptr + ((image * height + first) * width + (j - pad_x)) * C + c
        ahead = load_row(x_ptrs, j - pad_x, width, live, C)
        limit = tl.where(gradient_row < out_height, columns, 0)
        newest = tl.load(gradient_ptrs, mask=live & (q < limit), other=0.0)
        for row in range(first, last):
            xs = ahead
            reached = reached + (newest.to(tl.float32),)
            # The last row is loaded twice rather than one beyond it.
            x_ptrs += tl.where(row + 1 < last, width * C, 0)
            ahead = load_row(x_ptrs, j - pad_x, width, live, C)
            gradient_row += 1
            gradient_ptrs += out_width * C
            limit = tl.where(gradient_row < out_height, columns, 0)
            newest = tl.load(gradient_ptrs, mask=live & (q < limit), other=0.0)
            for dx in tl.static_range(7):
                x = xs[dx].to(tl.float32)
                added = ()
                for tap in tl.static_range(49):
                    if tap % 7 == dx:
                        added = added + (tl.fma(x, reached[6 - tap // 7], sums[tap]),)
                    else:
                        added = added + (sums[tap],)
                sums = added
            reached = (reached[1], reached[2], reached[3], reached[4], reached[5], reached[6])
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    for tap in tl.static_range(49):
        place = (tl.program_id(0) * 49 + tap) * C + channel
        tl.store(partial_ptr + place, tl.sum(sums[tap], axis=0), mask=channel < C)


def blocks(channels: int) -> dict[str, int]:
    """Block sizes of a march: two channels of one column per thread, at most a warp's worth of channels."""
    block_c = min(channels, 32)
    return {"BLOCK_C": block_c, "BLOCK_COLUMNS": 2 * THREADS // block_c}


def strip_rows(out_height: int, programs: int) -> int:
    """Rows of output per program, where one program per block of columns would give so many."""
    strips = max(1, min(-(-WANTED_PROGRAMS // max(programs, 1)), out_height // FEWEST_ROWS))
    return -(-out_height // strips)


def taps_of(weight: Tensor, flipped: bool = False) -> Tensor:
    """float32 [49, C] of filters [C, 1, 7, 7]; `flipped` turns them by 180 degrees, as an input gradient needs them."""
    taps = weight.detach().reshape(len(weight), KERNEL * KERNEL).to(torch.float32)
    return (taps.flip(1) if flipped else taps).t().contiguous()


def depthwise(
    x: Tensor,
    taps: Tensor,
    padding: tuple[int, int],
    addend: Tensor | None = None,
    shift: tuple[int, int] = (0, 0),
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """The convolution of contiguous x [N, H, W, C] with taps [49, C], zero outside, plus `addend` [N, A, B, C].

    The addend is shifted: output pixel (0, 0) gets its pixel `shift`; it is zero outside.
    """
    count, height, width, channels = x.shape
    out_height, out_width = (x.shape[axis + 1] + 2 * padding[axis] - KERNEL + 1 for axis in (0, 1))
    out = torch.empty(count, out_height, out_width, channels, dtype=out_dtype or x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    sizes = blocks(channels)
    across = -(-count * out_width // sizes["BLOCK_COLUMNS"])
    chunks = -(-channels // sizes["BLOCK_C"])
    rows = strip_rows(out_height, across * chunks)
    grid: Grid = (across, -(-out_height // rows), chunks)
    shown = x if addend is None else addend
    with on_device(x):
        _depthwise_kernel[grid](
            x, taps, shown, out, count * out_width, height, width, out_height, out_width, *padding, shown.shape[1],
            shown.shape[2], *shift, rows, channels, **sizes, HAS_ADDEND=addend is not None, num_warps=THREADS // 32,
            enable_fp_fusion=True,
        )  # fmt: skip
    return out


def depthwise_weight_gradient(x: Tensor, gradient: Tensor, padding: tuple[int, int]) -> Tensor:
    """float32 [C, 1, 7, 7]: the filters' gradient from contiguous x [N, H, W, C] and the output's [N, H', W', C]."""
    sums = depthwise_weight_parts(x, gradient, padding).sum(0)
    return sums.t().contiguous().view(x.shape[3], 1, KERNEL, KERNEL)


def depthwise_weight_parts(x: Tensor, gradient: Tensor, padding: tuple[int, int]) -> Tensor:
    """The parts [P, 49, C] float32 that add up to the filters' gradient."""
    count, height, width, channels = x.shape
    out_height, out_width = gradient.shape[1:3]
    sizes = blocks(channels)
    across = -(-count * out_width // sizes["BLOCK_COLUMNS"])
    chunks = -(-channels // sizes["BLOCK_C"])
    programs = -(-persistent_programs(x, RESIDENT) // chunks)
    rows = strip_rows(height, across * chunks)
    items = across * -(-height // rows)
    programs = max(1, min(programs, items))
    partial = torch.empty(programs, KERNEL * KERNEL, channels, dtype=torch.float32, device=x.device)
    with on_device(x):
        _depthwise_weight_kernel[(programs, chunks, 1)](
            x, gradient, partial, count * out_width, height, width, out_height, out_width, *padding, rows, across,
            items, channels, **sizes, num_warps=THREADS // 32, enable_fp_fusion=True,
        )  # fmt: skip
    return partial
