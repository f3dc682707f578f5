"""The encoder: one ConvNeXt branch per group of channels, their latents added or side by side.

With `fusion` one more branch reads all channels, and its latent is added as well.

    stem    convolution, c -> C for a group of c channels, no bias: 1x1, or k x k with a stride for larger frames
    block   y = x + W2 gelu(W1 LN(dwconv7x7(x))), L of them
    head    average pool to 6x6 ("pool") or, of each channel, where it is largest ("softargmax"); linear to D, LayerNorm
            (left out without `norm_before_add`). "spatial": average pool to 6x6, both in each cell by itself.
            With `batch_norm` what is pooled or located is standardised over the batch first

Source: Liu et al., A ConvNet for the 2020s, arXiv:2201.03545; without layer scale, stochastic depth and MLP biases.
"""

import functools
import logging
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_fast.config import Kernels
from jepa_fast.data.batches import GroupBases
from jepa_fast.data.manifest import FrameSpec
from jepa_fast.data.two_rooms import CHANNEL_GROUPS
from jepa_fast.errors import require
from jepa_fast.kernels.convnext_block import KeptBlock, convnext_block, convnext_block_keep
from jepa_fast.kernels.dispatch import why_no_compiled_blocks
from jepa_fast.kernels.dropout import SITE_FUSION, dropout_mask, group_site
from jepa_fast.kernels.dwconv_norm import CHANNELS
from jepa_fast.models.backends import compiled_blocks_or_plain, triton_or_plain
from jepa_fast.models.biases import bias_or_zeros
from jepa_fast.models.frame_encoder import TrajectoryEncoder
from jepa_fast.models.softargmax import soft_argmax
from jepa_fast.models.stem import PIXELS, Stem

if TYPE_CHECKING:
    from jepa_fast.models.sparse_encoder import SparseEncoder

Head = Literal["pool", "softargmax", "spatial"]
POOLED_SIDE = 6
# Of softmaxes at first. Fresh activations are of some tenths: by themselves they hardly move a mean of 4225 pixels.
SHARPNESS = 10.0

