"""Stored groups of channels back to whole images, by NumPy alone: for readers of a few trajectories, and to verify."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from jepa_fast.data.shards import Split
from jepa_fast.data.windows import paste_windows

UInt8 = NDArray[np.uint8]


def stored_rows(split: Split, field: str, indices: NDArray[np.int64]) -> NDArray[Any]:
    """Rows of a stored field for ascending `indices`, in fresh memory.

    Raises:
        InputError: they are trajectories of different lengths.
    """
    shape = split.row_shape(field, split.length(indices))
    out: NDArray[Any] = np.empty((len(indices), *shape), split.manifest.spec.fields()[field].dtype)
    split.take(field, indices, out)
    return out


def decoded_group(split: Split, number: int, indices: NDArray[np.int64]) -> UInt8:
    """Images uint8 [n, T, c, H, W] of a group of channels for ascending `indices`; what is stored once is a view."""
    spec, group = split.spec, split.spec.groups[number]
    pixels = stored_rows(split, f"{group.name}.pixels", indices)
    shape = (len(indices), split.length(indices), group.channels, spec.height, spec.width)
    if group.codec == "static":
        return np.broadcast_to(pixels[:, None], shape)
    if group.codec == "dense":
        return pixels
    images = np.zeros(shape, np.uint8)
    if group.base == "images":
        bases = split.bases[number]
        assert bases is not None
        images[:] = bases[stored_rows(split, f"{group.name}.base_index", indices)][:, None]
    if group.base == "own":
        images[:] = stored_rows(split, f"{group.name}.background", indices)[:, None]
    corners = stored_rows(split, f"{group.name}.corner", indices).reshape(-1, 2).astype(np.int64)
    paste_windows(images.reshape(-1, *shape[2:]), pixels.reshape(-1, *pixels.shape[2:]), corners)
    return images


def decoded_frames(split: Split, indices: NDArray[np.int64]) -> UInt8:
    """Frames uint8 [n, T, C, H, W] for ascending `indices`."""
    return np.concatenate([decoded_group(split, each, indices) for each in range(len(split.spec.groups))], axis=2)
