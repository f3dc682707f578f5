"""What the worlds share whose dot stays or moves: two outcomes of a step, a room that is carried.

    position    p that a state z comes closest to as W p: seen from the frame's centre, in half frames; W [D, 2] is
                learned, its columns orthogonal and of one length. Of a `PositionModel` states are such W p.
    prediction  z' = z + g A a: the mean of two outcomes, to move by A a or to stay

How frames are encoded, what of a room is kept and how likely the dot moves is for each world to say. The family is for
the two-room world alone: a channel with an agent, a dot on black, a channel with a wall, and actions of two numbers.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_fast.config import ApartModelConfig, FeatureModelConfig, Kernels, PixelModelConfig
from jepa_fast.data.batches import Batch, GroupBases, expand_group
from jepa_fast.data.manifest import FrameSpec
from jepa_fast.data.two_rooms import CHANNEL_GROUPS
from jepa_fast.data.two_rooms.rooms import solid_images
from jepa_fast.errors import InputError
from jepa_fast.kernels.dropout import new_clock
from jepa_fast.models.jepa import check_first_frames, check_shapes

# The largest logit of a gate, approached but not reached: what is too sure too early is never unlearned.
SUREST = 20.0


class Encoded(NamedTuple):
    """Trajectories: a state for every frame, and the room that is read from frame 0 and carried beside them."""

    states: Tensor  # [B, T, D]
    room: Tensor  # [B, ...], neither predicted nor probed

    def frames(self, which: slice) -> "Encoded":
        """The same trajectories with some of their frames alone."""
        return self._replace(states=self.states[:, which])


AnyEncoded = Tensor | Encoded


def states_of(encoded: AnyEncoded) -> Tensor:
    """The states [B, T, D] of encodings, without what is carried beside them."""
    return encoded.states if isinstance(encoded, Encoded) else encoded


class BlockedFreeMixture(NamedTuple):
    """The two outcomes of a step, and how likely the dot moves. Leading axes are alike."""

    stayed: Tensor  # [..., D]
    step: Tensor  # [..., D] what is added by moving
    log_stay: Tensor  # [...] logarithm of the probability of staying
    log_move: Tensor  # [...] of moving

    @property
    def mean(self) -> Tensor:
        """The expected next state [..., D]."""
        return torch.addcmul(self.stayed, self.log_move.exp()[..., None], self.step)


def bounded(logits: Tensor) -> Tensor:
    """Logits of gates, kept within SUREST."""
    return logits / (1 + logits.abs() / SUREST)


class Lift(nn.Module):
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


class ActionStep(nn.Linear):
    """A, [D, 2], no bias: what an action adds to a state where the dot moves."""

    def __init__(self, dim: int) -> None:
        super().__init__(2, dim, bias=False)
        # A tenth of what the lift does to a position: neither outcome begins with an advantage.
        nn.init.normal_(self.weight, std=0.1 / dim**0.5)


class GatedModel(nn.Module, ABC):
    """A joint-embedding predictive world model whose dot stays or moves.

    Used like `World`: frames float [.., 2, H, W], channel 0 the agent and channel 1 the walls; actions (x, y) in pixels
    per step. Everything is float32, under autocast too: half a pixel in bf16 would be a wall missed.
    """

    dropout_clock: Tensor
    kernels: Kernels = "reference"
    # Whether the encoder could give all frames the same state.
    can_collapse: bool
    # Weight of the squared mean of a batch's positions in the loss, for a world whose states have no fixed place.
    centring: float = 0.0

    config: FeatureModelConfig | PixelModelConfig | ApartModelConfig

    def __init__(self, config: FeatureModelConfig | PixelModelConfig | ApartModelConfig) -> None:
        super().__init__()
        self.config = config
        self.side, self.dim, self.spread = config.frame, config.dim, config.spread
        # Nothing is dropped; trainer and evaluation hand the clock on all the same.
        self.register_buffer("dropout_clock", new_clock(), persistent=False)

    @property
    @abstractmethod
    def lift(self) -> Lift:
        """W, what makes states of positions."""

    @property
    def pixel(self) -> float:
        """How far apart the states of points one pixel apart are."""
        return 2 * self.spread / (self.side - 1)

    @abstractmethod
    def encode_frames(self, frames: Tensor) -> Encoded:
        """The encodings of whole frames [B, T, 2, H, W]; the room is that of frame 0."""

    @abstractmethod
    def predict(self, encoded: Encoded, actions: Tensor) -> BlockedFreeMixture:
        """One step from every encoded frame [B, T] by its action [B, T, 2] in pixels."""

    @abstractmethod
    def batch_encoder(
        self, spec: FrameSpec, bases: GroupBases = (), mode: Literal["auto", "off"] = "auto"
    ) -> Callable[[Batch, Tensor], Encoded]:
        """What encodes the batches of a split; arguments as in `SparseEncoder`.

        Raises:
            InputError: its frames are not of the size that the model is for.
        """

    def check_size(self, spec: FrameSpec) -> None:
        """Raise InputError unless frames are of the size that the model is for."""
        if (spec.height, spec.width) != (self.side, self.side):
            raise InputError(f"model.frame: got {self.side}, expected the data's {spec.height} x {spec.width} pixels")
        groups = tuple((group.name, group.channels) for group in spec.groups)
        if groups != CHANNEL_GROUPS or spec.action_size != 2:
            found = f"{', '.join(f'{name}:{channels}' for name, channels in groups)} and actions of {spec.action_size}"
            raise InputError(f"data: found channels {found}, expected agent:1, wall:1 and actions of 2 numbers")

    def forward(self, frames: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted and encoded states of frames 1..T-1, both [B, T-1, D], from frames [B, T, 2, H, W].

        Raises:
            ValueError: shapes that do not fit together.
        """
        check_shapes(frames, actions)
        encoded = self.encode_frames(frames)
        return self.unroll(encoded.frames(slice(1)), actions)[:, 1:], encoded.states[:, 1:]

    def rollout(self, first_frames: Tensor, actions: Tensor) -> Tensor:
        """States [B, T, D]: the encoding of frame 0, then one prediction per action. No later frame is asked for.

        Args:
            first_frames: [B, 2, H, W].
            actions: [B, T-1, 2].

        Raises:
            ValueError: shapes that do not fit together.
        """
        check_first_frames(first_frames, actions)
        return self.unroll(self.encode_frames(first_frames[:, None]), actions)

    def unroll(self, first: Encoded, actions: Tensor) -> Tensor:
        """States [B, T, D]: those of one encoded frame [B, 1], then one prediction per action [B, T-1, 2]."""
        encoded = first
        states = [encoded.states]
        for t in range(actions.shape[1]):
            encoded = encoded._replace(states=self.predict(encoded, actions[:, t : t + 1]).mean)
            states.append(encoded.states)
        return torch.cat(states, dim=1)


