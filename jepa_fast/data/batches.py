"""The Batch contract: what every loader delivers, and how it becomes images.

A loader may use a batch's memory again: a batch stays valid until the second one after it is asked for. So the next can
be fetched while one is worked on; what is to be kept longer is cloned.

Batches stay uint8 and windowed until they are on the device. Loaders are bitwise comparable: the same sampler position
gives the same Batch whichever loader delivers it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from jepa_fast.data.manifest import ChannelGroup, FrameSpec

# Per group of channels the data set's base images uint8 [G, c, H, W], or None where it has none.
GroupBases = tuple[Tensor | None, ...]


class GroupBatch(NamedTuple):
    """One group of c channels of B trajectories of T frames."""

    pixels: Tensor  # uint8: dense [B, T, c, H, W]; static [B, c, H, W]; window [B, T, c, h, w]
    corners: Tensor | None = (
        None  # uint8 or int16 (row, column) of the top left pixels: window [B, T, 2]; static [B, 2]
    )
    base_index: Tensor | None = None  # int32 [B]: which of the data set's base images
    background: Tensor | None = None  # uint8 [B, c, H, W]: the trajectory's own

    def frames(self, which: slice) -> "GroupBatch":
        """Some of the frames alone; what is stored once stays."""
        if self.pixels.dim() == 4:
            return self
        corners = None if self.corners is None else self.corners[:, which].contiguous()
        return self._replace(pixels=self.pixels[:, which].contiguous(), corners=corners)


class Batch(NamedTuple):
    """B trajectories of T frames, rows in ascending order of `indices`. All tensors contiguous, on one device."""

    indices: Tensor  # int64 [B]
    groups: tuple[GroupBatch, ...]  # in the order of the frames' channels
    actions: Tensor  # float32 [B, T - 1, A]

    @property
    def length(self) -> int:
        """T of the frames that are here: after `frames`, fewer than there are actions and one."""
        return next(group.pixels.shape[1] for group in self.groups if group.pixels.dim() == 5)

    def to(self, device: torch.device, non_blocking: bool = False) -> "Batch":
        """The same batch on `device`."""
        return self._moved(device, non_blocking, copy=False)

    def placed(self, device: torch.device) -> "Batch":
        """A copy on `device`, in memory of its own, for `copy_` to write to."""
        return self._moved(device, non_blocking=False, copy=True)

    def _moved(self, device: torch.device, non_blocking: bool, copy: bool) -> "Batch":
        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=non_blocking, copy=copy)

        groups = (GroupBatch(*(None if part is None else moved(part) for part in group)) for group in self.groups)  # type: ignore[arg-type]
        return Batch(moved(self.indices), tuple(groups), moved(self.actions))

    def frames(self, which: slice) -> "Batch":
        """The same trajectories with some of their frames alone; all actions stay."""
        return self._replace(groups=tuple(group.frames(which) for group in self.groups))

    def tensors(self) -> dict[str, Tensor | None]:
        """Every tensor by name, those of groups by number and part: "0.pixels"."""
        named: dict[str, Tensor | None] = {"indices": self.indices}
        for number, group in enumerate(self.groups):
            named |= {f"{number}.{part}": tensor for part, tensor in group._asdict().items()}
        return named | {"actions": self.actions}

    @staticmethod
    def of(tensors: dict[str, Tensor | None]) -> "Batch":
        """The batch that gave `tensors`."""
        parts: dict[int, dict[str, Tensor | None]] = {}
        for name, tensor in tensors.items():
            number, _, part = name.partition(".")
            if part:
                parts.setdefault(int(number), {})[part] = tensor
        groups = tuple(GroupBatch(**parts[number]) for number in sorted(parts))  # type: ignore[arg-type]
        indices, actions = tensors["indices"], tensors["actions"]
        assert indices is not None
        assert actions is not None
        return Batch(indices, groups, actions)

    def copy_(self, batch: "Batch") -> None:
        """Overwrite this batch with another one of the same fields and shapes, on whatever device it is.

        Raises:
            ValueError: a field or a shape differs.
        """
        mine, others = self.tensors(), batch.tensors()
        for name in mine | others:
            place, other = mine.get(name), others.get(name)
            got, expected = (None if tensor is None else tuple(tensor.shape) for tensor in (other, place))
            if got != expected:
                raise ValueError(f"batch: {name}: got shape {got}, expected {expected} as in the first step")
            if place is not None and other is not None:
                place.copy_(other, non_blocking=True)


def expand_group(batch: GroupBatch, group: ChannelGroup, spec: FrameSpec, frames: int, bases: Tensor | None) -> Tensor:
    """Images uint8 [B, T, c, H, W] of a group: windows pasted at their corners; what is stored once is a view over T.

    Args:
        batch: what a loader gave of the group.
        group: how it is stored.
        spec: of the split.
        frames: T.
        bases: the data set's base images uint8 [G, c, H, W], on the batch's device.

    Raises:
        ValueError: the group lies on the data set's base images, and there are none.
    """
    if group.codec == "static":
        return batch.pixels[:, None].expand(-1, frames, -1, -1, -1)
    if batch.corners is None:
        return batch.pixels
    count, frames, channels, height, width = batch.pixels.shape
    corners = batch.corners.to(torch.int64)
    rows = corners[..., 0, None] + torch.arange(height, device=corners.device)  # [B, T, h]
    columns = corners[..., 1, None] + torch.arange(width, device=corners.device)
    targets = (rows[..., :, None] * spec.width + columns[..., None, :]).flatten(2)  # [B, T, h w]
    targets = targets[:, :, None].expand(-1, -1, channels, -1)
    shape = (count, frames, channels, spec.height * spec.width)
    if group.base == "black":
        images = batch.pixels.new_zeros(shape)
    else:
        images = base_images(batch, group, bases).flatten(2)[:, None].expand(shape).clone()
    images.scatter_(3, targets, batch.pixels.flatten(3))
    return images.view(count, frames, channels, spec.height, spec.width)


def base_images(batch: GroupBatch, group: ChannelGroup, bases: Tensor | None) -> Tensor:
    """What each trajectory's windows lie on, uint8 [B, c, H, W], where that is not black.

    Raises:
        ValueError: it is one of the data set's base images, and there are none.
    """
    if group.base == "own":
        assert batch.background is not None
        return batch.background
    if bases is None or batch.base_index is None:
        raise ValueError(f"bases: got none for group {group.name!r}, which lies on base images of its data set")
    return bases.index_select(0, batch.base_index)


def expand_pixels(batch: Batch, spec: FrameSpec, bases: GroupBases = ()) -> Tensor:
    """Frames uint8 [B, T, C, H, W]; `bases` as in `expand_frames`."""
    groups = zip(batch.groups, spec.groups, bases or (None,) * len(spec.groups), strict=True)
    return torch.cat([expand_group(each, group, spec, batch.length, base) for each, group, base in groups], dim=2)


def expand_frames(batch: Batch, spec: FrameSpec, bases: GroupBases = ()) -> Tensor:
    """Frames float32 [B, T, C, H, W] as a model sees them: uint8 * scale + offset.

    `bases` are the data set's (`jepa_fast.data.host.group_bases`), needed where windows lie on base images.
    """
    return to_values(expand_pixels(batch, spec, bases), spec)


def to_values(pixels: Tensor, spec: FrameSpec) -> Tensor:
    """Bytes as the float32 values that they stand for."""
    values = pixels.to(torch.float32) * spec.scale
    return values if spec.offset == 0 else values + spec.offset
