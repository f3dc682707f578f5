"""What a branch's head reads of images that equal a base outside a window, from the base and the window.

    Pooling       pooled = pooled base + P_y^T d P_x        P: the pooling matrix, restricted to the window
    Coordinates   the softmax's sums over the window, plus those of the base over all that is outside of it

Both keep of a base what its windows need. Nothing is approximated.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa_fast.kernels.window import crop, pool, window_pool
from jepa_fast.models.convnext import POOLED_SIDE, Branch, ConvNeXtBlock, centred, locate
from jepa_fast.models.window_grid import WindowGrid


class WindowHead(Protocol):
    """From the last block's output x [.., C], or the difference d of windows to it, to what the head reads."""

    def whole(self, x: Tensor) -> Tensor:
        """What the head reads of whole images, from x [N, H, W, C]."""

    def head_cache(self, x: Tensor) -> Tensor:
        """What windows over these images will need, from x [G, H, W, C]."""

    def window(self, delta: Tensor, head_cache: Tensor, place: WindowGrid, blocks: int) -> Tensor:
        """What the head reads of N images, from d [N, h, w, C] on windows grown by `blocks` and the bases' cache."""

    def derived(self, delta: Tensor, head_cache: Tensor, place: WindowGrid, blocks: int) -> Tensor:
        """What windows over these N images will need; arguments as in `window`."""


def window_head(branch: Branch) -> WindowHead:
    """The head of a branch."""
    block = branch.blocks[0]
    is_fused = isinstance(block, ConvNeXtBlock) and block.is_fused
    return Pooling(is_fused) if branch.sharpness is None else Coordinates(branch)


class Pooling:
    """Average pooling to [N, C, 6, 6]; of bases it keeps [G, 6, 6, C].

    Where blocks are fused, pooling is one op too, which reads what they wrote and sums in float32.
    """

    def __init__(self, is_fused: bool = False) -> None:
        self.is_fused = is_fused

    def whole(self, x: Tensor) -> Tensor:
        """The pooled images."""
        return self.head_cache(x).permute(0, 3, 1, 2)

    def head_cache(self, x: Tensor) -> Tensor:
        """The same, channels last."""
        if self.is_fused and min(x.shape[1:3]) >= POOLED_SIDE:
            corners = torch.zeros(len(x), 2, dtype=torch.int64, device=x.device)
            return window_pool(x, corners, (0, 0), (x.shape[1], x.shape[2]), POOLED_SIDE)
        rows, columns = (pooling_matrix(size, x).expand(len(x), -1, -1) for size in x.shape[1:3])
        return pool(x, rows, columns)

    def window(self, delta: Tensor, head_cache: Tensor, place: WindowGrid, blocks: int) -> Tensor:
        """The pooled base and the pooled difference to it."""
        return self.derived(delta, head_cache, place, blocks).permute(0, 3, 1, 2)

    def derived(self, delta: Tensor, head_cache: Tensor, place: WindowGrid, blocks: int) -> Tensor:
        """The same, channels last."""
        if self.is_fused and min(place.image) >= POOLED_SIDE:
            pooled = window_pool(delta, place.corners, place.margin(blocks), place.image, POOLED_SIDE)
            return place.own(head_cache) + pooled
        return place.own(head_cache) + pool(delta, *window_pooling(place, blocks, head_cache))


