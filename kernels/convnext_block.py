"""A ConvNeXt block, x + W2 gelu(W1 LN(dwconv7x7(x))), whose hidden activations are never in memory.

    z = dwconv(x) + addend      u = gamma (z - mean_c(z)) / sqrt(var_c(z) + eps) + beta
    y = x + W2 gelu(W1 u)       GELU by the normal distribution, not by a tanh

x [N, H, W, C] channels last, C one of 16, 32, 64, 96, 128; weight [C, 1, 7, 7]; gamma, beta [C]; expand W1 [4C, C];
project W2 [C, 4C]; no biases. y is [N, H', W', C], H' = H + 2 padding - 6, x zero outside: with padding 6 x may be the
difference of an image to another one, on a window that grows, and `addend` [N, H', W', C] the other one's z under it.
x float32, bfloat16 or float16, on a CPU float64 too; y has its dtype, parameters keep theirs. Sums, statistics and GELU
are float32, factors of the matrix products have the dtype of x. x follows autocast. Gradients of all tensors; no second
derivative.

Saved for the backward pass: x and z. The rest is computed anew.

CUDA: Triton kernels, deterministic: parts of the parameters' gradients are added up in a fixed order. Up to 64 channels
the forward pass is one kernel, beyond two. Compiled for sm_80 and sm_90, not run on a device yet.
CPU: compiled kernels (csrc/cpu/convnext/images.h) for C a multiple of 8 up to 128, in float32 or float64, over bands of
eight rows; deterministic too, sums beyond a band in float64. Elsewhere plain PyTorch.

Bytes moved, in sizes A of an activation: forward 3 A (x; z, y; 4 A with an addend), backward 8 A (dy, z -> dz;
dz, dy -> dx; x, dz -> dweight), 10 A beyond 16 channels, where W1 and W2 have a pass of their own.
FLOPs per element: forward 98 + 16 C, backward 196 + 40 C, 196 + 56 C beyond 16 channels.
Source: Liu et al., A ConvNet for the 2020s, arXiv:2201.03545; without layer scale, stochastic depth and MLP biases.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa_fast.kernels import extension
from jepa_fast.kernels.dispatch import CHANNEL_STEP, PLAIN, why_no_compiled_blocks
from jepa_fast.kernels.dwconv_norm import (
    KERNEL,
    Padding,
    check_convolution,
    check_parameter,
    convolve,
    convolve_backward,
    norm_backward,
    out_shape,
    widened,
)
from jepa_fast.kernels.triton.launch import runs_in_triton
from jepa_fast.kernels.window import compute_dtype

OPERATOR = "jepa_fast::convnext_block"
CPU_OPERATOR = "jepa_fast::convnext_block_cpu"


class KeptBlock(NamedTuple):
    """A block's output and what its windows need to know of it, all [N, H, W, C]."""

    y: Tensor
    z: Tensor
    update: Tensor  # y - x


def convnext_block_reference(
    x: Tensor,
    weight: Tensor,
    gamma: Tensor,
    beta: Tensor,
    expand: Tensor,
    project: Tensor,
    addend: Tensor | None = None,
    padding: Padding = 3,
    eps: float = 1e-5,
) -> Tensor:
    """The same in plain PyTorch and in the precision of its arguments: the truth of the tests."""
    pads = (padding, padding) if isinstance(padding, int) else padding
    z = F.conv2d(x.permute(0, 3, 1, 2), weight, padding=pads, groups=x.shape[3]).permute(0, 2, 3, 1)
    z = z if addend is None else z + addend
    update = F.gelu(F.layer_norm(z, z.shape[3:], gamma, beta, eps) @ expand.t()) @ project.t()
    return _grown(x, pads) + update


def _grown(x: Tensor, padding: list[int] | tuple[int, int]) -> Tensor:
    """x under the output: with zeros around it, or cut, where the padding is not 3."""
    rows, columns = padding[0] - KERNEL // 2, padding[1] - KERNEL // 2
    return F.pad(x, (0, 0, columns, columns, rows, rows))


