"""Windows over shared base images: cut out, subtracted from, and the bases' gradient as a sum over windows.

    crop          base[g, y, x] under each window, zero outside the image
    difference    values - base under each window, zero outside the image
    dbase[g, y, x] = sum over windows n of group g that cover (y, x) of gradient[n, y - top_n, x - left_n]

In the last, each pixel asks all windows, instead of each window adding to its pixels: the order of a sum is that of the
windows, and nothing is sorted. Windows are taken in chunks, and their sums are added up in a second stage.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from jepa_fast.kernels.triton.launch import on_device
from jepa_fast.kernels.triton.windows import WINDOW, locate

TILE = 1024  # elements that a program cuts out
WARPS = 4
WANTED_PROGRAMS = 3072
FEWEST_WINDOWS = 16  # in a chunk
AHEAD = 8  # windows whose loads are on their way at once
SUM_BLOCK = 256  # sums of chunks in a program


@triton.jit(do_not_specialize=("count", "chunk", *WINDOW))
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
    AHEAD: tl.constexpr,
):
    """One program per row of a base, COLUMNS of its columns and chunk of windows. float32 sums, deterministic.

    AHEAD windows are looked at together: their places are loaded at once, then what they hold of the row, so that a
    program waits twice for AHEAD windows and not twice for each.
    """
    y = tl.program_id(0) % height
    group = tl.program_id(0) // height
    start = tl.program_id(1) * COLUMNS
    x = start + tl.arange(0, COLUMNS)[:, None]
    c = tl.arange(0, PADDED_C)[None, :]
    first = tl.program_id(2) * chunk
    total = tl.zeros([COLUMNS, PADDED_C], tl.float32)
    last = tl.minimum(first + chunk, count)
    for start_n in range(first, last, AHEAD):
        rows = ()
        lefts = ()
        for k in tl.static_range(AHEAD):
            # Those beyond the last are the last one again, and hold no row.
            n = tl.minimum(start_n + k, last - 1)
            i = y + margin_y - tl.load(corners_ptr + 2 * n).to(tl.int32)
            holds = (start_n + k < last) & (i >= 0) & (i < window_height) & (tl.load(groups_ptr + n) == group)
            rows = rows + (tl.where(holds, n * window_height + i, -1),)
            lefts = lefts + (tl.load(corners_ptr + 2 * n + 1).to(tl.int32) - margin_x,)
        parts = ()
        for k in tl.static_range(AHEAD):
            j = x - lefts[k]
            # A limit of columns for a condition on rows: the interpreter cannot mask with a scalar truth value.
            inside = (j >= 0) & (j < tl.where(rows[k] >= 0, window_width, 0)) & (c < C)
            place = (rows[k].to(tl.int64) * window_width + j) * C + c
            parts = parts + (tl.load(gradient_ptr + place, mask=inside, other=0.0),)
        for k in tl.static_range(AHEAD):
            total += parts[k].to(tl.float32)
    row = (tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)).to(tl.int64)
    tl.store(partial_ptr + (row * width + x) * C + c, total, mask=(x < width) & (c < C))


@triton.jit(do_not_specialize=("chunks", "elements"))
def _chunks_kernel(
    partial_ptr,  # [chunks, elements] float32
    out_ptr,  # [elements]
    chunks,
    elements,
    sign,
    BLOCK: tl.constexpr,
):
    """Sums over the chunks, in their order, times `sign`."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for chunk in range(chunks):
        total += tl.load(partial_ptr + chunk * elements.to(tl.int64) + place, mask=place < elements, other=0.0)
    tl.store(out_ptr + place, (total * sign).to(out_ptr.dtype.element_ty), mask=place < elements)


@triton.jit(do_not_specialize=("pixels", *WINDOW))
def _crop_kernel(
    values_ptr,  # [N, h, w, C]
    base_ptr,  # [G, H, W, C]
    corners_ptr,  # [N, 2], int64
    groups_ptr,  # [N], int64
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
    PIXELS: tl.constexpr,
    HAS_VALUES: tl.constexpr,
    HAS_BASE: tl.constexpr,
):
    """The base, the values, or the values less the base, where a window lies on the image. PIXELS pixels a program."""
    p = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)[:, None]
    c = tl.arange(0, PADDED_C)[None, :]
    live = p < pixels
    n, y, x, shown = locate(
        p, live, corners_ptr, height, width, window_height, window_width, margin_y, margin_x
    )  # fmt: skip
    here = shown & (c < C)
    place = p.to(tl.int64) * C + c
    out = tl.zeros([PIXELS, PADDED_C], tl.float32)
    if HAS_BASE:
        group = tl.load(groups_ptr + n, mask=live, other=0)
        under = ((group * height + y) * width + x) * C + c
        base = tl.load(base_ptr + under, mask=here, other=0.0).to(tl.float32)
        out = -base if HAS_VALUES else base
    if HAS_VALUES:
        out += tl.load(values_ptr + place, mask=here, other=0.0).to(tl.float32)
    tl.store(out_ptr + place, out.to(out_ptr.dtype.element_ty), mask=live & (c < C))


def crop_forward(
    values: Tensor | None,
    base: Tensor | None,
    corners: Tensor,
    groups: Tensor,
    image: Sequence[int],
    margin: Sequence[int],
    size: Sequence[int],
) -> Tensor:
    """[N, h, w, C]: `base` under the windows, the `values` on the image, or their difference; all contiguous."""
    like = base if values is None else values
    assert like is not None
    channels = like.shape[-1]
    out = torch.empty(len(corners), *size, channels, dtype=like.dtype, device=like.device)
    pixels = out.numel() // channels
    padded = triton.next_power_of_2(channels)
    if pixels > 0:
        with on_device(out):
            _crop_kernel[(-(-pixels * padded // TILE), 1, 1)](
                like, like if base is None else base, corners, groups, out, pixels, *image, *size, *margin, channels,
                padded, TILE // padded, HAS_VALUES=values is not None, HAS_BASE=base is not None, num_warps=WARPS,
                enable_fp_fusion=True,
            )  # fmt: skip
    return out


def columns(channels: int) -> int:
    """Of a base, that a program sums up."""
    return 32 if channels <= 64 else 16


def crop_backward(
    gradient: Tensor,
    corners: Tensor,
    groups: Tensor,
    shape: Sequence[int],
    margin: Sequence[int],
    sign: float = 1.0,
) -> Tensor:
    """Gradient of bases of `shape` [G, H, W, C] from that of contiguous windows [N, h, w, C], times `sign`."""
    bases, height, width, channels = shape
    count, window_height, window_width = gradient.shape[:3]
    across = columns(channels)
    strips = -(-width // across)
    wanted = -(-WANTED_PROGRAMS // max(1, bases * height * strips))
    chunk = max(FEWEST_WINDOWS, -(-count // wanted))
    chunks = max(1, -(-count // chunk))
    partial = torch.empty(chunks, *shape, dtype=torch.float32, device=gradient.device)
    out = torch.empty(*shape, dtype=gradient.dtype, device=gradient.device)
    if out.numel() > 0:
        with on_device(gradient):
            _crop_backward_kernel[(bases * height, strips, chunks)](
                gradient, corners, groups, partial, count, chunk, height, width, window_height, window_width, *margin,
                channels, triton.next_power_of_2(channels), across, AHEAD, num_warps=WARPS, enable_fp_fusion=True,
            )  # fmt: skip
            _chunks_kernel[(triton.cdiv(out.numel(), SUM_BLOCK), 1, 1)](
                partial, out, chunks, out.numel(), sign, SUM_BLOCK, num_warps=WARPS, enable_fp_fusion=True
            )
    return out
