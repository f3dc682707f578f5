"""The gated model that learns from pixels where the agent is and what blocks it.

    position    p = softargmax(spread(relu(look(agent))) / temperature): two small convolutions, expected coordinates
    latent      z = W p, as in `gated`
    prediction  z' = z + g A a: the mean of moving by A a and of staying
    gate        g: a network on the wall's image around where the agent is and around where it would go

The room is the wall's image of frame 0, carried beside the latent. The gate looks at it through two lattices of points
one pixel apart, laid around p and p + a and mirrored so that the action leads right and down. Its first layer, on what
is sampled there bilinearly, is a convolution of the image, as linear maps commute: computed only where the agent is.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_fast.config import GatedPixelsConfig, Kernels
from jepa_fast.kernels.locate import locate, why_not_compiled
from jepa_fast.models.backends import compiled_or_plain
from jepa_fast.models.gated import ActionStep, BlockedFreeMixture, Encoded, Lift, PositionModel, bounded
from jepa_fast.models.softargmax import soft_argmax_of_windows
from jepa_fast.objectives.objective import Objective

# An agent's first logits are tenths of this: the softmax begins nearly flat, positions nearly the same for all frames.
FIRST_TEMPERATURE = 1.0


class DotEncoder(nn.Module):
    """Images of an agent on black to positions, and these to latents. No biases: black gives logits of 0 anywhere."""

    def __init__(self, config: GatedPixelsConfig, kernels: Kernels = "reference") -> None:
        super().__init__()
        self.kernels = kernels
        self.margin = config.kernel - 1
        self.look = nn.Conv2d(1, config.channels, config.kernel, padding=self.margin, bias=False)
        # Written as a transposed convolution: what each hidden pixel adds to the logits around it.
        self.spread = nn.ConvTranspose2d(config.channels, 1, config.kernel, bias=False)
        # Begins by adding alone. Where light lowers logits, all of the frame but the agent is found, as far from
        # collapse as it gets that way: half of the seeds would never leave it.
        with torch.no_grad():
            self.spread.weight.abs_()
        self.log_temperature = nn.Parameter(torch.tensor(FIRST_TEMPERATURE).log())
        self.lift = Lift(config.dim, config.spread, kernels)

    def locate(self, agents: Tensor, corners: Tensor, size: tuple[int, int]) -> Tensor:
        """Positions [N, 2] (x, y) of windows [N, h, w] at corners [N, 2] (row, column) in frames of `size`.

        Logits reach as far as the agent's light does through both convolutions, beyond the window; else they are 0.
        """
        corners = corners.to(torch.int64)
        if self.kernels != "reference" and why_not_compiled(agents, self.look.out_channels) is None:
            return locate(agents, corners, self.look.weight, self.spread.weight, self.log_temperature, size)
        logits = self.spread(F.relu(self.look(agents[:, None])))[:, 0]
        return soft_argmax_of_windows(logits, corners - self.margin, size, self.log_temperature.exp())

    def ops(self, kernels: Kernels, device: Literal["cpu", "cuda"]) -> dict[str, str]:
        """What the convolutions and the softmax run on; on CUDA there is no op."""
        if device != "cpu":
            return {}
        return {"locate": compiled_or_plain(kernels, why_not_compiled(torch.empty(0), self.look.out_channels))}


class PixelPredictor(nn.Module):
    """Stay or move by A a: how likely is a network's word on the wall's image around the agent and around its aim.

    What a wall is, on which side of a line an agent stops and how it passes a door is for the network to learn. Along
    each axis the lattices are mirrored with the action, so that mirrored scenes give the same gates.
    """

    offsets: Tensor

    def __init__(self, config: GatedPixelsConfig) -> None:
        super().__init__()
        self.action = ActionStep(config.dim)
        reach = torch.arange(config.lattice, dtype=torch.float32) - (config.lattice - 1) / 2
        self.register_buffer("offsets", torch.cartesian_prod(reach, reach).flip(-1), persistent=False)  # [S, 2] (x, y)
        hidden = config.hidden
        self.gate = nn.Sequential(
            nn.Linear(2 * len(self.offsets) + 2, hidden), nn.ReLU(),
            nn.Linear(hidden, hidden), nn.ReLU(),
            nn.Linear(hidden, 1),
        )  # fmt: skip

    def seen(self, positions: Tensor, room: Tensor, actions: Tensor) -> Tensor:
        """What the gate goes by [B, T, 2 S + 2]: the image around the agent, around its aim, and the action's lengths.

        Args:
            positions: [B, T, 2] (x, y) in pixels.
            room: [B, H, W]; black outside.
            actions: [B, T, 2] in pixels.
        """
        signs = torch.where(actions < 0, -1.0, 1.0).to(actions)
        mirrored = self.offsets * signs[..., None, :]
        points = torch.cat([positions[..., None, :] + mirrored, (positions + actions)[..., None, :] + mirrored], dim=-2)
        height, width = room.shape[1:]
        # Of grid_sample's unit: -1 and 1 are the centres of the outermost pixels.
        half = torch.stack([room.new_full((), (side - 1) / 2) for side in (width, height)])
        samples = F.grid_sample(room[:, None], points / half - 1, align_corners=True)  # [B, 1, T, 2 S]
        return torch.cat([samples[:, 0], actions.abs()], dim=-1)

    def log_chances(self, positions: Tensor, room: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithms of the chances of staying and of moving, [B, T] each; arguments as in `seen`."""
        # Logarithms all the way: a gate that is sure and wrong must still feel how wrong it is.
        logits = bounded(self.gate(self.seen(positions, room, actions))[..., 0])
        return F.logsigmoid(-logits), F.logsigmoid(logits)