def _kept(dy: Tensor, padding: list[int]) -> Tensor:
    """The gradient of x in `_grown`."""
    rows, columns = padding[0] - KERNEL // 2, padding[1] - KERNEL // 2
    return F.pad(dy, (0, 0, -columns, -columns, -rows, -rows))


@torch.library.custom_op(OPERATOR, mutates_args=())
def _convnext_block(
    x: Tensor,
    weight: Tensor,
    gamma: Tensor,
    beta: Tensor,
    expand: Tensor,
    project: Tensor,
    addend: Tensor | None,
    padding: list[int],
    eps: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, z and, with `keep`, the update y - x, of which there is nothing otherwise."""
    if runs_in_triton(OPERATOR, x, _otherwise):
        from jepa_fast.kernels.triton.convnext_block import block_forward

        shown = None if addend is None else addend.contiguous()
        norm = gamma.contiguous(), beta.contiguous()
        return block_forward(x.contiguous(), weight, *norm, expand, project, shown, _pair(padding), eps, keep)
    wide_x, wide_weight, *parameters = widened(x, weight, gamma, beta, expand, project)
    if why_no_compiled_blocks(x.shape[3], wide_x) is None:
        wide_addend = None if addend is None else addend.to(wide_x.dtype)
        y, z, update = torch.ops.jepa_fast.convnext_block_cpu(
            wide_x, wide_weight, *parameters, wide_addend, padding, eps, keep
        )
        return y.to(x.dtype), z.to(x.dtype), update.to(x.dtype)
    z = convolve(wide_x, wide_weight, padding)
    # As rounded as it is saved, so that the backward pass sees the same values.
    z = (z if addend is None else z + addend).to(x.dtype)
    *_, update = _mlp(z.to(wide_x.dtype), parameters, eps)
    y = (_grown(wide_x, padding) + update).to(x.dtype)
    return y, z, update.to(x.dtype) if keep else z.new_empty(0, *z.shape[1:])


def _otherwise(x: Tensor) -> str:
    """What runs where Triton does not."""
    is_compiled = not x.is_cuda and why_no_compiled_blocks(x.shape[3], *widened(x[:0])) is None
    return "compiled blocks" if is_compiled else PLAIN


def _pair(padding: list[int]) -> tuple[int, int]:
    return padding[0], padding[1]


def _mlp(z: Tensor, parameters: list[Tensor], eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """u, h, gelu(h) and the update, from z and gamma, beta, W1, W2."""
    gamma, beta, expand, project = parameters
    with torch.autocast(z.device.type, enabled=False):
        u = F.layer_norm(z, z.shape[-1:], gamma, beta, eps)
        h = u @ expand.t()
        activations = F.gelu(h)
        return u, h, activations, activations @ project.t()


@_convnext_block.register_fake
def _convnext_block_fake(
    x: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor, expand: Tensor, project: Tensor, addend: Tensor | None,
    padding: list[int], eps: float, keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    count, *image = out_shape(x, padding)
    return x.new_empty(count, *image), x.new_empty(count, *image), x.new_empty(count if keep else 0, *image)


@torch.library.custom_op(f"{OPERATOR}_backward", mutates_args=())
def _convnext_block_backward(
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
    padding: list[int],
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, z and the five parameters; `dz` and `dupdate` are those of what was kept, where anything was."""
    if runs_in_triton(OPERATOR, x, _otherwise):
        from jepa_fast.kernels.triton.convnext_block_backward import block_backward

        dy, dz, dupdate = (None if one is None else one.contiguous() for one in (dy, dz, dupdate))
        norm = gamma.contiguous(), beta.contiguous()
        return block_backward(  # type: ignore[return-value]
            dy, dz, dupdate, x.contiguous(), z, weight, *norm, expand, project, _pair(padding), eps
        )
    dy = torch.zeros_like(z) if dy is None else dy
    wide = widened(x, dy, z, weight, gamma, beta, expand, project)
    wide_dz, wide_dupdate = (None if one is None else one.to(wide[0].dtype) for one in (dz, dupdate))
    if why_no_compiled_blocks(x.shape[3], wide[0]) is None:
        wide_x, wide_dy, *others = wide
        compiled = torch.ops.jepa_fast.convnext_block_cpu_backward
        dx, to_z, *gradients = compiled(wide_dy, wide_dz, wide_dupdate, wide_x, *others, padding, eps)
    else:
        dx, to_z, *gradients = _backward_fallback(wide, wide_dz, wide_dupdate, padding, eps)
    parameters = (weight, gamma, beta, expand, project)
    kept = (gradient.to(like.dtype).contiguous() for gradient, like in zip(gradients, parameters, strict=True))
    return dx.to(x.dtype), to_z.to(z.dtype), *kept


def _backward_fallback(
    tensors: tuple[Tensor, ...], dz: Tensor | None, dupdate: Tensor | None, padding: list[int], eps: float
) -> tuple[Tensor, ...]:
    x, dy, z, weight, gamma, beta, expand, project = tensors
    u, h, activations, _ = _mlp(z, [gamma, beta, expand, project], eps)
    to_update = dy if dupdate is None else dy + dupdate
    with torch.autocast(z.device.type, enabled=False):
        dh = torch.ops.aten.gelu_backward(to_update @ project, h)
        to_z, dgamma, dbeta = norm_backward(dh @ expand, z, gamma, eps)
        to_z = to_z if dz is None else to_z + dz
        dexpand = dh.flatten(0, 2).t() @ u.flatten(0, 2)
        dproject = to_update.flatten(0, 2).t() @ activations.flatten(0, 2)
        dx, dweight = convolve_backward(to_z, x, weight, padding)
    return dx + _kept(dy, padding), to_z, dweight, dgamma, dbeta, dexpand, dproject


@_convnext_block_backward.register_fake
def _convnext_block_backward_fake(
    dy: Tensor | None, dz: Tensor | None, dupdate: Tensor | None, x: Tensor, z: Tensor, weight: Tensor, gamma: Tensor,
    beta: Tensor, expand: Tensor, project: Tensor, padding: list[int], eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    parameters = (like.new_empty(like.shape) for like in (weight, gamma, beta, expand, project))
    return x.new_empty(x.shape), z.new_empty(z.shape), *parameters  # type: ignore[return-value]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, *parameters, addend, ctx.padding, ctx.eps, keep = inputs
    ctx.addend_dtype = None if addend is None else addend.dtype
    if not keep:
        ctx.mark_non_differentiable(output[1], output[2])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, output[1], *parameters)


def _gradients(ctx: Any, dy: Tensor | None, dz: Tensor | None, dupdate: Tensor | None) -> tuple[Tensor | None, ...]:
    if dy is None and dz is None and dupdate is None:
        return (None,) * 10
    dx, to_z, *gradients = torch.ops.jepa_fast.convnext_block_backward(
        dy, dz, dupdate, *ctx.saved_tensors, ctx.padding, ctx.eps
    )
    addend_gradient = None if ctx.addend_dtype is None else to_z.to(ctx.addend_dtype)
    return dx, *gradients, addend_gradient, None, None, None


_convnext_block.register_autograd(_gradients, setup_context=_setup_context)


def convnext_block(
    x: Tensor,
    weight: Tensor,
    gamma: Tensor,
    beta: Tensor,
    expand: Tensor,
    project: Tensor,
    addend: Tensor | None = None,
    padding: Padding = 3,
    eps: float = 1e-5,
) -> Tensor:
    """The block's output [N, H', W', C] of channels-last x [N, H, W, C].

    Raises:
        ValueError: shapes that do not fit together, channels or a dtype that the kernels do not have.
    """
    return _checked_block(x, weight, gamma, beta, expand, project, addend, padding, eps, keep=False).y


def _checked_block(
    x: Tensor,
    weight: Tensor,
    gamma: Tensor,
    beta: Tensor,
    expand: Tensor,
    project: Tensor,
    addend: Tensor | None,
    padding: Padding,
    eps: float,
    keep: bool,
) -> KeptBlock:
    pads = (padding, padding) if isinstance(padding, int) else padding
    check_convolution(x, weight, pads, CHANNEL_STEP if x.device.type == "cpu" else None)
    channels = x.shape[3]
    for name, parameter, shape in (
        ("gamma", gamma, (channels,)),
        ("beta", beta, (channels,)),
        ("expand", expand, (4 * channels, channels)),
        ("project", project, (channels, 4 * channels)),
    ):
        check_parameter(name, parameter, shape, x)
    if addend is not None:
        check_parameter("addend", addend, out_shape(x, list(pads)), x)
    return KeptBlock(
        *torch.ops.jepa_fast.convnext_block(
            x.to(compute_dtype(x)), weight, gamma, beta, expand, project, addend, list(pads), eps, keep
        )
    )


def convnext_block_keep(
    x: Tensor,
    weight: Tensor,
    gamma: Tensor,
    beta: Tensor,
    expand: Tensor,
    project: Tensor,
    eps: float = 1e-5,
    addend: Tensor | None = None,
    padding: Padding = 3,
    is_fused: bool = False,
) -> KeptBlock:
    """The block, its z and its update; gradients flow through all three.

    With `is_fused` as `convnext_block` has it. Otherwise with padding 3 and without an addend, in the dtype of x,
    float32 or float64, whatever autocast says.
    """
    if is_fused:
        return _checked_block(x, weight, gamma, beta, expand, project, addend, padding, eps, keep=True)
    parameters = (weight, gamma, beta, expand, project)
    if why_no_compiled_blocks(x.shape[3], x) is None:
        return KeptBlock(*torch.ops.jepa_fast.convnext_block_cpu(x, *parameters, None, [3, 3], eps, True))
    with torch.autocast(x.device.type, enabled=False):
        z = F.conv2d(x.permute(0, 3, 1, 2), weight, padding=3, groups=x.shape[3]).permute(0, 2, 3, 1)
        update = F.gelu(F.layer_norm(z, z.shape[3:], gamma, beta, eps) @ expand.t()) @ project.t()
        return KeptBlock(x + update, z, update)


def _cpu_fake(
    x: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor, expand: Tensor, project: Tensor, addend: Tensor | None,
    padding: list[int], eps: float, keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    count, *image = out_shape(x, padding)
    return x.new_empty(count, *image), x.new_empty(count, *image), x.new_empty(count if keep else 0, *image)


def _cpu_backward_fake(
    dy: Tensor, dz: Tensor | None, dupdate: Tensor | None, x: Tensor, z: Tensor, weight: Tensor, gamma: Tensor,
    beta: Tensor, expand: Tensor, project: Tensor, padding: list[int], eps: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    return tuple(like.new_empty(like.shape) for like in (x, z, weight, gamma, beta, expand, project))


def _cpu_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, *parameters, addend, ctx.padding, ctx.eps, keep = inputs
    ctx.has_addend = addend is not None
    if not keep:
        ctx.mark_non_differentiable(output[1], output[2])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, output[1], *parameters)


def _cpu_gradients(ctx: Any, dy: Tensor | None, dz: Tensor | None, dupdate: Tensor | None) -> tuple[Tensor | None, ...]:
    x, z, *parameters = ctx.saved_tensors
    if dy is None:
        dy = torch.zeros_like(z)
    dx, to_z, *gradients = torch.ops.jepa_fast.convnext_block_cpu_backward(
        dy, dz, dupdate, x, z, *parameters, ctx.padding, ctx.eps
    )
    return dx, *gradients, to_z if ctx.has_addend else None, None, None, None


if extension.load() is None:
    torch.library.register_fake(CPU_OPERATOR, _cpu_fake)
    torch.library.register_fake(f"{CPU_OPERATOR}_backward", _cpu_backward_fake)
    torch.library.register_autograd(CPU_OPERATOR, _cpu_gradients, setup_context=_cpu_setup)
