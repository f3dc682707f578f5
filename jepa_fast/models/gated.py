"""The gated family: models whose agent is blocked or free, two outcomes of a step, and a room that is carried.

    position    p that a latent z comes closest to as W p: seen from the frame's centre, in half frames; W [D, 2] is
                learned, its columns orthogonal and of one length. Of a `PositionModel` latents are such W p.
    prediction  z' = z + g A a: the mean of two outcomes, to move by A a or to stay

How frames are encoded, what of a room is kept and how likely the agent moves is for each model to say. The family is
for the two-room world alone: a channel with an agent, an agent on black, one with a wall, and actions of two numbers.
"""

from abc import abstractmethod
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor, nn

from jepa_fast.config import GatedConvNeXtConfig, GatedFeaturesConfig, GatedPixelsConfig, Kernels
from jepa_fast.data.batches import Batch, GroupBases, expand_group
from jepa_fast.data.manifest import FrameSpec
from jepa_fast.data.two_rooms import CHANNEL_GROUPS
from jepa_fast.data.two_rooms.rooms import solid_images
from jepa_fast.errors import InputError
from jepa_fast.kernels import gated as ops
from jepa_fast.kernels.gated import gated_columns, gated_columns_reference
from jepa_fast.models.backends import compiled_or_plain
from jepa_fast.models.model import BatchEncoder
from jepa_fast.models.stepwise import StepwiseModel

if TYPE_CHECKING:
    from jepa_fast.objectives.objective import Objective

# The largest logit of a gate, approached but not reached: what is too sure too early is never unlearned.
SUREST = 20.0


class Encoded(NamedTuple):
    """Trajectories: a latent for every frame, and the room that is read from frame 0 and carried beside them."""

    latents: Tensor  # [B, T, D]
    room: Tensor  # [B, ...], neither predicted nor probed


class BlockedFreeMixture(NamedTuple):
    """The two outcomes of a step, and how likely the agent moves. Leading axes are alike."""

    stayed: Tensor  # [..., D]
    step: Tensor  # [..., D] what is added by moving
    log_stay: Tensor  # [...] logarithm of the probability of staying
    log_move: Tensor  # [...] of moving

    @property
    def mean(self) -> Tensor:
        """The expected next latent [..., D]."""
        return torch.addcmul(self.stayed, self.log_move.exp()[..., None], self.step)


def bounded(logits: Tensor) -> Tensor:
    """Logits of gates, kept within SUREST."""
    return logits / (1 + logits.abs() / SUREST)


class Lift(nn.Module):
    """Positions to latents by one bias-free linear layer, whose columns are kept orthogonal and of length `spread`.

    Without that a latent loss alone would shrink it to nothing; with it there is nothing to collapse.
    """

    def __init__(self, dim: int, spread: float, kernels: Kernels = "reference") -> None:
        """With kernels other than "reference" the columns are an op."""
        super().__init__()
        self.weight = nn.Parameter(torch.randn(dim, 2) / dim**0.5)
        self.spread = spread
        self._columns = gated_columns_reference if kernels == "reference" else gated_columns

    def columns(self) -> Tensor:
        """W, [D, 2]."""
        return self._columns(self.weight, self.spread)

    def forward(self, positions: Tensor) -> Tensor:
        """Latents [..., D] of positions [..., 2]."""
        return positions @ self.columns().T

    def positions(self, latents: Tensor) -> Tensor:
        """Positions [..., 2] whose latents come closest to `latents` [..., D]: the same layer, transposed."""
        return latents @ self.columns() / self.spread**2


class ActionStep(nn.Linear):
    """A, [D, 2], no bias: what an action adds to a latent where the agent moves."""

    def __init__(self, dim: int) -> None:
        super().__init__(2, dim, bias=False)
        # A tenth of what the lift does to a position: neither outcome begins with an advantage.
        nn.init.normal_(self.weight, std=0.1 / dim**0.5)


