"""The gated model whose latents leave the wall out: both ConvNeXt branches side by side, an agent blocked or free.

    latent      z: the agent's branch of `encoder`, without the norm at its end, as nothing is added to it
    room        w: the wall's branch, likewise, of frame 0; carried unchanged, neither predicted nor probed
    prediction  z' = z + g A a: the mean of moving by A a and of staying; A's columns orthogonal and of one length
    gate        g: a network on how p and p + a lie to lines that w shifts; p: the position that z is closest to as A p

As long as the gate is open, latents that follow one and the same A a wherever the agent is have to be linear in its
place, in both directions and at the length of A: there is nothing to collapse to. A LayerNorm, which puts latents on a
sphere, would not let them.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_fast.config import GatedConvNeXtConfig, Kernels
from jepa_fast.data.batches import Batch, GroupBases
from jepa_fast.data.manifest import FrameSpec
from jepa_fast.models.convnext import Encoder
from jepa_fast.models.gated import BlockedFreeMixture, Encoded, GatedModel, Lift, bounded
from jepa_fast.models.sparse_encoder import SparseEncoder
from jepa_fast.objectives.objective import Objective

# The first logit, 0.80 of moving: what is learned before the gate is, is learned of moves. From 3, 0.93, it learned the
# borders and for long no walls.
FIRST_LOGIT = 1.5
# What the gate takes for a unit of length, in pixels: about a step, so that a step shows in a tanh.
UNIT = 2.0
# Of the gate's lines at first: how far they lie from the origin at most, and how much the wall shifts them, in units.
LINES_REACH, SHIFTS = 4.0, 16.0


class GatedPredictor(nn.Module):
    """Stay or move by A a: how likely is a network's word on where the agent is, on wall and action."""

    def __init__(self, config: GatedConvNeXtConfig, kernels: Kernels = "reference") -> None:
        super().__init__()
        self.half_frame = (config.frame - 1) / 2
        self.action = Lift(config.dim, config.spread, kernels)
        self.gate = Gate(config.dim, config.hidden)

    def forward(self, latents: Tensor, room: Tensor, actions: Tensor) -> BlockedFreeMixture:
        """The outcomes of one step from latents [B, T, D] in rooms [B, D] by actions [B, T, 2] in pixels."""
        positions = self.half_frame * self.action.positions(latents)
        # Logarithms all the way: a gate that is sure and wrong must still feel how wrong it is.
        logits = bounded(self.gate(positions, room, actions))
        return BlockedFreeMixture(
            latents, self.action(actions / self.half_frame), F.logsigmoid(-logits), F.logsigmoid(logits)
        )


class Gate(nn.Module):
    """The logit of moving, from how the agent lies to lines that the wall shifts: where it is, and where it would be.

    Each line is a direction and an offset in the plane of positions, plus what the wall's encoding says of it. Its tanh
    tells sides apart, and how near the line is; two hidden layers with ReLU go by all of them, before and after.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.lines = nn.Linear(2, hidden)
        self.shift = nn.Linear(dim, hidden, bias=False)
        last = nn.Linear(hidden, 1)
        nn.init.uniform_(self.lines.bias, -LINES_REACH, LINES_REACH)
        nn.init.normal_(self.shift.weight, std=SHIFTS / dim**0.5)
        # Begins as a constant. One that learns while all latents are alike closes, and then they need not move at all.
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, FIRST_LOGIT)
        self.mix = nn.Sequential(
            nn.Linear(2 * hidden + 2, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), last
        )

    def forward(self, positions: Tensor, room: Tensor, actions: Tensor) -> Tensor:
        """Logits [B, T] from positions and actions [B, T, 2] in pixels and rooms [B, D]."""
        before = self.lines(positions / UNIT) + self.shift(room)[:, None]
        after = before + F.linear(actions / UNIT, self.lines.weight)
        logits: Tensor = self.mix(torch.cat([before.tanh(), after.tanh(), actions], dim=-1))[..., 0]
        return logits


class GatedConvNeXt(GatedModel):
    """A JEPA with the wall beside the latent. `GatedConvNeXt()` has 258,017 parameters.

    Its room is the wall's encoding [B, D].
    """

    # The likelihood says nothing of where the plane of latents lies, and it wanders: in one run of two by more than a
    # frame within 900 steps, away from where the gate's lines are.
    centring = 0.1
    config: GatedConvNeXtConfig
    encoder: Encoder
    predictor: GatedPredictor

    def __init__(
        self,
        config: GatedConvNeXtConfig | None = None,
        objective: Objective | None = None,
        kernels: Kernels = "reference",
    ) -> None:
        """With kernels "triton" the blocks run as fused ops."""
        config = config or GatedConvNeXtConfig()
        super().__init__(config, objective, kernels)
        self.encoder = Encoder(
            config.channels, config.blocks, config.dim, 0.0, kernels, norm_before_add=False, apart="wall"
        )
        self.predictor = GatedPredictor(config, kernels)

    @property
    def lift(self) -> Lift:
        """A, which latents of places follow as they follow moves."""
        return self.predictor.action

    def encode(self, frames: Tensor) -> Encoded:
        """The encodings of whole frames [B, T, 2, H, W]; the room is that of frame 0."""
        with torch.autocast(frames.device.type, enabled=False):
            return self.split(self.encoder(frames, self.dropout_clock))

    def split(self, encodings: Tensor) -> Encoded:
        """Latents and rooms of encodings [B, T, 2 D], as the encoder puts them side by side."""
        return Encoded(encodings[..., : self.dim], encodings[:, 0, self.dim :])

    def transition(self, encoded: Encoded, actions: Tensor) -> BlockedFreeMixture:
        """One step from every encoded frame [B, T] by its action [B, T, 2] in pixels."""
        with torch.autocast(actions.device.type, enabled=False):
            predicted: BlockedFreeMixture = self.predictor(encoded.latents, encoded.room, actions.to(encoded.latents))
            return predicted

    def batch_encoder(
        self,
        spec: FrameSpec,
        bases: GroupBases = (),
        mode: Literal["auto", "off"] = "auto",
        encoder: nn.Module | None = None,
    ) -> "GatedConvNeXtEncoder":
        """What encodes the batches of a split; see `Model.batch_encoder`.

        Raises:
            InputError: its frames are not of the size that the model is for.
        """
        assert encoder is None, "no objective of the gated family has an averaged encoder"
        self.check_size(spec)
        return GatedConvNeXtEncoder(self, SparseEncoder(self.encoder, spec, bases, mode))

    def ops(self, kernels: Kernels, device: Literal["cpu", "cuda"]) -> dict[str, str]:
        """What the objective's ops and the encoder's blocks run on."""
        return super().ops(kernels, device) | self.encoder.ops(kernels, device)


class GatedConvNeXtEncoder:
    """Encodes a Batch by sparse encoding."""

    def __init__(self, model: GatedConvNeXt, encoder: SparseEncoder) -> None:
        self.model, self.encoder = model, encoder

    def __call__(self, batch: Batch, clock: Tensor) -> Encoded:
        """Encodings of T frames; T is the batch's own, so that a rollout can bring frame 0 alone."""
        with torch.autocast(batch.actions.device.type, enabled=False):
            return self.model.split(self.encoder(batch, clock))

    def explain(self, batch: Batch) -> str:
        """One line for the log: what a batch like this is encoded by."""
        return self.encoder.explain(batch)
