"""The encoder: one ConvNeXt branch for the agent's channel, one for the walls', their states added or side by side.

With `fusion` a third branch reads both channels, and its state is added as well.

    stem    1x1 convolution, 1 -> C, 2 -> C for both channels, no bias
    block   y = x + W2 gelu(W1 LN(dwconv7x7(x))), L of them
    head    average pool to 6x6 ("pool") or, of each channel, where it is largest ("softargmax"); linear to D, LayerNorm
            (left out without `norm_before_add`)

Source: Liu et al., A ConvNet for the 2020s, arXiv:2201.03545; without layer scale, stochastic depth and MLP biases.
"""

import functools
import logging
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_fast.config import Kernels
from jepa_fast.kernels.convnext_block import convnext_block
from jepa_fast.kernels.dropout import SITE_AGENT, SITE_FUSION, SITE_WALL, dropout_mask
from jepa_fast.kernels.dwconv_norm import CHANNELS
from jepa_fast.models.biases import bias_or_zeros
from jepa_fast.models.softargmax import soft_argmax

POOLED_SIDE = 6
# Of softmaxes at first. Fresh activations are of some tenths: by themselves they hardly move a mean of 4225 pixels.
SHARPNESS = 10.0

logger = logging.getLogger(__name__)


@functools.cache
def _is_fused(channels: int, kernels: Kernels) -> bool:
    """Whether blocks run as one op; where they cannot, the log says why."""
    if kernels == "triton" and channels not in CHANNELS:
        known = ", ".join(map(str, CHANNELS))
        logger.warning("blocks run in plain PyTorch: model.channels is %d, the kernels take %s", channels, known)
    return kernels == "triton" and channels in CHANNELS


