"""The terms of the VICReg energy and their gradient, each from one pass over the states, exact over several processes.

    invariance   mean over all elements of (x - target)^2, 0 without a target
    variance     mean_j max(0, gamma - sigma_j),  sigma_j = sqrt(S_jj + eps)
    covariance   sum_{i != j} S_ij^2 / divisor,   S = Xc^T Xc / (N - 1),  Xc = x - mean

    dx = Xc M + 2 g_inv (x - target) / (N D)      M_ij = 4 g_cov S_ij / (divisor (N - 1))  for i != j
                                                  M_jj = -g_var 1[sigma_j < gamma] / (D (N - 1) sigma_j)

x [G, N, D] or [N, D], target of the same shape, float32, float64 or bfloat16, any strides; N >= 2, 1 <= D <= 1024.
Each of the G groups has its own statistics; terms are averaged over groups. divisor is D or D (D - 1).
The terms are float64 for float64 input, else float32: products of values centred before they are rounded, sums in
float32 over a block of rows at most, in float64 beyond. The diagonal is left out, never subtracted. Gradients have the
dtype of x. Autocast changes nothing. Deterministic: the same bits for any number of threads.

CUDA has float32 and bfloat16 alone; its kernels have been compiled, not run on a device yet.

Bytes moved, s per element: CPU forward N D s (twice with a target), backward 2 N D s (3 with a target, 4 with its
gradient); CUDA reads x once more forward. The centred matrix is never written.
FLOPs: N D^2 forward (half of S), 2 N D^2 backward.
Source: Bardes, Ponce, LeCun, VICReg, arXiv:2105.04906; Chan, Golub, LeVeque, The American Statistician 37, 1983.
"""

import functools
import logging
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from jepa_fast.kernels import extension

OPERATOR = "jepa_fast::vicreg"
SCHEMA = (
    "(Tensor x, Tensor? target, float gamma, float eps, float divisor) -> "
    "(Tensor terms, Tensor mean, Tensor covariance)"
)
BACKWARD_OPERATOR = "jepa_fast::vicreg_backward"
BACKWARD_SCHEMA = (
    "(Tensor gradients, Tensor x, Tensor? target, Tensor mean, Tensor covariance, float gamma, float eps,"
    " float divisor, bool target_gradient) -> (Tensor x_gradient, Tensor target_gradient)"
)
DTYPES = (torch.float32, torch.float64, torch.bfloat16)
MOST_COLUMNS = 1024

Divisor = Literal["dim", "pairs"]

logger = logging.getLogger(__name__)


def vicreg_reference(
    x: Tensor, target: Tensor | None, gamma: float = 1.0, eps: float = 1e-4, divisor: Divisor = "dim"
) -> Tensor:
    """The three terms [3] of x [G, N, D] in plain PyTorch and in the precision of x: the truth of the tests."""
    terms, _, _ = _statistics(x, target, gamma, eps, _divisor_value(x.shape[-1], divisor))
    return terms


