"""How groups of channels are best stored: what their frames ask of each codec, and the work that it saves an encoder.

    static           one image per trajectory, where all of its frames are equal
    window, black    one window per frame, outside of which all bytes are 0
    window, images   ... outside of which a frame equals the data set's base image
    window, own      ... outside of which a frame equals its trajectory's background, the median of its frames
    dense            every frame

Nothing is assumed of what frames show: windows come from the bounding boxes of the pixels that differ. Which codec is
taken is decided by counted work: the pixels that an encoder of two ConvNeXt blocks computes.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import reduce
from typing import NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from jepa_fast.data.manifest import Base, ChannelGroup, Encoding, FrameSpec
from jepa_fast.data.sources import Chunk, Source
from jepa_fast.data.windows import any_channel, bounding_boxes, common_window, size_text, upper_median

# What work is counted for: blocks of an encoder, and pixels that a window grows by on every side in each of them.
BLOCKS, REACH = 2, 3
# Windows are taken where they make it at most this share of the work on whole frames: they have costs beside pixels.
WORTH = 2 / 3
# Trajectories from which the first guess of every group's codec is made.
SAMPLE = 32
# Frames of which the image that they have in common is made, about.
COMMON = 64
# Frames of a trajectory of which its background is the median, at most.
BACKGROUND = 16
# Share of the pixels that change from one frame to the next, beyond which a group is stored dense.
MOST_CHANGED = 0.5

UInt8 = NDArray[np.uint8]
# Per group the data set's base image [c, H, W], on which windows over "images" lie while a split is written.
BaseImages = tuple[UInt8, ...]


class Needs(NamedTuple):
    """What some frames of a group ask of a codec."""

    changes: bool  # whether any trajectory has frames that differ
    sizes: dict[Base, tuple[int, int]]  # the largest height and width of what differs from each base

    def merged(self, other: "Needs") -> "Needs":
        """What both ask for together."""
        sizes = {base: _larger(size, other.sizes[base]) for base, size in self.sizes.items() if base in other.sizes}
        return Needs(self.changes or other.changes, sizes)


@dataclass(frozen=True)
class Layout:
    """How a split is being stored, with what the workers need to know for it."""

    spec: FrameSpec
    square: tuple[bool, ...]
    encoding: Encoding
    images: BaseImages
    bases: tuple[tuple[Base, ...], ...]  # that are looked at for windows
    frames: float  # of a trajectory, on average

    def with_group(self, index: int, group: ChannelGroup) -> "Layout":
        """The same with another way to store a group."""
        groups = (*self.spec.groups[:index], group, *self.spec.groups[index + 1 :])
        return replace(self, spec=replace(self.spec, groups=groups))


def dense_spec(source: Source) -> FrameSpec:
    """What the frames of a source look like, every group stored dense."""
    lengths = source.lengths
    return FrameSpec(
        frames=source.frames,
        height=source.height,
        width=source.width,
        scale=source.scale,
        groups=tuple(ChannelGroup(group.name, group.channels, "dense") for group in source.groups),
        action_size=source.action_size,
        targets=source.targets,
        offset=source.offset,
        shortest=None if lengths is None else int(lengths.min()),
    )


def first_layout(source: Source, encoding: Encoding, chunk: Chunk) -> Layout:
    """The cheapest layout for the first trajectories of a source."""
    spec, lengths, sample = dense_spec(source), source.lengths, _sample(chunk)
    images, bases = [], []
    for index in range(len(source.groups)):
        # Where more changes from frame to frame, windows would be larger than a quarter of the image: not worth a look.
        is_still = encoding == "window" and changed_share(chunk, index) <= MOST_CHANGED
        image = _common_image(sample, index) if is_still else np.zeros((0,), np.uint8)
        # A black image is what "black" says already.
        known = tuple(base for base in get_args(Base) if base != "images" or image.any())
        images.append(image)
        bases.append(known if is_still else ())
    square = tuple(group.square for group in source.groups)
    mean = spec.frames if lengths is None else float(lengths.mean())
    layout = Layout(spec, square, encoding, tuple(images), tuple(bases), mean)
    return layout if encoding == "dense" else fitted(layout, needs_of(sample, layout))


def _common_image(sample: list[Chunk], index: int) -> UInt8:
    """What most frames of a group have in common, from some of them: [c, H, W]."""
    frames = np.concatenate([_flat(chunk.groups[index]) for chunk in sample])
    return upper_median(frames[:: max(1, len(frames) // COMMON)], axis=0)


def fitted(layout: Layout, needs: tuple[Needs, ...]) -> Layout:
    """The cheapest layout for frames that ask for `needs`."""
    spec = layout.spec
    for index, need in enumerate(needs):
        group = replace(spec.groups[index], codec="static", window=None, base=None)
        layout = layout.with_group(index, _cheapest(layout, index, need) if need.changes else group)
    if all(group.codec == "static" for group in layout.spec.groups):
        # One is stored per frame all the same: a batch's number of frames is read off it.
        return layout.with_group(0, _cheapest(layout, 0, needs[0]))
    return layout


def needs_of(chunks: Iterable[Chunk], layout: Layout) -> tuple[Needs, ...]:
    """What the frames [n, T, ...] of some chunks ask of the codecs of their groups."""
    needs = [tuple(_needs(array, index, layout) for index, array in enumerate(chunk.groups)) for chunk in chunks]
    return merged_needs(needs)


def merged_needs(needs: Iterable[tuple[Needs, ...]]) -> tuple[Needs, ...]:
    """Per group what all of them ask for together."""
    return tuple(reduce(Needs.merged, each) for each in zip(*needs, strict=True))


def _needs(array: UInt8, index: int, layout: Layout) -> Needs:
    """What frames [n, T, c, H, W], or [n, c, H, W] that never change, ask of the codec of their group."""
    frames = per_frame(array, 1)
    changes = not bool((frames == frames[:, :1]).all())
    if not changes:
        frames = frames[:, :1]
    sizes: dict[Base, tuple[int, int]] = {}
    for base in layout.bases[index]:
        differs = any_channel(difference(frames, base_under(frames, base, layout.images[index])))
        boxes = bounding_boxes(differs.reshape(-1, layout.spec.height, layout.spec.width))
        height, width = boxes.sizes.max(axis=0).tolist()
        sizes[base] = height, width
    return Needs(changes, sizes)


def _cheapest(layout: Layout, index: int, need: Needs) -> ChannelGroup:
    """The way to store a group that makes an encoder do the least, of equals the one that takes the fewest bytes."""
    spec, group = layout.spec, layout.spec.groups[index]
    dense = replace(group, codec="dense", window=None, base=None)
    ways = []
    for base, sizes in need.sizes.items():
        window = common_window(np.array([sizes]), (spec.height, spec.width), layout.square[index])
        way = replace(group, codec="window", window=window, base=base)
        if counted_work(layout, way) <= WORTH * counted_work(layout, dense):
            ways.append(way)
    return min(ways, key=lambda way: (counted_work(layout, way), stored_bytes(layout, way)), default=dense)


def counted_work(layout: Layout, group: ChannelGroup) -> float:
    """Pixels that the blocks of an encoder compute for one trajectory of a group: what windows grow to, and bases."""
    height, width = layout.spec.height, layout.spec.width
    whole, images = float(BLOCKS * height * width), 1 if group.codec == "static" else layout.frames
    if group.window is None:
        return images * whole
    grown = 2 * REACH * np.arange(1, BLOCKS + 1)
    sides = [
        side + grown if side < most else np.full(BLOCKS, most)
        for side, most in zip(group.window, (height, width), strict=True)
    ]
    return images * float((sides[0] * sides[1]).sum()) + (whole if group.base == "own" else 0)


def stored_bytes(layout: Layout, group: ChannelGroup) -> float:
    """Bytes of a group's fields for one trajectory, without the data set's base images."""
    spec = replace(layout.spec, groups=(group,), targets=())
    return sum(size for name, size in _field_bytes(spec, layout.frames) if name.startswith(f"{group.name}."))


def trajectory_bytes(spec: FrameSpec, frames: float) -> float:
    """Bytes of a trajectory of so many frames in all fields, without the data set's base images."""
    return sum(size for _, size in _field_bytes(spec, frames))


