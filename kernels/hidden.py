"""The block's MLP on channels-last tensors, in pieces that stay in the processor's cache.

    norm_mlp      W2 gelu(W1 LN(z))
    hidden_pool   P_y gelu(W1 LN(z)) P_x^T: average pooling before the last W2, which commutes with it

The hidden activations are four times as wide as z, and at a few hundred windows no cache holds them: written to memory
and read back they cost more than the arithmetic. Here they never exist as a whole. z is cut into pieces of some
thousand pixels; a piece's hidden activations are made, used and overwritten, and made again in the backward pass.
Only z is kept. On a GPU there is one piece.

Forward and backward are custom ops, so that torch.compile sees each as one node. They have no second derivative.
"""

from typing import Any

import torch
from torch import Tensor

from jepa_fast.kernels.window import compute_dtype, pool

# Pixels in a piece: its hidden activations of 16 channels are 2 MB in float32. 4096 to 16384 measure alike.
PIECE = 8192


def norm_mlp(z: Tensor, gamma: Tensor, beta: Tensor, expand: Tensor, project: Tensor, eps: float) -> Tensor:
    """W2 gelu(W1 LN(z)) of z [..., C]; expand is W1 [4C, C], project W2 [C, 4C]. Matrix products follow autocast."""
    update: Tensor = torch.ops.jepa_fast.norm_mlp(z, gamma, beta, expand, project, eps, compute_dtype(z))
    return update


def hidden_pool(
    z: Tensor, gamma: Tensor, beta: Tensor, expand: Tensor, rows: Tensor, columns: Tensor, eps: float
) -> Tensor:
    """P_y gelu(W1 LN(z)) P_x^T, [N, R, S, 4C], of z [N, h, w, C] with pooling matrices [N, R, h] and [N, S, w].

    No gradient goes to the pooling matrices.
    """
    pooled: Tensor = torch.ops.jepa_fast.hidden_pool(z, gamma, beta, expand, rows, columns, eps, compute_dtype(z))
    return pooled


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
