"""Convolution, crops and pooling of channels-last windows.

    depthwise   7x7 convolution, one filter per channel, plus an addend
    crop        windows of shared base activations
    difference  what windows hold more than the base under them
    pool        pooling matrices from both sides
    window_pool average pooling into the cells of the image that a window lies in

All but `pool` are custom ops, forward and backward, so that torch.compile sees each as one node. They have no
second derivative.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa_fast.kernels.triton.launch import runs_in_triton

KERNEL = 7


def depthwise(x: Tensor, weight: Tensor, padding: tuple[int, int], addend: Tensor | None = None) -> Tensor:
    """Convolution of x [N, h, w, C] with one 7x7 filter per channel, weight [C, 1, 7, 7], zero outside; plus `addend`.

    The convolution follows autocast, the sum is in the addend's dtype.
    """
    dtype = compute_dtype(x)
    out: Tensor = torch.ops.jepa_fast.depthwise(x.to(dtype), weight.to(dtype), list(padding), addend)
    return out


def crop(
    base: Tensor,
    corners: Tensor,
    groups: Tensor,
    margin: tuple[int, int],
    size: tuple[int, int],
    is_fused: bool = False,
) -> Tensor:
    """Windows [N, h, w, C] of base [G, H, W, C]: image groups[n], rows from corners[n, 0] - margin; zero outside it.

    With `is_fused` the gradient is summed by a Triton kernel on CUDA: of C channels that a block's kernels take.
    """
    windows: Tensor = torch.ops.jepa_fast.crop(base, corners, groups, list(margin), list(size), is_fused)
    return windows


def difference(
    values: Tensor, base: Tensor, corners: Tensor, groups: Tensor, margin: tuple[int, int], is_fused: bool = False
) -> Tensor:
    """Windows `values` [N, h, w, C] less the base under them, as `crop` gives it; zero outside the image."""
    out: Tensor = torch.ops.jepa_fast.window_difference(values, base, corners, groups, list(margin), is_fused)
    return out


def pool(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """P_y x P_x^T, [N, R, S, C], of x [N, h, w, C] with matrices [(N,) R, h] and [(N,) S, w], in their dtype."""
    count, height, width, channels = x.shape
    # Not under autocast: the plain encoder pools in the dtype of the residual stream.
    with torch.autocast(x.device.type, enabled=False):
        by_row = rows @ x.to(rows.dtype).reshape(count, height, width * channels)
        return columns.unsqueeze(-3) @ by_row.view(count, rows.shape[-2], width, channels)


def window_pool(x: Tensor, corners: Tensor, margin: tuple[int, int], image: tuple[int, int], side: int = 6) -> Tensor:
    """The mean in each of S x S cells of the images that windows x [N, h, w, C] lie in, zero around them: [N, S, S, C].

    float32, of float64 float64. Cells are those of adaptive average pooling, of an image of at least S pixels in both
    directions. On CUDA a Triton kernel.
    """
    pooled: Tensor = torch.ops.jepa_fast.window_pool(x, corners, list(margin), list(image), side)
    return pooled


def compute_dtype(x: Tensor) -> torch.dtype:
    """What autocast has matrix products computed in, else x's own dtype."""
    device = x.device.type
    if x.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


@torch.library.custom_op("jepa_fast::depthwise", mutates_args=())
def _depthwise(x: Tensor, weight: Tensor, padding: list[int], addend: Tensor | None) -> Tensor:
    convolved = _convolve(x, weight, padding)
    return convolved if addend is None else convolved.to(addend.dtype).add_(addend)


@_depthwise.register_fake
def _depthwise_fake(x: Tensor, weight: Tensor, padding: list[int], addend: Tensor | None) -> Tensor:
    height, width = (x.shape[axis + 1] + 2 * padding[axis] - KERNEL + 1 for axis in (0, 1))
    dtype = x.dtype if addend is None else addend.dtype
    return x.new_empty(x.shape[0], height, width, x.shape[3], dtype=dtype)


