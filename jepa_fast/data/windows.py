"""Windows of images: where images differ, cutting windows out, pasting them back, and what images have in common."""

from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

# Frames are compared in pieces of this many bytes, so that they stay in the processor's cache.
BLOCK_BYTES = 1 << 21

UInt8 = NDArray[np.uint8]


class Boxes(NamedTuple):
    """Bounding boxes of the non-zero pixels of M images; an all-black image has size 0 at (0, 0)."""

    corners: NDArray[np.int64]  # [M, 2]: (row, column)
    sizes: NDArray[np.int64]  # [M, 2]: (height, width)


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


def upper_median(images: UInt8, axis: int) -> UInt8:
    """The upper median along an axis: a value that occurs, and the larger of two candidates."""
    middle = images.shape[axis] // 2
    median: UInt8 = np.partition(images, middle, axis=axis).take(middle, axis=axis)
    return median


def size_text(window: tuple[int, int]) -> str:
    """A window's size for people."""
    return f"{window[0]} x {window[1]}"