class ConvNeXtBlock(nn.Module):
    """x + W2 gelu(W1 LN(dwconv(x))): [N, C, H, W] to the same shape, channels last in memory."""

    def __init__(self, channels: int, kernels: Kernels = "reference", bias: bool = True) -> None:
        super().__init__()
        self.is_fused = _is_fused(channels, kernels)
        self.dwconv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels, bias=False)
        self.norm = nn.LayerNorm(channels, eps=1e-5, bias=bias)
        self.expand = nn.Linear(channels, 4 * channels, bias=False)
        self.project = nn.Linear(4 * channels, channels, bias=False)

    def mlp(self, convolved: Tensor) -> Tensor:
        """W2 gelu(W1 LN(z)) over the last axis of [..., C]."""
        out: Tensor = self.project(F.gelu(self.expand(self.norm(convolved))))
        return out

    def fused(self, x: Tensor, addend: Tensor | None = None, padding: tuple[int, int] = (3, 3)) -> Tensor:
        """The output as one op, channels last: see `jepa_fast.kernels.convnext_block`."""
        norm = self.norm.weight, bias_or_zeros(self.norm)
        parameters = (self.dwconv.weight, *norm, self.expand.weight, self.project.weight)
        return convnext_block(x, *parameters, addend, padding, self.norm.eps)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output, [N, C, H, W]."""
        if self.is_fused:
            return self.fused(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        # In channels-last memory this permutation moves nothing.
        update = self.mlp(self.dwconv(x).permute(0, 2, 3, 1))
        return x + update.permute(0, 3, 1, 2)


class Branch(nn.Module):
    """Images [N, I, H, W] of one channel or more to states [N, D], normalised unless told not to, before dropout."""

    def __init__(
        self,
        channels: int,
        blocks: int,
        dim: int,
        kernels: Kernels = "reference",
        *,
        bias: bool = True,
        norm: bool = True,
        head: Literal["pool", "softargmax"] = "pool",
        inputs: int = 1,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(inputs, channels, 1, bias=False)
        self.blocks = nn.ModuleList(ConvNeXtBlock(channels, kernels, bias) for _ in range(blocks))
        self.sharpness = nn.Parameter(torch.full((channels,), SHARPNESS)) if head == "softargmax" else None
        self.fc = nn.Linear(channels * (POOLED_SIDE**2 if head == "pool" else 2), dim, bias=bias)
        self.norm = nn.LayerNorm(dim, eps=1e-5, bias=bias) if norm else nn.Identity()

    def head(self, read: Tensor) -> Tensor:
        """States [N, D] from pooled activations [N, C, 6, 6] or coordinates [N, C, 2]."""
        out: Tensor = self.norm(self.fc(read.flatten(1)))
        return out

    def forward(self, images: Tensor) -> Tensor:
        """States [N, D]."""
        # Elementwise, so that the result is channels last whatever the layout of the images.
        pixels, stem = images.permute(0, 2, 3, 1), self.stem.weight.flatten(1)
        parts = (pixels[..., each : each + 1] * stem[:, each] for each in range(self.stem.in_channels))
        x = functools.reduce(torch.add, parts).permute(0, 3, 1, 2)
        for block in self.blocks:
            x = block(x)
        return self.head(F.adaptive_avg_pool2d(x, POOLED_SIDE) if self.sharpness is None else locate(x, self.sharpness))


def locate(x: Tensor, sharpness: Tensor) -> Tensor:
    """Expected coordinates (x, y) [N, C, 2], -1 to 1 from edge to edge, under softmaxes of sharpness [C] times x."""
    found = soft_argmax(x * sharpness[:, None, None])
    height, width = x.shape[2:]
    return torch.stack([centred(found[..., 0], width), centred(found[..., 1], height)], dim=-1)


def centred(pixels: Tensor, size: int) -> Tensor:
    """Coordinates along an axis of so many pixels, as fractions of half of it from its middle."""
    return (pixels - (size - 1) / 2) / (max(size - 1, 1) / 2)


class Encoder(nn.Module):
    """Frames to encodings: agent branch, wall branch, with `fusion` one of both, each with dropout on its output.

    They are added, or with wall "apart" stand side by side, [agent; wall] of 2 D numbers. The wall is then that of
    frame 0, encoded once, in all frames of a trajectory.
    """

    def __init__(
        self,
        channels: int,
        blocks: int,
        dim: int,
        dropout: float,
        kernels: Kernels = "reference",
        *,
        bias: bool = True,
        norm_before_add: bool = True,
        norm_after_add: bool = False,
        head: Literal["pool", "softargmax"] = "pool",
        fusion: bool = False,
        wall: Literal["added", "apart"] = "added",
    ) -> None:
        super().__init__()
        branch = functools.partial(Branch, channels, blocks, dim, kernels, bias=bias, norm=norm_before_add, head=head)
        self.agent = branch()
        self.wall = branch()
        self.fusion = branch(inputs=2) if fusion else None
        self.norm = nn.LayerNorm(dim, eps=1e-5, bias=bias) if norm_after_add else nn.Identity()
        self.dropout = dropout
        self.is_apart = wall == "apart"

    def combine(self, agent: Tensor, wall: Tensor, clock: Tensor, fusion: Tensor | None = None) -> Tensor:
        """Encodings [B, T, D] or [B, T, 2 D] of agents [B, T, D] and walls, [B, T, D], or [B, 1, D] for all T frames.

        `fusion` [B, T, D] is added too. Masks are drawn per frame, those of a wall apart per trajectory.
        """
        if not self.is_apart:
            wall = wall.expand_as(agent)
        if self.training and self.dropout > 0:
            agent = agent * dropout_mask(tuple(agent.shape), self.dropout, clock, SITE_AGENT)
            wall = wall * dropout_mask(tuple(wall.shape), self.dropout, clock, SITE_WALL)
            if fusion is not None:
                fusion = fusion * dropout_mask(tuple(fusion.shape), self.dropout, clock, SITE_FUSION)
        if self.is_apart:
            return torch.cat([agent, wall.expand_as(agent)], dim=-1)
        states: Tensor = self.norm(agent + wall if fusion is None else agent + wall + fusion)
        return states

    def forward(self, frames: Tensor, clock: Tensor) -> Tensor:
        """Encodings [B, T, D] or [B, T, 2 D] of frames [B, T, 2, H, W]; `clock` int64 [3] is the dropout clock."""
        batch, steps, _, height, width = frames.shape
        agent = self.agent(frames[:, :, 0].reshape(batch * steps, 1, height, width))
        walls = frames[:, :1, 1] if self.is_apart else frames[:, :, 1]
        wall = self.wall(walls.reshape(-1, 1, height, width))
        fusion: Tensor | None = None
        if self.fusion is not None:
            fusion = self.fusion(frames.flatten(0, 1)).view(batch, steps, -1)
        return self.combine(agent.view(batch, steps, -1), wall.view(batch, walls.shape[1], -1), clock, fusion)
