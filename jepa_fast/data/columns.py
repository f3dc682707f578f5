"""Columns of some files as a source for the packer: frames, actions and targets of episodes of any length."""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import prod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from jepa_fast.data.manifest import MOST_CHANNELS
from jepa_fast.data.readers import Reader
from jepa_fast.data.sources import Chunk, SourceGroup
from jepa_fast.errors import InputError

# The seed of which episodes are for validation.
SPLIT_SEED = 0

USUAL_CHANNELS = (1, 3, 4)
# Where channels stand in a frame: [C, H, W] or [H, W, C].
ChannelOrder = Literal["first", "last"]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Selection:
    """Which columns, and how they are to be read. L is an episode's number of frames.

    Attributes:
        frames: [L, C, H, W] or [L, H, W, C], float, uint8 or bool; or [L, H, W] of one channel.
        actions: numbers [L - 1, A], or [L, A], of which the last is left out; with `action_classes` integers [L - 1] or
            [L].
        targets: names, and columns of floats [L, size] or [L].
        groups: the channels, side by side; none: one group "frames" of all of them.
        order: where the channels stand; none: found from the shape.
        action_classes: number of classes of integer actions, which become one-hot.
    """

    frames: str
    actions: str
    targets: tuple[tuple[str, str], ...] = ()
    groups: tuple[SourceGroup, ...] = ()
    order: ChannelOrder | None = None
    action_classes: int | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """All of them, each once."""
        return tuple(dict.fromkeys((self.frames, self.actions, *(column for _, column in self.targets))))


@dataclass(frozen=True, eq=False)
class ColumnSource:
    """Episodes of a reader, as trajectories. `scale`, `offset`, `error` and `digest` are what the survey found.

    Attributes:
        reader: of the files.
        selection: which columns.
        numbers: int64 [N], ascending: which of the reader's episodes.
        all_lengths: int64 [N], frames of each.
        size: C, H, W.
        order: where the channels stand.
        dtype: of the frames.
        groups: the channels, side by side.
        action_size: A.
        targets: names and sizes.
        scale: value of one uint8 step.
        offset: value of byte 0.
        error: farthest that rounding moves a pixel.
        digest: hash of actions and targets, and of frames: of all floats, of bytes in some episodes.
        part: which part of the episodes this is, where it is not all of them.
    """

    reader: Reader
    selection: Selection
    numbers: Indices
    all_lengths: Indices
    size: tuple[int, int, int]
    order: ChannelOrder
    dtype: str
    groups: tuple[SourceGroup, ...]
    action_size: int
    targets: tuple[tuple[str, int], ...]
    scale: float
    offset: float = 0.0
    error: float = 0.0
    digest: str = ""
    part: tuple[str, float] | None = None

    @property
    def count(self) -> int:
        """N, number of trajectories."""
        return len(self.numbers)

    @property
    def frames(self) -> int:
        """T, frames per trajectory, or of the longest one."""
        return int(self.all_lengths.max())

    @cached_property
    def lengths(self) -> Indices | None:
        """Frames of each trajectory, where they differ."""
        return None if self.all_lengths.min() == self.all_lengths.max() else self.all_lengths

    @property
    def height(self) -> int:
        """H, in pixels."""
        return self.size[1]

    @property
    def width(self) -> int:
        """W, in pixels."""
        return self.size[2]

    @property
    def description(self) -> dict[str, Any]:
        """Names, type and content of the files, and the worst rounding error of a pixel."""
        label, chosen = self.reader.label, self.selection
        description: dict[str, Any] = {
            "converter": "jepa_fast arrays",
            "states": label(chosen.frames),
            "states_dtype": self.dtype,
            "channels": self.order,
            "actions": label(chosen.actions),
            "action_classes": chosen.action_classes,
            "targets": {name: label(column) for name, column in chosen.targets},
            "sha256": self.digest,
            "largest_error": self.error,
        }
        if self.part is not None:
            name, share = self.part
            description["part"] = {"name": name, "validation": share, "seed": SPLIT_SEED}
        return description | self.reader.description

    def chunk(self, start: int, stop: int) -> Chunk:
        """Trajectories `start` to `stop - 1`; every frame is given, and the packer finds out what changes."""
        lengths, chosen = self.all_lengths[start:stop], self.selection
        rows = self.reader.read(chosen.columns, self.numbers[start:stop])
        groups = self._images(rows[chosen.frames], lengths)
        if self.lengths is None:
            groups = [images.reshape(stop - start, self.frames, *images.shape[1:]) for images in groups]
        actions = rows[chosen.actions]
        if len(actions) == lengths.sum():
            actions = actions[leading(lengths)]
        return Chunk(
            tuple(groups),
            self._numbers(numeric_actions(actions, chosen.action_classes), 1),
            tuple(self._numbers(_float32(rows[column]), 0) for _, column in chosen.targets),
            None if self.lengths is None else lengths,
        )

    def _images(self, frames: NDArray[Any], lengths: Indices) -> list[NDArray[np.uint8]]:
        """Frames end to end as bytes, each group's channels by themselves: [F, c, H, W]."""
        if self.has_bytes and len(self.groups) == 1 and self.order == "first":
            return [channels_first(quantise(frames, self.scale), self.order)]
        images = [np.empty((len(frames), group.channels, self.height, self.width), np.uint8) for group in self.groups]
        # Trajectory by trajectory, so that what floats take up in between stays small.
        for first, end in pairwise([0, *np.cumsum(lengths).tolist()]):
            pixels, channel = channels_first(quantise(frames[first:end], self.scale, self.offset), self.order), 0
            for group in images:
                group[first:end] = pixels[:, channel : channel + group.shape[1]]
                channel += group.shape[1]
        return images

    @property
    def has_bytes(self) -> bool:
        """Whether frames come as bytes, which are kept as they are."""
        return self.dtype in ("uint8", "bool")

    @property
    def is_plain(self) -> bool:
        """Whether frames lie in the file as bytes: at most their channels are moved."""
        return self.has_bytes and self.reader.columns[self.selection.frames].is_plain

    def _numbers(self, values: NDArray[np.float32], fewer: int) -> NDArray[np.float32]:
        """Rows end to end, [...] or [..., A]: as [n, T - fewer, A] where trajectories are of one length."""
        axes = (len(values),) if self.lengths is not None else (-1, self.frames - fewer)
        return values.reshape(*axes, prod(values.shape[1:]))


