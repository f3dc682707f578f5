"""The gated model on features read from pixels: a learned linear encoder, an agent that is blocked or free.

    latent      z = W (p - centre) / half a frame, p the agent's centre; W [D, 2] learned, with orthogonal columns
    prediction  z' = z + g A a: the mean of two outcomes, to move by A a or to stay
    gate        g = border(x) border(y) wall(above) wall(below), small networks on where lines are, seen from the agent

The layout of the room is read from frame 0 and carried beside the latent; it is neither predicted nor probed.
"""

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from jepa_fast.config import GatedFeaturesConfig, Kernels
from jepa_fast.kernels import scene
from jepa_fast.kernels.feature_gate import GateWeights, feature_gate, feature_gate_reference, why_not_compiled
from jepa_fast.models.backends import compiled_or_plain
from jepa_fast.models.gated import SUREST, ActionStep, BlockedFreeMixture, Encoded, Lift, PositionModel
from jepa_fast.objectives.objective import Objective


class FeaturePredictor(nn.Module):
    """Stay or move by A a: a product of gates on the lines around the agent, in its own frame, says how likely.

    Along each axis the lines' distances are taken in the direction of motion, so that mirrored scenes give the same
    gates; all lengths are in units of the step's, and cut off at `reach` of them. What a line means, how thick a wall
    is or how wide a door, and what an agent collides with is for the gates to learn.
    """

    def __init__(self, config: GatedFeaturesConfig, kernels: Kernels = "reference") -> None:
        super().__init__()
        self.kernels = kernels
        self.action = ActionStep(config.dim)
        self.spread = config.spread
        self.border = _gate(3, config.border_hidden)
        self.wall = _gate(5, config.wall_hidden, config.wall_hidden)
        self.reach = config.reach

    def gate_weights(self) -> GateWeights:
        """Of both gates' layers."""
        border, wall = (
            [layer.weight for layer in gate if isinstance(layer, nn.Linear)] for gate in (self.border, self.wall)
        )
        return GateWeights(*border, *wall)

    def ops(self, kernels: Kernels, device: Literal["cpu", "cuda"]) -> dict[str, str]:
        """What the gate runs on; on CUDA there is no op."""
        if device != "cpu":
            return {}
        weights, none = self.gate_weights(), torch.empty(0, 0, 2)
        hidden = weights.border_expand.shape[0], weights.wall_expand.shape[0]
        return {"feature_gate": compiled_or_plain(kernels, why_not_compiled(none, none, none, hidden))}

    def step(self, latents: Tensor, positions: Tensor, layout: Tensor, actions: Tensor) -> BlockedFreeMixture:
        """Both outcomes of a step.

        Args:
            latents: [B, T, D], or a single step [B, D].
            positions: [B, T, 2] or [B, 2], what the latents stand for.
            layout: [B, 2, 2, 2], as `read_layout` gives it, in the positions' unit.
            actions: like the positions, in their unit.
        """
        gate = feature_gate_reference if self.kernels == "reference" else feature_gate
        log_stay, log_move = gate(positions, layout, actions, self.gate_weights(), self.reach, SUREST)
        return BlockedFreeMixture(latents, self.spread * self.action(actions), log_stay, log_move)


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
        """With kernels other than "reference" features and gate are ops."""
        config = config or GatedFeaturesConfig()
        super().__init__(config, objective, kernels)
        self.encoder = Lift(config.dim, config.spread, kernels)
        self.predictor = FeaturePredictor(config, kernels)

    @property
    def lift(self) -> Lift:
        """The encoder: all else of it is fixed."""
        return self.encoder

    def encode_images(self, agents: Tensor, corners: Tensor | None, walls: Tensor, scale: float = 1.0) -> Encoded:
        """The encodings of images on whatever scale."""
        with torch.autocast(agents.device.type, enabled=False):
            half = (self.side - 1) / 2
            plain = self.kernels == "reference"
            read_centres = scene.read_centres_reference if plain else scene.read_centres
            read_layout = scene.read_layout_reference if plain else scene.read_layout
            latents = self.encoder((read_centres(agents, corners) - half) / half)
            return Encoded(latents, (read_layout(walls) - half) / half)

    def transition(self, encoded: Encoded, actions: Tensor) -> BlockedFreeMixture:
        """One step from every encoded frame [B, T] by its action [B, T, 2] in pixels."""
        with torch.autocast(actions.device.type, enabled=False):
            positions = self.encoder.positions(encoded.latents)
            actions = actions * (2 / (self.side - 1))
            return self.predictor.step(encoded.latents, positions, encoded.room, actions)

    def ops(self, kernels: Kernels, device: Literal["cpu", "cuda"]) -> dict[str, str]:
        """What reads features, and what the gate runs on."""
        ops = super().ops(kernels, device) | self.predictor.ops(kernels, device)
        if device == "cpu":
            missing = scene.why_not_compiled(torch.empty(0, dtype=torch.uint8))
            ops["scene"] = compiled_or_plain(kernels, missing)
        return ops

    def explain(self) -> str:
        """How frames are encoded."""
        return "features read by fixed rules, one learned linear layer"
