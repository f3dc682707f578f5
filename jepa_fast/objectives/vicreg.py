"""The energy: how far predictions are from encodings, and how far the states are from collapse.

    invariance   mean over all elements of (predicted - target)^2
    variance     mean_j max(0, gamma - sqrt(var_j + eps))
    covariance   sum_{i != j} S_ij^2 / D, S the unbiased covariance matrix

Over several processes it is the energy of all their trajectories, on every process, with its exact gradient for the
process's own states: parameter gradients have to be summed, or the energy scaled by the number of processes where they
are averaged.

Source: Bardes, Ponce, LeCun, VICReg, arXiv:2105.04906.
"""

import functools
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from jepa_fast.config import EnergyConfig
from jepa_fast.kernels.vicreg import vicreg


class Energy(NamedTuple):
    """The three terms, unweighted, and their weighted sum. Scalars on the states' device."""

    total: Tensor
    invariance: Tensor
    variance: Tensor
    covariance: Tensor


def energy(
    predicted: Tensor,
    encoded: Tensor,
    weights: Tensor,
    config: EnergyConfig,
    ema_targets: Tensor | None = None,
    process_group: dist.ProcessGroup | None = None,
) -> Energy:
    """The energy of predictions against encodings.

    Computed in float32 (float64 for float64 states) also under autocast: bf16 statistics are a known source of NaN.

    Args:
        predicted: [B, T-1, D].
        encoded: [B, T-1, D].
        weights: float [3]: of invariance, variance and covariance.
        config: options.
        ema_targets: [B, T-1, D], with config.targets = "ema" only: what is predicted instead of `encoded`.
        process_group: processes that share the energy, each with the same B; none: this one alone.

    Raises:
        ValueError: shapes that differ, fewer than two rows to take a covariance of, or targets that do not fit config.
    """
    targets = _targets(predicted, encoded, config, ema_targets)
    with torch.autocast(predicted.device.type, enabled=False):
        if predicted.dtype != torch.float64:
            predicted, encoded, targets = predicted.float(), encoded.float(), targets.float()
        if process_group is not None:
            predicted, encoded, targets = (gathered(side, process_group) for side in (predicted, encoded, targets))
        invariance = F.mse_loss(predicted, targets)
        variance, covariance = regularisers(predicted, config)
        if config.sides == "both":
            other_variance, other_covariance = regularisers(encoded, config)
            variance, covariance = (variance + other_variance) / 2, (covariance + other_covariance) / 2
        total = weights[0] * invariance + weights[1] * variance + weights[2] * covariance
    return Energy(total, invariance, variance, covariance)


def regularisers(states: Tensor, config: EnergyConfig) -> tuple[Tensor, Tensor]:
    """The variance and the covariance term of states [B, T-1, D], as `config.steps` groups them."""
    groups = _groups(states, config)
    dim = states.shape[-1]
    centred = groups - groups.mean(dim=1, keepdim=True)  # [G, N, D]
    covariances = centred.transpose(1, 2) @ centred / (groups.shape[1] - 1)  # [G, D, D]
    variances = torch.diagonal(covariances, dim1=1, dim2=2)
    hinge = F.relu(config.gamma - torch.sqrt(variances + config.eps)).mean()
    # Masked, not subtracted: taking the diagonal's squares off the full sum cancels.
    off_diagonal = covariances.masked_fill(torch.eye(dim, dtype=torch.bool, device=states.device), 0.0)
    divisor = dim if config.covariance_divisor == "dim" else dim * (dim - 1)
    return hinge, off_diagonal.square().sum(dim=(1, 2)).mean() / divisor


def check_states(predicted: Tensor, encoded: Tensor) -> None:
    """Raise ValueError unless both are [B, T-1, D]."""
    if predicted.shape != encoded.shape or predicted.dim() != 3:
        shapes = f"{tuple(predicted.shape)} and {tuple(encoded.shape)}"
        raise ValueError(f"predicted, encoded: got shapes {shapes}, expected [B, T-1, D] twice")


def _targets(predicted: Tensor, encoded: Tensor, config: EnergyConfig, ema_targets: Tensor | None) -> Tensor:
    """What is predicted [B, T-1, D], after checking that the arguments of `energy` fit together."""
    check_states(predicted, encoded)
    if (ema_targets is not None) != (config.targets == "ema"):
        raise ValueError(f"ema_targets: expected with targets='ema' and only then, got targets={config.targets!r}")
    if config.targets == "stop_gradient":
        return encoded.detach()
    return encoded if ema_targets is None else ema_targets


def _groups(states: Tensor, config: EnergyConfig) -> Tensor:
    """States [B, T-1, D] as [G, N, D]: the rows whose statistics `config.steps` takes together."""
    if config.steps == "all":
        groups = states.reshape(1, -1, states.shape[-1])
    elif config.steps == "each":
        groups = states.transpose(0, 1)
    else:
        groups = states[:, :1].transpose(0, 1)
    if groups.shape[1] < 2:
        raise ValueError(f"states: got {groups.shape[1]} row(s) to take a covariance of, expected at least 2")
    return groups


class _Gather(torch.autograd.Function):
    """Rows of all processes, in the order of their ranks; the gradient is that of this process's own rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: dist.ProcessGroup) -> Tensor:
        parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(group.size())]
        dist.all_gather(parts, rows.contiguous(), group=group)
        ctx.own = slice(group.rank() * len(rows), (group.rank() + 1) * len(rows))
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0][ctx.own], None


def mean_over_processes(values: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The mean over all processes of values [N] that each has; its gradient on each is exact for the process's own."""
    return gathered(values[None], group).mean(dim=0)


def gathered(rows: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Rows [N, ...] of all processes, in the order of their ranks; its gradient is that of this process's own rows."""
    whole: Tensor = _Gather.apply(rows, group)  # type: ignore[no-untyped-call]
    return whole


def fused_energy(
    predicted: Tensor,
    encoded: Tensor,
    weights: Tensor,
    config: EnergyConfig,
    ema_targets: Tensor | None = None,
    process_group: dist.ProcessGroup | None = None,
) -> Energy:
    """What `energy` gives, by the compiled op: one pass over each side, and one more for its gradient.

    Arguments and errors are those of `energy`, which is what it is tested against; D is at most 1024, and with
    statistics per step each process brings two trajectories or more.
    """
    targets = _targets(predicted, encoded, config, ema_targets)
    terms_of = functools.partial(
        vicreg, gamma=config.gamma, eps=config.eps, divisor=config.covariance_divisor, process_group=process_group
    )
    with torch.autocast(predicted.device.type, enabled=False):
        if config.steps == "first":
            # The statistics leave out rows that the invariance counts.
            terms = terms_of(_groups(predicted, config))
            wide = torch.float64 if predicted.dtype == torch.float64 else torch.float32
            invariance = F.mse_loss(predicted.to(wide), targets.to(wide)).reshape(1)
            if process_group is not None:
                invariance = mean_over_processes(invariance, process_group)
            terms = torch.cat([invariance, terms[1:]])
        else:
            terms = terms_of(_groups(predicted, config), _groups(targets, config))
        if config.sides == "both":
            other = terms_of(_groups(encoded, config))
            terms = torch.cat([terms[:1], (terms[1:] + other[1:]) / 2])
        total = (weights * terms).sum()
    return Energy(total, *terms.unbind())
