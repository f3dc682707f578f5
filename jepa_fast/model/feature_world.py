"""A world model on features read from pixels: a learned linear encoder, a predictor that stays or moves.

    state       z = W (p - centre) / half a frame, p the dot's centre; W [D, 2] learned, with orthogonal columns
    prediction  z' = z + g A a: the mean of two outcomes, to move by A a or to stay
    gate        g = border(x) border(y) wall(above) wall(below), small networks on where lines are, seen from the dot

The layout of the room is read from frame 0 and carried beside the state; it is neither predicted nor probed.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_fast.config import FeatureModelConfig, Kernels
from jepa_fast.data.batches import Batch
from jepa_fast.data.manifest import FrameSpec
from jepa_fast.errors import InputError
from jepa_fast.model.dropout import new_clock
from jepa_fast.model.features import read_centres, read_layout
from jepa_fast.model.world import check_shapes

# The largest logit of a gate, approached but not reached: what is too sure too early is never unlearned.
SUREST = 20.0


class StayOrMove(NamedTuple):
    """The two outcomes of a step, and how likely the dot moves. Leading axes are alike."""

    stayed: Tensor  # [..., D]
    step: Tensor  # [..., D] what is added by moving
    log_stay: Tensor  # [...] logarithm of the probability of staying
    log_move: Tensor  # [...] of moving

    @property
    def mean(self) -> Tensor:
        """The expected next state [..., D]."""
        return torch.addcmul(self.stayed, self.log_move.exp()[..., None], self.step)


class FeatureEncoder(nn.Module):
    """Positions to states by one bias-free linear layer, whose columns are kept orthogonal and of length `spread`.

    Without that a latent loss alone would shrink it to nothing; with it there is nothing to collapse.
    """

    def __init__(self, dim: int, spread: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(dim, 2) / dim**0.5)
        self.spread = spread

    def columns(self) -> Tensor:
        """W, [D, 2]."""
        x, y = self.weight.unbind(dim=1)
        x = F.normalize(x, dim=0)
        y = F.normalize(y - (x * y).sum() * x, dim=0)
        return self.spread * torch.stack([x, y], dim=1)

    def forward(self, positions: Tensor) -> Tensor:
        """States [..., D] of positions [..., 2]."""
        return positions @ self.columns().T

    def positions(self, states: Tensor) -> Tensor:
        """Positions [..., 2] whose states come closest to `states` [..., D]: the same layer, transposed."""
        return states @ self.columns() / self.spread**2


class FeaturePredictor(nn.Module):
    """Stay or move by A a: how likely is a product of gates on the lines around the dot, all in the dot's own frame.

    Along each axis the lines' distances are taken in the direction of motion, so that mirrored scenes give the same
    gates; all lengths are in units of the step's, and cut off at `reach` of them. What a line means, how thick a wall
    is or how wide a door, and what stops a dot is for the gates to learn.
    """

    def __init__(self, config: FeatureModelConfig) -> None:
        super().__init__()
        self.action = nn.Linear(2, config.dim, bias=False)
        # A tenth of what the encoder does to a position: neither outcome begins with an advantage.
        nn.init.normal_(self.action.weight, std=0.1 / config.dim**0.5)
        self.spread = config.spread
        self.border = _gate(3, config.border_hidden)
        self.wall = _gate(5, config.wall_hidden, config.wall_hidden)
        self.reach = config.reach

    def step(self, states: Tensor, positions: Tensor, layout: Tensor, actions: Tensor) -> StayOrMove:
        """Both outcomes of a step.

        Args:
            states: [..., D].
            positions: [..., 2], what the states stand for.
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
        logits = torch.cat([self.border(borders), self.wall(pieces)], dim=-2).squeeze(-1)  # [..., 4]
        logits = logits / (1 + logits.abs() / SUREST)
        # Logarithms all the way: a gate that is sure and wrong must still feel how wrong it is. The dot stays if the
        # first gate is closed, or if the second is and the first is not, or ...
        log_open = F.logsigmoid(logits)
        log_stay = torch.logsumexp(log_open - logits + log_open.cumsum(dim=-1) - log_open, dim=-1)
        return StayOrMove(states, self.spread * self.action(actions), log_stay, log_open.sum(dim=-1))


