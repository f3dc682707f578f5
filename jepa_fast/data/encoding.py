"""From frames to stored fields: per group of channels the cheapest codec, each verified bit by bit.

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
from itertools import pairwise
from typing import Any, NamedTuple, Protocol, get_args

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from jepa_fast.data.manifest import Base, ChannelGroup, Encoding, FrameSpec
from jepa_fast.errors import InputError

# Frames are compared in pieces of this many bytes, so that they stay in the processor's cache.
BLOCK_BYTES = 1 << 21
# What work is counted for: blocks of an encoder, and pixels that a window grows by on every side in each of them.
BLOCKS, REACH = 2, 3
# Trajectories from which the first guess of every group's codec is made.
SAMPLE = 32

UInt8 = NDArray[np.uint8]


@dataclass(frozen=True)
class SourceGroup:
    """A group of channels as a source gives it: name, number of channels, and whether its windows are to be square."""

    name: str
    channels: int
    square: bool = False


class Chunk(NamedTuple):
    """n trajectories of a source before encoding.

    Where they may differ in length, all arrays lie end to end: groups [F, c, H, W] of F frames, actions [F - n, A],
    targets [F, size].
    """

    groups: tuple[UInt8, ...]  # [n, T, c, H, W] each, or [n, c, H, W] where the source knows that nothing changes
    actions: NDArray[np.float32]  # [n, T - 1, A]
    targets: tuple[NDArray[np.float32], ...] = ()  # [n, T, size] each
    lengths: NDArray[np.int64] | None = None  # [n], frames of each, where they may differ

    def blocks(self) -> "Iterator[tuple[int, Chunk]]":
        """Trajectories of one length in a row, as [n, T, ...], and the place of the first of them in this chunk."""
        if self.lengths is None:
            yield 0, self
            return
        ends = np.cumsum(self.lengths)
        cuts = [0, *(np.flatnonzero(np.diff(self.lengths)) + 1).tolist(), len(self.lengths)]
        for low, high in pairwise(cuts):
            length, frames = int(self.lengths[low]), slice(int(ends[low] - self.lengths[low]), int(ends[high - 1]))
            actions = self.actions[frames.start - low : frames.stop - high]
            yield (
                low,
                Chunk(
                    tuple(group[frames].reshape(-1, length, *group.shape[1:]) for group in self.groups),
                    actions.reshape(-1, length - 1, *actions.shape[1:]),
                    tuple(target[frames].reshape(-1, length, *target.shape[1:]) for target in self.targets),
                ),
            )


class Source(Protocol):
    """Where trajectories come from. Sources are pickled into worker processes: hold paths and seeds, not arrays."""

    @property
    def count(self) -> int:
        """N, number of trajectories."""

    @property
    def frames(self) -> int:
        """T, frames per trajectory, or of the longest one."""

    @property
    def lengths(self) -> NDArray[np.int64] | None:
        """Frames of each trajectory, int64 [N], at least 2, where they differ."""

    @property
    def height(self) -> int:
        """H, in pixels."""

    @property
    def width(self) -> int:
        """W, in pixels."""

    @property
    def scale(self) -> float:
        """Value of one uint8 step."""

    @property
    def offset(self) -> float:
        """Value of byte 0."""

    @property
    def groups(self) -> tuple[SourceGroup, ...]:
        """The channels of a frame, in order."""

    @property
    def action_size(self) -> int:
        """A, numbers of an action."""

    @property
    def targets(self) -> tuple[tuple[str, int], ...]:
        """Names and sizes of the targets."""

    @property
    def description(self) -> dict[str, Any]:
        """What makes this source give these trajectories, as a JSON object: equal descriptions mean equal bits."""

    def chunk(self, start: int, stop: int) -> Chunk:
        """Trajectories `start` to `stop - 1`, the same whenever and wherever they are asked for."""


class Misfit(NamedTuple):
    """Why a chunk does not fit a layout: the first frame responsible."""

    trajectory: int
    step: int
    group: int
    reason: str


class Needs(NamedTuple):
    """What some frames of a group ask of a codec."""

    changes: bool  # whether any trajectory has frames that differ
    sizes: dict[Base, tuple[int, int]]  # the largest height and width of what differs from each base

    def merged(self, other: "Needs") -> "Needs":
        """What both ask for together."""
        sizes = {base: _larger(size, other.sizes[base]) for base, size in self.sizes.items() if base in other.sizes}
        return Needs(self.changes or other.changes, sizes)


class Boxes(NamedTuple):
    """Bounding boxes of the non-zero pixels of M images; an all-black image has size 0 at (0, 0)."""

    corners: NDArray[np.int64]  # [M, 2]: (row, column)
    sizes: NDArray[np.int64]  # [M, 2]: (height, width)


Encoded = dict[str, NDArray[Any]]
# Per group the data set's base image [c, H, W], on which windows over "images" lie while a split is written.
BaseImages = tuple[UInt8, ...]


@dataclass(frozen=True)
class Layout:
    """How a split is being stored, with what the workers need to know for it."""

    spec: FrameSpec
    square: tuple[bool, ...]
    encoding: Encoding
    images: BaseImages
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
    spec, lengths = dense_spec(source), source.lengths
    images = tuple(
        upper_median(np.concatenate([_flat(each.groups[index][:SAMPLE]) for each in _sample(chunk)]), axis=0)
        for index in range(len(source.groups))
    )
    square = tuple(group.square for group in source.groups)
    mean = spec.frames if lengths is None else float(lengths.mean())
    layout = Layout(spec, square, encoding, images, mean)
    return layout if encoding == "dense" else fitted(layout, needs_of(_sample(chunk), layout))


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
    frames = _per_frame(array, 1)
    changes = not bool((frames == frames[:, :1]).all())
    if not changes:
        frames = frames[:, :1]
    sizes: dict[Base, tuple[int, int]] = {}
    for base in get_args(Base) if layout.encoding == "window" else ():
        # A black base image is what "black" says already.
        if base != "images" or layout.images[index].any():
            difference = any_channel(_difference(frames, _base_of(frames, base, layout.images[index])))
            boxes = bounding_boxes(difference.reshape(-1, layout.spec.height, layout.spec.width))
            height, width = boxes.sizes.max(axis=0).tolist()
            sizes[base] = height, width
    return Needs(changes, sizes)


def _cheapest(layout: Layout, index: int, need: Needs) -> ChannelGroup:
    """The way to store a group that makes an encoder do the least, of equals the one that takes the fewest bytes."""
    spec, group = layout.spec, layout.spec.groups[index]
    ways = [replace(group, codec="dense", window=None, base=None)]
    for base, sizes in need.sizes.items():
        window = common_window(np.array([sizes]), (spec.height, spec.width), layout.square[index])
        ways.append(replace(group, codec="window", window=window, base=base))
    return min(ways, key=lambda way: (counted_work(layout, way), stored_bytes(layout, way)))


def counted_work(layout: Layout, group: ChannelGroup) -> float:
    """Pixels that the blocks of an encoder compute for one trajectory of a group: what windows grow to, and bases."""
    height, width = layout.spec.height, layout.spec.width
    whole = float(BLOCKS * height * width)
    if group.codec == "static":
        return whole
    if group.window is None:
        return layout.frames * whole
    grown = 2 * REACH * np.arange(1, BLOCKS + 1)
    sides = [
        side + grown if side < most else np.full(BLOCKS, most)
        for side, most in zip(group.window, (height, width), strict=True)
    ]
    windows = float((sides[0] * sides[1]).sum())
    return layout.frames * windows + (whole if group.base == "own" else 0)


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


def bounding_boxes(images: UInt8) -> Boxes:
    """Bounding boxes of the non-zero pixels of images [M, H, W]."""
    corners = np.empty((len(images), 2), np.int64)
    sizes = np.empty((len(images), 2), np.int64)
    for axis, across in ((0, 2), (1, 1)):
        occupied = np.bitwise_or.reduce(images, axis=across) != 0  # [M, H] or [M, W]
        corners[:, axis] = occupied.argmax(axis=1)
        past_last = occupied.shape[1] - occupied[:, ::-1].argmax(axis=1)
        sizes[:, axis] = np.where(occupied.any(axis=1), past_last - corners[:, axis], 0)
    return Boxes(corners, sizes)


def any_channel(images: UInt8) -> UInt8:
    """Images [..., H, W] that are not zero where any channel of images [..., c, H, W] is not."""
    return images[..., 0, :, :] if images.shape[-3] == 1 else np.bitwise_or.reduce(images, axis=-3)


def common_window(sizes: NDArray[np.int64], image: tuple[int, int], square: bool) -> tuple[int, int]:
    """The smallest window (h, w) that holds boxes of `sizes` [M, 2], square as far as the image allows."""
    height, width = (max(1, int(side)) for side in sizes.max(axis=0))
    if square:
        height, width = (min(max(height, width), side) for side in image)
    return height, width


def cut_windows(images: UInt8, corners: NDArray[np.int64], window: tuple[int, int]) -> UInt8:
    """Windows [M, c, h, w] of images [M, c, H, W] with their top left pixels at `corners` [M, 2]."""
    views = sliding_window_view(images, window, axis=(2, 3))
    cut: UInt8 = views[np.arange(len(images)), :, corners[:, 0], corners[:, 1]]
    return cut


def paste_windows(images: UInt8, windows: UInt8, corners: NDArray[np.int64]) -> None:
    """Write windows [M, c, h, w] into images [M, c, H, W] in place, top left pixels at `corners` [M, 2]."""
    views = sliding_window_view(images, windows.shape[2:], axis=(2, 3), writeable=True)
    views[np.arange(len(images)), :, corners[:, 0], corners[:, 1]] = windows


def encode(source: Source, start: int, stop: int, layout: Layout) -> Encoded | Misfit:
    """Trajectories `start` to `stop - 1` as the per-trajectory fields of `layout`, or why they do not fit it.

    Raises:
        InputError: the source gave a wrong dtype or shape, or values that are not finite.
    """
    return encode_chunk(source.chunk(start, stop), start, stop - start, layout)


def encode_chunk(chunk: Chunk, start: int, rows: int, layout: Layout) -> Encoded | Misfit:
    """`encode` for a chunk at hand, whose first trajectory is `start`."""
    spec = layout.spec
    check_chunk(chunk, start, rows, spec)
    encoded: Encoded = {}
    for index in range(len(spec.groups)):
        parts: list[Encoded] = []
        for first, block in chunk.blocks():
            fields = _encode_group(block.groups[index], start + first, index, layout)
            if isinstance(fields, Misfit):
                return fields
            parts.append(fields if chunk.lengths is None else _end_to_end(fields, spec))
        encoded |= {name: _joined([part[name] for part in parts]) for name in parts[0]}
    encoded["actions"] = chunk.actions
    if chunk.lengths is not None:
        encoded["length"] = chunk.lengths
    return encoded | {f"target.{name}": array for (name, _), array in zip(spec.targets, chunk.targets, strict=True)}


def _end_to_end(fields: Encoded, spec: FrameSpec) -> Encoded:
    """Fields of trajectories of one length with a row for each frame."""
    return {
        name: array.reshape(-1, *array.shape[2:]) if spec.unit(name) == "frame" else array
        for name, array in fields.items()
    }


def _joined(arrays: list[NDArray[Any]]) -> NDArray[Any]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _encode_group(array: UInt8, start: int, index: int, layout: Layout) -> Encoded | Misfit:
    """The fields of one group, from [n, T, c, H, W] or [n, c, H, W]."""
    spec, group = layout.spec, layout.spec.groups[index]
    if group.codec == "static":
        if array.ndim == 4:
            return {f"{group.name}.pixels": array}
        changed = (array != array[:, :1]).any(axis=(2, 3, 4))
        if not changed.any():
            return {f"{group.name}.pixels": array[:, 0]}
        row, step = np.argwhere(changed)[0].tolist()
        return Misfit(start + row, step, index, "it differs from step 0")
    frames = _per_frame(array, spec.frames)
    if group.codec == "dense":
        return {f"{group.name}.pixels": frames}
    assert group.window is not None
    assert group.base is not None
    length = frames.shape[1]
    images = frames.reshape(-1, *frames.shape[2:])
    base = _base_of(frames, group.base, layout.images[index])
    boxes = bounding_boxes(any_channel(_difference(frames, base)).reshape(-1, spec.height, spec.width))
    large = (boxes.sizes > group.window).any(axis=1)
    if large.any():
        first = int(large.argmax())
        height, width = boxes.sizes[first]
        reason = f"{height} x {width} pixels differ from the base, more than a window of {size_text(group.window)}"
        return Misfit(start + first // length, first % length, index, reason)
    corners = np.minimum(boxes.corners, [spec.height - group.window[0], spec.width - group.window[1]])
    windows = cut_windows(images, corners, group.window)
    lost = first_difference(images, windows, corners, base, length)
    if lost is not None:
        raise AssertionError(f"windows of {group.name} lose pixels of frame {lost} after trajectory {start}")
    corner_type = np.dtype(spec.fields()[f"{group.name}.corner"].dtype)
    fields = {
        "pixels": windows.reshape(-1, length, *windows.shape[1:]),
        "corner": corners.astype(corner_type).reshape(-1, length, 2),
    }
    if group.base == "images":
        fields["base_index"] = np.zeros(len(frames), np.int32)
    if group.base == "own":
        assert base is not None
        fields["background"] = base
    return {f"{group.name}.{part}": values for part, values in fields.items()}


def first_difference(
    images: UInt8, windows: UInt8, corners: NDArray[np.int64], base: UInt8 | None = None, frames: int = 1
) -> int | None:
    """Index of the first image [M, c, H, W] that windows pasted on their bases do not give back, or None.

    `base` [1 or n, c, H, W] holds for all images, or each for `frames` in a row; none is black.
    """
    step = max(1, BLOCK_BYTES // images[0].size)
    for low in range(0, len(images), step):
        block = images[low : low + step]
        if base is None:
            expanded = np.zeros_like(block)
        else:
            rows = np.arange(low, low + len(block)) // frames if len(base) > 1 else np.zeros(len(block), np.int64)
            expanded = base[rows]
        paste_windows(expanded, windows[low : low + step], corners[low : low + step])
        if not np.array_equal(expanded, block):
            return low + int(np.argmax((expanded != block).any(axis=(1, 2, 3))))
    return None


def changed_share(chunk: Chunk, index: int) -> float:
    """Share of a group's pixels in the first trajectories that differ from their trajectory's background."""
    changed, seen = 0, 0
    for block in _sample(chunk):
        frames = block.groups[index]
        differs = any_channel(_difference(frames, upper_median(frames, axis=1))) != 0
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


def size_text(window: tuple[int, int]) -> str:
    """A window's size for people."""
    return f"{window[0]} x {window[1]}"


