"""Depthwise 7x7 convolution and LayerNorm over channels, the first half of a ConvNeXt block, in one pass.

    z = dwconv7x7(x)        y = gamma (z - mean_c(z)) / sqrt(var_c(z) + eps) + beta

x [N, H, W, C] channels last, C one of 16, 32, 64, 96, 128; weight [C, 1, 7, 7]; gamma, beta [C] -> y [N, H', W', C],
H' = H + 2 padding - 6: padding 3 keeps the size, 6 gives every pixel that the convolution reaches.
x float32, bfloat16 or float16, on a CPU float64 too; y has its dtype, parameters keep theirs. Sums and statistics are
float32. x follows autocast. Gradients of x, weight, gamma and beta; no second derivative.

CUDA: Triton kernels, deterministic: parts of the parameters' gradients are added up in a fixed order. Compiled for
sm_80 and sm_90, not run on a device yet. Elsewhere plain PyTorch.

Bytes moved, in sizes A of an activation: forward 3 A (read x, write z and y), backward 7 A (dy, z -> dz; dz -> dx;
x, dz -> dweight). FLOPs: 98 per element forward, 196 backward, beside the LayerNorm's.
Source: Liu et al., A ConvNet for the 2020s, arXiv:2201.03545.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa_fast.kernels.triton.launch import runs_in_triton
from jepa_fast.kernels.window import compute_dtype

OPERATOR = "jepa_fast::dwconv_norm"
CHANNELS = (16, 32, 64, 96, 128)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
KERNEL = 7

Padding = int | tuple[int, int]


def dwconv_norm_reference(
    x: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor, padding: Padding = 3, eps: float = 1e-5
) -> Tensor:
    """The same in plain PyTorch and in the precision of its arguments: the truth of the tests."""
    z = F.conv2d(x.permute(0, 3, 1, 2), weight, padding=padding, groups=x.shape[3]).permute(0, 2, 3, 1)
    return F.layer_norm(z, z.shape[3:], gamma, beta, eps)


def check_convolution(x: Tensor, weight: Tensor, padding: tuple[int, int], channel_step: int | None = None) -> None:
    """Raise ValueError unless x and weight have a depthwise convolution that the kernels know.

    Multiples of `channel_step` channels are known too, up to the most.
    """
    if x.dim() != 4:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected four dimensions [N, H, W, C]")
    if x.dtype not in DTYPES and (x.dtype != torch.float64 or x.is_cuda):
        raise ValueError(f"x: got {x.dtype} on {x.device.type}, expected float32, bfloat16 or float16")
    channels = x.shape[3]
    is_multiple = channel_step is not None and channels % channel_step == 0 and channel_step <= channels <= CHANNELS[-1]
    if channels not in CHANNELS and not is_multiple:
        multiples = f" or a multiple of {channel_step} up to {CHANNELS[-1]}" if channel_step else ""
        raise ValueError(f"x: got C = {channels} channels, expected one of {', '.join(map(str, CHANNELS))}{multiples}")
    if tuple(weight.shape) != (channels, 1, KERNEL, KERNEL):
        raise ValueError(f"weight: got shape {tuple(weight.shape)}, expected {(channels, 1, KERNEL, KERNEL)}")
    for axis in (0, 1):
        if not 0 <= padding[axis] < KERNEL or x.shape[axis + 1] + 2 * padding[axis] < KERNEL:
            raise ValueError(
                f"padding: got {padding} for {tuple(x.shape)}, expected 0 to 6, and at least one pixel out"
            )


def check_parameter(name: str, parameter: Tensor, shape: tuple[int, ...], x: Tensor) -> None:
    """Raise ValueError unless a parameter has its shape and the device of x."""
    if tuple(parameter.shape) != shape:
        raise ValueError(f"{name}: got shape {tuple(parameter.shape)}, expected {shape}")
    if parameter.device != x.device:
        raise ValueError(f"{name}: got device {parameter.device}, expected that of x, {x.device}")


def out_shape(x: Tensor, padding: list[int]) -> tuple[int, int, int, int]:
    """Shape of a convolution's result, [N, H', W', C]."""
    height, width = (x.shape[axis + 1] + 2 * padding[axis] - KERNEL + 1 for axis in (0, 1))
    return x.shape[0], height, width, x.shape[3]


def widened(*tensors: Tensor) -> tuple[Tensor, ...]:
    """float64 if the first is, else float32: what plain PyTorch computes in."""
    dtype = torch.float64 if tensors[0].dtype == torch.float64 else torch.float32
    return tuple(tensor.to(dtype) for tensor in tensors)


def convolve(x: Tensor, weight: Tensor, padding: list[int]) -> Tensor:
    """z of channels-last x, in their dtype, whatever autocast says."""
    with torch.autocast(x.device.type, enabled=False):
        z = F.conv2d(x.permute(0, 3, 1, 2), weight, padding=padding, groups=x.shape[3])
    return z.permute(0, 2, 3, 1).contiguous()


