"""The Batch contract: what every loader delivers, and how it becomes images.

A loader may use a batch's memory again: a batch stays valid until the second one after it is asked for. So the next can
be fetched while one is worked on; what is to be kept longer is cloned.

Batches stay uint8 and windowed until they are on the device. Loaders are bitwise comparable: the same sampler position
gives the same Batch whichever loader delivers it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from jepa_fast.data.shards import FrameSpec


class Batch(NamedTuple):
    """B trajectories of T frames, rows in ascending order of `indices`. All tensors contiguous, on one device."""

    indices: Tensor  # int64 [B]
    dots: Tensor  # uint8 [B, T, k, k] with corners, else [B, T, H, W]
    corners: Tensor | None  # uint8 [B, T, 2]: (row, column) of the window's top left pixel; None: dots are full frames
    walls: Tensor  # uint8 [B, H, W], or [B, T, H, W] where the wall changes over time
    actions: Tensor  # float32 [B, T - 1, 2]: (x, y) in pixels per step
    wall_groups: Tensor | None  # int32 [B]: index of the wall's base image in the data set's `wall_bases`
    wall_corners: Tensor | None  # uint8 [B, 2]: (row, column) of the window in which the wall differs from its base

    def to(self, device: torch.device, non_blocking: bool = False) -> "Batch":
        """The same batch on `device`."""
        moved = (None if field is None else field.to(device, non_blocking=non_blocking) for field in self)
        return Batch(*moved)  # type: ignore[arg-type]

    def placed(self, device: torch.device) -> "Batch":
        """A copy on `device`, in memory of its own, for `copy_` to write to."""
        copies = (None if field is None else field.to(device, copy=True) for field in self)
        return Batch(*copies)  # type: ignore[arg-type]

    def frames(self, which: slice) -> "Batch":
        """The same trajectories with some of their frames alone; all actions stay."""
        corners = None if self.corners is None else self.corners[:, which].contiguous()
        walls = self.walls if self.walls.dim() == 3 else self.walls[:, which].contiguous()
        return self._replace(dots=self.dots[:, which].contiguous(), corners=corners, walls=walls)

    def copy_(self, batch: "Batch") -> None:
        """Overwrite this batch with another one of the same fields and shapes, on whatever device it is.

        Raises:
            ValueError: a field or a shape differs.
        """
        for name, mine, other in zip(self._fields, self, batch, strict=True):
            got, expected = (None if field is None else tuple(field.shape) for field in (other, mine))
            if got != expected:
                raise ValueError(f"batch: {name}: got shape {got}, expected {expected} as in the first step")
            if mine is not None and other is not None:
                mine.copy_(other, non_blocking=True)


def expand_dots(batch: Batch, spec: FrameSpec) -> Tensor:
    """Dot images uint8 [B, T, H, W]: windows pasted at their corners on black."""
    if batch.corners is None:
        return batch.dots
    count, frames, side, _ = batch.dots.shape
    offsets = torch.arange(side, device=batch.dots.device)
    corners = batch.corners.to(torch.int64)
    rows = corners[..., 0, None] + offsets  # [B, T, k]
    columns = corners[..., 1, None] + offsets
    targets = rows[..., :, None] * spec.width + columns[..., None, :]  # [B, T, k, k]
    images = batch.dots.new_zeros(count, frames, spec.height * spec.width)
    images.scatter_(2, targets.flatten(2), batch.dots.flatten(2))
    return images.view(count, frames, spec.height, spec.width)


def expand_walls(batch: Batch) -> Tensor:
    """Wall images uint8 [B, T, H, W]; a wall stored once is a broadcast view over T."""
    if batch.walls.dim() == 4:
        return batch.walls
    return batch.walls[:, None].expand(-1, batch.dots.shape[1], -1, -1)


def expand_frames(batch: Batch, spec: FrameSpec) -> Tensor:
    """Frames float32 [B, T, 2, H, W] as the model sees them: channel 0 the agent, 1 the walls; uint8 * scale."""
    frames = torch.stack([expand_dots(batch, spec), expand_walls(batch)], dim=2)
    return frames.to(torch.float32) * spec.scale
