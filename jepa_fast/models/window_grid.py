"""Where windows lie in the images that they are of, and how they grow with every block."""

from typing import NamedTuple

import torch
from torch import Tensor

from jepa_fast.kernels.window import crop

REACH = 3  # pixels a 7x7 convolution looks to each side


class WindowGrid(NamedTuple):
    """Windows of one size in images of one size, before any growth."""

    corners: Tensor  # int64 [N, 2]: (row, column) of the top left pixel
    groups: Tensor  # int64 [N]: which base
    size: tuple[int, int]
    image: tuple[int, int]
    is_fused: bool = False  # whether bases and gradients are gathered by Triton kernels on CUDA

    @staticmethod
    def of(
        images: Tensor, windows: Tensor, corners: Tensor, groups: Tensor | None, is_fused: bool = False
    ) -> "WindowGrid":
        """Windows [N, h, w, c] over base images [G, H, W, c]. Raises ValueError for shapes that do not fit together."""
        count, height, width = windows.shape[:3]
        image = (images.shape[1], images.shape[2])
        if height > image[0] or width > image[1]:
            raise ValueError(f"windows: got {height} x {width}, expected at most the image's {image[0]} x {image[1]}")
        if tuple(corners.shape) != (count, 2):
            raise ValueError(f"corners: got shape {tuple(corners.shape)}, expected {(count, 2)}")
        if groups is None:
            groups = torch.zeros(count, dtype=torch.int64, device=windows.device)
        elif tuple(groups.shape) != (count,):
            raise ValueError(f"groups: got shape {tuple(groups.shape)}, expected {(count,)}")
        return WindowGrid(corners.to(torch.int64), groups.to(torch.int64), (height, width), image, is_fused)

    def margin(self, blocks: int) -> tuple[int, int]:
        """How far the window has grown to each side after some blocks. It does not grow along an axis it fills."""
        rows, columns = (0 if self.size[axis] == self.image[axis] else REACH * blocks for axis in (0, 1))
        return rows, columns

    def grown(self, blocks: int) -> tuple[int, int]:
        """The window's size after some blocks."""
        rows, columns = self.margin(blocks)
        return self.size[0] + 2 * rows, self.size[1] + 2 * columns

    def positions(self, blocks: int, axis: int) -> Tensor:
        """Image coordinates int64 [N, h] of the grown window along an axis; some may lie outside the image."""
        length, margin = self.grown(blocks)[axis], self.margin(blocks)[axis]
        return self.corners[:, axis, None] - margin + torch.arange(length, device=self.corners.device)

    def inside(self, blocks: int) -> Tensor:
        """Where the grown window lies on the image, bool [N, h, w, 1]."""
        rows, columns = (
            (self.positions(blocks, axis) >= 0) & (self.positions(blocks, axis) < self.image[axis]) for axis in (0, 1)
        )
        return (rows[:, :, None] & columns[:, None, :])[..., None]

    def crop(self, base: Tensor, blocks: int) -> Tensor:
        """[N, h, w, C]: base [G, H, W, C] under each window grown by some blocks, zero outside the image."""
        return crop(base, self.corners, self.groups, self.margin(blocks), self.grown(blocks), self.is_fused)

    def own(self, bases: Tensor) -> Tensor:
        """[N, h, w, C]: of bases [G, h, w, C] the one that each window lies on."""
        if not bases.is_cuda:
            return bases.index_select(0, self.groups)
        if len(bases) == 1:
            return bases.expand(len(self.groups), -1, -1, -1)
        # The gradient of index_select is a sum by atomics there, in another order every time.
        size = bases.shape[1], bases.shape[2]
        return crop(bases, torch.zeros_like(self.corners), self.groups, (0, 0), size, self.is_fused)

    def _at(self) -> tuple[Tensor, Tensor]:
        """Rows [N, h, 1] and columns [N, 1, w] of the windows before they grow."""
        return self.positions(0, 0)[:, :, None], self.positions(0, 1)[:, None, :]

    def cut(self, images: Tensor) -> Tensor:
        """[N, h, w] of base images [G, H, W]: what lies under the windows."""
        return images[(self.groups[:, None, None], *self._at())]

    def fill(self, windows: Tensor, images: Tensor) -> Tensor:
        """[N, H, W]: each window's base image [G, H, W] with the window [N, h, w] written over it."""
        each = torch.arange(len(windows), device=windows.device)[:, None, None]
        return images.index_select(0, self.groups).index_put((each, *self._at()), windows)

    def paste(self, windows: Tensor, base: Tensor, blocks: int) -> Tensor:
        """[N, H, W, C]: each window's base [G, H, W, C] with the grown window [N, h, w, C] written over it."""
        count, height, width, channels = windows.shape
        if windows.is_cuda and self.is_fused:
            # Each window is a base that one image is cut from: a gradient without atomics.
            first = torch.stack([self.positions(blocks, axis)[:, 0] for axis in (0, 1)], dim=1)
            each = torch.arange(count, device=windows.device)
            moved = crop(windows, -first, each, (0, 0), self.image, is_fused=True)
            under = [
                (pixels >= start) & (pixels < start + length)
                for pixels, start, length in (
                    (torch.arange(side, device=windows.device), first[:, axis, None], windows.shape[1 + axis])
                    for axis, side in enumerate(self.image)
                )
            ]
            return torch.where((under[0][:, :, None] & under[1][:, None, :])[..., None], moved, self.own(base))
        inside, source = [], []
        for axis in (0, 1):
            pixels = torch.arange(self.image[axis], device=base.device)
            offsets = pixels - self.positions(blocks, axis)[:, :1]  # [N, H]
            length = windows.shape[1 + axis]
            inside.append((offsets >= 0) & (offsets < length))
            source.append(offsets.clamp(0, length - 1))
        first = torch.arange(count, device=base.device)[:, None] * height + source[0]
        pixels = first[:, :, None] * width + source[1][:, None, :]  # [N, H, W]
        moved = windows.reshape(-1, channels).index_select(0, pixels.flatten()).view(count, *self.image, channels)
        shown = inside[0][:, :, None] & inside[1][:, None, :]
        return torch.where(shown[..., None], moved, self.own(base))
