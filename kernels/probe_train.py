"""Steps of Adam on a probe, D -> H -> 2 with ReLU, under the mean squared error of normalised locations.

    h = relu(W1 x + b1)      loss = mean (W2 h + b2 - target)^2

latents float32 [N, T, D], targets float32 [N, T, 2]; step s takes trajectories rows [s] (int64 [S, B]) at the time
steps steps [s] (int64 [S, B, K]), or at all of them, with learning rate rates [s] (float64 [S]). State float32 [3, P]:
the parameters and Adam's two moments, P = D H + 3 H + 2, each as W1 transposed, b1, W2, b2. The result is the state
after all steps. No gradient. `probe_outputs` is W2 h + b2 alone.

CPU: one compiled loop (csrc/cpu/convnext/probe_kernels.h), H a multiple of 16. Samples of a step are cut into 16 chunks
for the forward pass, hidden units into panels for the gradients and Adam, whatever the number of threads: the same bits
for any. Elsewhere plain PyTorch.

FLOPs per sample: 4 D H + 12 H. Bytes moved: latents once, and of the batch x and dh, [B K, D] and [B K, H], twice.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa_fast.kernels import dispatch, extension

OPERATOR, OUTPUTS_OPERATOR = "jepa_fast::probe_train", "jepa_fast::probe_outputs"
BETAS, EPS = (0.9, 0.999), 1e-8


def probe_train_reference(
    latents: Tensor, targets: Tensor, rows: Tensor, steps: Tensor | None, rates: Tensor, state: Tensor, hidden: int,
    first_step: int,
) -> Tensor:  # fmt: skip
    """The same in plain PyTorch and in the precision of the state: the truth of the tests."""
    parameters, mean, square = (part.clone() for part in state)
    for index in range(len(rows)):
        x, aims = latents[rows[index]], targets[rows[index]]
        if steps is not None:
            x, aims = (part.take_along_dim(steps[index][..., None], dim=1) for part in (x, aims))
        with torch.enable_grad():
            leaf = parameters.detach().requires_grad_()
            w1, b1, w2, b2 = split_probe(leaf, latents.shape[2], hidden)
            out = F.linear(F.relu(F.linear(x.to(leaf.dtype), w1, b1)), w2, b2)
            (gradient,) = torch.autograd.grad(F.mse_loss(out, aims.to(leaf.dtype)), leaf)
        step = first_step + index
        mean = BETAS[0] * mean + (1 - BETAS[0]) * gradient
        square = BETAS[1] * square + (1 - BETAS[1]) * gradient.square()
        root = (square / (1 - BETAS[1] ** step)).sqrt() + EPS
        parameters = parameters - float(rates[index]) / (1 - BETAS[0] ** step) * mean / root
    return torch.stack([parameters, mean, square])


def probe_outputs_reference(latents: Tensor, parameters: Tensor, hidden: int) -> Tensor:
    """The same in plain PyTorch."""
    w1, b1, w2, b2 = split_probe(parameters, latents.shape[1], hidden)
    return F.linear(F.relu(F.linear(latents, w1, b1)), w2, b2)


def split_probe(parameters: Tensor, dim: int, hidden: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """W1 [H, D], b1 [H], W2 [2, H] and b2 [2] of parameters [P]."""
    w1, b1, w2, b2 = torch.split(parameters, [dim * hidden, hidden, 2 * hidden, 2])
    return w1.view(dim, hidden).t(), b1, w2.view(2, hidden), b2


def join_probe(w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """Parameters [P] of W1 [H, D], b1 [H], W2 [2, H] and b2 [2]."""
    return torch.cat([w1.t().flatten(), b1, w2.flatten(), b2])


def probe_train(
    latents: Tensor, targets: Tensor, rows: Tensor, steps: Tensor | None, rates: Tensor, state: Tensor, hidden: int,
    first_step: int = 1,
) -> Tensor:  # fmt: skip
    """The state [3, P] after the steps, which are numbered from `first_step`, 1 at the beginning."""
    arguments: tuple[Any, ...] = latents, targets, rows, steps, rates, state, hidden, first_step
    if _is_compiled(latents, hidden):
        trained: Tensor = torch.ops.jepa_fast.probe_train(*arguments)
        return trained
    return probe_train_reference(*arguments)


def probe_outputs(latents: Tensor, parameters: Tensor, hidden: int) -> Tensor:
    """Normalised locations [M, 2] that a probe with `parameters` [P] reads off latents float32 [M, D]; no gradient."""
    if _is_compiled(latents, hidden):
        found: Tensor = torch.ops.jepa_fast.probe_outputs(latents, parameters, hidden)
        return found
    return probe_outputs_reference(latents, parameters, hidden)


def _is_compiled(latents: Tensor, hidden: int) -> bool:
    is_float = latents.device.type == "cpu" and latents.dtype == torch.float32
    return is_float and hidden % 16 == 0 and extension.has_kernel("probe_train", "cpu")


def backend() -> str:
    """What probes are trained on, for the log."""
    missing = dispatch.why_no_extension("probe_train", "cpu")
    return "compiled cpu kernel" if missing is None else f"{dispatch.PLAIN}, {missing}"


def _probe_train_fake(
    latents: Tensor, targets: Tensor, rows: Tensor, steps: Tensor | None, rates: Tensor, state: Tensor, hidden: int,
    first_step: int,
) -> Tensor:  # fmt: skip
    return torch.empty_like(state)


def _probe_outputs_fake(latents: Tensor, parameters: Tensor, hidden: int) -> Tensor:
    return latents.new_empty(latents.shape[0], 2)


if extension.has_kernel("probe_train", "cpu"):
    torch.library.register_fake(OPERATOR, _probe_train_fake)
    torch.library.register_fake(OUTPUTS_OPERATOR, _probe_outputs_fake)
