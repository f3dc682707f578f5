"""From frames to stored fields: dots to windows, walls to one image per trajectory, each verified bit by bit.

Nothing about the dot is assumed: windows come from the bounding boxes of the non-zero pixels of every frame.
"""

from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from jepa_fast.data.manifest import Encoding, FrameSpec, Layout
from jepa_fast.errors import InputError

# Corners are stored as uint8.
LARGEST_CORNER = 255
# Frames are compared in pieces of this many bytes, so that they stay in the processor's cache.
BLOCK_BYTES = 1 << 21


class Chunk(NamedTuple):
    """Trajectories of a source before encoding."""

    dots: NDArray[np.uint8]  # [n, T, H, W]
    walls: NDArray[np.uint8]  # [n, H, W], or [n, T, H, W]
    actions: NDArray[np.float32]  # [n, T - 1, 2]
    locations: NDArray[np.float32] | None  # [n, T, 2]


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
    def description(self) -> dict[str, Any]:
        """What makes this source give these trajectories, as a JSON object: equal descriptions mean equal bits."""

    def chunk(self, start: int, stop: int) -> Chunk:
        """Trajectories `start` to `stop - 1`, the same whenever and wherever they are asked for."""


class Misfit(NamedTuple):
    """Why a chunk does not fit a layout: the first frame responsible, and what the whole chunk needs."""

    trajectory: int
    step: int
    reason: str
    window: int  # side that the chunk's windows need; 0 where the window is not the trouble


class Boxes(NamedTuple):
    """Bounding boxes of the non-zero pixels of M images; an all-black image has size 0 at (0, 0)."""

    corners: NDArray[np.int64]  # [M, 2]: (row, column)
    sizes: NDArray[np.int64]  # [M, 2]: (height, width)


Encoded = dict[str, NDArray[Any]]


def strongest_layout(source: Source, encoding: Encoding, locations: bool) -> Layout:
    """The smallest layout `encoding` asks for, before any frame was seen."""
    window = 1 if encoding == "window" else None
    spec = FrameSpec(source.frames, source.height, source.width, source.scale, window, None)
    return Layout(spec, wall_per_frame=encoding == "full", locations=locations)


def weaker_layout(layout: Layout, misfit: Misfit) -> Layout:
    """`layout` changed as little as `misfit` allows: a larger window, full dot frames, or walls per frame."""
    if misfit.window == 0:
        return replace(layout, wall_per_frame=True)
    spec = layout.spec
    window = misfit.window if misfit.window <= min(spec.height, spec.width) // 2 else None
    return replace(layout, spec=replace(spec, window=window))


def bounding_boxes(images: NDArray[np.uint8]) -> Boxes:
    """Bounding boxes of the non-zero pixels of images [M, H, W]."""
    corners = np.empty((len(images), 2), np.int64)
    sizes = np.empty((len(images), 2), np.int64)
    for axis, across in ((0, 2), (1, 1)):
        occupied = np.bitwise_or.reduce(images, axis=across) != 0  # [M, H] or [M, W]
        corners[:, axis] = occupied.argmax(axis=1)
        past_last = occupied.shape[1] - occupied[:, ::-1].argmax(axis=1)
        sizes[:, axis] = np.where(occupied.any(axis=1), past_last - corners[:, axis], 0)
    return Boxes(corners, sizes)


def cut_windows(images: NDArray[np.uint8], corners: NDArray[np.int64], side: int) -> NDArray[np.uint8]:
    """Square windows [M, side, side] of images [M, H, W] with their top left pixels at `corners` [M, 2]."""
    views = sliding_window_view(images, (side, side), axis=(1, 2))
    cut: NDArray[np.uint8] = views[np.arange(len(images)), corners[:, 0], corners[:, 1]]
    return cut


def paste_windows(images: NDArray[np.uint8], windows: NDArray[np.uint8], corners: NDArray[np.int64]) -> None:
    """Write windows [M, k, k] into images [M, H, W] in place, top left pixels at `corners` [M, 2]."""
    views = sliding_window_view(images, windows.shape[1:], axis=(1, 2), writeable=True)
    views[np.arange(len(images)), corners[:, 0], corners[:, 1]] = windows


def encode(source: Source, start: int, stop: int, layout: Layout) -> Encoded | Misfit:
    """Trajectories `start` to `stop - 1` as the per-trajectory fields of `layout`, or why they do not fit it.

    Raises:
        InputError: the source gave a wrong dtype or shape, or values that are not finite.
    """
    return encode_chunk(source.chunk(start, stop), start, stop - start, layout)