class Coordinates:
    """Expected coordinates [N, C, 2], as `locate` gives them; of bases it keeps x itself.

    What is outside of a window is added up as such, never as the whole less the inside: where a base has nearly all of
    its weight under the window, that would cancel. It is added up for all places that a window can have, by products
    along rows and columns. A base must not outweigh all images over it by e^87, the range of float32.
    """

    def __init__(self, branch: Branch) -> None:
        self.branch = branch

    @property
    def sharpness(self) -> Tensor:
        """What x is multiplied by, [C]."""
        assert self.branch.sharpness is not None
        return self.branch.sharpness

    def whole(self, x: Tensor) -> Tensor:
        """The coordinates in whole images."""
        return locate(x.permute(0, 3, 1, 2), self.sharpness)

    def head_cache(self, x: Tensor) -> Tensor:
        """All of it."""
        return x

    def derived(self, delta: Tensor, head_cache: Tensor, place: WindowGrid, blocks: int) -> Tensor:
        """The images' own x."""
        return place.paste(place.crop(head_cache, blocks) + delta, head_cache, blocks)

    def window(self, delta: Tensor, head_cache: Tensor, place: WindowGrid, blocks: int) -> Tensor:
        """The coordinates, from sums over the window and sums over what it leaves of the base."""
        with torch.autocast(delta.device.type, enabled=False):
            logits = (place.crop(head_cache, blocks) + delta).to(self.sharpness.dtype) * self.sharpness
            logits = logits.masked_fill(~place.inside(blocks), -torch.inf)
            outside, base_peak = self._outside(head_cache.to(self.sharpness.dtype) * self.sharpness, place, blocks)
            # The largest logit of base and window is taken off.
            peak = torch.maximum(logits.detach().amax(dim=(1, 2)), base_peak)  # [N, C]
            weights = (logits - peak[:, None, None]).exp()
            y, x = (
                centred(place.positions(blocks, axis).to(weights.dtype), place.image[axis])[..., None]
                for axis in (0, 1)
            )
            down, along = weights.sum(dim=2), weights.sum(dim=1)  # [N, h, C], [N, w, C]
            inside = torch.stack([down.sum(dim=1), (along * x).sum(dim=1), (down * y).sum(dim=1)])
            total, from_x, from_y = inside + outside * (base_peak - peak).exp()
            return torch.stack([from_x / total, from_y / total], dim=-1)

    def _outside(self, logits: Tensor, place: WindowGrid, blocks: int) -> tuple[Tensor, Tensor]:
        """Sums over what windows leave of their bases, [3, N, C], and the bases' largest logits [N, C].

        Sums of 1, x and y, weighed by exp(logit - largest); `logits` [G, H, W, C] are the bases'.
        """
        peak = logits.detach().amax(dim=(1, 2), keepdim=True)
        weights = (logits - peak).exp()
        rows, columns = (_under(place, blocks, axis, weights) for axis in (0, 1))
        pixels = (torch.arange(size, device=logits.device).to(logits.dtype) for size in place.image)
        y, x = (centred(each, len(each)) for each in pixels)
        each_row, each_column = torch.ones_like(y), torch.ones_like(x)
        sums = []
        for down, along in ((each_row, each_column), (each_row, x), (y, each_column)):
            above_and_below = pool(weights, (1 - rows) * down, along[None])
            beside = pool(weights, rows * down, (1 - columns) * along)
            table = above_and_below + beside  # [G, corners down, corners along, C]
            sums.append(crop(table, place.corners, place.groups, (0, 0), (1, 1))[:, 0, 0])
        return torch.stack(sums), peak[:, 0, 0].index_select(0, place.groups)


def pooling_matrix(size: int, like: Tensor) -> Tensor:
    """[6, size]: what adaptive average pooling multiplies an axis of that size with; dtype and device of `like`."""
    cells = torch.arange(POOLED_SIDE, device=like.device)[:, None]
    first = cells * size // POOLED_SIDE
    end = -(-(cells + 1) * size // POOLED_SIDE)
    pixels = torch.arange(size, device=like.device)
    return ((pixels >= first) & (pixels < end)).to(like.dtype) / (end - first).to(like.dtype)


def window_pooling(place: WindowGrid, blocks: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Pooling matrices [N, 6, h] and [N, 6, w] of the windows grown by some blocks; zero outside the image."""
    matrices = []
    for axis in (0, 1):
        margin = place.margin(blocks)[axis]
        padded = F.pad(pooling_matrix(place.image[axis], like), (margin, margin))
        matrices.append(padded.t()[place.positions(blocks, axis) + margin].transpose(1, 2))
    return matrices[0], matrices[1]


def _under(place: WindowGrid, blocks: int, axis: int, like: Tensor) -> Tensor:
    """[corners, size]: 1 where a pixel of an axis is under the grown window, for every corner that it can have."""
    pixels = torch.arange(place.image[axis], device=like.device)
    first = torch.arange(place.image[axis] - place.size[axis] + 1, device=like.device)[:, None]
    first = first - place.margin(blocks)[axis]
    return ((pixels >= first) & (pixels < first + place.grown(blocks)[axis])).to(like.dtype)
