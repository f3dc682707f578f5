"""VICReg: how far predictions are from encodings, and how far the latents are from collapse.

    invariance   mean over all elements of (predicted - target)^2
    variance     mean_j max(0, gamma - sqrt(var_j + eps))
    covariance   sum_{i != j} S_ij^2 / D, S the unbiased covariance matrix

Two ways to the same terms: plain PyTorch, which is the truth, and the compiled op of `jepa_fast.kernels.vicreg`, one
pass over each side and one more for its gradient.

Source: Bardes, Ponce, LeCun, VICReg, arXiv:2105.04906.
"""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from jepa_fast.config import Kernels, VICRegConfig
from jepa_fast.kernels import dispatch
from jepa_fast.kernels.dispatch import PLAIN
from jepa_fast.kernels.vicreg import MOST_COLUMNS, vicreg
from jepa_fast.objectives.objective import Execution, Loss, RolloutObjective, Weights, check_latents
from jepa_fast.objectives.processes import gathered, mean_over_processes


class Sides(NamedTuple):
    """What the terms are taken of, [B, T-1, D] each."""

    predicted: Tensor
    encoded: Tensor
    targets: Tensor  # what is predicted


class VICReg(RolloutObjective):
    """VICReg on rollouts; terms: `invariance`, `variance`, `covariance`.

    By default it is the baseline's: targets take no gradient and encodings are regularised too. With `VICRegConfig()`,
    the published options, latents collapse before they spread.
    """

    config: VICRegConfig

    def __init__(self, config: VICRegConfig | None = None) -> None:
        super().__init__()
        self.config = config or VICRegConfig(targets="stop_gradient", sides="both")

    @property
    def ema_decay(self) -> float | None:
        """Decay per step of the averaged encoder, with targets = "ema"."""
        return self.config.ema_decay if self.config.targets == "ema" else None

    @property
    def horizon(self) -> int | None:
        """Steps of one rollout."""
        return self.config.horizon

    def forward(
        self,
        predicted: Tensor,
        encoded: Tensor,
        weights: Weights,
        targets: Tensor | None = None,
        group: dist.ProcessGroup | None = None,
        fused: bool = False,
    ) -> Loss:
        """The loss of predictions [B, T-1, D] against encodings [B, T-1, D].

        Computed in float32 (float64 for float64 latents) also under autocast: bf16 statistics are a known source of
        NaN. Over several processes, each with the same B, it is that of all their trajectories, as `Execution`
        describes.

        Args:
            predicted: [B, T-1, D].
            encoded: [B, T-1, D].
            weights: of invariance, variance and covariance.
            targets: [B, T-1, D], with targets = "ema" only: what is predicted instead of `encoded`.
            group: processes that share the loss; none: this one alone.
            fused: by the compiled op, for D up to MOST_COLUMNS; with statistics per step each process brings two
                trajectories or more.

        Raises:
            ValueError: shapes that differ, fewer than two rows to take a covariance of, or targets that do not fit the
                options.
        """
        check_latents(predicted, encoded)
        if (targets is not None) != (self.config.targets == "ema"):
            raise ValueError(f"targets: expected with targets='ema' and only then, got {self.config.targets!r}")
        if targets is None:
            targets = encoded.detach() if self.config.targets == "stop_gradient" else encoded
        sides = Sides(predicted, encoded, targets)
        weigh = [weights[name] for name in self.config.weighted]
        with torch.autocast(predicted.device.type, enabled=False):
            if fused:
                terms = _fused_terms(sides, self.config, group)
                total = (torch.stack(weigh) * terms).sum()
                parts = terms.unbind()
            else:
                parts = _plain_terms(sides, self.config, group)
                total = weigh[0] * parts[0] + weigh[1] * parts[1] + weigh[2] * parts[2]
        return Loss(total, dict(zip(self.config.weighted, parts, strict=True)))

    def loss(self, execution: Execution, device: Literal["cpu", "cuda"]) -> Callable[..., Loss]:
        """`forward` on the fastest ops that the kernels allow."""
        has_op = execution.kernels != "reference" and dispatch.why_no_extension("vicreg", device) is None

        def compute(predicted: Tensor, encoded: Tensor, weights: Weights, targets: Tensor | None) -> Loss:
            fused = has_op and predicted.shape[-1] <= MOST_COLUMNS
            return self.forward(predicted, encoded, weights, targets, execution.group, fused)

        return compute

    def ops(self, kernels: Kernels, device: Literal["cpu", "cuda"], dim: int | None) -> dict[str, str]:
        """What the terms run on."""
        if kernels == "reference":
            return {"vicreg": PLAIN}
        reason = why_no_extension(device, dim)
        return {"vicreg": f"compiled {device} kernel" if reason is None else f"{PLAIN}: {reason}"}