def _larger(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    return max(one[0], other[0]), max(one[1], other[1])


def _base_of(frames: UInt8, base: Base, image: UInt8) -> UInt8 | None:
    """What the windows of frames [n, T, c, H, W] lie on: None for black, else [1 or n, c, H, W]."""
    if base == "black":
        return None
    return image[None] if base == "images" else upper_median(frames, axis=1)


def _difference(frames: UInt8, base: UInt8 | None) -> UInt8:
    """Not zero where frames [n, T, c, H, W] differ from their base."""
    return frames if base is None else frames ^ base[:, None]


def _per_frame(array: UInt8, frames: int) -> UInt8:
    """[n, T, c, H, W], of which what a source gave once is a view."""
    if array.ndim == 5:
        return array
    return np.broadcast_to(array[:, None], (len(array), frames, *array.shape[1:]))


def upper_median(images: UInt8, axis: int) -> UInt8:
    """The upper median along an axis: a value that occurs, and the larger of two candidates."""
    middle = images.shape[axis] // 2
    median: UInt8 = np.partition(images, middle, axis=axis).take(middle, axis=axis)
    return median


def check_chunk(chunk: Chunk, start: int, rows: int, spec: FrameSpec) -> None:
    """Refuse a chunk whose dtypes or shapes are not the source's, or with values that are not finite."""
    where = f"trajectories {start} to {start + rows - 1}"
    for what, found, expected in (
        ("groups", len(chunk.groups), len(spec.groups)),
        ("targets", len(chunk.targets), len(spec.targets)),
    ):
        if found != expected:
            raise InputError(f"{where}: {what}: found {found}, expected {expected}")
    lengths = chunk.lengths
    if (lengths is None) != (spec.shortest is None):
        raise InputError(f"{where}: lengths: found {lengths}, expected {'some' if lengths is None else 'none'}")
    frames: tuple[int, ...] = (rows, spec.frames)
    actions: tuple[int, ...] = (rows, spec.frames - 1)
    if lengths is not None:
        frames, actions = (int(lengths.sum()),), (int(lengths.sum()) - rows,)
    arrays: list[tuple[str, NDArray[Any], Any, tuple[int, ...]]] = []
    for group, images in zip(spec.groups, chunk.groups, strict=True):
        given = (rows,) if images.ndim == 4 and lengths is None else frames
        arrays.append((group.name, images, np.uint8, (*given, group.channels, spec.height, spec.width)))
    arrays.append(("actions", chunk.actions, np.float32, (*actions, spec.action_size)))
    for (name, size), values in zip(spec.targets, chunk.targets, strict=True):
        arrays.append((name, values, np.float32, (*frames, size)))
    for name, array, dtype, shape in arrays:
        if array.dtype != dtype or array.shape != shape:
            expected_text = f"{np.dtype(dtype)} {list(shape)}"
            raise InputError(f"{where}: {name}: found {array.dtype} {list(array.shape)}, expected {expected_text}")
        if dtype is np.float32 and not np.isfinite(array).all():
            place = np.argwhere(~np.isfinite(array))[0]
            row, step = place[:2]
            if lengths is not None:
                ends = np.cumsum(lengths - (name == "actions"))
                row = np.searchsorted(ends, place[0], side="right")
                step = place[0] - (ends[row - 1] if row else 0)
            bad = array[tuple(place[:-1])].tolist()
            raise InputError(f"trajectory {start + row}, step {step}: {name}: found {bad}, expected finite numbers")
