"""The encoder: one ConvNeXt branch for each group of channels, their latents added or side by side.

With `fusion` one more branch reads all channels, and its latent is added as well.

    stem    1x1 convolution, c -> C for the c channels of the branch, no bias
    block   y = x + W2 gelu(W1 LN(dwconv7x7(x))), L of them
    head    average pool to 6x6 ("pool") or, of each channel, where it is largest ("softargmax"); linear to D, LayerNorm
            (left out without `norm_before_add`)

Source: Liu et al., A ConvNet for the 2020s, arXiv:2201.03545; without layer scale, stochastic depth and MLP biases.
"""

import functools
import logging
from collections.abc import Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_fast.config import Kernels
from jepa_fast.data.two_rooms import CHANNEL_GROUPS
from jepa_fast.kernels.convnext_block import convnext_block
from jepa_fast.kernels.dropout import SITE_FUSION, dropout_mask, group_site
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
        x = apply_stem(images.permute(0, 2, 3, 1), self.stem.weight.flatten(1)).permute(0, 3, 1, 2)
        for block in self.blocks:
            x = block(x)
        return self.head(F.adaptive_avg_pool2d(x, POOLED_SIDE) if self.sharpness is None else locate(x, self.sharpness))


def apply_stem(pixels: Tensor, stem: Tensor) -> Tensor:
    """[..., C] of pixels [..., c] and a stem's weight [C, c]: sums of products, for c is small."""
    return functools.reduce(torch.add, (pixels[..., each : each + 1] * stem[:, each] for each in range(stem.shape[1])))


def locate(x: Tensor, sharpness: Tensor) -> Tensor:
    """Expected coordinates (x, y) [N, C, 2], -1 to 1 from edge to edge, under softmaxes of sharpness [C] times x."""
    found = soft_argmax(x * sharpness[:, None, None])
    height, width = x.shape[2:]
    return torch.stack([centred(found[..., 0], width), centred(found[..., 1], height)], dim=-1)


def centred(pixels: Tensor, size: int) -> Tensor:
    """Coordinates along an axis of so many pixels, as fractions of half of it from its middle."""
    return (pixels - (size - 1) / 2) / (max(size - 1, 1) / 2)


class Encoder(nn.Module):
    """Frames to latents: a branch per group of channels, named as the group, and with `fusion` one of all channels.

    Each has dropout on its output, and they are added. A group that is kept `apart` stands beside the sum of the
    others, [others; apart] of 2 D numbers: it is that of frame 0, encoded once, in all frames of a trajectory.
    """

    def __init__(
        self,
        channels: int,
        blocks: int,
        dim: int,
        dropout: float,
        kernels: Kernels = "reference",
        *,
        groups: Sequence[tuple[str, int]] = CHANNEL_GROUPS,
        bias: bool = True,
        norm_before_add: bool = True,
        norm_after_add: bool = False,
        head: Literal["pool", "softargmax"] = "pool",
        fusion: bool = False,
        apart: str | None = None,
    ) -> None:
        """`groups` are names and numbers of channels, in the order of the frames' channels.

        Raises:
            ValueError: groups without names of their own, or none of the name `apart`.
        """
        super().__init__()
        self.groups = tuple((name, inputs) for name, inputs in groups)
        names = [name for name, _ in self.groups]
        taken = {"groups", "channels", "dim", "dropout", "apart", "fusion", "norm", "branches", "dtype"}
        if not names or len(set(names)) < len(names) or any(name in taken or hasattr(self, name) for name in names):
            raise ValueError(f"groups: got {names}, expected names that differ and are no attributes of an encoder")
        if apart is not None and (apart not in names or len(names) < 2):
            raise ValueError(f"apart: got {apart!r}, expected one of several groups: {', '.join(names)}")
        self.channels, self.dim, self.dropout = channels, dim, dropout
        self.apart = None if apart is None else names.index(apart)
        branch = functools.partial(Branch, channels, blocks, dim, kernels, bias=bias, norm=norm_before_add, head=head)
        for name, inputs in self.groups:
            self.add_module(name, branch(inputs=inputs))
        self.fusion = branch(inputs=sum(inputs for _, inputs in self.groups)) if fusion else None
        self.norm = nn.LayerNorm(dim, eps=1e-5, bias=bias) if norm_after_add else nn.Identity()

    @property
    def branches(self) -> list[Branch]:
        """The branches of the groups, in order."""
        return [cast(Branch, self.get_submodule(name)) for name, _ in self.groups]

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return self.branches[0].stem.weight.dtype

    def combine(self, latents: Sequence[Tensor], clock: Tensor, fusion: Tensor | None = None) -> Tensor:
        """Latents [B, T, D] or [B, T, 2 D] of those of each group, [B, T, D], or [B, 1, D] for all T frames.

        `fusion` [B, T, D] is added too. Masks are drawn per frame, those of a group that is kept apart per trajectory.
        """
        length = max(latent.shape[1] for latent in latents)
        parts = [
            latent if number == self.apart else latent.expand(-1, length, -1) for number, latent in enumerate(latents)
        ]
        if self.training and self.dropout > 0:
            parts = [self._dropped(latent, clock, group_site(number)) for number, latent in enumerate(parts)]
            if fusion is not None:
                fusion = self._dropped(fusion, clock, SITE_FUSION)
        added = [latent for number, latent in enumerate(parts) if number != self.apart]
        total = functools.reduce(torch.add, added if fusion is None else [*added, fusion])
        if self.apart is not None:
            return torch.cat([total, parts[self.apart].expand_as(total)], dim=-1)
        states: Tensor = self.norm(total)
        return states

    def _dropped(self, latent: Tensor, clock: Tensor, site: int) -> Tensor:
        return latent * dropout_mask(tuple(latent.shape), self.dropout, clock, site)

    def forward(self, frames: Tensor, clock: Tensor) -> Tensor:
        """Latents [B, T, D] or [B, T, 2 D] of frames [B, T, C, H, W]; `clock` int64 [3] is the dropout clock."""
        batch, steps = frames.shape[:2]
        latents = []
        parts = torch.split(frames, [inputs for _, inputs in self.groups], dim=2)
        for number, (part, branch) in enumerate(zip(parts, self.branches, strict=True)):
            seen = part[:, :1] if number == self.apart else part
            latents.append(branch(seen.flatten(0, 1)).view(batch, seen.shape[1], -1))
        fusion: Tensor | None = None
        if self.fusion is not None:
            fusion = self.fusion(frames.flatten(0, 1)).view(batch, steps, -1)
        return self.combine(latents, clock, fusion)