class PositionModel(GatedModel):
    """A one-step world that finds positions in images and lifts them by one linear layer."""

    @abstractmethod
    def encode(self, dots: Tensor, corners: Tensor | None, walls: Tensor, scale: float = 1.0) -> Encoded:
        """The encodings of images.

        Args:
            dots: [B, T, h, w], whole frames or windows.
            corners: of windows, [B, T, 2] (row, column) of their top left pixels.
            walls: [B, H, W], of frame 0.
            scale: what brings the images into the range of the data.
        """

    @abstractmethod
    def explain(self) -> str:
        """How frames are encoded, for the log."""

    def encode_frames(self, frames: Tensor) -> Encoded:
        """The encodings of whole frames [B, T, 2, H, W]; the room is that of frame 0."""
        return self.encode(frames[:, :, 0], None, frames[:, 0, 1])

    def batch_encoder(
        self, spec: FrameSpec, bases: GroupBases = (), mode: Literal["auto", "off"] = "auto"
    ) -> "PositionEncoder":
        """What encodes the batches of a split.

        Raises:
            InputError: its frames are not of the size that the model is for.
        """
        return PositionEncoder(self, spec, bases)


class PositionEncoder:
    """Encodes a Batch, windows over black as they are; the room is that of frame 0.

    Everything is encoded from windows wherever it can be: there is no mode to choose.
    """

    def __init__(self, world: PositionModel, spec: FrameSpec, bases: GroupBases = ()) -> None:
        world.check_size(spec)
        self.world, self.spec, self.bases = world, spec, bases or (None,) * len(spec.groups)
        self._agent = spec.index("agent")

    def __call__(self, batch: Batch, clock: Tensor) -> Encoded:
        """Encodings of T frames; T is the batch's own, so that a rollout can bring frame 0 alone."""
        corners: Tensor | None = None
        if self._has_windows:
            dots, corners = batch.groups[self._agent].pixels[:, :, 0], batch.groups[self._agent].corners
        else:
            group, base = self.spec.groups[self._agent], self.bases[self._agent]
            dots = expand_group(batch.groups[self._agent], group, self.spec, batch.length, base)[:, :, 0]
        return self.world.encode(dots, corners, solid_images(batch, self.spec, self.bases), self.spec.scale)

    def explain(self, batch: Batch) -> str:
        """One line for the log: what a batch like this is encoded by."""
        return f"encoder: {self.world.explain()}, on {'windows' if self._has_windows else 'whole frames'}"

    @property
    def _has_windows(self) -> bool:
        return self.spec.groups[self._agent].base == "black"
