"""Mirrored trajectories: frames flipped left-right and upside down, and the actions with them.

The two-room world is its own mirror image along both axes: borders, an agent, a wall with a door and the rules of
moving stay what they are, so that a flipped trajectory is one that the simulator makes of the flipped start and
actions. Of crops, shifts, and flips of the frames or of the actions alone this is not true; tests/data/test_flips.py
checks both.

Two coins are tossed for every trajectory in every step, by the hash that dropout masks are made of: a step stays a
function of state and batch, and any number of processes draws the flips of one.
"""

import torch
from torch import Tensor

from jepa_fast.data.batches import Batch, GroupBases, GroupBatch
from jepa_fast.data.manifest import ChannelGroup, FrameSpec
from jepa_fast.kernels.dropout import SITE_FLIPS, dropout_mask


class Flips:
    """Flips the trajectories of a Batch, whole frames or windows, and keeps what their exact encoding relies on.

    A flipped image differs from its flipped base, in the flipped window. So the encoder's bases are `bases`: of each
    group those of the data set under their old numbers, then their mirror images that are not among them. In the
    two-room world the walls' 20 bases become 25: mirrored upside down they stay the same, and most columns are
    another's mirror image.
    """

    def __init__(self, spec: FrameSpec, bases: GroupBases = ()) -> None:
        """`spec` and `bases` are those of the split (waits for the device, once)."""
        self.spec = spec
        mirrored = [None if base is None else _with_mirror_images(base) for base in bases or (None,) * len(spec.groups)]
        self.bases: GroupBases = tuple(None if each is None else each[0] for each in mirrored)
        self._numbers = tuple(None if each is None else each[1] for each in mirrored)

    def __call__(self, batch: Batch, clock: Tensor) -> Batch:
        """The batch with each trajectory as it is or flipped along one axis or both; `clock` is the dropout clock."""
        return self.flip(batch, dropout_mask((len(batch.actions), 2), 0.5, clock, SITE_FLIPS) > 0)

    def flip(self, batch: Batch, axes: Tensor) -> Batch:
        """The batch flipped along the axes bool [B, 2] = (x, y) of each trajectory."""
        groups = zip(batch.groups, self.spec.groups, self._numbers, strict=True)
        return batch._replace(
            groups=tuple(self._flip_group(part, group, numbers, axes) for part, group, numbers in groups),
            actions=torch.where(axes[:, None], -batch.actions, batch.actions),
        )

    def _flip_group(self, part: GroupBatch, group: ChannelGroup, numbers: Tensor | None, axes: Tensor) -> GroupBatch:
        corners, base_index, background = part.corners, part.base_index, part.background
        if corners is not None:
            assert group.window is not None
            last = (self.spec.height - group.window[0], self.spec.width - group.window[1])
            corners = _mirror_corners(corners, axes, last)
        if base_index is not None and numbers is not None:
            image = axes[:, 0] + 2 * axes[:, 1].to(torch.int64)
            base_index = numbers.flatten().index_select(0, image * numbers.shape[1] + base_index)
        if background is not None:
            background = _mirror(background, axes)
        return GroupBatch(_mirror(part.pixels, axes), corners, base_index, background)


def _mirror(images: Tensor, axes: Tensor) -> Tensor:
    """Images [B, ..., h, w], mirrored where `axes` bool [B, 2] = (x, y) says so."""
    for axis, dim in ((0, -1), (1, -2)):
        images = torch.where(axes[:, axis].view(-1, *[1] * (images.dim() - 1)), images.flip(dim), images)
    return images


def _mirror_corners(corners: Tensor, axes: Tensor, last: tuple[int, int]) -> Tensor:
    """Top left pixels [B, ..., 2] = (row, column) of mirrored windows, the last of which begins at `last`."""
    mirrored = torch.stack([end - corners[..., axis] for axis, end in enumerate(last)], dim=-1)
    return torch.where(axes.flip(-1).view(-1, *[1] * (corners.dim() - 2), 2), mirrored, corners)


def _with_mirror_images(bases: Tensor) -> tuple[Tensor, Tensor]:
    """Bases [G', c, H, W] that begin with `bases` [G, c, H, W], and int32 [4, G]: where each one's mirror images are.

    Rows: as it is, mirrored left-right, upside down, both.
    """
    images = [bases, bases.flip(-1), bases.flip(-2), bases.flip(-1, -2)]
    numbers = {image.cpu().numpy().tobytes(): number for number, image in enumerate(bases)}
    kept, groups = list(bases), [list(range(len(bases)))]
    for mirrored in images[1:]:
        groups.append([])
        for image in mirrored:
            number = numbers.setdefault(image.cpu().numpy().tobytes(), len(kept))
            if number == len(kept):
                kept.append(image)
            groups[-1].append(number)
    return torch.stack(kept), torch.tensor(groups, dtype=torch.int32, device=bases.device)