class GatedPixels(PositionModel):
    """A joint-embedding predictive model on pixels.

    Its room is the wall's image [B, H, W], white at 1.
    """

    config: GatedPixelsConfig
    encoder: DotEncoder
    predictor: PixelPredictor

    def __init__(
        self,
        config: GatedPixelsConfig | None = None,
        objective: Objective | None = None,
        kernels: Kernels = "reference",
    ) -> None:
        """With kernels other than "reference" the encoder's convolutions and softmax are one op."""
        config = config or GatedPixelsConfig()
        super().__init__(config, objective, kernels)
        self.to_white = 1 / config.white
        self.encoder = DotEncoder(config, kernels)
        self.predictor = PixelPredictor(config)

    @property
    def lift(self) -> Lift:
        """What makes latents of positions."""
        return self.encoder.lift

    def encode_images(self, agents: Tensor, corners: Tensor | None, walls: Tensor, scale: float = 1.0) -> Encoded:
        """The encodings of images which `scale` brings into the range of the data."""
        with torch.autocast(agents.device.type, enabled=False):
            dtype, half = self.lift.weight.dtype, (self.side - 1) / 2
            to_white = scale * self.to_white
            if corners is None:
                corners = torch.zeros(2, dtype=torch.int64, device=agents.device).expand(*agents.shape[:2], 2)
            images = agents.flatten(0, 1).to(dtype) * to_white
            positions = self.encoder.locate(images, corners.flatten(0, 1), (self.side, self.side))
            latents = self.lift((positions - half) / half).unflatten(0, agents.shape[:2])
            return Encoded(latents, walls.to(dtype) * to_white)

    def transition(self, encoded: Encoded, actions: Tensor) -> BlockedFreeMixture:
        """One step from every encoded frame [B, T] by its action [B, T, 2] in pixels."""
        with torch.autocast(actions.device.type, enabled=False):
            half = (self.side - 1) / 2
            positions = half + half * self.lift.positions(encoded.latents)
            actions = actions.to(positions)
            log_stay, log_move = self.predictor.log_chances(positions, encoded.room, actions)
            step = self.spread * self.predictor.action(actions / half)
            return BlockedFreeMixture(encoded.latents, step, log_stay, log_move)

    def ops(self, kernels: Kernels, device: Literal["cpu", "cuda"]) -> dict[str, str]:
        """What the encoder runs on."""
        return super().ops(kernels, device) | self.encoder.ops(kernels, device)

    def explain(self) -> str:
        """How frames are encoded."""
        return "two learned convolutions, a softmax over the frame, one learned linear layer"
