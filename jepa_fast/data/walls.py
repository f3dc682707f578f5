"""Wall base groups: few base images from which every wall differs only inside a small square window.

A wall with one door is its base, the wall without the door, apart from the door. An encoder can then run on the few
bases and correct a window for each trajectory. Bases are found from pixels alone, and verified bit by bit.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jepa_fast.data.encoding import LARGEST_CORNER, bounding_boxes, cut_windows, paste_windows

# Beyond this many distinct walls in a split, the search is given up: bases would not be few.
MOST_DISTINCT = 4096
# Groups are worth storing if a base serves at least this many trajectories on average.
LEAST_PER_BASE = 4


class WallBases(NamedTuple):
    """Base images for D distinct walls: each wall is its base with a window of `side` pixels replaced."""

    bases: NDArray[np.uint8]  # [G, H, W]
    groups: NDArray[np.int32]  # [D], index into bases
    corners: NDArray[np.uint8]  # [D, 2]: (row, column) of the window
    side: int


class DistinctImages:
    """Distinct images in order of first appearance, and which one each added image is."""

    def __init__(self) -> None:
        self.images: list[NDArray[np.uint8]] = []
        self._positions: dict[bytes, int] = {}

    def add(self, images: NDArray[np.uint8]) -> NDArray[np.int32] | None:
        """Index of each image [n, H, W] among the distinct ones, or None once they are too many."""
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


def find_bases(walls: NDArray[np.uint8], count: int) -> WallBases | None:
    """Bases for distinct walls [D, H, W] that appear in `count` trajectories, or None where they would not pay.

    Walls with the same row and column medians share a base, their per-pixel upper median. Where such a base differs
    from one of its walls in more than a third of the image's side, each of these walls is its own base.
    """
    height, width = walls.shape[1:]
    largest = min(height, width) // 3
    if largest < 1 or max(height, width) - largest > LARGEST_CORNER:
        return None
    bases: list[NDArray[np.uint8]] = []
    groups = np.empty(len(walls), np.int32)
    for members in _clusters(walls):
        base = _upper_median(walls[members], axis=0)
        if bounding_boxes(walls[members] ^ base).sizes.max() <= largest:
            groups[members] = len(bases)
            bases.append(base)
        else:
            groups[members] = len(bases) + np.arange(len(members))
            bases.extend(walls[members])
    if len(bases) * LEAST_PER_BASE > count:
        return None
    stacked = np.stack(bases)
    boxes = bounding_boxes(walls ^ stacked[groups])
    side = max(1, int(boxes.sizes.max()))
    corners = np.minimum(boxes.corners, [height - side, width - side])
    rebuilt = stacked[groups]
    paste_windows(rebuilt, cut_windows(walls, corners, side), corners)
    assert np.array_equal(rebuilt, walls), "wall windows lose pixels"
    return WallBases(stacked, groups, corners.astype(np.uint8), side)


def _clusters(walls: NDArray[np.uint8]) -> list[NDArray[np.int64]]:
    """Indices of walls with equal row and column medians, clusters in order of their first wall."""
    signatures = np.concatenate([_upper_median(walls, axis=1), _upper_median(walls, axis=2)], axis=1)  # [D, W + H]
    _, first, inverse = np.unique(signatures, axis=0, return_index=True, return_inverse=True)
    by_cluster = np.argsort(inverse.ravel(), kind="stable")
    members = np.split(by_cluster, np.cumsum(np.bincount(inverse.ravel()))[:-1])
    return [members[cluster] for cluster in np.argsort(first)]


def _upper_median(images: NDArray[np.uint8], axis: int) -> NDArray[np.uint8]:
    """The upper median along an axis: a value that occurs, and the larger of two candidates."""
    middle = images.shape[axis] // 2
    median: NDArray[np.uint8] = np.partition(images, middle, axis=axis).take(middle, axis=axis)
    return median
