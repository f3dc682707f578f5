"""The energy: how far predictions are from encodings, and how far the states are from collapse.

    invariance   mean over all elements of (predicted - target)^2
    variance     mean_j max(0, gamma - sqrt(var_j + eps))
    covariance   sum_{i != j} S_ij^2 / D, S the unbiased covariance matrix

Source: Bardes, Ponce, LeCun, VICReg, arXiv:2105.04906.
"""

from typing import NamedTuple

import torch
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
    predicted: Tensor, encoded: Tensor, weights: Tensor, config: EnergyConfig, ema_targets: Tensor | None = None
) -> Energy:
    """The energy of predictions against encodings.

    Computed in float32 (float64 for float64 states) also under autocast: bf16 statistics are a known source of NaN.

    Args:
        predicted: [B, T-1, D].
        encoded: [B, T-1, D].
        weights: float [3]: of invariance, variance and covariance.
        config: options.
        ema_targets: [B, T-1, D], with config.targets = "ema" only: what is predicted instead of `encoded`.

    Raises:
        ValueError: shapes that differ, fewer than two rows to take a covariance of, or targets that do not fit config.
    """
    targets = _targets(predicted, encoded, config, ema_targets)
    with torch.autocast(predicted.device.type, enabled=False):
        if predicted.dtype != torch.float64:
            predicted, encoded, targets = predicted.float(), encoded.float(), targets.float()
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


def _targets(predicted: Tensor, encoded: Tensor, config: EnergyConfig, ema_targets: Tensor | None) -> Tensor:
    """What is predicted [B, T-1, D], after checking that the arguments of `energy` fit together."""
    if predicted.shape != encoded.shape or predicted.dim() != 3:
        shapes = f"{tuple(predicted.shape)} and {tuple(encoded.shape)}"
        raise ValueError(f"predicted, encoded: got shapes {shapes}, expected [B, T-1, D] twice")
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


def fused_energy(
    predicted: Tensor, encoded: Tensor, weights: Tensor, config: EnergyConfig, ema_targets: Tensor | None = None
) -> Energy:
    """What `energy` gives, by the compiled op: one pass over each side, and one more for its gradient.

    Arguments and errors are those of `energy`, which is what it is tested against; D is at most 1024.
    """
    targets = _targets(predicted, encoded, config, ema_targets)
    gamma, eps, divisor = config.gamma, config.eps, config.covariance_divisor
    with torch.autocast(predicted.device.type, enabled=False):
        if config.steps == "first":
            # The statistics leave out rows that the invariance counts.
            terms = vicreg(_groups(predicted, config), gamma=gamma, eps=eps, divisor=divisor)
            wide = torch.float64 if predicted.dtype == torch.float64 else torch.float32
            terms = torch.cat([F.mse_loss(predicted.to(wide), targets.to(wide)).reshape(1), terms[1:]])
        else:
            groups = _groups(predicted, config)
            terms = vicreg(groups, _groups(targets, config), gamma=gamma, eps=eps, divisor=divisor)
        if config.sides == "both":
            other = vicreg(_groups(encoded, config), gamma=gamma, eps=eps, divisor=divisor)
            terms = torch.cat([terms[:1], (terms[1:] + other[1:]) / 2])
        total = (weights * terms).sum()
    return Energy(total, *terms.unbind())