class GatedModel(StepwiseModel):
    """A model whose agent is blocked or free.

    Frames are float [.., 2, H, W], channel 0 the agent and channel 1 the walls; actions (x, y) in pixels per step.
    Encodings are `Encoded`. Everything is float32, under autocast too: half a pixel in bf16 would be a wall missed.
    """

    channels = 2
    action_size = 2
    # Weight of the squared mean of a batch's positions in the loss, for a model whose latents have no fixed place.
    centring: float = 0.0

    config: GatedFeaturesConfig | GatedPixelsConfig | GatedConvNeXtConfig

    def __init__(
        self,
        config: GatedFeaturesConfig | GatedPixelsConfig | GatedConvNeXtConfig,
        objective: "Objective | None" = None,
        kernels: Kernels = "reference",
    ) -> None:
        """The objective is the likelihood of the mixture by default."""
        # It is made of what this module defines.
        from jepa_fast.objectives.mixture import MixtureLikelihood

        # Nothing is dropped; trainer and evaluation hand the clock on all the same.
        super().__init__(config, objective or MixtureLikelihood(), kernels)
        self.side, self.dim, self.spread = config.frame, config.dim, config.spread

    @property
    @abstractmethod
    def lift(self) -> Lift:
        """W, what makes latents of positions."""

    @property
    def pixel(self) -> float:
        """How far apart the latents of points one pixel apart are."""
        return 2 * self.spread / (self.side - 1)

    @abstractmethod
    def encode(self, frames: Tensor) -> Encoded:
        """The encodings of whole frames [B, T, 2, H, W]; the room is that of frame 0."""

    @abstractmethod
    def transition(self, encoded: Encoded, actions: Tensor) -> BlockedFreeMixture:
        """One step from every encoded frame [B, T] by its action [B, T, 2] in pixels."""

    def advance(self, encoded: Encoded, actions: Tensor) -> Encoded:
        """The same rooms with the expected latents after one step from every encoded frame."""
        return encoded._replace(latents=self.transition(encoded, actions).mean)

    def ops(self, kernels: Kernels, device: Literal["cpu", "cuda"]) -> dict[str, str]:
        """What columns and likelihood run on; on CUDA there is no op."""
        found = super().ops(kernels, device)
        if device == "cpu":
            found["gated"] = compiled_or_plain(kernels, ops.why_not_compiled(torch.empty(0)))
        return found

    def check_size(self, spec: FrameSpec) -> None:
        """Raise InputError unless frames are of the size that the model is for."""
        if (spec.height, spec.width) != (self.side, self.side):
            raise InputError(f"model.frame: got {self.side}, expected the data's {spec.height} x {spec.width} pixels")
        groups = tuple((group.name, group.channels) for group in spec.groups)
        if groups != CHANNEL_GROUPS or spec.action_size != 2:
            found = f"{', '.join(f'{name}:{channels}' for name, channels in groups)} and actions of {spec.action_size}"
            raise InputError(f"data: found channels {found}, expected agent:1, wall:1 and actions of 2 numbers")


class PositionModel(GatedModel):
    """A gated model that finds positions in images and embeds them by one linear layer."""

    @abstractmethod
    def encode_images(self, agents: Tensor, corners: Tensor | None, walls: Tensor, scale: float = 1.0) -> Encoded:
        """The encodings of images.

        Args:
            agents: [B, T, h, w], whole frames or windows.
            corners: of windows, [B, T, 2] (row, column) of their top left pixels.
            walls: [B, H, W], of frame 0.
            scale: what brings the images into the range of the data.
        """

    @abstractmethod
    def explain(self) -> str:
        """How frames are encoded, for the log."""

    def encode(self, frames: Tensor) -> Encoded:
        """The encodings of whole frames [B, T, 2, H, W]; the room is that of frame 0."""
        return self.encode_images(frames[:, :, 0], None, frames[:, 0, 1])

    def batch_encoder(
        self,
        spec: FrameSpec,
        bases: GroupBases = (),
        mode: Literal["auto", "off"] = "auto",
        encoder: nn.Module | None = None,
    ) -> BatchEncoder:
        """What encodes the batches of a split; see `Model.batch_encoder`.

        Raises:
            InputError: its frames are not of the size that the model is for.
        """
        assert encoder is None, "no objective of the gated family has an averaged encoder"
        return PositionEncoder(self, spec, bases)


class PositionEncoder:
    """Encodes a Batch, windows over black as they are; the room is that of frame 0.

    Positions are found in windows wherever there are some: there is no mode to choose.
    """

    def __init__(self, model: PositionModel, spec: FrameSpec, bases: GroupBases = ()) -> None:
        model.check_size(spec)
        self.model, self.spec, self.bases = model, spec, bases or (None,) * len(spec.groups)
        self._agent = spec.index("agent")

    def __call__(self, batch: Batch, clock: Tensor) -> Encoded:
        """Encodings of T frames; T is the batch's own, so that a rollout can bring frame 0 alone."""
        corners: Tensor | None = None
        if self._has_windows:
            agents, corners = batch.groups[self._agent].pixels[:, :, 0], batch.groups[self._agent].corners
        else:
            group, base = self.spec.groups[self._agent], self.bases[self._agent]
            agents = expand_group(batch.groups[self._agent], group, self.spec, batch.length, base)[:, :, 0]
        walls = solid_images(batch, self.spec, self.bases)
        return self.model.encode_images(agents, corners, walls, self.spec.scale)

    def explain(self, batch: Batch) -> str:
        """One line for the log: what a batch like this is encoded by."""
        return f"encoder: {self.model.explain()}, on {'windows' if self._has_windows else 'whole frames'}"

    @property
    def _has_windows(self) -> bool:
        return self.spec.groups[self._agent].base == "black"
