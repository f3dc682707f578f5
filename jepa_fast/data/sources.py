"""What the packer packs: a source of trajectories, given chunk by chunk."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from jepa_fast.data.manifest import FrameSpec
from jepa_fast.errors import InputError

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
    def is_plain(self) -> bool:
        """Whether a chunk is read as it lies: handed over by another process it would take longer."""

    @property
    def description(self) -> dict[str, Any]:
        """What makes this source give these trajectories, as a JSON object: equal descriptions mean equal bits."""

    def chunk(self, start: int, stop: int) -> Chunk:
        """Trajectories `start` to `stop - 1`, the same whenever and wherever they are asked for."""


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
