"""The encoder's local layers on channels-last tensors, in pieces that stay in the processor's cache.

    norm_mlp      W2 gelu(W1 LN(z))
    hidden_pool   P_y gelu(W1 LN(z)) P_x^T: average pooling before the last W2, which commutes with it
    depthwise     7x7 convolution, one filter per channel
    crop          windows of shared base activations

The hidden activations are four times as wide as z, and at a few hundred windows no cache holds them: written to memory
and read back they cost more than the arithmetic. Here they never exist as a whole. z is cut into pieces of some
thousand pixels; a piece's hidden activations are made, used and overwritten, and made again in the backward pass.
Only z is kept. On a GPU there is one piece.

Forward and backward are custom ops, so that torch.compile sees each as one node. They have no second derivative.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

KERNEL = 7
# Pixels in a piece: its hidden activations of 16 channels are 2 MB in float32. 4096 to 16384 measure alike.
PIECE = 8192


def norm_mlp(z: Tensor, gamma: Tensor, beta: Tensor, expand: Tensor, project: Tensor, eps: float) -> Tensor:
    """W2 gelu(W1 LN(z)) of z [..., C]; expand is W1 [4C, C], project W2 [C, 4C]. Matrix products follow autocast."""
    update: Tensor = torch.ops.jepa_fast.norm_mlp(z, gamma, beta, expand, project, eps, _compute_dtype(z))
    return update


def hidden_pool(
    z: Tensor, gamma: Tensor, beta: Tensor, expand: Tensor, rows: Tensor, columns: Tensor, eps: float
) -> Tensor:
    """P_y gelu(W1 LN(z)) P_x^T, [N, R, S, 4C], of z [N, h, w, C] with pooling matrices [N, R, h] and [N, S, w].

    No gradient goes to the pooling matrices.
    """
    pooled: Tensor = torch.ops.jepa_fast.hidden_pool(z, gamma, beta, expand, rows, columns, eps, _compute_dtype(z))
    return pooled


def depthwise(x: Tensor, weight: Tensor, padding: tuple[int, int], addend: Tensor | None = None) -> Tensor:
    """Convolution of x [N, h, w, C] with one 7x7 filter per channel, weight [C, 1, 7, 7], zero outside; plus `addend`.

    The convolution follows autocast, the sum is in the addend's dtype.
    """
    dtype = _compute_dtype(x)
    out: Tensor = torch.ops.jepa_fast.depthwise(x.to(dtype), weight.to(dtype), list(padding), addend)
    return out


def crop(base: Tensor, corners: Tensor, groups: Tensor, margin: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Windows [N, h, w, C] of base [G, H, W, C]: image groups[n], rows from corners[n, 0] - margin; zero outside it."""
    windows: Tensor = torch.ops.jepa_fast.crop(base, corners, groups, list(margin), list(size))
    return windows