@torch.library.custom_op("jepa_fast::depthwise_backward", mutates_args=())
def _depthwise_backward(gradient: Tensor, x: Tensor, weight: Tensor, padding: list[int]) -> tuple[Tensor, Tensor]:
    gradient = gradient.to(x.dtype)
    # A forward convolution with the filters turned by 180 degrees: on a CPU 4 times as fast as the library's backward.
    to_x = _convolve(gradient, weight.flip(2, 3), [KERNEL - 1 - side for side in padding])
    images = gradient.permute(0, 3, 1, 2), x.permute(0, 3, 1, 2)
    to_weight = torch.ops.aten.convolution_backward(
        *images, weight, None, [1, 1], padding, [1, 1], False, [0, 0], x.shape[3], [False, True, False]
    )[1]
    return to_x, to_weight


@_depthwise_backward.register_fake
def _depthwise_backward_fake(gradient: Tensor, x: Tensor, weight: Tensor, padding: list[int]) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _depthwise_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, ctx.padding, ctx.addend = inputs[0], inputs[1], inputs[2], inputs[3] is not None
    ctx.save_for_backward(x, weight)


def _depthwise_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    to_x, to_weight = torch.ops.jepa_fast.depthwise_backward(gradient, *ctx.saved_tensors, ctx.padding)
    return to_x, to_weight, None, gradient if ctx.addend else None


_depthwise.register_autograd(_depthwise_gradients, setup_context=_depthwise_setup)


def _convolve(x: Tensor, weight: Tensor, padding: list[int]) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        out = F.conv2d(x.permute(0, 3, 1, 2), weight, padding=padding, groups=x.shape[3])
    return out.permute(0, 2, 3, 1).contiguous()


@torch.library.custom_op("jepa_fast::crop", mutates_args=())
def _crop(base: Tensor, corners: Tensor, groups: Tensor, margin: list[int], size: list[int], is_fused: bool) -> Tensor:
    if is_fused and runs_in_triton("jepa_fast::crop", base):
        from jepa_fast.kernels.triton.crop import crop_forward

        placed = corners.contiguous(), groups.contiguous(), base.shape[1:3], margin, size
        return crop_forward(None, base.contiguous(), *placed)
    padded = F.pad(base, (0, 0, margin[1], margin[1], margin[0], margin[0]))
    pixels = _window_pixels(padded.shape, corners, groups, size)
    picked = padded.reshape(-1, base.shape[3]).index_select(0, pixels)
    return picked.view(len(corners), *size, base.shape[3])


@_crop.register_fake
def _crop_fake(
    base: Tensor, corners: Tensor, groups: Tensor, margin: list[int], size: list[int], is_fused: bool
) -> Tensor:
    return base.new_empty(len(corners), *size, base.shape[3])


@torch.library.custom_op("jepa_fast::crop_backward", mutates_args=())
def _crop_backward(
    gradient: Tensor,
    corners: Tensor,
    groups: Tensor,
    shape: list[int],
    margin: list[int],
    size: list[int],
    is_fused: bool,
    sign: float = 1.0,
) -> Tensor:
    if is_fused and runs_in_triton("jepa_fast::crop_backward", gradient):
        from jepa_fast.kernels.triton.crop import crop_backward

        windows = gradient.contiguous(), corners.contiguous(), groups.contiguous()
        return crop_backward(*windows, shape, margin, sign)
    count, height, width, channels = shape
    padded = (count, height + 2 * margin[0], width + 2 * margin[1], channels)
    pixels = _window_pixels(torch.Size(padded), corners, groups, size)
    parts = gradient.reshape(-1, channels)
    length = padded[0] * padded[1] * padded[2]
    total = added_up(parts, pixels, length, sorts=gradient.is_cuda)
    rows, columns = (slice(m, m + side) for m, side in zip(margin, (height, width), strict=True))
    # Negated while it is one image.
    total = total if sign == 1 else total * sign
    return total.view(padded)[:, rows, columns].contiguous()


