"""A contrastive energy: each prediction has to tell its own encoding from others, which nothing that collapsed can.

    E(p, e)    mean over D of (p - e)^2
    contrast   mean over (b, t) of -log[ exp(-E(p_bt, e_bt) / tau) / sum_i exp(-E(p_bt, e_it) / tau) ]

Candidates for the prediction of trajectory b at step t are the encodings of all B trajectories at step t: B^2 (T - 1)
pairs, where all encodings of a batch against all would be (T - 1) times as many. Steps of the same trajectory are left
out: neighbours lie a pixel apart or, where the dot was blocked, are the same frame (docs/training.md has the figures).

The contrast is the invariance over tau plus the logarithm of a sum that pushes apart: the same squared distance that
VICReg's invariance takes, so that predictions keep the scale of encodings. Where all states are the same it is log B.

Source: van den Oord, Li, Vinyals, Representation Learning with Contrastive Predictive Coding, arXiv:1807.03748.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from jepa_fast.config import ContrastConfig
from jepa_fast.objectives.vicreg import check_states, gathered


class ContrastTerms(NamedTuple):
    """The weighted contrast and what is watched beside it. Scalars on the states' device."""

    total: Tensor
    contrast: Tensor
    invariance: Tensor  # mean squared difference of predictions and their own encodings
    found: Tensor  # share of predictions to which none of the others is as close as the own encoding


def contrast(
    predicted: Tensor,
    encoded: Tensor,
    weights: Tensor,
    config: ContrastConfig,
    ema_targets: None = None,
    process_group: dist.ProcessGroup | None = None,
) -> ContrastTerms:
    """The contrastive energy of predictions against encodings; gradients flow to both, through negatives too.

    Computed in float32 (float64 for float64 states) also under autocast. Over several processes it is that of all
    their trajectories, on every process, with its exact gradient for the process's own states, as `energy` describes.

    Args:
        predicted: [B, T-1, D].
        encoded: [B, T-1, D].
        weights: float [3], the first of which is the contrast's in the total.
        config: options.
        ema_targets: none, so that it is called as `energy` is.
        process_group: processes that share the energy, each with the same B; none: this one alone.

    Raises:
        ValueError: shapes that differ.
    """
    check_states(predicted, encoded)
    with torch.autocast(predicted.device.type, enabled=False):
        if predicted.dtype != torch.float64:
            predicted, encoded = predicted.float(), encoded.float()
        if process_group is not None:
            predicted, encoded = (gathered(side, process_group) for side in (predicted, encoded))
        distances = _distances(predicted.transpose(0, 1), encoded.transpose(0, 1))  # [T-1, B, B]
        own = torch.diagonal(distances, dim1=1, dim2=2)  # [T-1, B]
        term = (own / config.temperature + torch.logsumexp(-distances / config.temperature, dim=2)).mean()
        with torch.no_grad():
            invariance = F.mse_loss(predicted, encoded)
            found = ((distances <= own[..., None]).sum(dim=2) == 1).to(term.dtype).mean()
    return ContrastTerms(weights[0] * term, term, invariance, found)


def _distances(left: Tensor, right: Tensor) -> Tensor:
    """Mean squared differences [G, N, M] of rows [G, N, D] and [G, M, D]."""
    # About a common origin, so that squares and products cancel less.
    origin = right.mean(dim=1, keepdim=True)
    left, right = left - origin, right - origin
    squares = left.square().sum(dim=2)[:, :, None] + right.square().sum(dim=2)[:, None]
    return (squares - 2 * left @ right.transpose(1, 2)) / left.shape[2]