def _statistics(
    x: Tensor, target: Tensor | None, gamma: float, eps: float, divisor: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Terms [3], mean [G, D] and covariance [G, D, D], from the definitions."""
    mean = x.mean(dim=1)
    centred = x - mean[:, None]
    covariance = centred.transpose(1, 2) @ centred / (x.shape[1] - 1)
    invariance = x.new_zeros(()) if target is None else (x - target).square().mean()
    return torch.stack([invariance, *_regularisers(covariance, gamma, eps, divisor)]), mean, covariance


def _regularisers(covariance: Tensor, gamma: float, eps: float, divisor: float) -> tuple[Tensor, Tensor]:
    """Variance and covariance term of covariance matrices [G, D, D]."""
    sigma = (torch.diagonal(covariance, dim1=1, dim2=2) + eps).sqrt()
    off_diagonal = covariance.masked_fill(_diagonal_mask(covariance), 0.0)
    return torch.relu(gamma - sigma).mean(), off_diagonal.square().sum(dim=(1, 2)).mean() / divisor


def _diagonal_mask(covariance: Tensor) -> Tensor:
    return torch.eye(covariance.shape[-1], dtype=torch.bool, device=covariance.device)


def _divisor_value(dim: int, divisor: Divisor) -> float:
    return float(dim if divisor == "dim" else dim * (dim - 1))


def _result_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _check(x: Tensor, target: Tensor | None, gamma: float, eps: float, divisor: float) -> None:
    """Raise ValueError unless the arguments of the op, x as [G, N, D], have terms."""
    if x.dim() != 3 or x.shape[0] < 1:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected [N, D] or at least one group in [G, N, D]")
    if x.shape[1] < 2:
        raise ValueError(f"x: got N = {x.shape[1]} rows, expected at least 2")
    if not 1 <= x.shape[2] <= MOST_COLUMNS:
        raise ValueError(f"x: got D = {x.shape[2]} columns, expected 1 to {MOST_COLUMNS}")
    if x.dtype not in DTYPES:
        raise ValueError(f"x: got {x.dtype}, expected float32, float64 or bfloat16")
    if target is not None and target.shape != x.shape:
        raise ValueError(f"target: got shape {tuple(target.shape)}, expected that of x, {tuple(x.shape)}")
    for name, value in {"gamma": gamma, "eps": eps}.items():
        if not value > 0:
            raise ValueError(f"{name}: got {value}, expected a positive number")
    if not divisor > 0:
        raise ValueError("divisor: got 'pairs' with D = 1, expected 'dim': one column has no pairs")


@functools.cache
def _announce_fallback(device_type: str) -> None:
    reason = extension.load() or f"the compiled extension has no {device_type} kernel for it"
    logger.warning("%s on %s runs in plain PyTorch: %s", OPERATOR, device_type, reason)


def _vicreg_fallback(
    x: Tensor, target: Tensor | None, gamma: float, eps: float, divisor: float
) -> tuple[Tensor, Tensor, Tensor]:
    _announce_fallback(x.device.type)
    wide_target = None if target is None else target.double()
    terms, mean, covariance = _statistics(x.double(), wide_target, gamma, eps, divisor)
    return terms.to(_result_dtype(x)), mean, covariance.to(_result_dtype(x))


def _vicreg_backward_fallback(
    gradients: Tensor,
    x: Tensor,
    target: Tensor | None,
    mean: Tensor,
    covariance: Tensor,
    gamma: float,
    eps: float,
    divisor: float,
    target_gradient: bool,
) -> tuple[Tensor, Tensor]:
    groups, rows, dim = x.shape
    invariance, variance, covariance_gradient = gradients.double().unbind()
    wide = covariance.double()
    sigma = (torch.diagonal(wide, dim1=1, dim2=2) + eps).sqrt()
    pull = -variance / (groups * dim * (rows - 1)) * (sigma < gamma) / sigma
    factor = wide * (4 * covariance_gradient / (groups * divisor * (rows - 1)))
    factor = torch.where(_diagonal_mask(wide), torch.diag_embed(pull), factor)
    dx = (x.double() - mean[:, None]) @ factor
    if target is None:
        return dx.to(x.dtype), x.new_empty(0)
    push = (x.double() - target.double()) * (2 * invariance / x.numel())
    return (dx + push).to(x.dtype), (-push).to(x.dtype) if target_gradient else x.new_empty(0)


def _vicreg_fake(
    x: Tensor, target: Tensor | None, gamma: float, eps: float, divisor: float
) -> tuple[Tensor, Tensor, Tensor]:
    _check(x, target, gamma, eps, divisor)
    groups, _, dim = x.shape
    dtype = _result_dtype(x)
    mean = x.new_empty(groups, dim, dtype=torch.float64)
    return x.new_empty(3, dtype=dtype), mean, x.new_empty(groups, dim, dim, dtype=dtype)


def _vicreg_backward_fake(
    gradients: Tensor, x: Tensor, target: Tensor | None, mean: Tensor, covariance: Tensor, gamma: float, eps: float,
    divisor: float, target_gradient: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return x.new_empty(x.shape), x.new_empty(x.shape if target_gradient else 0)


extension.load()
for _operator, _schema in ((OPERATOR, SCHEMA), (BACKWARD_OPERATOR, BACKWARD_SCHEMA)):
    if not hasattr(torch.ops.jepa_fast, _operator.split("::")[1]):
        torch.library.define(_operator, _schema)
# For every device: a kernel compiled for one device takes precedence there.
torch.library.register_kernel(OPERATOR, None, _vicreg_fallback)
torch.library.register_kernel(BACKWARD_OPERATOR, None, _vicreg_backward_fallback)
torch.library.register_fake(OPERATOR, _vicreg_fake)
torch.library.register_fake(BACKWARD_OPERATOR, _vicreg_backward_fake)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, target, *ctx.options = inputs
    _, mean, covariance = output
    ctx.mark_non_differentiable(mean, covariance)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, target, mean, covariance)


def _backward(ctx: Any, gradients: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if gradients is None:
        return None, None, None, None, None
    wanted = ctx.needs_input_grad[1]
    dx, dtarget = torch.ops.jepa_fast.vicreg_backward(gradients, *ctx.saved_tensors, *ctx.options, wanted)
    return dx, dtarget if wanted else None, None, None, None


torch.library.register_autograd(OPERATOR, _backward, setup_context=_setup_context)


class _AcrossRanks(torch.autograd.Function):
    """The op on the rows of all processes of a group; every process gets the same terms.

    Each process sends its row count and mean, then its scatter matrix moved to the common mean and its squared error.
    The gradient needs nothing more: the op's own, with the common statistics and the common number of rows.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, target: Tensor | None, gamma: float, eps: float, divisor: float, group: dist.ProcessGroup
    ) -> Tensor:
        local, local_mean, local_covariance = torch.ops.jepa_fast.vicreg(x, target, gamma, eps, divisor)
        rows = x.shape[1]
        sums = torch.cat([local_mean.flatten() * rows, local_mean.new_full((1,), rows)])
        dist.all_reduce(sums, group=group)
        all_rows = sums[-1]
        mean = (sums[:-1] / all_rows).view_as(local_mean)
        shift = local_mean - mean
        scatter = local_covariance.double() * (rows - 1) + rows * shift[:, :, None] * shift[:, None, :]
        sums = torch.cat([scatter.flatten(), local[:1].double() * rows])
        dist.all_reduce(sums, group=group)
        covariance = sums[:-1].view_as(scatter) / (all_rows - 1)
        terms = torch.stack([sums[-1] / all_rows, *_regularisers(covariance, gamma, eps, divisor)])
        # The op's backward divides by the rows it sees: these rows.
        shares = torch.stack([rows / all_rows, (rows - 1) / (all_rows - 1), (rows - 1) / (all_rows - 1)])
        ctx.options = gamma, eps, divisor
        ctx.save_for_backward(x, target, mean, covariance.to(local.dtype), shares.to(local.dtype))
        return terms.to(local.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, target, mean, covariance, shares = ctx.saved_tensors
        wanted = ctx.needs_input_grad[1]
        dx, dtarget = torch.ops.jepa_fast.vicreg_backward(
            gradients[0] * shares, x, target, mean, covariance, *ctx.options, wanted
        )
        return dx, dtarget if wanted else None, None, None, None, None


def vicreg(
    x: Tensor,
    target: Tensor | None = None,
    *,
    gamma: float = 1.0,
    eps: float = 1e-4,
    divisor: Divisor = "dim",
    process_group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Invariance, variance and covariance term, unweighted: [3], float64 for float64 input, else float32.

    With a process group the terms are those of the rows of all its processes together, at least 2 rows each, and the
    same on every process. The gradient on each process is then the exact gradient of that one energy with respect to
    its own rows: parameter gradients have to be summed over processes. Where they are averaged instead, as
    DistributedDataParallel does, multiply the energy by the number of processes.

    Args:
        x: [N, D], or [G, N, D] with statistics per group and terms averaged over groups.
        target: like x; gets its gradient too. Where dtypes differ, both are taken to the wider one.
        gamma: standard deviation below which the variance term pulls.
        eps: added to the variance under the square root.
        divisor: of the squared off-diagonal covariances: "dim" for D, "pairs" for D (D - 1).
        process_group: processes that share the energy.

    Raises:
        ValueError: shapes, dtypes or options outside what the module describes.
    """
    if target is not None and target.dtype != x.dtype:
        wider = torch.promote_types(x.dtype, target.dtype)
        x, target = x.to(wider), target.to(wider)
    if x.dim() == 2:
        x, target = x[None], None if target is None else target[None]
    value = _divisor_value(x.shape[-1], divisor)
    _check(x, target, gamma, eps, value)
    if process_group is not None:
        across: Tensor = _AcrossRanks.apply(x, target, gamma, eps, value, process_group)  # type: ignore[no-untyped-call]
        return across
    terms: Tensor = torch.ops.jepa_fast.vicreg(x, target, gamma, eps, value)[0]
    return terms


def covariance_term(x: Tensor, *, divisor: Divisor = "dim", process_group: dist.ProcessGroup | None = None) -> Tensor:
    """The covariance term alone, a scalar; arguments and gradient as in `vicreg`."""
    return vicreg(x, divisor=divisor, process_group=process_group)[2]