def convolve_backward(dz: Tensor, x: Tensor, weight: Tensor, padding: list[int]) -> tuple[Tensor, Tensor]:
    """dx and dweight of `convolve`."""
    images = dz.permute(0, 3, 1, 2), x.permute(0, 3, 1, 2)
    dx, dweight, _ = torch.ops.aten.convolution_backward(
        *images, weight, None, [1, 1], padding, [1, 1], False, [0, 0], x.shape[3], [True, True, False]
    )
    return dx.permute(0, 2, 3, 1).contiguous(), dweight


def norm_backward(dy: Tensor, z: Tensor, gamma: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """dz, dgamma and dbeta of the LayerNorm."""
    _, mean, rstd = torch.native_layer_norm(z, z.shape[-1:], gamma, gamma, eps)
    gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.native_layer_norm_backward(
        dy, z, z.shape[-1:], mean, rstd, gamma, gamma, [True, True, True]
    )
    return gradients


@torch.library.custom_op(OPERATOR, mutates_args=())
def _dwconv_norm(
    x: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor, padding: list[int], eps: float
) -> tuple[Tensor, Tensor]:
    if runs_in_triton(OPERATOR, x):
        from jepa_fast.kernels.triton.depthwise import taps_of
        from jepa_fast.kernels.triton.dwconv_norm import dwconv_norm_forward

        return dwconv_norm_forward(
            x.contiguous(), taps_of(weight), gamma.contiguous(), beta.contiguous(), (padding[0], padding[1]), eps
        )
    wide_x, wide_weight, wide_gamma, wide_beta = widened(x, weight, gamma, beta)
    z = convolve(wide_x, wide_weight, padding).to(x.dtype)
    return F.layer_norm(z.to(wide_x.dtype), z.shape[3:], wide_gamma, wide_beta, eps).to(x.dtype), z


@_dwconv_norm.register_fake
def _dwconv_norm_fake(
    x: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor, padding: list[int], eps: float
) -> tuple[Tensor, Tensor]:
    shape = out_shape(x, padding)
    return x.new_empty(shape), x.new_empty(shape)


@torch.library.custom_op(f"{OPERATOR}_backward", mutates_args=())
def _dwconv_norm_backward(
    dy: Tensor, x: Tensor, z: Tensor, weight: Tensor, gamma: Tensor, padding: list[int], eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if runs_in_triton(OPERATOR, x):
        from jepa_fast.kernels.triton.depthwise import depthwise, depthwise_weight_gradient, taps_of
        from jepa_fast.kernels.triton.dwconv_norm import dwconv_norm_backward

        x = x.contiguous()
        dz, dgamma, dbeta = dwconv_norm_backward(dy.contiguous(), z, gamma.contiguous(), eps)
        dx = depthwise(dz, taps_of(weight, flipped=True), (KERNEL - 1 - padding[0], KERNEL - 1 - padding[1]))
        dweight = depthwise_weight_gradient(x, dz, (padding[0], padding[1]))
    else:
        wide_dy, wide_x, wide_z, wide_weight, wide_gamma = widened(dy, x, z, weight, gamma)
        dz, dgamma, dbeta = norm_backward(wide_dy, wide_z, wide_gamma, eps)
        dx, dweight = convolve_backward(dz, wide_x, wide_weight, padding)
    return dx.to(x.dtype), dweight.to(weight.dtype), dgamma.to(gamma.dtype), dbeta.to(gamma.dtype)


@_dwconv_norm_backward.register_fake
def _dwconv_norm_backward_fake(
    dy: Tensor, x: Tensor, z: Tensor, weight: Tensor, gamma: Tensor, padding: list[int], eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape), torch.empty_like(gamma), torch.empty_like(gamma)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, gamma, _, ctx.padding, ctx.eps = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, output[1], weight, gamma)


def _gradients(ctx: Any, dy: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 6
    return *torch.ops.jepa_fast.dwconv_norm_backward(dy, *ctx.saved_tensors, ctx.padding, ctx.eps), None, None


_dwconv_norm.register_autograd(_gradients, setup_context=_setup_context)


def dwconv_norm(
    x: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor, padding: Padding = 3, eps: float = 1e-5
) -> Tensor:
    """LayerNorm(dwconv7x7(x)): [N, H', W', C] of channels-last x [N, H, W, C].

    Raises:
        ValueError: shapes that do not fit together, channels or a dtype that the kernels do not have.
    """
    pads = (padding, padding) if isinstance(padding, int) else padding
    check_convolution(x, weight, pads)
    for name, parameter in {"gamma": gamma, "beta": beta}.items():
        check_parameter(name, parameter, (x.shape[3],), x)
    y: Tensor
    y, _ = torch.ops.jepa_fast.dwconv_norm(x.to(compute_dtype(x)), weight, gamma, beta, list(pads), eps)
    return y