def why_no_extension(device: Literal["cpu", "cuda"], dim: int | None) -> str | None:
    """Why the compiled op does not run on latents of `dim` numbers, or None."""
    reason = dispatch.why_no_extension("vicreg", device)
    if reason is None and dim is not None and dim > MOST_COLUMNS:
        reason = f"model.dim is {dim}, the compiled ops take at most {MOST_COLUMNS}"
    return reason


def _plain_terms(sides: Sides, config: VICRegConfig, group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor, Tensor]:
    if sides.predicted.dtype != torch.float64:
        sides = Sides(*(side.float() for side in sides))
    if group is not None:
        sides = Sides(*(gathered(side, group) for side in sides))
    invariance = F.mse_loss(sides.predicted, sides.targets)
    variance, covariance = regularisers(sides.predicted, config)
    if config.sides == "both":
        other_variance, other_covariance = regularisers(sides.encoded, config)
        variance, covariance = (variance + other_variance) / 2, (covariance + other_covariance) / 2
    return invariance, variance, covariance


def _fused_terms(sides: Sides, config: VICRegConfig, group: dist.ProcessGroup | None) -> Tensor:
    """The three terms [3]."""
    predicted, encoded, targets = sides
    terms_of = functools.partial(
        vicreg, gamma=config.gamma, eps=config.eps, divisor=config.covariance_divisor, process_group=group
    )
    if config.steps == "first":
        # The statistics leave out rows that the invariance counts.
        terms = terms_of(_groups(predicted, config))
        wide = torch.float64 if predicted.dtype == torch.float64 else torch.float32
        invariance = F.mse_loss(predicted.to(wide), targets.to(wide)).reshape(1)
        if group is not None:
            invariance = mean_over_processes(invariance, group)
        terms = torch.cat([invariance, terms[1:]])
    else:
        terms = terms_of(_groups(predicted, config), _groups(targets, config))
    if config.sides == "both":
        other = terms_of(_groups(encoded, config))
        terms = torch.cat([terms[:1], (terms[1:] + other[1:]) / 2])
    return terms


def regularisers(latents: Tensor, config: VICRegConfig) -> tuple[Tensor, Tensor]:
    """The variance and the covariance term of latents [B, T-1, D], as `config.steps` groups them."""
    groups = _groups(latents, config)
    dim = latents.shape[-1]
    centred = groups - groups.mean(dim=1, keepdim=True)  # [G, N, D]
    covariances = centred.transpose(1, 2) @ centred / (groups.shape[1] - 1)  # [G, D, D]
    variances = torch.diagonal(covariances, dim1=1, dim2=2)
    hinge = F.relu(config.gamma - torch.sqrt(variances + config.eps)).mean()
    # Masked, not subtracted: taking the diagonal's squares off the full sum cancels.
    off_diagonal = covariances.masked_fill(torch.eye(dim, dtype=torch.bool, device=latents.device), 0.0)
    divisor = dim if config.covariance_divisor == "dim" else dim * (dim - 1)
    return hinge, off_diagonal.square().sum(dim=(1, 2)).mean() / divisor


def _groups(latents: Tensor, config: VICRegConfig) -> Tensor:
    """Latents [B, T-1, D] as [G, N, D]: the rows whose statistics `config.steps` takes together."""
    if config.steps == "all":
        groups = latents.reshape(1, -1, latents.shape[-1])
    elif config.steps == "each":
        groups = latents.transpose(0, 1)
    else:
        groups = latents[:, :1].transpose(0, 1)
    if groups.shape[1] < 2:
        raise ValueError(f"latents: got {groups.shape[1]} row(s) to take a covariance of, expected at least 2")
    return groups
