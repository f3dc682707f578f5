"""Parts of the gated family: the lift's columns, and how likely latents are under two outcomes of a step.

    gated_columns     W = spread (x, y), x along the weight's first column, y along what of its second is orthogonal
    gated_likelihood  nll = mean of -log[exp(log_move) N(z', z + s, sigma^2) + exp(log_stay) N(z', z, sigma^2)],
                      without the constants of N; watched beside it: the mean squared error of the expected next
                      latents z + exp(log_move) s, those latents, and the mean of exp(log_move)

weight [D, 2]. latents [B, T + 1, D], z and z' two in turn; step s [B, T, D], log_stay and log_move [B, T], sigma a
scalar. float32 or float64, not under autocast. Gradients of the weight, and of nll to latents, step, log_stay and
log_move; no second derivative.

Saved for the backward pass: nothing but the arguments.

CPU: compiled (csrc/cpu/gated.cpp); deterministic, sums beyond a latent in float64. Elsewhere plain PyTorch.

Bytes moved by the likelihood, in sizes A of step: forward 3 A, backward 4 A. FLOPs per element: 10 forward, 14
backward.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa_fast.kernels import dispatch, extension

COLUMNS, LIKELIHOOD = "jepa_fast::gated_columns", "jepa_fast::gated_likelihood"


class Likelihood(NamedTuple):
    """What `gated_likelihood` gives."""

    parts: Tensor  # [3]: nll, squared error and probability of moving; only the first has a gradient
    expected: Tensor  # [B, T, D], without a gradient


def gated_columns_reference(weight: Tensor, spread: float) -> Tensor:
    """The same in plain PyTorch: the truth of the tests."""
    x, y = weight.unbind(dim=1)
    x = F.normalize(x, dim=0)
    y = F.normalize(y - (x * y).sum() * x, dim=0)
    return spread * torch.stack([x, y], dim=1)


def gated_likelihood_reference(
    stayed: Tensor, step: Tensor, log_stay: Tensor, log_move: Tensor, following: Tensor, sigma: Tensor
) -> Likelihood:
    """The same of latents before and after each step, both [B, T, D], in plain PyTorch: the truth of the tests."""
    nll = mixture_nll(stayed, step, log_stay, log_move, following, sigma).mean()
    with torch.no_grad():
        move = log_move.exp()
        expected = torch.addcmul(stayed, move[..., None], step)
        watched = F.mse_loss(expected, following), move.mean()
    return Likelihood(torch.stack([nll, *watched]), expected)


def mixture_nll(
    stayed: Tensor, step: Tensor, log_stay: Tensor, log_move: Tensor, following: Tensor, sigma: Tensor
) -> Tensor:
    """-log of the two outcomes' likelihood of `following` [..., D], Gaussians of standard deviation `sigma`: [...]."""
    gap = following - stayed
    distances = torch.stack([gap.square().sum(dim=-1), (gap - step).square().sum(dim=-1)])
    exponents = torch.stack([log_stay, log_move]) - distances / (2 * sigma.square())
    return -torch.logsumexp(exponents, dim=0)


def why_not_compiled(like: Tensor) -> str | None:
    """Why tensors of the device and dtype of `like` do not go through the compiled ops, or None."""
    if like.device.type != "cpu" or like.dtype not in (torch.float32, torch.float64):
        return f"tensors are {like.dtype} on {like.device.type}, the op takes float32 and float64 on a CPU"
    reason: str | None = dispatch.why_no_compiled_op("gated_likelihood")
    return reason


def gated_columns(weight: Tensor, spread: float) -> Tensor:
    """W [D, 2], its columns orthogonal and of length `spread`, of a weight [D, 2]."""
    if why_not_compiled(weight) is not None:
        return gated_columns_reference(weight, spread)
    columns: Tensor = torch.ops.jepa_fast.gated_columns(weight, spread)
    return columns


def gated_likelihood(latents: Tensor, step: Tensor, log_stay: Tensor, log_move: Tensor, sigma: Tensor) -> Likelihood:
    """The likelihood of latents [B, T + 1, D] under both outcomes, and what is watched beside it."""
    if why_not_compiled(latents) is not None:
        return gated_likelihood_reference(latents[:, :-1], step, log_stay, log_move, latents[:, 1:], sigma)
    return Likelihood(*torch.ops.jepa_fast.gated_likelihood(latents, step, log_stay, log_move, sigma))


def _columns_fake(weight: Tensor, spread: float) -> Tensor:
    return weight.new_empty(weight.shape)


def _columns_backward_fake(gradient: Tensor, weight: Tensor, spread: float) -> Tensor:
    return weight.new_empty(weight.shape)


def _columns_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    weight, ctx.spread = inputs
    ctx.save_for_backward(weight)


def _columns_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
    return torch.ops.jepa_fast.gated_columns_backward(gradient, *ctx.saved_tensors, ctx.spread), None


def _likelihood_fake(
    latents: Tensor, step: Tensor, log_stay: Tensor, log_move: Tensor, sigma: Tensor
) -> tuple[Tensor, Tensor]:
    return latents.new_empty(3), step.new_empty(step.shape)


def _likelihood_backward_fake(gradient: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(one.new_empty(one.shape) for one in tensors[:4])


def _likelihood_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs)


def _likelihood_gradients(ctx: Any, to_parts: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    return *torch.ops.jepa_fast.gated_likelihood_backward(to_parts, *ctx.saved_tensors), None


if extension.load() is None:
    torch.library.register_fake(COLUMNS, _columns_fake)
    torch.library.register_fake(f"{COLUMNS}_backward", _columns_backward_fake)
    torch.library.register_autograd(COLUMNS, _columns_gradients, setup_context=_columns_setup)
    torch.library.register_fake(LIKELIHOOD, _likelihood_fake)
    torch.library.register_fake(f"{LIKELIHOOD}_backward", _likelihood_backward_fake)
    torch.library.register_autograd(LIKELIHOOD, _likelihood_gradients, setup_context=_likelihood_setup)