def added_up(parts: Tensor, places: Tensor, length: int, sorts: bool) -> Tensor:
    """[length, C]: the sum of the parts [P, C] of each place. On CUDA only sorted parts are added in a fixed order."""
    if sorts:
        total: Tensor = torch.ops.aten.embedding_dense_backward(parts, places, length, -1, False)
        return total
    return parts.new_zeros(length, parts.shape[1]).index_add_(0, places, parts)


@_crop_backward.register_fake
def _crop_backward_fake(
    gradient: Tensor,
    corners: Tensor,
    groups: Tensor,
    shape: list[int],
    margin: list[int],
    size: list[int],
    is_fused: bool,
    sign: float = 1.0,
) -> Tensor:
    return gradient.new_empty(shape)


def _crop_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    base, corners, groups, ctx.margin, ctx.size, ctx.is_fused = inputs
    ctx.shape = list(base.shape)
    ctx.save_for_backward(corners, groups)


def _crop_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    to_base = torch.ops.jepa_fast.crop_backward(
        gradient, *ctx.saved_tensors, ctx.shape, ctx.margin, ctx.size, ctx.is_fused
    )
    return to_base, None, None, None, None, None


torch.library.register_autograd("jepa_fast::crop", _crop_gradients, setup_context=_crop_setup)


@torch.library.custom_op("jepa_fast::window_difference", mutates_args=())
def _difference(
    values: Tensor, base: Tensor, corners: Tensor, groups: Tensor, margin: list[int], is_fused: bool
) -> Tensor:
    size, image = values.shape[1:3], base.shape[1:3]
    if is_fused and runs_in_triton("jepa_fast::window_difference", values):
        from jepa_fast.kernels.triton.crop import crop_forward

        placed = corners.contiguous(), groups.contiguous(), image, margin, size
        return crop_forward(values.contiguous(), base.contiguous(), *placed)
    windows = crop(base, corners, groups, (margin[0], margin[1]), (size[0], size[1]))
    apart = (values.contiguous() - windows).to(values.dtype)
    return apart * _on_image(corners, margin, size, image)[..., None]


@_difference.register_fake
def _difference_fake(
    values: Tensor, base: Tensor, corners: Tensor, groups: Tensor, margin: list[int], is_fused: bool
) -> Tensor:
    return values.new_empty(values.shape)


@torch.library.custom_op("jepa_fast::window_mask", mutates_args=())
def _mask(
    values: Tensor, corners: Tensor, groups: Tensor, image: list[int], margin: list[int], is_fused: bool
) -> Tensor:
    size = values.shape[1:3]
    if is_fused and runs_in_triton("jepa_fast::window_difference", values):
        from jepa_fast.kernels.triton.crop import crop_forward

        placed = corners.contiguous(), groups.contiguous(), image, margin, size
        return crop_forward(values.contiguous(), None, *placed)
    return values.contiguous() * _on_image(corners, margin, size, image)[..., None]


@_mask.register_fake
def _mask_fake(
    values: Tensor, corners: Tensor, groups: Tensor, image: list[int], margin: list[int], is_fused: bool
) -> Tensor:
    return values.new_empty(values.shape)


def _difference_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, base, corners, groups, ctx.margin, ctx.is_fused = inputs
    ctx.shape, ctx.dtype = list(base.shape), base.dtype
    ctx.save_for_backward(corners, groups)


def _difference_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    corners, groups = ctx.saved_tensors
    size = list(gradient.shape[1:3])
    to_values = torch.ops.jepa_fast.window_mask(gradient, corners, groups, ctx.shape[1:3], ctx.margin, ctx.is_fused)
    to_base = torch.ops.jepa_fast.crop_backward(
        gradient, corners, groups, ctx.shape, ctx.margin, size, ctx.is_fused, -1.0
    )
    return to_values, to_base.to(ctx.dtype), None, None, None, None


torch.library.register_autograd("jepa_fast::window_difference", _difference_gradients, setup_context=_difference_setup)