def _gate(*widths: int) -> nn.Sequential:
    """A bias-free ReLU network from widths[0] numbers to one, the logit of moving."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs, bias=False), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 1, bias=False))


class FeatureWorld(nn.Module):
    """A joint-embedding predictive world model on features that are read from pixels by fixed rules.

    Used like `World`: frames float [.., 2, H, W], channel 0 the agent and channel 1 the walls; actions (x, y) in pixels
    per step. Everything is float32, under autocast too: half a pixel in bf16 would be a wall missed.
    """

    dropout_clock: Tensor
    kernels: Kernels = "reference"

    def __init__(self, config: FeatureModelConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or FeatureModelConfig()
        self.encoder = FeatureEncoder(config.dim, config.spread)
        self.predictor = FeaturePredictor(config)
        # Nothing is dropped; trainer and evaluation hand the clock on all the same.
        self.register_buffer("dropout_clock", new_clock(), persistent=False)

    @property
    def pixel(self) -> float:
        """How far apart the states of points one pixel apart are."""
        return 2 * self.config.spread / (self.config.frame - 1)

    def batch_encoder(self, spec: FrameSpec, *_: object) -> "FeatureBatchEncoder":
        """What encodes the batches of a split.

        Raises:
            InputError: its frames are not of the size that the model is for.
        """
        return FeatureBatchEncoder(self, spec)

    def encode(self, centres: Tensor, layout: Tensor) -> Tensor:
        """Encodings [B, T, D + 8] of centres [B, T, 2] and layouts [B, 2, 2, 2] in pixels: states, then the layout."""
        with torch.autocast(centres.device.type, enabled=False):
            half = (self.config.frame - 1) / 2
            states = self.encoder((centres - half) / half)
            room = ((layout - half) / half).flatten(1)[:, None].expand(-1, centres.shape[1], -1)
            return torch.cat([states, room], dim=-1)

    def predict(self, encoded: Tensor, actions: Tensor) -> StayOrMove:
        """One step from every encoding [..., D + 8] by its action [..., 2]."""
        with torch.autocast(encoded.device.type, enabled=False):
            states, room = encoded[..., : self.config.dim], encoded[..., self.config.dim :]
            positions = self.encoder.positions(states)
            actions = actions * (2 / (self.config.frame - 1))
            return self.predictor.step(states, positions, room.reshape(*room.shape[:-1], 2, 2, 2), actions)

    def forward(self, frames: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted and encoded states of frames 1..T-1, both [B, T-1, D], from frames [B, T, 2, H, W].

        Raises:
            ValueError: shapes that do not fit together.
        """
        check_shapes(frames, actions)
        encoded = self._encode_frames(frames)
        return self.unroll(encoded[:, 0], actions)[:, 1:], encoded[:, 1:, : self.config.dim]

    def rollout(self, first_frames: Tensor, actions: Tensor) -> Tensor:
        """States [B, T, D]: the encoding of frame 0, then one prediction per action. No later frame is asked for.

        Args:
            first_frames: [B, 2, H, W].
            actions: [B, T-1, 2].

        Raises:
            ValueError: shapes that do not fit together.
        """
        if first_frames.dim() != 4:
            raise ValueError(f"first_frames: got shape {tuple(first_frames.shape)}, expected [B, 2, H, W]")
        check_shapes(first_frames[:, None], actions, steps=actions.shape[1])
        return self.unroll(self._encode_frames(first_frames[:, None])[:, 0], actions)

    def unroll(self, first: Tensor, actions: Tensor) -> Tensor:
        """States [B, T, D]: those of the first encodings [B, D + 8], then one prediction per action [B, T-1, 2]."""
        room = first[:, self.config.dim :]
        states = [first[:, : self.config.dim]]
        for t in range(actions.shape[1]):
            states.append(self.predict(torch.cat([states[-1], room], dim=-1), actions[:, t]).mean)
        return torch.stack(states, dim=1)

    def _encode_frames(self, frames: Tensor) -> Tensor:
        return self.encode(read_centres(frames[:, :, 0]), read_layout(frames[:, 0, 1]))


class FeatureBatchEncoder:
    """Reads a Batch's features and encodes them; the room is that of frame 0."""

    def __init__(self, world: FeatureWorld, spec: FrameSpec) -> None:
        side = world.config.frame
        if (spec.height, spec.width) != (side, side):
            raise InputError(f"model.frame: got {side}, expected the data's {spec.height} x {spec.width} pixels")
        self.world = world

    def __call__(self, batch: Batch, clock: Tensor) -> Tensor:
        """Encodings [B, T, D + 8]; T is the batch's own, so that a rollout can bring frame 0 alone."""
        walls = batch.walls if batch.walls.dim() == 3 else batch.walls[:, 0]
        return self.world.encode(read_centres(batch.dots, batch.corners), read_layout(walls))

    def explain(self, batch: Batch) -> str:
        """One line for the log: what a batch like this is encoded by."""
        stored = "whole frames" if batch.corners is None else "windows"
        return f"encoder: features read from {stored}, one learned linear layer"
