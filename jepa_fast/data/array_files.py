"""Arrays in .npy files as a source of frames: states, actions and targets of N trajectories of T frames.

Arrays are memory-mapped and read in chunks, so they may be larger than memory. Floats become bytes by one scale, and
where values are negative one offset, for the whole set; the worst error that this makes is measured beforehand and goes
into the manifest.
"""

import hashlib
import logging
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jepa_fast.data.decoding import decoded_group, stored_rows
from jepa_fast.data.encoding import Chunk, SourceGroup
from jepa_fast.data.manifest import MOST_CHANNELS, Encoding, Manifest, check_name
from jepa_fast.data.packing import pack
from jepa_fast.data.parallel import ordered_map
from jepa_fast.data.shards import Split, open_split
from jepa_fast.errors import InputError
from jepa_fast.progress import Progress

# Looked at in one go: bytes of states, and trajectories at most.
CHUNK_BYTES = 16_000_000
CHUNK_ROWS = 512
LARGEST_FLOAT32 = float(np.finfo(np.float32).max)

# Where channels stand in a frame: [C, H, W] or [H, W, C].
ChannelOrder = Literal["first", "last"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ArrayFiles:
    """Which files, and how they are to be read.

    Attributes:
        states: [N, T, C, H, W] or [N, T, H, W, C], float or uint8; or [N, T, H, W] of one channel.
        actions: float [N, T - 1, A], or [N, T, A], of which the last is left out; with `action_classes` integers
            [N, T - 1] or [N, T].
        targets: names, and files of float [N, T, size] or [N, T].
        groups: the channels, side by side; none: one group "frames" of all of them.
        order: where the channels stand; none: found from the shape.
        action_classes: number of classes of integer actions, which become one-hot.
    """

    states: Path
    actions: Path
    targets: tuple[tuple[str, Path], ...] = ()
    groups: tuple[SourceGroup, ...] = ()
    order: ChannelOrder | None = None
    action_classes: int | None = None


@dataclass(frozen=True)
class ArraySource:
    """Trajectories of some files. `scale`, `offset`, `error` and `digest` are what the survey found."""

    files: ArrayFiles
    shape: tuple[int, int, int, int, int]  # N, T, C, H, W
    order: ChannelOrder
    dtype: str
    groups: tuple[SourceGroup, ...]
    action_size: int
    targets: tuple[tuple[str, int], ...]
    scale: float
    offset: float = 0.0
    error: float = 0.0
    digest: str = ""

    @property
    def count(self) -> int:
        """N, number of trajectories."""
        return self.shape[0]

    @property
    def frames(self) -> int:
        """T, frames per trajectory."""
        return self.shape[1]

    @property
    def height(self) -> int:
        """H, in pixels."""
        return self.shape[3]

    @property
    def width(self) -> int:
        """W, in pixels."""
        return self.shape[4]

    @property
    def description(self) -> dict[str, Any]:
        """Names, type and content of the files, and the worst rounding error of a pixel."""
        return {
            "converter": "jepa_fast arrays",
            "states": self.files.states.name,
            "states_dtype": self.dtype,
            "channels": self.order,
            "actions": self.files.actions.name,
            "action_classes": self.files.action_classes,
            "targets": {name: path.name for name, path in self.files.targets},
            "sha256": self.digest,
            "largest_error": self.error,
        }

    def chunk(self, start: int, stop: int) -> Chunk:
        """Trajectories `start` to `stop - 1`; every frame is given, and the packer finds out what changes."""
        states = _open(self.files.states)
        images = np.empty((self.shape[2], stop - start, self.frames, self.height, self.width), np.uint8)
        for row in range(start, stop):
            frames = channels_first(quantise(states[row], self.scale, self.offset), self.order)
            images[:, row - start] = frames.swapaxes(0, 1)
        groups, first = [], 0
        for group in self.groups:
            groups.append(np.moveaxis(images[first : first + group.channels], 0, 2))
            first += group.channels
        actions = numeric_actions(_open(self.files.actions)[start:stop, : self.frames - 1], self.files.action_classes)
        targets = (_open(path)[start:stop] for _, path in self.files.targets)
        return Chunk(tuple(groups), actions, tuple(_float32(_columns(values)) for values in targets))


def quantise(values: NDArray[Any], scale: float, offset: float = 0.0) -> NDArray[np.uint8]:
    """Floats as `offset` and the nearest multiples of `scale` above it; bytes as they are."""
    if values.dtype == np.uint8:
        return np.asarray(values)
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

    Raises:
        InputError: neither number can be one of channels, or both can.
    """
    can = {"first": 1 <= shape[-3] <= MOST_CHANNELS, "last": 1 <= shape[-1] <= MOST_CHANNELS}
    found: list[ChannelOrder] = [place for place in ("first", "last") if can[place] and order in (None, place)]
    if len(found) == 1:
        return found[0]
    if len(found) == 2:
        raise InputError(f"{what}: found shape {list(shape)}, expected to be told whether channels are first or last")
    raise InputError(f"{what}: found shape {list(shape)}, expected 1 to {MOST_CHANNELS} channels")


def numeric_actions(values: NDArray[Any], classes: int | None) -> NDArray[np.float32]:
    """Actions float32 [..., A], one-hot of integers where a number of classes is given; [...] is one number each."""
    if classes is None:
        return _float32(_columns(values))
    return np.ascontiguousarray(np.eye(classes, dtype=np.float32)[values.reshape(values.shape[:2])])


def open_arrays(files: ArrayFiles, scale: float | None, workers: int) -> ArraySource:
    """The source of some files, after a look at every value.

    Args:
        files: which ones, and how they are read.
        scale: value of one uint8 step; by default 1 for uint8 states, and for floats what makes the largest value 255.
        workers: processes that look.

    Raises:
        InputError: a file is missing or not such an array, or a value is NaN, infinite or beyond the scale.
    """
    array = _open(files.states)
    found = f"{array.dtype} {list(array.shape)}"
    right = array.ndim in (4, 5) and array.size > 0 and array.shape[1] >= 2
    if not right or not (array.dtype == np.uint8 or array.dtype.kind == "f"):
        raise InputError(f"{files.states}: found {found}, expected float or uint8 [N, T, C, H, W] with T >= 2")
    order: ChannelOrder = "first"
    if array.ndim == 4:
        (count, frames, height, width), channels = array.shape, 1
    else:
        order = channel_order(array.shape, files.order, str(files.states))
        frames, channels, height, width = channels_first(array[0], order).shape
        count = len(array)
    groups = files.groups or (SourceGroup("frames", channels),)
    if sum(group.channels for group in groups) != channels:
        listed = ", ".join(f"{group.name}:{group.channels}" for group in groups)
        raise InputError(f"{files.states}: found {found}, expected the channels of --groups {listed}")
    action_size = _action_size(files, (count, frames), f"{files.states} is {list(array.shape)}")
    targets = []
    for name, path in files.targets:
        check_name(name, "--targets")
        other = _open(path)
        if other.ndim not in (2, 3) or other.shape[:2] != (count, frames) or other.dtype.kind != "f" or not other.size:
            expected = f"float [{count}, {frames}, size], as {files.states} is {list(array.shape)}"
            raise InputError(f"{path}: found {other.dtype} {list(other.shape)}, expected {expected}")
        targets.append((name, _columns(other[:1]).shape[2]))
    if array.ndim == 5 and files.order is None:
        log.info("%s: %s, channels %s", files.states, list(array.shape), order)
    shape = (count, frames, channels, height, width)
    source = ArraySource(
        files, shape, order, str(array.dtype), groups, action_size, tuple(targets), 1.0 if scale is None else scale
    )
    return _survey(source, measured=scale is None and array.dtype != np.uint8, workers=workers)


def _action_size(files: ArrayFiles, size: tuple[int, int], because: str) -> int:
    """A, once the actions' type and shape are right."""
    array, (count, frames) = _open(files.actions), size
    found = f"{array.dtype} {list(array.shape)}"
    steps_fit = array.ndim >= 2 and array.shape[0] == count and array.shape[1] in (frames - 1, frames)
    if files.action_classes is not None:
        if not steps_fit or array.ndim > 3 or prod(array.shape[2:]) != 1 or array.dtype.kind not in "iu":
            raise InputError(f"{files.actions}: found {found}, expected integers [{count}, {frames - 1}], as {because}")
    else:
        if array.dtype.kind in "iub" and steps_fit and prod(array.shape[2:]) == 1:
            raise InputError(f"{files.actions}: found {found}, expected floats, or the number of classes of integers")
        if not steps_fit or array.ndim > 3 or not array.size or array.dtype.kind not in "fiu":
            expected = f"float [{count}, {frames - 1}, A], as {because}"
            raise InputError(f"{files.actions}: found {found}, expected {expected}")
    if array.shape[1] == frames:
        log.info("%s: %d actions for %d frames, the last is left out", files.actions, frames, frames)
    return files.action_classes or _columns(array[:1]).shape[2]


def convert_files(files: ArrayFiles, out: Path, scale: float | None, encoding: Encoding, workers: int) -> Manifest:
    """Pack some files as the split `out`, and compare it with them.

    Raises:
        InputError: a file is not of the layout, a value is not finite or beyond the scale, or the disk lacks space.
        OSError: a file cannot be read or written.
    """
    source = open_arrays(files, scale, workers)
    manifest = pack(source, out, encoding, workers)
    check_round_trip(source, open_split(out))
    log.info(
        "%s: every frame, action and target on disk compared with its source: equal after rounding to steps of %g, "
        "which moves a pixel by at most %g",
        out,
        source.scale,
        source.error,
    )
    return manifest


class _Seen(NamedTuple):
    least: float
    largest: float
    digest: bytes


def _survey(source: ArraySource, measured: bool, workers: int) -> ArraySource:
    """`source` with its digest, error, offset and, if it is to be `measured`, scale."""
    per_row = prod(source.shape[1:]) * np.dtype(source.dtype).itemsize
    step = _chunk_rows(per_row)
    tasks = [(low, min(low + step, source.count)) for low in range(0, source.count, step)]
    digest, least, largest = hashlib.sha256(), 0.0, 0.0
    with ordered_map(partial(_look, source), tasks, workers) as results:
        for seen in _watched(results, tasks, "looking"):
            least, largest = min(least, seen.least), max(largest, seen.largest)
            digest.update(seen.digest)
    source = replace(source, digest=digest.hexdigest())
    if source.dtype == "uint8":
        return source
    # Frames of one value alone have no range; any scale is right for them.
    scale = ((largest - least) / 255 or 1.0) if measured else source.scale
    if largest - least > 255 * scale * (1 + 1e-6):
        holds = f"{largest}" if least == 0 else f"{least} to {largest}"
        expected = f"at least {(largest - least) / 255}: {source.files.states} holds {holds}"
        raise InputError(f"--scale: got {scale}, expected {expected}")
    source = replace(source, scale=scale, offset=least)
    with ordered_map(partial(_worst_error, source), tasks, workers) as errors:
        return replace(source, error=max(_watched(errors, tasks, "rounding")))


def _look(source: ArraySource, task: tuple[int, int]) -> _Seen:
    """The range of a chunk of trajectories and the digest of all its files, every value being checked."""
    start, stop = task
    files = source.files
    digest, least, largest = hashlib.sha256(), 0.0, 0.0
    for name, path in (("states", files.states), ("actions", files.actions), *files.targets):
        values = np.ascontiguousarray(_open(path)[start:stop])
        digest.update(values.data)
        low, high = float(values.min()), float(values.max())
        if values.dtype.kind == "f":
            # NaN makes both of them NaN.
            if not (np.isfinite(low) and np.isfinite(high)):
                _refuse(path, ~np.isfinite(values), values, start, "expected finite numbers")
            if path != files.states and max(-low, high) > LARGEST_FLOAT32:
                _refuse(path, abs(values) > LARGEST_FLOAT32, values, start, "expected float32's range")
        if path == files.states:
            least, largest = low, high
        if name == "actions" and files.action_classes is not None:
            bad = (values < 0) | (values >= files.action_classes)
            if bad.any():
                _refuse(path, bad, values, start, f"expected a class from 0 to {files.action_classes - 1}")
    return _Seen(least, largest, digest.digest())


def _refuse(path: Path, bad: NDArray[np.bool_], values: NDArray[Any], start: int, expected: str) -> None:
    place = np.argwhere(bad)[0]
    raise InputError(
        f"{path}: trajectory {start + place[0]}, step {place[1]}: found {values[tuple(place)]}, {expected}"
    )


def _worst_error(source: ArraySource, task: tuple[int, int]) -> float:
    """The largest distance between a pixel and what becomes of it."""
    values = _open(source.files.states)[slice(*task)]
    restored = quantise(values, source.scale, source.offset).astype(np.float64) * source.scale + source.offset
    return float(abs(restored - values).max())


def check_round_trip(source: ArraySource, split: Split) -> None:
    """Compare every frame, action and target of `split`, as it is on disk, with the source's.

    Raises:
        InputError: naming the first trajectory that differs.
    """
    step = _chunk_rows(prod(source.shape[1:]))
    tasks = [(low, min(low + step, split.count)) for low in range(0, split.count, step)]
    for start, stop in _watched(iter(tasks), tasks, "comparing"):
        chunk, indices = source.chunk(start, stop), np.arange(start, stop)
        pairs: list[tuple[str, NDArray[Any], NDArray[Any]]] = [
            (group.name, decoded_group(split, number, indices), chunk.groups[number])
            for number, group in enumerate(source.groups)
        ]
        pairs.append(("actions", stored_rows(split, "actions", indices), chunk.actions))
        for (name, _), values in zip(source.targets, chunk.targets, strict=True):
            pairs.append((name, stored_rows(split, f"target.{name}", indices), values))
        for name, ours, theirs in pairs:
            if not np.array_equal(ours, theirs):
                row = start + int(np.argwhere(ours != theirs)[0, 0])
                what = name if name == "actions" or (name, theirs.shape[-1]) in source.targets else f"{name} pixels"
                raise InputError(f"{split.folder}: trajectory {row}: its {what} are not those of {source.files.states}")


def _chunk_rows(row_bytes: int) -> int:
    return max(1, min(CHUNK_ROWS, CHUNK_BYTES // row_bytes))


def _open(path: Path) -> NDArray[Any]:
    """A .npy file, mapped."""
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
    except FileNotFoundError:
        raise InputError(f"{path}: not found, expected a .npy file") from None
    except (ValueError, EOFError, AttributeError) as error:
        raise InputError(f"{path}: not an array that can be mapped ({error}), expected a whole .npy file") from None
    return array


def _columns(values: NDArray[Any]) -> NDArray[Any]:
    """[n, T, size], of [n, T] one number each."""
    return values[..., None] if values.ndim == 2 else values


def _float32(values: NDArray[Any]) -> NDArray[np.float32]:
    return np.ascontiguousarray(values, dtype=np.float32)


def _watched(results: Any, tasks: list[tuple[int, int]], label: str) -> Any:
    """The results, with progress in trajectories."""
    with Progress(label, tasks[-1][1], "trajectories") as progress:
        for result, (start, stop) in zip(results, tasks, strict=True):
            yield result
            progress.update(stop - start)