def _field_bytes(spec: FrameSpec, frames: float) -> Iterator[tuple[str, float]]:
    """Per field its bytes for a trajectory of so many frames."""
    rows = {"trajectory": 1.0, "frame": frames, "action": frames - 1, "base": 0.0}
    for name, field in replace(spec, shortest=2).fields().items():
        size = np.dtype(field.dtype).itemsize * int(np.prod(field.shape))
        if name != "length" or spec.shortest is not None:
            yield name, rows[spec.unit(name)] * size


def explain(layout: Layout, index: int, group: ChannelGroup, sample: Chunk, bases: int) -> str:
    """How a group has come to be stored, over so many base images, why, and what that saves, for people."""
    images = f"{bases} base image{'s' * (bases > 1)}"
    over = {None: "", "black": "black", "images": images, "own": "each trajectory's background"}
    if group.codec == "static":
        what = "one image per trajectory"
        if group.window is not None:
            what += f", a window of {size_text(group.window)} pixels over {over[group.base]}"
    elif group.window is not None:
        what = f"windows of {size_text(group.window)} pixels over {over[group.base]}"
    else:
        what = "every frame"
        if layout.encoding != "dense":
            what += f", as {100 * changed_share(sample, index):.0f}% of the pixels change from one frame to the next"
    dense = ChannelGroup(group.name, group.channels, "dense")
    share = 100 * stored_bytes(layout, group) / stored_bytes(layout, dense)
    work = 100 * counted_work(layout, group) / counted_work(layout, dense)
    return f"{what}, {share:.1f}% of the bytes of whole frames, {work:.1f}% of an encoder's work on them"


