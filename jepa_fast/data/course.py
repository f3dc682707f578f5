"""The course layout as a source of frames: states.npy, actions.npy and, where there is one, locations.npy.

Arrays are memory-mapped and read in chunks, so they may be larger than memory. Floats become bytes by one scale for the
whole set; the worst error that this makes is measured beforehand and goes into the manifest.
"""

import hashlib
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from jepa_fast.data.encoding import Chunk, paste_windows
from jepa_fast.data.parallel import ordered_map
from jepa_fast.data.shards import Split
from jepa_fast.errors import InputError

CHANNELS = 2
# Looked at in one go: bytes of states, and trajectories at most.
CHUNK_BYTES = 16_000_000
CHUNK_ROWS = 512
LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class CourseSource:
    """Trajectories of the three files. `scale`, `error` and `digest` are what `survey` found."""

    states: Path
    actions: Path
    locations: Path | None
    shape: tuple[int, ...]
    dtype: str
    scale: float
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
            "converter": "jepa_fast course layout",
            "states": self.states.name,
            "states_dtype": self.dtype,
            "actions": self.actions.name,
            "locations": None if self.locations is None else self.locations.name,
            "sha256": self.digest,
            "largest_error": self.error,
        }

    def chunk(self, start: int, stop: int) -> Chunk:
        """Trajectories `start` to `stop - 1`; walls come per frame, and the packer finds out whether they move."""
        states = _open(self.states)
        images = np.empty((CHANNELS, stop - start, self.frames, self.height, self.width), np.uint8)
        for row in range(start, stop):
            images[:, row - start] = quantise(states[row], self.scale).swapaxes(0, 1)
        locations = None if self.locations is None else _float32(_open(self.locations)[start:stop])
        return Chunk(
            dots=images[0],
            walls=images[1],
            actions=_float32(_open(self.actions)[start:stop]),
            locations=locations,
        )


def quantise(values: NDArray[Any], scale: float) -> NDArray[np.uint8]:
    """Floats as the nearest multiples of `scale`; bytes as they are."""
    if values.dtype == np.uint8:
        return np.asarray(values)
    wide = values.astype(np.result_type(values.dtype, np.float32))
    steps: NDArray[np.uint8] = np.rint(wide * wide.dtype.type(1 / scale)).astype(np.uint8)
    return steps


def open_course(states: Path, actions: Path, locations: Path | None, scale: float | None, workers: int) -> CourseSource:
    """The source of three files, after a look at every value.

    Args:
        states: [N, T, 2, H, W], channel 0 the agent and channel 1 the walls, float or uint8.
        actions: float [N, T - 1, 2].
        locations: float [N, T, 2], or None.
        scale: value of one uint8 step; by default 1 for uint8 states, and for floats the largest value / 255.
        workers: processes that look.

    Raises:
        InputError: a file is missing or not such an array, or a value is NaN, infinite, negative or beyond the scale.
    """
    array = _open(states)
    found = f"{array.dtype} {list(array.shape)}"
    right = array.ndim == 5 and array.shape[2] == CHANNELS and array.size > 0 and array.shape[1] >= 2
    if not right or not (array.dtype == np.uint8 or array.dtype.kind == "f"):
        raise InputError(f"{states}: found {found}, expected float or uint8 [N, T, {CHANNELS}, H, W] with T >= 2")
    count, frames = array.shape[:2]
    for path, shape in ((actions, (count, frames - 1, 2)), (locations, (count, frames, 2))):
        if path is None:
            continue
        other = _open(path)
        if other.shape != shape or other.dtype.kind != "f":
            expected = f"float {list(shape)}, as {states} is {list(array.shape)}"
            raise InputError(f"{path}: found {other.dtype} {list(other.shape)}, expected {expected}")
    source = CourseSource(states, actions, locations, array.shape, str(array.dtype), 1.0 if scale is None else scale)
    return _survey(source, measured=scale is None and array.dtype != np.uint8, workers=workers)


class _Seen(NamedTuple):
    largest: float
    digest: bytes


def _survey(source: CourseSource, measured: bool, workers: int) -> CourseSource:
    """`source` with its digest, error and, if it is to be `measured`, scale."""
    per_row = int(np.prod(source.shape[1:])) * np.dtype(source.dtype).itemsize
    step = _chunk_rows(per_row)
    tasks = [(low, min(low + step, source.count)) for low in range(0, source.count, step)]
    digest, largest = hashlib.sha256(), 0.0
    with ordered_map(partial(_look, source), tasks, workers) as results:
        for seen in _watched(results, tasks, "looking"):
            largest = max(largest, seen.largest)
            digest.update(seen.digest)
    source = replace(source, digest=digest.hexdigest())
    if source.dtype == "uint8":
        return source
    # Black frames alone have no largest value; any scale is right for them.
    scale = (largest / 255 or 1.0) if measured else source.scale
    if largest > 255 * scale * (1 + 1e-6):
        raise InputError(f"--scale: got {scale}, expected at least {largest / 255}: {source.states} holds {largest}")
    source = replace(source, scale=scale)
    with ordered_map(partial(_worst_error, source), tasks, workers) as errors:
        return replace(source, error=max(_watched(errors, tasks, "rounding")))


