"""Base images of a data set: few, from which static images or backgrounds differ in a small window or not at all.

A room with one door is its base, the room without the door, apart from the door. An encoder can then run on the few
bases and correct a window for each trajectory. Bases are found from pixels alone, and verified bit by bit.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jepa_fast.data.manifest import ChannelGroup, FrameSpec, Shard
from jepa_fast.data.windows import any_channel, bounding_boxes, common_window, cut_windows, paste_windows, upper_median
from jepa_fast.data.writing import write_array

# Beyond this many distinct images in a split, the search is given up: bases would not be few.
MOST_DISTINCT = 4096
# Bases are worth storing if each serves at least this many trajectories on average.
LEAST_PER_BASE = 4

UInt8 = NDArray[np.uint8]


class ImageBases(NamedTuple):
    """Bases for D distinct images: each image is its base with a window of size `window` replaced."""

    bases: UInt8  # [G, c, H, W]
    base_index: NDArray[np.int32]  # [D], into bases
    corners: NDArray[np.int64]  # [D, 2]: (row, column) of the window
    window: tuple[int, int]


class DistinctImages:
    """Distinct images in order of first appearance, and which one each added image is."""

    def __init__(self) -> None:
        self.images: list[UInt8] = []
        self._positions: dict[bytes, int] = {}

    def add(self, images: UInt8) -> NDArray[np.int32] | None:
        """Index of each image [n, c, H, W] among the distinct ones, or None once they are too many."""
        indices = np.empty(len(images), np.int32)
        for row, image in enumerate(images):
            key = image.tobytes()
            position = self._positions.setdefault(key, len(self.images))
            if position == len(self.images):
                if position == MOST_DISTINCT:
                    return None
                self.images.append(image)
            indices[row] = position
        return indices


def share_bases(
    folder: Path, shards: list[Shard], spec: FrameSpec, square: tuple[bool, ...], count: int
) -> tuple[list[Shard], FrameSpec]:
    """Find base images over all shards, and write them where they pay.

    A static image becomes one with a window over a base; backgrounds that are few become base images and their own
    files are taken out of the shards (the packer deletes them).
    """
    for index, group in enumerate(spec.groups):
        shared = None
        if group.codec == "static":
            shared = _share_static(folder, shards, spec, group, square[index], count)
        elif group.base == "own":
            shared = _share_backgrounds(folder, shards, group, count)
        if shared is not None:
            shards, changed = shared
            spec = replace(spec, groups=(*spec.groups[:index], changed, *spec.groups[index + 1 :]))
    return shards, spec


def _share_static(
    folder: Path, shards: list[Shard], spec: FrameSpec, group: ChannelGroup, square: bool, count: int
) -> tuple[list[Shard], ChannelGroup] | None:
    found = _distinct(folder, shards, f"{group.name}.pixels")
    bases = None if found is None else find_bases(np.stack(found[0]), count, square)
    if found is None or bases is None:
        return None
    changed = replace(group, window=bases.window, base="images")
    corner_type = np.dtype(replace(spec, groups=(changed,)).fields()[f"{group.name}.corner"].dtype)
    written = []
    for number, (shard, position) in enumerate(zip(shards, found[1], strict=True)):
        arrays: dict[str, NDArray[Any]] = {"corner": bases.corners[position].astype(corner_type)}
        written.append(_with_bases(folder, shard, number, group, bases.bases, bases.base_index[position], arrays))
    return written, changed


def _share_backgrounds(
    folder: Path, shards: list[Shard], group: ChannelGroup, count: int
) -> tuple[list[Shard], ChannelGroup] | None:
    field = f"{group.name}.background"
    found = _distinct(folder, shards, field)
    if found is None or len(found[0]) * LEAST_PER_BASE > count:
        return None
    images = np.stack(found[0])
    written = []
    for number, (shard, position) in enumerate(zip(shards, found[1], strict=True)):
        rest = {name: file for name, file in shard.files.items() if name != field}
        written.append(_with_bases(folder, replace(shard, files=rest), number, group, images, position, {}))
    return written, replace(group, base="images")


def _with_bases(
    folder: Path,
    shard: Shard,
    number: int,
    group: ChannelGroup,
    bases: UInt8,
    index: NDArray[np.int32],
    arrays: dict[str, NDArray[Any]],
) -> Shard:
    """A shard with the bases that its own trajectories have, numbered among them."""
    used, own = np.unique(index, return_inverse=True)
    arrays = {"base_index": own.astype(np.int32)} | arrays | {"base": bases[used]}
    files = {
        f"{group.name}.{part}": write_array(folder / f"{group.name}.{part}-{number:05d}.npy", array)
        for part, array in arrays.items()
    }
    return replace(shard, files=shard.files | files)


def _distinct(folder: Path, shards: list[Shard], field: str) -> tuple[list[UInt8], list[NDArray[np.int32]]] | None:
    """The distinct images of a field and, shard by shard, each trajectory's; None where they are too many."""
    distinct, positions = DistinctImages(), []
    for shard in shards:
        found = distinct.add(np.load(folder / shard.files[field].name, mmap_mode="r", allow_pickle=False))
        if found is None:
            return None
        positions.append(found)
    return distinct.images, positions


def find_bases(images: UInt8, count: int, square: bool = False) -> ImageBases | None:
    """Bases for distinct images [D, c, H, W] that appear in `count` trajectories, or None where they would not pay.

    Images with the same row and column medians share a base, their per-pixel upper median. Where such a base differs
    from one of its images in more than a third of the image's side, each of these images is its own base.
    """
    image = images.shape[2], images.shape[3]
    largest = (min(image) // 3,) * 2 if square else (image[0] // 3, image[1] // 3)
    if min(largest) < 1:
        return None
    bases: list[UInt8] = []
    index = np.empty(len(images), np.int32)
    for members in _clusters(images):
        base = upper_median(images[members], axis=0)
        if (bounding_boxes(any_channel(images[members] ^ base)).sizes <= largest).all():
            index[members] = len(bases)
            bases.append(base)
        else:
            index[members] = len(bases) + np.arange(len(members))
            bases.extend(images[members])
    if len(bases) * LEAST_PER_BASE > count:
        return None
    stacked = np.stack(bases)
    boxes = bounding_boxes(any_channel(images ^ stacked[index]))
    window = common_window(boxes.sizes, image, square)
    corners = np.minimum(boxes.corners, [image[0] - window[0], image[1] - window[1]])
    rebuilt = stacked[index]
    paste_windows(rebuilt, cut_windows(images, corners, window), corners)
    if not np.array_equal(rebuilt, images):
        raise AssertionError("windows over base images lose pixels")
    return ImageBases(stacked, index, corners, window)


def _clusters(images: UInt8) -> list[NDArray[np.int64]]:
    """Indices of images with equal row and column medians, clusters in order of their first image."""
    medians = [upper_median(images, axis=axis).reshape(len(images), -1) for axis in (2, 3)]  # [D, c W], [D, c H]
    _, first, inverse = np.unique(np.concatenate(medians, axis=1), axis=0, return_index=True, return_inverse=True)
    by_cluster = np.argsort(inverse.ravel(), kind="stable")
    members = np.split(by_cluster, np.cumsum(np.bincount(inverse.ravel()))[:-1])
    return [members[cluster] for cluster in np.argsort(first)]
