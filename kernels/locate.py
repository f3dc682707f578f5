"""Where in windows something is: two small convolutions and the expected coordinates under a softmax over the frame.

    l = spread^T * relu(look * image)      p = sum_q softmax(l / temperature)_q (x_q, y_q)

images [N, h, w] on black, their top left pixels at corners int64 [N, 2] (row, column) of frames [H, W]; look and spread
[C, 1, k, k], the second as a transposed convolution; log_temperature a scalar. Logits reach k - 1 pixels further on all
sides with each convolution, what of them lies outside of the frame is left out, and all others of the frame are 0.
Positions [N, 2] are (x, y) in pixels, the origin in the centre of the frame's top left pixel. float32 or float64, not
under autocast. Gradients of look, spread and log_temperature; no second derivative.

Saved for the backward pass: nothing but the arguments.

CPU: compiled for C a multiple of 8 (csrc/cpu/convnext/locate_kernels.h), a window stays in the first cache;
deterministic, sums beyond a window in float64. Elsewhere, and where images ask for a gradient, plain PyTorch.

Bytes moved: images once forward and once backward. FLOPs per window: 4 C k^2 (h + k - 1)(w + k - 1) forward, three
times that backward.
Source: Levine et al., End-to-End Training of Deep Visuomotor Policies, arXiv:1504.00702 (the softmax).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa_fast.kernels import dispatch, extension

OPERATOR = "jepa_fast::locate"
CHANNEL_STEP = 8


def locate_reference(
    images: Tensor, corners: Tensor, look: Tensor, spread: Tensor, log_temperature: Tensor, height: int, width: int
) -> Tensor:
    """The same in plain PyTorch, on whole frames and in the precision of its arguments: the truth of the tests."""
    margin = look.shape[2] - 1
    logits = F.conv_transpose2d(F.relu(F.conv2d(images[:, None], look, padding=margin)), spread)[:, 0]
    # Frames with as much around them as a window can reach beyond.
    rows = corners[:, 0, None] + torch.arange(logits.shape[1]) + logits.shape[1]
    columns = corners[:, 1, None] + torch.arange(logits.shape[2]) + logits.shape[2]
    around = logits.new_zeros(len(images), height + 3 * logits.shape[1], width + 3 * logits.shape[2])
    number = torch.arange(len(images))[:, None, None]
    around = around.index_put((number, rows[:, :, None] - margin, columns[:, None] - margin), logits)
    down, across = logits.shape[1:]
    frames = around[:, down : down + height, across : across + width]
    weights = (frames / log_temperature.exp()).flatten(1).softmax(dim=1).view(-1, height, width)
    x, y = (torch.arange(size, dtype=logits.dtype) for size in (width, height))
    return torch.stack([(weights.sum(dim=1) * x).sum(dim=1), (weights.sum(dim=2) * y).sum(dim=1)], dim=1)


def why_not_compiled(images: Tensor, channels: int) -> str | None:
    """Why these images do not go through the compiled op, or None."""
    if images.device.type != "cpu" or images.dtype not in (torch.float32, torch.float64):
        return f"images are {images.dtype} on {images.device.type}, the op takes float32 and float64 on a CPU"
    if images.requires_grad:
        return "images ask for a gradient"
    if channels % CHANNEL_STEP:
        return f"{channels} channels, the op takes multiples of {CHANNEL_STEP}"
    reason: str | None = dispatch.why_no_compiled_op("locate")
    return reason


def locate(
    images: Tensor, corners: Tensor, look: Tensor, spread: Tensor, log_temperature: Tensor, size: tuple[int, int]
) -> Tensor:
    """Positions [N, 2] of windows [N, h, w] at corners [N, 2] of frames of `size` (H, W)."""
    if why_not_compiled(images, look.shape[0]) is None:
        found: Tensor = torch.ops.jepa_fast.locate(images, corners, look, spread, log_temperature, *size)
        return found
    return locate_reference(images, corners, look, spread, log_temperature, *size)


def _locate_fake(
    images: Tensor, corners: Tensor, look: Tensor, spread: Tensor, log_temperature: Tensor, height: int, width: int
) -> Tensor:
    return images.new_empty(len(images), 2)


def _locate_backward_fake(
    gradient: Tensor, images: Tensor, corners: Tensor, look: Tensor, spread: Tensor, log_temperature: Tensor,
    height: int, width: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return tuple(images.new_empty(own.shape) for own in (look, spread, log_temperature))  # type: ignore[return-value]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.height, ctx.width = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    found = torch.ops.jepa_fast.locate_backward(gradient, *tensors, ctx.height, ctx.width)
    return None, None, *found, None, None


if extension.load() is None:
    torch.library.register_fake(OPERATOR, _locate_fake)
    torch.library.register_fake(f"{OPERATOR}_backward", _locate_backward_fake)
    torch.library.register_autograd(OPERATOR, _gradients, setup_context=_setup_context)
