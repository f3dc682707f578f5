"""All steps of the predictor, each fed the state before it: one launch forward, one backward.

    r  = LN(s) + LN(Wa a + ba)
    h  = W1 r + b1
    s' = residual + W2 m(gelu(LN(h))) + b2        m: dropout mask; activation "before_norm": W2 m(LN(gelu(h)))

first s [B, D], actions a [B, S, A] -> states [B, S, D]; the residual is r ("sum") or LN(s) ("state"). W1 [4D, D],
W2 [D, 4D]. float32 or float64; LayerNorm with eps 1e-5. Under bfloat16 autocast both products with W1 and W2 take
bfloat16 factors, h and its gradient are rounded to bfloat16; states, statistics and sums are float32 all the same.
Dropout masks are those of `jepa_fast.kernels.dropout` for [B, S, 4D], bit for bit.

The Triton kernels take float32 states, D in 16, 32, 64, 128, and actions of two numbers, on CUDA; the compiled CPU
kernels (csrc/cpu/convnext/rollout_*.h) any D and A. All else, bfloat16 autocast on a CPU included, is plain PyTorch.
Gradients of W1 and W2 are one matrix product each over all B S rows, those of vectors are sums in a fixed order:
deterministic, for any number of threads. Nothing is read back to the host.

Bytes moved, s per element of h: forward B S (8 D s + 4 D), kept for the backward, whose recurrence moves
B S (12 D s + 16 D) and all behind it about twice that. The weights, 8 D^2 s, pass from the L2 cache, or half of them
from shared memory, in every step of every 8 trajectories.
FLOPs: 16 B S D^2 forward, 32 B S D^2 backward.
Source: the predictor of docs/models.md.
"""

import functools
import logging
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa_fast.kernels import dispatch
from jepa_fast.kernels.dropout import SITE_PREDICTOR, dropout_mask

OPERATOR = "jepa_fast::rollout"
SCHEMA = (
    "(Tensor first, Tensor actions, Tensor clock, Tensor[] weights, float dropout, bool state_residual,"
    " bool gelu_first, bool bfloat16, bool keep) -> (Tensor states, Tensor hidden, Tensor dropped, Tensor statistics)"
)
BACKWARD_OPERATOR = "jepa_fast::rollout_backward"
BACKWARD_SCHEMA = (
    "(Tensor gradient, Tensor first, Tensor actions, Tensor clock, Tensor[] weights, Tensor states, Tensor hidden,"
    " Tensor dropped, Tensor statistics, float dropout, bool state_residual, bool gelu_first, bool actions_wanted) ->"
    " (Tensor first_gradient, Tensor actions_gradient, Tensor expand_gradient, Tensor project_gradient, Tensor vectors)"
)
DTYPES = (torch.float32, torch.float64)
TRITON_DIMS = (16, 32, 64, 128)
TRITON_ACTION_SIZES = (2,)
EPS = 1e-5

Residual = Literal["sum", "state"]
Activation = Literal["after_norm", "before_norm"]

logger = logging.getLogger(__name__)


class RolloutWeights(NamedTuple):
    """The predictor's parameters, in the order of the op."""

    state_norm_weight: Tensor  # [D]
    state_norm_bias: Tensor  # [D]
    action_weight: Tensor  # Wa [D, A]
    action_bias: Tensor  # ba [D]
    action_norm_weight: Tensor  # [D]
    action_norm_bias: Tensor  # [D]
    expand_weight: Tensor  # W1 [4D, D]
    expand_bias: Tensor  # b1 [4D]
    norm_weight: Tensor  # [4D]
    norm_bias: Tensor  # [4D]
    project_weight: Tensor  # W2 [D, 4D]
    project_bias: Tensor  # b2 [D]


def rollout_reference(
    first: Tensor,
    actions: Tensor,
    weights: RolloutWeights,
    clock: Tensor,
    dropout: float = 0.0,
    residual: Residual = "sum",
    activation: Activation = "after_norm",
) -> Tensor:
    """The same in plain PyTorch and in the precision of its arguments: the truth of the tests."""
    return _unroll(first, actions, weights, clock, dropout, residual == "state", activation == "before_norm", False)[0]