def changed_share(chunk: Chunk, index: int) -> float:
    """Share of a group's pixels in the first trajectories that change from one frame to the next."""
    changed, seen = 0, 0
    for block in _sample(chunk):
        frames = per_frame(block.groups[index], 2)
        differs = any_channel(frames[:, 1:] ^ frames[:, :-1]) != 0
        changed, seen = changed + int(differs.sum()), seen + differs.size
    return changed / seen


def _sample(chunk: Chunk) -> list[Chunk]:
    """The first trajectories of a chunk, as [n, T, ...]."""
    return [
        Chunk(tuple(group[: SAMPLE - first] for group in block.groups), block.actions)
        for first, block in chunk.blocks()
        if first < SAMPLE
    ]


def _flat(array: UInt8) -> UInt8:
    """Images [M, c, H, W] of [n, T, c, H, W] or [n, c, H, W]."""
    return array.reshape(-1, *array.shape[-3:])


def _larger(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    return max(one[0], other[0]), max(one[1], other[1])


def base_under(frames: UInt8, base: Base, image: UInt8) -> UInt8 | None:
    """What the windows of frames [n, T, c, H, W] lie on: None for black, else [1 or n, c, H, W]."""
    if base == "black":
        return None
    if base == "images":
        return image[None]
    return upper_median(frames[:, :: -(-frames.shape[1] // BACKGROUND)], axis=1)


def difference(frames: UInt8, base: UInt8 | None) -> UInt8:
    """Not zero where frames [n, T, c, H, W] differ from their base."""
    return frames if base is None else frames ^ base[:, None]


def per_frame(array: UInt8, frames: int) -> UInt8:
    """[n, T, c, H, W], of which what a source gave once is a view."""
    if array.ndim == 5:
        return array
    return np.broadcast_to(array[:, None], (len(array), frames, *array.shape[1:]))
