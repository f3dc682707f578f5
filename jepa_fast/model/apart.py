"""A world model whose states leave the wall out: both ConvNeXt branches side by side, a dot that stays or moves.

    state       z: the agent's branch of `encoder`, without the norm at its end, as nothing is added to it
    room        w: the wall's branch, likewise, of frame 0; carried unchanged, neither predicted nor probed
    prediction  z' = z + g A a: the mean of moving by A a and of staying
    gate        g: a network on z, z + A a, w and a

That one A a moves the dot wherever it is makes states follow the dot's place linearly. They could not where a LayerNorm
puts them on a sphere.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_fast.config import ApartModelConfig, Kernels
from jepa_fast.data.batches import Batch
from jepa_fast.data.manifest import FrameSpec
from jepa_fast.model.encoder import Encoder
from jepa_fast.model.one_step_world import Encoded, OneStepWorld, StayOrMove, bounded
from jepa_fast.model.shortcuts import BatchEncoder

# The gate's first logit, 0.93 of moving: what is learned before the gate is, is learned of moves.
FIRST_LOGIT = 3.0
# Standard deviation of what the gate's first layer gives for states and walls of unit variance, before its tanh.
SHARPNESS = 4.0


class ApartPredictor(nn.Module):
    """Stay or move by A a: how likely is a network's word on where the dot is and would be, on wall and action.

        u = W z + V LN(w) + b,  v = u + W A a,  logit = MLP([tanh(u); tanh(v); a])

    Each first unit is a line in the plane of places, which a wall shifts; the network sees on which side of it the dot
    is, and on which side it would be.
    """

    def __init__(self, config: ApartModelConfig) -> None:
        super().__init__()
        dim, hidden = config.dim, config.hidden
        self.action = nn.Linear(2, dim, bias=False)
        # A twentieth of what a pixel becomes in states of unit variance: states follow moves from small to large.
        nn.init.normal_(self.action.weight, std=0.02)
        self.gate = Gate(dim, hidden)

    def forward(self, states: Tensor, room: Tensor, actions: Tensor) -> StayOrMove:
        """The outcomes of one step from states [B, T, D] in rooms [B, D] by actions [B, T, 2] in pixels."""
        step = self.action(actions)
        # Logarithms all the way: a gate that is sure and wrong must still feel how wrong it is.
        logits = bounded(self.gate(states, room, step, actions))
        return StayOrMove(states, step, F.logsigmoid(-logits), F.logsigmoid(logits))


class Gate(nn.Module):
    """The logit of moving; see `ApartPredictor`."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.state = nn.Linear(dim, hidden)
        self.norm = nn.LayerNorm(dim)
        self.wall = nn.Linear(dim, hidden, bias=False)
        # Lines as sharp as a few pixels, all over the frame: what is told apart here is a step long.
        for layer in (self.state, self.wall):
            nn.init.normal_(layer.weight, std=SHARPNESS / dim**0.5)
        nn.init.uniform_(self.state.bias, -SHARPNESS, SHARPNESS)
        last = nn.Linear(hidden, 1)
        # Begins as a constant. One that learns while all states are alike closes, and states then need not move at all.
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, FIRST_LOGIT)
        self.mix = nn.Sequential(nn.Linear(2 * hidden + 2, hidden), nn.ReLU(), last)

    def forward(self, states: Tensor, room: Tensor, step: Tensor, actions: Tensor) -> Tensor:
        """Logits [B, T] from states and steps [B, T, D], rooms [B, D] and actions [B, T, 2]."""
        here = self.state(states) + self.wall(self.norm(room))[:, None]
        there = here + F.linear(step, self.state.weight)
        logits: Tensor = self.mix(torch.cat([here.tanh(), there.tanh(), actions], dim=-1))[..., 0]
        return logits


class ApartWorld(OneStepWorld):
    """A joint-embedding predictive world model with the wall beside the state. `ApartWorld()` has 357,601 parameters.

    The variance term is of states, whose size it sets. Its room is the wall's encoding [B, D].
    """

    can_collapse = True
    config: ApartModelConfig

    def __init__(self, config: ApartModelConfig | None = None, kernels: Kernels = "reference") -> None:
        config = config or ApartModelConfig()
        super().__init__(config)
        self.kernels = kernels
        self.encoder = Encoder(
            config.channels, config.blocks, config.dim, 0.0, kernels, norm_before_add=False, wall="apart"
        )
        self.predictor = ApartPredictor(config)

    @property
    def pixel(self) -> float:
        """How far apart the states of points one pixel apart are.

        Exactly so where states are linear in a position that is uniform over the frame, and have unit variance in each
        of D dimensions.
        """
        return float((6 * self.dim) ** 0.5 / self.side)

    def encode_frames(self, frames: Tensor) -> Encoded:
        """The encodings of whole frames [B, T, 2, H, W]; the room is that of frame 0."""
        with torch.autocast(frames.device.type, enabled=False):
            return self.split(self.encoder(frames, self.dropout_clock))

    def split(self, encodings: Tensor) -> Encoded:
        """States and rooms of encodings [B, T, 2 D], as the encoder puts them side by side."""
        return Encoded(encodings[..., : self.dim], encodings[:, 0, self.dim :])

    def predict(self, encoded: Encoded, actions: Tensor) -> StayOrMove:
        """One step from every encoded frame [B, T] by its action [B, T, 2] in pixels."""
        with torch.autocast(actions.device.type, enabled=False):
            predicted: StayOrMove = self.predictor(encoded.states, encoded.room, actions.to(encoded.states))
            return predicted

    def regularised(self, states: Tensor) -> Tensor:
        """The states themselves."""
        return states

    def batch_encoder(
        self, spec: FrameSpec, wall_bases: Tensor | None = None, mode: Literal["auto", "off"] = "auto"
    ) -> "ApartBatchEncoder":
        """What encodes the batches of a split; arguments as in `BatchEncoder`.

        Raises:
            InputError: its frames are not of the size that the model is for.
        """
        self.check_size(spec)
        return ApartBatchEncoder(self, BatchEncoder(self.encoder, spec, wall_bases, mode))


class ApartBatchEncoder:
    """Encodes a Batch by the exact shortcuts."""

    def __init__(self, world: ApartWorld, encoder: BatchEncoder) -> None:
        self.world, self.encoder = world, encoder

    def __call__(self, batch: Batch, clock: Tensor) -> Encoded:
        """Encodings of T frames; T is the batch's own, so that a rollout can bring frame 0 alone."""
        with torch.autocast(batch.dots.device.type, enabled=False):
            return self.world.split(self.encoder(batch, clock))

    def explain(self, batch: Batch) -> str:
        """One line for the log: what a batch like this is encoded by."""
        return self.encoder.explain(batch)
