"""What a batch of this world shows of the room: the wall's channel, however it is stored."""

from torch import Tensor

from jepa_fast.data.batches import Batch, GroupBases, expand_group
from jepa_fast.data.manifest import FrameSpec


def solid_images(batch: Batch, spec: FrameSpec, bases: GroupBases = ()) -> Tensor:
    """Images uint8 [B, H, W] of frame 0 that are not 0 where borders and wall are; `bases` as in `expand_frames`."""
    wall = spec.index("wall")
    images = (bases or (None,) * len(spec.groups))[wall]
    return expand_group(batch.groups[wall].frames(slice(1)), spec.groups[wall], spec, 1, images)[:, 0, 0]