def pool(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """P_y x P_x^T, [N, R, S, C], of x [N, h, w, C] with matrices [(N,) R, h] and [(N,) S, w], in their dtype."""
    count, height, width, channels = x.shape
    # Not under autocast: the plain encoder pools in the dtype of the residual stream.
    with torch.autocast(x.device.type, enabled=False):
        by_row = rows @ x.to(rows.dtype).reshape(count, height, width * channels)
        return columns.unsqueeze(-3) @ by_row.view(count, rows.shape[-2], width, channels)


def _compute_dtype(x: Tensor) -> torch.dtype:
    """What autocast has matrix products computed in, else x's own dtype."""
    device = x.device.type
    if x.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


def _pieces(count: int, pixels: int, device: torch.device) -> list[slice]:
    """Slices of `count` items of so many pixels each."""
    step = max(1, PIECE // pixels) if device.type == "cpu" else max(1, count)
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


class _Hidden:
    """gelu(W1 LN(z)) of one piece after another, forward and backward, in two buffers that all pieces share."""

    def __init__(
        self, pixels: int, gamma: Tensor, beta: Tensor, expand: Tensor, eps: float, dtype: torch.dtype
    ) -> None:
        """`pixels` of the largest piece, the layers' parameters, and the dtype of matrix products."""
        self.gamma, self.beta, self.eps = gamma, beta, eps
        self.expand = expand.to(dtype)
        self.before = torch.empty(pixels, expand.shape[0], dtype=dtype, device=expand.device)
        self.after = torch.empty_like(self.before)

    def forward(self, z: Tensor) -> Tensor:
        """Hidden activations [P, 4C] of the piece z [P, C], in a buffer: gone with the next piece."""
        # Statistics of bf16 activations are taken in float32.
        self.z = z.to(self.gamma.dtype)
        normed, self.mean, self.rstd = torch.native_layer_norm(self.z, z.shape[1:], self.gamma, self.beta, self.eps)
        self.normed = normed.to(self.expand.dtype)
        before = torch.mm(self.normed, self.expand.t(), out=self.before[: len(z)])
        hidden: Tensor = torch.ops.aten.gelu.out(before, out=self.after[: len(z)])
        return hidden

    def backward(self, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gradients of z [P, C], gamma, beta and W1 from that of the hidden activations, which is overwritten."""
        before = self.before[: len(gradient)]
        torch.ops.aten.gelu_backward.grad_input(gradient, before, grad_input=gradient)
        inner = (gradient @ self.expand).to(self.z.dtype)
        to_z, to_gamma, to_beta = torch.ops.aten.native_layer_norm_backward(
            inner, self.z, self.z.shape[1:], self.mean, self.rstd, self.gamma, self.beta, [True, True, True]
        )
        return to_z, to_gamma, to_beta, gradient.t() @ self.normed


@torch.library.custom_op("jepa_fast::norm_mlp", mutates_args=())
def _norm_mlp(
    z: Tensor, gamma: Tensor, beta: Tensor, expand: Tensor, project: Tensor, eps: float, dtype: torch.dtype
) -> Tensor:
    pixels = z.reshape(-1, z.shape[-1])
    update = torch.empty(pixels.shape, dtype=dtype, device=z.device)
    pieces = _pieces(len(pixels), 1, z.device)
    hidden = _Hidden(_longest(pieces), gamma, beta, expand, eps, dtype)
    weight = project.to(dtype).t()
    for piece in pieces:
        torch.mm(hidden.forward(pixels[piece]), weight, out=update[piece])
    return update.view(z.shape)


@_norm_mlp.register_fake
def _norm_mlp_fake(
    z: Tensor, gamma: Tensor, beta: Tensor, expand: Tensor, project: Tensor, eps: float, dtype: torch.dtype
) -> Tensor:
    return torch.empty(z.shape, dtype=dtype, device=z.device)


@torch.library.custom_op("jepa_fast::norm_mlp_backward", mutates_args=())
def _norm_mlp_backward(
    gradient: Tensor, z: Tensor, gamma: Tensor, beta: Tensor, expand: Tensor, project: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    pixels = z.reshape(-1, z.shape[-1])
    gradient = gradient.reshape(pixels.shape)
    pieces = _pieces(len(pixels), 1, z.device)
    hidden = _Hidden(_longest(pieces), gamma, beta, expand, eps, gradient.dtype)
    weight = project.to(gradient.dtype)
    to_z = torch.empty(pixels.shape, dtype=z.dtype, device=z.device)
    totals = [torch.zeros_like(parameter) for parameter in (gamma, beta, expand, project)]
    for piece in pieces:
        activations = hidden.forward(pixels[piece])
        totals[3] += gradient[piece].t() @ activations
        # The activations are not needed any more: their buffer takes their gradient.
        to_hidden = torch.mm(gradient[piece], weight, out=activations)
        to_z[piece], *to_parameters = hidden.backward(to_hidden)
        for total, part in zip(totals, to_parameters, strict=False):
            total += part
    return to_z.view(z.shape), *totals  # type: ignore[return-value]


@_norm_mlp_backward.register_fake
def _norm_mlp_backward_fake(
    gradient: Tensor, z: Tensor, gamma: Tensor, beta: Tensor, expand: Tensor, project: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    to_z = torch.empty(z.shape, dtype=z.dtype, device=z.device)
    return to_z, *(torch.empty_like(parameter) for parameter in (gamma, beta, expand, project))  # type: ignore[return-value]


def _norm_mlp_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.eps = inputs[5]


def _norm_mlp_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return *torch.ops.jepa_fast.norm_mlp_backward(gradient, *ctx.saved_tensors, ctx.eps), None, None


_norm_mlp.register_autograd(_norm_mlp_gradients, setup_context=_norm_mlp_setup)


@torch.library.custom_op("jepa_fast::hidden_pool", mutates_args=())
def _hidden_pool(
    z: Tensor,
    gamma: Tensor,
    beta: Tensor,
    expand: Tensor,
    rows: Tensor,
    columns: Tensor,
    eps: float,
    dtype: torch.dtype,
) -> Tensor:
    count, height, width, channels = z.shape
    pieces = _pieces(count, height * width, z.device)
    hidden = _Hidden(_longest(pieces) * height * width, gamma, beta, expand, eps, dtype)
    pooled = torch.empty(_pooled_shape(z, expand, rows, columns), dtype=rows.dtype, device=z.device)
    for piece in pieces:
        activations = hidden.forward(z[piece].reshape(-1, channels))
        pooled[piece] = pool(activations.view(-1, height, width, len(expand)), rows[piece], columns[piece])
    return pooled


@_hidden_pool.register_fake
def _hidden_pool_fake(
    z: Tensor,
    gamma: Tensor,
    beta: Tensor,
    expand: Tensor,
    rows: Tensor,
    columns: Tensor,
    eps: float,
    dtype: torch.dtype,
) -> Tensor:
    return torch.empty(_pooled_shape(z, expand, rows, columns), dtype=rows.dtype, device=z.device)


@torch.library.custom_op("jepa_fast::hidden_pool_backward", mutates_args=())
def _hidden_pool_backward(
    gradient: Tensor,
    z: Tensor,
    gamma: Tensor,
    beta: Tensor,
    expand: Tensor,
    rows: Tensor,
    columns: Tensor,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    count, height, width, channels = z.shape
    pieces = _pieces(count, height * width, z.device)
    hidden = _Hidden(_longest(pieces) * height * width, gamma, beta, expand, eps, dtype)
    to_z = torch.empty(z.shape, dtype=z.dtype, device=z.device)
    totals = [torch.zeros_like(parameter) for parameter in (gamma, beta, expand)]
    for piece in pieces:
        activations = hidden.forward(z[piece].reshape(-1, channels))
        # The activations are not needed any more: their buffer takes their gradient.
        by_row = torch.matmul(columns[piece].mT.unsqueeze(1), gradient[piece]).flatten(2)  # [n, R, w * 4C]
        to_hidden = _spread(rows[piece], by_row, activations)
        piece_to_z, *to_parameters = hidden.backward(to_hidden)
        to_z[piece] = piece_to_z.view(-1, height, width, channels)
        for total, part in zip(totals, to_parameters, strict=True):
            total += part
    return to_z, *totals  # type: ignore[return-value]


@_hidden_pool_backward.register_fake
def _hidden_pool_backward_fake(
    gradient: Tensor,
    z: Tensor,
    gamma: Tensor,
    beta: Tensor,
    expand: Tensor,
    rows: Tensor,
    columns: Tensor,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    to_z = torch.empty(z.shape, dtype=z.dtype, device=z.device)
    return to_z, *(torch.empty_like(parameter) for parameter in (gamma, beta, expand))  # type: ignore[return-value]


def _hidden_pool_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.options = inputs[6:]


def _hidden_pool_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    gradients = torch.ops.jepa_fast.hidden_pool_backward(gradient, *ctx.saved_tensors, *ctx.options)
    return *gradients, None, None, None, None


_hidden_pool.register_autograd(_hidden_pool_gradients, setup_context=_hidden_pool_setup)


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
def _crop(base: Tensor, corners: Tensor, groups: Tensor, margin: list[int], size: list[int]) -> Tensor:
    padded = F.pad(base, (0, 0, margin[1], margin[1], margin[0], margin[0]))
    pixels = _window_pixels(padded.shape, corners, groups, size)
    picked = padded.reshape(-1, base.shape[3]).index_select(0, pixels)
    return picked.view(len(corners), *size, base.shape[3])


@_crop.register_fake
def _crop_fake(base: Tensor, corners: Tensor, groups: Tensor, margin: list[int], size: list[int]) -> Tensor:
    return base.new_empty(len(corners), *size, base.shape[3])


@torch.library.custom_op("jepa_fast::crop_backward", mutates_args=())
def _crop_backward(
    gradient: Tensor, corners: Tensor, groups: Tensor, shape: list[int], margin: list[int], size: list[int]
) -> Tensor:
    count, height, width, channels = shape
    padded = (count, height + 2 * margin[0], width + 2 * margin[1], channels)
    pixels = _window_pixels(torch.Size(padded), corners, groups, size)
    parts = gradient.reshape(-1, channels)
    length = padded[0] * padded[1] * padded[2]
    if gradient.is_cuda:
        # index_add_ is not deterministic there; this sorts.
        total: Tensor = torch.ops.aten.embedding_dense_backward(parts, pixels, length, -1, False)
    else:
        total = parts.new_zeros(length, channels).index_add_(0, pixels, parts)
    rows, columns = (slice(m, m + side) for m, side in zip(margin, (height, width), strict=True))
    return total.view(padded)[:, rows, columns].contiguous()


@_crop_backward.register_fake
def _crop_backward_fake(
    gradient: Tensor, corners: Tensor, groups: Tensor, shape: list[int], margin: list[int], size: list[int]
) -> Tensor:
    return gradient.new_empty(shape)


def _crop_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    base, corners, groups, ctx.margin, ctx.size = inputs
    ctx.shape = list(base.shape)
    ctx.save_for_backward(corners, groups)


def _crop_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    to_base = torch.ops.jepa_fast.crop_backward(gradient, *ctx.saved_tensors, ctx.shape, ctx.margin, ctx.size)
    return to_base, None, None, None, None


torch.library.register_autograd("jepa_fast::crop", _crop_gradients, setup_context=_crop_setup)


def _window_pixels(padded: torch.Size, corners: Tensor, groups: Tensor, size: list[int]) -> Tensor:
    """Where the windows' pixels are among those of the padded bases, int64 [N * h * w].

    A grown window's corner in the padded base is the window's own corner in the image.
    """
    rows = corners[:, 0, None] + torch.arange(size[0], device=corners.device)
    columns = corners[:, 1, None] + torch.arange(size[1], device=corners.device)
    first = (groups[:, None] * padded[1] + rows) * padded[2]
    return (first[:, :, None] + columns[:, None, :]).flatten()


def _spread(rows: Tensor, by_row: Tensor, out: Tensor) -> Tensor:
    """P_y^T by_row, written to `out` [n * h * w, C]."""
    target = out.view(len(rows), rows.shape[2], -1)
    if out.dtype == by_row.dtype:
        torch.bmm(rows.mT, by_row, out=target)
    else:
        target.copy_(torch.bmm(rows.mT, by_row))
    return out


def _longest(pieces: list[slice]) -> int:
    return max((piece.stop - piece.start for piece in pieces), default=0)


def _pooled_shape(z: Tensor, expand: Tensor, rows: Tensor, columns: Tensor) -> tuple[int, int, int, int]:
    return z.shape[0], rows.shape[1], columns.shape[1], expand.shape[0]