def leading(lengths: Indices) -> NDArray[np.bool_]:
    """Of one row per frame, which lead to a next frame: all but the last of each trajectory."""
    leads = np.ones(int(lengths.sum()), np.bool_)
    leads[np.cumsum(lengths) - 1] = False
    return leads


def quantise(values: NDArray[Any], scale: float, offset: float = 0.0) -> NDArray[np.uint8]:
    """Floats as `offset` and the nearest multiples of `scale` above it; bytes as they are, flags as 0 and 1."""
    if values.dtype in (np.uint8, np.bool_):
        return np.asarray(values).view(np.uint8)
    wide = values.astype(np.result_type(values.dtype, np.float32))
    if offset:
        wide -= wide.dtype.type(offset)
    steps: NDArray[np.uint8] = np.rint(wide * wide.dtype.type(1 / scale)).clip(0, 255).astype(np.uint8)
    return steps


def channels_first(frames: NDArray[Any], order: ChannelOrder) -> NDArray[Any]:
    """Frames [T, C, H, W] of such, of [T, H, W, C], or of [T, H, W] of one channel."""
    if frames.ndim == 3:
        return frames[:, None]
    return frames if order == "first" else np.moveaxis(frames, -1, -3)


def channel_order(shape: tuple[int, ...], order: ChannelOrder | None, what: str) -> ChannelOrder:
    """Where the channels of frames [..., C, H, W] or [..., H, W, C] stand: as said, else where a number of them can be.

    Where both can, 1, 3 and 4 are taken for channels before others.

    Raises:
        InputError: neither number can be one of channels, or both can.
    """
    counts: dict[ChannelOrder, int] = {"first": shape[-3], "last": shape[-1]}
    found = [place for place, count in counts.items() if 1 <= count <= MOST_CHANNELS and order in (None, place)]
    if len(found) == 2:
        found = [place for place in found if counts[place] in USUAL_CHANNELS] or found
    if len(found) == 1:
        return found[0]
    if len(found) == 2:
        expected = "to be told whether channels are first or last (--channels)"
        raise InputError(f"{what}: found shape {list(shape)}, expected {expected}")
    raise InputError(f"{what}: found shape {list(shape)}, expected 1 to {MOST_CHANNELS} channels")


def numeric_actions(values: NDArray[Any], classes: int | None) -> NDArray[np.float32]:
    """Actions as float32, or of integers [F] or [F, 1] the one-hot vectors [F, classes] of so many classes."""
    if classes is None:
        return _float32(values)
    return np.ascontiguousarray(np.eye(classes, dtype=np.float32)[values.reshape(-1)])


def _float32(values: NDArray[Any]) -> NDArray[np.float32]:
    return np.ascontiguousarray(values, dtype=np.float32)