@torch.library.custom_op("jepa_fast::window_pool", mutates_args=())
def _window_pool(x: Tensor, corners: Tensor, margin: list[int], image: list[int], side: int) -> Tensor:
    if runs_in_triton("jepa_fast::window_pool", x):
        from jepa_fast.kernels.triton.pooling import window_pool_forward

        return window_pool_forward(x.contiguous(), corners.contiguous(), margin, image, side)
    return pool(x, *_cells(corners, margin, x.shape[1:3], image, side, _wide(x)))


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


@_window_pool.register_fake
def _window_pool_fake(x: Tensor, corners: Tensor, margin: list[int], image: list[int], side: int) -> Tensor:
    return x.new_empty(x.shape[0], side, side, x.shape[3], dtype=_wide(x))


@torch.library.custom_op("jepa_fast::window_pool_backward", mutates_args=())
def _window_pool_backward(
    gradient: Tensor, corners: Tensor, size: list[int], margin: list[int], image: list[int], dtype: torch.dtype
) -> Tensor:
    side = gradient.shape[1]
    if runs_in_triton("jepa_fast::window_pool", gradient):
        from jepa_fast.kernels.triton.pooling import window_pool_backward

        shape = (len(corners), *size, gradient.shape[3])
        return window_pool_backward(gradient.contiguous(), corners.contiguous(), shape, margin, image, dtype)
    rows, columns = _cells(corners, margin, size, image, side, gradient.dtype)
    return pool(gradient, rows.mT, columns.mT).to(dtype)


@_window_pool_backward.register_fake
def _window_pool_backward_fake(
    gradient: Tensor, corners: Tensor, size: list[int], margin: list[int], image: list[int], dtype: torch.dtype
) -> Tensor:
    return gradient.new_empty(len(corners), *size, gradient.shape[3], dtype=dtype)


def _window_pool_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, corners, ctx.margin, ctx.image, _ = inputs
    ctx.size, ctx.dtype = list(x.shape[1:3]), x.dtype
    ctx.save_for_backward(corners)


def _window_pool_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    to_x = torch.ops.jepa_fast.window_pool_backward(
        gradient, *ctx.saved_tensors, ctx.size, ctx.margin, ctx.image, ctx.dtype
    )
    return to_x, None, None, None, None


torch.library.register_autograd("jepa_fast::window_pool", _window_pool_gradients, setup_context=_window_pool_setup)


def _cells(
    corners: Tensor, margin: Sequence[int], size: Sequence[int], image: Sequence[int], side: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Matrices [N, S, h] and [N, S, w] that average the window's pixels in each cell."""
    cell = torch.arange(side, device=corners.device)[:, None]
    matrices = []
    for axis in (0, 1):
        first = cell * image[axis] // side
        end = -(-(cell + 1) * image[axis] // side)
        place = corners[:, axis, None, None] - margin[axis] + torch.arange(size[axis], device=corners.device)
        matrices.append(((place >= first) & (place < end)).to(dtype) / (end - first).to(dtype))
    return matrices[0], matrices[1]


def _on_image(corners: Tensor, margin: Sequence[int], size: Sequence[int], image: Sequence[int]) -> Tensor:
    """Whether a window's pixel lies on the image, bool [N, h, w]."""
    rows, columns = (
        corners[:, axis, None] - margin[axis] + torch.arange(size[axis], device=corners.device) for axis in (0, 1)
    )
    inside = [(place >= 0) & (place < side) for place, side in zip((rows, columns), image, strict=True)]
    return inside[0][:, :, None] & inside[1][:, None, :]


def _window_pixels(padded: torch.Size, corners: Tensor, groups: Tensor, size: list[int]) -> Tensor:
    """Where the windows' pixels are among those of the padded bases, int64 [N * h * w].

    A grown window's corner in the padded base is the window's own corner in the image.
    """
    rows = corners[:, 0, None] + torch.arange(size[0], device=corners.device)
    columns = corners[:, 1, None] + torch.arange(size[1], device=corners.device)
    first = (groups[:, None] * padded[1] + rows) * padded[2]
    return (first[:, :, None] + columns[:, None, :]).flatten()
