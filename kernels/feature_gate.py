"""How likely an agent moves, by a product of gates on the lines around it, as logarithms.

    g = sigmoid(l_1) ... sigmoid(l_4)      log_move = log g      log_stay = log(1 - g)
    l = f / (1 + |f| / surest), f of two borders relu(W1 x) w2, of two pieces of wall relu(V2 relu(V1 x)) v3

positions [B, T, 2], what lies where in layout [B, 2, 2, 2] (borders and wall, x and y, low and high), actions [B, T,
2], all in one unit. The gates' inputs x are distances ahead and behind along the motion, in units of its length and cut
off at `reach` of them, and its direction: border (ahead, behind, |direction|), wall (both faces, depth past the door's
edge, motion across and along). border_expand [Hb, 3], border_project [1, Hb], wall_expand [Hw, 5], wall_middle [Hw,
Hw], wall_project [1, Hw]. log_stay and log_move [B, T]. float32 or float64, not under autocast. Gradients of positions
and weights; no second derivative.

Saved for the backward pass: nothing but the arguments.

CPU: compiled for hidden layers of multiples of 16 (csrc/cpu/convnext/feature_gate_kernels.h), 32 steps at a time in the
first cache; deterministic, sums beyond those in float64. Elsewhere, and where layout or actions ask for a gradient,
plain PyTorch.

FLOPs per step: 4 (Hw^2 + 6 Hw + 4 Hb) forward, three times that backward with the forward pass made again.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa_fast.kernels import dispatch, extension

OPERATOR = "jepa_fast::feature_gate"
HIDDEN_STEP = 16


class GateWeights(NamedTuple):
    """Of both networks, none of which has a bias."""

    border_expand: Tensor  # [Hb, 3]
    border_project: Tensor  # [1, Hb]
    wall_expand: Tensor  # [Hw, 5]
    wall_middle: Tensor  # [Hw, Hw]
    wall_project: Tensor  # [1, Hw]


def feature_gate_reference(
    positions: Tensor, layout: Tensor, actions: Tensor, weights: GateWeights, reach: float, surest: float
) -> tuple[Tensor, Tensor]:
    """The same in plain PyTorch and in the precision of its arguments, of steps [N, 2] too: the truth of the tests."""
    layout = layout.view(len(layout), *[1] * (positions.dim() - 2), 2, 2, 2)
    length = torch.linalg.vector_norm(actions, dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    directions = actions / length
    distances = ((layout - positions[..., None, :, None]) / length[..., None, None]).clamp(-reach, reach)
    ahead = torch.where((actions < 0)[..., None, :, None], -distances.flip(-1), distances)
    borders = torch.cat([ahead[..., 0, :, :], directions.abs()[..., None]], dim=-1)  # [..., 2, 3]
    # Two pieces of wall, one on either side of the door: faces and motion across them, depth and motion along them.
    faces, (low, high) = ahead[..., 1, 0, :], distances[..., 1, 1, :].unbind(dim=-1)
    across, along = directions[..., 0].abs(), directions[..., 1]
    pieces = torch.stack(
        [
            torch.stack([*faces.unbind(dim=-1), low, across, -along], dim=-1),
            torch.stack([*faces.unbind(dim=-1), -high, across, along], dim=-1),
        ],
        dim=-2,
    )  # [..., 2, 5]
    border = F.linear(F.relu(F.linear(borders, weights.border_expand)), weights.border_project)
    hidden = F.relu(F.linear(F.relu(F.linear(pieces, weights.wall_expand)), weights.wall_middle))
    raw = torch.cat([border, F.linear(hidden, weights.wall_project)], dim=-2).squeeze(-1)  # [..., 4]
    logits = raw / (1 + raw.abs() / surest)
    # Logarithms all the way: a gate that is sure and wrong must still feel how wrong it is. The agent stays if the
    # first gate is closed, or if the second is and the first is not, or ...
    log_open = F.logsigmoid(logits)
    log_stay = torch.logsumexp(log_open - logits + log_open.cumsum(dim=-1) - log_open, dim=-1)
    return log_stay, log_open.sum(dim=-1)


def why_not_compiled(positions: Tensor, layout: Tensor, actions: Tensor, hidden: tuple[int, int]) -> str | None:
    """Why these steps do not go through the compiled op, or None."""
    if positions.device.type != "cpu" or positions.dtype not in (torch.float32, torch.float64):
        return f"positions are {positions.dtype} on {positions.device.type}, the op takes float32 and float64 on a CPU"
    if positions.dim() != 3:
        return f"positions have {positions.dim()} dimensions, the op takes [B, T, 2]"
    if layout.requires_grad or actions.requires_grad:
        return "layout or actions ask for a gradient"
    if any(width % HIDDEN_STEP for width in hidden):
        return f"hidden layers of {hidden[0]} and {hidden[1]}, the op takes multiples of {HIDDEN_STEP}"
    reason: str | None = dispatch.why_no_compiled_op("feature_gate")
    return reason


def feature_gate(
    positions: Tensor, layout: Tensor, actions: Tensor, weights: GateWeights, reach: float, surest: float
) -> tuple[Tensor, Tensor]:
    """Logarithms of the chances of staying and of moving, [B, T] each."""
    hidden = weights.border_expand.shape[0], weights.wall_expand.shape[0]
    if why_not_compiled(positions, layout, actions, hidden) is None:
        chances: tuple[Tensor, Tensor] = torch.ops.jepa_fast.feature_gate(
            positions, layout, actions, *weights, reach, surest
        )
        return chances
    return feature_gate_reference(positions, layout, actions, weights, reach, surest)


def _fake(positions: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    return positions.new_empty(positions.shape[:2]), positions.new_empty(positions.shape[:2])


def _backward_fake(
    to_stay: Tensor, to_move: Tensor, positions: Tensor, layout: Tensor, actions: Tensor, *arguments: Any
) -> tuple[Tensor, ...]:
    *weights, _, _ = arguments
    return tuple(own.new_empty(own.shape) for own in (positions, *weights))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.reach, ctx.surest = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx: Any, to_stay: Tensor, to_move: Tensor) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    positions, *weights = torch.ops.jepa_fast.feature_gate_backward(to_stay, to_move, *tensors, ctx.reach, ctx.surest)
    return positions, None, None, *weights, None, None


if extension.load() is None:
    torch.library.register_fake(OPERATOR, _fake)
    torch.library.register_fake(f"{OPERATOR}_backward", _backward_fake)
    torch.library.register_autograd(OPERATOR, _gradients, setup_context=_setup_context)
