"""From frames to stored fields: per group of channels the cheapest codec, each verified bit by bit.

    static           one image per trajectory, where all of its frames are equal
    window, black    one window per frame, outside of which all bytes are 0
    window, images   ... outside of which a frame equals the data set's base image
    window, own      ... outside of which a frame equals its trajectory's background, the median of its frames
    dense            every frame

Nothing is assumed of what frames show: windows come from the bounding boxes of the pixels that differ.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from jepa_fast.data.manifest import ChannelGroup, Encoding, FrameSpec
from jepa_fast.errors import InputError

# Frames are compared in pieces of this many bytes, so that they stay in the processor's cache.
BLOCK_BYTES = 1 << 21
# A window may take this share of the image: after two blocks of an encoder a larger one has grown to nearly all of it.
MOST_OF_IMAGE = 1 / 4
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
    """n trajectories of a source before encoding."""

    groups: tuple[UInt8, ...]  # [n, T, c, H, W] each, or [n, c, H, W] where the source knows that nothing changes
    actions: NDArray[np.float32]  # [n, T - 1, A]
    targets: tuple[NDArray[np.float32], ...] = ()  # [n, T, size] each


class Source(Protocol):
    """Where trajectories come from. Sources are pickled into worker processes: hold paths and seeds, not arrays."""

    @property
    def count(self) -> int:
        """N, number of trajectories."""

    @property
    def frames(self) -> int:
        """T, frames per trajectory."""

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
    """Why a chunk does not fit a layout: the first frame responsible, and what the whole chunk would fit instead."""

    trajectory: int
    step: int
    group: int
    reason: str
    fitting: tuple[ChannelGroup, ...]  # weaker ways to store the group, each with the windows that the chunk needs


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

    def with_group(self, index: int, group: ChannelGroup) -> "Layout":
        """The same with another way to store a group."""
        groups = (*self.spec.groups[:index], group, *self.spec.groups[index + 1 :])
        return replace(self, spec=replace(self.spec, groups=groups))


def strength(group: ChannelGroup) -> int:
    """0 for the strongest codec, more for weaker ones; a group only ever gets weaker while its split is written."""
    order = {("static", None): 0, ("window", "black"): 1, ("window", "images"): 2, ("window", "own"): 3}
    return order.get((group.codec, group.base), 4)


def dense_spec(source: Source) -> FrameSpec:
    """What the frames of a source look like, every group stored dense."""
    return FrameSpec(
        frames=source.frames,
        height=source.height,
        width=source.width,
        scale=source.scale,
        groups=tuple(ChannelGroup(group.name, group.channels, "dense") for group in source.groups),
        action_size=source.action_size,
        targets=source.targets,
        offset=source.offset,
    )


def first_layout(source: Source, encoding: Encoding, chunk: Chunk) -> Layout:
    """The cheapest layout for the first trajectories of a source."""
    spec = dense_spec(source)
    images = tuple(upper_median(array[:SAMPLE].reshape(-1, *array.shape[-3:]), axis=0) for array in chunk.groups)
    layout = Layout(spec, tuple(group.square for group in source.groups), encoding, images)
    if encoding == "dense":
        return layout
    for index, array in enumerate(chunk.groups):
        sample = array[:SAMPLE]
        is_static = sample.ndim == 4 or bool((sample == sample[:, :1]).all())
        group = replace(spec.groups[index], codec="static")
        layout = layout.with_group(index, group if is_static else cheapest(spec, _ways(sample, index, layout, 1)))
    if all(group.codec == "static" for group in layout.spec.groups):
        # One is stored per frame all the same: a batch's number of frames is read off it.
        array = _per_frame(chunk.groups[0][:SAMPLE], source.frames)
        return layout.with_group(0, cheapest(spec, _ways(array, 0, layout, 1)))
    return layout


def cheapest(spec: FrameSpec, ways: tuple[ChannelGroup, ...]) -> ChannelGroup:
    """The way to store a group that takes the fewest bytes, the stronger one of equals."""
    return min(ways, key=lambda group: (stored_bytes(spec, group), strength(group)))


def stored_bytes(spec: FrameSpec, group: ChannelGroup) -> int:
    """Bytes of a group's fields for one trajectory, without the data set's base images."""
    fields = replace(spec, groups=(group,), targets=()).fields()
    sizes = {name: np.dtype(field.dtype).itemsize * int(np.prod(field.shape)) for name, field in fields.items()}
    return sum(size for name, size in sizes.items() if name.startswith(f"{group.name}.") and not name.endswith(".base"))


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
    check_chunk(chunk, start, rows, layout.spec)
    encoded: Encoded = {}
    for index, array in enumerate(chunk.groups):
        fields = _encode_group(array, start, index, layout)
        if isinstance(fields, Misfit):
            return fields
        encoded |= fields
    encoded["actions"] = chunk.actions
    return encoded | {
        f"target.{name}": array for (name, _), array in zip(layout.spec.targets, chunk.targets, strict=True)
    }


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
        return Misfit(start + row, step, index, "it differs from step 0", _ways(array, index, layout, 1))
    frames = _per_frame(array, spec.frames)
    if group.codec == "dense":
        return {f"{group.name}.pixels": frames}
    assert group.window is not None
    images = frames.reshape(-1, *frames.shape[2:])
    base = _base_of(frames, group, layout.images[index])
    boxes = bounding_boxes(any_channel(_difference(frames, base)).reshape(-1, spec.height, spec.width))
    large = (boxes.sizes > group.window).any(axis=1)
    if large.any():
        first = int(large.argmax())
        height, width = boxes.sizes[first]
        reason = f"{height} x {width} pixels differ from the base, more than a window of {size_text(group.window)}"
        ways = _ways(frames, index, layout, strength(group))
        return Misfit(start + first // spec.frames, first % spec.frames, index, reason, ways)
    corners = np.minimum(boxes.corners, [spec.height - group.window[0], spec.width - group.window[1]])
    windows = cut_windows(images, corners, group.window)
    lost = first_difference(images, windows, corners, base, spec.frames)
    if lost is not None:
        raise AssertionError(f"windows of {group.name} lose pixels of frame {lost} after trajectory {start}")
    corner_type = np.dtype(spec.fields()[f"{group.name}.corner"].dtype)
    fields = {
        "pixels": windows.reshape(-1, spec.frames, *windows.shape[1:]),
        "corner": corners.astype(corner_type).reshape(-1, spec.frames, 2),
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


def changed_share(array: UInt8) -> float:
    """Share of the pixels of frames [n, T, c, H, W] that differ from their trajectory's background."""
    frames = array[:SAMPLE]
    return float((any_channel(_difference(frames, upper_median(frames, axis=1))) != 0).mean())