def _unroll(
    first: Tensor, actions: Tensor, weights: RolloutWeights, clock: Tensor, dropout: float, state_residual: bool,
    gelu_first: bool, bfloat16: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """States, both hidden values, and mean and scale of the norm between them, from the definitions."""
    w, masks = weights, _masks(first, actions, clock, dropout)
    state, states, hiddens, droppeds, statistics = first, [], [], [], []
    for t in range(actions.shape[1]):
        normed = _norm(state, w.state_norm_weight, w.state_norm_bias)[0]
        action = F.linear(actions[:, t], w.action_weight, w.action_bias)
        fused = normed + _norm(action, w.action_norm_weight, w.action_norm_bias)[0]
        hidden = _product(fused, w.expand_weight.t(), bfloat16) + w.expand_bias
        hidden = hidden.bfloat16() if bfloat16 else hidden
        value = F.gelu(hidden.to(first.dtype)) if gelu_first else hidden.to(first.dtype)
        value, mean, scale = _norm(value, w.norm_weight, w.norm_bias)
        value = value if gelu_first else F.gelu(value)
        value = value if masks is None else value * masks[:, t]
        dropped = value.bfloat16() if bfloat16 else value
        update = _product(value, w.project_weight.t(), bfloat16) + w.project_bias
        state = (normed if state_residual else fused) + update
        states.append(state)
        hiddens.append(hidden)
        droppeds.append(dropped)
        statistics.append(torch.cat([mean, scale], dim=1))
    return (
        torch.stack(states, dim=1),
        torch.stack(hiddens, dim=1),
        torch.stack(droppeds, dim=1),
        torch.stack(statistics, dim=1),
    )


def _norm(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """LayerNorm over the last axis, and the mean and scale [.., 1] that it took off."""
    out, mean, scale = torch.native_layer_norm(x, [x.shape[-1]], weight, bias, EPS)
    return out, mean, scale


def _norm_backward(
    gradient: Tensor, x: Tensor, mean: Tensor, scale: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias."""
    shape = [x.shape[-1]]
    dx, dweight, dbias = torch.ops.aten.native_layer_norm_backward(
        gradient, x, shape, mean, scale, weight, bias, [True, True, True]
    )
    return dx, dweight, dbias


def _product(left: Tensor, right: Tensor, bfloat16: bool) -> Tensor:
    """left @ right, of factors rounded to bfloat16 if so asked; in the type of `left`."""
    return (left.bfloat16() @ right.bfloat16()).to(left.dtype) if bfloat16 else left @ right


def _masks(first: Tensor, actions: Tensor, clock: Tensor, dropout: float) -> Tensor | None:
    """Dropout masks [B, S, 4D]."""
    if dropout == 0:
        return None
    shape = (*actions.shape[:2], 4 * first.shape[1])
    return dropout_mask(shape, dropout, clock, SITE_PREDICTOR).to(first.dtype)


def _rollout_plain(
    first: Tensor, actions: Tensor, clock: Tensor, weights: Sequence[Tensor], *arguments: Any
) -> tuple[Tensor, ...]:
    *options, keep = arguments
    states, *kept = _unroll(first, actions, RolloutWeights(*weights), clock, *options)
    return states, *(tensor if keep else tensor.new_empty(0) for tensor in kept)


def _rollout_backward_plain(
    gradient: Tensor, first: Tensor, actions: Tensor, clock: Tensor, weights: Sequence[Tensor], states: Tensor,
    hidden: Tensor, dropped: Tensor, statistics: Tensor, dropout: float, state_residual: bool, gelu_first: bool,
    actions_wanted: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    w, bfloat16 = RolloutWeights(*weights), hidden.dtype == torch.bfloat16
    masks = _masks(first, actions, clock, dropout)
    actions_gradient = torch.empty_like(actions)
    totals = {name: torch.zeros_like(weight) for name, weight in w._asdict().items()}
    carried = torch.zeros_like(first)
    for t in range(actions.shape[1] - 1, -1, -1):
        # What the forward had, from the state and the hidden values that it left.
        state = states[:, t - 1] if t > 0 else first
        action = F.linear(actions[:, t], w.action_weight, w.action_bias)
        normed, state_mean, state_scale = _norm(state, w.state_norm_weight, w.state_norm_bias)
        moved, action_mean, action_scale = _norm(action, w.action_norm_weight, w.action_norm_bias)
        raw = hidden[:, t].to(first.dtype)
        value = F.gelu(raw) if gelu_first else raw
        # native_layer_norm_backward reads them as if contiguous.
        mean, scale = statistics[:, t, :1].contiguous(), statistics[:, t, 1:].contiguous()
        out = (value - mean) * scale * w.norm_weight + w.norm_bias

        total = gradient[:, t] + carried
        slope = _product(total, w.project_weight, bfloat16)
        slope = slope if masks is None else slope * masks[:, t]
        slope = slope if gelu_first else torch.ops.aten.gelu_backward(slope, out)
        slope, norm_weight, norm_bias = _norm_backward(slope, value, mean, scale, w.norm_weight, w.norm_bias)
        slope = torch.ops.aten.gelu_backward(slope, raw) if gelu_first else slope
        fused_gradient = _product(slope, w.expand_weight, bfloat16)
        moved_gradient = fused_gradient if state_residual else fused_gradient + total
        carried, state_norm_weight, state_norm_bias = _norm_backward(
            fused_gradient + total, state, state_mean, state_scale, w.state_norm_weight, w.state_norm_bias
        )
        action_gradient, action_norm_weight, action_norm_bias = _norm_backward(
            moved_gradient, action, action_mean, action_scale, w.action_norm_weight, w.action_norm_bias
        )
        actions_gradient[:, t] = action_gradient @ w.action_weight
        gradients = RolloutWeights(
            state_norm_weight, state_norm_bias, action_gradient.t() @ actions[:, t], action_gradient.sum(0),
            action_norm_weight, action_norm_bias, _product(slope.t(), normed + moved, bfloat16), slope.sum(0),
            norm_weight, norm_bias, _product(total.t(), dropped[:, t].to(first.dtype), bfloat16), total.sum(0),
        )  # fmt: skip
        for name, value in gradients._asdict().items():
            totals[name] += value
    sums = RolloutWeights(**totals)
    return (
        carried,
        actions_gradient if actions_wanted else actions.new_empty(0),
        sums.expand_weight,
        sums.project_weight,
        torch.cat([vector.flatten() for vector in _vectors(sums)]),
    )


def _vectors(weights: RolloutWeights) -> tuple[Tensor, ...]:
    """All but both matrices, as the backward op lays out their gradients."""
    w = weights
    return (
        w.expand_bias, w.norm_weight, w.norm_bias, w.project_bias, w.state_norm_weight, w.state_norm_bias,
        w.action_norm_weight, w.action_norm_bias, w.action_bias, w.action_weight,
    )  # fmt: skip


def why_no_triton(first: Tensor, actions: Tensor) -> str | None:
    """Why these states and actions on a CUDA device do not go through the Triton kernels, or None."""
    reason = dispatch.why_no_triton("cuda")
    if reason is not None:
        return reason
    if first.dtype != torch.float32:
        return f"states are {first.dtype}, the kernels take float32"
    if first.shape[1] not in TRITON_DIMS:
        return f"states have {first.shape[1]} numbers, the kernels take {', '.join(map(str, TRITON_DIMS))}"
    if actions.shape[2] not in TRITON_ACTION_SIZES:
        return f"actions have {actions.shape[2]} numbers, the kernels take {', '.join(map(str, TRITON_ACTION_SIZES))}"
    return None


@functools.cache
def _announce_plain(device_type: str, reason: str) -> None:
    logger.warning("%s on %s runs in plain PyTorch: %s", OPERATOR, device_type, reason)


def _rollout_cuda(first: Tensor, actions: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    reason = why_no_triton(first, actions)
    if reason is not None:
        _announce_plain(first.device.type, reason)
        return _rollout_plain(first, actions, *arguments)
    from jepa_fast.kernels.triton.rollout import rollout_forward

    return rollout_forward(first, actions, *arguments)


def _rollout_backward_cuda(gradient: Tensor, first: Tensor, actions: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    if why_no_triton(first, actions) is not None:
        return _rollout_backward_plain(gradient, first, actions, *arguments)
    from jepa_fast.kernels.triton.rollout_backward import rollout_backward

    return rollout_backward(gradient, first, actions, *arguments)


def _rollout_cpu(*arguments: Any) -> tuple[Tensor, ...]:
    *inputs, bfloat16, keep = arguments
    reason = "bfloat16 autocast is on" if bfloat16 else dispatch.why_no_compiled_rollout()
    if reason is not None:
        _announce_plain("cpu", reason)
        return _rollout_plain(*arguments)
    return tuple(torch.ops.jepa_fast.rollout_cpu(*inputs, keep))


def _rollout_backward_cpu(*arguments: Any) -> tuple[Tensor, ...]:
    is_plain = arguments[6].dtype == torch.bfloat16 or dispatch.why_no_compiled_rollout() is not None
    return (
        _rollout_backward_plain(*arguments) if is_plain else tuple(torch.ops.jepa_fast.rollout_cpu_backward(*arguments))
    )


def _rollout_fake(
    first: Tensor, actions: Tensor, clock: Tensor, weights: Sequence[Tensor], dropout: float, state_residual: bool,
    gelu_first: bool, bfloat16: bool, keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    (batch, steps, _), dim = actions.shape, first.shape[1]
    dtype = torch.bfloat16 if bfloat16 else first.dtype
    hidden, dropped = (first.new_empty((batch, steps, 4 * dim) if keep else 0, dtype=dtype) for _ in range(2))
    return first.new_empty(batch, steps, dim), hidden, dropped, first.new_empty((batch, steps, 2) if keep else 0)


def _rollout_backward_fake(
    gradient: Tensor, first: Tensor, actions: Tensor, clock: Tensor, weights: Sequence[Tensor], states: Tensor,
    hidden: Tensor, dropped: Tensor, statistics: Tensor, dropout: float, state_residual: bool, gelu_first: bool,
    actions_wanted: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    dim = first.shape[1]
    return (
        first.new_empty(first.shape),
        actions.new_empty(actions.shape if actions_wanted else 0),
        first.new_empty(4 * dim, dim),
        first.new_empty(dim, 4 * dim),
        first.new_empty((18 + actions.shape[2]) * dim),
    )


torch.library.define(OPERATOR, SCHEMA)
torch.library.define(BACKWARD_OPERATOR, BACKWARD_SCHEMA)
for _device, _forward_kernel, _backward_kernel in (
    ("cpu", _rollout_cpu, _rollout_backward_cpu),
    ("cuda", _rollout_cuda, _rollout_backward_cuda),
):
    torch.library.register_kernel(OPERATOR, _device, _forward_kernel)
    torch.library.register_kernel(BACKWARD_OPERATOR, _device, _backward_kernel)
    # Autocast is looked at in `rollout`: the op has float32 states under it too.
    torch.library.register_autocast(OPERATOR, _device, torch.float32)
torch.library.register_fake(OPERATOR, _rollout_fake)
torch.library.register_fake(BACKWARD_OPERATOR, _rollout_backward_fake)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    first, actions, clock, weights, *options, _, _ = inputs
    ctx.options = options
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(first, actions, clock, *output, *weights)


def _backward(ctx: Any, gradient: Tensor | None, *_: None) -> tuple[Any, ...]:
    if gradient is None:
        return None, None, None, [None] * 12, None, None, None, None, None
    first, actions, clock, states, hidden, dropped, statistics, *weights = ctx.saved_tensors
    wanted = ctx.needs_input_grad[1]
    # A backward called under autocast would round products that the forward did not.
    with torch.autocast(gradient.device.type, enabled=False):
        first_gradient, actions_gradient, expand, project, vectors = torch.ops.jepa_fast.rollout_backward(
            gradient, first, actions, clock, weights, states, hidden, dropped, statistics, *ctx.options, wanted
        )
    shapes = _vectors(RolloutWeights(*weights))
    pieces = vectors.split([shape.numel() for shape in shapes])
    b1, norm_weight, norm_bias, b2, state_weight, state_bias, action_weight, action_bias, ba, wa = (
        piece.view_as(shape) for piece, shape in zip(pieces, shapes, strict=True)
    )
    gradients = [
        state_weight, state_bias, wa, ba, action_weight, action_bias, expand, b1, norm_weight, norm_bias, project, b2
    ]  # fmt: skip
    return first_gradient, actions_gradient if wanted else None, None, gradients, None, None, None, None, None


torch.library.register_autograd(OPERATOR, _backward, setup_context=_setup_context)


def rollout(
    first: Tensor,
    actions: Tensor,
    weights: RolloutWeights,
    clock: Tensor,
    *,
    dropout: float = 0.0,
    residual: Residual = "sum",
    activation: Activation = "after_norm",
) -> Tensor:
    """Predicted states [B, S, D] from first states [B, D] and actions [B, S, A], in the type of the weights.

    Args:
        first: gets a gradient, as do the actions and all weights.
        actions: A numbers per step.
        weights: float32, or float64 in plain PyTorch.
        clock: int64 [3], the dropout clock of `jepa_fast.kernels.dropout`.
        dropout: rate on the hidden layer; 0 draws no mask.
        residual: what the update is added to.
        activation: whether the GELU follows the hidden norm or comes before it.

    Raises:
        ValueError: shapes, types or options outside what the module describes.
    """
    dtype = weights.expand_weight.dtype
    first, actions = first.to(dtype), actions.to(dtype)
    _check(first, actions, weights, clock, dropout)
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in (first, actions, *weights))
    kind = first.device.type
    bfloat16 = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.bfloat16
    states: Tensor = torch.ops.jepa_fast.rollout(
        first, actions, clock, list(weights), dropout, residual == "state", activation == "before_norm",
        bfloat16 and dtype == torch.float32, keep,
    )[0]  # fmt: skip
    return states


def _check(first: Tensor, actions: Tensor, weights: RolloutWeights, clock: Tensor, dropout: float) -> None:
    """Raise ValueError unless the arguments of `rollout` fit together."""
    if first.dim() != 2:
        raise ValueError(f"first: got shape {tuple(first.shape)}, expected [B, D]")
    size = weights.action_weight.shape[-1]
    if actions.dim() != 3 or actions.shape[0] != first.shape[0] or actions.shape[1] < 1 or actions.shape[2] != size:
        raise ValueError(f"actions: got shape {tuple(actions.shape)}, expected ({first.shape[0]}, at least 1, {size})")
    if first.dtype not in DTYPES:
        raise ValueError(f"weights: got {first.dtype}, expected float32 or float64")
    dim = first.shape[1]
    shapes = [(dim,), (dim,), (dim, size), (dim,), (dim,), (dim,), (4 * dim, dim)]
    shapes += [(4 * dim,), (4 * dim,), (4 * dim,), (dim, 4 * dim), (dim,)]
    for (name, weight), shape in zip(weights._asdict().items(), shapes, strict=True):
        if tuple(weight.shape) != shape or weight.dtype != first.dtype:
            raise ValueError(f"{name}: got {weight.dtype} {tuple(weight.shape)}, expected {first.dtype} {shape}")
    if tuple(clock.shape) != (3,) or clock.dtype != torch.int64:
        raise ValueError(f"clock: got {clock.dtype} {tuple(clock.shape)}, expected torch.int64 (3,)")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout: got {dropout}, expected a rate in [0, 1)")
