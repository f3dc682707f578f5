"""A JEPA whose predictor looks at the first frame: not at all of it, but at points that the latent asks for.

    latent      z: ConvNeXt branches of the frame, added, without a norm at their ends
    context     the first frame's pixels, blurred to several widths; carried beside the latent, not predicted
    moves       m(z) = A^T z / |A|^2, column by column: the actions that would add up to the latent
    glimpse     the context at points P_h m(z) + r_h + o_hk + M a of heads h, bilinear; finer points in finer images
    prediction  z' = z + sigmoid(f(glimpse, a, z)) * A a, elementwise

A, P, r, M and the offsets o are learned as f is, from the prediction of latents: that actions move something in the
frame, where it is and what it meets there is for the model to find out. So what happens is a function of what is near,
the same everywhere, as it would be for a convolutional predictor on a map of latents, at the price of one point.

A latent is asked along A alone. Whatever else it holds, what has moved by A a then looks from a place that has moved
by P a; with a free linear map in place of P m the search is in 2 D numbers of each head in place of 4, and heads ended
where they saw nothing that helped.

Sources: the points are those of deformable attention (Zhu et al., Deformable DETR, arXiv:2010.04159), the gate that of
a recurrent unit (Cho et al., arXiv:1406.1078).
"""

import dataclasses
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_fast.config import GlimpseConfig, Kernels
from jepa_fast.data.batches import Batch, GroupBases, expand_group, to_values
from jepa_fast.data.manifest import FrameSpec
from jepa_fast.errors import InputError
from jepa_fast.models.convnext import Encoder
from jepa_fast.models.model import BatchEncoder
from jepa_fast.models.sparse_encoder import SparseEncoder
from jepa_fast.models.stepwise import StepwiseModel
from jepa_fast.objectives.objective import Objective

# Which way round the heads' places lie at first, each a pixel for each unit of an action. A place that moves as the
# mirror image of what acts has to pass through a line to be turned round, and does not: so both kinds are there, and of
# each two that are half a turn apart.
TURNS = ((1.0, 1.0), (-1.0, 1.0), (1.0, -1.0), (-1.0, -1.0))
# Of A at first: about as far as a pixel is in latents of unit variance.
ACTION_STD = 0.03
# The first gates, 0.82: what is learned before they are, is learned of moves.
FIRST_GATE = 1.5


class Scene(NamedTuple):
    """Trajectories: a latent for every frame, and the context that is read from the first."""

    latents: Tensor  # [B, T, D]
    context: Tensor  # [B, L, c, H, W]: the finest image first