def size_text(window: tuple[int, int]) -> str:
    """A window's size for people."""
    return f"{window[0]} x {window[1]}"


def _ways(array: UInt8, index: int, layout: Layout, least: int) -> tuple[ChannelGroup, ...]:
    """How frames [n, T, c, H, W] of a group can be stored, from the strength `least` on: windows as large as needed."""
    spec, group = layout.spec, layout.spec.groups[index]
    dense = replace(group, codec="dense", window=None, base=None)
    if layout.encoding != "window":
        return (dense,)
    ways = []
    for base in ("black", "images", "own"):
        way = replace(group, codec="window", base=base)
        # A black base image is what "black" says already.
        if strength(way) < least or (base == "images" and not layout.images[index].any()):
            continue
        difference = any_channel(_difference(array, _base_of(array, way, layout.images[index])))
        sizes = bounding_boxes(difference.reshape(-1, spec.height, spec.width)).sizes
        window = common_window(sizes, (spec.height, spec.width), layout.square[index])
        if group.base == base and group.window is not None:
            window = max(window[0], group.window[0]), max(window[1], group.window[1])
        if window[0] * window[1] <= MOST_OF_IMAGE * spec.height * spec.width:
            ways.append(replace(way, window=window))
    return (*ways, dense)


def _base_of(frames: UInt8, group: ChannelGroup, image: UInt8) -> UInt8 | None:
    """What the windows of frames [n, T, c, H, W] lie on: None for black, else [1 or n, c, H, W]."""
    if group.base == "black":
        return None
    return image[None] if group.base == "images" else upper_median(frames, axis=1)


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
    arrays: list[tuple[str, NDArray[Any], Any, tuple[int, ...]]] = []
    for group, images in zip(spec.groups, chunk.groups, strict=True):
        given = (rows,) if images.ndim == 4 else (rows, spec.frames)
        arrays.append((group.name, images, np.uint8, (*given, group.channels, spec.height, spec.width)))
    arrays.append(("actions", chunk.actions, np.float32, (rows, spec.frames - 1, spec.action_size)))
    for (name, size), values in zip(spec.targets, chunk.targets, strict=True):
        arrays.append((name, values, np.float32, (rows, spec.frames, size)))
    for name, array, dtype, shape in arrays:
        if array.dtype != dtype or array.shape != shape:
            expected_text = f"{np.dtype(dtype)} {list(shape)}"
            raise InputError(f"{where}: {name}: found {array.dtype} {list(array.shape)}, expected {expected_text}")
        if dtype is np.float32 and not np.isfinite(array).all():
            row, step = np.argwhere(~np.isfinite(array))[0, :2]
            bad = array[row, step].tolist()
            raise InputError(f"trajectory {start + row}, step {step}: {name}: found {bad}, expected finite numbers")