def encode_chunk(chunk: Chunk, start: int, rows: int, layout: Layout) -> Encoded | Misfit:
    """`encode` for a chunk at hand, whose first trajectory is `start`."""
    _check(chunk, start, rows, layout)
    spec = layout.spec
    encoded: Encoded = {}
    if spec.window is None:
        encoded["dot"] = chunk.dots
    else:
        dots = chunk.dots.reshape(-1, spec.height, spec.width)
        windows = _encode_windows(dots, start, spec, spec.window)
        if isinstance(windows, Misfit):
            return windows
        encoded["window"], encoded["corner"] = windows
    if layout.wall_per_frame:
        shape = (rows, spec.frames, spec.height, spec.width)
        encoded["wall"] = chunk.walls if chunk.walls.ndim == 4 else np.broadcast_to(chunk.walls[:, None], shape)
    else:
        walls = chunk.walls
        if walls.ndim == 4:
            changed = np.argwhere((walls != walls[:, :1]).any(axis=(2, 3)))
            if len(changed):
                row, step = changed[0]
                return Misfit(int(start + row), int(step), "the wall differs from step 0", 0)
            walls = walls[:, 0]
        encoded["wall"] = walls
    encoded["actions"] = chunk.actions
    if chunk.locations is not None:
        encoded["locations"] = chunk.locations
    return encoded


def _encode_windows(
    dots: NDArray[np.uint8], start: int, spec: FrameSpec, side: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]] | Misfit:
    """Windows [n, T, k, k] and corners [n, T, 2] of dot images [n * T, H, W]."""
    boxes = bounding_boxes(dots)
    needed = boxes.sizes.max(axis=1)
    if needed.max() > side:
        first = int(np.argmax(needed > side))
        height, width = boxes.sizes[first]
        reason = f"the dot image spans {height} x {width} pixels, more than a window of {side}"
        return Misfit(start + first // spec.frames, first % spec.frames, reason, int(needed.max()))
    corners = np.minimum(boxes.corners, [spec.height - side, spec.width - side])
    if corners.max() > LARGEST_CORNER:
        first = int(np.argmax(corners.max(axis=1) > LARGEST_CORNER))
        reason = f"the dot's window begins at {corners[first].tolist()}, beyond {LARGEST_CORNER}"
        return Misfit(start + first // spec.frames, first % spec.frames, reason, max(spec.height, spec.width))
    windows = cut_windows(dots, corners, side)
    first_lost = first_difference(dots, windows, corners)
    assert first_lost is None, f"window encoding loses pixels of frame {first_lost}"
    return (
        windows.reshape(-1, spec.frames, side, side),
        corners.astype(np.uint8).reshape(-1, spec.frames, 2),
    )


def first_difference(images: NDArray[np.uint8], windows: NDArray[np.uint8], corners: NDArray[np.int64]) -> int | None:
    """Index of the first image that windows pasted on black do not give back bit by bit, or None."""
    step = max(1, BLOCK_BYTES // images[0].size)
    for low in range(0, len(images), step):
        block = images[low : low + step]
        expanded = np.zeros_like(block)
        paste_windows(expanded, windows[low : low + step], corners[low : low + step])
        if not np.array_equal(expanded, block):
            return low + int(np.argmax((expanded != block).any(axis=(1, 2))))
    return None


def _check(chunk: Chunk, start: int, rows: int, layout: Layout) -> None:
    """Refuse a chunk whose dtypes or shapes are not the source's, or with values that are not finite."""
    spec = layout.spec
    where = f"trajectories {start} to {start + rows - 1}"
    image = (spec.height, spec.width)
    if (chunk.locations is None) == layout.locations:
        expected = "present" if layout.locations else "None"
        raise InputError(f"{where}: locations: expected {expected}, as for the first trajectories")
    wall_shape = (rows, *image) if chunk.walls.ndim == 3 else (rows, spec.frames, *image)
    for name, array, dtype, shape in (
        ("dots", chunk.dots, np.uint8, (rows, spec.frames, *image)),
        ("walls", chunk.walls, np.uint8, wall_shape),
        ("actions", chunk.actions, np.float32, (rows, spec.frames - 1, 2)),
        ("locations", chunk.locations, np.float32, (rows, spec.frames, 2)),
    ):
        if array is None:
            continue
        if array.dtype != dtype or array.shape != shape:
            expected = f"{np.dtype(dtype)} {list(shape)}"
            raise InputError(f"{where}: {name}: found {array.dtype} {list(array.shape)}, expected {expected}")
        if dtype is np.float32 and not np.isfinite(array).all():
            row, step = np.argwhere(~np.isfinite(array))[0, :2]
            found = array[row, step].tolist()
            raise InputError(f"trajectory {start + row}, step {step}: {name}: found {found}, expected finite numbers")
