"""The whole ConvNeXt block forward in one kernel, and its backward through the MLP and the LayerNorm.

    z = dwconv(x) + addend      u = LN(z)      h = W1 u      y = x + W2 gelu(h)

The forward program marches down its columns and writes z, as in `dwconv_norm`, then takes its own z back out of the
cache in tiles of pixels and runs LayerNorm and MLP on them; the hidden activations never leave the registers.
Products of 16-bit activations are on tensor cores, with float32 sums; float32 ones are IEEE products.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from jepa_fast.kernels.triton.depthwise import KERNEL, THREADS, blocks, march, strip_rows
from jepa_fast.kernels.triton.dwconv_norm import norm_backward, normalised, strip_pixels
from jepa_fast.kernels.triton.launch import on_device, resident_programs

SIZES = (
    "columns", "height", "width", "out_height", "out_width", "pad_y", "pad_x", "rows",
)  # fmt: skip


@triton.jit
def gaussian(v):
    """Phi(-|v|), the normal distribution's tail, to 1e-7, and exp(-v^2 / 2), which the slope of GELU needs.

    15 instructions. Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26.
    """
    density = tl.exp2(v * v * -0.7213475204444817)  # -log2(e) / 2
    d = tl.fma(tl.abs(v), 0.23164188, 1.0)
    t = tl.rsqrt(d * d)  # one instruction more than an approximate 1 / d, six fewer than Triton's division
    tail = tl.fma(t, 0.5307027145, -0.7265760135)
    tail = tl.fma(t, tail, 0.7107068705)
    tail = tl.fma(t, tail, -0.142248368)
    tail = tl.fma(t, tail, 0.127414796)
    return tail * t * density, density


@triton.jit
def gelu(v, tail):
    """v Phi(v): v - v Phi(-v) for v > 0, else v Phi(-|v|)."""
    return tl.fma(-tl.abs(v), tail, tl.maximum(v, 0.0))


@triton.jit
def load_weight(
    weight_ptr, hidden, dtype: tl.constexpr, C: tl.constexpr, PADDED_C: tl.constexpr, HIDDEN: tl.constexpr,
    IS_EXPAND: tl.constexpr,
):  # fmt: skip
    """HIDDEN hidden units of W1 [4C, C] or W2 [C, 4C], as [PADDED_C, HIDDEN]; zero in channels c >= C."""
    c = tl.arange(0, PADDED_C)[:, None]
    h = hidden + tl.arange(0, HIDDEN)[None, :]
    place = h * C + c if IS_EXPAND else c * (4 * C) + h
    if C == PADDED_C:
        weight = tl.load(weight_ptr + place)
    else:
        weight = tl.load(weight_ptr + place, mask=c < C, other=0.0)
    return weight.to(dtype)


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
            tail, _density = gaussian(h)
            a = gelu(h, tail).to(dtype)
            project = load_weight(project_ptr, hidden, dtype, C, PADDED_C, HIDDEN, False)
            update = tl.dot(a, tl.trans(project), update, input_precision="ieee")
        # The residual: x under the output, which is wider where the padding is more than 3.
        i -= pad_y - 3
        j -= pad_x - 3
        shown = live & (c < C) & (i >= 0) & (i < height) & (j >= 0) & (j < width)
        x = tl.load(x_ptr + ((image * height + i) * width + j) * C + c, mask=shown, other=0.0).to(tl.float32)
        tl.store(y_ptr + place, (x + update).to(y_ptr.dtype.element_ty), mask=live & (c < C))


@triton.jit
def hidden_gradient(u, g, expand, project):
    """gelu(h) and the gradient of h = W1 u, [PIXELS, HIDDEN], from that of the update, g."""
    h = tl.dot(u, expand, input_precision="ieee")
    tail, density = gaussian(h)
    slope = tl.fma(h * density, 0.3989422804014327, tl.where(h < 0, tail, 1.0 - tail))  # 1 / sqrt(2 pi)
    da = tl.dot(g, project, input_precision="ieee")
    return gelu(h, tail).to(u.dtype), (da * slope).to(u.dtype)


@triton.jit(do_not_specialize=("pixels",))
def _convnext_block_backward_kernel(
    dy_ptr,  # [P, C]
    z_ptr,  # [P, C]
    gamma_ptr,  # [C]
    beta_ptr,  # [C]
    expand_ptr,  # [4C, C]
    project_ptr,  # [C, 4C]
    dz_ptr,  # [P, C]
    norm_partial_ptr,  # [programs, 2, C], float32: gamma's part, beta's part
    weight_partial_ptr,  # [programs, 2, C, 4C], float32: W1's part transposed, W2's part
    pixels,  # P
    eps,
    C: tl.constexpr,
    PADDED_C: tl.constexpr,
    PIXELS: tl.constexpr,
    HIDDEN: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,  # where HIDDEN is 4C
):
    """Through MLP and LayerNorm: dz, and a part of the parameters' gradients. Every so-manieth tile of pixels.

    u and the hidden activations are computed anew. float32 sums, in an order that depends on the number of programs.
    """
    dtype = z_ptr.dtype.element_ty
    c = tl.arange(0, PADDED_C)[None, :]
    gamma = tl.load(gamma_ptr + c, mask=c < C, other=0.0).to(tl.float32)
    beta = tl.load(beta_ptr + c, mask=c < C, other=0.0).to(tl.float32)
    dgamma = tl.zeros([1, PADDED_C], tl.float32)
    dbeta = tl.zeros([1, PADDED_C], tl.float32)
    dexpand = tl.zeros([PADDED_C, HIDDEN], tl.float32)
    dproject = tl.zeros([PADDED_C, HIDDEN], tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(pixels, PIXELS), tl.num_programs(0)):
        p = tile * PIXELS + tl.arange(0, PIXELS)[:, None]
        place = p.to(tl.int64) * C + c
        live = (p < pixels) & (c < C)
        z = tl.load(z_ptr + place, mask=live, other=0.0).to(tl.float32)
        g = tl.load(dy_ptr + place, mask=live, other=0.0)
        xhat, rstd = normalised(z, c, eps, C)
        u = tl.fma(xhat, gamma, beta).to(dtype)
        du = tl.zeros([PIXELS, PADDED_C], tl.float32)
        for hidden in range(0, 4 * C, HIDDEN):
            expand = load_weight(expand_ptr, hidden, dtype, C, PADDED_C, HIDDEN, True)
            project = load_weight(project_ptr, hidden, dtype, C, PADDED_C, HIDDEN, False)
            a, dh = hidden_gradient(u, g, expand, project)
            du = tl.dot(dh, tl.trans(expand), du, input_precision="ieee")
            if HAS_WEIGHTS:
                dexpand = tl.dot(tl.trans(u), dh, dexpand, input_precision="ieee")
                dproject = tl.dot(tl.trans(g), a, dproject, input_precision="ieee")
        dgamma += tl.sum(du * xhat, axis=0, keep_dims=True)
        dbeta += tl.sum(du, axis=0, keep_dims=True)
        dz = norm_backward(du * gamma, xhat, rstd, c, C)
        tl.store(dz_ptr + place, dz.to(dtype), mask=live)
    norm_place = norm_partial_ptr + tl.program_id(0) * 2 * C + c
    tl.store(norm_place, dgamma, mask=c < C)
    tl.store(norm_place + C, dbeta, mask=c < C)
    if HAS_WEIGHTS:
        store_weights(weight_partial_ptr, dexpand, dproject, 0, C, PADDED_C, HIDDEN)


@triton.jit
def store_weights(
    partial_ptr, dexpand, dproject, hidden, C: tl.constexpr, PADDED_C: tl.constexpr, HIDDEN: tl.constexpr
):
    """Put this program's part of both weights' gradients, [PADDED_C, HIDDEN], into [programs, 2, C, 4C]."""
    c = tl.arange(0, PADDED_C)[:, None]
    place = tl.program_id(0) * (2 * C * 4 * C) + c * (4 * C) + hidden + tl.arange(0, HIDDEN)[None, :]
    tl.store(partial_ptr + place, dexpand, mask=c < C)
    tl.store(partial_ptr + C * 4 * C + place, dproject, mask=c < C)


@triton.jit(do_not_specialize=("pixels",))
def _convnext_block_weight_kernel(
    dy_ptr,  # [P, C]
    z_ptr,  # [P, C]
    gamma_ptr,  # [C]
    beta_ptr,  # [C]
    expand_ptr,  # [4C, C]
    project_ptr,  # [C, 4C]
    partial_ptr,  # [programs, 2, C, 4C], float32: W1's part transposed, W2's part
    pixels,  # P
    eps,
    C: tl.constexpr,
    PADDED_C: tl.constexpr,
    PIXELS: tl.constexpr,
    HIDDEN: tl.constexpr,
):
    """A part of the gradients of W1 and W2, for HIDDEN hidden units: where all of them do not fit beside the rest."""
    dtype = z_ptr.dtype.element_ty
    hidden = tl.program_id(1) * HIDDEN
    c = tl.arange(0, PADDED_C)[None, :]
    gamma = tl.load(gamma_ptr + c, mask=c < C, other=0.0).to(tl.float32)
    beta = tl.load(beta_ptr + c, mask=c < C, other=0.0).to(tl.float32)
    expand = load_weight(expand_ptr, hidden, dtype, C, PADDED_C, HIDDEN, True)
    project = load_weight(project_ptr, hidden, dtype, C, PADDED_C, HIDDEN, False)
    dexpand = tl.zeros([PADDED_C, HIDDEN], tl.float32)
    dproject = tl.zeros([PADDED_C, HIDDEN], tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(pixels, PIXELS), tl.num_programs(0)):
        p = tile * PIXELS + tl.arange(0, PIXELS)[:, None]
        place = p.to(tl.int64) * C + c
        live = (p < pixels) & (c < C)
        z = tl.load(z_ptr + place, mask=live, other=0.0).to(tl.float32)
        g = tl.load(dy_ptr + place, mask=live, other=0.0)
        xhat, _rstd = normalised(z, c, eps, C)
        u = tl.fma(xhat, gamma, beta).to(dtype)
        a, dh = hidden_gradient(u, g, expand, project)
        dexpand = tl.dot(tl.trans(u), dh, dexpand, input_precision="ieee")
        dproject = tl.dot(tl.trans(g), a, dproject, input_precision="ieee")
    store_weights(partial_ptr, dexpand, dproject, hidden, C, PADDED_C, HIDDEN)
