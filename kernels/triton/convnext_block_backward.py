"""The ConvNeXt block's backward: through MLP and LayerNorm, to the input, to the filters.

    dy, z -> dz and the parts of dW1, dW2, dgamma, dbeta      dz, dy -> dx      x, dz -> dweight

u and the hidden activations are computed anew from z. Up to 16 channels the sums of dW1 and dW2 fit into registers
beside that; beyond, a fourth kernel makes them, some hidden units per program.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from jepa_fast.kernels.triton.convnext_block import constants, load_weight, tiles
from jepa_fast.kernels.triton.depthwise import KERNEL, depthwise, depthwise_weight_parts
from jepa_fast.kernels.triton.dwconv_norm import norm_backward, normalised
from jepa_fast.kernels.triton.elementwise import gelu, gelu_slope
from jepa_fast.kernels.triton.launch import on_device, persistent_programs
from jepa_fast.kernels.triton.parameters import add_up, lay_out

PROGRAMS = 6  # per multiprocessor: whole rounds whether two or three are resident


@triton.jit
def hidden_gradient(u, g, expand, project):
    """gelu(h) and the gradient of h = W1 u, [PIXELS, HIDDEN], from that of the update, g."""
    h = tl.dot(u, expand, input_precision="ieee")
    # Before the product: after it, too much is held at once, and at 16 channels that takes a stack.
    slope = gelu_slope(h)
    da = tl.dot(g, project, input_precision="ieee")
    return gelu(h).to(u.dtype), (da * slope).to(u.dtype)


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


def mlp_backward(
    dy: Tensor, z: Tensor, gamma: Tensor, beta: Tensor, expand: Tensor, project: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """dz as z, and the parts of dgamma and dbeta [P, 2, C], of dW1 and dW2 [P', 2, C, 4C]; all contiguous.

    W1 and W2 are in the dtype of z.
    """
    channels = z.shape[-1]
    pixels = z.numel() // channels
    _, tile, weight_tile = tiles(channels, z.dtype)
    dz = torch.empty_like(z)
    programs = max(1, min(persistent_programs(z, PROGRAMS), -(-pixels // tile.pixels)))
    norm_partial = torch.empty(programs, 2, channels, dtype=torch.float32, device=z.device)
    chunks = 1
    weight_programs = programs
    if weight_tile is not None:
        chunks = 4 * channels // weight_tile.hidden
        weight_programs = max(1, min(-(-persistent_programs(z, PROGRAMS) // chunks), -(-pixels // weight_tile.pixels)))
    weight_partial = torch.empty(weight_programs, 2, channels, 4 * channels, dtype=torch.float32, device=z.device)
    with on_device(z):
        _convnext_block_backward_kernel[(programs, 1, 1)](
            dy, z, gamma, beta, expand, project, dz, norm_partial, weight_partial, pixels, eps,
            **constants(channels, tile), HAS_WEIGHTS=weight_tile is None, num_warps=tile.warps, num_stages=1,
            maxnreg=tile.registers,
            enable_fp_fusion=True,
        )  # fmt: skip
        if weight_tile is not None:
            _convnext_block_weight_kernel[(weight_programs, chunks, 1)](
                dy, z, gamma, beta, expand, project, weight_partial, pixels, eps, **constants(channels, weight_tile),
                num_warps=weight_tile.warps, num_stages=1,
                maxnreg=weight_tile.registers, enable_fp_fusion=True,
            )  # fmt: skip
    return dz, norm_partial, weight_partial


def block_backward(
    dy: Tensor | None,
    dz: Tensor | None,
    dupdate: Tensor | None,
    x: Tensor,
    z: Tensor,
    weight: Tensor,
    gamma: Tensor,
    beta: Tensor,
    expand: Tensor,
    project: Tensor,
    padding: tuple[int, int],
    eps: float,
) -> tuple[Tensor, ...]:
    """Gradients of x, z and the five parameters, in their dtypes; all contiguous.

    `dz` and `dupdate` are what comes back to a z and an update that were kept.
    """
    taps, wide_expand, wide_project = lay_out(weight, expand, project, x.dtype, flipped=True)
    parts = [part for part in (dy, dupdate) if part is not None]
    to_update = torch.add(*parts) if len(parts) == 2 else parts[0] if parts else torch.zeros_like(z)
    to_z, norm_partial, weight_partial = mlp_backward(to_update, z, gamma, beta, wide_expand, wide_project, eps)
    if dz is not None:
        to_z += dz
    shift = (padding[0] - KERNEL // 2, padding[1] - KERNEL // 2)
    turned = (KERNEL - 1 - padding[0], KERNEL - 1 - padding[1])
    dx = depthwise(to_z, taps, turned, addend=dy, shift=shift)
    like = [gamma, beta, expand, project, weight]
    partial = depthwise_weight_parts(x, to_z, padding)
    dgamma, dbeta, dexpand, dproject, dweight = add_up(norm_partial, weight_partial, partial, like)
    return dx, to_z, dweight, dgamma, dbeta, dexpand, dproject
