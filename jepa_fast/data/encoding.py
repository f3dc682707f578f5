"""From frames to stored fields, group of channels by group of channels: every one is verified bit by bit."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jepa_fast.data.layouts import Layout, base_under, difference, per_frame
from jepa_fast.data.manifest import FrameSpec
from jepa_fast.data.sources import Chunk, Source, check_chunk
from jepa_fast.data.windows import any_channel, bounding_boxes, cut_windows, first_difference, size_text

UInt8 = NDArray[np.uint8]
Encoded = dict[str, NDArray[Any]]


class Misfit(NamedTuple):
    """Why a chunk does not fit a layout: the first frame responsible."""

    trajectory: int
    step: int
    group: int
    reason: str


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
    frames = per_frame(array, spec.frames)
    if group.codec == "dense":
        return {f"{group.name}.pixels": frames}
    assert group.window is not None
    assert group.base is not None
    length = frames.shape[1]
    images = frames.reshape(-1, *frames.shape[2:])
    base = base_under(frames, group.base, layout.images[index])
    boxes = bounding_boxes(any_channel(difference(frames, base)).reshape(-1, spec.height, spec.width))
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