class GlimpsePredictor(nn.Module):
    """One step of latents by an action and by what is seen of the context around a point that they ask for."""

    def __init__(self, config: GlimpseConfig, channels: int) -> None:
        """`channels` are those of the context."""
        super().__init__()
        self.dim, self.action_dim, self.levels = config.dim, config.action_size, config.levels
        self.action = nn.Linear(config.action_size, config.dim, bias=False)
        turns = torch.tensor(TURNS).repeat(-(-config.heads // len(TURNS)), 1)[: config.heads]
        self.places = nn.Parameter(turns[:, :, None] * torch.eye(2, config.action_size))  # P, [heads, 2, A] in pixels
        self.shifts = nn.Parameter(torch.zeros(config.heads, 2))  # r, in half frames from the centre
        reach = torch.arange(config.lattice, dtype=torch.float32) - (config.lattice - 1) / 2
        lattice = torch.cartesian_prod(reach, reach).flip(-1)
        self.offsets = nn.Parameter(lattice.repeat(config.heads, 1, 1))  # [heads, K, 2] (x, y) in the level's unit
        self.ahead = nn.Linear(config.action_size, 2, bias=False)
        seen = config.heads * len(lattice) * config.levels * channels
        last = nn.Linear(config.hidden, config.dim)
        self.mix = nn.Sequential(
            nn.Linear(seen + config.action_size + config.dim, config.hidden), nn.GELU(),
            nn.Linear(config.hidden, config.hidden), nn.GELU(),
            last,
        )  # fmt: skip
        nn.init.normal_(self.action.weight, std=ACTION_STD)
        nn.init.zeros_(self.ahead.weight)
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, FIRST_GATE)

    def blurred(self, images: Tensor) -> Tensor:
        """The context [B, L, c, H, W] of images [B, c, H, W]: as they are, and means over wider and wider squares."""
        levels = [images]
        for level in range(1, self.levels):
            reach = 2**level
            width = 2 * reach + 1
            # A mean over rows of means over columns: a square's sides are cheaper than its area.
            columns = F.avg_pool2d(F.pad(images, (reach,) * 4), (width, 1), 1)
            levels.append(F.avg_pool2d(columns, (1, width), 1))
        return torch.stack(levels, dim=1)

    def glimpse(self, latents: Tensor, context: Tensor, actions: Tensor) -> Tensor:
        """The context at the points of latents [B, T, D] and actions [B, T, A]: [B, T, L c heads K], black outside."""
        height, width = context.shape[-2:]
        # Of grid_sample's unit: -1 and 1 are the centres of the outermost pixels.
        pixel: Tensor | float = 2 / max(width - 1, 1)
        if height != width:
            # Filled on the device: a tensor of both numbers would be a copy from the host in every step.
            pixel = torch.stack([latents.new_full((), 2 / max(side - 1, 1)) for side in (width, height)])
        # A is learned by what it adds alone: where it is looked at would pull it about.
        action = self.action.weight.detach()
        moves = latents @ (action / action.square().sum(dim=0))  # [B, T, A]
        places = F.linear(moves, self.places.flatten(0, 1)).view(*moves.shape[:2], -1, 2)
        places = places + self.ahead(actions)[:, :, None]
        centre = places * pixel + self.shifts
        seen = []
        for level in range(self.levels):
            points = centre[:, :, :, None] + self.offsets * (pixel * 2**level)
            samples = F.grid_sample(context[:, level], points.flatten(2, 3), align_corners=True)  # [B, c, T, heads K]
            seen.append(samples.transpose(1, 2).flatten(2))
        return torch.cat(seen, dim=-1)

    def forward(self, latents: Tensor, context: Tensor, actions: Tensor) -> Tensor:
        """The latents [B, T, D] after one step from each of latents [B, T, D] by actions [B, T, A]."""
        gate = torch.sigmoid(self.mix(torch.cat([self.glimpse(latents, context, actions), actions, latents], dim=-1)))
        return torch.addcmul(latents, gate, self.action(actions))


class GlimpseJEPA(StepwiseModel):
    """A JEPA whose predictor looks at the first frame; encodings are `Scene`. Everything is float32."""

    config: GlimpseConfig
    encoder: Encoder
    predictor: GlimpsePredictor

    def __init__(
        self, config: GlimpseConfig | None = None, objective: Objective | None = None, kernels: Kernels = "reference"
    ) -> None:
        """The objective is `Dynamics` by default; with kernels other than "reference" the blocks run as ops."""
        from jepa_fast.objectives.dynamics import Dynamics

        config = config or GlimpseConfig()
        super().__init__(config, objective or Dynamics(), kernels)
        self.groups = tuple((group.name, group.channels) for group in config.groups)
        self.channels, self.action_size = sum(count for _, count in self.groups), config.action_size
        encoded = [group for group in self.groups if group[0] != config.context]
        seen = sum(count for name, count in self.groups if config.context in (None, name))
        self.encoder = Encoder(
            config.channels, config.blocks, config.dim, 0.0, kernels, groups=encoded, norm_before_add=False
        )
        self.predictor = GlimpsePredictor(config, seen)
        self.objective.attach(config.dim, config.action_size)

    def encode(self, frames: Tensor) -> Scene:
        """The encodings of whole frames [B, T, C, H, W]; the context is that of the first."""
        with torch.autocast(frames.device.type, enabled=False):
            by_group = torch.split(frames, [count for _, count in self.groups], dim=2)
            encoded, seen = [], []
            for (name, _), part in zip(self.groups, by_group, strict=True):
                if name != self.config.context:
                    encoded.append(part)
                if self.config.context in (None, name):
                    seen.append(part[:, 0])
            latents = self.encoder(torch.cat(encoded, dim=2), self.dropout_clock)
            return Scene(latents, self.look(torch.cat(seen, dim=1)))

    def look(self, images: Tensor) -> Tensor:
        """The context [B, L, c, H, W] of images [B, c, H, W] in the range of the data."""
        return self.predictor.blurred(images / self.config.white)

    def advance(self, encoded: Scene, actions: Tensor) -> Scene:
        """The same scenes with the latents after one step from every encoded frame."""
        with torch.autocast(actions.device.type, enabled=False):
            actions = actions.to(encoded.latents)
            return encoded._replace(latents=self.predictor(encoded.latents, encoded.context, actions))

    def batch_encoder(
        self,
        spec: FrameSpec,
        bases: GroupBases = (),
        mode: Literal["auto", "off"] = "auto",
        encoder: nn.Module | None = None,
    ) -> BatchEncoder:
        """What encodes the batches of a split; see `Model.batch_encoder`.

        Raises:
            InputError: its frames have other groups than the model.
        """
        assert encoder is None, "no objective of this model has an averaged encoder"
        return SceneEncoder(self, spec, bases, mode)

    def ops(self, kernels: Kernels, device: Literal["cpu", "cuda"]) -> dict[str, str]:
        """What the encoder's blocks run on."""
        return super().ops(kernels, device) | self.encoder.ops(kernels, device)


class SceneEncoder:
    """Encodes a Batch: what is encoded by sparse encoding, what is looked at as an image of the first frame."""

    def __init__(self, model: GlimpseJEPA, spec: FrameSpec, bases: GroupBases, mode: Literal["auto", "off"]) -> None:
        found = tuple((group.name, group.channels) for group in spec.groups)
        if found != model.groups:
            listed = [", ".join(f"{name}:{count}" for name, count in groups) for groups in (model.groups, found)]
            raise InputError(f"groups of channels: the model has {listed[0]}, the data {listed[1]}")
        self.model, self.spec, self.bases = model, spec, bases or (None,) * len(spec.groups)
        context = model.config.context
        self._encoded = [number for number, (name, _) in enumerate(found) if name != context]
        self._seen = [number for number, (name, _) in enumerate(found) if context in (None, name)]
        part = dataclasses.replace(spec, groups=tuple(spec.groups[number] for number in self._encoded))
        self._sparse = SparseEncoder(model.encoder, part, tuple(self.bases[number] for number in self._encoded), mode)

    def __call__(self, batch: Batch, clock: Tensor) -> Scene:
        """Encodings of T frames; T is the batch's own, so that a rollout can bring frame 0 alone."""
        with torch.autocast(batch.actions.device.type, enabled=False):
            images = [
                expand_group(batch.groups[number].frames(slice(1)), self.spec.groups[number], self.spec, 1, base)[:, 0]
                for number, base in ((number, self.bases[number]) for number in self._seen)
            ]
            values = to_values(torch.cat(images, dim=1), self.spec).to(self.model.predictor.action.weight.dtype)
            return Scene(self._sparse(self._part(batch), clock), self.model.look(values))

    def explain(self, batch: Batch) -> str:
        """One line for the log: what a batch like this is encoded by."""
        return self._sparse.explain(self._part(batch))

    def _part(self, batch: Batch) -> Batch:
        return batch._replace(groups=tuple(batch.groups[number] for number in self._encoded))