# Of the encoder, which no branch can have.
OWN_NAMES = ("fusion", "norm", "dropout", "channels", "branches", "apart", "latent_shape")

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
        self.wants_compiled = kernels == "fused"
        self.dwconv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels, bias=False)
        self.norm = nn.LayerNorm(channels, eps=1e-5, bias=bias)
        self.expand = nn.Linear(channels, 4 * channels, bias=False)
        self.project = nn.Linear(4 * channels, channels, bias=False)

    def mlp(self, convolved: Tensor) -> Tensor:
        """W2 gelu(W1 LN(z)) over the last axis of [..., C]."""
        out: Tensor = self.project(F.gelu(self.expand(self.norm(convolved))))
        return out

    def is_compiled(self, like: Tensor) -> bool:
        """Whether the block runs as an op of the compiled extension on a tensor like this one."""
        return self.wants_compiled and why_no_compiled_blocks(len(self.norm.weight), like) is None

    def parameters_in_order(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Weight of the convolution, gamma, beta, W1, W2: as ops take them."""
        return (
            self.dwconv.weight, self.norm.weight, bias_or_zeros(self.norm), self.expand.weight, self.project.weight
        )  # fmt: skip

    def fused(self, x: Tensor, addend: Tensor | None = None, padding: tuple[int, int] = (3, 3)) -> Tensor:
        """The output as one op, channels last: see `jepa_fast.kernels.convnext_block`."""
        # Compiled blocks compute in float32 under autocast too: what they round to bfloat16 would be lost for nothing.
        with torch.autocast(x.device.type, enabled=False) if self.is_compiled(x) else nullcontext():
            return convnext_block(x, *self.parameters_in_order(), addend, padding, self.norm.eps)

    def keep(self, x: Tensor, addend: Tensor | None = None, padding: tuple[int, int] = (3, 3)) -> KeptBlock:
        """Output, z and update as one op, channels last; only Triton's blocks take an addend and other paddings."""
        parameters = self.parameters_in_order()
        return convnext_block_keep(x, *parameters, self.norm.eps, addend, padding, is_fused=self.is_fused)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output, [N, C, H, W]."""
        if self.is_fused or self.is_compiled(x):
            return self.fused(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        # In channels-last memory this permutation moves nothing.
        update = self.mlp(self.dwconv(x).permute(0, 2, 3, 1))
        return x + update.permute(0, 3, 1, 2)


class BatchNorm(nn.Module):
    """Activations [N, F] less their mean over the batch, over their standard deviation: in evaluation, of training's.

    Averages over batches are kept, of this process; batches that are not finite leave no trace in them. No parameters.
    """

    mean: Tensor
    variance: Tensor
    batches: Tensor  # that the averages are of, float []

    def __init__(self, features: int, decay: float = 0.8, eps: float = 1e-10) -> None:
        super().__init__()
        self.decay, self.eps = decay, eps
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("variance", torch.ones(features))
        self.register_buffer("batches", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """The standardised activations; under autocast in float32."""
        x = x.to(self.mean.dtype)
        if not self.training:
            return (x - self.mean) * (self.variance + self.eps).rsqrt()
        mean = x.mean(dim=0)
        centred = x - mean
        variance = centred.square().mean(dim=0)
        with torch.no_grad():
            is_finite = torch.isfinite(mean.sum() + variance.sum())
            self.batches.add_(is_finite.to(self.batches.dtype))
            # The mean of the first batches, then of the last ones.
            share = torch.clamp(1 / self.batches.clamp(min=1), min=1 - self.decay)
            for kept, now in ((self.mean, mean), (self.variance, variance)):
                kept.copy_(torch.where(is_finite, kept.lerp(now, share), kept))
        return centred * (variance + self.eps).rsqrt()


class Branch(nn.Module):
    """Images [N, I, H, W] of one channel or more to latents [N, D], normalised unless told not to, before dropout.

    Pixels of the value `white` are seen as 1.
    """

    def __init__(
        self,
        channels: int,
        blocks: int,
        dim: int,
        kernels: Kernels = "reference",
        *,
        bias: bool = True,
        norm: bool = True,
        head: Head = "pool",
        inputs: int = 1,
        stem: Stem = PIXELS,
        white: float = 1.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(inputs, channels, stem.side, stem.stride, bias=False)
        self.cells, self.white = stem, white
        self.blocks = nn.ModuleList(ConvNeXtBlock(channels, kernels, bias) for _ in range(blocks))
        self.sharpness = nn.Parameter(torch.full((channels,), SHARPNESS)) if head == "softargmax" else None
        self.is_spatial = head == "spatial"
        if self.is_spatial and dim % POOLED_SIDE**2:
            raise ValueError(f"dim: got {dim}, expected a multiple of {POOLED_SIDE**2} for a map of 6 x 6 cells")
        dim = dim // POOLED_SIDE**2 if self.is_spatial else dim
        read = {"pool": POOLED_SIDE**2, "softargmax": 2, "spatial": 1}[head]
        cells = POOLED_SIDE**2 if self.is_spatial else 1
        self.batch_norm = BatchNorm(channels * read * cells) if batch_norm else nn.Identity()
        self.fc = nn.Linear(channels * read, dim, bias=bias)
        self.norm = nn.LayerNorm(dim, eps=1e-5, bias=bias) if norm else nn.Identity()

    def filters(self) -> Tensor:
        """What the stem multiplies pixels with, [C, c, k, k]."""
        weight: Tensor = self.stem.weight
        return weight if self.white == 1 else weight / self.white

    def stemmed(self, images: Tensor) -> Tensor:
        """Cells [N, H', W', C] of images [N, H, W, c]."""
        if self.cells == PIXELS:
            # Elementwise, so that the result is channels last whatever the layout of the images.
            return apply_stem(images, self.filters().flatten(1))
        return self.cells.apply(images, self.filters())

    def head(self, read: Tensor) -> Tensor:
        """Latents [N, D] from pooled activations [N, C, 6, 6] or coordinates [N, C, 2]; of maps [c, 6, 6] flattened."""
        read = self.batch_norm(read.flatten(1)).view(read.shape)
        if self.is_spatial:
            return self.norm(self.fc(read.permute(0, 2, 3, 1))).permute(0, 3, 1, 2).flatten(1)  # type: ignore[no-any-return]
        out: Tensor = self.norm(self.fc(read.flatten(1)))
        return out

    def forward(self, images: Tensor) -> Tensor:
        """Latents [N, D]."""
        x = self.stemmed(images.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
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


class Encoder(TrajectoryEncoder):
    """Frames to latents: a branch per group of channels, with `fusion` one of all, each with dropout on its output.

    Branches are called as their groups. They are added, but a group that is kept `apart` stands beside the sum of the
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
        head: Head = "pool",
        fusion: bool = False,
        apart: str | None = None,
        stem: Stem = PIXELS,
        white: float = 1.0,
        batch_norm: bool = False,
    ) -> None:
        """`groups` are the frame's channels in order: a name and how many. Pixels of the value `white` are seen as 1.

        Raises:
            ValueError: there is no group of the name `apart`, or no other.
        """
        super().__init__()
        branch = functools.partial(
            Branch, channels, blocks, dim, kernels, bias=bias, norm=norm_before_add, head=head, stem=stem, white=white,
            batch_norm=batch_norm,
        )  # fmt: skip
        self.groups = tuple(groups)
        for name, inputs in self.groups:
            is_free = name not in OWN_NAMES and not hasattr(self, name)
            require(is_free, "model.groups.name", name, "a name that the encoder does not use itself")
            self.add_module(name, branch(inputs=inputs))
        self.fusion = branch(inputs=sum(inputs for _, inputs in self.groups)) if fusion else None
        self.norm = nn.LayerNorm(dim, eps=1e-5, bias=bias) if norm_after_add else nn.Identity()
        # [c, h, w] of latents that are maps, flattened.
        self.latent_shape = (dim // POOLED_SIDE**2, POOLED_SIDE, POOLED_SIDE) if head == "spatial" else None
        self.dropout = dropout
        names = [name for name, _ in self.groups]
        if apart is not None and (apart not in names or len(names) < 2):
            raise ValueError(f"apart: got {apart!r}, expected one of several groups: {', '.join(names)}")
        self.apart = None if apart is None else names.index(apart)

    @property
    def branches(self) -> list[Branch]:
        """The branches, in the order of their groups."""
        return [getattr(self, name) for name, _ in self.groups]

    def combine(self, parts: Sequence[Tensor], clock: Tensor, fusion: Tensor | None = None) -> Tensor:
        """Latents [B, T, D] or [B, T, 2 D] of those of each group, [B, T, D], or [B, 1, D] for all T frames.

        `fusion` [B, T, D] is added too. Masks are drawn per frame, those of a group that is kept apart per trajectory.
        """
        frames = max(part.shape[1] for part in parts)
        parts = [part if number == self.apart else part.expand(-1, frames, -1) for number, part in enumerate(parts)]
        if self.training and self.dropout > 0:
            parts = [self._dropped(part, clock, group_site(number)) for number, part in enumerate(parts)]
            if fusion is not None:
                fusion = self._dropped(fusion, clock, SITE_FUSION)
        added = [part for number, part in enumerate(parts) if number != self.apart]
        total = functools.reduce(torch.add, added if fusion is None else [*added, fusion])
        if self.apart is not None:
            return torch.cat([total, parts[self.apart].expand_as(total)], dim=-1)
        latents: Tensor = self.norm(total)
        return latents

    def _dropped(self, latents: Tensor, clock: Tensor, site: int) -> Tensor:
        return latents * dropout_mask(tuple(latents.shape), self.dropout, clock, site)

    def forward(self, frames: Tensor, clock: Tensor) -> Tensor:
        """Latents [B, T, D] or [B, T, 2 D] of frames [B, T, C, H, W]; `clock` int64 [3] is the dropout clock."""
        batch, steps = frames.shape[:2]
        parts = []
        sizes = [inputs for _, inputs in self.groups]
        for number, (branch, images) in enumerate(zip(self.branches, torch.split(frames, sizes, dim=2), strict=True)):
            shown = images[:, :1] if number == self.apart else images
            parts.append(branch(shown.flatten(0, 1)).view(batch, shown.shape[1], -1))
        fusion: Tensor | None = None
        if self.fusion is not None:
            fusion = self.fusion(frames.flatten(0, 1)).view(batch, steps, -1)
        return self.combine(parts, clock, fusion)

    def batch_encoder(self, spec: FrameSpec, bases: GroupBases, mode: Literal["auto", "off"]) -> "SparseEncoder":
        """What encodes the batches of a split; see `Model.batch_encoder`."""
        # It knows the parts of this one.
        from jepa_fast.models.sparse_encoder import SparseEncoder

        return SparseEncoder(self, spec, bases, mode)

    def ops(self, kernels: Kernels, device: Literal["cpu", "cuda"]) -> dict[str, str]:
        """What the blocks run on."""
        channels = self.branches[0].stem.out_channels
        if kernels == "fused" and device == "cpu":
            return {"convnext_block": compiled_blocks_or_plain(channels)}
        return {"convnext_block": triton_or_plain(kernels, device, channels=(channels, CHANNELS))}