def _look(source: CourseSource, task: tuple[int, int]) -> _Seen:
    """The largest pixel of a chunk of trajectories and the digest of all its files, every value being checked."""
    start, stop = task
    digest, largest = hashlib.sha256(), 0.0
    for name, path in (("states", source.states), ("actions", source.actions), ("locations", source.locations)):
        if path is None:
            continue
        values = np.ascontiguousarray(_open(path)[start:stop])
        digest.update(values.data)
        if values.dtype != np.uint8:
            # NaN makes both of them NaN.
            least, most = float(values.min()), float(values.max())
            if not (np.isfinite(least) and np.isfinite(most)):
                _refuse(path, ~np.isfinite(values), values, start, "expected finite numbers")
            if name == "states" and least < 0:
                _refuse(path, values < 0, values, start, "expected no negative pixel")
            if name != "states" and max(-least, most) > LARGEST_FLOAT32:
                _refuse(path, abs(values) > LARGEST_FLOAT32, values, start, "expected float32's range")
        if name == "states":
            largest = float(values.max())
    return _Seen(largest, digest.digest())


def _refuse(path: Path, bad: NDArray[np.bool_], values: NDArray[Any], start: int, expected: str) -> None:
    place = np.argwhere(bad)[0]
    raise InputError(
        f"{path}: trajectory {start + place[0]}, step {place[1]}: found {values[tuple(place)]}, {expected}"
    )


def _worst_error(source: CourseSource, task: tuple[int, int]) -> float:
    """The largest distance between a pixel and the byte it becomes, times the scale."""
    values = _open(source.states)[slice(*task)]
    restored = quantise(values, source.scale).astype(np.float64) * source.scale
    return float(abs(restored - values).max())


def check_round_trip(source: CourseSource, split: Split) -> None:
    """Compare every frame, action and location of `split`, as it is on disk, with the source's.

    Raises:
        InputError: naming the first trajectory that differs.
    """
    step = _chunk_rows(CHANNELS * split.spec.frames * split.spec.height * split.spec.width)
    tasks = [(low, min(low + step, split.count)) for low in range(0, split.count, step)]
    for start, stop in _watched(iter(tasks), tasks, "comparing"):
        chunk = source.chunk(start, stop)
        dots, walls = _stored_frames(split, start, stop)
        pairs: list[tuple[str, NDArray[Any], NDArray[Any]]]
        pairs = [("dots", dots, chunk.dots), ("walls", walls, chunk.walls)]
        for name, expected in (("actions", chunk.actions), ("locations", chunk.locations)):
            if expected is not None:
                pairs.append((name, _stored(split, name, start, stop), expected))
        for name, ours, theirs in pairs:
            if not np.array_equal(ours, theirs):
                row = start + int(np.argwhere(ours != theirs)[0, 0])
                raise InputError(f"{split.folder}: trajectory {row}: its {name} are not those of {source.states}")


def _stored_frames(split: Split, start: int, stop: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Dot and wall images uint8 [n, T, H, W] of a split."""
    spec = split.spec
    shape = (stop - start, spec.frames, spec.height, spec.width)
    if spec.window is None:
        dots = _stored(split, "dot", start, stop)
    else:
        dots = np.zeros((shape[0] * spec.frames, spec.height, spec.width), np.uint8)
        windows, corners = _stored(split, "window", start, stop), _stored(split, "corner", start, stop)
        paste_windows(dots, windows.reshape(-1, spec.window, spec.window), corners.reshape(-1, 2).astype(np.int64))
    walls = _stored(split, "wall", start, stop)
    return dots.reshape(shape), walls if walls.ndim == 4 else np.broadcast_to(walls[:, None], shape)


def _stored(split: Split, field: str, start: int, stop: int) -> NDArray[Any]:
    stored = split.manifest.layout.fields()[field]
    out: NDArray[Any] = np.empty((stop - start, *stored.shape), stored.dtype)
    split.take(field, np.arange(start, stop), out)
    return out


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


def _float32(values: NDArray[Any]) -> NDArray[np.float32]:
    return np.ascontiguousarray(values, dtype=np.float32)


def _watched(results: Any, tasks: list[tuple[int, int]], label: str) -> Any:
    """The results, with a bar that counts trajectories."""
    with tqdm(total=tasks[-1][1], desc=label, unit="traj", disable=None) as bar:
        for result, (start, stop) in zip(results, tasks, strict=True):
            yield result
            bar.update(stop - start)
