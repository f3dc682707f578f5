"""Clips: T frames out of a trajectory, every `skip`-th of them, from any frame on. What a sampler draws.

Clip i of a split starts at a frame of a trajectory; clips are counted trajectory by trajectory, start by start. So a
clip is one number, and an order of clips a permutation, whatever the lengths of the trajectories.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jepa_fast.errors import require

Indices = NDArray[np.int64]

# Frames of a clip where trajectories differ in length and no number is asked for.
DEFAULT_FRAMES = 16
# Trajectories that the log names.
NAMED = 20


class Rows(NamedTuple):
    """What clips are made of, counted over all trajectories end to end."""

    trajectories: Indices  # [n]
    frames: Indices  # [n, T]
    actions: Indices  # [n, (T - 1) * skip]


@dataclass(frozen=True, eq=False)
class Clips:
    """The clips of some trajectories.

    Attributes:
        frames: T, of a clip.
        skip: frames from one frame of a clip to its next; the actions between are concatenated.
        every: frames from the start of one clip to that of the next.
        offsets: int64 [N], first frame of each trajectory, all of them end to end.
        first: int64 [N + 1], number of clips in the trajectories before each.
    """

    frames: int
    skip: int
    every: int
    offsets: Indices
    first: Indices

    @property
    def count(self) -> int:
        """How many there are."""
        return int(self.first[-1])

    def rows(self, clips: Indices) -> Rows:
        """Where the frames and actions of `clips` int64 [n] lie."""
        trajectories = np.searchsorted(self.first, clips, side="right") - 1
        starts = self.offsets[trajectories] + (clips - self.first[trajectories]) * self.every
        frames = starts[:, None] + self.skip * np.arange(self.frames)
        # A trajectory has one action fewer than frames.
        actions = (starts - trajectories)[:, None] + np.arange((self.frames - 1) * self.skip)
        return Rows(trajectories, frames, actions)


def cut(lengths: Indices, frames: int | None, skip: int, apart: bool) -> Clips:
    """The clips of trajectories of these lengths, int64 [N]; trajectories that are too short have none.

    Args:
        lengths: frames of each trajectory.
        frames: T; by default all, or DEFAULT_FRAMES where lengths differ.
        skip: frames from one frame of a clip to its next.
        apart: whether clips of a trajectory share no frame, as probes want them; else one starts at every frame.

    Raises:
        InputError: a number out of range, or no trajectory is long enough.
    """
    longest, shortest = int(lengths.max()), int(lengths.min())
    because = f": trajectories have up to {longest} frames"
    require(1 <= skip < longest, "--data.frame-skip", skip, f"from 1 to {longest - 1}{because}")
    fitting = (longest - 1) // skip + 1
    if frames is None:
        frames = fitting if longest == shortest else min(DEFAULT_FRAMES, fitting)
    because += f", one in {skip} of them" if skip > 1 else ""
    require(2 <= frames <= fitting, "--data.frames", frames, f"from 2 to {fitting}{because}")
    span = (frames - 1) * skip + 1
    every = span if apart else 1
    first = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(np.maximum(0, (lengths - span) // every + 1), out=first[1:])
    return Clips(frames, skip, every, np.cumsum(lengths) - lengths, first)


def explain(clips: Clips, lengths: Indices) -> str:
    """One line for the log: how many clips there are, and which trajectories of `lengths` int64 [N] have none."""
    by = f", {clips.skip} frames from one to the next," if clips.skip > 1 else ""
    short = np.flatnonzero(np.diff(clips.first) == 0)
    longest, shortest, used = lengths.max(), lengths.min(), len(lengths) - len(short)
    span = f"{longest}" if longest == shortest else f"{shortest} to {longest}"
    text = (
        f"{clips.count:,} clips of {clips.frames} frames{by} (--data.frames) from {used:,} "
        f"trajector{'y' if used == 1 else 'ies'} of {span} frames"
    )
    if not len(short):
        return text
    named = ", ".join(map(str, short[:NAMED].tolist())) + (
        f" and {len(short) - NAMED} more" if len(short) > NAMED else ""
    )
    return f"{text}; {len(short)} that are shorter are left out: {named}"
