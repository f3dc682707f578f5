"""The gated model on features read from pixels: a learned linear encoder, an agent that is blocked or free.

    latent      z = W (p - centre) / half a frame, p the agent's centre; W [D, 2] learned, with orthogonal columns
    prediction  z' = z + g A a: the mean of two outcomes, to move by A a or to stay
    gate        g = border(x) border(y) wall(above) wall(below), small networks on where lines are, seen from the agent

The layout of the room is read from frame 0 and carried beside the latent; it is neither predicted nor probed.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_fast.config import GatedFeaturesConfig, Kernels
from jepa_fast.data.two_rooms.features import read_centres, read_layout
from jepa_fast.models.gated import ActionStep, BlockedFreeMixture, Encoded, Lift, PositionModel, bounded
from jepa_fast.objectives.objective import Objective


class FeaturePredictor(nn.Module):
    """Stay or move by A a: a product of gates on the lines around the agent, in its own frame, says how likely.

    Along each axis the lines' distances are taken in the direction of motion, so that mirrored scenes give the same
    gates; all lengths are in units of the step's, and cut off at `reach` of them. What a line means, how thick a wall
    is or how wide a door, and what an agent collides with is for the gates to learn.
    """

    def __init__(self, config: GatedFeaturesConfig) -> None:
        super().__init__()
        self.action = ActionStep(config.dim)
        self.spread = config.spread
        self.border = _gate(3, config.border_hidden)
        self.wall = _gate(5, config.wall_hidden, config.wall_hidden)
        self.reach = config.reach

    def step(self, latents: Tensor, positions: Tensor, layout: Tensor, actions: Tensor) -> BlockedFreeMixture:
        """Both outcomes of a step.

        Args:
            latents: [..., D].
            positions: [..., 2], what the latents stand for.
            layout: [..., 2, 2, 2], as `read_layout` gives it, in the positions' unit.
            actions: [..., 2] in the same unit.
        """
        length = torch.linalg.vector_norm(actions, dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        directions = actions / length
        distances = ((layout - positions[..., None, :, None]) / length[..., None, None]).clamp(-self.reach, self.reach)
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
        logits = bounded(torch.cat([self.border(borders), self.wall(pieces)], dim=-2).squeeze(-1))  # [..., 4]
        # Logarithms all the way: a gate that is sure and wrong must still feel how wrong it is. The agent stays if the
        # first gate is closed, or if the second is and the first is not, or ...
        log_open = F.logsigmoid(logits)
        log_stay = torch.logsumexp(log_open - logits + log_open.cumsum(dim=-1) - log_open, dim=-1)
        return BlockedFreeMixture(latents, self.spread * self.action(actions), log_stay, log_open.sum(dim=-1))


def _gate(*widths: int) -> nn.Sequential:
    """A bias-free ReLU network from widths[0] numbers to one, the logit of moving."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs, bias=False), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 1, bias=False))


class GatedFeatures(PositionModel):
    """A joint-embedding predictive model on features that are read from pixels by fixed rules.

    Its room is the layout as `read_layout` gives it, [B, 2, 2, 2], seen from the centre in half frames.
    """

    config: GatedFeaturesConfig
    encoder: Lift
    predictor: FeaturePredictor

    def __init__(
        self,
        config: GatedFeaturesConfig | None = None,
        objective: Objective | None = None,
        kernels: Kernels = "reference",
    ) -> None:
        """All of it is plain PyTorch, whatever the kernels."""
        config = config or GatedFeaturesConfig()
        super().__init__(config, objective, kernels)
        self.encoder = Lift(config.dim, config.spread)
        self.predictor = FeaturePredictor(config)

    @property
    def lift(self) -> Lift:
        """The encoder: all else of it is fixed."""
        return self.encoder

    def encode_images(self, agents: Tensor, corners: Tensor | None, walls: Tensor, scale: float = 1.0) -> Encoded:
        """The encodings of images on whatever scale."""
        with torch.autocast(agents.device.type, enabled=False):
            half = (self.side - 1) / 2
            latents = self.encoder((read_centres(agents, corners) - half) / half)
            return Encoded(latents, (read_layout(walls) - half) / half)

    def transition(self, encoded: Encoded, actions: Tensor) -> BlockedFreeMixture:
        """One step from every encoded frame [B, T] by its action [B, T, 2] in pixels."""
        with torch.autocast(actions.device.type, enabled=False):
            positions = self.encoder.positions(encoded.latents)
            actions = actions * (2 / (self.side - 1))
            layout = encoded.room[:, None].expand(*positions.shape[:2], -1, -1, -1)
            return self.predictor.step(encoded.latents, positions, layout, actions)

    def explain(self) -> str:
        """How frames are encoded."""
        return "features read by fixed rules, one learned linear layer"
