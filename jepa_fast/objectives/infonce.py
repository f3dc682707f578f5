"""InfoNCE: each prediction has to tell its own encoding from others, which nothing that collapsed can.

    E(p, e)    mean over D of (p - e)^2
    contrast   mean over (b, t) of -log[ exp(-E(p_bt, e_bt) / tau) / sum_i exp(-E(p_bt, e_it) / tau) ]

Candidates for the prediction of trajectory b at step t are the encodings of all B trajectories at step t: B^2 (T - 1)
pairs, where all encodings of a batch against all would be (T - 1) times as many. Steps of the same trajectory are left
out: neighbours lie a pixel apart or, where the agent was blocked, are the same frame (docs/training.md has the
figures).

The contrast is the invariance over tau plus the logarithm of a sum that pushes apart: the same squared distance that
VICReg's invariance takes, so that predictions keep the scale of encodings. Where all latents are the same it is log B.

Source: van den Oord, Li, Vinyals, Representation Learning with Contrastive Predictive Coding, arXiv:1807.03748.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from jepa_fast.config import InfoNCEConfig
from jepa_fast.objectives.objective import Loss, RolloutObjective, Weights, check_latents
from jepa_fast.objectives.processes import gathered


class InfoNCE(RolloutObjective):
    """The contrast of rollouts; gradients flow to both sides, through negatives too.

    Terms: `contrast`; watched beside it are `invariance`, the mean squared difference of predictions and their own
    encodings, and `top1`, the share of predictions to which none of the others is as close as the own encoding.
    """

    config: InfoNCEConfig

    def __init__(self, config: InfoNCEConfig | None = None) -> None:
        super().__init__()
        self.config = config or InfoNCEConfig()

    def forward(
        self,
        predicted: Tensor,
        encoded: Tensor,
        weights: Weights,
        targets: Tensor | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> Loss:
        """The loss of predictions [B, T-1, D] against encodings [B, T-1, D].

        Computed in float32 (float64 for float64 latents) also under autocast. Over several processes, each with the
        same B, it is that of all their trajectories, as `Execution` describes.

        Raises:
            ValueError: shapes that differ.
        """
        check_latents(predicted, encoded)
        temperature = self.config.temperature
        with torch.autocast(predicted.device.type, enabled=False):
            if predicted.dtype != torch.float64:
                predicted, encoded = predicted.float(), encoded.float()
            if group is not None:
                predicted, encoded = (gathered(side, group) for side in (predicted, encoded))
            distances = _distances(predicted.transpose(0, 1), encoded.transpose(0, 1))  # [T-1, B, B]
            own = torch.diagonal(distances, dim1=1, dim2=2)  # [T-1, B]
            contrast = (own / temperature + torch.logsumexp(-distances / temperature, dim=2)).mean()
            with torch.no_grad():
                invariance = F.mse_loss(predicted, encoded)
                top1 = ((distances <= own[..., None]).sum(dim=2) == 1).to(contrast.dtype).mean()
        terms = {"contrast": contrast, "invariance": invariance, "top1": top1}
        return Loss(weights["contrast"] * contrast, terms)


def _distances(left: Tensor, right: Tensor) -> Tensor:
    """Mean squared differences [G, N, M] of rows [G, N, D] and [G, M, D]."""
    # About a common origin, so that squares and products cancel less.
    origin = right.mean(dim=1, keepdim=True)
    left, right = left - origin, right - origin
    squares = left.square().sum(dim=2)[:, :, None] + right.square().sum(dim=2)[:, None]
    return (squares - 2 * left @ right.transpose(1, 2)) / left.shape[2]
