"""Shards, schema version 1: plain .npy files and a JSON manifest."""

from dataclasses import dataclass


@dataclass(frozen=True)
class FrameSpec:
    """What the frames of one split look like: everything a Batch does not carry itself.

    Attributes:
        frames: T, frames per trajectory.
        height: H, in pixels.
        width: W, in pixels.
        scale: value of one uint8 step; image = uint8 * scale.
        window: side k of the square dot window in pixels, or None where dots are stored as full frames.
        wall_window: side of the square window in which a wall may differ from its base image, or None without groups.
    """

    frames: int
    height: int
    width: int
    scale: float
    window: int | None
    wall_window: int | None
